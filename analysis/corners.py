"""Comparison of four corners: heads that respond to an object in every corner, and heads that respond in one corner.

Input: the folders of four runs of head_attention_stats_qwen2.py, one per corner, on the same heads and pairs. The
*response* of a head is its attention with the object minus its attention without; a corner's *map* m_c is the mean
response over pairs, [layer, head]. Scores of a head, from the four maps:

    mean map      mean of m_c                 residual      m_c - mean map
    shared        min over c of s m_c         unique to c   min(s m_c, min over d != c of s (m_c - m_d))

s is +1, or -1 for heads that lose attention, whichever gives the larger score. A shared head responds in the same
direction in every corner by at least its score; a unique head responds in its corner, by its score more than in any
other. Each score is a minimum over parts. A head is *called* shared or unique if every part is above 0 in a test of
its own: the largest p of the parts is valid for all of them (Berger, 1982), and q (Benjamini and Hochberg) over all
heads (and corners) bounds the false discovery rate.

Two hypotheses about all heads together, tested by permutation:

    specialise    H0: the corner of the object does not matter. Within each pair the four responses, all heads together,
                  are permuted among the corners. Statistic: root mean square of the residuals.
    share         H0: a head's rank in one corner says nothing about another corner. Within each layer the heads of each
                  map are permuted. Statistic: correlation between the maps of two corners, layer means subtracted.
                  Noise alone correlates the maps of heads that vary more than others. So a second H0 must be rejected
                  too: no head responds, and full and control can be exchanged within each pair, in all corners at once
                  (sign flips; statistic: mean covariance between two maps). p is the larger of the two.

The published sweep counts how often a head is among the `topk` of its layer that change most. `over_chance` maps these
counts for comparison. They are not tested: a head whose attention varies more than that of others changes most in every
corner, with or without an object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy import stats

from analysis.head_responses import Responses, read
from analysis.statistics import (
    CONFIDENCE,
    DIFFERENCE,
    MIN_SPLIT,
    RESAMPLES,
    Bounds,
    benjamini_hochberg,
    correct_family,
    halves,
    head_tests,
    mean_interval,
    sign_flip_test,
)
from data.errors import InputError

CORNERS = ("topleft", "topright", "bottomleft", "bottomright")
CORNER_NAME = re.compile(r"(top|upper|bottom|lower)[\s_-]*(left|right)", re.IGNORECASE)
FLAGS, LOADED = ("max_new_tokens", "load_4bit", "load_8bit"), ("revision", "family", "dtype")  # of settings.json
MEAN, RESIDUAL, SHARED, UNIQUE = "mean map", "residual", "shared", "unique"
RESPONSE_DIFFERENCE: Bounds = (-2.0, 2.0)  # range of the difference of two responses
TESTS = "sharing and specialisation"  # the family of their q
BATCH = 3_000_000  # numbers in memory at a time
TIES = 1e-9  # relative; equal statistics may differ by rounding


@dataclass(frozen=True, eq=False)
class Corners:
    """Results of four runs: `counts` and `signed`, float64 [corner, layer, head, pair], as in
    `analysis.head_responses`; `names` and `folders` of the first axis, `layers` (numbers from 0) of the second, `pairs`
    of the last. `left_out`: (pair, reason) of pairs that a corner lacks. `about`: the settings that all runs share."""

    names: tuple[str, ...]
    folders: tuple[Path, ...]
    counts: np.ndarray
    signed: np.ndarray
    layers: tuple[int, ...]
    pairs: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    about: dict

    @property
    def pairs_named(self) -> str:
        """Number and kind of the pairs, such as "40 synthetic pairs"."""
        return f"{len(self.pairs)} {'synthetic ' * (self.about['pictures'] == 'synthetic')}pairs"

    @property
    def labels(self) -> tuple[str, ...]:
        """Names for figures and text, such as "top left"."""
        return tuple(CORNER_NAME.sub(r"\1 \2", name) for name in self.names)


def read_corners(folders: Sequence[str | Path]) -> Corners:
    """Read four folders, in the order top left to bottom right, restricted to the pairs that all of them have.

    Raises ValueError or FileNotFoundError for folders that cannot be compared: not four, one folder or corner twice, an
    unfinished run, different models, questions, layers or settings, or fewer than two common pairs.
    """
    folders = [Path(folder) for folder in folders]
    if len(folders) != len(CORNERS):
        raise ValueError(
            f"{len(folders)} folders were given; give four, the results of head_attention_stats_qwen2.py for"
            f" {', '.join(CORNERS)}"
        )
    runs: dict[str, tuple[Path, Responses]] = {}
    for folder in folders:
        run = read(folder)
        name = _corner(folder, run)
        if name in runs:
            raise ValueError(f"{runs[name][0]} and {folder} are both of the corner {name}; give one folder for each")
        runs[name] = folder, run
    if set(runs) == set(CORNERS):
        runs = {name: runs[name] for name in CORNERS}
    places, responses = zip(*runs.values(), strict=True)
    about = _common_settings(places, responses)
    pairs, left_out = _common_pairs(tuple(runs), responses)
    picks = [[run.pairs.index(pair) for pair in pairs] for run in responses]
    counts, signed = (
        np.stack([getattr(run, name)[..., pick] for run, pick in zip(responses, picks, strict=True)]).astype(np.float64)
        for name in ("counts", "signed")
    )
    return Corners(tuple(runs), tuple(places), counts, signed, responses[0].layers, pairs, left_out, about)


def _corner(folder: Path, run: Responses) -> str:
    """Corner of a run: from its --corner, its question, its data set or its folder; else the folder's own name."""
    summary = run.summary
    for text in (summary.get("corner"), summary.get("prompt"), summary.get("dataset"), folder.resolve().name):
        if match := CORNER_NAME.search(str(text or "")):
            vertical, horizontal = match[1].lower(), match[2].lower()
            return {"upper": "top", "lower": "bottom"}.get(vertical, vertical) + horizontal
    return folder.resolve().name


