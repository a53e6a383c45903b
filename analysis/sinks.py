"""Sink dimensions of the residual stream, and their precision and recall for the most attended tokens.

A sink is a token that attracts attention regardless of its meaning; in a few dimensions its residual stream is far
larger than elsewhere (Sun et al., "Massive Activations in Large Language Models", COLM 2024). Magnitudes are
m = |x| / RMS(x) per token: 1 is the RMS, sqrt(width) a token with a single nonzero dimension. Per layer the candidates
(the tokens of the images, or those of the first half of a text) are split into the most attended tokens and the rest;
four statistics per dimension:

    top     mean over the most attended tokens, weighted by the attention that they receive, since few of them are
            sinks and those receive most of it
    gap     top minus the mean over the rest; near 0 for a dimension that is large at all tokens
    above   fraction of the rest below top
    high    90th percentile of the rest; a threshold lies between high and top

A dimension stands out where top is a spike and above is nearly 1. At most one layer of one sample is in memory.
Layers count from 0; layer l is the input of layer l.

Validation: detected are the candidates whose |RMSNorm(x)| is above tau in one of the dimensions; wanted are the top
tenth of the candidates by attention received. Counts are pooled over the layers that VAR edits, per sample; means and
intervals are over samples. A sample without a detected token has recall 0 and no precision. Random dimensions are the
control, twice: with the same tau, where they mostly detect nothing, and with the same number of detected tokens (the
highest ones), where precision is comparable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from analysis.files import check_place
from analysis.statistics import SHARE, mean_interval
from data.errors import FlagError, InputError, SampleError, check_at_least
from models.layout import TokenLayout
from models.var import VAR, read_findings

AT_LEAST_0 = (0.0, math.inf)  # range of a number of tokens
ABOVE = 0.9  # minimum fraction of the other tokens below a spike
FIRST_LAYER = 2  # sinks form in the first layers, which are drawn and not counted
FEWEST = 10  # minimum number of candidates, so that a tenth of them is one token
EPSILON = 1e-6  # of the RMS normalisation
KINDS = ("visual", "text")  # of sinks: on image tokens, on all others


@dataclass(frozen=True)
class ProbeSettings:
    """Recording of the attention that each token receives."""

    top_percent: float = 0.1
    """Fraction of the tokens that counts as most attended."""
    offload: bool = False
    """Keep recorded queries and keys on the CPU, for long prompts on a small GPU."""

    def __post_init__(self) -> None:
        if not 0 < self.top_percent <= 0.5:
            raise FlagError(
                "--top-percent",
                "out-of-range",
                f"--top-percent {self.top_percent} is out of range; give a fraction such as 0.1, at most 0.5",
            )


@dataclass(frozen=True)
class FindingsFile:
    """Output file of the findings."""

    output: str | None = None
    """JSON output file (default: sink_dimensions.json in the results folder)."""

    def __post_init__(self) -> None:
        if self.output is not None and not Path(self.output).exists():
            check_place(Path(self.output), "--output")

    def path(self, out_dir: Path, continued: bool = False) -> Path:
        """Path of the JSON file, which a `continued` run may have written. Raises FileExistsError if it exists."""
        if self.output is None:
            return out_dir / "sink_dimensions.json"
        output = Path(self.output)
        if (output.exists() and not continued) or out_dir.absolute().is_relative_to(output.absolute()):
            raise FileExistsError(f"{output} exists, and nothing is ever overwritten: pass another --output")
        return output


@dataclass(frozen=True)
class SinkDimensions:
    """Dimensions and threshold to validate (default: the known ones of the language model)."""

    dimensions: tuple[int, ...] = ()
    """Hidden dimensions, counted from 0."""
    file: str | None = None
    """JSON file of find_sink_dimensions_simple.py, instead of --dimensions."""
    tau: float | None = None
    """Sink threshold: |RMSNorm(x)| above tau in one of the dimensions (default: the file's, else 20, published for
    a width of 4096)."""

    def __post_init__(self) -> None:
        if self.dimensions and self.file:
            raise ValueError("--dimensions and --file were both given; choose one")
        VAR(self.dimensions or (0,), **self._threshold)

    @property
    def _threshold(self) -> dict[str, float]:
        return {} if self.tau is None else {"tau": self.tau}

    def check_file(self) -> None:
        """Read --file. Raises FileNotFoundError or ValueError where that fails."""
        if self.file:
            read_findings(self.file)

    def for_model(self, model) -> VAR:
        """VAR settings to validate on this model. Raises as `VAR.for_model` does."""
        return VAR.for_model(model, self.dimensions or None, self.file, **self._threshold)


@dataclass(frozen=True)
class RandomControl:
    """Random dimensions as a control."""

    random_sets: int = 20
    """Number of random sets of dimensions."""
    seed: int = 0
    """Seed of the random dimensions."""

    def __post_init__(self) -> None:
        check_at_least(self, random_sets=1, seed=0)


@dataclass(frozen=True, eq=False)
class Watch:
    """Tokens and rows whose attention counts: `candidates` int64 [candidate], and rows `first` to `last` - 1.

    All these rows attend to all candidates; rows before some candidates would favour early tokens.
    """

    candidates: torch.Tensor
    first: int
    last: int


def watch(layout) -> Watch:
    """The tokens of all images and the rows after them; without images, the first half and the rows of the second.

    Raises SampleError for fewer than ten candidates, or without a row.
    """
    candidates, last = layout.image_positions, layout.length
    first = int(candidates.max()) + 1 if len(candidates) else (layout.start + last + 1) // 2
    if not len(candidates):
        candidates = torch.arange(layout.start, first)
    if len(candidates) < FEWEST or first >= last:
        raise SampleError(
            "prompt too short",
            f"{len(candidates)} tokens could be sinks and {last - first} rows look at all of them; at least {FEWEST} "
            "and one are needed: give a larger image or a longer text",
        )
    return Watch(candidates, first, last)


def attention_received(trace, watched: Watch, sample: int = 0) -> torch.Tensor:
    """Attention on each candidate, mean over heads and watched rows, block by block: float32 [layer, candidate]."""
    begin = int(trace.start[sample])
    received = torch.zeros(trace.layers, len(watched.candidates))
    for layer in range(trace.layers):
        for _, weights in trace.blocks(layer, sample, watched.first, watched.last):
            received[layer] += weights.sum((0, 1)).cpu()[watched.candidates - begin]
            del weights  # otherwise two blocks would be in memory at once
    return received / (trace.heads * (watched.last - watched.first))


def spike(width: int) -> float:
    """Minimum magnitude of a spike: the published tau (20 at width 4096), scaled by sqrt(width)."""
    return 20 * math.sqrt(width / 4096)


def magnitudes(rows: torch.Tensor) -> torch.Tensor:
    """m = |x| / RMS(x) of residual rows [row, width], float32 of the same shape; squares may overflow float16."""
    square = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=torch.float32) ** 2 / rows.shape[-1]
    return rows.float().abs() * torch.rsqrt(square + EPSILON)


def top_count(candidates: int, top_percent: float) -> int:
    """Number of candidates that count as most attended; `top_percent` is a fraction, as in the published script."""
    return min(max(1, int(candidates * top_percent)), candidates - 1)


class Contrast:
    """Statistics of one sample that contrast its most attended tokens with the rest, per layer and dimension.

    `see` takes the residual stream of one layer after another.
    """

    def __init__(self, received: torch.Tensor, candidates: torch.Tensor, top_percent: float):
        self.received, self.candidates = received, candidates
        self.most = received.topk(top_count(len(candidates), top_percent), dim=1).indices
        self._layers: list[torch.Tensor] = []

    def see(self, layer: int, hidden: torch.Tensor) -> None:
        """Reduce the input of a layer, [sample, row, width] with one sample, to its [4, width]."""
        magnitude = magnitudes(hidden[0, self.candidates.to(hidden.device)])
        most = torch.zeros(len(magnitude), dtype=torch.bool, device=hidden.device)
        most[self.most[layer].to(hidden.device)] = True
        attention = self.received[layer].to(hidden.device)[most]
        total = attention.sum()
        shares = torch.where(total > 0, attention / total, 1 / len(attention))
        top, rest = shares @ magnitude[most], magnitude[~most]
        high = rest.kthvalue(math.ceil(ABOVE * len(rest)), dim=0).values
        self._layers.append(torch.stack([top, top - rest.mean(0), (rest < top).sum(0) / len(rest), high]).cpu())

    @property
    def top_share(self) -> float:
        """Fraction of the attention on all candidates that the most attended ones receive, mean over layers."""
        return float((self.received.gather(1, self.most).sum(1) / self.received.sum(1)).mean())

    @property
    def statistics(self) -> np.ndarray:
        """top, gap, above and high: float32 [4, layer, width]."""
        return torch.stack(self._layers, 1).numpy()


@dataclass(frozen=True, eq=False)
class Profile:
    """Means over samples of top, gap, above and high, each [layer, width], in the order of the layers."""

    top: np.ndarray
    gap: np.ndarray
    above: np.ndarray
    high: np.ndarray

    @property
    def stands_out(self) -> np.ndarray:
        """Dimensions with a spike at the most attended tokens and not at the others: bool [layer, width]."""
        return (self.top >= spike(self.top.shape[1])) & (self.above >= ABOVE)

    def consistent(self) -> list[dict]:
        """Dimensions that stand out in a quarter of the counted layers (at least two, if there are), best first.

        `frequency` is the number of these layers and `avg_score` the mean gap in them.
        """
        counted = self.stands_out[FIRST_LAYER:]
        needed = max(min(2, len(counted)), math.ceil(len(counted) / 4))
        frequency = counted.sum(0)
        gaps = self.gap[FIRST_LAYER:]
        findings = [
            {"dim": int(d), "frequency": int(frequency[d]), "avg_score": float(gaps[counted[:, d], d].mean())}
            for d in np.flatnonzero(frequency >= max(needed, 1))
        ]
        return sorted(findings, key=lambda finding: (-finding["frequency"], -finding["avg_score"]))

    def per_layer_top(self, count: int = 10) -> dict[str, list[dict]]:
        """Dimensions of largest gap in each layer."""
        return {
            f"layer_{layer}": [{"dim": int(d), "score": float(gaps[d])} for d in np.argsort(-gaps)[:count]]
            for layer, gaps in enumerate(self.gap)
        }

    def tau(self, dimensions: list[int]) -> float | None:
        """Midpoint between `high` of the rest and `top` of the attended tokens, in the largest of these dimensions.

        Mean over the counted layers in which one of them stands out, rounded to a tenth; None without dimensions.
        """
        if not dimensions:
            return None
        layers = FIRST_LAYER + np.flatnonzero(self.stands_out[FIRST_LAYER:, dimensions].any(1))
        chosen = np.ix_(layers, dimensions)
        return round(float((self.top[chosen].max(1) + self.high[chosen].max(1)).mean() / 2), 1)


class SinkSearch:
    """Sums over samples, in two halves (every other sample), so that one half can validate the other."""

    def __init__(self):
        self._sums: list[torch.Tensor | None] = [None, None]
        self._counts = [0, 0]

    def add(self, statistics: np.ndarray) -> None:
        """Add the `Contrast.statistics` of one sample."""
        half = sum(self._counts) % 2
        statistics = torch.from_numpy(statistics).double()
        self._sums[half] = statistics if self._sums[half] is None else self._sums[half] + statistics
        self._counts[half] += 1

    @property
    def samples(self) -> int:
        """Number of samples added."""
        return sum(self._counts)

    def profile(self, half: int | None = None) -> Profile:
        """Profile of all samples, or of one half. Raises ValueError without a sample."""
        chosen = [0, 1] if half is None else [half]
        count = sum(self._counts[item] for item in chosen)
        if not count:
            raise InputError("no-sample", "no sample was added, so there is nothing to tell")
        means = sum(self._sums[item] for item in chosen if self._sums[item] is not None) / count
        return Profile(*means.numpy())

    def findings(self, most: int = 2) -> dict:
        """Results under the names of the published script: recommended and consistent dimensions, the top per layer.

        Recommended are the first `most` consistent dimensions that are also consistent in each half of the samples;
        `reason` explains a smaller number, `tau` is an initial threshold.
        """
        whole = self.profile()
        consistent = [{**item, **self._other_half(item["dim"])} for item in whole.consistent()]
        halves = [[item["dim"] for item in self.profile(half).consistent()] for half in (0, 1) if self._counts[half]]
        both = set(halves[0]) & set(halves[-1]) if len(halves) == 2 else set()
        stable = [item["dim"] for item in consistent if item["dim"] in both]
        recommended = stable[:most]
        layers, width = whole.top.shape
        return {
            "recommended_dimensions": recommended,
            "tau": whole.tau(recommended),
            "reason": self._reason(whole, consistent, stable, most),
            "num_samples": self.samples,
            "num_layers": layers,
            "hidden_dim": width,
            "consistent_dimensions": consistent[:20],
            "halves": [half[:20] for half in halves],
            "per_layer_top": whole.per_layer_top(),
        }

    def _other_half(self, dimension: int) -> dict:
        """{"other_half_score": mean gap of a dimension in the second half of the samples, over the counted layers in
        which it stands out in the first half}; None without such a layer or a second half.

        avg_score uses the samples that selected dimension and layers, hence is biased upward.
        """
        if not all(self._counts):
            return {"other_half_score": None}
        first, second = self.profile(0), self.profile(1)
        layers = FIRST_LAYER + np.flatnonzero(first.stands_out[FIRST_LAYER:, dimension])
        return {"other_half_score": float(second.gap[layers, dimension].mean()) if len(layers) else None}

    def _reason(self, whole: Profile, consistent: list[dict], stable: list[int], most: int) -> str:
        if not consistent:
            top = np.where(whole.above >= ABOVE, whole.top, 0)[FIRST_LAYER:]
            if not top.size:
                return f"the model has no layer behind the first {FIRST_LAYER}, where sinks could be told"
            if not top.any():
                return "no dimension is larger at the most attended tokens than at nine tenths of the others"
            width = top.shape[1]
            layer, dimension = np.unravel_index(top.argmax(), top.shape)
            return (
                "no dimension spikes at the most attended tokens in enough layers: the largest, "
                f"{dimension} in layer {layer + FIRST_LAYER}, reaches {top.max():.1f}, and a spike is "
                f"{spike(width):.1f} in a model {width} wide"
            )
        if self.samples < 2:
            return "one sample alone cannot show that a dimension is the same in others; give more"
        if not stable:
            return f"no dimension is consistent in both halves of the {self.samples} samples; give more"
        kept = f"{len(stable)} consistent in both halves of the samples"
        return f"{kept}, the first {most} are recommended" if len(stable) > most else kept


GOOD_PRECISION, GOOD_RECALL, FAIR_PRECISION = 0.5, 0.3, 0.3  # from the published script


class Spikes:
    """Max over each set of dimensions of |RMSNorm(x)_d| of one sample's candidates, `values` [set, layer, key].

    `see` takes the residual stream of one layer after another. All sets have the same number of dimensions.
    """

    def __init__(self, candidates: torch.Tensor, sets: np.ndarray):
        self.candidates, self.sets = candidates, torch.as_tensor(sets)
        self._layers: list[torch.Tensor] = []

    def see(self, layer: int, hidden: torch.Tensor) -> None:
        """Reduce the input of a layer, [sample, row, width] with one sample, to a number per set and candidate."""
        magnitude = magnitudes(hidden[0, self.candidates.to(hidden.device)])
        self._layers.append(magnitude[:, self.sets.to(hidden.device)].amax(-1).T.cpu())

    @property
    def values(self) -> np.ndarray:
        """float32 [set, layer, key]"""
        return torch.stack(self._layers, 1).numpy()


class KindCounts:
    """Numbers of detected tokens among all tokens of one prompt, by kind: those of images, and all others.

    detect: maps magnitudes [row, width] to bool [row, ...]. `see` takes the residual stream of one layer after another.
    """

    def __init__(self, layout: TokenLayout, detect: Callable[[torch.Tensor], torch.Tensor]):
        self.start, self.detect = layout.start, detect
        self.image = torch.zeros(layout.length - layout.start, dtype=torch.bool)
        self.image[layout.image_positions - layout.start] = True
        self._layers: list[torch.Tensor] = []

    def see(self, layer: int, hidden: torch.Tensor) -> None:
        """Reduce the input of a layer, [sample, row, width] with one sample, to numbers by kind."""
        detected = self.detect(magnitudes(hidden[0, self.start :])).cpu()
        self._layers.append(torch.stack([detected[self.image].sum(0), detected[~self.image].sum(0)]))

    @property
    def values(self) -> np.ndarray:
        """int32 [kind, layer, ...], in the order of KINDS."""
        return torch.stack(self._layers, 1).int().numpy()


def summarise_kinds(counts: Sequence[np.ndarray]) -> dict:
    """Sinks by kind, from `KindCounts.values` [kind, layer] of each prompt: the number per layer that VAR edits, as a
    mean over prompts with its interval, the number in each layer, and the edited layers without a visual sink."""
    counts = np.array(counts)
    edited = edited_layers(counts.shape[2])
    by_layer = counts.mean(0)
    visual = by_layer[0, edited]
    return {
        **dict(zip(KINDS, (mean_interval(each, AT_LEAST_0) for each in counts[:, :, edited].mean(2).T), strict=True)),
        "layers_without_visual": (edited.start + np.flatnonzero(visual == 0)).tolist(),
        "by_layer": [dict(zip(KINDS, each, strict=True)) for each in by_layer.T.tolist()],
    }


@dataclass(frozen=True, eq=False)
class Counts:
    """Detected, wanted, and both detected and wanted candidates of one sample per layer; int [layer]."""

    detected: np.ndarray
    wanted: np.ndarray
    both: np.ndarray

    def precision(self, layers=slice(None)) -> float | None:
        """Fraction of the detected tokens that are wanted, pooled over `layers`; None without a detected token."""
        detected = self.detected[layers].sum()
        return float(self.both[layers].sum() / detected) if detected else None

    def recall(self, layers=slice(None)) -> float:
        """Fraction of the wanted tokens that are detected, pooled over `layers`."""
        return float(self.both[layers].sum() / self.wanted[layers].sum())


def most_attended(received: np.ndarray, top_percent: float) -> np.ndarray:
    """Top tokens of each layer by attention received [layer, candidate]: bool of the same shape."""
    return highest(received, np.full(len(received), top_count(received.shape[1], top_percent)))


def highest(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The `counts` [layer] largest of each layer's values [layer, candidate], ties by lowest index: bool."""
    rank = np.argsort(np.argsort(-values, axis=1, kind="stable"), axis=1)
    return rank < counts[:, None]


