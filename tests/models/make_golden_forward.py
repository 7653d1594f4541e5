"""Makes golden_forward.npz: outputs of a small InternVL of transformers, for tests without torch.

Run in an environment with the parity extra: python tests/models/make_golden_forward.py
"""

import json
from pathlib import Path

import numpy as np

IMAGE_TOKEN, TILE, TOKENS_PER_TILE = 5, 28, 4
TOWERS = {
    "300m": dict(norm_type="layer_norm", attention_bias=True, use_qk_norm=False),
    "6b": dict(norm_type="rms_norm", attention_bias=False, use_qk_norm=True),
}


def make_model(tower="300m", tied=False, seed=0):
    """A transformers model with random parameters, scaled so that every part affects the output."""
    import torch
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    config = InternVLConfig(
        vision_config=dict(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            image_size=[TILE, TILE], patch_size=[7, 7], **TOWERS[tower],
        ),
        text_config=dict(
            model_type="qwen2", hidden_size=48, num_hidden_layers=2, num_attention_heads=6,
            num_key_value_heads=2, intermediate_size=64, vocab_size=96,
            max_position_embeddings=512, tie_word_embeddings=tied,
            rope_parameters=dict(rope_type="default", rope_theta=1e6),
        ),
        image_token_id=IMAGE_TOKEN, image_seq_length=TOKENS_PER_TILE,
        tie_word_embeddings=tied,
    )  # fmt: skip
    model = InternVLForConditionalGeneration(config).eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            shape = parameter.shape
            if name.endswith("norm.weight") or ("layernorm" in name and name.endswith("weight")):
                value = 1 + 0.2 * rng.normal(size=shape)
            elif "lambda" in name:
                value = 0.5 + 0.2 * rng.normal(size=shape)
            elif name == "lm_head.weight" or (tied and "embed_tokens" in name):
                # Logits of standard deviation about 2.
                value = 2 * shape[1] ** -0.5 * rng.normal(size=shape)
            elif len(shape) == 1:
                value = 0.2 * rng.normal(size=shape)
            else:
                value = np.prod(shape[1:]) ** -0.5 * rng.normal(size=shape)
            # Representable in float16, which halves the golden file without loss.
            parameter.copy_(torch.tensor(value.astype(np.float16).astype(np.float32)))
    return model


def make_inputs(seed=1):
    """Four rows of 20 tokens: two tiles; one, padded left; one, padded right; none.

    Returns:
        Token ids [4, 20], attention mask [4, 20], normalised tiles [4, 28, 28, 3].
    """
    rng = np.random.default_rng(seed)
    ids = rng.integers(6, 96, (4, 20))
    mask = np.ones(ids.shape, np.int64)
    mask[1, :6] = 0
    mask[2, 13:] = 0
    for row, start, count in ((0, 1, 1), (0, 9, 1), (1, 8, 1), (2, 3, 1)):
        ids[row, start : start + count * TOKENS_PER_TILE] = IMAGE_TOKEN
    ids[mask == 0] = 0
    return ids, mask, rng.normal(size=(4, TILE, TILE, 3)).astype(np.float32)


def run(model, ids, mask, tiles):
    """Vision features, projector output and logits of a transformers model, as numpy arrays."""
    import torch

    pixels = torch.tensor(tiles.transpose(0, 3, 1, 2))
    with torch.no_grad():
        features = model.model.vision_tower(pixel_values=pixels).last_hidden_state[:, 1:]
        projected = model.model.get_image_features(pixel_values=pixels).pooler_output
        logits = model(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), pixel_values=pixels
        ).logits
    return features.numpy(), projected.numpy(), logits.numpy()


def main():
    import tempfile

    from safetensors.numpy import load_file

    golden = {}
    for tower in TOWERS:
        model = make_model(tower)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            for name, x in load_file(Path(folder) / "model.safetensors").items():
                golden[f"{tower}/tensors/{name}"] = x.astype(np.float16)
            config = json.loads((Path(folder) / "config.json").read_text())
            golden[f"{tower}/config"] = np.array(json.dumps(config))
        ids, mask, tiles = make_inputs()
        features, projected, logits = run(model, ids, mask, tiles)
        golden |= {
            f"{tower}/vision": features,
            f"{tower}/projected": projected,
            f"{tower}/logits": logits[mask == 1],
        }
        deviation = logits[mask == 1].std()
        print(f"{tower}: standard deviation of logits {deviation}, of features {features.std()}")
    golden |= dict(zip(("ids", "mask", "tiles"), make_inputs(), strict=True))
    np.savez_compressed(Path(__file__).with_name("golden_forward.npz"), **golden)


if __name__ == "__main__":
    main()