def _common_pairs(names: Sequence[str], runs: Sequence[Responses]) -> tuple[tuple[str, ...], tuple]:
    """Pairs that all runs have, in order, and those that some lack with the reason."""
    measured = [set(run.pairs) for run in runs]
    everywhere = set.intersection(*measured)
    if len(everywhere) < 2:
        raise InputError(
            "too-few-common-pairs",
            f"the four runs have {len(everywhere)} pairs in common; at least 2 are needed to compare them",
        )
    every = dict.fromkeys(pair for run in runs for pair in run.pairs)
    left_out = []
    for pair in every:
        if lacking := [name for name, known in zip(names, measured, strict=True) if pair not in known]:
            left_out.append((pair, f"not measured in {' and '.join(lacking)}"))
    return tuple(pair for pair in every if pair in everywhere), tuple(left_out)


def _common_settings(folders: Sequence[Path], runs: Sequence[Responses]) -> dict:
    """Settings of the runs. Raises ValueError where they differ in anything but the corner."""
    settings = [_settings(folder, run) for folder, run in zip(folders, runs, strict=True)]
    for folder, other in zip(folders[1:], settings[1:], strict=True):
        for name, value in settings[0].items():
            if other[name] != value:
                raise InputError(
                    "runs-differ",
                    f"{folders[0]} and {folder} differ in their {name}: {value!r} and {other[name]!r}; only the corner"
                    " may differ",
                )
    return settings[0]


def _settings(folder: Path, run: Responses) -> dict:
    try:
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        flags = {name.replace("_", " "): settings["flags"].get(name) for name in FLAGS}
        loaded = {name: settings["model"].get(name) for name in LOADED}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            "corner-without-settings", f"{folder} has no settings.json of its run; measure that corner again"
        ) from error
    layers, heads, pairs = run.counts.shape
    return {
        "model": run.summary["model"],
        "pictures": "synthetic" if settings.get("data", {}).get("synthetic") else None,
        **loaded,
        "question": CORNER_NAME.sub("CORNER", run.summary["prompt"]),
        "layers": list(run.layers),
        "cubes (layers, heads)": [layers, heads],
        "pairs, skipped ones included": pairs + sum(run.summary["skipped"].values()),
        "topk": run.summary["topk"],
        "patch size": run.summary["patch_size"],
        **flags,
    }


def over_chance(counts: np.ndarray) -> np.ndarray:
    """Share of pairs in which each head is among the top, minus the layer's mean share, the share by chance: [corner,
    layer, head], of 0/1 [corner, layer, head, pair]."""
    shares = counts.mean(-1)
    return shares - shares.mean(-1, keepdims=True)


Scores = dict[tuple[str, int | None], tuple[np.ndarray, np.ndarray]]


