"""Metrics of a map over image cells against a box: pure functions, vectorised over the axes before [row, col].

METRICS declares them. Each entry appears in measures.csv, heads.csv, summary.json, the page and the figures of the
spatial analyses (docs/extending.md).

`maps` are [..., row, col], finite and >= 0, of any scale: each is divided by its own sum first and is then the
distribution of the image attention over the cells. A box is given as cell weights [row, col], the share of each cell's
area inside it (`cell_weights`). Lengths are in patches, the side of a cell, for any image size; x counts columns to the
right and y rows down.

Every function returns float64 [...]. The result is NaN for a map without attention, and for an empty box (removed by
the model's crop) in functions that take a box. ValueError is raised for an invalid map and for a box on another grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from analysis.statistics import DIFFERENCE, NONNEGATIVE, REAL, SHARE, Bounds
from data.errors import InputError

CONTROLS = ("shuffled", "other", "centre", "uniform")
HIT = 0.5  # smallest share of a cell inside the box for a hit


def cell_weights(box: tuple[float, float, float, float], grid) -> np.ndarray:
    """Share of each cell's area inside a box, float64 [row, col], each in 0..1.

    box: (left, top, right, bottom) in pixels of the original image. grid: has `rows`, `cols` and `rect(row, col)`, a
    cell's rectangle in the same pixels; cropped pixels belong to none of the cells, so all weights of a box can be 0.
    Raises ValueError for a box with left > right or top > bottom.
    """
    left, top, right, bottom = box
    if not (left <= right and top <= bottom):
        raise InputError("box-order", f"the box {box} is not (left, top, right, bottom)")
    columns = np.array([grid.rect(0, col)[0::2] for col in range(grid.cols)])  # [col, left and right]
    rows = np.array([grid.rect(row, 0)[1::2] for row in range(grid.rows)])
    return np.outer(_overlap(rows, top, bottom), _overlap(columns, left, right))


def _overlap(spans: np.ndarray, low: float, high: float) -> np.ndarray:
    """Share of each span [span, 2] between low and high."""
    shared = np.minimum(spans[:, 1], high) - np.maximum(spans[:, 0], low)
    return np.maximum(shared, 0) / (spans[:, 1] - spans[:, 0])


def distance(maps, box) -> np.ndarray:
    """Distance of the map's centre of mass from the box's: 0 (same centre) to the grid's diagonal; patches."""
    maps, box = _checked(maps, box)
    return np.linalg.norm(centre(maps) - centre(box), axis=-1)


def topk_iou(maps, box) -> np.ndarray:
    """Intersection over union of the map's k highest cells and the box's k fullest, 0..1; 1 for a perfect map.

    k is the box's area in cells, rounded, at least 1. Cells tied for the last ranks share them evenly, so the result is
    independent of the order of cells: the uniform baseline scores about as random cells do.
    """
    maps, box = _checked(maps, box)
    k = max(1, round(float(box.sum())))
    return _undefined_where_empty(_iou(_highest(maps, k), _highest(box, k)), maps, box)


def soft_iou(maps, box) -> np.ndarray:
    """Sum of minima over sum of maxima of map and box, both divided by their sums: 0 (disjoint) to 1 (equal)."""
    maps, box = _checked(maps, box)
    return _iou(distribution(maps), distribution(box))


def wasserstein_x(maps, box) -> np.ndarray:
    """Wasserstein-1 distance of map and box, both summed over rows: 0 to columns - 1; patches."""
    maps, box = _checked(maps, box)
    return wasserstein(marginal(maps, "x"), marginal(box, "x"))


def wasserstein_y(maps, box) -> np.ndarray:
    """Wasserstein-1 distance of map and box, both summed over columns: 0 to rows - 1; patches."""
    maps, box = _checked(maps, box)
    return wasserstein(marginal(maps, "y"), marginal(box, "y"))


def wasserstein_relation(maps, axis: str, between: np.ndarray) -> np.ndarray:
    """Wasserstein-1 distance, along the axis of a relation, of the map from the relation's distribution; patches.

    `axis` and `between` [place] are the results of `relation_distribution`. The range is 0 to the grid's length along
    the axis - 1. Raises ValueError for a relation on another grid.
    """
    along = marginal(_checked(maps), axis)
    if along.shape[-1:] != np.shape(between):
        raise InputError(
            "relation-size", f"the map has {along.shape[-1]} places along {axis}, the relation {np.shape(between)}"
        )
    return wasserstein(along, between)


def mass(maps, box) -> np.ndarray:
    """Share of the image attention inside the box, 0..1; a partly covered cell counts by its covered share."""
    maps, box = _checked(maps, box)
    return _undefined_where_empty((distribution(maps) * box).sum((-2, -1)), maps, box)


