"""Model configuration: dataclasses for InternVL's parts, and presets of the published sizes."""

import dataclasses

ATTENTION = ("auto", "xla", "cudnn", "splash")  # values of InternVLConfig.attention


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """InternViT: a plain ViT with a class token, LayerScale and no final norm."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    image_size: int = 448
    patch_size: int = 14
    norm: str = "layer_norm"  # or "rms_norm" (the 6B tower)
    norm_epsilon: float = 1e-6
    qkv_bias: bool = True
    qk_norm: bool = False
    layer_scale: float = 0.1

    @property
    def grid(self) -> int:
        """Patches along one side of a tile."""
        return self.image_size // self.patch_size

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Qwen2: a decoder with grouped queries, rotary positions, SwiGLU and RMS norms."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp_width: int
    vocab_size: int
    head_width: int | None = None  # None: width // heads
    norm_epsilon: float = 1e-6
    rope_theta: float = 1e6
    tied_head: bool = False

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.head_width or self.width // self.heads


@dataclasses.dataclass(frozen=True)
class InternVLConfig:
    """One model: vision tower, pixel shuffle, two-layer projector, language model.

    Attributes:
        image_token: id of `<IMG_CONTEXT>`, the token whose embedding is replaced with an image
            feature.
        dtype: compute dtype of activations; logits, softmax, norms and RoPE stay float32.
        remat: what the backward pass recomputes in each layer: "none", "dots" (everything but
            matrix products), "full".
        attention: attention back end: "auto", "xla", "cudnn" or "splash" (see
            `attention.choose_backend`); decoding always uses "xla".
        lora_rank: rank of the language model's LoRA; 0: no LoRA.
        lora_alpha: the LoRA update is scaled by lora_alpha / lora_rank.
    """

    vision: VisionConfig
    text: TextConfig
    image_token: int
    shuffle: int = 2  # 1 / downsample_ratio: patches merged along each side
    dtype: str = "float32"
    remat: str = "full"
    attention: str = "xla"
    lora_rank: int = 0
    lora_alpha: float = 32.0

    @property
    def tokens_per_tile(self) -> int:
        """Language-model tokens that one image tile takes."""
        return (self.vision.grid // self.shuffle) ** 2


_VIT_300M = VisionConfig(width=1024, layers=24, heads=16, mlp_width=4096)
_VIT_6B = VisionConfig(
    width=3200, layers=45, heads=25, mlp_width=12800, norm="rms_norm", qkv_bias=False, qk_norm=True
)


def _published(
    vision: VisionConfig, width: int, layers: int, heads: int, kv_heads: int, mlp_width: int
) -> InternVLConfig:
    text = TextConfig(width, layers, heads, kv_heads, mlp_width, vocab_size=151674)
    return InternVLConfig(vision, text, image_token=151667)


PRESETS = {
    # Learns from scratch on two cores. Training sets its vocabulary to the tokenizer's.
    "tiny": InternVLConfig(
        VisionConfig(
            width=128,
            layers=3,
            heads=8,
            mlp_width=384,
            image_size=56,
            patch_size=14,
            layer_scale=1.0,
        ),
        TextConfig(
            width=128,
            layers=3,
            heads=8,
            kv_heads=4,
            mlp_width=384,
            vocab_size=1024,
            rope_theta=100.0,
        ),
        image_token=3,
        remat="none",
    ),
    "internvl3_1b": _published(_VIT_300M, 896, 24, 14, 2, 4864),
    "internvl3_2b": _published(_VIT_300M, 1536, 28, 12, 2, 8960),
    "internvl3_8b": _published(_VIT_300M, 3584, 28, 28, 4, 18944),
    "internvl3_14b": _published(_VIT_300M, 5120, 48, 40, 8, 13824),
    "internvl3_38b": _published(_VIT_6B, 5120, 64, 40, 8, 27648),
    "internvl3_78b": _published(_VIT_6B, 8192, 80, 64, 8, 29568),
}
