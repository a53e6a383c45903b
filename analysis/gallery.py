"""Figures, raw maps and table row of one answer, and the view of a sample that is embedded in the report.

A view holds the sample's image, its tokens and their attention maps under one or more conditions. A `ConditionView` is
the answer under one condition, such as without or with a gaze mask. Maps are packed: bytes of 1/255 of each map's
largest value, compressed. Maps of single heads take most of the size (32 x 32 heads x 100 tokens x 576 cells are 59
million numbers): if they exceed the budget, those of every second layer are kept, every fourth, and so on; the means
over heads are kept of every layer.
"""

from __future__ import annotations

import base64
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image
from tqdm import tqdm

from analysis.files import save_arrays, save_maps
from analysis.overlay import LONGER_SIDE, OverlayStyle, comparison, overlay, strip
from analysis.plots import share_plot
from analysis.report import MEGABYTE, embedded
from analysis.resume import Result
from analysis.rollout import (
    Rollout,
    RolloutSettings,
    TokenMaps,
    answer_rows,
    encoder_map,
    image_share,
    rollout,
    rollout_through_encoder,
)
from analysis.runs import RunFolder
from analysis.sanity import correlation
from analysis.statistics import known_mean
from data.errors import check_at_least

COLUMNS = (
    "image", "prompt", "answer", "gold", "prompt_tokens", "image_tokens", "tokens", "probability", "image_share",
    "folder",
)  # fmt: skip
NOTE = "each overlay is scaled to its own maximum"


def report_answer(
    run: RunFolder, sample, images: list[Image.Image], answer, maps: Mapping[str, TokenMaps], style: OverlayStyle,
    page_mb: float = 0.0, caption: str = "", randomised: Mapping[str, TokenMaps] | None = None,
) -> Result:  # fmt: skip
    """Save the files of `save_answer` and `save_encoder`; return the sample's row, the values of COLUMNS, and the view
    of its first image, whose heads are added to the files of maps.

    sample: has name, path, prompt, gold. answer: has `text`, `tokens` and `probabilities` (one per generated
    token), the `trace` and `layout` of the maps, `unknown`, words outside the model's vocabulary, and `encoder`, the
    trace of the vision encoder or None. maps: by kind, all with the same rows; randomised: those of the model with
    random weights. The page always holds the rollout. caption: line below maps.png.
    """
    if answer.unknown:
        tqdm.write(f"note: the model does not know the words {', '.join(answer.unknown)}", file=sys.stderr)
    first = next(iter(maps.values()))
    rolled = maps.get("rollout") or rollout(answer.trace, answer.layout, RolloutSettings(rows=first.rows))
    shares = image_share(answer.trace, answer.layout, rows=first.rows, tokens=len(answer.tokens)).mean(0)
    tokens = answer.tokens[: len(shares)]
    handed_on = None if answer.encoder is None else rollout_through_encoder(rolled, answer.encoder)
    arrays, view_of_first = {}, None
    if first.layout.grids[0] is not None:
        encoded = None if handed_on is None else handed_on.per_token
        others = {kind: drawn for kind, drawn in maps.items() if kind != "rollout"}
        content = condition_view(answer, rolled, page_mb, encoder=encoded, kinds=others)
        view_of_first = view(sample.name, sample.prompt, images[0], first.layout.grids[0], {"answer": content})
        arrays = content.arrays
    folder = save_answer(run, sample.name, images, tokens, maps, shares, style, arrays)
    if len(maps) > 1 or randomised:
        save_comparison(run, folder, images, tokens, maps, randomised or {}, style, caption)
    if handed_on is not None:
        save_encoder(run, folder, images, tokens, handed_on, answer.encoder, style)
    row = {
        "image": sample.path,
        "prompt": sample.prompt,
        "answer": answer.text,
        "gold": sample.gold,
        "prompt_tokens": answer.layout.length - answer.layout.start,
        "image_tokens": sum(map(len, answer.layout.images)),
        "tokens": len(answer.tokens),
        "probability": float(np.mean(answer.probabilities)),
        "image_share": float(shares.mean()),
        "folder": folder.name,
    }
    row |= {f"sanity_{kind}": similarity(maps[kind], other) for kind, other in (randomised or {}).items()}
    return Result(row, view=view_of_first)