def compare(detected: np.ndarray, wanted: np.ndarray) -> Counts:
    """Counts of two bool [layer, candidate]."""
    return Counts(detected.sum(1), wanted.sum(1), (detected & wanted).sum(1))


def random_sets(width: int, dimensions: tuple[int, ...], sets: int, rng: np.random.Generator) -> np.ndarray:
    """The given dimensions, then `sets` random sets of as many others: int [1 + sets, dimension].

    Raises ValueError where a model `width` wide has too few other dimensions.
    """
    others = np.setdiff1d(np.arange(width), dimensions)
    if len(others) < len(dimensions):
        raise InputError(
            "too-few-dimensions", f"{len(dimensions)} dimensions of {width} leave too few to compare them with"
        )
    drawn = [rng.choice(others, len(dimensions), replace=False) for _ in range(sets)]
    return np.array([dimensions, *drawn])


@dataclass(frozen=True, eq=False)
class SampleCounts:
    """Counts of one sample: of the given dimensions at tau (`own`) and at other values of tau (`swept`), and of each
    random set at the same tau (`random`) and with the same number of detected tokens (`matched`). `chance`: fraction of
    wanted candidates."""

    own: Counts
    swept: list[Counts]
    random: list[Counts]
    matched: list[Counts]
    chance: float

    @classmethod
    def stored(cls, values: dict) -> SampleCounts:
        """Counts from their values in a part of a run."""
        lists = {kind: [Counts(**counts) for counts in values[kind]] for kind in ("swept", "random", "matched")}
        return cls(own=Counts(**values["own"]), chance=values["chance"], **lists)


