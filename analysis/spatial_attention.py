"""Where words and cells look, held against the boxes of two shapes: the maps, what they are held against, controls.

A *query* is whose attention it is: the words of the caption's first shape, of its relation and of its second shape
(text to image), or a seed cell, at each shape's centre and on the background (image to image). Its map is [row, col]
over the image's cells. What it is held against is its *target*:

    query               box                 the other box
    first, seed_first   the first shape's   the second shape's
    second, seed_second the second shape's  the first shape's
    relation            both boxes, and along its axis the stretch between them
    seed_background     both boxes

A seed does not count as a place to look at, nor does what it cannot see (in a causal decoder, the cells behind it):
those are taken out of the map, of the box and of every control alike; of the other box, for a fair comparison, its
centre too.

Controls, each under every metric for which it can differ: `shuffled`, the model reads the same words and sees the same
cells in random order, while the boxes stay where they were: a difference says that the map reacts to the picture, not
that it finds the shape; `other`, the same map against the other shape's box; `centre`, a Gaussian about the middle of
the picture in place of the map; `uniform`, an even map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from analysis import metrics
from data.errors import SampleError

WORDS = ("first", "relation", "second")
SEEDS = ("seed_first", "seed_second", "seed_background")
QUERIES = WORDS + SEEDS
CONTROLS = ("shuffled", "other", "centre", "uniform")
SPREAD = 0.25  # standard deviation of the centre prior, as a share of the picture's side
NOT_UNDER = {
    "other": ("dispersion", "entropy", "image_attention"),
    "centre": ("image_attention",),
    "uniform": ("image_attention",),
}
"""Metrics that a control cannot tell anything of: those without a box do not change with it."""


@dataclass(frozen=True, eq=False)
class Target:
    """What one query's map is held against, all [row, col]: cell weights of its `box`, of the `other` shape's (None:
    there is none), of the `background`, and bool `seen`, the cells that count. `between`: axis and distribution."""

    box: np.ndarray
    other: np.ndarray | None
    background: np.ndarray
    seen: np.ndarray
    between: tuple[str, np.ndarray] | None = None


@dataclass(frozen=True, eq=False)
class Scene:
    """Two shapes on a model's cells: `first` and `second` cell weights [row, col] in the order of the caption, the
    `relation` of the first to the second, and the `seeds`: (row, col) by query."""

    first: np.ndarray
    second: np.ndarray
    relation: str
    seeds: dict[str, tuple[int, int]]

    @property
    def both(self) -> np.ndarray:
        """Cell weights [row, col] of what lies in either box; where they overlap in a cell, at most all of it."""
        return np.minimum(self.first + self.second, 1)


def place(sample, grid, rng: np.random.Generator) -> Scene:
    """A two-shapes sample on the model's grid; the background's seed is any cell that no box touches.

    sample: has `first`, `second` (each with `box`, `centre`, in pixels) and `relation`, in the order of the caption.
    Raises SampleError for a shape whose centre the model's crop removed, and for boxes that leave no background.
    """
    first, second = (metrics.cell_weights(shape.box, grid) for shape in (sample.first, sample.second))
    seeds = {}
    for name, shape in (("first", sample.first), ("second", sample.second)):
        cell = grid.cell_at(*shape.centre)
        if cell is None:
            raise SampleError("shape cropped away", f"the model does not see the centre of the {name} shape")
        seeds[f"seed_{name}"] = cell
    free = np.argwhere(first + second == 0)
    if not len(free):
        raise SampleError("no background", "every cell touches a shape's box")
    seeds["seed_background"] = tuple(map(int, rng.choice(free)))
    return Scene(first, second, sample.relation, seeds)


def targets(scene: Scene, causal: bool) -> dict[str, Target]:
    """What every query is held against; `causal` says whether seeds see only the cells before them."""
    everything = np.ones(scene.first.shape, bool)
    background = 1 - scene.both
    between = metrics.relation_distribution(scene.first, scene.second, scene.relation)
    found = {
        "first": Target(scene.first, scene.second, background, everything),
        "relation": Target(scene.both, None, background, everything, between),
        "second": Target(scene.second, scene.first, background, everything),
    }
    boxes = {"seed_first": found["first"], "seed_second": found["second"], "seed_background": found["relation"]}
    places = np.arange(everything.size).reshape(everything.shape)
    centres = np.isin(places, [places[scene.seeds[name]] for name in ("seed_first", "seed_second")])
    for name, target in boxes.items():
        own = places[scene.seeds[name]]
        seen = places < own if causal else places != own
        other = None if target.other is None else target.other * seen * ~centres
        found[name] = Target(target.box * seen, other, target.background * seen, seen)
    return found


def measure(maps, target: Target) -> dict[str, np.ndarray]:
    """Every metric of maps [..., row, col] against a target, each [...]. What does not count is taken out first.

    image_attention is the share of the query's attention that is on the cells at all, 0..1; `analysis.metrics` has the
    others.
    """
    maps = np.asarray(maps, np.float64) * target.seen
    found = {
        "image_attention": maps.sum((-2, -1)),
        "mass": metrics.mass(maps, target.box),
        "entity_background": metrics.entity_background(maps, target.box, target.background),
        "pointing": metrics.pointing(maps, target.box),
        "topk_iou": metrics.topk_iou(maps, target.box),
        "soft_iou": metrics.soft_iou(maps, target.box),
        "distance": metrics.distance(maps, target.box),
        "wasserstein_x": metrics.wasserstein_x(maps, target.box),
        "wasserstein_y": metrics.wasserstein_y(maps, target.box),
        "dispersion": metrics.dispersion(maps),
        "entropy": metrics.entropy(maps),
    }
    if target.between is not None:
        found["wasserstein_relation"] = metrics.wasserstein_relation(maps, *target.between)
    return found


def with_controls(own, shuffled, target: Target) -> dict[str, dict[str, np.ndarray]]:
    """Every metric of a query's maps [..., row, col] as {condition: {metric: [...]}}, "own" and each of CONTROLS.

    `shuffled` are the maps of the same query on the shuffled picture.
    """
    found = {"own": measure(own, target), "shuffled": measure(shuffled, target)}
    if target.other is not None:
        found["other"] = measure(own, replace(target, box=target.other, between=None))
    found["centre"] = measure(centre_prior(target.seen.shape), target)
    found["uniform"] = measure(np.ones(target.seen.shape), target)
    return {
        condition: {name: value for name, value in values.items() if name not in NOT_UNDER.get(condition, ())}
        for condition, values in found.items()
    }


def centre_prior(shape: tuple[int, int]) -> np.ndarray:
    """A Gaussian about the middle of the cells, [row, col], a quarter of each side wide: where photographs have their
    subject, whatever the picture shows."""
    along = [np.exp(-((((np.arange(side) + 0.5) / side - 0.5) / SPREAD) ** 2) / 2) for side in shape]
    return np.outer(*along)


@torch.no_grad()
def decoder_maps(trace, layouts: Sequence, rows: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Attention to the image's cells of some rows of the decoder, mean over each name's rows: float32
    [sample, layer, head, row, col] by name; each map sums to the share of its attention that is on the image.

    `layouts` are of the trace's samples, with one image each on one grid; rows are positions, the same in all of them.
    """
    grid, cells = layouts[0].grids[0], layouts[0].images[0]
    if any(layout.images[0].tolist() != cells.tolist() for layout in layouts):
        raise ValueError("the samples hold their images in different places; give one prompt with pictures of one size")
    asked = [row for each in rows.values() for row in each]
    layers = []
    for layer in range(trace.layers):
        weights = trace.weights(layer, asked)[..., cells.to(trace.device(layer))].cpu()
        parts = weights.split([len(each) for each in rows.values()], dim=2)
        layers.append(torch.stack([part.mean(2) for part in parts]))  # [name, sample, head, cell]
    maps = torch.stack(layers, 2).unflatten(-1, (grid.rows, grid.cols)).numpy()
    return dict(zip(rows, maps, strict=True))