def scores(maps: np.ndarray) -> Scores:
    """Score and direction s of every head, each [layer, head], by (kind, corner), of maps [corner, layer, head].

    Kinds: MEAN and SHARED with corner None, RESIDUAL and UNIQUE once per corner.
    """
    more, less = _directed_scores(maps), _directed_scores(-maps)
    return {key: (np.maximum(more[key], less[key]), np.where(more[key] >= less[key], 1, -1)) for key in more}


def _directed_scores(maps: np.ndarray) -> dict[tuple[str, int | None], np.ndarray]:
    """Scores of all kinds for s = +1, [layer, head]."""
    scores = {(MEAN, None): maps.mean(0), (SHARED, None): maps.min(0)}
    for corner, (own, residual) in enumerate(zip(maps, maps - maps.mean(0), strict=True)):
        scores[RESIDUAL, corner] = residual
        scores[UNIQUE, corner] = np.minimum(own, own - np.delete(maps, corner, axis=0).max(0))
    return scores


@dataclass(frozen=True, eq=False)
class Calls:
    """Heads called shared and unique; q and bool arrays: shared [layer, head], unique [corner, layer, head]."""

    q_shared: np.ndarray
    q_unique: np.ndarray
    shared: np.ndarray
    unique: np.ndarray


def call_heads(values: np.ndarray, level: float = 0.05) -> Calls:
    """Shared and unique heads at a false discovery rate of `level`; each kind is a family of its own.

    values: responses [corner, layer, head, pair]. Tests of a response, and of corner against corner pair by pair:
    Wilcoxon's signed-rank test, two-sided.
    """
    positive = {key: score > 0 for key, (score, _) in scores(values.mean(-1)).items()}
    responses = np.stack([_wilcoxon(corner) for corner in values])
    differences = np.zeros((len(values), *responses.shape))  # [corner, corner, layer, head]; 0 is never the largest p
    for one, other in combinations(range(len(values)), 2):
        differences[one, other] = differences[other, one] = _wilcoxon(values[one] - values[other])
    p_unique = [
        np.where(positive[UNIQUE, corner], np.maximum(response, apart.max(0)), 1.0)
        for corner, (response, apart) in enumerate(zip(responses, differences, strict=True))
    ]
    q_shared = benjamini_hochberg(np.where(positive[SHARED, None], responses.max(0), 1.0))
    q_unique = benjamini_hochberg(np.stack(p_unique))
    return Calls(q_shared, q_unique, q_shared <= level, q_unique <= level)


def _wilcoxon(values: np.ndarray) -> np.ndarray:
    """p [layer, head] of values [layer, head, pair] against 0."""
    return head_tests(np.moveaxis(values, -1, 0))["p"]


def rank_heads(score: np.ndarray, top: int) -> list[tuple[int, int]]:
    """(layer, head) of the `top` largest scores [layer, head], in falling order; of equal scores the first."""
    order = np.argsort(-score, axis=None, kind="stable")[:top]
    return [tuple(int(index) for index in np.unravel_index(at, score.shape)) for at in order]


def held_out(values: np.ndarray, top: int, seed: int) -> list[dict] | None:
    """Choose the `top` heads of each kind on one half of the pairs, and score them on the other half.

    values: responses [corner, layer, head, pair]; the halves are the same in all corners.
    Returns rows {"kind", "corner" (index or None), "rank", "layer" (row), "head", "direction", "selection" and
    "held_out" (score on either half, in the direction chosen), "drop" (their difference), "rank_held_out", "low",
    "high" (95 %), "p" of the score on the other half, "q" over all rows}; None for fewer than MIN_SPLIT pairs.
    """
    pairs = values.shape[-1]
    if pairs < MIN_SPLIT:
        return None
    first, second = halves(pairs, np.random.default_rng(seed))
    maps = values[..., second].mean(-1)
    others = {sign: _directed_scores(sign * maps) for sign in (1, -1)}
    rows = []
    for (kind, corner), (score, direction) in scores(values[..., first].mean(-1)).items():
        for rank, head in enumerate(rank_heads(score, top), 1):
            sign = int(direction[head])
            other = others[sign][kind, corner]
            rows.append({
                "kind": kind, "corner": corner, "rank": rank, "layer": head[0], "head": head[1], "direction": sign,
                "selection": float(score[head]), "held_out": float(other[head]),
                "drop": float(score[head] - other[head]), "rank_held_out": int((other > other[head]).sum()) + 1,
                **minimum_test(*score_parts(sign * values[:, *head, second], kind, corner), seed),
            })  # fmt: skip
    correct_family(rows, "every chosen head")
    return rows


