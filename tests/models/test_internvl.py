"""`prefill` and `extend` against the plain forward pass, and properties of the model's parts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aesthetic_jax.models.config import PRESETS, InternVLConfig, TextConfig, VisionConfig
from aesthetic_jax.models.internvl import InternVL, abstract_model, normalize
from aesthetic_jax.models.logprobs import completion_logprobs, completion_mask, token_logprobs
from aesthetic_jax.models.vision import pixel_shuffle

IMAGE_TOKEN = 7
SMALL = InternVLConfig(
    VisionConfig(width=32, layers=2, heads=4, mlp_width=48, image_size=28, patch_size=7),
    TextConfig(width=32, layers=3, heads=4, kv_heads=2, mlp_width=48, vocab_size=64),
    image_token=IMAGE_TOKEN,
    remat="full",
)
LARGE_TOWER = dataclasses.replace(
    SMALL,
    vision=dataclasses.replace(SMALL.vision, norm="rms_norm", qkv_bias=False, qk_norm=True),
    lora_rank=4,
)


@functools.cache
def make_model(config=SMALL):
    graph, parameters = nnx.split(InternVL(config, rngs=nnx.Rngs(0)))
    keys = iter(jax.random.split(jax.random.key(1), 200))
    noisy = jax.tree.map(
        lambda x: x + 0.05 * jax.random.normal(next(keys), x.shape), nnx.to_pure_dict(parameters)
    )
    return graph, noisy


def make_batch(prompts=3, group=4, length=9, completion=5, left=False, seed=0):
    """Ragged prompts with 0, 2 and 1 tiles (4 tokens each)."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((prompts, length + 4), int)
    mask = np.zeros(ids.shape, bool)
    tiles = np.zeros((prompts, 2, 28, 28, 3), np.float32)
    for row in range(prompts):
        count = (0, 2, 1)[row % 3]
        size = 3 + row + 4 * count
        tokens = rng.integers(8, 64, size)
        tokens[1 : 1 + 4 * count] = IMAGE_TOKEN
        span = slice(ids.shape[1] - size, None) if left else slice(0, size)
        ids[row, span], mask[row, span] = tokens, True
        tiles[row, :count] = rng.normal(size=(count, 28, 28, 3))
    completions = rng.integers(8, 64, (prompts, group, completion))
    return jnp.array(tiles), jnp.array(ids), jnp.array(mask), jnp.array(completions)


def shared_logprobs(graph, parameters, tiles, ids, mask, completions):
    model = nnx.merge(graph, parameters)
    return completion_logprobs(
        model, model.prefill(tiles, ids, mask), completions, temperature=0.9
    )[0]


def repeated_logprobs(graph, parameters, tiles, ids, mask, completions):
    """Each completion after its own copy of the prompt, through the plain forward pass."""
    model = nnx.merge(graph, parameters)
    group, length = completions.shape[1:]
    rows = []
    for row in range(ids.shape[0]):
        count = (0, 2, 1)[row % 3]
        valid = ids[row][np.flatnonzero(np.asarray(mask)[row])]
        sequence = jnp.concatenate([jnp.tile(valid, (group, 1)), completions[row]], axis=1)
        logits = model(sequence, jnp.tile(tiles[row, :count], (group, 1, 1, 1))) / 0.9
        logprobs = jax.nn.log_softmax(logits[:, -length - 1 : -1])
        rows.append(jnp.take_along_axis(logprobs, completions[row][..., None], axis=-1)[..., 0])
    return jnp.stack(rows)


@functools.cache
def gradients_and_logprobs(function, config, left):
    """Gradients of a weighted sum of log-probabilities, and the log-probabilities themselves."""
    graph, parameters = make_model(config)
    batch = make_batch(left=left)
    weights = jax.random.normal(jax.random.key(2), batch[3].shape)

    def loss(parameters):
        logprobs = function(graph, parameters, *batch)
        return (logprobs * weights).sum(), logprobs

    return jax.jit(jax.grad(loss, has_aux=True))(parameters)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("config", [SMALL, pytest.param(LARGE_TOWER, marks=pytest.mark.slow)])
def test_extend_on_a_shared_prompt_equals_the_repeated_prompt(config, left):
    gradients, logprobs = gradients_and_logprobs(shared_logprobs, config, left)
    # Without padding the repeated prompts don't depend on the side it was on.
    expected, expected_logprobs = gradients_and_logprobs(repeated_logprobs, config, False)
    np.testing.assert_allclose(logprobs, expected_logprobs, atol=1e-5)
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(expected), strict=True
    ):
        scale = max(1.0, float(jnp.abs(theirs).max()))
        np.testing.assert_allclose(
            ours / scale, theirs / scale, atol=1e-5, err_msg=jax.tree_util.keystr(path)
        )
    assert all(float(jnp.abs(x).max()) > 0 for x in jax.tree.leaves(gradients))