def count_sample(
    values: np.ndarray, received: np.ndarray, tau: float, sweep: Sequence[float], top_percent: float
) -> SampleCounts:
    """Counts of one sample: spikes [set, layer, candidate], given dimensions first; attention [layer, candidate]."""
    wanted = most_attended(received, top_percent)
    given, others = values[0], values[1:]
    own = compare(given > tau, wanted)
    return SampleCounts(
        own=own,
        swept=[compare(given > other, wanted) for other in sweep],
        random=[compare(other > tau, wanted) for other in others],
        matched=[compare(highest(other, own.detected), wanted) for other in others],
        chance=float(wanted.mean()),
    )


def agreement(samples: Sequence[SampleCounts], sweep: Sequence[float]) -> dict:
    """Precision and recall with intervals: overall, per layer, by tau, and of random dimensions; the verdict."""
    layers = len(samples[0].own.wanted)
    edited = edited_layers(layers)
    own = [[sample.own] for sample in samples]
    overall = scores(own, edited)
    return {
        "verdict": verdict(overall["precision"]["mean"], overall["recall"]["mean"]),
        **overall,
        "chance": float(np.mean([sample.chance for sample in samples])),
        "random_same_tau": scores([sample.random for sample in samples], edited),
        "random_same_count": scores([sample.matched for sample in samples], edited),
        "by_tau": [
            {"tau": tau, **scores([[sample.swept[index]] for sample in samples], edited)}
            for index, tau in enumerate(sweep)
        ],
        "by_layer": [{"layer": layer, **scores(own, slice(layer, layer + 1))} for layer in range(layers)],
    }


