"""Everything that is asked of four corners' responses, and the rows of heads.csv and chosen.csv.

Do corners share their heads, or have heads of their own, more than chance would make it look?

Two null hypotheses, each with what can be exchanged if it is true:

    specialise   it does not matter in which corner the object is: within each pair (the same shapes in every corner)
                 the four responses, all heads together, could have come from any corner. They are permuted among the
                 corners; the statistic is the root mean square of the residuals (corner's map - mean map).
    share        where a head stands out in one corner says nothing about another corner: within each layer, the heads
                 of every corner's map could be in any order. They are permuted; the statistic is the correlation
                 between two corners' maps, each layer's mean subtracted, averaged over the pairs of corners.

Heads that are louder than others, or move together, correlate between corners by noise alone, and permuting heads does
not see that. Sharing is therefore tested against a second null hypothesis too: no head answers at all, so that full
and control could be exchanged within each pair, in all corners at once; the signs of the pairs are flipped, and the
statistic is the mean covariance between two corners' maps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.corners import (
    LEAST,
    MEAN,
    RESIDUAL,
    SHARED,
    UNIQUE,
    Calls,
    Corners,
    call_heads,
    held_out,
    ranked,
    residuals,
    scores,
    typical_drop,
)
from analysis.statistics import (
    DIFFERENCE,
    RESAMPLES,
    benjamini_hochberg,
    correct_family,
    halves,
    mean_interval,
    rate_interval,
)

SHOWN = 12  # heads in a figure
TESTS = "sharing and specialisation"  # the family of their q
Scores = dict[tuple[str, int | None], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Study:
    """Results; each field as the function of that name returns it. values: responses [corner, layer, head, pair].
    q_differ: [layer, head], of the heads' own permutation tests that corners differ. `shared` and `special` have q of
    their two p as one family."""

    values: np.ndarray
    level: float
    seed: int
    scores: Scores
    calls: Calls
    shared: dict
    special: dict
    q_differ: np.ndarray
    chosen: list[dict] | None
    drop: dict | None

    @property
    def maps(self) -> np.ndarray:
        """Mean over pairs, [corner, layer, head]."""
        return self.values.mean(-1)

    def call(self, head: tuple[int, int], names: Sequence[str]) -> str:
        """What one head (row, head) is called, in words: shared, unique to corners, or uneven where corners differ by
        its own permutation test; "less" for a head that loses attention. "" where it is called nothing."""
        uneven = bool(self.q_differ[head] <= self.level)
        only = {place: self.scores[UNIQUE, place][1][head] for place in np.flatnonzero(self.calls.unique[:, *head])}
        if self.calls.shared[head]:
            sign = self.scores[SHARED, None][1][head]
            most = [names[place] for place, way in only.items() if way == sign]
            return SHARED + less(sign) + (f"; most in {most[0]}" if most else "; uneven" if uneven else "")
        if only:
            return "unique to " + " and ".join(names[place] + less(way) for place, way in only.items())
        return "uneven" if uneven else ""


def less(sign: int) -> str:
    """What is said of a head whose attention the object takes away."""
    return "" if sign > 0 else " (less)"


def study(values: np.ndarray, level: float, top: int, seed: int) -> Study:
    """Scores, calls at a false-discovery rate of `level`, permutation tests, and the `top` heads held out, of responses
    [corner, layer, head, pair]."""
    shared, special = sharing(values, seed), specialisation(values, seed)
    correct_family([shared, special], TESTS)
    return Study(
        values=values,
        level=level,
        seed=seed,
        scores=scores(values.mean(-1)),
        calls=call_heads(values, level),
        shared=shared,
        special=special,
        q_differ=benjamini_hochberg(special["p_heads"]),
        chosen=held_out(values, top, seed),
        drop=typical_drop(values, seed),
    )


def head_rows(corners: Corners, made: Study) -> Iterator[dict]:
    """One row per head of heads.csv: its map and residual in every corner, scores, q and call; and for a description
    alone, the share of pairs in which it is among the top of its layer."""
    maps = made.maps
    by_corner = {
        "map": maps,
        "residual": residuals(maps),
        "unique": np.stack([made.scores[UNIQUE, place][0] for place in range(len(maps))]),
        "q_unique": made.calls.q_unique,
        "share_in_top": corners.counts.mean(-1),
    }
    for at in np.ndindex(maps.shape[1:]):
        yield {
            "layer": corners.layers[at[0]], "head": at[1], "n": len(corners.pairs),
            "call": made.call(at, corners.names), "mean_map": float(maps[:, *at].mean()),
            "shared": float(made.scores[SHARED, None][0][at]), "q_shared": float(made.calls.q_shared[at]),
            "q_differ": float(made.q_differ[at]),
            **{
                f"{what}_{corner}": float(values[place, *at])
                for what, values in by_corner.items() for place, corner in enumerate(corners.names)
            },
        }  # fmt: skip


def chosen_rows(corners: Corners, made: Study) -> Iterator[dict]:
    """The rows of chosen.csv: those of `held_out` with the model's layers and the corners' names."""
    for row in made.chosen or ():
        place = row["corner"]
        corner = "" if place is None else corners.names[place]
        yield {**row, "corner": corner, "layer": corners.layers[row["layer"]]}


def split(made: Study) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the pairs on which heads are chosen and on which they are measured, the halves of `held_out`; both all
    pairs where these are too few for halves."""
    pairs = made.values.shape[-1]
    return halves(pairs, np.random.default_rng(made.seed)) if pairs >= LEAST else (np.arange(pairs),) * 2


