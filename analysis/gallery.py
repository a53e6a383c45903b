"""The pictures and raw maps of one answer, in the sample's own folder, and its row of the table."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from analysis.overlay import COLOURMAP, overlay, strip
from analysis.plots import share_plot
from analysis.results import RunFolder, save_maps
from analysis.rollout import Rollout
from analysis.shares import image_share

COLUMNS = ("image", "prompt", "answer", "gold", "tokens", "probability", "image_share", "folder")
NOTE = "each overlay is scaled to its own maximum"


@dataclass(frozen=True)
class Look:
    """How a map is drawn; see `analysis.overlay.overlay`. `at_least`: pixels of the longer side of a saved picture."""

    alpha: float = 0.7
    power: float = 1.5
    blur: float = 0.5
    colourmap: str = COLOURMAP
    at_least: int = 480


def report_answer(run: RunFolder, sample, pictures: list[Image.Image], said, rollout: Rollout, look: Look) -> dict:
    """Saves what `save_answer` saves and returns the sample's row, the values of COLUMNS.

    sample: has name, path, prompt, gold. said: the answer, with `text`, `tokens` and `probabilities` (one per generated
    token), the `trace` and `layout` of which `rollout` was made, and `unknown`, words that the model does not know.
    """
    if said.unknown:
        tqdm.write(f"note: the model does not know the words {', '.join(said.unknown)}", file=sys.stderr)
    shares = image_share(said.trace, said.layout, rows=rollout.rows, tokens=len(said.tokens)).mean(0)
    folder = save_answer(run, sample.name, pictures, said.tokens[: len(shares)], rollout, shares, look)
    return {
        "image": sample.path,
        "prompt": sample.prompt,
        "answer": said.text,
        "gold": sample.gold,
        "tokens": len(said.tokens),
        "probability": float(np.mean(said.probabilities)),
        "image_share": float(shares.mean()),
        "folder": folder.name,
    }


def save_answer(
    run: RunFolder,
    sample: str,
    pictures: list[Image.Image],
    tokens: list[str],
    rollout: Rollout,
    shares,
    look: Look,
) -> Path:
    """Writes overlay_mean, overlay_max, overlay_tokens and image_share (PNG) and maps.npz; returns the folder.

    `tokens` and `shares` [token] have one entry per map of `rollout`. Further pictures of the prompt get the same files
    with `-1`, `-2`, ... behind their names. A picture whose grid is not known (None) gets its maps and no overlay.
    """
    folder = run.sample_folder(sample)
    share_of_one = shares if len(pictures) == 1 else None  # of several pictures, no single one has this share
    for index, picture in enumerate(pictures):
        suffix = f"-{index}" if index else ""
        maps, grid = rollout.maps(index), rollout.layout.grids[index]
        save_maps(folder, maps, tokens, rollout.rows, grid, f"maps{suffix}.npz")
        if grid is None:
            continue

        def draw(cells, picture=picture, grid=grid, **size):
            return overlay(picture, cells, grid, look.alpha, look.power, look.blur, look.colourmap, **size)

        run.save(draw(maps.mean, at_least=look.at_least), folder.name, f"overlay_mean{suffix}.png")
        run.save(draw(maps.max, at_least=look.at_least), folder.name, f"overlay_max{suffix}.png")
        frames = [draw(cells, at_least=240, at_most=480) for cells in maps.per_token]
        run.save(strip(frames, tokens, share_of_one, title=NOTE), folder.name, f"overlay_tokens{suffix}.png")
    run.save(share_plot(tokens, shares), folder.name, "image_share.png")
    return folder
