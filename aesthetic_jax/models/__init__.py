"""InternVL: vision tower, projector, language model, and the two calls every step is written with."""
