"""Flags of samples and of gaze that several scripts share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from data.folders import LinkFlags


@dataclass(frozen=True)
class SampleFlags(LinkFlags):
    """Flags that a script's Config inherits; `data.samples.collect` checks them."""

    image: tuple[str, ...] = ()
    """One picture or several."""
    data_root: str | None = None
    """Instead of --image: a folder of pictures, or one that holds spatial_twoshapes/ (default without --image: data,
    where it holds that; else images made here, once, in data/generated)."""
    prompt: str | None = None
    """What to ask. A two-shapes set brings its own questions; given here, it replaces them."""
    limit: int = 8
    """Use at most so many samples of --data-root; 0 uses all."""
    seed: int = 0
    """Seed of images made here."""


@dataclass(frozen=True)
class GazeFlags:
    """How scanpaths are read; `reading` goes to `data.scanpaths.read`, `mapping` to `data.gaze_samples.locate`."""

    units: Literal["pixels", "fractions", "patches"] | None = None
    """Units of scanpath files that do not state their own."""
    display: tuple[int, int] | None = None
    """Width and height, in pixels, of the display that showed the pictures letterboxed (scaled to fit, centred), for
    scanpaths in its pixels. COCO-Search18: 1680 1050."""
    viewer: str | None = None
    """Read the scanpaths of this viewer alone (default: of each picture the first scanpath)."""
    task: str | None = None
    """Read the scanpaths of this task alone, such as the category that the viewers searched for."""
    condition: str | None = None
    """Read the scanpaths of this condition alone, such as present."""
    trajectory: bool = False
    """Also count the cells on the line between consecutive fixations."""
    by_duration: bool = False
    """Weigh fixations by how long they lasted."""
    margin: int = 1
    """Cells that a fixation opens on each side of its own: 1 opens 3 x 3."""

    @property
    def reading(self) -> dict:
        """Keyword arguments of `data.scanpaths.read`."""
        return {name: getattr(self, name) for name in ("units", "display", "viewer", "task", "condition")}

    @property
    def mapping(self) -> dict[str, bool]:
        """Keyword arguments of `data.scanpaths.to_cells`: how fixations become points."""
        return {"trajectory": self.trajectory, "by_duration": self.by_duration}