def similarity(maps: TokenMaps, other: TokenMaps) -> float:
    """Correlation of two maps of the same tokens over the cells of the first image, mean over tokens."""
    pairs = zip(maps.per_token, other.per_token, strict=True)
    return float(known_mean([correlation(*pair) for pair in pairs]))


def lengths_line(rows: list[dict]) -> str:
    """Line with the prompt lengths in tokens of the rows of `report_answer`."""
    total, image = ([row[name] for row in rows] for name in ("prompt_tokens", "image_tokens"))
    return f"prompts of {_range(total)} tokens, {_range(image)} of them of the image"


def _range(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def answer_view(
    name: str, prompt: str, image: Image.Image, answer, rollout: Rollout, page_mb: float, encoder=None
) -> tuple[ConditionView, dict]:
    """Content and view of one answer; `page_mb` MB is the budget of `condition_view`."""
    content = condition_view(answer, rollout, page_mb, encoder=encoder)
    return content, view(name, prompt, image, rollout.layout.grids[0], {"answer": content})


def save_answer(
    run: RunFolder, sample: str, images: list[Image.Image], tokens: list[str], maps: Mapping[str, TokenMaps], shares,
    style: OverlayStyle, arrays: Mapping[str, Mapping[str, np.ndarray]] = MappingProxyType({}),
) -> Path:  # fmt: skip
    """Write overlay_mean, overlay_max, overlay_tokens and image_share (PNG) and maps.npz; return the folder.

    `tokens` and `shares` [token] have one entry per map. The files of the first kind of `maps` have no suffix, those of
    the others the name of their kind, such as maps-gradient.npz; further images of the prompt add `-1`, `-2`, ...
    `arrays` are added by kind to the first image's maps. An image with an unknown grid (None) gets maps without
    overlays.
    """
    folder = run.sample_folder(sample)
    share_of_one = shares if len(images) == 1 else None  # the share is the sum over all images
    for place, (kind, drawn) in enumerate(maps.items()):
        further = {"kind": kind, **arrays.get(kind, {})}
        suffix = f"-{kind}" if place else ""
        save_overlays(run, folder, images, tokens, drawn, style, share_of_one, suffix, **further)
    run.save(share_plot(tokens, shares), folder.name, "image_share.png")
    return folder


def save_comparison(
    run: RunFolder, folder: Path, images, tokens: list[str], maps: Mapping[str, TokenMaps],
    randomised: Mapping[str, TokenMaps], style: OverlayStyle, caption: str,
) -> None:  # fmt: skip
    """Write maps.png for each image with a known grid: a row for each kind, and for each kind with random weights, and
    columns for the mean, the maximum and each token."""
    rows = dict(maps)
    for kind, other in randomised.items():
        rows[f"{kind}, shuffled\nweights, r = {similarity(maps[kind], other):.2f}"] = other
    for index, image in enumerate(images):
        grid = next(iter(maps.values())).layout.grids[index]
        if grid is None:
            continue
        drawn = {}
        for name, kind in rows.items():
            cells = kind.maps(index)
            every = (cells.mean, cells.max, *cells.per_token)
            drawn[name] = [overlay(image, each, grid, style, at_least=240, at_most=480) for each in every]
        figure = comparison(drawn, ["mean", "max", *tokens], title=NOTE)
        run.save(figure, folder.name, f"maps-{index}.png" if index else "maps.png", caption=caption)


def save_encoder(
    run: RunFolder, folder: Path, images, tokens: list[str], rollout: Rollout, trace, style: OverlayStyle
) -> None:
    """Write overlays and maps of a rollout propagated through the vision encoder, with `-tower` in their names.

    overlay_tower.png and tower.npz (`look` [row, col]) hold the encoder's mean attention. `trace` is its trace.
    """
    save_overlays(run, folder, images, tokens, rollout, style, suffix="-tower")
    for index, image in enumerate(images):
        mean_map, suffix = encoder_map(trace, index), f"-{index}" if index else ""
        save_arrays(folder / f"tower{suffix}.npz", look=mean_map)
        drawn = overlay(image, mean_map, rollout.layout.grids[index], style, at_least=LONGER_SIDE)
        run.save(drawn, folder.name, f"overlay_tower{suffix}.png")


def save_overlays(
    run, folder: Path, images, tokens, rollout: TokenMaps, style: OverlayStyle, shares=None, suffix="", **further
) -> None:
    """Write the maps of every image and, if its grid is known, the overlays; `suffix` ends the names.

    `further` arrays are added to the maps of the first image.
    """
    for index, image in enumerate(images):
        ending = f"{suffix}-{index}" if index else suffix
        maps, grid = rollout.maps(index), rollout.layout.grids[index]
        save_maps(folder, maps, tokens, rollout.rows, grid, f"maps{ending}.npz", **rollout.composed, **further)
        further = {}
        if grid is None:
            continue
        for name, cells in (("mean", maps.mean), ("max", maps.max)):
            drawn = overlay(image, cells, grid, style, at_least=LONGER_SIDE)
            run.save(drawn, folder.name, f"overlay_{name}{ending}.png")
        frames = [overlay(image, cells, grid, style, at_least=240, at_most=480) for cells in maps.per_token]
        run.save(strip(frames, tokens, shares, title=NOTE), folder.name, f"overlay_tokens{ending}.png")


LONGEST = 640  # pixels of an embedded image


@dataclass(frozen=True)
class Page:
    """Size of the report page."""

    page_mb: float = 5.0
    """Size in MB up to which report.html holds maps of single heads; beyond it, some layers lack them."""

    def __post_init__(self) -> None:
        check_at_least(self, page_mb=0)


def pack(values: np.ndarray, axes: int = 1, top: float | None = None) -> dict:
    """Pack numbers >= 0, [..., map], as compressed bytes, `axes` trailing axes per map: value = scale * byte / 255.

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
    """Size in characters of packed arrays, nested to any depth, in a page."""
    if isinstance(packed, dict):
        return sum(map(packed_size, packed.values()))
    return len(packed) if isinstance(packed, str) else 0


@dataclass(frozen=True, eq=False)
class ConditionView:
    """Answer under one condition of a view.

    `data`: JSON content of the page. `layers`: layers whose single heads are in it, and `heads` float32 [kept layer,
    head, token, row, col] their unpacked maps, to be saved with the page.
    """

    data: dict
    layers: tuple[int, ...]
    heads: np.ndarray
    kinds: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    @property
    def arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """Arrays of each kind to be saved with the page: `heads` of `layers`; those of the rollout are attention."""
        return {"rollout": {"heads": self.heads, "layers": np.array(self.layers)}, **self.kinds}


def condition_view(
    answer, rolled: Rollout, budget: float, encoder: np.ndarray | None = None, mask: np.ndarray | None = None,
    kinds: Mapping[str, TokenMaps] = MappingProxyType({}),
) -> ConditionView:  # fmt: skip
    """An answer (see `analysis.gallery.report_answer`) and its rollout, for a view of at most `budget` MB.

    encoder: the rollout through the vision encoder [token, row, col]; mask: the mask of the answer's steering
    [row, col]; kinds: further maps of the answer.
    """
    budget /= 1 + sum(getattr(maps, "heads", None) is not None for maps in kinds.values())
    layout, count = answer.layout, len(rolled.relevance)
    grid, image = layout.grids[0], layout.images[0]
    positions = answer_rows(answer.trace, rolled.rows, count)
    on_image = np.zeros(positions[-1] + 1, bool)
    on_image[layout.image_positions] = True
    text = np.flatnonzero(~on_image)
    text = text[text >= layout.start]
    groups = np.stack([on_image, ~on_image & (np.arange(len(on_image)) < layout.length),
                       np.arange(len(on_image)) >= layout.length]).astype(np.float32)  # fmt: skip

    def parts(rows: np.ndarray) -> dict:
        return {"cells": pack(rows[..., image]), "text": pack(rows[..., text])}

    means, shares, single = [], [], []
    for rows in layer_rows(answer.trace, layout, positions, range(answer.trace.layers)):
        means.append(rows.mean(0))
        shares.append(rows @ groups.T)
        single.append(parts(rows))
    relevance = rolled.relevance.numpy()[:, : len(on_image)]
    data = {
        "answer": answer.text,
        "tokens": [
            {"text": token, "probability": probability, "alternatives": alternatives}
            for token, probability, alternatives in zip(
                answer.tokens, answer.probabilities, answer.alternatives, strict=True
            )
        ][:count],
        "prompt": [layout.text[slice(*layout.offsets[position])] for position in text if position < layout.length],
        "rows": rolled.rows,
        "layers": len(means),
        "heads": len(shares[0]),
        "rollout": {**parts(relevance), "shares": (relevance @ groups.T).round(4).tolist()},
        "mean": {**parts(np.stack(means)), "shares": np.stack(shares).mean(1).round(4).tolist()},
        "shares": pack(np.stack(shares), top=1),
        "encoder": None if encoder is None else {"cells": pack(encoder.reshape(count, -1))},
        "mask": None if mask is None else {"cells": pack(np.asarray(mask, np.float32).reshape(1, -1))},
    }
    kept = thinned([packed_size(packed) for packed in single], budget * MEGABYTE - packed_size(data))
    data["head"] = {str(layer): single[layer] for layer in kept}
    # Computed again: storing all layers would take far more memory than the kept ones.
    again = (rows[..., image] for rows in layer_rows(answer.trace, layout, positions, kept))
    whole = [cells.reshape(*cells.shape[:2], grid.rows, grid.cols) for cells in again]
    packed = {kind: kind_view(maps, budget) for kind, maps in kinds.items()}
    data["kinds"] = {kind: content for kind, (content, _) in packed.items()}
    heads = np.stack(whole) if whole else np.empty((0,), np.float32)
    return ConditionView(data, kept, heads, {kind: arrays for kind, (_, arrays) in packed.items()})


def kind_view(maps: TokenMaps, budget: float) -> tuple[dict, dict[str, np.ndarray]]:
    """Maps of one kind for a view: JSON content, with the single heads of layers up to `budget` MB, and arrays of these
    heads to be saved, [kept layer, head, token, row, col]; negative values count as 0."""
    cells = maps.per_token
    content = {"cells": pack(cells.reshape(len(cells), -1)), "head": {}}
    if getattr(maps, "heads", None) is None:
        return content, {}
    heads = maps.heads[..., : cells[0].size].permute(1, 2, 0, 3).clamp_min(0).numpy()  # [layer, head, token, cell]
    single = [{"cells": pack(of_layer)} for of_layer in heads]
    kept = thinned([packed_size(layer) for layer in single], budget * MEGABYTE - packed_size(content))
    content["head"] = {str(maps.layers[place]): single[place] for place in kept}
    layers = np.array([maps.layers[place] for place in kept])
    whole = heads[list(kept)]
    return content, {"heads": whole.reshape(*whole.shape[:3], *cells.shape[1:]), "layers": layers}


def layer_rows(trace, layout, positions: range, layers: Iterable[int]) -> Iterator[np.ndarray]:
    """Attention of some rows of one sample, layer by layer: float32 [head, row, key], keys up to the last row."""
    for layer in layers:
        rows = trace.weights(layer, positions, samples=[layout.sample])[0, :, :, : positions[-1] + 1]
        yield rows.cpu().numpy()


def thinned(sizes: list[int], budget: float) -> tuple[int, ...]:
    """Layers to keep: all, or every second, fourth, ... so that their sizes fit the budget; () if one layer exceeds it.

    Otherwise the last layer is always kept.
    """
    step = 1
    while step <= len(sizes):
        kept = tuple(range((len(sizes) - 1) % step, len(sizes), step))
        if sum(sizes[layer] for layer in kept) <= budget:
            return kept
        step *= 2
    return ()


def view(name: str, prompt: str, image: Image.Image, grid, conditions: dict[str, ConditionView]) -> dict:
    """View of a sample: its image, the rectangle of the cells (as fractions of its sides), and the conditions."""
    rects = [grid.rect(row, col) for row, col in ((0, 0), (grid.rows - 1, grid.cols - 1))]
    return {
        "name": name,
        "prompt": prompt,
        "image": embedded(image, LONGEST),
        "size": image.size,
        "grid": {
            "rows": grid.rows,
            "cols": grid.cols,
            "left": rects[0][0] / image.width,
            "top": rects[0][1] / image.height,
            "right": rects[1][2] / image.width,
            "bottom": rects[1][3] / image.height,
        },
        "conditions": {name: content.data for name, content in conditions.items()},
    }


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
