"""The pictures and raw maps of one answer, in the sample's own folder, and its row of the table."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from analysis.overlay import LONGER_SIDE, OverlayStyle, overlay, strip
from analysis.plots import share_plot
from analysis.report_views import Way, view, way
from analysis.rollout import Rollout, image_share, rollout_through_tower, tower_look
from analysis.runs import RunFolder, save_arrays, save_maps

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
