"""InternVL3 as an image screener in JAX: chain-of-thought SFT, then HCM-GRPO."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aesthetic_jax.checkpoints.huggingface import load_pretrained, save_pretrained

__all__ = ["load_pretrained", "save_pretrained"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Imported late: commands check their flags before they import JAX.
    from aesthetic_jax.checkpoints import huggingface

    return getattr(huggingface, name)
