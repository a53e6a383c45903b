"""Estimates with their uncertainty: confidence intervals, paired tests against a control, corrections for many tests.

Unknown values (NaN, infinite, None) are left out and counted: every result has `n`, the number of values it rests on,
and `skipped` where values can be missing. Every interval names its method under "interval"; docs/statistics.md says
which method is used where, and `python -m benchmarks.coverage` measures how often each holds the truth. Sign flips are
seeded; intervals are deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import optimize, special, stats

CONFIDENCE = 0.95  # of every interval
LEVEL = 0.05  # of q and of p, at which a test counts as a finding
RESAMPLES = 9_999  # random sign flips; all 2 ** n are used where these are fewer (n <= 13)
EXACT_RANKS = 50  # differences up to which the distribution of the signed ranks is exact
ROUNDING = 1e-3  # by which values may lie outside their quantity's range: shares are sums in half or single precision
MIN_SPLIT = 4  # samples, two in each half, from which heads can be chosen on one half and tested on the other
WILSON, SCORE, SKEWED_T = "Wilson score", "score", "Student's t, skewness-corrected"
NO_VALUE, ONE_VALUE, NO_SPREAD = "none: no value", "none: one value", "none: no spread"

Bounds = tuple[float | None, float | None]
"""Smallest and largest possible value of a quantity; None where it has no such end."""
SHARE: Bounds = (0.0, 1.0)
DIFFERENCE: Bounds = (-1.0, 1.0)  # of two shares
NONNEGATIVE: Bounds = (0.0, None)
REAL: Bounds = (None, None)


def mean_interval(values, bounds: Bounds | None = None, confidence: float = CONFIDENCE) -> dict:
    """Mean of values, one per sample, with a confidence interval that stays within `bounds`, the quantity's range.

    Student's t after Hall's transformation (1992), which corrects for skewness. Where values repeat (at most half of
    them are different, or all lie at the two ends of the range) and both ends are known, the score interval: Wilson's
    for 0 and 1, Tango's (1998) for paired differences -1, 0, 1, and the same construction for more values; it has a
    width even where all values are equal. Without `bounds`, values that are all 0 or 1 are outcomes of a rate, and
    others have no known range.

    Returns {"mean", "low", "high", "n", "skipped", "interval"}; the mean is None without a known value. "interval"
    names the method; low and high are None where it is NO_VALUE, ONE_VALUE, or NO_SPREAD, equal values of unknown
    range, whose interval cannot be estimated. Raises ValueError for values outside `bounds`.
    """
    values, skipped = known(values)
    bounds = _range_of(values, bounds)
    low, high, method = _interval(values, bounds, confidence)
    mean = float(values.mean()) if len(values) else None
    return {"mean": mean, "low": low, "high": high, "n": len(values), "skipped": skipped, "interval": method}


def rate_interval(outcomes) -> dict:
    """Share of true outcomes, one per sample, with Wilson's 95 % score interval.

    Returns {"rate", "low", "high", "count", "n", "interval"}; rate and bounds are None without an outcome.
    """
    outcomes = [bool(outcome) for outcome in outcomes]
    if not outcomes:
        return {"rate": None, "low": None, "high": None, "count": 0, "n": 0, "interval": NO_VALUE}
    count, n = sum(outcomes), len(outcomes)
    low, high = _wilson(count, n, CONFIDENCE)
    return {"rate": count / n, "low": low, "high": high, "count": count, "n": n, "interval": WILSON}


def paired_difference(values, control, seed: int = 0, bounds: Bounds | None = None) -> dict:
    """Mean of value - control over samples that have both: interval, and p of the sign-flip test.

    values, control: [sample], in the same order; a single number as control stands for all samples. bounds: range of
    the difference; where it is not given, that of two outcomes 0 or 1 is known, and any other is not.
    Returns {"mean", "low", "high", "n", "skipped", "interval", "p", "smallest_p"}: p is None for fewer than two pairs;
    smallest_p is the least p that so many pairs can give (`smallest_p`). Raises ValueError for a control of another
    number of samples, or differences outside `bounds`.
    """
    values = np.asarray(values, np.float64)
    control = np.asarray(control, np.float64)
    if control.ndim and control.shape != values.shape:
        raise ValueError(f"{values.size} values but {control.size} of the control; give one for each sample")
    with np.errstate(invalid="ignore"):  # infinite on both sides is unknown as well
        differences = values - control
    if bounds is None:
        outcomes = all(np.isin(known(side)[0], (0, 1)).all() for side in (values, control))
        bounds = DIFFERENCE if outcomes else REAL
    nonzero = np.count_nonzero(known(differences)[0])
    return {
        **mean_interval(differences, bounds), "p": sign_flip_test(differences, seed), "smallest_p": smallest_p(nonzero)
    }  # fmt: skip


def sign_flip_test(differences, seed: int = 0) -> float | None:
    """Two-sided p of the mean of paired differences [sample] against 0; None for fewer than two known ones.

    Under the hypothesis that value and control could be exchanged within each pair, every sign is as likely as its
    opposite. All 2 ** n flips are used for up to 13 pairs, else 9,999 random ones (seeded). `smallest_p` gives the
    least p possible: of 5 pairs none is below 0.0625.
    """
    differences, _ = known(differences)
    if len(differences) < 2:
        return None
    return float(
        stats.permutation_test(
            (differences,),
            np.mean,
            permutation_type="samples",
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=max(1, 1_000_000 // len(differences)),
            rng=np.random.default_rng(seed),
        ).pvalue
    )


def smallest_p(pairs: int) -> float:
    """The least two-sided p of the sign-flip test, McNemar's and Wilcoxon's, with so many differences that are not 0.

    Two of 2 ** pairs ways to give signs are the most extreme ones; of random flips at most 1 + RESAMPLES are counted.
    """
    return max(min(1.0, 2.0 ** (1 - pairs)), 2 / (1 + RESAMPLES))


def too_few(pairs: int) -> str:
    """A sentence where so many pairs cannot give any p of LEVEL or less, else ""."""
    least = smallest_p(pairs)
    return "" if least <= LEVEL else f"n = {pairs} pairs allow no p below {least:.2g}: no test can reach {LEVEL}"


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p of McNemar's exact test, from the numbers of samples that only A and only B answered correctly.

    The smaller count under a binomial of one half; 1 where the two never disagree. The least p possible is
    `smallest_p(only_a + only_b)`.
    """
    return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def benjamini_hochberg(p) -> np.ndarray:
    """q-values (Benjamini and Hochberg, 1995) of p-values of any shape, all one family, in the same shape.

    Calling everything with q <= 0.05 a finding keeps the expected share of false ones among them at 0.05. NaN, a test
    that was not made, stays NaN and does not count.
    """
    return _corrected(p, stats.false_discovery_control)


