"""Faithfulness of attention maps to the answer by insertion and deletion curves, with attention mass in the box.

Deletion hides a map's cells in falling order, a tenth of the image per step, and records the log-probability of the
answer after each step; insertion starts with all cells hidden and reveals them in the same order (Petsiuk et al.,
"RISE", BMVC 2018; log-probability instead of probability). Hidden cells take the image's median colour. The area under
a curve is its mean over the share of cells, in nats. A faithful map, with high values on cells that the answer depends
on, has a smaller area under deletion and a larger one under insertion than its baseline, so that both gains,

    deletion    area of the baseline's order - area of the map's order
    insertion   area of the map's order - area of the baseline's order

are above 0. The baseline is the same map with its rows and columns shifted cyclically by a random offset. It is equally
smooth and peaked, at another position, so a map unrelated to the answer gains 0 on average. The second baseline, a
random order of the cells, is scattered, while a map is clustered. Hiding any cluster can have a larger effect than
hiding as many scattered cells, so a smooth map gains on this baseline at any position.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.files import save_arrays, write_table
from analysis.metrics import mass
from analysis.plots import BLUE, GREEN, ORANGE, Figure, for_lines
from analysis.runs import RunFolder
from analysis.spatial import WORDS
from analysis.statistics import DIFFERENCE, REAL, Bounds, correct_family, known_mean, mean_interval, paired_difference
from data.errors import InputError, check_at_least

STEPS = 10
RANDOM = "random"
BASELINES = ("shifted", RANDOM)
DIRECTIONS = ("insertion", "deletion")
LOG_PROBABILITY: Bounds = (None, 0.0)


@dataclass(frozen=True)
class FaithfulnessSettings:
    """Settings of the faithfulness test: effect on the answer of the cells that words and boxes rank highest."""

    faithfulness: int = 50
    """Number of samples for the faithfulness test, which hides and reveals cells in steps of a tenth and measures the
    log-probability of the model's own answer; 0 skips the test. It takes most of the run's time."""
    batch_size: int = 24
    """Number of images with hidden cells per batch."""

    def __post_init__(self) -> None:
        check_at_least(self, faithfulness=0, batch_size=1)


@dataclass(frozen=True, eq=False)
class Curves:
    """Log-probability of the answer by number of revealed, or hidden, cells: float64 [step], from 0 to all cells."""

    insertion: np.ndarray
    deletion: np.ndarray


def ranking(cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cells (raster indices) of a map [row, col] in falling order; ties in random order.

    Raises ValueError for a map with a non-finite value.
    """
    cells = np.asarray(cells, np.float64)
    if not np.isfinite(cells).all():
        raise InputError("map-not-finite", "a map with NaN or infinite values has no order")
    shuffled = rng.permutation(cells.size)
    return shuffled[np.argsort(-cells.ravel()[shuffled], kind="stable")]


def hidden_cells(order: np.ndarray, shape: tuple[int, int], direction: str, steps: int = STEPS) -> np.ndarray:
    """Hidden cells at each step of a curve, bool [step, row, col]: step i of 0..steps hides (deletion) or reveals the
    first i / steps of the cells of `order`, rounded to whole cells."""
    moved = np.zeros((steps + 1, order.size), bool)
    for step, count in enumerate(np.rint(np.linspace(0, order.size, steps + 1)).astype(int)):
        moved[step, order[:count]] = True
    return (moved if direction == "deletion" else ~moved).reshape(-1, *shape)


def curves(
    orders: Mapping[Hashable, np.ndarray],
    shape: tuple[int, int],
    score: Callable[[np.ndarray], np.ndarray],
    steps: int = STEPS,
) -> dict[Hashable, Curves]:
    """Both curves of each order of one image's cells.

    score: maps hidden cells, bool [image, row, col], to the answer's log-probability [image]; it is called once, with
    every distinct masked image.
    """
    hidden = np.concatenate(
        [hidden_cells(order, shape, direction, steps) for order in orders.values() for direction in DIRECTIONS]
    )
    different, places = np.unique(hidden.reshape(len(hidden), -1), axis=0, return_inverse=True)
    scores = np.asarray(score(different.reshape(-1, *shape)), np.float64)
    split = scores[places.ravel()].reshape(len(orders), len(DIRECTIONS), steps + 1)
    return {name: Curves(*both) for name, both in zip(orders, split, strict=True)}


