"""Gaze masks over the image cells, as interventions on attention.

    model.generate(**inputs, steering=Gaze(Gaussian(layers=(1, 2)), scanpaths))

Three methods, published with code for LLaVA-1.5-7B only. Each computes a mask G [row, col] in 0..1 from one scanpath:

    gaussian      G = sum of Gaussians around the gaze points, divided by its maximum
    non-gaussian  G = 1 in the windows around the gaze points, 0 elsewhere
    salient-head  G = connected decay: 1 in the windows, falling off with the distance to the nearest one

The first two multiply the keys of all queries by G: softmax(z) * g, renormalised, is softmax(z + log g), an additive
bias. The third edits single softmax rows of the heads most similar to the gaze.

The module holds settings (frozen dataclasses) and pure functions over tensors. A gaze point is a cell (x, y): x counts
columns to the right, y rows down, both from 0. Layers and heads count from 0.

Sizes. A margin is in cells of any grid: margin 1 opens 3 x 3 cells, 2 opens 5 x 5, clipped at the border. A sigma is
in cells of the published 24 x 24 grid; on rows x cols cells it becomes sigma * sqrt(rows * cols) / 24 cells, so that it
covers the same share of the image's area. `grid=None` does not scale it. (At 8 x 8 an unscaled sigma of 4 would make
the Gaussian nearly flat.)

Weights. A gaze point may carry a weight > 0, such as a fixation duration; only ratios matter. Gaussian: the
Gaussians are summed with these weights. Connected decay: each point's decay is scaled by weight / largest weight, and a
cell takes the maximum; with equal weights that is the decay to the nearest window. Windows: no effect.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch

from data.errors import InputError
from models.interventions import KeyBias, LayerEdit, PromptBatch, RowEdit

PUBLISHED_GRID = 24  # cells per side, LLaVA-1.5
PUBLISHED_LAYERS = (19, 27, 32)  # salient heads: first, last + 1, number of layers
MaskType = Literal["gaussian", "non-gaussian", "salient-head"]
KEYS = ("type", "margin", "target-layer")
MIN_IMAGE_MASS = 1e-9  # of a head's row; below it, rounding dominates the similarity with the gaze
SIZES = (0.01, 1e6)  # of a sigma and of a grid, in cells; outside them a mask's formula exceeds the range of float64


class GazePoints(NamedTuple):
    """One checked scanpath: cells int64 [point, 2] as (x, y), weights float64 [point], largest 1."""

    cells: torch.Tensor
    weights: torch.Tensor


def check_scanpath(points, rows: int, cols: int, sample: int = 0) -> GazePoints | None:
    """The scanpath of one sample, checked against its grid; None if it is empty (or None), for a sample without a mask.

    points: sequence, array or tensor of (x, y) or (x, y, weight) in whole cells. `sample` is its name in messages.
    Raises ValueError for a point that is not a pair of finite numbers, lies between cells or outside the grid, and for
    a weight that is not finite and > 0.
    """
    points = points.tolist() if hasattr(points, "tolist") else [] if points is None else points
    if not isinstance(points, Iterable):
        raise InputError("scanpath-form", f"scanpath of sample {sample} is {points!r}; give a list of (x, y)")
    checked: list[list[float]] = []
    for index, point in enumerate(points):
        where = f"scanpath of sample {sample}, gaze point {index}"
        try:
            numbers = [float(number + 0) for number in point]  # + 0 raises TypeError for "3"
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(
                "point-form", f"{where} is {point!r}, not (x, y); give one list of (x, y) per sample"
            ) from error
        if len(numbers) not in (2, 3) or (checked and len(numbers) != len(checked[0])):
            raise InputError(
                "point-length", f"{where} has {len(numbers)} numbers; give (x, y), or (x, y, weight) for all"
            )
        _check_point(where, numbers, rows, cols)
        checked.append(numbers)
    if not checked:
        return None
    table = torch.tensor(checked, dtype=torch.float64)
    weights = table[:, 2] if table.shape[1] == 3 else torch.ones(len(table), dtype=torch.float64)
    return GazePoints(table[:, :2].long(), weights / weights.max())


def _check_point(where: str, numbers: list[float], rows: int, cols: int) -> None:
    x, y = numbers[:2]
    if not all(map(math.isfinite, numbers)):
        raise InputError(
            "point-not-finite", f"{where} holds a number that is not finite: {tuple(numbers)}; drop it or repair it"
        )
    if not (x.is_integer() and y.is_integer()):
        raise InputError(
            "point-between-cells",
            f"{where} is ({x:g}, {y:g}), between cells; give whole columns and rows, counted from 0",
        )
    if not (0 <= x < cols and 0 <= y < rows):
        raise InputError(
            "point-outside",
            f"{where} is ({x:g}, {y:g}), outside the grid of {cols} columns and {rows} rows; "
            f"x is 0 to {cols - 1} and y is 0 to {rows - 1}",
        )
    if len(numbers) == 3 and numbers[2] <= 0:
        raise InputError("point-weight", f"{where} has weight {numbers[2]:g}; a weight is > 0")


def _axis_distances(gaze: GazePoints, rows: int, cols: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances in cells from every point to every column and row: float64 [point, col], float64 [point, row]."""
    x, y = gaze.cells.double().unbind(1)
    return (torch.arange(cols) - x[:, None]).abs(), (torch.arange(rows) - y[:, None]).abs()