@pytest.mark.parametrize("left", [False, True])
def test_decoding_token_by_token_equals_all_at_once(left):
    graph, parameters = make_model()
    tiles, ids, mask, completions = make_batch(left=left)
    model = nnx.merge(graph, parameters)
    prompt = model.prefill(tiles, ids, mask)
    at_once, none = model.extend(prompt, completions)
    assert none is None
    suffix = model.init_suffix(3, 4, 8)
    step = nnx.jit(lambda model, prompt, token, suffix: model.extend(prompt, token, suffix))
    for t in range(completions.shape[2]):
        hidden, suffix = step(model, prompt, completions[..., t : t + 1], suffix)
        np.testing.assert_allclose(hidden[..., 0, :], at_once[..., t, :], atol=2e-5)
    assert int(suffix.filled) == completions.shape[2]


def test_images_may_be_given_as_bytes_or_features():
    graph, parameters = make_model()
    model = nnx.merge(graph, parameters)
    tiles, ids, mask, _ = make_batch()
    pixels = jax.random.randint(jax.random.key(0), tiles.shape, 0, 256).astype(jnp.uint8)
    features = model.vision_features(normalize(pixels))
    from_pixels = model.prefill(pixels, ids, mask).last_hidden
    from_features = model.prefill(None, ids, mask, features).last_hidden
    np.testing.assert_allclose(from_pixels, from_features, atol=1e-6)
    assert not np.allclose(from_pixels[1], model.prefill(None, ids, mask).last_hidden[1], atol=1e-3)


def test_padding_does_not_change_logits():
    graph, parameters = make_model()
    model = nnx.merge(graph, parameters)
    ids = jnp.array([[9, 10, 11, 12]])
    plain = model(ids)
    for pad, at in (((2, 0), slice(2, 6)), ((0, 2), slice(0, 4))):
        padded = jnp.pad(ids, ((0, 0), pad))
        mask = jnp.pad(jnp.ones_like(ids), ((0, 0), pad))
        np.testing.assert_allclose(model(padded, None, mask)[:, at], plain, atol=1e-5)


def test_pixel_shuffle_order():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    expected = [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]
    np.testing.assert_array_equal(pixel_shuffle(x, 2), expected)


@pytest.mark.parametrize(("bound", "value"), [("_CHUNK_TOKENS", 12), ("_CHUNK_LOGITS", 12 * 64)])
def test_chunked_logprobs_equal_the_dense_ones(monkeypatch, bound, value):
    """In chunks of two positions, with a shorter last one."""
    graph, parameters = make_model()
    model = nnx.merge(graph, parameters)
    hidden = jax.random.normal(jax.random.key(0), (2, 3, 7, 32))
    targets = jax.random.randint(jax.random.key(1), (2, 3, 7), 0, 64)
    dense = jax.nn.log_softmax(model.logits(hidden) / 0.7)
    monkeypatch.setattr(f"aesthetic_jax.models.logprobs.{bound}", value)
    program = jax.make_jaxpr(lambda hidden: token_logprobs(model, hidden, targets, 0.7))(hidden)
    assert "f32[12,64]" in str(program)
    assert "f32[42,64]" not in str(program)
    logprobs, entropy = token_logprobs(model, hidden, targets, 0.7)
    np.testing.assert_allclose(
        logprobs, jnp.take_along_axis(dense, targets[..., None], -1)[..., 0], atol=1e-5
    )
    np.testing.assert_allclose(entropy, -(jnp.exp(dense) * dense).sum(-1), atol=1e-5)


def test_completion_mask_ends_with_the_first_end_token():
    ids = jnp.array([[[5, 2, 5, 2], [5, 5, 5, 5], [2, 2, 2, 2]]])
    np.testing.assert_array_equal(
        completion_mask(ids, 2)[0], [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    )


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        ("internvl3_1b", 938_193_024),
        ("internvl3_2b", 2_088_957_440),
        ("internvl3_8b", 7_944_373_760),
    ],
)
def test_presets_have_the_published_number_of_parameters(preset, count):
    _, parameters = abstract_model(PRESETS[preset])
    assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(parameters)) == count


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_abstract_model_matches_the_model(lora_rank):
    config = dataclasses.replace(SMALL, lora_rank=lora_rank)
    graph, state = nnx.split(InternVL(config, rngs=nnx.Rngs(0)))
    parameters = nnx.to_pure_dict(state)
    abstract_graph, abstract = abstract_model(config)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract) == jax.tree.map(
        lambda x: (x.shape, x.dtype), parameters
    )
    assert all(x.sharding is None for x in jax.tree.leaves(abstract))
    ids = jnp.array([[9, 10, 11]])
    expected = nnx.merge(graph, parameters)(ids)
    np.testing.assert_array_equal(nnx.merge(abstract_graph, parameters)(ids), expected)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_axis_of_every_parameter_is_named(preset):
    model = nnx.eval_shape(lambda: InternVL(PRESETS[preset], rngs=nnx.Rngs(0)))
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        assert len(variable.get_metadata()["logical_axes"]) == len(variable.shape), path
