"""How much of its attention a generated token spends on the image."""

from __future__ import annotations

import numpy as np

from analysis.rollout import answer_rows, check_layout


def image_share(trace, layout, *, rows: str = "predicting", tokens: int | None = None) -> np.ndarray:
    """Attention on all image keys, mean over heads, float32 [layer, token], each in [0, 1].

    Plain attention of single layers, not rollout; `rows` and `tokens` as in `analysis.rollout.rollout`.
    """
    check_layout(trace, layout)
    positions = answer_rows(trace, rows, tokens)
    shares = [
        trace.weights(layer, positions, samples=[layout.sample])[0, :, :, layout.image_positions].sum(-1).mean(0).cpu()
        for layer in range(trace.layers)
    ]
    return np.stack([share.numpy() for share in shares])