def _window_distances(gaze: GazePoints, rows: int, cols: int, margin: int) -> torch.Tensor:
    """Chebyshev distance in cells from every cell to every point's window: float64 [point, row, col], 0 inside."""
    across, down = _axis_distances(gaze, rows, cols)
    return (torch.maximum(down[:, :, None], across[:, None, :]) - margin).clamp_min(0)


def windows(gaze: GazePoints, rows: int, cols: int, margin: int = 1) -> torch.Tensor:
    """Non-gaussian key multiplier: float32 [row, col], 1 in the (2 margin + 1)^2 cells around each point, else 0."""
    return (_window_distances(gaze, rows, cols, margin) == 0).any(0).float()


def connected_decay(gaze: GazePoints, rows: int, cols: int, margin: int = 1, sigma: float = 1.5) -> torch.Tensor:
    """exp(-d^2 / 2 sigma^2), d the Chebyshev distance to the nearest window; 0 for d > ceil(3 sigma).

    Float32 [row, col] in 0..1. `sigma` in cells of this grid. For unequal weights see the module's docstring.
    """
    distance = _window_distances(gaze, rows, cols, margin)
    decay = torch.exp(-(distance**2) / (2 * sigma**2)) * (distance <= math.ceil(3 * sigma))
    return (decay * gaze.weights[:, None, None]).amax(0).float()


def gaussian(gaze: GazePoints, rows: int, cols: int, sigma: float = 4.0) -> torch.Tensor:
    """Gaussian key multiplier: sum over points g of exp(-|p - g|^2 / 2 sigma^2), divided by its maximum.

    Float32 [row, col] in 0..1. `sigma` in cells of this grid.
    """
    across, down = (torch.exp(-(distance**2) / (2 * sigma**2)) for distance in _axis_distances(gaze, rows, cols))
    total = (down * gaze.weights[:, None]).T @ across
    return (total / total.max()).float()


def over_keys(mask: torch.Tensor, image: torch.Tensor, length: int) -> torch.Tensor:
    """The multiplier of every key [key]: `mask` [row, col] at the image positions [cell] (raster order), else 1."""
    multiplier = torch.ones(length, dtype=mask.dtype, device=mask.device)
    multiplier[image] = mask.flatten()
    return multiplier


def multiply_keys(weights: torch.Tensor, multiplier: torch.Tensor) -> torch.Tensor:
    """Softmax rows [..., key] times a multiplier [key], each row renormalised to 1; zero rows are unchanged."""
    kept = weights * multiplier
    total = kept.sum(-1, keepdim=True)
    positive = total > 0
    return torch.where(positive, kept / torch.where(positive, total, 1), weights)  # a gradient of 0 / 0 is NaN