def correct_family(tests: Sequence[dict], name: str) -> str:
    """Add q to every test of one family (`benjamini_hochberg`), None where p is None.

    Returns the statement of the family, such as "13 tests: all p of this summary"; `name` is its second part.
    """
    q = benjamini_hochberg([np.nan if test["p"] is None else test["p"] for test in tests])
    for test, value in zip(tests, q, strict=True):
        test["q"] = None if np.isnan(value) else float(value)
    return f"{sum(test['p'] is not None for test in tests)} tests: {name}"


def holm(p) -> np.ndarray:
    """p-values of any shape adjusted by Holm's step-down method (1979), all one family, in the same shape.

    The i-th smallest of m becomes the largest of (m - j + 1) p_j over j <= i, at most 1: the chance of any false
    finding stays at the level. NaN, a test that was not made, stays NaN and does not count.
    """
    return _corrected(p, _holm)


def head_tests(differences) -> dict[str, np.ndarray]:
    """Wilcoxon's signed-rank test of every head against its control, over samples; all heads are one family.

    differences: [sample, layer, head], value - control; NaN where a sample has no value for a head.
    Returns arrays [layer, head]: "mean"; "effect", the matched-pairs rank-biserial correlation (Kerby, 2014)
    (W+ - W-) / (W+ + W-), with W+ and W- the sums of the ranks of |difference| over positive and negative differences:
    -1..1, 0 where neither side prevails; "p" two-sided (exact for up to 50 differences, ties included, else by the
    normal approximation), "q" after `benjamini_hochberg`; "n" and "skipped", samples that are known and not.
    Differences of 0 have no sign and count in the mean and n alone; where all are 0, effect is 0 and p is 1. Where n is
    0, all but n and skipped are NaN. Raises ValueError for differences of another shape.
    """
    differences = np.asarray(differences, np.float64)
    if differences.ndim != 3:
        raise ValueError(f"differences of shape {differences.shape}; give [sample, layer, head]")
    finite = np.isfinite(differences)
    n = finite.sum(0)
    tested = [_signed_ranks(differences[:, *head]) for head in np.ndindex(n.shape)]
    effect, p = np.array(tested, np.float64).reshape(*n.shape, 2).transpose(2, 0, 1)
    q = benjamini_hochberg(p)
    return {"mean": known_mean(differences), "effect": effect, "p": p, "q": q, "n": n, "skipped": len(differences) - n}