def shown_heads(made: Study) -> list[tuple[int, int]]:
    """SHOWN heads to draw, chosen on the first half of the pairs (`split`): the best of each kind, then those that are
    called anything, the highest score first."""
    first, _ = split(made)
    by_kind = {
        key: score for key, (score, _) in scores(made.values[..., first].mean(-1)).items() if key[0] in (SHARED, UNIQUE)
    }
    called = made.calls.shared | made.calls.unique.any(0)
    also = ranked(np.where(called, np.max(list(by_kind.values()), axis=0), -np.inf), int(called.sum()))
    return list(dict.fromkeys([*(ranked(score, 1)[0] for score in by_kind.values()), *also]))[:SHOWN]


def intervals(made: Study, head: tuple[int, int]) -> np.ndarray:
    """Mean, low and high of one head in every corner over the second half of the pairs (`split`), [corner, 3]; NaN
    where there is no interval."""
    _, second = split(made)
    found = [mean_interval(values[head][second], DIFFERENCE) for values in made.values]
    return np.array([[each["mean"], each["low"], each["high"]] for each in found], np.float64)


def share_intervals(counts: np.ndarray, head: tuple[int, int]) -> np.ndarray:
    """Share of pairs in which one head is among the top, low and high, [corner, 3]; counts: 0/1 [corner, layer, head,
    pair]."""
    found = [rate_interval(hits[head]) for hits in counts]
    return np.array([[each["rate"], each["low"], each["high"]] for each in found])


def summary(corners: Corners, made: Study) -> dict:
    """The figures of summary.json."""

    def spelt(head: tuple[int, int]) -> list[int]:
        return [corners.layers[head[0]], head[1]]

    figures = ("direction", "selection", "held_out", "low", "high", "p", "q")
    chosen = {
        (row["kind"], row["corner"]): {
            "head": spelt((row["layer"], row["head"])), **{name: row[name] for name in figures}
        }
        for row in made.chosen or () if row["rank"] == 1
    }  # fmt: skip
    return {
        "mean_strength": dict(zip(corners.names, np.abs(made.maps).mean((1, 2)), strict=True)),
        "best_shared": chosen.get((SHARED, None)),
        "best_unique": {name: chosen.get((UNIQUE, place)) for place, name in enumerate(corners.names)},
        "called_shared": [spelt(tuple(head)) for head in np.argwhere(made.calls.shared)],
        "called_unique": {
            name: [spelt(tuple(head)) for head in np.argwhere(called)]
            for name, called in zip(corners.names, made.calls.unique, strict=True)
        },
        "called_different": [spelt(tuple(head)) for head in np.argwhere(made.q_differ <= made.level)],
        "sharing": {key: made.shared[key] for key in ("correlation", "p", "q", "p_order", "p_signs", "n")},
        "specialisation": {key: made.special[key] for key in ("observed", "expected", "ratio", "p", "q", "n")},
        "families_of_q": {
            "sharing, specialisation": TESTS,
            "held_out": "every chosen head",
            "heads.csv": "q_shared and q_differ each over all heads, q_unique over all heads and corners",
        },
        "held_out": list(chosen_rows(corners, made)) or None,
        "drop_over_many_halves": made.drop,
    }


def changes_most(corners: Corners) -> list[dict]:
    """Of each corner the head that is among the top of its layer in more pairs than any other: for summary.json."""
    shares = corners.counts.mean(-1)
    heads = [ranked(share, 1)[0] for share in shares]
    return [
        {"corner": name, "head": [corners.layers[head[0]], head[1]], "share": float(share[head])}
        for name, share, head in zip(corners.names, shares, heads, strict=True)
    ]


def top_cells(corners: Corners, maps: np.ndarray, top: int, size=np.abs) -> Iterator[tuple]:
    """(map's name, (row, head), the value there) of the strongest cells of the mean map and of each residual, on all
    pairs. maps: [corner, layer, head]; `size` says what makes a value strong."""
    names = (MEAN, *(f"{label} {RESIDUAL}" for label in corners.labels))
    for name, values in zip(names, (maps.mean(0), *residuals(maps)), strict=True):
        for head in ranked(size(values), top):
            yield name, head, float(values[head])


BATCH = 3_000_000  # numbers held at a time
TIES = 1e-9  # relative; equal statistics may differ by rounding


