"""InternVL: vision tower, projector, language model, and the calls `prefill` and `extend`.

Shape letters, the same in every annotation and comment of the package: B prompts, G completions
per prompt, N image tiles per prompt, P prompt tokens, T completion tokens, D width, F hidden width
of the MLP, H heads, K key-value heads, L layers, V vocabulary. Attention adds S queries, Z keys and
E channels per head. The vision tower adds M tiles, X pixels per side, Q tokens per tile and C
channels before the projector.
"""
