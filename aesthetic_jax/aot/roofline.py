"""Roofline: a lower bound on a step's time, from arithmetic and communication."""

from collections.abc import Sequence

import numpy as np

from aesthetic_jax.aot.collectives import Collective
from aesthetic_jax.aot.programs import tiles_per_prompt
from aesthetic_jax.training.chips import TPU_CHIPS
from aesthetic_jax.training.flops import forward_flops
from aesthetic_jax.training.setup import TrainSetup

# Between slices, bytes/s per chip: a host of four chips has 200 Gbit/s.
_DATA_CENTRE_LINKS = 6.25e9


def roofline(setup: TrainSetup, name: str, found: Sequence[Collective]) -> dict[str, float]:
    """`model_flops_per_chip` and, on known chips, `roofline_s`, the largest of three times.

    - `compute_s`: model FLOPs per chip / peak FLOP/s.
    - `links_s`: bytes that a chip must receive within its slice / the rate of all its links.
    - `data_centre_s`: bytes that cross slices / a chip's share of its host's network.

    An all-gather, reduce-scatter or all-to-all among n devices moves (n - 1) / n of the array to
    each; an all-reduce moves twice that. Padding, rematerialisation and memory traffic are not
    counted, although memory traffic bounds sampling.

    Args:
        setup: the abstract setup.
        name: name of the step: sft, rollout or update.
        found: collectives of the whole step.
    """
    flops = _model_flops(setup, name) / setup.mesh.size
    chip = TPU_CHIPS.get(setup.mesh.devices.flat[0].device_kind)
    if chip is None:
        return {"model_flops_per_chip": flops}
    within = sum(x.count * x.wire_bytes for x in found if not x.across_slices)
    across = sum(x.count * x.wire_bytes for x in found if x.across_slices)
    times = {
        "compute_s": flops / chip.flops,
        "links_s": within / chip.links,
        "data_centre_s": across / _DATA_CENTRE_LINKS,
    }
    return {"model_flops_per_chip": flops} | times | {"roofline_s": max(times.values())}


def _model_flops(setup: TrainSetup, name: str) -> float:
    """Model FLOPs of a step on all chips."""
    config = setup.config
    rows, prompt = config.batch_size, config.data.prompt_buckets[-1]
    if name == "sft":
        group, length = 1, config.data.completion_buckets[-1]
    else:
        group, length = config.grpo.num_generations, config.max_completion_length
    forward = forward_flops(
        setup.architecture,
        rows * tiles_per_prompt(config),
        np.full(rows, prompt),
        np.full((rows, group), length),
    )
    # In forward passes; a backward pass counts as two.
    frozen_vision = "vision" in config.model.freeze
    reference = int(config.method == "grpo" and config.grpo.beta > 0)
    vision, language = {
        "sft": (1 if frozen_vision else 3, 3),
        "rollout": (1, 1),
        "update": (0 if frozen_vision else 3, 3 + reference),
    }[name]
    return vision * forward.vision + language * forward.language
