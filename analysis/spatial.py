"""Attention of words and cells compared with the boxes of two shapes: maps, targets, controls and their summary.

A *query* is the source of attention: the words of the caption's first shape, of its relation and of its second shape
(text to image), or a seed cell, at each shape's centre and on the background (image to image). Its map is [row, col]
over the image's cells. Its *target* is the reference of the map:

    query               box                 the other box
    first, seed_first   the first shape's   the second shape's
    second, seed_second the second shape's  the first shape's
    relation            both boxes, and along its axis the gap between them
    seed_background     both boxes

The seed's own cell and the cells that it cannot attend to (in a causal decoder, the later ones) are excluded from the
map, the box and every control; the other box's centre is excluded from the other box, too, for a fair comparison.

Controls, each under every metric for which it can differ: `shuffled`, the same words with the image's cells in random
order and the boxes unchanged: a difference shows that the map depends on the image, not that it locates the shape;
`other`, the same map against the other shape's box; `centre`, a Gaussian about the image's centre instead of the map;
`uniform`, the uniform baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from analysis.files import write_table
from analysis.metrics import CONTROLS, METRICS, Target, cell_weights, relation_distribution
from analysis.resume import Part
from analysis.runs import RunFolder
from analysis.statistics import (
    LEVEL,
    correct_family,
    head_tests,
    known_mean,
    mean_interval,
    paired_difference,
    smallest_p,
    strongest_head,
)
from analysis.words import check_layers, find_word, select_layers, why_missing
from data.errors import InputError, SampleError

WORDS = ("first", "relation", "second")
SEEDS = ("seed_first", "seed_second", "seed_background")
QUERIES = WORDS + SEEDS
SPREAD = 0.25  # standard deviation of the centre bias, as a share of the image's side


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
        """Cell weights [row, col] of the union of both boxes: their sum, at most 1 per cell."""
        return np.minimum(self.first + self.second, 1)


def place(sample, grid, rng: np.random.Generator) -> Scene:
    """Scene of a two-shapes sample on the model's grid; the background's seed is a random cell outside both boxes.

    sample: has `first`, `second` (each with `box`, `centre`, in pixels) and `relation`, in the order of the caption.
    Raises SampleError if the model's crop removed a shape's centre, or if the boxes touch every cell.
    """
    first, second = (cell_weights(shape.box, grid) for shape in (sample.first, sample.second))
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
    """Target of each query; `causal`: seeds attend only to earlier cells."""
    everything = np.ones(scene.first.shape, bool)
    background = 1 - scene.both
    between = relation_distribution(scene.first, scene.second, scene.relation)
    results = {
        "first": Target(scene.first, scene.second, background, everything),
        "relation": Target(scene.both, None, background, everything, between),
        "second": Target(scene.second, scene.first, background, everything),
    }
    boxes = {"seed_first": results["first"], "seed_second": results["second"], "seed_background": results["relation"]}
    places = np.arange(everything.size).reshape(everything.shape)
    centres = np.isin(places, [places[scene.seeds[name]] for name in ("seed_first", "seed_second")])
    for name, target in boxes.items():
        own = places[scene.seeds[name]]
        visible = places < own if causal else places != own
        other = None if target.other is None else target.other * visible * ~centres
        results[name] = Target(target.box * visible, other, target.background * visible, visible)
    return results


def measure(maps, target: Target, condition: str = "own") -> dict[str, np.ndarray]:
    """Every metric of maps [..., row, col] under a condition, each [...]; excluded cells are removed first."""
    maps = np.asarray(maps, np.float64) * target.visible
    values = {
        name: metric.measure(maps, target) for name, metric in METRICS.items() if condition in ("own", *metric.controls)
    }
    return {name: value for name, value in values.items() if value is not None}


def with_controls(own, shuffled, target: Target) -> dict[str, dict[str, np.ndarray]]:
    """Every metric of a query's maps [..., row, col] as {condition: {metric: [...]}}, "own" and each of CONTROLS.

    `shuffled` are the maps of the same query on the shuffled image.
    """
    results = {"own": measure(own, target), "shuffled": measure(shuffled, target, "shuffled")}
    if target.other is not None:
        results["other"] = measure(own, replace(target, box=target.other, between=None), "other")
    shape = target.visible.shape
    return results | {
        "centre": measure(centre_prior(shape), target, "centre"), "uniform": measure(np.ones(shape), target, "uniform")
    }  # fmt: skip


def centre_prior(shape: tuple[int, int]) -> np.ndarray:
    """Centre bias of photographs, independent of the image: a Gaussian about the grid's centre, [row, col], with a
    standard deviation of a quarter of each side."""
    along = [np.exp(-((((np.arange(side) + 0.5) / side - 0.5) / SPREAD) ** 2) / 2) for side in shape]
    return np.outer(*along)


@torch.no_grad()
def decoder_maps(trace, layouts: Sequence, rows: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Attention of decoder rows to the image's cells, mean over each name's rows: float32
    [sample, layer, head, row, col] by name; each map sums to its attention mass on the image.

    `layouts` belong to the trace's samples, with one image each on one grid; rows are positions, equal in all samples.
    """
    grid, cells = layouts[0].grids[0], layouts[0].images[0]
    if any(layout.images[0].tolist() != cells.tolist() for layout in layouts):
        raise InputError(
            "image-positions-differ",
            "the samples hold their images in different places; give one prompt with images of one size",
        )
    queried = [row for queries in rows.values() for row in queries]
    layers = []
    for layer in range(trace.layers):
        weights = trace.weights(layer, queried)[..., cells.to(trace.device(layer))].cpu()
        parts = weights.split([len(queries) for queries in rows.values()], dim=2)
        layers.append(torch.stack([part.mean(2) for part in parts]))  # [name, sample, head, cell]
    maps = torch.stack(layers, 2).unflatten(-1, (grid.rows, grid.cols)).numpy()
    return dict(zip(rows, maps, strict=True))


