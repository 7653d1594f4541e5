"""The attention back ends against the xla reference, alone and through the model's calls.

splash runs in Pallas' interpreter. cuDNN needs a GPU: its arguments go to XLA's implementation of
the same function instead, which tests layout and masks but not the kernel.
"""

import collections
import dataclasses
import functools
import re
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aesthetic_jax.errors import UserError
from aesthetic_jax.models import attention as module
from aesthetic_jax.models import internvl, splash
from aesthetic_jax.models.attention import (
    as_cached,
    attention,
    choose_backend,
    shared_prompt_attention,
)
from aesthetic_jax.models.config import PRESETS, InternVLConfig, TextConfig, VisionConfig
from aesthetic_jax.models.internvl import InternVL, abstract_model
from aesthetic_jax.models.logprobs import completion_logprobs

IMAGE_TOKEN = 7
SMALL = InternVLConfig(
    VisionConfig(width=32, layers=1, heads=2, mlp_width=32, image_size=28, patch_size=7),
    TextConfig(width=32, layers=2, heads=4, kv_heads=2, mlp_width=32, vocab_size=64),
    image_token=IMAGE_TOKEN,
    remat="none",
)


@pytest.fixture(params=["splash", "cudnn"])
def backend(request, monkeypatch):
    """A back end made to run on a CPU: splash interpreted in small blocks, XLA in cuDNN's place."""
    make_splash, original = splash.pallas.make_splash_mha, jax.nn.dot_product_attention

    def xla_for_cudnn(queries, keys, values, *, mask, implementation, **rest):
        assert implementation == "cudnn"
        assert queries.shape[1] % 2 == keys.shape[1] % 2 == 0
        assert mask is None or mask.shape == (queries.shape[0], 1, queries.shape[1], keys.shape[1])
        return original(queries, keys, values, mask=mask, implementation="xla", **rest)

    interpreted = functools.partial(make_splash, interpret=True)
    monkeypatch.setattr(splash.pallas, "make_splash_mha", interpreted)
    monkeypatch.setattr(splash, "_BLOCK", 128)
    monkeypatch.setattr(jax.nn, "dot_product_attention", xla_for_cudnn)
    monkeypatch.setattr(internvl, "choose_backend", lambda config: config.attention)
    return request.param


