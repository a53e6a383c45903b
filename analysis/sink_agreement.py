"""Do the tokens that spike in given dimensions receive the attention: precision and recall, beside chance.

Detected are the candidates whose |RMSNorm(x)| is above tau in one of the dimensions; wanted are the top tenth of the
candidates by attention received (see `analysis.sinks` for who the candidates are and whose attention counts). Pooled
over the layers that VAR edits, per sample; means and intervals are over samples. A sample in which nothing is detected
has recall 0 and no precision.

Random dimensions stand beside them twice: with the same tau, where they mostly detect nothing, and with as many tokens
as the given dimensions detect, the highest ones, where precision compares. Layers count from 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from analysis.sinks import FIRST_LAYER, magnitudes, top_count
from analysis.statistics import SHARE, mean_interval

GOOD_PRECISION, GOOD_RECALL, FAIR_PRECISION = 0.5, 0.3, 0.3  # of the published script


class Spikes:
    """Of one sample: max over each set of dimensions of |RMSNorm(x)_d|, of the candidates, `values` [set, layer, key].

    `see` takes the residual stream of one layer after the other. All sets have the same number of dimensions.
    """

    def __init__(self, candidates: torch.Tensor, sets: np.ndarray):
        self.candidates, self.sets = candidates, torch.as_tensor(sets)
        self._layers: list[torch.Tensor] = []

    def see(self, layer: int, hidden: torch.Tensor) -> None:
        """Reduces what enters a layer, [sample, row, width] with one sample, to a number per set and candidate."""
        magnitude = magnitudes(hidden[0, self.candidates.to(hidden.device)])
        self._layers.append(magnitude[:, self.sets.to(hidden.device)].amax(-1).T.cpu())

    @property
    def values(self) -> np.ndarray:
        """float32 [set, layer, key]"""
        return torch.stack(self._layers, 1).numpy()


@dataclass(frozen=True, eq=False)
class Counts:
    """Of one sample, per layer: candidates that were detected, that were wanted, and that were both; int [layer]."""

    detected: np.ndarray
    wanted: np.ndarray
    both: np.ndarray

    def precision(self, layers=slice(None)) -> float | None:
        """Share of the detected that was wanted, pooled over `layers`; None where nothing was detected."""
        detected = self.detected[layers].sum()
        return float(self.both[layers].sum() / detected) if detected else None

    def recall(self, layers=slice(None)) -> float:
        """Share of the wanted that was detected, pooled over `layers`."""
        return float(self.both[layers].sum() / self.wanted[layers].sum())


def most_attended(received: np.ndarray, top_percent: float) -> np.ndarray:
    """The top tokens of each layer by attention received [layer, candidate]: bool of the same shape."""
    return highest(received, np.full(len(received), top_count(received.shape[1], top_percent)))


def highest(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The `counts` [layer] largest of each layer's values [layer, candidate], of equals the first: bool."""
    rank = np.argsort(np.argsort(-values, axis=1, kind="stable"), axis=1)
    return rank < counts[:, None]


def compare(detected: np.ndarray, wanted: np.ndarray) -> Counts:
    """Counts of two bool [layer, candidate]."""
    return Counts(detected.sum(1), wanted.sum(1), (detected & wanted).sum(1))


def random_sets(width: int, dimensions: tuple[int, ...], sets: int, rng: np.random.Generator) -> np.ndarray:
    """The given dimensions, then `sets` random sets of as many others: int [1 + sets, dimension].

    Raises ValueError where too few others are left in a model `width` wide.
    """
    others = np.setdiff1d(np.arange(width), dimensions)
    if len(others) < len(dimensions):
        raise ValueError(f"{len(dimensions)} dimensions of {width} leave too few to compare them with")
    drawn = [rng.choice(others, len(dimensions), replace=False) for _ in range(sets)]
    return np.array([dimensions, *drawn])


class Agreement:
    """Counts of every sample for the given dimensions at tau, at other taus, and for random dimensions."""

    def __init__(self, tau: float, sweep: tuple[float, ...], top_percent: float):
        self.tau, self.sweep, self.top_percent = tau, sweep, top_percent
        self.counts: list[Counts] = []
        self._swept: list[list[Counts]] = []
        self._random: list[list[Counts]] = []
        self._matched: list[list[Counts]] = []
        self._chance: list[float] = []

    def add(self, values: np.ndarray, received: np.ndarray) -> Counts:
        """One sample: spikes [set, layer, candidate], the given dimensions first, and attention [layer, candidate]."""
        wanted = most_attended(received, self.top_percent)
        given, others = values[0], values[1:]
        own = compare(given > self.tau, wanted)
        self.counts.append(own)
        self._swept.append([compare(given > tau, wanted) for tau in self.sweep])
        self._random.append([compare(other > self.tau, wanted) for other in others])
        self._matched.append([compare(highest(other, own.detected), wanted) for other in others])
        self._chance.append(float(wanted.mean()))
        return own

    def summary(self) -> dict:
        """Precision and recall with intervals: overall, per layer, by tau, and of random dimensions; the verdict."""
        layers = len(self.counts[0].wanted)
        edited = edited_layers(layers)
        overall = scores([[own] for own in self.counts], edited)
        return {
            "verdict": verdict(overall["precision"]["mean"], overall["recall"]["mean"]),
            **overall,
            "chance": float(np.mean(self._chance)),
            "random_same_tau": scores(self._random, edited),
            "random_same_count": scores(self._matched, edited),
            "by_tau": [
                {"tau": tau, **scores([[swept[i]] for swept in self._swept], edited)}
                for i, tau in enumerate(self.sweep)
            ],
            "by_layer": [
                {"layer": layer, **scores([[own] for own in self.counts], slice(layer, layer + 1))}
                for layer in range(layers)
            ],
        }


def edited_layers(layers: int) -> slice:
    """The layers that VAR edits. Raises ValueError where a model has none."""
    if layers - 1 <= FIRST_LAYER:
        raise ValueError(f"a model of {layers} layers has none that VAR edits (from layer {FIRST_LAYER}, not the last)")
    return slice(FIRST_LAYER, layers - 1)


def scores(samples: list[list[Counts]], layers: slice) -> dict:
    """Precision and recall pooled over layers: per sample the mean over its sets, then mean and interval over samples.

    `detected` is the mean number of detected tokens per layer. A set that detects nothing has no precision.
    """
    precisions, recalls, detected = [], [], []
    for sets in samples:
        defined = [value for value in (each.precision(layers) for each in sets) if value is not None]
        if defined:
            precisions.append(np.mean(defined))
        if sets:
            recalls.append(np.mean([each.recall(layers) for each in sets]))
            detected.append(np.mean([each.detected[layers].mean() for each in sets]))
    return {
        "precision": mean_interval(precisions, SHARE),
        "recall": mean_interval(recalls, SHARE),
        "detected": float(np.mean(detected)) if detected else None,
    }


def verdict(precision: float | None, recall: float) -> str:
    """good, fair or poor, by the published script's rule; no precision (nothing detected) is poor."""
    if precision is None:
        return "poor"
    if precision > GOOD_PRECISION and recall > GOOD_RECALL:
        return "good"
    return "fair" if precision > FAIR_PRECISION else "poor"
