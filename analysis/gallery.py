"""The pictures and raw maps of one answer, in the sample's own folder, and its row of the table.

What a report shows of one sample: its picture, its words, and where each of them looked, small enough to embed.

A `Way` is one answer to the sample's question, such as the plain one or the one under a gaze mask; a view holds the
ways beside each other. Maps are packed: bytes of 1/255 of each map's largest value, compressed. The maps of single
heads are most of it (32 x 32 heads x 100 tokens x 576 cells are 59 million numbers), so where they do not fit the
budget, those of every second layer are kept, every fourth, and so on; the means over heads are kept of every layer.
"""

from __future__ import annotations

import base64
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from analysis.overlay import LONGER_SIDE, OverlayStyle, overlay, strip
from analysis.plots import share_plot
from analysis.report import MEGABYTE, embedded
from analysis.rollout import Rollout, answer_rows, image_share, rollout_through_tower, tower_look
from analysis.runs import RunFolder, save_arrays, save_maps
from data.errors import check_at_least

COLUMNS = (
    "image", "prompt", "answer", "gold", "prompt_tokens", "image_tokens", "tokens", "probability", "image_share",
    "folder",
)  # fmt: skip
NOTE = "each overlay is scaled to its own maximum"


def report_answer(
    run: RunFolder, sample, pictures: list[Image.Image], said, rollout: Rollout, style: OverlayStyle,
    page_mb: float = 0.0,
) -> dict:  # fmt: skip
    """Saves what `save_answer` and `save_tower` save and returns the sample's row, the values of COLUMNS.

    The first picture's view goes into the run (see `add_view`), and the heads that it shows into maps.npz.

    sample: has name, path, prompt, gold. said: the answer, with `text`, `tokens` and `probabilities` (one per generated
    token), the `trace` and `layout` of which `rollout` was made, `unknown`, words that the model does not know, and
    `tower`, the trace of the vision tower or None.
    """
    if said.unknown:
        tqdm.write(f"note: the model does not know the words {', '.join(said.unknown)}", file=sys.stderr)
    shares = image_share(said.trace, said.layout, rows=rollout.rows, tokens=len(said.tokens)).mean(0)
    tokens = said.tokens[: len(shares)]
    handed_on = None if said.tower is None else rollout_through_tower(rollout, said.tower)
    further = {}
    if rollout.layout.grids[0] is not None:
        tower = None if handed_on is None else handed_on.per_token
        seen = add_view(run, sample.name, sample.prompt, pictures[0], said, rollout, page_mb, tower)
        further = {"heads": seen.heads, "layers": np.array(seen.layers)}
    folder = save_answer(run, sample.name, pictures, tokens, rollout, shares, style, **further)
    if handed_on is not None:
        save_tower(run, folder, pictures, tokens, handed_on, said.tower, style)
    return {
        "image": sample.path,
        "prompt": sample.prompt,
        "answer": said.text,
        "gold": sample.gold,
        "prompt_tokens": said.layout.length - said.layout.start,
        "image_tokens": sum(map(len, said.layout.images)),
        "tokens": len(said.tokens),
        "probability": float(np.mean(said.probabilities)),
        "image_share": float(shares.mean()),
        "folder": folder.name,
    }


def lengths_line(rows: list[dict]) -> str:
    """One line with the lengths of the prompts of `report_answer`'s rows, in tokens."""
    total, image = ([row[name] for row in rows] for name in ("prompt_tokens", "image_tokens"))
    return f"prompts of {_range(total)} tokens, {_range(image)} of them of the image"


def _range(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def add_view(
    run: RunFolder, name: str, prompt: str, picture: Image.Image, said, rollout: Rollout, page_mb: float, tower=None
) -> Way:
    """Adds the view of one answer to the run's page, of at most `page_mb` where that is enough; see `way`."""
    seen = way(said, rollout, page_mb, tower=tower)
    run.views.append(view(name, prompt, picture, rollout.layout.grids[0], {"answer": seen}))
    return seen


def save_answer(
    run: RunFolder,
    sample: str,
    pictures: list[Image.Image],
    tokens: list[str],
    rollout: Rollout,
    shares,
    style: OverlayStyle,
    **further: np.ndarray,
) -> Path:
    """Writes overlay_mean, overlay_max, overlay_tokens and image_share (PNG) and maps.npz; returns the folder.

    `tokens` and `shares` [token] have one entry per map of `rollout`. Further pictures of the prompt get the same files
    with `-1`, `-2`, ... behind their names; `further` arrays go into the first one's maps. A picture whose grid is not
    known (None) gets its maps and no overlay.
    """
    folder = run.sample_folder(sample)
    share_of_one = shares if len(pictures) == 1 else None  # of several pictures, no single one has this share
    save_overlays(run, folder, pictures, tokens, rollout, style, shares=share_of_one, **further)
    run.save(share_plot(tokens, shares), folder.name, "image_share.png")
    return folder


def save_tower(
    run: RunFolder, folder: Path, pictures, tokens: list[str], rollout: Rollout, tower, style: OverlayStyle
) -> None:
    """Writes overlays and maps of a rollout that the vision tower handed on, under its own names with `-tower`.

    overlay_tower.png and tower.npz (`look` [row, col]) hold where the tower looked on average. `tower` is its trace.
    """
    save_overlays(run, folder, pictures, tokens, rollout, style, kind="-tower")
    for index, picture in enumerate(pictures):
        seen, suffix = tower_look(tower, index), f"-{index}" if index else ""
        save_arrays(folder / f"tower{suffix}.npz", look=seen)
        drawn = overlay(picture, seen, rollout.layout.grids[index], style, at_least=LONGER_SIDE)
        run.save(drawn, folder.name, f"overlay_tower{suffix}.png")


def save_overlays(
    run, folder: Path, pictures, tokens, rollout: Rollout, style: OverlayStyle, shares=None, kind="", **further
) -> None:
    """Writes the maps of every picture and, where its grid is known, their overlays; `kind` goes into the names.

    `further` arrays go into the maps of the first one.
    """
    for index, picture in enumerate(pictures):
        suffix = f"{kind}-{index}" if index else kind
        maps, grid = rollout.maps(index), rollout.layout.grids[index]
        save_maps(folder, maps, tokens, rollout.rows, grid, f"maps{suffix}.npz", **rollout.composed, **further)
        further = {}
        if grid is None:
            continue
        for name, cells in (("mean", maps.mean), ("max", maps.max)):
            drawn = overlay(picture, cells, grid, style, at_least=LONGER_SIDE)
            run.save(drawn, folder.name, f"overlay_{name}{suffix}.png")
        frames = [overlay(picture, cells, grid, style, at_least=240, at_most=480) for cells in maps.per_token]
        run.save(strip(frames, tokens, shares, title=NOTE), folder.name, f"overlay_tokens{suffix}.png")


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
