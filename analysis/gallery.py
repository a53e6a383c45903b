"""The pictures and raw maps of one answer, in the sample's own folder, and its row of the table.

The flags of a rollout job: how an answer is made, rolled out and drawn, and where the results go.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
from PIL import Image
from tqdm import tqdm

from analysis.overlay import COLOURMAP, overlay, strip
from analysis.plots import share_plot
from analysis.report_views import Way, view, way
from analysis.rollout import Rollout, image_share, rollout_through_tower, tower_look
from analysis.runs import RunFolder, save_arrays, save_maps

COLUMNS = (
    "image", "prompt", "answer", "gold", "prompt_tokens", "image_tokens", "tokens", "probability", "image_share",
    "folder",
)  # fmt: skip
NOTE = "each overlay is scaled to its own maximum"


@dataclass(frozen=True)
class Look:
    """How a map is drawn; see `analysis.overlay.overlay`. `at_least`: pixels of the longer side of a saved picture."""

    alpha: float = 0.7
    power: float = 1.5
    blur: float = 0.5
    colourmap: str = COLOURMAP
    at_least: int = 480


def report_answer(
    run: RunFolder, sample, pictures: list[Image.Image], said, rollout: Rollout, look: Look, page_mb: float = 0.0
) -> dict:
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
    folder = save_answer(run, sample.name, pictures, tokens, rollout, shares, look, **further)
    if handed_on is not None:
        save_tower(run, folder, pictures, tokens, handed_on, said.tower, look)
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
    look: Look,
    **further: np.ndarray,
) -> Path:
    """Writes overlay_mean, overlay_max, overlay_tokens and image_share (PNG) and maps.npz; returns the folder.

    `tokens` and `shares` [token] have one entry per map of `rollout`. Further pictures of the prompt get the same files
    with `-1`, `-2`, ... behind their names; `further` arrays go into the first one's maps. A picture whose grid is not
    known (None) gets its maps and no overlay.
    """
    folder = run.sample_folder(sample)
    share_of_one = shares if len(pictures) == 1 else None  # of several pictures, no single one has this share
    save_overlays(run, folder, pictures, tokens, rollout, look, shares=share_of_one, **further)
    run.save(share_plot(tokens, shares), folder.name, "image_share.png")
    return folder


def save_tower(run: RunFolder, folder: Path, pictures, tokens: list[str], rollout: Rollout, tower, look: Look) -> None:
    """Writes overlays and maps of a rollout that the vision tower handed on, under its own names with `-tower`.

    overlay_tower.png and tower.npz (`look` [row, col]) hold where the tower looked on average. `tower` is its trace.
    """
    save_overlays(run, folder, pictures, tokens, rollout, look, kind="-tower")
    for index, picture in enumerate(pictures):
        seen, suffix = tower_look(tower, index), f"-{index}" if index else ""
        save_arrays(folder / f"tower{suffix}.npz", look=seen)
        drawn = draw(picture, seen, rollout.layout.grids[index], look, at_least=look.at_least)
        run.save(drawn, folder.name, f"overlay_tower{suffix}.png")


def save_overlays(run, folder: Path, pictures, tokens, rollout: Rollout, look: Look, shares=None, kind="", **further):
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
            drawn = draw(picture, cells, grid, look, at_least=look.at_least)
            run.save(drawn, folder.name, f"overlay_{name}{suffix}.png")
        frames = [draw(picture, cells, grid, look, at_least=240, at_most=480) for cells in maps.per_token]
        run.save(strip(frames, tokens, shares, title=NOTE), folder.name, f"overlay_tokens{suffix}.png")


def draw(picture: Image.Image, cells, grid, look: Look, **size) -> Image.Image:
    """One map over the picture; `size` as in `analysis.overlay.overlay`."""
    return overlay(picture, cells, grid, look.alpha, look.power, look.blur, look.colourmap, **size)


@dataclass(frozen=True)
class RolloutFlags:
    """A script's Config inherits these, calls `check` before it loads a model, and hands on `answering` to the
    generation, `rolling` to `analysis.rollout.rollout` and `look` to `analysis.gallery`."""

    max_new_tokens: int = 16
    """Longest answer, in tokens."""
    repetition_penalty: float = 1.0
    """Penalty on tokens that the prompt or the answer holds already; 1 is none, whatever the checkpoint asks for."""
    rows: Literal["predicting", "query"] = "predicting"
    """Map of a token: the row that predicted it, or the row in which it is read as the query."""
    residual: float = 0.5
    """Weight w of the identity in each layer's (1 - w) A + w I."""
    drop_first: bool = False
    """Leave out attention to the first token, where many models park what they do not need."""
    lowest: float = 0.0
    """Where the product of layers ends, as a share of the depth: 0 composes all, 0.5 the upper half. In a causal
    decoder the lower layers carry every map towards the first positions."""
    offload: bool = False
    """Keep recorded queries on the CPU, for long prompts on a small GPU."""
    alpha: float = 0.7
    """Opacity of the overlay where attention is highest."""
    power: float = 1.5
    """Exponent on the map before it is coloured; higher shows only the peaks."""
    blur: float = 0.5
    """Standard deviation of the overlay's blur, in cells."""
    colourmap: str = COLOURMAP
    """Any colour map of matplotlib, such as jet for comparison with papers."""
    page_mb: float = 5.0
    """How large report.html may grow for the sake of single heads; where that is not enough, some layers have none."""
    out_dir: str | None = None
    """New or empty folder for the results (default: results/<script>/<model>-<date>)."""

    @property
    def answering(self) -> dict:
        """Options of `models.generation.answers`."""
        names = ("max_new_tokens", "repetition_penalty", "offload")
        return {name: getattr(self, name) for name in names}

    @property
    def rolling(self) -> dict:
        """Options of `analysis.rollout.rollout`."""
        return {"rows": self.rows, "residual": self.residual, "drop_first": self.drop_first, "lowest": self.lowest}

    @property
    def look(self) -> Look:
        """How `analysis.gallery` draws."""
        return Look(self.alpha, self.power, self.blur, self.colourmap)

    def check(self) -> None:
        """Raises ValueError for flags that cannot work."""
        if self.max_new_tokens < 1:
            raise ValueError(f"--max-new-tokens {self.max_new_tokens} must be at least 1")
        check_penalty(self.repetition_penalty)
        if not 0 <= self.residual < 1:
            raise ValueError(f"--residual {self.residual} is out of range; give 0 <= w < 1")
        if not 0 <= self.lowest < 1:
            raise ValueError(f"--lowest {self.lowest} is out of range; give a share of the depth, 0 <= share < 1")
        if not 0 <= self.alpha <= 1 or self.power <= 0 or self.blur < 0:
            raise ValueError("give --alpha within 0..1, --power above 0 and --blur of at least 0")
        if not self.page_mb >= 0:
            raise ValueError(f"--page-mb {self.page_mb} is not a size; give 0 or more")
        if self.colourmap not in matplotlib.colormaps:
            raise ValueError(f"--colourmap {self.colourmap!r} is unknown to matplotlib; try turbo, viridis or jet")


def check_penalty(repetition_penalty: float) -> None:
    """Raise ValueError for a repetition penalty that is not a finite number above 0."""
    if not 0 < repetition_penalty < float("inf"):
        raise ValueError(f"--repetition-penalty {repetition_penalty} is no penalty; give a number above 0 (1: none)")