def score_parts(values: np.ndarray, kind: str, corner: int | None) -> tuple[np.ndarray, Bounds]:
    """Values [part, pair] whose smallest mean is the score of one head, and their range; values: [corner, pair]."""
    if kind == MEAN:
        return values.mean(0, keepdims=True), DIFFERENCE
    if kind == SHARED:
        return values, DIFFERENCE
    own = values[corner]
    if kind == RESIDUAL:
        return (own - values.mean(0))[None], RESPONSE_DIFFERENCE
    return np.stack([own, *(own - other for other in np.delete(values, corner, axis=0))]), RESPONSE_DIFFERENCE


def minimum_test(parts: np.ndarray, bounds: Bounds, seed: int) -> dict:
    """{"low", "high", "p"} of the minimum of the means of parts [part, pair], each value within `bounds`.

    Low is the lowest of the parts' lower ends; high is the lowest of their upper ends, each at the level of
    Bonferroni's correction for the number of parts. p is the largest p (sign flips), 1 where a mean is not above 0.
    """
    above = (parts.mean(1) > 0).all()
    return {
        "low": min(mean_interval(part, bounds)["low"] for part in parts),
        "high": min(mean_interval(part, bounds, 1 - (1 - CONFIDENCE) / len(parts))["high"] for part in parts),
        "p": max(sign_flip_test(part, seed) for part in parts) if above else 1.0,
    }