def edited_layers(layers: int) -> slice:
    """Layers that VAR edits. Raises ValueError for a model without any."""
    if layers - 1 <= FIRST_LAYER:
        raise InputError(
            "too-few-layers",
            f"a model of {layers} layers has none that VAR edits (from layer {FIRST_LAYER}, not the last)",
        )
    return slice(FIRST_LAYER, layers - 1)


def scores(samples: list[list[Counts]], layers: slice) -> dict:
    """Precision and recall pooled over layers: per sample the mean over its sets, then mean and interval over samples.

    `detected` is the mean number of detected tokens per layer. A set without a detected token has no precision.
    """
    precisions, recalls, detected = [], [], []
    for sets in samples:
        defined = [value for value in (item.precision(layers) for item in sets) if value is not None]
        if defined:
            precisions.append(np.mean(defined))
        if sets:
            recalls.append(np.mean([item.recall(layers) for item in sets]))
            detected.append(np.mean([item.detected[layers].mean() for item in sets]))
    return {
        "precision": mean_interval(precisions, SHARE),
        "recall": mean_interval(recalls, SHARE),
        "detected": float(np.mean(detected)) if detected else None,
    }


def verdict(precision: float | None, recall: float) -> str:
    """good, fair or poor, by the published script's rule; poor without a precision (no detected token)."""
    if precision is None:
        return "poor"
    if precision > GOOD_PRECISION and recall > GOOD_RECALL:
        return "good"
    return "fair" if precision > FAIR_PRECISION else "poor"