def entity_background(maps, box, background) -> np.ndarray:
    """Attention per area in the box against that on the background: r / (1 + r) of their ratio r, 0..1.

    0.5 is equal attention per area, 1 zero attention on the background. `background` [row, col] holds the cell weights
    outside both shapes' boxes; a cell on a box's rim is partly background, so a perfect map of a box that is not whole
    cells scores just below 1. The bounded form has a mean; the ratio itself is s / (1 - s). NaN if both attentions are
    0, or for an empty background.
    """
    maps, box = _checked(maps, box)
    spread = distribution(maps)
    inside, outside = (
        (spread * region).sum((-2, -1)) / (region.sum() or np.nan) for region in (box, np.asarray(background))
    )
    return _ratio(inside, inside + outside)


def dispersion(maps) -> np.ndarray:
    """Root mean square distance of the map from its own centre of mass: 0 (one cell) to half the diagonal; patches."""
    maps = _checked(maps)
    spread, middle = distribution(maps), centre(maps)
    rows, cols = np.indices(maps.shape[-2:])
    squares = (rows - middle[..., 0, None, None]) ** 2 + (cols - middle[..., 1, None, None]) ** 2
    return np.sqrt((spread * squares).sum((-2, -1)))


def entropy(maps) -> np.ndarray:
    """Shannon entropy of the map, in bits: 0 (one cell) to log2 of the number of cells (uniform)."""
    spread = distribution(_checked(maps))
    logs = np.log2(spread, out=np.zeros_like(spread), where=spread > 0)
    return np.abs((spread * logs).sum((-2, -1)))  # abs: a sum of zeros is -0


def pointing(maps, box) -> np.ndarray:
    """Pointing game (Zhang et al., "Top-down neural attention by excitation backprop", ECCV 2016): 1 if the highest
    cell is on the box, else 0; for tied highest cells, the share of them on the box.

    A cell is on the box if at least half of it lies inside (for a smaller box: the largest share of any cell).
    """
    maps, box = _checked(maps, box)
    highest = maps == maps.max((-2, -1), keepdims=True)
    hits = (highest & (box >= min(HIT, box.max()))).sum((-2, -1)) / highest.sum((-2, -1))
    return _undefined_where_empty(hits, maps, box)


def relation_distribution(first, second, relation: str) -> tuple[str, np.ndarray]:
    """Distribution of a relation along its axis: (axis, float64 [place] of sum 1).

    The axis is "x" for left and right, "y" for above and below.

    It covers the gap between the two shapes along the axis: F_a - F_b of their cumulative distributions, where a is the
    shape that the relation puts nearer to 0. F counts half of its own cell, so the gap lies evenly between the two.
    first, second: cell weights of the shapes, "first is left of second". NaN for boxes that contradict the relation, or
    are empty.
    Raises ValueError for an unknown relation.
    """
    sides = {"left": ("x", first, second), "right": ("x", second, first)}
    sides |= {"above": ("y", first, second), "below": ("y", second, first)}
    if relation not in sides:
        raise InputError("unknown-relation", f"relation {relation!r} is unknown; known are {', '.join(sides)}")
    axis, *ordered = sides[relation]
    nearer, farther = (_middle_sums(marginal(_checked(weights), axis)) for weights in ordered)
    between = np.maximum(nearer - farther, 0)
    return axis, between / (between.sum() or np.nan)


def wasserstein(first, second) -> np.ndarray:
    """Wasserstein-1 distance of distributions [..., place] at unit spacing: the sum of the absolute differences of
    their cumulative sums, exact in one dimension (and, unlike scipy's, vectorised over heads)."""
    return np.abs(np.cumsum(np.asarray(first) - np.asarray(second), axis=-1)[..., :-1]).sum(-1)


def distribution(maps) -> np.ndarray:
    """Each map divided by its sum; NaN for a map without attention."""
    return _ratio(maps, np.broadcast_to(maps.sum((-2, -1), keepdims=True), maps.shape))


def marginal(maps, axis: str) -> np.ndarray:
    """The distribution along x (summed over rows) or y (summed over columns), [..., place]."""
    return distribution(maps).sum({"x": -2, "y": -1}[axis])


def centre(maps) -> np.ndarray:
    """Centre of mass as (row, col), float64 [..., 2]."""
    spread = distribution(maps)
    return np.stack([(spread * index).sum((-2, -1)) for index in np.indices(maps.shape[-2:])], -1)


def _middle_sums(spread: np.ndarray) -> np.ndarray:
    return np.cumsum(spread) - spread / 2