def specialisation(values: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> dict:
    """Test that corners differ, of values [corner, layer, head, pair].

    Returns {"observed", "expected" (mean under H0), "ratio", "p", "n": pairs}, and as arrays "null" [resample],
    "p_heads" [layer, head] (one family, not corrected), "by_layer" [layer], "by_layer_null" [resample, layer].
    """

    def spread(*corners, axis):
        means = np.stack([corner.mean(axis) for corner in corners], axis=-1)
        return means - means.mean(-1, keepdims=True)

    test = stats.permutation_test(
        tuple(values), spread, permutation_type="samples", vectorized=True, n_resamples=resamples, axis=-1,
        batch=max(1, BATCH // values.size), rng=np.random.default_rng(seed),
    )  # fmt: skip
    squares, null = (np.square(drawn).mean(-1) for drawn in (test.statistic, test.null_distribution))
    observed, all_null = np.sqrt(squares.mean()), np.sqrt(null.mean((1, 2)))
    expected = float(all_null.mean())
    return {
        "observed": float(observed), "expected": expected, "ratio": float(observed / expected) if expected else None,
        "p": float(_p(observed, all_null)), "n": values.shape[-1], "null": all_null, "p_heads": _p(squares, null),
        "by_layer": np.sqrt(squares.mean(-1)), "by_layer_null": np.sqrt(null.mean(-1)),
    }  # fmt: skip


def sharing(values: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> dict:
    """Test that the same heads respond in all corners, of values [corner, layer, head, pair].

    Returns {"correlation", "p_order" (heads permuted), "p_signs" (signs flipped), "p" (the larger), "n": heads}, and as
    arrays "null" [resample] of permuted heads, "by_layer" [layer], "by_layer_null" [resample, layer]. A map whose heads
    are all equal has no correlation: it is NaN, and every p is None.
    """
    maps = values.mean(-1)
    observed, by_layer = correlations(maps)
    null, null_by_layer = _permute_heads(maps, np.random.default_rng(seed), resamples)
    defined = bool(np.isfinite(observed))
    p_order = float(_p(observed, null)) if defined else None
    p_signs = _sign_test(values, seed, resamples) if defined else None
    return {
        "correlation": float(observed), "p": max(p_order, p_signs) if defined else None, "p_order": p_order,
        "p_signs": p_signs, "n": maps[0].size, "null": null, "by_layer": by_layer, "by_layer_null": null_by_layer,
    }  # fmt: skip


def correlations(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean Pearson correlation between the maps [..., corner, layer, head] of two corners, layer means subtracted.

    Returns it over all heads [...], and by layer [..., layer]; NaN where all heads of a corner's map are equal. With
    unit vectors z_c the mean over pairs of z_c . z_d is (|sum z_c|^2 - C) / (C (C - 1)) for C corners.
    """
    corners = maps.shape[-3]
    centred = maps - maps.mean(-1, keepdims=True)
    squares = np.square(centred).sum(-1, keepdims=True)
    flat = squares <= np.square(TIES * np.abs(maps).max(-1, keepdims=True, initial=0))
    squares = np.where(flat, 0, squares)
    means = []
    for norm, axes in ((squares.sum(-2, keepdims=True), (-2, -1)), (squares, (-1,))):
        unit = np.divide(centred, np.sqrt(norm), out=np.full_like(centred, np.nan), where=norm > 0)
        means.append((np.square(unit.sum(-3)).sum(axes) - corners) / (corners * (corners - 1)))
    return means[0], means[1]


def _permute_heads(maps: np.ndarray, rng: np.random.Generator, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """`correlations` of maps whose heads are permuted in each layer and corner: [resample], [resample, layer].

    The pairings of scipy.stats.permutation_test would put the heads of all layers in the same order.
    """
    blocks, size = [], max(1, BATCH // maps.size)
    for first in range(0, resamples, size):
        count = min(size, resamples - first)
        blocks.append(correlations(rng.permuted(np.broadcast_to(maps, (count, *maps.shape)), axis=-1)))
    return tuple(np.concatenate(parts) for parts in zip(*blocks, strict=True))


def _sign_test(values: np.ndarray, seed: int, resamples: int) -> float:
    """p of the mean covariance between the maps of two corners, signs flipped pair by pair."""
    centred = values - values.mean(-2, keepdims=True)

    def covariance(values, axis):
        maps = values.mean(axis)  # [..., corner, layer, head]
        return (np.square(maps.sum(-3)) - np.square(maps).sum(-3)).sum((-2, -1))

    return float(stats.permutation_test(
        (centred,), covariance, permutation_type="samples", vectorized=True, n_resamples=resamples, axis=-1,
        alternative="greater", batch=max(1, BATCH // values.size), rng=np.random.default_rng(seed),
    ).pvalue)  # fmt: skip


def _p(observed, null: np.ndarray) -> np.ndarray:
    """Share of the null statistics [resample, ...], the observed one among them, that reach the observed one."""
    return (1 + (null >= observed - TIES * np.abs(observed)).sum(0)) / (1 + len(null))


@dataclass(frozen=True, eq=False)
class Comparison:
    """Results; each field as the function of that name returns it. values: responses [corner, layer, head, pair].
    q_differ: [layer, head], of the heads' own permutation tests that corners differ. `sharing` and `specialisation`
    have q of their two p as one family."""

    values: np.ndarray
    level: float
    seed: int
    scores: Scores
    calls: Calls
    sharing: dict
    specialisation: dict
    q_differ: np.ndarray
    held_out: list[dict] | None

    @property
    def maps(self) -> np.ndarray:
        """Mean over pairs, [corner, layer, head]."""
        return self.values.mean(-1)

    def call(self, head: tuple[int, int], names: Sequence[str]) -> str:
        """Call of one head (row, head) in words: shared; unique to some corners; uneven where corners differ by its own
        permutation test; "" for none of these. "(less)" marks a head that loses attention."""
        uneven = bool(self.q_differ[head] <= self.level)
        unique = {place: self.scores[UNIQUE, place][1][head] for place in np.flatnonzero(self.calls.unique[:, *head])}
        if self.calls.shared[head]:
            sign = self.scores[SHARED, None][1][head]
            most = [names[place] for place, direction in unique.items() if direction == sign]
            return SHARED + direction_suffix(sign) + (f"; most in {most[0]}" if most else "; uneven" if uneven else "")
        if unique:
            return "unique to " + " and ".join(
                names[place] + direction_suffix(direction) for place, direction in unique.items()
            )
        return "uneven" if uneven else ""


def direction_suffix(sign: int) -> str:
    """Suffix of a call: " (less)" for a head that loses attention."""
    return "" if sign > 0 else " (less)"


def compare(values: np.ndarray, level: float, top: int, seed: int) -> Comparison:
    """Scores, calls at a false discovery rate of `level`, permutation tests, and the `top` heads of each kind held out,
    of responses [corner, layer, head, pair]."""
    together, apart = sharing(values, seed), specialisation(values, seed)
    correct_family([together, apart], TESTS)
    return Comparison(
        values, level, seed, scores(values.mean(-1)), call_heads(values, level), together, apart,
        benjamini_hochberg(apart["p_heads"]), held_out(values, top, seed),
    )  # fmt: skip