def area(curve: np.ndarray) -> float:
    """Area under a curve [step] over the share of cells, 0 to 1, by trapezoids: the unit of the curve."""
    return float(np.trapezoid(curve, dx=1 / (len(curve) - 1)))


@dataclass(frozen=True, eq=False)
class FaithfulnessScore:
    """Faithfulness of one sample: the curves of every order, those of the shifted maps, and by order `masses`: (share
    of the map's attention in its box, the same for the uniform baseline). NaN without a map."""

    name: str
    curves: dict[str, Curves]
    shifted: dict[str, Curves]
    masses: dict[str, tuple[float, float]]

    @classmethod
    def stored(cls, values: dict) -> FaithfulnessScore:
        """Score from its values in a part of a run."""
        curves = {
            kind: {order: Curves(**both) for order, both in values[kind].items()} for kind in ("curves", "shifted")
        }
        return cls(**values | curves)

    def area(self, order: str, direction: str) -> float:
        """Area under the curve of an order in one of DIRECTIONS, in nats."""
        return area(getattr(self.curves[order], direction))

    def baseline(self, order: str, direction: str, kind: str) -> float:
        """Area under the curve of an order's baseline, one of BASELINES, in nats."""
        return area(getattr(self.curves[RANDOM] if kind == RANDOM else self.shifted[order], direction))


