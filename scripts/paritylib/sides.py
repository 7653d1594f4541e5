"""Running the sides: PyTorch's, ours, and transformers on our export.

Each side imports its own libraries when it is run, so that none holds the others' memory.
"""

import numpy as np

from paritylib.work import Work

SIDES = {"torch": "PyTorch", "jax": "ours", "reopen": "our export in transformers"}


def run_side(side: str, work: Work, sections: tuple[str, ...], inject: str | None = None) -> None:
    """Computes sections of one side in this process and saves them.

    Args:
        side: of SIDES.
        work: the folder that sections are saved in.
        sections: what to compute; sections of PyTorch that are there already are kept.
        inject: the error to plant into our side; None: no error.
    """
    if side == "jax":
        _run_ours(work, sections, inject)
    elif side == "torch":
        _run_torch(work, sections)
    else:
        _run_reopen(work)


def _run_ours(work: Work, sections: tuple[str, ...], inject: str | None) -> None:
    import jax

    from paritylib import errors, ours_inference, ours_training

    compute = ours_inference.SECTIONS | ours_training.SECTIONS
    with errors.planted(inject), jax.default_device(jax.devices("cpu")[0]):
        for name in sections:
            arrays = compute[name](work)
            work.save("ours", name, {key: np.asarray(x) for key, x in arrays.items()})


def _run_torch(work: Work, sections: tuple[str, ...]) -> None:
    from paritylib import torch_inference, trl_losses, trl_training

    torch_inference.prepare(work)
    compute = torch_inference.SECTIONS | trl_losses.SECTIONS | trl_training.SECTIONS
    for name in sections:
        if name in compute and not work.has("torch", name):
            work.save("torch", name, compute[name](work))


def _run_reopen(work: Work) -> None:
    from paritylib import torch_inference

    torch_inference.prepare(work)
    work.save("ours", "export", torch_inference.reopen(work))