def _highest(maps: np.ndarray, k: int) -> np.ndarray:
    """Membership of each cell in its map's k highest: 1, 0, or for tied cells an equal share of the remaining ranks."""
    flat = maps.reshape(*maps.shape[:-2], -1)
    last = np.sort(flat, axis=-1)[..., -k, None]
    above, tied = flat > last, flat == last
    left = k - above.sum(-1, keepdims=True)
    return (above + tied * left / tied.sum(-1, keepdims=True)).reshape(maps.shape)


def _iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.minimum(first, second).sum((-2, -1)) / np.maximum(first, second).sum((-2, -1))


def _ratio(above, below) -> np.ndarray:
    """above / below, NaN where below is 0 or NaN."""
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=np.asarray(below) > 0)


def _undefined_where_empty(values: np.ndarray, maps: np.ndarray, box: np.ndarray) -> np.ndarray:
    return np.where(maps.any((-2, -1)) & box.any(), values, np.nan)


def _checked(maps, box=None):
    """Maps, or maps and a box, as float64 arrays on one grid."""
    maps = np.asarray(maps, np.float64)
    if maps.ndim < 2 or not np.isfinite(maps).all() or (maps < 0).any():
        raise InputError(
            "map-values", f"maps of shape {maps.shape} must be [..., row, col], finite and at least 0 everywhere"
        )
    if box is None:
        return maps
    box = np.asarray(box, np.float64)
    if box.shape != maps.shape[-2:]:
        raise InputError(
            "grids-differ", f"the maps have {maps.shape[-2:]} cells and the box {box.shape}: they are of two grids"
        )
    return maps, box


@dataclass(frozen=True, eq=False)
class Target:
    """Reference for the maps of one query, all [row, col]: cell weights of the `box`, of the `other` shape's box (or
    None) and of the `background`; bool `visible`, the cells that count; `between`, the arguments `axis` and `between`
    of `wasserstein_relation` (None except for a relation)."""

    box: np.ndarray
    other: np.ndarray | None
    background: np.ndarray
    visible: np.ndarray
    between: tuple[str, np.ndarray] | None = None


class Metric(NamedTuple):
    """Metric of the spatial analyses.

    label, unit: name and unit in figures. better: 1 if values above those of a control are better, -1 if those below
    are, 0 for neither. bounds: range of values. measure: values [...] of maps [..., row, col], float64, against a
    target; None if undefined for the target. The maps sum to the share of a query's attention on the cells that count.
    controls: controls under which the metric can differ.
    """

    label: str
    unit: str
    better: int
    bounds: Bounds
    measure: Callable[[np.ndarray, Target], np.ndarray | None]
    controls: tuple[str, ...] = CONTROLS

    @property
    def difference(self) -> Bounds:
        """Range of the difference of two values."""
        return DIFFERENCE if self.bounds == SHARE else REAL


def _relation(maps: np.ndarray, target: Target) -> np.ndarray | None:
    return None if target.between is None else wasserstein_relation(maps, *target.between)


WITHOUT_BOX = ("shuffled", "centre", "uniform")
METRICS = {
    "mass": Metric("mass in the box", "share", 1, SHARE, lambda maps, target: mass(maps, target.box)),
    "entity_background": Metric(
        "box against background", "r / (1 + r)", 1, SHARE,
        lambda maps, target: entity_background(maps, target.box, target.background),
    ),
    "pointing": Metric("pointing game", "hits", 1, SHARE, lambda maps, target: pointing(maps, target.box)),
    "topk_iou": Metric("top-k IoU", "", 1, SHARE, lambda maps, target: topk_iou(maps, target.box)),
    "soft_iou": Metric("soft IoU", "", 1, SHARE, lambda maps, target: soft_iou(maps, target.box)),
    "distance": Metric(
        "distance of centres", "patches", -1, NONNEGATIVE, lambda maps, target: distance(maps, target.box)
    ),
    "wasserstein_x": Metric(
        "Wasserstein, x", "patches", -1, NONNEGATIVE, lambda maps, target: wasserstein_x(maps, target.box)
    ),
    "wasserstein_y": Metric(
        "Wasserstein, y", "patches", -1, NONNEGATIVE, lambda maps, target: wasserstein_y(maps, target.box)
    ),
    "wasserstein_relation": Metric("Wasserstein, relation", "patches", -1, NONNEGATIVE, _relation),
    "dispersion": Metric("dispersion", "patches", 0, NONNEGATIVE, lambda maps, target: dispersion(maps), WITHOUT_BOX),
    "entropy": Metric("entropy", "bits", 0, NONNEGATIVE, lambda maps, target: entropy(maps), WITHOUT_BOX),
    "image_attention": Metric(
        "attention on the image", "share", 0, SHARE, lambda maps, target: maps.sum((-2, -1)), ("shuffled",)
    ),
}  # fmt: skip
