"""What many samples say together of where words and cells look: tables, and the summary's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from analysis.results import RunFolder, write_table
from analysis.spatial_attention import CONTROLS, QUERIES, WORDS, Scene, targets, with_controls
from analysis.statistics import (
    DIFFERENCE,
    LEVEL,
    NONNEGATIVE,
    REAL,
    SHARE,
    Bounds,
    correct_family,
    head_tests,
    known_mean,
    mean_interval,
    paired_difference,
    smallest_p,
    strongest_head,
)
from analysis.words import find_word, why_missing

FAMILY = "every query, metric and control of this summary"
CONDITIONS = ("own", *CONTROLS)
OF_HEADS = ("own", "other", "shuffled")
SHOWN = ("mass", "pointing", "distance")  # in samples.csv, of the words; everything is in measures.csv


class Metric(NamedTuple):
    """Name of a metric in figures, its unit, the better side of its control (1 above, -1 below, 0 neither), and its
    range."""

    label: str
    unit: str
    better: int
    bounds: Bounds

    @property
    def difference(self) -> Bounds:
        """Range of the difference of two values."""
        return DIFFERENCE if self.bounds == SHARE else REAL


METRICS = {
    "mass": Metric("mass in the box", "share", 1, SHARE),
    "entity_background": Metric("box against background", "r / (1 + r)", 1, SHARE),
    "pointing": Metric("pointing game", "hits", 1, SHARE),
    "topk_iou": Metric("top-k IoU", "", 1, SHARE),
    "soft_iou": Metric("soft IoU", "", 1, SHARE),
    "distance": Metric("distance of centres", "patches", -1, NONNEGATIVE),
    "wasserstein_x": Metric("Wasserstein, x", "patches", -1, NONNEGATIVE),
    "wasserstein_y": Metric("Wasserstein, y", "patches", -1, NONNEGATIVE),
    "wasserstein_relation": Metric("Wasserstein, relation", "patches", -1, NONNEGATIVE),
    "dispersion": Metric("dispersion", "patches", 0, NONNEGATIVE),
    "entropy": Metric("entropy", "bits", 0, NONNEGATIVE),
    "image_attention": Metric("attention on the image", "share", 0, SHARE),
}
COLUMNS = (
    "image", "prompt", "answer", "answered_right", "relation", "first", "second", "reversed",
    *(f"{metric}_{word}" for word in WORDS for metric in SHOWN), "folder",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Looked:
    """One sample measured. `values` {query: {condition: {metric: float}}} of the chosen layers, heads averaged;
    `heads` {query: {condition: {metric: float64 [layer, head]}}}, of OF_HEADS; `maps` {query: [2, row, col]}, own and
    shuffled, as `values`. All NaN for a word that is not there."""

    name: str
    values: dict[str, dict[str, dict[str, float]]]
    heads: dict[str, dict[str, np.ndarray]]
    maps: dict[str, np.ndarray]


def look(
    name: str, scene: Scene, maps: Mapping[str, np.ndarray], layers: Mapping[str, Sequence[int]], causal: bool
) -> Looked:
    """Measures one sample's maps [2, layer, head, row, col] by query, of the picture and of the shuffled one.

    layers: for each query the layers (indices into its maps) that are averaged; `causal` as in `targets`.
    """
    values, heads, means = {}, {}, {}
    for query, target in targets(scene, causal).items():
        means[query] = maps[query][:, list(layers[query])].mean((1, 2))
        unknown = 0 if np.isfinite(maps[query]).all() else np.nan
        found, of_heads = (
            {
                kind: {name: value + unknown for name, value in each.items()}
                for kind, each in with_controls(*np.nan_to_num(shown), target).items()
            }
            for shown in (means[query], maps[query])
        )
        values[query] = {kind: {name: float(v) for name, v in each.items()} for kind, each in found.items()}
        heads[query] = {kind: of_heads[kind] for kind in OF_HEADS if kind in of_heads}
    return Looked(name, values, heads, means)


def sample_row(sample, answer: str, looked: Looked, folder: str) -> dict:
    """The row of a sample, the values of COLUMNS, of the chosen layers with heads averaged; `reversed`: the world lists
    its shapes the other way round than the caption, `answered_right`: the answer holds the true relation. sample: has
    `prompt`, `words` and `pair`; folder: its pictures."""
    shown = {f"{metric}_{word}": looked.values[word]["own"][metric] for word in WORDS for metric in SHOWN}
    return {
        "image": sample.pair.image_path, "prompt": sample.prompt, "answer": answer,
        "answered_right": int(find_word(answer, sample.words["relation"]) is not None), **sample.words,
        "reversed": int(sample.pair.reversed), **shown, "folder": folder,
    }  # fmt: skip


def summarise(found: Sequence[Looked], seed: int) -> dict:
    """{query: {metric: interval of its own values and, in "controls", of every control with the paired difference}}.

    A difference is own - control over samples that have both, with p of the sign-flip test, and q over all queries,
    metrics and controls as one family.
    """
    summary, tests = {}, []
    for query in QUERIES:
        summary[query] = {}
        for metric in metrics_of(found, query):
            own = column(found, query, "own", metric)
            controls = {
                control: {
                    "mean": mean_of(other := column(found, query, control, metric)),
                    "difference": paired_difference(own, other, seed, METRICS[metric].difference),
                }
                for control in CONTROLS
                if metric in found[0].values[query].get(control, ())
            }
            summary[query][metric] = {**mean_interval(own, METRICS[metric].bounds), "controls": controls}
            tests += [control["difference"] for control in controls.values()]
    correct_family(tests, FAMILY)
    return summary


def missing_words(found: Sequence[Looked]) -> dict[str, int]:
    """How many samples hold no map of a word, by reason; the others of their words count."""
    missing = {word: sum(not np.isfinite(each.maps[word]).all() for each in found) for word in WORDS}
    return {why_missing(word): count for word, count in missing.items() if count}


def metrics_of(found: Sequence[Looked], query: str) -> list[str]:
    """The metrics of a query, in the order of METRICS."""
    return [metric for metric in METRICS if metric in found[0].values[query]["own"]]


def column(found: Sequence[Looked], query: str, condition: str, metric: str) -> np.ndarray:
    """One figure of every sample, float64 [sample]."""
    return np.array([each.values[query][condition][metric] for each in found])


def mean_of(values: np.ndarray) -> float | None:
    """Mean of what is known; None of nothing."""
    mean = float(known_mean(values))
    return None if np.isnan(mean) else mean


def compare_heads(found: Sequence[Looked]) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """{query: {metric: arrays [layer, head]}}: means "own", "other" and "shuffled", and "difference", own - "against",
    as `head_tests` says.

    The test compares own with the other shape's box, or, where there is none, with the shuffled picture. That tells
    less: the boxes are those of the picture and lie on anything in the shuffled one, so that a head which looks at
    whatever is drawn differs as well; such a test says that a head reacts to the picture. Of seeds, own - other does
    not tell a head that finds the seed's shape from one that looks nearby, which the shuffled picture does.
    """
    tested = {}
    for query in QUERIES:
        tested[query] = {}
        for metric in metrics_of(found, query):
            values, against = head_values(found, query, metric)
            tests = head_tests(values["own"] - values[against])
            means = {kind: known_mean(value) for kind, value in values.items()}
            tested[query][metric] = {
                **means, "against": np.full(tests["p"].shape, against), "difference": tests.pop("mean"), **tests
            }  # fmt: skip
    return tested


def head_values(found: Sequence[Looked], query: str, metric: str) -> tuple[dict[str, np.ndarray], str]:
    """Values of a metric by OF_HEADS, each [sample, layer, head], NaN where there are none; and which of them "own" is
    tested against."""
    missing = np.full_like(found[0].heads[query]["own"][metric], np.nan)
    values = {
        kind: np.stack([each.heads[query].get(kind, {}).get(metric, missing) for each in found]) for kind in OF_HEADS
    }
    return values, "other" if metric in found[0].heads[query].get("other", ()) else "shuffled"


def summarise_heads(found: Sequence[Looked], tested: dict, seed: int) -> dict:
    """Counts of heads that differ from what they are compared "against" (q <= LEVEL), each way, by query and metric.

    "strongest" is the head of largest effect on one half of the samples with its difference, effect and p on the other
    (`strongest_head`), and q over the strongest heads of all queries and metrics.
    """
    summary = {}
    for query, by_metric in tested.items():
        summary[query] = {}
        for metric, arrays in by_metric.items():
            differs, effect = arrays["q"] <= LEVEL, arrays["effect"]
            values, against = head_values(found, query, metric)
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
    """The tests among which q [layer, head] corrects."""
    return f"{np.isfinite(q).sum()} heads, one query and metric"


def save_tables(run: RunFolder, found: Sequence[Looked], tested: dict) -> None:
    """Writes measures.csv, one row per sample, query and metric with every control beside it, and heads.csv, one row
    per query, metric and head; its q corrects over the heads of one query and metric."""
    measures = [
        {
            "sample": each.name, "query": query, "metric": metric,
            **{kind: each.values[query].get(kind, {}).get(metric, "") for kind in CONDITIONS},
        }
        for each in found for query in QUERIES for metric in metrics_of(found, query)
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
