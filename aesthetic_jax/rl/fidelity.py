"""Fact fidelity: how often chains of thought state rightly and wrongly what images show."""

from collections.abc import Mapping
from typing import Any

from aesthetic_jax.data.scenes.chains import read_chain
from aesthetic_jax.data.scenes.facts_file import ImageFacts, Scenes
from aesthetic_jax.data.scenes.flaws import BREAKS

_VALUES = ("kind", "body", "label", "cap", "light")
_NOTHING = ImageFacts()  # what a chain states of an image that it doesn't name

Rates = dict[str, float | int | None]


def fact_fidelity(completions: Mapping[str, str], scenes: Scenes) -> dict[str, Rates]:
    """Rates at which completions state the facts of their images rightly and wrongly.

    A value (kind, body, label, cap, light), over the originals and candidates that have it (the
    true value is not None):

    - num: number of these images;
    - hit_rate: share of them for which the chain states the right value;
    - false_alarm_rate: share of them for which it states another one. For the cap, the images of a
      product that lost its cap count here too (true cap None, body known): any cap stated there is
      a false alarm.

    A flaw, over candidates:

    - num: number of candidates that have it;
    - hit_rate: share of these for which the chain states it;
    - false_alarm_rate: share of the candidates without it for which the chain states it.

    What a chain doesn't state is a miss and no false alarm. A chain that describes only the asked
    dimension misses all other facts, so its rates measure what is said, not what the model can see.
    A value that isn't a word of `write_reasoning` counts as not stated.

    Args:
        completions: by sample id.
        scenes: the facts of at least these samples.

    Returns:
        {value or flaw: {"hit_rate", "false_alarm_rate", "num"}}, shares in [0, 1], None where there
        is nothing to take a share of. Facts that occur in no image are left out.
    """
    images = []  # (name, what the image shows, what the chain states of it)
    for sample, completion in completions.items():
        chain = read_chain(completion)
        images += [(name, x, chain.get(name, _NOTHING)) for name, x in scenes[sample].items()]
    fidelity = {}
    for value in _VALUES:
        shown = [(getattr(x, value), getattr(y, value)) for _, x, y in images]
        shown = [(true, stated) for true, stated in shown if true is not None]
        hits = [stated == true for true, stated in shown]
        alarms = [stated not in (None, true) for true, stated in shown]
        if value == "cap":
            lost = [y.cap for _, x, y in images if x.cap is None and x.body is not None]
            alarms += [stated is not None for stated in lost]
        if alarms:
            fidelity[value] = _rates(hits, alarms)
    candidates = [(x.flaws, y.flaws) for name, x, y in images if name != "original"]
    for flaw in BREAKS:
        hits = [flaw in stated for true, stated in candidates if flaw in true]
        alarms = [flaw in stated for true, stated in candidates if flaw not in true]
        if hits:
            fidelity[flaw] = _rates(hits, alarms)
    return fidelity


def format_facts(facts: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of `fact_fidelity`'s rates in percent."""
    lines = [_line("facts in the chains", "stated, %", "false alarms, %", "images")]
    for name, rates in facts.items():
        cells = [_percent(rates["hit_rate"]), _percent(rates["false_alarm_rate"])]
        lines.append(_line(f"  {name}", *cells, str(rates["num"])))
    return "\n".join(lines)


def _rates(hits: list[bool], alarms: list[bool]) -> Rates:
    return {
        "hit_rate": _share(hits),
        "false_alarm_rate": _share(alarms),
        "num": len(hits),
    }


def _share(flags: list[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _line(label: str, *cells: str) -> str:
    return f"{label:24}" + "".join(f"{cell:>18}" for cell in cells)
