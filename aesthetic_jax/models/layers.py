"""Layers shared by vision tower, projector and language model: linear, norms, scan over layers.

Every parameter carries `logical_axes`, one name per axis, which the sharding rules map to mesh
axes. `stack` prepends axes for `scan_layers`: a stacked layer holds the parameters of all layers,
and the scan slices them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from aesthetic_jax.models.sharding import all_gather_parameter
from aesthetic_jax.models.splash import ATTENTION_OUTPUT

_REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        # Attention's output costs as much to recompute as a matrix product.
        jax.checkpoint_policies.save_only_these_names(ATTENTION_OUTPUT),
    ),
}


def _all_but_gathered(primitive: Any, *_, **__) -> bool:
    """Rematerialisation policy: saves everything except results of `all_gather_parameter`.

    The all-gathered parameters of all layers at once would fill a device.
    """
    return primitive.name not in ("sharding_constraint", "convert_element_type", "custom_vjp_call")


class Lora(NamedTuple):
    """Rank and numerator of a low-rank update, which is scaled by alpha / rank."""

    rank: int
    alpha: float


def parameter(
    rngs: nnx.Rngs,
    init: Callable,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    stack: tuple[int, ...],
) -> nnx.Param:
    """A float32 parameter of shape [*stack, *shape]; each axis of `stack` is named "layers"."""
    return nnx.Param(
        init(rngs.params(), (*stack, *shape), jnp.float32),
        logical_axes=("layers",) * len(stack) + axes,
    )


class Linear(nnx.Module):
    """y = x W + b, plus (x A B) alpha / rank with LoRA; computed in x's dtype."""

    def __init__(
        self,
        width_in: int,
        width_out: int,
        axes: tuple[str, str],
        *,
        bias: bool = False,
        stack: tuple[int, ...] = (),
        gain: float = 1.0,
        lora: Lora | None = None,
        rngs: nnx.Rngs,
    ):
        normal, zeros = nnx.initializers.normal, nnx.initializers.zeros
        axis_in, axis_out = axes
        kernel_init = normal(gain * width_in**-0.5)
        self.kernel = parameter(rngs, kernel_init, (width_in, width_out), axes, stack)
        if bias:
            self.bias = parameter(rngs, zeros, (width_out,), (axis_out,), stack)
        if lora:
            lora_init = normal(width_in**-0.5)
            shape_a, shape_b = (width_in, lora.rank), (lora.rank, width_out)
            self.lora_a = parameter(rngs, lora_init, shape_a, (axis_in, "lora"), stack)
            self.lora_b = parameter(rngs, zeros, shape_b, ("lora", axis_out), stack)
        self.use_bias = bias
        self.kernel_transposed = False
        self.lora_scale = lora.alpha / lora.rank if lora else 0.0

    def __call__(self, x: Float[Array, "rows In"]) -> Float[Array, "rows Out"]:
        """Applies the layer to rows.

        x has two axes so that the kernel's gradient is one matrix product: with more, XLA's CPU
        code transposes x first.
        """
        if self.kernel_transposed:
            # Without the barrier the compiler would undo the transpose.
            y = jax.lax.optimization_barrier(all_gather_parameter(self.kernel, x.dtype) @ x.T).T
        else:
            y = x @ all_gather_parameter(self.kernel, x.dtype)
        if self.lora_scale:
            lora_a = all_gather_parameter(self.lora_a, x.dtype)
            y += (x @ lora_a) @ all_gather_parameter(self.lora_b, x.dtype) * self.lora_scale
        return y + self.bias.astype(x.dtype) if self.use_bias else y

    def transpose_kernel(self) -> None:
        """Stores the kernel as [Out, In].

        As the left operand of a product with few rows, XLA's CPU code then reads it without a copy.
        """
        # In a slice of a stack the metadata still begins with the layers' axis.
        axis_in, axis_out = self.kernel.get_metadata()["logical_axes"][-2:]
        self.kernel = nnx.Param(self.kernel[...].T, logical_axes=(axis_out, axis_in))
        self.kernel_transposed = True


class LayerNorm(nnx.Module):
    """Layer norm in float32 over the last axis; equals torch.nn.LayerNorm."""

    def __init__(self, width: int, epsilon: float, *, stack: tuple[int, ...] = (), rngs: nnx.Rngs):
        self.scale = parameter(rngs, nnx.initializers.ones, (width,), ("norm",), stack)
        self.bias = parameter(rngs, nnx.initializers.zeros, (width,), ("norm",), stack)
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Normalises and rescales; the result has x's dtype."""
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y *= jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        return (y * self.scale + self.bias).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square norm in float32, scaled after the cast back; equals Qwen2RMSNorm."""

    def __init__(self, width: int, epsilon: float, *, stack: tuple[int, ...] = (), rngs: nnx.Rngs):
        self.scale = parameter(rngs, nnx.initializers.ones, (width,), ("norm",), stack)
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Normalises and rescales; the result has x's dtype."""
        y = x.astype(jnp.float32)
        y *= jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        return y.astype(x.dtype) * self.scale.astype(x.dtype)


def scan_layers(
    layers: nnx.Module, step: Callable, carry: Any, xs: Any = None, remat: str = "none"
) -> tuple[Any, Any]:
    """Runs `carry, y = step(layer, carry, x)` over a stack of layers.

    Args:
        layers: a module whose parameters have a leading axis L.
        step: called with one layer's module, the carry, and one slice of xs.
        carry: passed from layer to layer.
        xs: a pytree with a leading axis L; None: step gets x = None.
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
