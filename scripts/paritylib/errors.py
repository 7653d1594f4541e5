"""Known errors that parity.py can plant in our side, to show that the table detects them.

Each error temporarily replaces functions of the package, which has no switches for them.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import optax
from PIL import Image

from aesthetic_jax.checkpoints import huggingface
from aesthetic_jax.data import prompts
from aesthetic_jax.errors import UserError
from aesthetic_jax.models import internvl, language, logprobs, vision
from aesthetic_jax.rl import advantages, losses
from aesthetic_jax.training import grpo, sft

Patch = tuple[Any, str, Any]  # an object, its attribute, the replacement


class PlantedError(NamedTuple):
    """One error.

    Attributes:
        what: the error in words.
        section: the section that must detect it.
        quantity: a regular expression for the rows that must detect it.
        patches: makes the replacements.
    """

    what: str
    section: str
    quantity: str
    patches: Callable[[], list[Patch]]


# --- The model ---


def _shuffle_order() -> list[Patch]:
    right = vision.pixel_shuffle

    def version_1(x, factor):
        side = x.shape[1] // factor
        y = right(x, factor)
        return y.reshape(-1, side, side, y.shape[-1]).swapaxes(1, 2).reshape(y.shape)

    return [(internvl, "pixel_shuffle", version_1)]


def _class_token_kept() -> list[Patch]:
    right = vision.scan_layers

    def shifted(*arguments, **settings):
        # Rows are tokens, tile by tile. The tower drops each tile's first row, now another's patch.
        rows, y = right(*arguments, **settings)
        return jnp.roll(rows, 1, axis=0), y

    return [(vision, "scan_layers", shifted)]


def _missing_bias() -> list[Patch]:
    right = huggingface.load_parameters

    def without_biases(*arguments):
        parameters = right(*arguments)
        for name in ("query", "key", "value"):
            module = parameters["language"]["layers"][name]
            module["bias"] = jnp.zeros_like(module["bias"])
        return parameters

    return [(huggingface, "load_parameters", without_biases)]


def _tanh_gelu() -> list[Patch]:
    right = jax.nn.gelu
    return [(jax.nn, "gelu", lambda x, approximate: right(x, approximate=True))]


def _rope_interleaved() -> list[Patch]:
    def interleaved(x, table):
        even, odd = x[..., ::2], x[..., 1::2]
        turned = [even * table.cos - odd * table.sin, odd * table.cos + even * table.sin]
        return jnp.stack(turned, axis=-1).reshape(x.shape)

    return [(language, "apply_rope", interleaved)]


def _norm_epsilon() -> list[Patch]:
    right = language.RMSNorm
    return [(language, "RMSNorm", lambda width, _, **rest: right(width, 1e-5, **rest))]


def _padding_seen() -> list[Patch]:
    def unsorted(mask):
        return jnp.broadcast_to(jnp.arange(mask.shape[1]), mask.shape)

    return [(internvl, "_tokens_first", unsorted)]


def _group_sees_itself() -> list[Patch]:
    right = internvl.shared_prompt_attention

    def uncausal(queries, keys, values, prompt_mask, own_keys, own_values, _, **rest):
        # As in decoding where the cache is full: all keys count as earlier tokens.
        filled = jnp.int32(own_keys.shape[-1])
        return right(queries, keys, values, prompt_mask, own_keys, own_values, filled, **rest)

    return [(internvl, "shared_prompt_attention", uncausal)]


def _prompt_positions() -> list[Patch]:
    right = internvl.InternVL.extend

    def one_token_short(self, prompt, *rest):
        # Counts one prompt token too few, so that completions begin at the last one's position.
        first = jnp.argmax(prompt.mask, axis=1)
        mask = prompt.mask & (jnp.arange(prompt.mask.shape[1]) != first[:, None])
        return right(self, prompt._replace(mask=mask), *rest)

    return [(internvl.InternVL, "extend", one_token_short)]


def _temperature_ignored() -> list[Patch]:
    right = logprobs.token_logprobs

    def at_temperature_1(model, hidden, targets, temperature=1.0):
        return right(model, hidden, targets)

    return [(logprobs, "token_logprobs", at_temperature_1)]


def _features_detached() -> list[Patch]:
    right = internvl._insert_image_features

    def detached(x, is_image, features):
        return right(x, is_image, jax.lax.stop_gradient(features))

    return [(internvl, "_insert_image_features", detached)]


# --- Preprocessing, prompts and files ---


def _bilinear_resize() -> list[Patch]:
    right = Image.Image.resize

    def bilinear(self, size, *_):
        return right(self, size, Image.Resampling.BILINEAR)

    return [(Image.Image, "resize", bilinear)]


def _none_system_prompt() -> list[Patch]:
    return [(prompts, "INTERNVL_SYSTEM_PROMPT", "None")]


def _export_rounded() -> list[Patch]:
    right = huggingface.save_parameters

    def rounded(parameters, *rest):
        right(jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), parameters), *rest)

    return [(huggingface, "save_parameters", rounded)]


# --- Advantages and losses ---


def _ddof0() -> list[Patch]:
    def population(rewards, scale_rewards="group", epsilon=1e-4):
        centred = rewards - rewards.mean(axis=1, keepdims=True)
        if scale_rewards != "group":
            return centred
        return centred / (rewards.std(axis=1, keepdims=True) + epsilon)

    return [(advantages, "group_advantages", population)]


def _advantage_epsilon() -> list[Patch]:
    small = functools.partial(advantages.group_advantages, epsilon=1e-6)
    return [(advantages, "group_advantages", small)]


def _policy_loss(change: Callable[[dict], dict]) -> list[Patch]:
    """`policy_loss` with other settings."""
    right = losses.policy_loss

    def changed(*arguments, **settings):
        return right(*arguments, **change(settings))

    return [(losses, "policy_loss", changed), (grpo, "policy_loss", changed)]


def _no_bias_correction(settings: dict) -> dict:
    return settings | {"use_bias_correction_kl": False}


def _no_upper_epsilon(settings: dict) -> dict:
    return settings | {"epsilon_high": None}


def _grpo_for_dapo(settings: dict) -> dict:
    return settings | ({"loss_type": "grpo"} if settings["loss_type"] == "dapo" else {})


def _last_token_left_out() -> list[Patch]:
    right = losses.sft_loss

    def changed(logprobs, mask, num_items=None):
        next_mask = jnp.concatenate([mask[..., 1:], jnp.zeros_like(mask[..., :1])], axis=-1)
        short = mask & next_mask
        share = short.sum() / mask.sum()
        return right(logprobs, short, None if num_items is None else num_items * share)

    return [(sft, "sft_loss", changed)]


def _microbatch_mean() -> list[Patch]:
    right = losses.sft_loss
    return [(sft, "sft_loss", lambda logprobs, mask, _: right(logprobs, mask))]


def _ratio_always_1() -> list[Patch]:
    right = losses.policy_loss

    def on_policy(logprobs, _, *others, **rest):
        return right(logprobs, None, *others, **rest)

    return [(grpo, "policy_loss", on_policy)]


# --- The optimiser ---


def _adamw(**changed) -> list[Patch]:
    right = optax.adamw
    return [(optax, "adamw", lambda rate, **settings: right(rate, **settings | changed))]


def _no_clipping() -> list[Patch]:
    return [(optax, "clip_by_global_norm", lambda _: optax.identity())]


PLANTED = {
    "shuffle_order": PlantedError(
        "pixel shuffle of ps_version v1", "forward", "projector output", _shuffle_order
    ),
    "class_token_kept": PlantedError(
        "features shifted by one: class token kept, last patch dropped",
        "forward",
        "vision features",
        _class_token_kept,
    ),
    "tanh_gelu": PlantedError(
        "GELU by its tanh approximation", "forward", "vision features", _tanh_gelu
    ),
    "missing_bias": PlantedError(
        "q, k, v biases of the language model dropped", "forward", "logits", _missing_bias
    ),
    "rope_interleaved": PlantedError(
        "rotary pairs of neighbours, not of halves", "forward", "logits", _rope_interleaved
    ),
    "norm_epsilon": PlantedError(
        "RMS norms with 1e-5 in place of 1e-6", "forward", "logits", _norm_epsilon
    ),
    "padding_seen": PlantedError("left padding not masked", "forward", "logits", _padding_seen),
    "group_sees_itself": PlantedError(
        "completions see their own future", "logprobs", "log-probability", _group_sees_itself
    ),
    "prompt_positions": PlantedError(
        "the cache forgets a prompt's first token", "greedy", "greedy", _prompt_positions
    ),
    "temperature_ignored": PlantedError(
        "log-probabilities at temperature 1", "logprobs", "log-probability", _temperature_ignored
    ),
    "bilinear_resize": PlantedError(
        "images resized bilinearly", "images", "image tiles", _bilinear_resize
    ),
    "none_system_prompt": PlantedError(
        "the system prompt is the word None", "prompts", "original", _none_system_prompt
    ),
    "ddof0": PlantedError(
        "population standard deviation", "advantages", "scale_rewards=group", _ddof0
    ),
    "advantage_epsilon": PlantedError(
        "advantages with epsilon 1e-6 in place of 1e-4",
        "advantages",
        "scale_rewards=group",
        _advantage_epsilon,
    ),
    "kl_without_bias_correction": PlantedError(
        "KL not weighted with the ratio",
        "losses",
        "KL with bias correction",
        lambda: _policy_loss(_no_bias_correction),
    ),
    "clip_epsilon": PlantedError(
        "upper clip range ignored",
        "losses",
        "epsilon_high",
        lambda: _policy_loss(_no_upper_epsilon),
    ),
    "token_mean": PlantedError(
        "dapo reduced per completion",
        "losses",
        "policy_loss dapo",
        lambda: _policy_loss(_grpo_for_dapo),
    ),
    "final_newline": PlantedError(
        "SFT leaves a completion's last token out",
        "sft",
        "SFT loss: supervised tokens",
        _last_token_left_out,
    ),
    "features_detached": PlantedError(
        "no gradient into vision tower and projector",
        "grpo",
        "gradient of every parameter",
        _features_detached,
    ),
    "microbatch_mean": PlantedError(
        "SFT loss averaged over microbatches, not tokens",
        "sft_run",
        "SFT.*losses",
        _microbatch_mean,
    ),
    "ratio_always_1": PlantedError(
        "a rollout's second update taken as on policy",
        "grpo_run",
        "GRPO.*losses",
        _ratio_always_1,
    ),
    "gradient_clipping": PlantedError(
        "gradients not clipped", "sft_run", "SFT.*final weights", _no_clipping
    ),
    "adam_epsilon": PlantedError(
        "Adam's epsilon 1e-6 in place of 1e-8",
        "sft_run",
        "SFT.*final weights",
        lambda: _adamw(eps=1e-6),
    ),
    "decayed_norms": PlantedError(
        "weight decay on norms and biases",
        "sft_run",
        "SFT.*final weights",
        lambda: _adamw(mask=None),
    ),
    "export_rounded": PlantedError(
        "export rounded to bfloat16", "export", "export.*logits", _export_rounded
    ),
}


def find(name: str) -> PlantedError:
    """The error of a name.

    Raises:
        UserError: there is none.
    """
    if name not in PLANTED:
        raise UserError(f"--inject: no error '{name}'; --inject=list prints them")
    return PLANTED[name]


@contextlib.contextmanager
def planted(name: str | None) -> Iterator[None]:
    """Plants an error in our side; None: no error."""
    with contextlib.ExitStack() as stack:
        for target, attribute, replacement in PLANTED[name].patches() if name else ():
            stack.enter_context(mock.patch.object(target, attribute, replacement))
        yield