@torch.no_grad()
def tower_maps(tower, seeds: Mapping[str, tuple[int, int]]) -> dict[str, np.ndarray]:
    """Attention of cells to cells in the vision tower: float32 [image, layer, head, row, col] by name, for each seed
    (row, col). A cell of several patches is the mean over its queries and the sum over its keys; what goes to no cell
    (CLIP's class token) is left out, and so are layers that do not reach the decoder."""
    rows, cols, patches = tower.images[0].cells.shape
    first = tower.images[0].length - rows * cols * patches
    queries = [first + (row * cols + col) * patches + patch for row, col in seeds.values() for patch in range(patches)]
    images = []
    for image in range(len(tower.images)):
        layers = [tower.weights(layer, image, queries)[..., first:].cpu() for layer in tower.layers]
        weights = torch.stack(layers).unflatten(2, (len(seeds), patches)).unflatten(-1, (rows, cols, patches))
        images.append(weights.mean(3).sum(-1))  # [layer, head, seed, row, col]
    maps = torch.stack(images).movedim(3, 0).numpy()
    return dict(zip(seeds, maps, strict=True))


def seed_rows(layout, seeds: Mapping[str, tuple[int, int]]) -> dict[str, list[int]]:
    """Positions of the image tokens of some cells (row, col)."""
    cols = layout.grids[0].cols
    return {name: [int(layout.images[0][row * cols + col])] for name, (row, col) in seeds.items()}


def all_maps(
    trace, layouts: Sequence, rows: Mapping[str, Sequence[int]], seeds: Mapping[str, tuple[int, int]], tower=None
) -> dict[str, np.ndarray]:
    """The maps of words (their rows) and seeds (their cells), of the trace and, for seeds, of `tower` if it is given:
    float32 [sample, layer, head, row, col] by query; NaN for a word without rows."""
    if tower is None:
        return decoder_maps(trace, layouts, {**rows, **seed_rows(layouts[0], seeds)})
    return decoder_maps(trace, layouts, rows) | tower_maps(tower, seeds)
