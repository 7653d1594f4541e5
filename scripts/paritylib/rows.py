"""The rows of parity.py's table: quantities, how they are compared, and their tolerances."""

from typing import NamedTuple

from paritylib.cases import (
    COMPLETION,
    GROUP,
    LOSSES,
    MAX_TILES_PREPROCESSED,
    SCALES,
    STEPS,
    TEMPERATURE,
    TILE_SIZE,
)
from paritylib.compare import (
    Comparison,
    at_most,
    largest,
    relative,
    rms,
    unequal,
    worst_tensor,
)
from paritylib.work import Work


class Row(NamedTuple):
    """One quantity.

    Attributes:
        quantity: its name in the table.
        section: section that holds both sides' arrays.
        compare: function that compares them.
        tolerance: the largest difference that passes.
        reference: PyTorch's section; None: the same.
    """

    quantity: str
    section: str
    compare: Comparison
    tolerance: float
    reference: str | None = None


class Result(NamedTuple):
    """A row of the finished table."""

    quantity: str
    pytorch: str
    ours: str
    difference: float
    tolerance: float
    verdict: str  # "pass" or "FAIL"


def _inference_rows(work: Work) -> list[Row]:
    amount = work.amount
    tiles = f"image tiles of {TILE_SIZE} pixels, up to {MAX_TILES_PREPROCESSED} an image, bytes"
    logprob = "per-token log-probability"
    logprob_cases = f"{amount.prompts} prompts x {amount.group} completions"
    greedy = f"{amount.greedy_prompts} prompts with images x {amount.greedy_tokens} tokens"
    templates = (("hf", "-hf"), ("original", "original internvl2_5"))
    return [
        Row(tiles, "images", unequal("tiles", "bytes"), 0),
        Row("normalised pixels", "images", largest("pixels"), 1e-6),
        *(
            Row(f"prompt {key}, {title} template", "prompts", unequal(f"{name}_{key}", unit), 0)
            for name, title in templates
            for key, unit in (("text", "bytes"), ("ids", "ids"))
        ),
        Row("vision features", "forward", largest("vision"), 1e-4),
        Row("projector output", "forward", largest("projected"), 1e-4),
        Row("logits at valid positions", "forward", largest("logits"), 1e-4),
        Row(f"{logprob}, RMS, {logprob_cases}", "logprobs", rms("logprobs"), 2e-3),
        Row("per-token entropy, RMS", "logprobs", rms("entropies"), 2e-3),
        Row(f"{logprob}, bfloat16 with float32 head, RMS", "bfloat16", rms("logprobs"), 0.03),
        Row(f"greedy decoding, {greedy}", "greedy", unequal("ids", "tokens"), 0),
    ]


def _array_rows() -> list[Row]:
    rows = [
        Row(f"advantages, scale_rewards={scale}", "advantages", largest(scale), 1e-5)
        for scale in SCALES
    ]
    for name in LOSSES:
        loss, gradient = largest(f"{name}/loss"), largest(f"{name}/gradient")
        rows.append(Row(f"policy_loss {name}", "losses", loss, 1e-5))
        rows.append(Row(f"policy_loss {name}: gradient", "losses", gradient, 1e-6))
    return rows


def _checkpoint_rows() -> list[Row]:
    export, load = "export reopened by transformers", "import"
    memory = f"{load}: peak host memory / bytes kept"
    return [
        Row(f"{export}: logits", "export", largest("logits"), 1e-5, "forward"),
        Row(
            f"{export}: missing and unexpected keys", "export", at_most("wrong_keys"), 0, "forward"
        ),
        Row(f"{load}: seconds", "load", at_most("seconds"), 60, "forward"),
        Row(memory, "load", at_most("memory"), 1.2, "forward"),
    ]


def _loss_rows(name: str, section: str) -> list[Row]:
    in_logprobs, in_parameters = largest("gradient"), worst_tensor("gradients/")
    return [
        Row(name, section, largest("loss"), 1e-5),
        Row(f"{name}: gradient in the log-probabilities", section, in_logprobs, 1e-6),
        Row(f"{name}: gradient of every parameter, relative", section, in_parameters, 1e-4),
    ]


def _training_rows() -> list[Row]:
    rows = _loss_rows("SFT loss", "sft")
    rows.insert(1, Row("SFT loss: supervised tokens", "sft", largest("tokens"), 0))
    model_loss = f"GRPO loss of the model, temperature {TEMPERATURE}, off policy, KL"
    rows += _loss_rows(model_loss, "grpo")
    grpo_run = f"GRPO (G {GROUP}, T {COMPLETION}, beta > 0)"
    for name, section in (("SFT", "sft_run"), (grpo_run, "grpo_run")):
        steps = f"{name}, {STEPS} steps"
        rows += [
            Row(f"{steps}: losses", section, largest("losses"), 1e-4),
            Row(f"{steps}: gradient norms, relative", section, relative("grad_norms"), 1e-4),
            Row(f"{steps}: final weights, relative", section, worst_tensor("weights/"), 1e-4),
        ]
    return rows


def make_rows(work: Work) -> list[Row]:
    """All rows; those whose section the size doesn't compute are never compared."""
    return [*_inference_rows(work), *_array_rows(), *_checkpoint_rows(), *_training_rows()]


def compare(work: Work, sections: tuple[str, ...]) -> list[Result]:
    """The table of sections that both sides have saved."""
    results = []
    for row in make_rows(work):
        if row.section in sections:
            theirs = work.load("torch", row.reference or row.section)
            ours = work.load("ours", row.section)
            shown_theirs, shown_ours, difference = row.compare(theirs, ours)
            verdict = "pass" if difference <= row.tolerance else "FAIL"  # NaN fails
            results.append(
                Result(row.quantity, shown_theirs, shown_ours, difference, row.tolerance, verdict)
            )
    return results
