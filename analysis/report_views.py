"""What a report shows of one sample: its picture, its words, and where each of them looked, small enough to embed.

A `Way` is one answer to the sample's question, such as the plain one or the one under a gaze mask; a view holds the
ways beside each other. Maps are packed: bytes of 1/255 of each map's largest value, compressed. The maps of single
heads are most of it (32 x 32 heads x 100 tokens x 576 cells are 59 million numbers), so where they do not fit the
budget, those of every second layer are kept, every fourth, and so on; the means over heads are kept of every layer.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from analysis.report import MEGABYTE, embedded
from analysis.rollout import Rollout, answer_rows
from data.errors import check_at_least

LONGEST = 640  # pixels of an embedded picture


@dataclass(frozen=True)
class Page:
    """Size of the report page."""

    page_mb: float = 5.0
    """How large report.html may grow for the sake of single heads; where that is not enough, some layers have none."""

    def __post_init__(self) -> None:
        check_at_least(self, page_mb=0)


def pack(values: np.ndarray, axes: int = 1, top: float | None = None) -> dict:
    """Numbers >= 0, [..., map], as compressed bytes, `axes` trailing axes to a map: value = scale * byte / 255.

    The scale of a map is its largest value, or `top` for all. Returns {"shape", "axes", "scale", "data"}, the last two
    in base64: float32, little-endian, and deflated uint8.
    """
    values = np.asarray(values, np.float32)
    maps = values.reshape(*values.shape[: values.ndim - axes], -1)
    scale = maps.max(-1, initial=0) if top is None else np.full(maps.shape[:-1], top, np.float32)
    levels = np.divide(maps, scale[..., None], out=np.zeros_like(maps), where=scale[..., None] > 0)
    data = zlib.compress(np.rint(255 * levels).astype(np.uint8).tobytes())
    return {"shape": values.shape, "axes": axes, "scale": _text(scale.astype("<f4").tobytes()), "data": _text(data)}


def packed_size(packed) -> int:
    """Characters that packed arrays, however nested, take in a page."""
    if isinstance(packed, dict):
        return sum(map(packed_size, packed.values()))
    return len(packed) if isinstance(packed, str) else 0


@dataclass(frozen=True, eq=False)
class Way:
    """One answer as a view holds it.

    `data`: what the page gets. `layers`: those whose single heads are in it, and `heads` float32 [kept layer, head,
    token, row, col] their maps in full, to be saved beside the page.
    """

    data: dict
    layers: tuple[int, ...]
    heads: np.ndarray


def way(said, rolled: Rollout, budget: float, tower: np.ndarray | None = None, mask: np.ndarray | None = None) -> Way:
    """The answer `said` (see `analysis.gallery.report_answer`) and its rollout, for a view of at most `budget` MB.

    tower: the rollout handed on by the vision tower [token, row, col]; mask: what steered the answer [row, col].
    """
    layout, count = said.layout, len(rolled.relevance)
    grid, image = layout.grids[0], layout.images[0]
    positions = answer_rows(said.trace, rolled.rows, count)
    pictured = np.zeros(positions[-1] + 1, bool)
    pictured[layout.image_positions] = True
    text = np.flatnonzero(~pictured)
    text = text[text >= layout.start]
    groups = np.stack([pictured, ~pictured & (np.arange(len(pictured)) < layout.length),
                       np.arange(len(pictured)) >= layout.length]).astype(np.float32)  # fmt: skip

    def parts(rows: np.ndarray) -> dict:
        return {"cells": pack(rows[..., image]), "text": pack(rows[..., text])}

    means, shares, single = [], [], []
    for rows in layer_rows(said.trace, layout, positions, range(said.trace.layers)):
        means.append(rows.mean(0))
        shares.append(rows @ groups.T)
        single.append(parts(rows))
    relevance = rolled.relevance.numpy()[:, : len(pictured)]
    data = {
        "answer": said.text,
        "tokens": [
            {"text": token, "probability": probability, "alternatives": alternatives}
            for token, probability, alternatives in zip(said.tokens, said.probabilities, said.alternatives, strict=True)
        ][:count],
        "prompt": [layout.text[slice(*layout.offsets[position])] for position in text if position < layout.length],
        "rows": rolled.rows,
        "layers": len(means),
        "heads": len(shares[0]),
        "rollout": {**parts(relevance), "shares": (relevance @ groups.T).round(4).tolist()},
        "mean": {**parts(np.stack(means)), "shares": np.stack(shares).mean(1).round(4).tolist()},
        "shares": pack(np.stack(shares), top=1),
        "tower": None if tower is None else {"cells": pack(tower.reshape(count, -1))},
        "mask": None if mask is None else {"cells": pack(np.asarray(mask, np.float32).reshape(1, -1))},
    }
    kept = thinned([packed_size(each) for each in single], budget * MEGABYTE - packed_size(data))
    data["head"] = {str(layer): single[layer] for layer in kept}
    # Made once more, since those of every layer would be far larger than what the page keeps of them.
    again = (rows[..., image] for rows in layer_rows(said.trace, layout, positions, kept))
    whole = [cells.reshape(*cells.shape[:2], grid.rows, grid.cols) for cells in again]
    return Way(data, kept, np.stack(whole) if whole else np.empty((0,), np.float32))


def layer_rows(trace, layout, positions: range, layers: Iterable[int]) -> Iterator[np.ndarray]:
    """The attention of some rows of one sample, layer after layer: float32 [head, row, key], keys to the last row."""
    for layer in layers:
        rows = trace.weights(layer, positions, samples=[layout.sample])[0, :, :, : positions[-1] + 1]
        yield rows.cpu().numpy()


def thinned(sizes: list[int], budget: float) -> tuple[int, ...]:
    """Layers to keep: all, or every second, fourth, ... such that their sizes fit the budget; none where one does not.

    The last layer is always among them.
    """
    step = 1
    while step <= len(sizes):
        kept = tuple(range((len(sizes) - 1) % step, len(sizes), step))
        if sum(sizes[layer] for layer in kept) <= budget:
            return kept
        step *= 2
    return ()


def view(name: str, prompt: str, picture: Image.Image, grid, ways: dict[str, Way]) -> dict:
    """A sample's view: its picture, where the cells lie in it (as fractions of its sides), and the ways."""
    rects = [grid.rect(row, col) for row, col in ((0, 0), (grid.rows - 1, grid.cols - 1))]
    return {
        "name": name,
        "prompt": prompt,
        "picture": embedded(picture, LONGEST),
        "size": picture.size,
        "grid": {
            "rows": grid.rows,
            "cols": grid.cols,
            "left": rects[0][0] / picture.width,
            "top": rects[0][1] / picture.height,
            "right": rects[1][2] / picture.width,
            "bottom": rects[1][3] / picture.height,
        },
        "ways": {name: way.data for name, way in ways.items()},
    }


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