def shift(cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shift a map [row, col] cyclically by a random nonzero offset over rows and columns."""
    offset = divmod(int(rng.integers(1, max(2, cells.size))), cells.shape[1])
    return np.roll(cells, offset, (0, 1))


def score_sample(
    name: str,
    maps: Mapping[str, np.ndarray],
    boxes: Mapping[str, np.ndarray],
    score: Callable[[np.ndarray], np.ndarray],
    rng: np.random.Generator,
    steps: int = STEPS,
) -> FaithfulnessScore:
    """Measure one sample: curves of the order of each map [row, col], of the shifted map and of a random order, and the
    map's mass in its box, cell weights [row, col]. `score` as in `curves`. A map of NaN (missing word) gives NaN.
    """
    shape = next(iter(maps.values())).shape
    there = {order: cells for order, cells in maps.items() if np.isfinite(cells).all()}
    orders = {(order, ""): ranking(cells, rng) for order, cells in there.items()}
    orders |= {(order, "shifted"): ranking(shift(cells, rng), rng) for order, cells in there.items()}
    measured = curves({**orders, RANDOM: rng.permutation(shape[0] * shape[1])}, shape, score, steps)
    none = Curves(*np.full((2, steps + 1), np.nan))
    own, shifted = ({order: measured.get((order, kind), none) for order in maps} for kind in ("", "shifted"))
    masses = {
        order: (float(mass(cells, boxes[order])) if order in there else np.nan, float(boxes[order].mean()))
        for order, cells in maps.items()
    }
    return FaithfulnessScore(name, {**own, RANDOM: measured[RANDOM]}, shifted, masses)


def summarise(samples: Sequence[FaithfulnessScore], seed: int) -> dict[str, dict]:
    """Attention mass and faithfulness gains by order: {"looks": mass in the box - uniform baseline, "insertion_gain",
    "deletion_gain": over the shifted map, "insertion_gain_random", "deletion_gain_random": over a random order,
    "insertion", "deletion": areas}.

    The first five are paired over samples, with interval, p of the sign-flip test and q over all of them as one family,
    which "family_of_q" of each order states. The random order has only areas.
    """
    summary, tests = {}, []
    for order in samples[0].curves:
        areas = {direction: np.array([sample.area(order, direction) for sample in samples]) for direction in DIRECTIONS}
        summary[order] = {direction: mean_interval(values, LOG_PROBABILITY) for direction, values in areas.items()}
        if order == RANDOM:
            continue
        mass_in, even = np.array([sample.masses[order] for sample in samples]).T
        tested = {"looks": paired_difference(mass_in, even, seed, DIFFERENCE)}
        for kind, behind in zip(BASELINES, ("", "_random"), strict=True):
            for direction in DIRECTIONS:
                baseline = np.array([sample.baseline(order, direction, kind) for sample in samples])
                pair = (areas[direction], baseline) if direction == "insertion" else (baseline, areas[direction])
                tested[f"{direction}_gain{behind}"] = paired_difference(*pair, seed, REAL)
        summary[order] |= tested
        tests += tested.values()
    family = correct_family(tests, "every order's looks and gains")
    for order in summary.keys() - {RANDOM}:
        summary[order]["family_of_q"] = family
    return summary


STYLES = {
    "first": (BLUE, "-"), "second": (ORANGE, "-"), "relation": (GREEN, "-"), "boxes": ("black", "--"),
    "shifted": ("0.45", "-."), RANDOM: ("0.6", ":"),
}  # fmt: skip
LABELS = {
    "first": "first shape's words", "second": "second shape's words", "relation": "relation's word",
    "boxes": "the true boxes", "shifted": "words' maps shifted", RANDOM: "random order",
}  # fmt: skip
COLUMNS = (
    ("looks", "looks at it", "mass in the box\nabove an even map's"),
    ("insertion_gain", "uses it: insertion", "area above that of\nthe map shifted (nats)"),
    ("deletion_gain", "uses it: deletion", "area below that of\nthe map shifted (nats)"),
)
AGAINST_RANDOM = tuple(f"{direction}_gain_random" for direction in DIRECTIONS)
PARTS = ("mean", "low", "high", "n", "p", "q")
BANDS = ("first", RANDOM)  # curves drawn with intervals; more of them would overlap


def save_faithfulness(run: RunFolder, samples: Sequence[FaithfulnessScore], seed: int) -> dict:
    """Write faithfulness.csv (one row per sample and order), looks_and_uses.csv (one row per order), curves.npz,
    curves.png and looks_and_uses.png; return the summary."""
    rows = [
        {
            "sample": sample.name, "order": order,
            **dict(zip(("mass", "mass_even"), sample.masses.get(order, ("", "")), strict=True)),
            **{direction: sample.area(order, direction) for direction in DIRECTIONS},
            **{
                f"{direction}_{kind}": "" if order == RANDOM else sample.baseline(order, direction, kind)
                for direction in DIRECTIONS for kind in BASELINES
            },
        }
        for sample in samples for order in sample.curves
    ]  # fmt: skip
    write_table(run.folder / "faithfulness.csv", rows)
    stacked = stack(samples)
    save_arrays(run.folder / "curves.npz", samples=np.array([sample.name for sample in samples]), **stacked)
    summary = summarise(samples, seed)
    keys = *(key for key, *_ in COLUMNS), *AGAINST_RANDOM
    held = [
        {"order": order, **{f"{key}_{part}": values[key][part] for key in keys for part in PARTS}}
        for order, values in summary.items() if order != RANDOM
    ]  # fmt: skip
    write_table(run.folder / "looks_and_uses.csv", held)
    run.save(curve_figure(stacked), "curves.png")
    run.save(mass_and_gain_figure(summary), "looks_and_uses.png")
    return {"n": len(samples), "orders": summary}


def stack(samples: Sequence[FaithfulnessScore]) -> dict[str, np.ndarray]:
    """Curves of all samples, [sample, step] by <order>_<direction> and <order>_shifted_<direction>."""
    own = {
        f"{order}_{direction}": np.stack([getattr(sample.curves[order], direction) for sample in samples])
        for order in samples[0].curves for direction in DIRECTIONS
    }  # fmt: skip
    shifted = {
        f"{order}_shifted_{direction}": np.stack([getattr(sample.shifted[order], direction) for sample in samples])
        for order in samples[0].shifted for direction in DIRECTIONS
    }  # fmt: skip
    return own | shifted


def curve_figure(stacked: Mapping[str, np.ndarray]) -> Figure:
    """Mean curves of every order, insertion on the left, deletion on the right; those of BANDS have 95 % intervals.

    stacked: [sample, step] by name, as in `stack` and curves.npz. The words' shifted maps are averaged into one line.
    """
    figure = Figure(figsize=(7.2, 3.2), dpi=200, layout="constrained")
    for axes, direction in zip(figure.subplots(1, 2, sharey=True), DIRECTIONS, strict=True):
        shifted = known_mean([stacked[f"{word}_shifted_{direction}"] for word in WORDS])
        for order, (colour, line) in STYLES.items():
            values = shifted if order == "shifted" else stacked[f"{order}_{direction}"]
            share = np.linspace(0, 100, values.shape[1])
            if order in BANDS:
                held = [mean_interval(step, LOG_PROBABILITY) for step in values.T]
                lows, highs = (np.array([sample[key] for sample in held], float) for key in ("low", "high"))
                axes.fill_between(share, lows, highs, color=colour, alpha=0.2, linewidth=0)
            axes.plot(share, known_mean(values), line, color=colour, linewidth=1.4, label=LABELS[order])
        shown = "shown" if direction == "insertion" else "hidden"
        axes.set_xlabel(f"cells {shown} (%), highest of the map first", fontsize=8)
        axes.set_title(direction, fontsize=9, loc="left")
        for_lines(axes)
    figure.axes[0].set_ylabel("log-probability of the answer (nats)", fontsize=8)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    banded = " and ".join(LABELS[order] for order in BANDS)
    title = f"order of the cells; n = {len(values)}, mean; shaded: 95 % interval of {banded}"
    figure.legend(
        handles, labels, title=title, title_fontsize=8, loc="outside upper left", ncols=6, frameon=False, fontsize=6.5,
        alignment="left",
    )  # fmt: skip
    return figure


def mass_and_gain_figure(summary: dict) -> Figure:
    """Attention mass in the box and faithfulness gains as columns of one figure: a row per map, means with 95 %
    intervals; 0 is the uniform baseline and the shifted map. Hollow: the gain over a random order. The true boxes have
    a mass of 1 by definition, which is not drawn."""
    names = [order for order in summary if order != RANDOM][::-1]
    figure = Figure(figsize=(7.2, 0.4 * len(names) + 1.5), dpi=200, layout="constrained")
    for axes, (key, title, label) in zip(figure.subplots(1, 3, sharey=True), COLUMNS, strict=True):
        for place, name in enumerate(names):
            if key != "looks" or name != "boxes":
                _mean_and_interval(axes, summary[name][key], place, STYLES[name][0])
            if key != "looks":
                _mean_and_interval(axes, summary[name][f"{key}_random"], place - 0.25, STYLES[name][0], hollow=True)
        axes.axvline(0, color="0.6", linewidth=1, linestyle=":")
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlabel(label, fontsize=7)
        axes.tick_params(labelsize=7)
        axes.xaxis.grid(True, linewidth=0.5, alpha=0.4)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_yticks(range(len(names)), labels=[LABELS[name] for name in names], fontsize=8)
    figure.axes[0].set_ylim(-0.6, len(names) - 0.4)
    n = max(summary[name]["looks"]["n"] for name in names)
    figure.suptitle(f"n = {n}, mean with 95 % interval; hollow: against a random order of the cells", fontsize=8)
    return figure


def _mean_and_interval(axes, value: dict, place: float, colour: str, hollow: bool = False) -> None:
    """Draw a mark with whiskers; skip an unknown mean, and omit the whiskers of an unknown interval."""
    if value["mean"] is None:
        return
    low, high = (value["mean"] if value[end] is None else value[end] for end in ("low", "high"))
    whisker = [[value["mean"] - low], [high - value["mean"]]]
    size, face, line = (3, "white", 0.7) if hollow else (4.5, colour, 1.5)
    axes.errorbar(
        value["mean"], place, xerr=whisker, fmt="o", color=colour, markerfacecolor=face, markersize=size, capsize=2,
        linewidth=line,
    )  # fmt: skip