def gaze_similarity(weights: torch.Tensor, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """sum(A_h,image * G) / max(sum(A_h,image), 1e-9), [..., head, row] in 0..1; 0 for a head without image mass.

    The published code has the same lower bound. A head with an image mass of 1e-17 does not attend to the image, but
    without the bound it could have the largest similarity of its layer.

    weights: softmax rows [..., head, row, key], float32; image: positions [cell]; mask: G [row, col].
    """
    on_image = weights[..., image]
    return (on_image * mask.flatten()).sum(-1) / on_image.sum(-1).clamp_min(MIN_IMAGE_MASS)


def salient_heads(
    weights: torch.Tensor, image: torch.Tensor, mask: torch.Tensor, tau: float = 0.5232, heads: int = 8
) -> torch.Tensor:
    """Mask of the heads of a layer that follow the gaze: bool [..., head, row], shapes as in `gaze_similarity`.

    At most `heads` heads of largest similarity (the first of equal ones) whose similarity, divided by the layer's
    largest in that row, is above `tau`. All False if no head has attention mass inside the mask.
    """
    similarity = gaze_similarity(weights, image, mask)
    relative = similarity / (similarity.amax(-2, keepdim=True) + MIN_IMAGE_MASS)  # 0 if all are close to 0
    rank = relative.argsort(dim=-2, descending=True, stable=True).argsort(dim=-2)
    return (relative > tau) & (rank < heads)


def edit_salient_heads(
    weights: torch.Tensor, image: torch.Tensor, mask: torch.Tensor, tau: float = 0.5232, heads: int = 8
) -> torch.Tensor:
    """Rows [..., head, row, key] whose image weights are multiplied by G in the salient heads, then renormalised.

    All other rows are bit-identical. Arguments as in `salient_heads`.
    """
    salient = salient_heads(weights, image, mask, tau, heads)
    edited = multiply_keys(weights, over_keys(mask, image, weights.shape[-1]))
    return torch.where(salient[..., None], edited, weights)


def in_cells(sigma: float, rows: int, cols: int, grid: float | None = PUBLISHED_GRID) -> float:
    """Convert a sigma from cells of a grid x grid grid to cells of this one (None: unchanged)."""
    return sigma if grid is None else sigma * math.sqrt(rows * cols) / grid


class PlacedMask(NamedTuple):
    """G of one sample, float32 [row, col], and the positions of its cells, int64 [cell] in raster order, counted from
    the sample's first token."""

    mask: torch.Tensor
    image: torch.Tensor


@dataclass(frozen=True)
class GazeMask(ABC):
    """Settings of a gaze method: the layers that it edits, and the mask of a scanpath."""

    layers: tuple[int, ...]

    @property
    def neutral(self) -> bool:
        """True if these settings change no model, for any gaze."""
        return not self.layers

    def mask(self, gaze: GazePoints | None, rows: int, cols: int) -> torch.Tensor | None:
        """G, float32 [row, col] in 0..1; None for an empty scanpath, neutral settings, or a mask of ones."""
        if gaze is None or self.neutral:
            return None
        mask = self.draw(gaze, rows, cols)
        return None if bool((mask == 1).all()) else mask

    @abstractmethod
    def draw(self, gaze: GazePoints, rows: int, cols: int) -> torch.Tensor:
        """G as the method defines it, float32 [row, col]."""

    @abstractmethod
    def edit_layer(self, placed: Mapping[int, PlacedMask], prompt: PromptBatch) -> LayerEdit:
        """Edit of a layer by the masks of some samples; the other samples are unchanged."""


@dataclass(frozen=True)
class KeyMask(GazeMask):
    """A mask that multiplies the image keys of all queries."""

    def edit_layer(self, placed: Mapping[int, PlacedMask], prompt: PromptBatch) -> LayerEdit:
        starts = torch.tensor(prompt.starts, device=prompt.images[0].device)
        multipliers = torch.ones(len(starts), prompt.length, device=starts.device)
        for sample, (mask, image) in placed.items():
            multipliers[sample] = over_keys(mask, image + prompt.starts[sample], prompt.length)
        return prompt.edit_layer(bias=KeyBias.from_multipliers(multipliers, starts))


@dataclass(frozen=True)
class Gaussian(KeyMask):
    """Multiply image keys by Gaussians around the gaze, in all rows of `layers`. `sigma`: cells at `grid`."""

    sigma: float = 4.0
    grid: float | None = PUBLISHED_GRID

    def __post_init__(self) -> None:
        _check_sizes(sigma=self.sigma, grid=self.grid)

    def draw(self, gaze: GazePoints, rows: int, cols: int) -> torch.Tensor:
        return gaussian(gaze, rows, cols, in_cells(self.sigma, rows, cols, self.grid))


@dataclass(frozen=True)
class NonGaussian(KeyMask):
    """Hide image keys outside the windows around the gaze, in all rows of `layers`. `margin`: cells."""

    margin: int = 1

    def __post_init__(self) -> None:
        _check_margin(self.margin)

    def draw(self, gaze: GazePoints, rows: int, cols: int) -> torch.Tensor:
        return windows(gaze, rows, cols, self.margin)


@dataclass(frozen=True)
class SalientHead(GazeMask):
    """Strengthen the heads most similar to the gaze, in the last prompt row and every decode row.

    At most `heads` heads per layer and row with relative similarity above `tau` (see `salient_heads`); the mask is the
    connected decay with `margin` in cells and `sigma` in cells at `grid`.
    """

    heads: int = 8
    tau: float = 0.5232
    margin: int = 1
    sigma: float = 1.5
    grid: float | None = PUBLISHED_GRID

    def __post_init__(self) -> None:
        _check_margin(self.margin)
        _check_sizes(sigma=self.sigma, grid=self.grid)
        if self.heads < 0:
            raise InputError("heads", f"heads is {self.heads}; at most that many heads are edited, so give 0 or more")
        if not self.tau >= 0:
            raise InputError("tau", f"tau is {self.tau}; it is compared with a similarity of 0 to 1, so give 0 or more")

    @property
    def neutral(self) -> bool:
        """True if these settings change no model: without layers or heads, or with a threshold above any similarity."""
        return not self.layers or self.heads == 0 or self.tau >= 1

    def draw(self, gaze: GazePoints, rows: int, cols: int) -> torch.Tensor:
        return connected_decay(gaze, rows, cols, self.margin, in_cells(self.sigma, rows, cols, self.grid))

    def edit_layer(self, placed: Mapping[int, PlacedMask], prompt: PromptBatch) -> LayerEdit:
        edits = {
            sample: RowEdit(prompt.length - 1 - prompt.starts[sample], partial(self.edit, image=image, mask=mask))
            for sample, (mask, image) in placed.items()
        }
        return prompt.edit_layer(row_edits=edits)

    def edit(self, weights: torch.Tensor, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Softmax rows [..., head, row, key] of one layer, edited; see `edit_salient_heads`."""
        image, mask = image.to(weights.device), mask.to(weights.device)  # a model may span several devices
        return edit_salient_heads(weights, image, mask, self.tau, self.heads)


@dataclass(frozen=True)
class Gaze:
    """A gaze method with one scanpath per sample, as an intervention.

    mask: settings (`Gaussian`, `NonGaussian`, `SalientHead`) or a dictionary (`parse_mask_type`). scanpaths: per sample
    a list of (x, y) or (x, y, weight) cells of its image (`check_scanpath`); an empty scanpath leaves its sample
    unchanged. A sample with gaze has exactly one image.
    """

    mask: GazeMask | Mapping
    scanpaths: Sequence

    @classmethod
    def from_arguments(cls, mask_type, scanpaths, steering) -> Gaze:
        """Gaze from the arguments of `generate(mask_type=, scanpaths=)`. Raises ValueError if they do not match."""
        if steering is not None:
            raise InputError(
                "mask-type-and-steering",
                "mask_type and steering were both given; steer by one of them in each generate call",
            )
        if mask_type is None or scanpaths is None:
            raise InputError(
                "mask-type-without-scanpaths",
                "mask_type and scanpaths belong together; give both, or neither for the plain model",
            )
        return cls(mask_type, scanpaths)

    def plan(self, prompt: PromptBatch) -> dict[int, LayerEdit]:
        """The same edit for each layer of the mask's settings.

        Raises ValueError as `parse_mask_type` and `check_scanpath` do, and for a sample with gaze without one image.
        """
        mask = parse_mask_type(self.mask, prompt.layers, prompt.heads)
        placed = self._place(mask, prompt)
        return dict.fromkeys(mask.layers, mask.edit_layer(placed, prompt)) if placed else {}

    def _place(self, settings: GazeMask, prompt: PromptBatch) -> dict[int, PlacedMask]:
        """Masks by sample; samples without gaze, or with a mask of ones, have none."""
        scanpaths, samples = self.scanpaths, len(prompt.starts)
        scanpaths = scanpaths.tolist() if hasattr(scanpaths, "tolist") else scanpaths
        if not isinstance(scanpaths, list | tuple) or len(scanpaths) != samples:
            given = f"{len(scanpaths)}" if isinstance(scanpaths, list | tuple) else f"{scanpaths!r}"
            raise InputError(
                "scanpaths-per-sample",
                f"scanpaths of {samples} samples: {given}; give one list of (x, y) each, [] for no gaze",
            )
        gazed = [sample for sample, points in enumerate(scanpaths) if not is_empty(points)]
        grids = prompt.grids() if gazed else []
        placed = {}
        for sample in gazed:
            if len(grids[sample]) != 1:
                raise InputError(
                    "gaze-without-one-image",
                    f"sample {sample} has gaze and {len(grids[sample])} images; a scanpath belongs to exactly one, so "
                    "give an empty one ([]) or a prompt with one image",
                )
            rows, cols = grids[sample][0]
            mask = settings.mask(check_scanpath(scanpaths[sample], rows, cols, sample), rows, cols)
            if mask is not None:
                image = prompt.images[sample]
                placed[sample] = PlacedMask(mask.to(image.device), image)
        return placed


def is_empty(points) -> bool:
    """True for a scanpath without gaze; `check_scanpath` raises for other inputs."""
    return points is None or (hasattr(points, "__len__") and len(points) == 0)


def parse_mask_type(mask_type: Mapping | GazeMask, layers: int, heads: int) -> GazeMask:
    """Settings from {"type": ..., "margin": int, "target-layer": None | int | [int]} for a model of that size.

    For settings (another sigma, tau or number of heads) only the layers are checked.

    `margin` defaults to 1 and has no effect for "gaussian". "target-layer" None (or absent) is every layer; for
    "salient-head" the published 19..26 of 32 in proportion, with at most a quarter of the heads (8 of 32).
    Raises ValueError for an unknown type or key, a margin < 0 and a layer that the model does not have.
    """
    if isinstance(mask_type, GazeMask):
        return replace(mask_type, layers=check_layers(mask_type.layers, layers))
    if not isinstance(mask_type, Mapping):
        raise InputError(
            "mask-type-form",
            f'mask_type is {mask_type!r}; give a dictionary such as {{"type": "gaussian", "margin": 1}}',
        )
    if unknown := [key for key in mask_type if key not in KEYS]:
        raise InputError(
            "mask-type-key", f"mask_type holds {unknown[0]!r}, which is unknown; its keys are {', '.join(KEYS)}"
        )
    kind, margin, target = mask_type.get("type"), mask_type.get("margin", 1), mask_type.get("target-layer")
    if kind not in get_args(MaskType):
        raise InputError(
            "unknown-mask-type", f"mask type {kind!r} is unknown; choose gaussian, non-gaussian or salient-head"
        )
    _check_margin(margin)
    chosen = tuple(range(layers)) if target is None else check_layers(target, layers)
    if kind == "gaussian":
        return Gaussian(chosen)
    if kind == "non-gaussian":
        return NonGaussian(chosen, margin)
    chosen = in_proportion(PUBLISHED_LAYERS, layers) if target is None else chosen
    return SalientHead(chosen, max(1, heads // 4), margin=margin)


@dataclass(frozen=True)
class MaskSettings:
    """Mask types to compare, and the settings of each."""

    mask_types: tuple[MaskType, ...] = get_args(MaskType)
    """Mask types (gaze methods); one answer per type."""
    target_layer: tuple[int, ...] = ()
    """Layers to steer, 0-based (default: all; for salient-head the published 19..26 of 32 in proportion)."""
    tau: float = 0.5232
    """salient-head: threshold of a head's similarity with the gaze, relative to the layer's largest."""
    salient_heads: int | None = None
    """salient-head: maximum number of heads per layer (default: a quarter of them)."""
    sigma: float = 1.5
    """salient-head: sigma of the decay around the gaze, in cells of a 24 x 24 grid (other grids in proportion)."""

    def __post_init__(self) -> None:
        if not self.mask_types:
            raise ValueError("--mask-types is empty; give gaussian, non-gaussian or salient-head")
        if lowest := [layer for layer in self.target_layer if layer < 0]:
            raise ValueError(f"--target-layer {lowest[0]} does not exist; layers count from 0")
        self.masks(margin=1, layers=1 + max(self.target_layer, default=0), heads=1)

    def masks(self, margin: int, layers: int, heads: int) -> dict[str, GazeMask]:
        """Mask of each type for a model of that size; `margin` as in `parse_mask_type`."""
        target = list(self.target_layer) or None
        by_type = {
            kind: parse_mask_type({"type": kind, "margin": margin, "target-layer": target}, layers, heads)
            for kind in self.mask_types
        }
        if isinstance(salient := by_type.get("salient-head"), SalientHead):
            at_most = salient.heads if self.salient_heads is None else self.salient_heads
            by_type["salient-head"] = replace(salient, tau=self.tau, heads=at_most, sigma=self.sigma)
        return by_type


def in_proportion(published: tuple[int, int, int], layers: int) -> tuple[int, ...]:
    """Layers of a model with `layers` in proportion to published ones, (first, last + 1, number of layers): the bounds
    scaled and rounded, at least one layer."""
    first, stop, depth = published
    first = min(round(first * layers / depth), layers - 1)
    return tuple(range(first, max(round(stop * layers / depth), first + 1)))


def check_layers(target, layers: int, name: str = "target-layer") -> tuple[int, ...]:
    """Layer numbers, ascending and unique, of an int or several. Raises ValueError for one outside the model; `name`
    is that of the setting in the message."""
    try:
        single = isinstance(target, int) or not hasattr(target, "__iter__")
        chosen = sorted({_whole(layer) for layer in ([target] if single else target)})
    except TypeError as error:
        raise InputError(
            "target-layer-form", f"{name} is {target!r}; give None, a layer number or a list of them"
        ) from error
    if outside := [layer for layer in chosen if not 0 <= layer < layers]:
        raise InputError("no-such-layer", f"{name} {outside[0]} does not exist; the model has layers 0 to {layers - 1}")
    return tuple(chosen)


def _whole(number) -> int:
    """An int, of Python or numpy. Raises TypeError for other types, including bool."""
    if isinstance(number, bool):
        raise TypeError("expected an integer, got a bool")
    return operator.index(number)


def _check_margin(margin) -> None:
    try:
        wrong = _whole(margin) < 0
    except TypeError:
        wrong = True
    if wrong:
        raise InputError(
            "margin", f"margin is {margin!r}; give a whole number of cells, 0 or more (1 opens 3 x 3 cells)"
        )


def _check_sizes(**settings: float | None) -> None:
    """Raise ValueError for a setting that is neither None nor a number within SIZES."""
    least, most = SIZES
    for name, value in settings.items():
        if value is not None and not least <= value <= most:
            raise InputError("sigma", f"{name} is {value}; give a number of cells from {least:g} to {most:g}")