def specialisation(values: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> dict:
    """Whether corners differ, of values [corner, layer, head, pair].

    Returns {"observed", "expected" (mean under the null), "ratio", "p", "n": pairs}, and as arrays "null" [resample],
    "p_heads" [layer, head] (one family, not corrected), "by_layer" [layer] and its "by_layer_null" [resample, layer].
    """

    def spread(*corners, axis):
        means = np.stack([corner.mean(axis) for corner in corners], axis=-1)
        return means - means.mean(-1, keepdims=True)

    made = stats.permutation_test(
        tuple(values), spread, permutation_type="samples", vectorized=True, n_resamples=resamples, axis=-1,
        batch=max(1, BATCH // values.size), rng=np.random.default_rng(seed),
    )  # fmt: skip
    squares, null = (np.square(each).mean(-1) for each in (made.statistic, made.null_distribution))
    observed, all_null = np.sqrt(squares.mean()), np.sqrt(null.mean((1, 2)))
    expected = float(all_null.mean())
    return {
        "observed": float(observed), "expected": expected, "ratio": float(observed / expected) if expected else None,
        "p": float(_p(observed, all_null)), "n": values.shape[-1], "null": all_null, "p_heads": _p(squares, null),
        "by_layer": np.sqrt(squares.mean(-1)), "by_layer_null": np.sqrt(null.mean(-1)),
    }  # fmt: skip


def sharing(values: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> dict:
    """Whether the same heads answer in all corners, of values [corner, layer, head, pair].

    Returns {"correlation", "p_order" (heads permuted), "p_signs" (signs flipped), "p" (the larger of them), "n":
    heads}, and as arrays "null" [resample] of heads permuted, "by_layer" [layer] and its "by_layer_null" [resample,
    layer]. Where a map is flat there is no correlation: NaN, and every p is None.
    """
    maps = values.mean(-1)
    observed, by_layer = correlations(maps)
    null, null_by_layer = _permuted_heads(maps, np.random.default_rng(seed), resamples)
    defined = bool(np.isfinite(observed))
    p_order = float(_p(observed, null)) if defined else None
    p_signs = _flipped(values, seed, resamples) if defined else None
    return {
        "correlation": float(observed), "p": max(p_order, p_signs) if defined else None, "p_order": p_order,
        "p_signs": p_signs, "n": maps[0].size, "null": null, "by_layer": by_layer, "by_layer_null": null_by_layer,
    }  # fmt: skip


def correlations(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean Pearson correlation between the maps [..., corner, layer, head] of two corners, layer means subtracted.

    Returns it over all heads [...], and layer by layer [..., layer]; NaN where a corner's map is flat. With unit
    vectors z_c the mean over pairs of z_c . z_d is (|sum z_c|^2 - C) / (C (C - 1)) for C corners.
    """
    corners = maps.shape[-3]
    centred = maps - maps.mean(-1, keepdims=True)
    squares = np.square(centred).sum(-1, keepdims=True)
    flat = squares <= np.square(TIES * np.abs(maps).max(-1, keepdims=True, initial=0))
    squares = np.where(flat, 0, squares)
    found = []
    for norm, axes in ((squares.sum(-2, keepdims=True), (-2, -1)), (squares, (-1,))):
        unit = np.divide(centred, np.sqrt(norm), out=np.full_like(centred, np.nan), where=norm > 0)
        found.append((np.square(unit.sum(-3)).sum(axes) - corners) / (corners * (corners - 1)))
    return found[0], found[1]


def _permuted_heads(maps: np.ndarray, rng: np.random.Generator, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """`correlations` of maps whose heads are permuted, layer by layer and corner by corner: [resample], [.., layer].

    scipy's pairings would put the heads of all layers in the same order.
    """
    found, size = [], max(1, BATCH // maps.size)
    for first in range(0, resamples, size):
        count = min(size, resamples - first)
        found.append(correlations(rng.permuted(np.broadcast_to(maps, (count, *maps.shape)), axis=-1)))
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))


def _flipped(values: np.ndarray, seed: int, resamples: int) -> float:
    """p of the mean covariance between two corners' maps where signs are flipped pair by pair."""
    centred = values - values.mean(-2, keepdims=True)

    def covariance(values, axis):
        maps = values.mean(axis)  # [..., corner, layer, head]
        return (np.square(maps.sum(-3)) - np.square(maps).sum(-3)).sum((-2, -1))

    return float(stats.permutation_test(
        (centred,), covariance, permutation_type="samples", vectorized=True, n_resamples=resamples, axis=-1,
        alternative="greater", batch=max(1, BATCH // values.size), rng=np.random.default_rng(seed),
    ).pvalue)  # fmt: skip


def _p(observed, null: np.ndarray) -> np.ndarray:
    """Share of the null statistics [resample, ...], the observed one among them, that reach it."""
    return (1 + (null >= observed - TIES * np.abs(observed)).sum(0)) / (1 + len(null))