@torch.no_grad()
def encoder_maps(encoder, seeds: Mapping[str, tuple[int, int]]) -> dict[str, np.ndarray]:
    """Attention of cells to cells in the vision encoder: float32 [image, layer, head, row, col] by name, for each seed
    (row, col). A cell of several patches is the mean over its queries and the sum over its keys; keys outside the cells
    (CLIP's class token) and layers that do not reach the decoder are excluded."""
    rows, cols, patches = encoder.images[0].cells.shape
    first = encoder.images[0].length - rows * cols * patches
    queries = [first + (row * cols + col) * patches + patch for row, col in seeds.values() for patch in range(patches)]
    images = []
    for image in range(len(encoder.images)):
        layers = [encoder.weights(layer, image, queries)[..., first:].cpu() for layer in encoder.layers]
        weights = torch.stack(layers).unflatten(2, (len(seeds), patches)).unflatten(-1, (rows, cols, patches))
        images.append(weights.mean(3).sum(-1))  # [layer, head, seed, row, col]
    maps = torch.stack(images).movedim(3, 0).numpy()
    return dict(zip(seeds, maps, strict=True))


def seed_rows(layout, seeds: Mapping[str, tuple[int, int]]) -> dict[str, list[int]]:
    """Positions of the image tokens of the seed cells (row, col)."""
    cols = layout.grids[0].cols
    return {name: [int(layout.images[0][row * cols + col])] for name, (row, col) in seeds.items()}


def all_maps(
    trace, layouts: Sequence, rows: Mapping[str, Sequence[int]], seeds: Mapping[str, tuple[int, int]], encoder=None
) -> dict[str, np.ndarray]:
    """Maps of words (by rows) and seeds (by cells) from the trace or, for seeds, from `encoder` if it is given: float32
    [sample, layer, head, row, col] by query; NaN for a word without rows."""
    if encoder is None:
        return decoder_maps(trace, layouts, {**rows, **seed_rows(layouts[0], seeds)})
    return decoder_maps(trace, layouts, rows) | encoder_maps(encoder, seeds)


@dataclass(frozen=True)
class SpatialSettings:
    """Layers and rows of the measured attention."""

    layers: str = "mid_third"
    """Decoder layers to average: all | first_third | mid_third | last_third | last_4 | 3,7,12 (0-based)."""
    seeds_in: Literal["auto", "tower", "decoder"] = "auto"
    """Source of image-to-image attention: the vision encoder, or the decoder (a cell attends only to earlier ones);
    auto: the vision encoder if the model has one."""
    tower_layers: str = "all"
    """Layers of the vision encoder to average, of those that reach the decoder; values as for --layers."""
    rows: Literal["predicting", "query"] = "predicting"
    """Row of a word of the answer: the row that predicted it, or the row in which it is the query."""
    words_in: Literal["prompt", "answer"] = "prompt"
    """Occurrence to use if a word is both in the prompt and in the answer."""

    def __post_init__(self) -> None:
        check_layers(self.layers)
        check_layers(self.tower_layers)

    def queried_layers(self, decoder: int, encoder: int | None) -> dict[str, tuple[int, ...]]:
        """Layers to average for each query, given the numbers of layers; `encoder` None: seeds are from the decoder.

        Raises ValueError for layers outside the model.
        """
        words = select_layers(self.layers, decoder)
        seeds = words if encoder is None else select_layers(self.tower_layers, encoder)
        return dict.fromkeys(WORDS, words) | dict.fromkeys(SEEDS, seeds)