def normal(seed, *shape):
    return jnp.array(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def assert_same(function, backend, *arrays):
    """Compares the output, and every array's gradient of a weighted sum of it, with xla's."""

    @functools.partial(jax.jit, static_argnums=0)
    def run(backend, *arrays):
        out, pull = jax.vjp(functools.partial(function, backend=backend), *arrays)
        return out, *pull(normal(9, *out.shape))

    names = ("output", *(f"gradient {n}" for n in range(len(arrays))))
    results = run(backend, *arrays), run("xla", *arrays)
    for name, ours, reference in zip(names, *results, strict=True):
        assert float(jnp.abs(reference).max()) > 0.1, name
        np.testing.assert_allclose(ours, reference, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("causal", "length", "span"), [(False, 17, 17), (False, 200, 300), (True, 300, 300)]
)
def test_one_sequence(backend, causal, length, span):
    arrays = normal(0, 2, length, 6, 8), normal(1, 2, span, 2, 8), normal(2, 2, span, 2, 8)
    assert_same(functools.partial(attention, causal=causal), backend, *arrays)


@pytest.mark.parametrize(("group", "length"), [(1, 9), (3, 9), (2, 121), (2, 150), (2, 200)])
def test_shared_prompt(backend, group, length):
    """Prompts of 1, all and some of 131 tokens; splash pads only the length 121 to a block."""
    mask = jnp.arange(131) < jnp.array([1, 131, 60])[:, None]

    def run(queries, prompt_keys, prompt_values, keys, values, backend):
        prompt, own = as_cached(prompt_keys, prompt_values), as_cached(keys, values)
        return shared_prompt_attention(queries, *prompt, mask, *own, backend=backend)

    prompt = normal(1, 3, 131, 2, 8), normal(2, 3, 131, 2, 8)
    own = normal(3, 3, group, length, 2, 8), normal(4, 3, group, length, 2, 8)
    assert_same(run, backend, normal(0, 3, group, length, 4, 8), *prompt, *own)


def batch(group=2, length=140, completion=5):
    """Prompts of 5 (padded left), 140 and 73 (padded right) tokens; 0, 1, 2 tiles of 4 tokens."""
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(8, 64, (3, length)), np.zeros((3, length), bool)
    tiles = rng.normal(size=(3, 2, 28, 28, 3)).astype(np.float32)
    for row, tokens in enumerate((slice(length - 5, length), slice(0, length), slice(0, 73))):
        mask[row, tokens] = True
        ids[row, tokens.start + 1 : tokens.start + 1 + 4 * row] = IMAGE_TOKEN
    return (
        tiles,
        jnp.array(ids),
        jnp.array(mask),
        jnp.array(rng.integers(8, 64, (3, group, completion))),
    )


def make_loss(config, tiles, ids, mask, completions):
    """A function of the parameters: a weighted sum of log-probabilities, and these themselves."""
    graph, _ = abstract_model(config)
    weights = normal(5, *completions.shape)

    def loss(parameters):
        model = nnx.merge(graph, parameters)
        logprobs, _ = completion_logprobs(model, model.prefill(tiles, ids, mask), completions)
        return (logprobs * weights).sum(), logprobs

    return loss


@functools.cache
def reference():
    """Noisy parameters, and xla's gradients and log-probabilities on `batch()`."""
    parameters = nnx.to_pure_dict(nnx.state(InternVL(SMALL, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(1)
    parameters = jax.tree.map(
        lambda x: x + jnp.float32(0.05 * rng.normal(size=x.shape)), parameters
    )
    return parameters, *jax.jit(jax.grad(make_loss(SMALL, *batch()), has_aux=True))(parameters)


@pytest.mark.slow
def test_model(backend):
    """Tower, prefill and extend together: log-probabilities and the gradient of every parameter."""
    parameters, expected, expected_logprobs = reference()
    loss = make_loss(dataclasses.replace(SMALL, attention=backend), *batch())
    gradients, logprobs = jax.jit(jax.grad(loss, has_aux=True))(parameters)
    np.testing.assert_allclose(logprobs, expected_logprobs, atol=1e-5)
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(expected), strict=True
    ):
        scale = max(1.0, float(jnp.abs(theirs).max()))
        np.testing.assert_allclose(
            ours / scale, theirs / scale, atol=1e-5, err_msg=jax.tree_util.keystr(path)
        )
        assert float(jnp.abs(theirs).max()) > 0


TOWER_1025 = dataclasses.replace(
    SMALL, vision=dataclasses.replace(SMALL.vision, image_size=224), dtype="bfloat16"
)


def lowered(config, platform):
    """StableHLO of the gradient: a tile of 1,025 tokens, a prompt of 1,024, completions of 256."""
    tiles, ids = jnp.zeros((1, 1, 224, 224, 3), jnp.uint8), jnp.zeros((1, 1024), jnp.int32)
    loss = make_loss(config, tiles, ids, ids == 0, jnp.zeros((1, 2, 256), jnp.int32))
    _, parameters = abstract_model(config)
    traced = jax.jit(jax.grad(loss, has_aux=True)).trace(parameters)
    return traced.lower(lowering_platforms=(platform,)).as_text()


CUDNN = {
    "__cudnn$fmhaSoftmax": 2,  # tower and prompt
    "__cudnn$fmhaSoftmaxBackward": 2,
    "__cudnn$fmhaScaleBiasSoftmax": 1,  # completions
    "__cudnn$fmhaScaleBiasSoftmaxBackward": 1,
}


@pytest.mark.parametrize(
    ("choice", "platform", "remat", "kernels"),
    [
        ("xla", "tpu", "none", {}),
        # Forward, dq and dkv of tower, prompt and completions; "full" repeats the forward ones.
        ("splash", "tpu", "none", {"tpu_custom_call": 9}),
        ("splash", "tpu", "dots", {"tpu_custom_call": 9}),
        ("splash", "tpu", "full", {"tpu_custom_call": 12}),
        ("cudnn", "cuda", "none", CUDNN),
    ],
)
def test_programs_for_accelerators_hold_no_scores(choice, platform, remat, kernels, monkeypatch):
    """Lowers for TPU and GPU on this machine and looks for kernels and for arrays of scores."""
    monkeypatch.setattr(module, "target_platform", lambda: {"cuda": "gpu"}.get(platform, platform))
    monkeypatch.setattr(
        "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000
    )
    text = lowered(dataclasses.replace(TOWER_1025, attention=choice, remat=remat), platform)
    assert collections.Counter(re.findall(r"@(tpu_custom_call|__cudnn[\w$]*)\(", text)) == kernels
    shapes = re.findall(r"tensor<((?:\d+x)+)b?f(?:16|32)>", text)
    largest = max(np.prod([int(n) for n in shape.split("x") if n]) for shape in set(shapes))
    scores = min(2 * 1025**2, 4 * 1024**2, 2 * 4 * 255 * 1279)  # of tower, prompt, completions
    assert (largest < scores) == (choice != "xla"), largest


def test_choice_follows_the_platform(monkeypatch):
    model = dataclasses.replace(PRESETS["internvl3_2b"], dtype="bfloat16", attention="auto")
    assert choose_backend(model) == "xla"
    for platform, backend in (("tpu", "splash"), ("gpu", "cudnn")):
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        assert choose_backend(model) == backend
        assert choose_backend(dataclasses.replace(model, attention="xla")) == "xla"
        with jax.set_mesh(jax.make_mesh((1,), ("fsdp",))):  # of a CPU
            assert choose_backend(model) == "xla"
    float32 = dataclasses.replace(model, dtype="float32")
    assert choose_backend(float32) == "xla"  # cuDNN doesn't take float32


@pytest.mark.parametrize(
    ("platform", "change", "words"),
    [
        ("cpu", dict(attention="splash"), ["splash runs on a TPU", "this is a CPU", "auto or xla"]),
        ("tpu", dict(attention="cudnn"), ["cudnn runs on a GPU", "this is a TPU"]),
        ("gpu", dict(attention="cudnn"), ["cudnn takes bfloat16", "float32"]),
        (
            "gpu",
            dict(attention="cudnn", dtype="bfloat16", heads=8),
            ["multiple of 8", "vision tower's have 4"],
        ),
        (
            "gpu",
            dict(attention="cudnn", dtype="bfloat16", head_width=256),
            ["up to 128", "language model's have 256"],
        ),
        ("cpu", dict(attention="flash"), ["no 'flash'", "auto, xla, cudnn, splash"]),
    ],
)
def test_impossible_choices_are_named(platform, change, words, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    vision = dataclasses.replace(SMALL.vision, heads=change.pop("heads", 2))
    text = dataclasses.replace(SMALL.text, head_width=change.pop("head_width", 8))
    config = dataclasses.replace(SMALL, vision=vision, text=text, **change)
    model = nnx.eval_shape(lambda: InternVL(config, rngs=nnx.Rngs(0)))
    with pytest.raises(UserError) as error:
        nnx.eval_shape(lambda model: model(jnp.zeros((1, 4), jnp.int32)), model)
    assert str(error.value).startswith("config.model.attention: ")
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.slow
def test_splash_on_a_mesh():
    """Mesh axes that divide rows, heads, kv heads or nothing; and more devices than kv heads."""
    script = """
        import functools
        import jax
        jax.config.update("jax_num_cpu_devices", 8)
        import jax.numpy as jnp
        import numpy as np
        from aesthetic_jax.models import splash
        from aesthetic_jax.models.attention import as_cached, shared_prompt_attention

        make_splash = splash.pallas.make_splash_mha
        splash.pallas.make_splash_mha = functools.partial(make_splash, interpret=True)
        rng = np.random.default_rng(0)
        shapes = (4, 2, 5, 6, 8), (4, 9, 2, 8), (4, 9, 2, 8), (4, 2, 5, 2, 8), (4, 2, 5, 2, 8)
        arrays = [jnp.array(rng.normal(size=shape), jnp.float32) for shape in shapes]
        mask = jnp.arange(9) < jnp.array([1, 9, 4, 7])[:, None]

        def differentiated(backend):
            def run(*arrays):
                prompt, own = as_cached(*arrays[1:3]), as_cached(*arrays[3:])
                return shared_prompt_attention(arrays[0], *prompt, mask, *own, backend=backend)

            out, pull = jax.vjp(run, *arrays)
            return out, *pull(jnp.sin(out))

        expected = differentiated("xla")
        for sizes in ((2, 2, 2), (1, 1, 6), (1, 1, 4), (8, 1, 1)):
            names, auto = ("data", "fsdp", "tensor"), (jax.sharding.AxisType.Auto,) * 3
            devices = jax.devices()[: np.prod(sizes)]
            with jax.set_mesh(jax.make_mesh(sizes, names, auto, devices=devices)):
                program = jax.jit(functools.partial(differentiated, "splash"))
                for ours, theirs in zip(program(), expected, strict=True):
                    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
