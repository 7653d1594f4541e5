"""Model FLOPs compared with the matrix products of the traced model; peak FLOP/s."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aesthetic_jax.checkpoints.runs import abstract_model
from aesthetic_jax.models.config import PRESETS, InternVLConfig, TextConfig, VisionConfig
from aesthetic_jax.models.logprobs import completion_logprobs
from aesthetic_jax.training import flops

CONFIG = InternVLConfig(
    VisionConfig(width=24, layers=3, heads=2, mlp_width=40, image_size=56, patch_size=14),
    TextConfig(width=16, layers=2, heads=4, kv_heads=2, mlp_width=36, vocab_size=64),
    image_token=3,
    remat="none",
)
B, G, N, P, T = 2, 3, 2, 20, 7


def matrix_product_flops(jaxpr) -> int:
    """Two for every multiply-add of a jaxpr's dot products; those of a scan once per iteration."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += (
                2
                * math.prod(equation.outvars[0].aval.shape)
                * math.prod(left[axis] for axis in contracted)
            )
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inner in jax.tree.leaves(
            tuple(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
        ):
            if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                total += times * matrix_product_flops(getattr(inner, "jaxpr", inner))
    return total


def test_forward_flops_are_the_models_matrix_products():
    graph, shapes = abstract_model(CONFIG)

    def forward(parameters, tiles, ids, completions):
        model = nnx.merge(graph, parameters)
        prompt = model.prefill(tiles, ids, jnp.ones(ids.shape, bool))
        return completion_logprobs(model, prompt, completions)

    arrays = (
        np.zeros((B, N, 56, 56, 3), np.uint8),
        np.zeros((B, P), np.int32),
        np.zeros((B, G, T), np.int32),
    )
    traced = matrix_product_flops(jax.make_jaxpr(forward)(shapes, *arrays).jaxpr)
    # The model extends by all tokens but the last, predicts all, and also multiplies what causal
    # masks hide.
    counted = flops.forward_flops(CONFIG, B * N, np.full(B, P), np.full((B, G), T - 1))
    text = CONFIG.text
    last_head = 2 * B * G * text.width * text.vocab_size
    masked = 2 * text.layers * text.heads * text.head_dim * (B * P**2 + B * G * (T - 1) ** 2)
    assert counted.vision + counted.language + last_head + masked == traced


def test_padding_does_not_count_and_a_prompt_counts_once():
    ids = np.full((2, 12), 9, np.int32)
    ids[:, :4] = CONFIG.image_token  # one tile of 4 tokens
    mask = np.arange(12) < np.array([[12], [8]])
    completion = np.arange(6) < np.array([[[6], [2]], [[1], [3]]])
    counted = flops.batch_flops(CONFIG, ids, mask, completion)
    apart = [
        flops.forward_flops(CONFIG, 1, np.array([12]), np.array([[6, 2]])),
        flops.forward_flops(CONFIG, 1, np.array([8]), np.array([[1, 3]])),
    ]
    np.testing.assert_allclose(counted, np.sum(apart, axis=0))


def test_a_completion_token_of_2b_takes_two_flops_per_parameter():
    config = PRESETS["internvl3_2b"]
    longer, shorter = (
        flops.forward_flops(config, 0, np.array([0]), np.array([[n]])).language for n in (101, 100)
    )
    text = dataclasses.replace(config.text, vocab_size=0)
    _, shapes = abstract_model(dataclasses.replace(config, text=text))
    matrices = (
        sum(x.size for x in jax.tree.leaves(shapes["language"]) if x.ndim == 3)
        + 1536 * config.text.vocab_size
    )
    assert longer - shorter == pytest.approx(2 * matrices, rel=0.01)


def test_peak_flops_of_a_tpu_are_its_data_sheets_and_else_measured(monkeypatch):
    assert 1e8 < flops.peak_flops("float32") < 1e14

    class Chip:
        device_kind = "TPU v5 lite"

    monkeypatch.setattr(jax, "devices", lambda: [Chip()] * 16)
    monkeypatch.setattr(jax, "device_count", lambda: 16)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert flops.peak_flops("bfloat16") == 16 * 197e12