FAMILY = "every query, metric and control of this summary"
CONDITIONS = ("own", *CONTROLS)
OF_HEADS = ("own", "other", "shuffled")
SHOWN = ("mass", "pointing", "distance")  # metrics of words in samples.csv; all metrics are in measures.csv


COLUMNS = (
    "image", "prompt", "answer", "answered_right", "relation", "first", "second", "reversed",
    *(f"{metric}_{word}" for word in WORDS for metric in SHOWN), "folder",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class SampleMetrics:
    """Metrics of one sample. `values` {query: {condition: {metric: float}}} of the chosen layers, heads averaged;
    `heads` {query: {condition: {metric: float64 [layer, head]}}}, of OF_HEADS; `maps` {query: [2, row, col]}, own and
    shuffled, averaged as `values`. All NaN for a missing word."""

    name: str
    values: dict[str, dict[str, dict[str, float]]]
    heads: dict[str, dict[str, np.ndarray]]
    maps: dict[str, np.ndarray]

    @classmethod
    def stored(cls, part: Part) -> SampleMetrics:
        """Metrics of a sample from its part of a run; those of the heads stay in the file."""
        values, maps = (part.value("metrics", name) for name in ("values", "maps"))
        return cls(part.name, values, StoredHeads(part), maps)


class StoredHeads:
    """`heads` of a stored sample: those of the query that was read last are in memory."""

    def __init__(self, part: Part):
        self.part, self.query, self.values = part, "", {}

    def __getitem__(self, query: str) -> dict[str, dict[str, np.ndarray]]:
        if query != self.query:
            self.query, self.values = query, self.part.value("metrics", "heads", query)
        return self.values


def measure_sample(
    name: str, scene: Scene, maps: Mapping[str, np.ndarray], layers: Mapping[str, Sequence[int]], causal: bool
) -> SampleMetrics:
    """Measure one sample's maps [2, layer, head, row, col] by query, of the image and of the shuffled one.

    layers: for each query the layers (indices into its maps) to average; `causal` as in `targets`.
    """
    values, heads, means = {}, {}, {}
    for query, target in targets(scene, causal).items():
        means[query] = maps[query][:, list(layers[query])].mean((1, 2))
        unknown = 0 if np.isfinite(maps[query]).all() else np.nan
        averaged, of_heads = (
            {
                kind: {name: value + unknown for name, value in by_metric.items()}
                for kind, by_metric in with_controls(*np.nan_to_num(shown), target).items()
            }
            for shown in (means[query], maps[query])
        )
        values[query] = {
            kind: {name: float(v) for name, v in by_metric.items()} for kind, by_metric in averaged.items()
        }
        heads[query] = {kind: of_heads[kind] for kind in OF_HEADS if kind in of_heads}
    return SampleMetrics(name, values, heads, means)


def sample_row(sample, answer: str, measured: SampleMetrics, folder: str) -> dict:
    """Table row of a sample, the values of COLUMNS, of the chosen layers with heads averaged; `reversed`: the world and
    the caption list the shapes in opposite order, `answered_right`: the answer holds the true relation. sample: has
    `prompt`, `words` and `pair`; folder: its figures."""
    shown = {f"{metric}_{word}": measured.values[word]["own"][metric] for word in WORDS for metric in SHOWN}
    return {
        "image": sample.pair.image_path, "prompt": sample.prompt, "answer": answer,
        "answered_right": int(find_word(answer, sample.words["relation"]) is not None), **sample.words,
        "reversed": int(sample.pair.reversed), **shown, "folder": folder,
    }  # fmt: skip


def summarise(samples: Sequence[SampleMetrics], seed: int) -> dict:
    """{query: {metric: interval of its own values and, in "controls", of every control with the paired difference}}.

    A difference is own - control over samples with both values, with p of the sign-flip test, and q over all queries,
    metrics and controls as one family.
    """
    summary, tests = {}, []
    for query in QUERIES:
        summary[query] = {}
        for metric in metrics_of(samples, query):
            own = column(samples, query, "own", metric)
            controls = {
                control: {
                    "mean": mean_of(other := column(samples, query, control, metric)),
                    "difference": paired_difference(own, other, seed, METRICS[metric].difference),
                }
                for control in CONTROLS
                if metric in samples[0].values[query].get(control, ())
            }
            summary[query][metric] = {**mean_interval(own, METRICS[metric].bounds), "controls": controls}
            tests += [control["difference"] for control in controls.values()]
    correct_family(tests, FAMILY)
    return summary


def missing_words(samples: Sequence[SampleMetrics]) -> dict[str, int]:
    """Number of samples that lack a map of a word, by reason; their other words count."""
    missing = {word: sum(not np.isfinite(sample.maps[word]).all() for sample in samples) for word in WORDS}
    return {why_missing(word): count for word, count in missing.items() if count}


def metrics_of(samples: Sequence[SampleMetrics], query: str) -> list[str]:
    """Metrics of a query, in the order of METRICS."""
    return [metric for metric in METRICS if metric in samples[0].values[query]["own"]]


def column(samples: Sequence[SampleMetrics], query: str, condition: str, metric: str) -> np.ndarray:
    """One metric of every sample, float64 [sample]."""
    return np.array([sample.values[query][condition][metric] for sample in samples])


def mean_of(values: np.ndarray) -> float | None:
    """Mean of the known values; None without a known value."""
    mean = float(known_mean(values))
    return None if np.isnan(mean) else mean


def compare_heads(samples: Sequence[SampleMetrics]) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """{query: {metric: arrays [layer, head]}}: means "own", "other" and "shuffled", and the results of `head_tests` for
    "difference", own - "against".

    The test compares own with the other shape's box or, for queries without one, with the shuffled image. The second is
    weaker: the image's boxes lie on arbitrary cells of the shuffled image, so a head that attends to any drawn object
    differs, too; the test shows only that a head depends on the image. For seeds, own - other does not separate a head
    that locates the seed's shape from one that attends to nearby cells; the shuffled image does.
    """
    tested = {}
    for query in QUERIES:
        tested[query] = {}
        for metric in metrics_of(samples, query):
            values, against = head_values(samples, query, metric)
            tests = head_tests(values["own"] - values[against])
            means = {kind: known_mean(value) for kind, value in values.items()}
            tested[query][metric] = {
                **means, "against": np.full(tests["p"].shape, against), "difference": tests.pop("mean"), **tests
            }  # fmt: skip
    return tested


def head_values(samples: Sequence[SampleMetrics], query: str, metric: str) -> tuple[dict[str, np.ndarray], str]:
    """Values of a metric by OF_HEADS, each [sample, layer, head], NaN if missing; and the key that "own" is tested
    against."""
    missing = np.full_like(samples[0].heads[query]["own"][metric], np.nan)
    values = {
        kind: np.stack([sample.heads[query].get(kind, {}).get(metric, missing) for sample in samples])
        for kind in OF_HEADS
    }
    return values, "other" if metric in samples[0].heads[query].get("other", ()) else "shuffled"


def summarise_heads(samples: Sequence[SampleMetrics], tested: dict, seed: int) -> dict:
    """Counts of heads above and below the value "against" which they are tested (q <= LEVEL), by query and metric.

    "strongest" is the head of largest effect on one half of the samples with its difference, effect and p on the other
    (`strongest_head`), and q over the strongest heads of all queries and metrics.
    """
    summary = {}
    for query, by_metric in tested.items():
        summary[query] = {}
        for metric, arrays in by_metric.items():
            differs, effect = arrays["q"] <= LEVEL, arrays["effect"]
            values, against = head_values(samples, query, metric)
            summary[query][metric] = {
                "against": against,
                "heads": int(effect.size),
                "above": int((differs & (effect > 0)).sum()),
                "below": int((differs & (effect < 0)).sum()),
                "smallest_p": smallest_p(int(arrays["n"].max())),
                "family_of_q": _family(arrays["q"]),
                "strongest": strongest_head(values["own"] - values[against], seed, METRICS[metric].difference),
            }
    strongest = [of["strongest"] for by_metric in summary.values() for of in by_metric.values() if of["strongest"]]
    correct_family(strongest, "the strongest head of every query and metric")
    return summary


def _family(q: np.ndarray) -> str:
    """Statement of the family of tests that q [layer, head] corrects over."""
    return f"{np.isfinite(q).sum()} heads, one query and metric"


def save_tables(run: RunFolder, samples: Sequence[SampleMetrics], tested: dict) -> None:
    """Write measures.csv, one row per sample, query, condition ("own" or a control) and metric, and heads.csv, one row
    per query, metric and head, whose q corrects over the heads of one query and metric."""
    measures = [
        {"sample": sample.name, "query": query, "condition": condition, "metric": metric, "value": value}
        for sample in samples for query in QUERIES for condition, values in sample.values[query].items()
        for metric, value in values.items()
    ]  # fmt: skip
    heads = [
        {
            "query": query, "metric": metric, "layer": layer, "head": head,
            **{name: values[layer, head] for name, values in arrays.items()}, "family_of_q": _family(arrays["q"]),
        }
        for query, by_metric in tested.items() for metric, arrays in by_metric.items()
        for layer, head in np.ndindex(arrays["own"].shape)
    ]  # fmt: skip
    for name, rows in (("measures.csv", measures), ("heads.csv", heads)):
        write_table(run.folder / name, rows)