def halves(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Indices of `count` samples in two random halves; of an odd number, the second has one more."""
    order = rng.permutation(count)
    return np.sort(order[: count // 2]), np.sort(order[count // 2 :])


def strongest_head(differences, seed: int = 0, bounds: Bounds | None = REAL) -> dict | None:
    """The head of largest |effect| (`head_tests`) on a random half of the samples, and its figures on the other half.

    differences: [sample, layer, head]. The choice favours a head whose effect came out large by chance, so what is
    stated is from samples that had no part in it. Returns {"layer", "head", "chosen_on" (samples), "difference"
    (`mean_interval`), "effect", "p", "smallest_p"}, all of the other half; None for fewer than MIN_SPLIT samples, or
    where no effect is known in the first half.
    """
    differences = np.asarray(differences, np.float64)
    if len(differences) < MIN_SPLIT:
        return None
    first, second = halves(len(differences), np.random.default_rng(seed))
    effect = head_tests(differences[first])["effect"]
    if np.isnan(effect).all():
        return None
    layer, head = (int(at) for at in np.unravel_index(np.nanargmax(np.abs(effect)), effect.shape))
    other = differences[second][:, layer, head]
    of_other, p = _signed_ranks(other)
    least = smallest_p(np.count_nonzero(known(other)[0]))
    return {
        "layer": layer, "head": head, "chosen_on": len(first), "difference": mean_interval(other, bounds),
        "effect": of_other, "p": None if np.isnan(p) else p, "smallest_p": least,
    }  # fmt: skip


def known(values) -> tuple[np.ndarray, int]:
    """The finite of some values, float64 [value], and how many were not."""
    values = np.asarray(values, np.float64).ravel()
    finite = np.isfinite(values)
    return values[finite], int((~finite).sum())


def known_mean(values) -> np.ndarray:
    """Mean over the first axis of what is finite, [sample, ...] to [...]; NaN where nothing is."""
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    count = finite.sum(0)
    return np.divide(np.where(finite, values, 0).sum(0), count, out=np.full(count.shape, np.nan), where=count > 0)


def _range_of(values: np.ndarray, bounds: Bounds | None) -> Bounds:
    """The declared bounds, or those of outcomes 0 and 1; rounding errors beyond them are allowed."""
    if bounds is None:
        return SHARE if len(values) and np.isin(values, (0, 1)).all() else REAL
    low, high = (end if end is not None else sign * np.inf for end, sign in zip(bounds, (-1, 1), strict=True))
    if len(values) and not (low - ROUNDING <= values.min() and values.max() <= high + ROUNDING):
        raise ValueError(
            f"values from {values.min():g} to {values.max():g} lie outside {bounds[0]} to {bounds[1]}, the range of "
            "their quantity; give its true range"
        )
    return bounds


def _interval(values: np.ndarray, bounds: Bounds, confidence: float) -> tuple[float | None, float | None, str]:
    """(low, high, method) of the mean of known values [value]."""
    if not len(values):
        return None, None, NO_VALUE
    constant = np.ptp(values) <= 1e-12 * np.abs(values).max()
    if None not in bounds:
        values = np.clip(values, *bounds)
        outcomes = np.isin(values, bounds).all()
        if outcomes and tuple(bounds) == SHARE:
            return *_wilson(int(values.sum()), len(values), confidence), WILSON
        if constant or outcomes or len(np.unique(values)) <= (len(values) + 1) // 2:
            return *_score(values, bounds, confidence), SCORE
    if len(values) < 2:
        return None, None, ONE_VALUE
    if constant:
        return None, None, NO_SPREAD
    return *np.clip(_skewed_t(values, confidence), *bounds).tolist(), SKEWED_T


def _wilson(count: int, n: int, confidence: float) -> tuple[float, float]:
    interval = stats.binomtest(count, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def _skewed_t(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Interval of a mean by Student's t of Hall's transformed statistic.

    With T = (mean - m) / (s / sqrt(n)), skewness g and a = g / (3 sqrt(n)), T + a T^2 + a^2 T^3 / 3 + a / 2 is nearly
    symmetric; its inverse is ((1 + 3 a (y - a / 2))^(1/3) - 1) / a. P. Hall, "On the removal of skewness by
    transformation", J. R. Statist. Soc. B 54, 1992, with a normal quantile where this has Student's. The cube root is
    kept at 0 or above: past that point, 3 s / |g| from the mean, the transformation is flat, and the interval's end
    would run away (with hardly a change in coverage).
    """
    n, mean, deviation = len(values), values.mean(), values.std(ddof=1)
    a = ((values - mean) ** 3).mean() / values.std() ** 3 / (3 * np.sqrt(n))
    y = special.stdtrit(n - 1, (1 + confidence) / 2) * np.array([1, -1]) - a / 2
    inverse = y if abs(a) < 1e-9 else (np.cbrt(np.maximum(0, 1 + 3 * a * y)) - 1) / a
    low, high = mean - inverse * deviation / np.sqrt(n)
    return float(low), float(high)


def _score(values: np.ndarray, bounds: Bounds, confidence: float) -> tuple[float, float]:
    """Score interval of a mean, of values [value] in a closed range: the means m with |mean - m| <= z sqrt(V(m) / n).

    V(m) is the variance of the multinomial distribution over the observed values and the ends of the range that is the
    likeliest among those of mean m. For values 0 and 1 this is Wilson's interval, for -1, 0 and 1 Tango's
    ("Equivalence test and confidence interval for the difference in proportions for the paired-sample design",
    Statist. Med. 17, 1998).
    """
    low, high = bounds
    z = special.ndtri((1 + confidence) / 2)
    return -_score_end(-values, -low, z), _score_end(values, high, z)


def _score_end(values: np.ndarray, end: float, z: float) -> float:
    """The largest m of the score interval; end: the largest possible value."""
    points, counts = np.unique(values, return_counts=True)
    mean, n = values.mean(), len(values)
    if end - mean <= 1e-12 + 1e-6 * abs(end):  # a mean at the end, but for rounding: no number lies between
        return float(end)
    margin = 1e-9 * (end - mean)
    return float(
        optimize.brentq(
            lambda m: (m - mean) * np.sqrt(n) - z * np.sqrt(_variance_at(m, points, counts, end)),
            mean + margin,
            end - margin,
        )
    )


def _variance_at(m: float, points: np.ndarray, counts: np.ndarray, end: float) -> float:
    """Variance of the likeliest distribution of mean m, above that of the counted points.

    With d = point - m it has the weights counts / (n (1 + l d)), l the Lagrange multiplier of its mean; where even the
    smallest l, -1 / (end - m), leaves the mean below m, the weight that is left lies at the end of the range.
    """
    d, n = points - m, counts.sum()
    smallest = -(1 - 1e-12) / (end - m)

    def excess(multiplier: float) -> float:  # of the mean, times a positive factor that removes the pole at `smallest`
        return float((counts * d * (1 + multiplier * (end - m)) / (1 + multiplier * d)).sum())

    multiplier = smallest if excess(smallest) <= 0 else optimize.brentq(excess, smallest, 0.0)
    weights = counts / (n * (1 + multiplier * d))
    return float(weights @ d**2 + max(0.0, 1 - weights.sum()) * (end - m) ** 2)


def _signed_ranks(differences: np.ndarray) -> tuple[float, float]:
    """(rank-biserial correlation, two-sided p) of one head's differences [sample]."""
    differences, _ = known(differences)
    if not len(differences):
        return np.nan, np.nan
    differences = differences[differences != 0]
    if not len(differences):
        return 0.0, 1.0
    ranks = stats.rankdata(np.abs(differences))
    effect = float(np.sign(differences) @ ranks / ranks.sum())
    if len(ranks) > EXACT_RANKS:
        return effect, float(stats.wilcoxon(differences, method="asymptotic").pvalue)
    return effect, _exact_ranks(ranks, differences > 0)


def _exact_ranks(ranks: np.ndarray, positive: np.ndarray) -> float:
    """Two-sided p of the sum of positive ranks over all ways to give signs to the ranks, tied ones included.

    Twice a mid-rank is a whole number, so the sums are counted one rank after the other. scipy's exact distribution
    knows no ties, and its normal approximation falls below the smallest p possible: .046 for four equal differences.
    """
    doubled = np.rint(2 * ranks).astype(int)
    ways = np.zeros(doubled.sum() + 1)
    ways[0] = 1.0
    for rank in doubled:
        ways[rank:] += ways[:-rank].copy()
    observed, half = doubled[positive].sum(), doubled.sum() / 2
    extreme = np.abs(np.arange(len(ways)) - half) >= abs(observed - half)
    return float(ways[extreme].sum() / ways.sum())


def _holm(p: np.ndarray) -> np.ndarray:
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(np.arange(len(p), 0, -1) * p[order]).clip(max=1)
    return adjusted[np.argsort(order, kind="stable")]


def _corrected(p, correct) -> np.ndarray:
    """`correct` of the p-values that are not NaN, put back in their places."""
    adjusted = np.array(p, np.float64)
    made = ~np.isnan(adjusted)
    if made.any():
        adjusted[made] = correct(adjusted[made])
    return adjusted
