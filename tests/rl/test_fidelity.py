"""Fact fidelity on chains with planted errors."""

import pytest

from aesthetic_jax.data.scenes.facts_file import ImageFacts
from aesthetic_jax.rl.fidelity import fact_fidelity, format_facts

ORIGINAL = "red jar, blue label, green cap, light left, shadow right"
SOUND = f"{ORIGINAL}, same shape"
TRUE = ImageFacts("jar", "red", "blue", "green", "left")
BENT = ImageFacts("jar", "red", "blue", "green", "left", frozenset({"bent"}))
OPEN = ImageFacts("jar", "red", "blue", None, "left", frozenset({"cap_missing"}))
SAMPLE = {"original": TRUE, "A": TRUE, "B": BENT, "C": OPEN}


def rates(hit_rate, false_alarm_rate, num):
    return {"hit_rate": hit_rate, "false_alarm_rate": false_alarm_rate, "num": num}


def score(*chains, scenes=SAMPLE):
    texts = {str(i): f"<think>{chain}</think>" for i, chain in enumerate(chains)}
    return fact_fidelity(texts, dict.fromkeys(texts, scenes))


def chain(original=ORIGINAL, a=SOUND, b=None, c=None):
    b = b or SOUND.replace("same shape", "crooked")
    c = c or SOUND.replace("green cap", "no cap")
    return f"Original: {original}. A: {a}. B: {b}. C: {c}."


def test_a_chain_of_the_truth_scores_1():
    values = {name: rates(1.0, 0.0, 4) for name in ("kind", "body", "label", "light")}
    flaws = {name: rates(1.0, 0.0, 1) for name in ("bent", "cap_missing")}
    expected = values | {"cap": rates(1.0, 0.0, 3)} | flaws
    assert score(chain()) == expected
    order = ["kind", "body", "label", "cap", "light", "bent", "cap_missing"]
    assert list(score(chain())) == order


@pytest.mark.parametrize(
    ("changes", "name", "expected"),
    [
        # A wrong value is a miss and a false alarm, a missing or unknown one a miss alone.
        ({"a": SOUND.replace("red jar", "red can")}, "kind", rates(0.75, 0.25, 4)),
        ({"a": SOUND.replace("red jar", "white jar")}, "body", rates(0.75, 0.25, 4)),
        ({"a": SOUND.replace("red jar, ", "")}, "body", rates(0.75, 0.0, 4)),
        ({"original": ORIGINAL.replace("red jar", "pink jar")}, "kind", rates(0.75, 0.0, 4)),
        ({"original": "nothing"}, "label", rates(0.75, 0.0, 4)),
        ({"a": SOUND.replace("light left", "light right")}, "light", rates(0.75, 0.25, 4)),
        # The cap's false alarms count among the images without a cap too.
        ({"c": SOUND}, "cap", rates(1.0, 0.25, 3)),
        ({"c": SOUND}, "cap_missing", rates(0.0, 0.0, 1)),
        ({"a": SOUND.replace("green cap", "no cap")}, "cap", rates(2 / 3, 0.0, 3)),
        # A flaw's false alarms are those on candidates without it.
        ({"a": SOUND.replace("green cap", "no cap")}, "cap_missing", rates(1.0, 0.5, 1)),
        ({"a": SOUND.replace("same shape", "bent over")}, "bent", rates(1.0, 0.5, 1)),
        ({"b": SOUND}, "bent", rates(0.0, 0.0, 1)),
        # The original has no flaws to state.
        ({"original": f"{ORIGINAL}, crooked"}, "bent", rates(1.0, 0.0, 1)),
    ],
)
def test_planted_errors(changes, name, expected):
    assert score(chain(**changes))[name] == pytest.approx(expected)


def test_what_is_not_stated_is_missed():
    short = score("A: same shape. B: crooked. C: same shape.")
    assert short["bent"] == rates(1.0, 0.0, 1)
    assert short["kind"] == short["light"] == rates(0.0, 0.0, 4)
    assert score("")["cap"] == rates(0.0, 0.0, 3)


def test_samples_are_pooled():
    pooled = score(chain(), "garbage", chain(b=SOUND), chain(a=SOUND.replace("red", "black")))
    assert pooled["bent"] == rates(0.5, 0.0, 4)
    assert pooled["body"] == rates(11 / 16, 1 / 16, 16)


def test_facts_that_do_not_occur_are_left_out():
    cutout = ImageFacts("product", light="left")
    stated = "Original: product, light left. A: red product, red cap, light left."
    facts = score(stated, scenes={"original": cutout, "A": cutout})
    assert facts == {"kind": rates(1.0, 0.0, 2), "light": rates(1.0, 0.0, 2)}


def test_rates_without_a_denominator_are_none():
    facts = score("A: no cap.", scenes={"original": OPEN, "A": OPEN})
    assert facts["cap_missing"] == rates(1.0, None, 1)
    assert facts["cap"] == rates(None, 0.0, 0)


def test_only_the_answered_samples_count():
    assert fact_fidelity({"x": chain()}, {"x": SAMPLE, "y": SAMPLE})["kind"]["num"] == 4


def test_the_table():
    facts = {"kind": rates(0.987, 0.0, 120), "bent": rates(1.0, None, 7)}
    title, kind, bent = (line.split() for line in format_facts(facts).splitlines())
    assert title[-1] == "images"
    assert kind == ["kind", "98.7", "0.0", "120"]
    assert bent == ["bent", "100.0", "7"]
