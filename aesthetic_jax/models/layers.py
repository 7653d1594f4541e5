"""The layers that vision tower, projector and language model share.

Every parameter carries `logical_axes`, one name an axis, from which the sharding rules follow. `stack` prepends axes that
`scan_layers` runs over: a stacked layer holds the parameters of all layers, and the scan sees one slice at a time.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from aesthetic_jax.models.sharding import gathered
from aesthetic_jax.models.splash import SAVED

_REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(SAVED),  # a kernel's result costs as much to compute again
    ),
}


def _all_but_gathered(primitive: Any, *_, **__) -> bool:
    """Saves everything but what `sharding.gathered` makes: gathered parameters of all layers at once would fill a device."""
    return primitive.name not in ("sharding_constraint", "convert_element_type", "custom_vjp_call")


def parameter(
    rngs: nnx.Rngs, init: Callable, shape: tuple[int, ...], axes: tuple[str, ...], stack: tuple[int, ...]
) -> nnx.Param:
    """A float32 parameter of shape [*stack, *shape] whose logical axes are ("layers" for each of stack, *axes)."""
    return nnx.Param(init(rngs.params(), (*stack, *shape), jnp.float32), logical_axes=("layers",) * len(stack) + axes)


class Linear(nnx.Module):
    """y = x W + b, plus (x A B) alpha / rank where a LoRA rank is given; computed in x's dtype."""

    def __init__(
        self,
        width_in: int,
        width_out: int,
        axes: tuple[str, str],
        *,
        bias: bool = False,
        stack: tuple[int, ...] = (),
        gain: float = 1.0,
        lora_rank: int = 0,
        lora_alpha: float = 0.0,
        rngs: nnx.Rngs,
    ):
        normal = nnx.initializers.normal
        self.kernel = parameter(rngs, normal(gain * width_in**-0.5), (width_in, width_out), axes, stack)
        if bias:
            self.bias = parameter(rngs, nnx.initializers.zeros, (width_out,), axes[1:], stack)
        if lora_rank:
            self.lora_a = parameter(rngs, normal(width_in**-0.5), (width_in, lora_rank), (axes[0], "lora"), stack)
            self.lora_b = parameter(rngs, nnx.initializers.zeros, (lora_rank, width_out), ("lora", axes[1]), stack)
        self.use_bias = bias
        self.output_first = False
        self.lora_scale = lora_alpha / lora_rank if lora_rank else 0.0

    def __call__(self, x: Float[Array, "rows In"]) -> Float[Array, "rows Out"]:
        """Applies the layer to rows. The kernel's gradient is then one product; with more axes XLA's CPU code turns x first."""
        if self.output_first:
            # The barrier keeps the compiler from turning the product round again.
            y = jax.lax.optimization_barrier(gathered(self.kernel, x.dtype) @ x.T).T
        else:
            y = x @ gathered(self.kernel, x.dtype)
        if self.lora_scale:
            y += (x @ gathered(self.lora_a, x.dtype)) @ gathered(self.lora_b, x.dtype) * self.lora_scale
        return y + self.bias.astype(x.dtype) if self.use_bias else y

    def put_output_first(self) -> None:
        """Keeps the kernel as [Out, In]: as the left operand XLA's CPU product reads it as it lies, where x is a few rows."""
        # In a stack's slice the names still begin with the layers' axis.
        width_in, width_out = self.kernel.get_metadata()["logical_axes"][-2:]
        self.kernel = nnx.Param(self.kernel[...].T, logical_axes=(width_out, width_in))
        self.output_first = True


class LayerNorm(nnx.Module):
    """Layer norm in float32 over the last axis; torch.nn.LayerNorm's equal."""

    def __init__(self, width: int, epsilon: float, *, stack: tuple[int, ...] = (), rngs: nnx.Rngs):
        self.scale = parameter(rngs, nnx.initializers.ones, (width,), ("norm",), stack)
        self.bias = parameter(rngs, nnx.initializers.zeros, (width,), ("norm",), stack)
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalises and rescales; the result has x's dtype."""
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y *= jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        return (y * self.scale + self.bias).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square norm in float32, scaled after the cast back: Qwen2RMSNorm's equal."""

    def __init__(self, width: int, epsilon: float, *, stack: tuple[int, ...] = (), rngs: nnx.Rngs):
        self.scale = parameter(rngs, nnx.initializers.ones, (width,), ("norm",), stack)
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalises and rescales; the result has x's dtype."""
        y = x.astype(jnp.float32)
        y *= jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        return y.astype(x.dtype) * self.scale.astype(x.dtype)


def scan_layers(layers: nnx.Module, step: Callable, carry: Any, xs: Any = None, remat: str = "none") -> tuple:
    """Runs `carry, y = step(layer, carry, x)` over a stack of layers.

    Args:
        layers: a module whose parameters have a leading axis L.
        step: called with the module of one layer.
        carry: the value handed from layer to layer.
        xs: a pytree with a leading axis L, sliced alongside; None for none.
        remat: "none", "dots" or "full"; see InternVLConfig.

    Returns:
        The last carry and the stacked y.
    """
    graph, parameters = nnx.split(layers)

    def body(carry, slices):
        layer_parameters, x = slices
        return step(nnx.merge(graph, layer_parameters), carry, x)

    if remat != "none":
        body = jax.checkpoint(body, policy=_REMAT_POLICIES[remat], prevent_cse=False)
    elif jax.sharding.get_abstract_mesh().size > 1:
        body = jax.checkpoint(body, policy=_all_but_gathered, prevent_cse=False)
    return jax.lax.scan(body, carry, (parameters, xs))
