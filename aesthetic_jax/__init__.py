"""InternVL3 as an image screener in JAX: chain-of-thought SFT, then HCM-GRPO."""

from typing import Any

__all__ = ["load_pretrained", "save_pretrained"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from aesthetic_jax.checkpoints import huggingface  # JAX, which commands import after their flags are checked

    return getattr(huggingface, name)
