"""Share of each head's attention to the image that falls on the gaze.

    Sim(h) = sum over the generated tokens and the image cells of A_h * G / the same sum of A_h

with A_h the attention of the rows that stand for the generated tokens and G a mask over the cells, in 0..1. The
salient-head method divides it by the layer's largest. A head can have a large Sim and hardly look at the image at all,
so the attention that it is a share of is reported with it; where that is below 1e-9, Sim is undefined (NaN).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from analysis.rollout import answer_rows, check_layout
from analysis.statistics import Bounds, mean_interval
from data.errors import SampleError

MIN_IMAGE_MASS = 1e-9  # as the salient-head method has it: less is a matter of rounding


class Inside(NamedTuple):
    """Attention to the image, mean over the rows: `seen` float64 [layer, head] in all, `inside` [mask, layer, head]
    with each cell times the mask's value there."""

    seen: np.ndarray
    inside: np.ndarray

    @property
    def similarity(self) -> np.ndarray:
        """Sim of every head with every mask, float64 [mask, layer, head]; NaN for an image mass below the least."""
        enough = self.seen >= MIN_IMAGE_MASS
        return np.divide(self.inside, self.seen, out=np.full_like(self.inside, np.nan), where=enough)

    @property
    def share(self) -> np.ndarray:
        """Share of the whole model's image attention that is inside each mask, float64 [mask]; NaN where none is."""
        total = self.seen.sum()
        return self.inside.sum((1, 2)) / total if total > 0 else np.full(len(self.inside), np.nan)


@torch.no_grad()
def attention_inside(
    trace, layout, masks: Sequence, *, rows: str = "predicting", tokens: int | None = None
) -> Inside:
    """Attention of the generated tokens' rows to the prompt's first image, and how much of it falls on each mask.

    masks: each [row, col] over the image's grid, in 0..1. `rows` and `tokens` as in `analysis.rollout.rollout`.
    Raises ValueError for a mask of another size, SampleError where the prompt has no image or no token has a row.
    """
    check_layout(trace, layout)
    if not layout.images:
        raise SampleError("no image", "the prompt has no image, so there is nothing to look at in it")
    positions = answer_rows(trace, rows, tokens)
    if not positions:
        raise SampleError(f"no {rows} row", f"no generated token has a row under the convention {rows!r}")
    cells = layout.images[0]
    stacked = torch.stack([torch.as_tensor(mask).flatten().double() for mask in masks])
    if stacked.shape[1] != len(cells):
        raise ValueError(f"the masks have {stacked.shape[1]} cells but the image has {len(cells)}")
    seen, inside = [], []
    for layer in range(trace.layers):
        weights = trace.weights(layer, positions, samples=[layout.sample])[0][:, :, cells.to(trace.device(layer))]
        looked = weights.double().mean(1).cpu()  # [head, cell]
        seen.append(looked.sum(-1))
        inside.append(stacked @ looked.T)
    return Inside(torch.stack(seen).numpy(), torch.stack(inside, dim=1).numpy())


def relative(similarity: np.ndarray) -> np.ndarray:
    """Similarities [..., layer, head] divided by the layer's largest; 0 where that is 0, NaN where it is undefined."""
    similarity = np.asarray(similarity, np.float64)
    largest = np.fmax.reduce(similarity, axis=-1, keepdims=True)
    return np.divide(similarity, largest, out=np.where(np.isnan(similarity), np.nan, 0.0), where=largest > 0)


def mean_heads(values: np.ndarray, bounds: Bounds) -> dict[str, np.ndarray]:
    """Mean over images of values [image, layer, head] with the interval of `mean_interval`, each array [layer, head].

    Returns {"mean", "deviation", "low", "high", "n"}; images in which a head is undefined (NaN) do not count for it,
    and what cannot be estimated is NaN. Each interval is that of one head, without a correction for their number.
    """
    values = np.asarray(values, np.float64)
    shape = values.shape[1:]
    intervals = [mean_interval(values[:, *head], bounds) for head in np.ndindex(shape)]
    found = {
        name: np.array([interval[name] for interval in intervals], np.float64).reshape(shape)
        for name in ("mean", "low", "high")
    }
    count = np.isfinite(values).sum(0)
    squares = np.where(np.isfinite(values), values - found["mean"], 0) ** 2
    variance = np.divide(squares.sum(0), count - 1, out=np.full(shape, np.nan), where=count > 1)
    return {**found, "deviation": np.sqrt(variance), "n": count}
