"""Estimates with their uncertainty: confidence intervals, paired tests against a control, corrections for many tests.

Unknown values (NaN, infinite, None) are excluded and counted: every result has `n`, the number of values used, and
`skipped` where values can be missing. Every interval names its method under "interval"; docs/statistics.md lists the
use of each method, and `python -m benchmarks.coverage` measures the coverage of each. Sign flips are seeded; intervals
are deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import optimize, special, stats

from data.errors import InputError

CONFIDENCE = 0.95  # level of every interval
LEVEL = 0.05  # significance level of q and of p
RESAMPLES = 9_999  # random sign flips; all 2 ** n are used if these are fewer (n <= 13)
EXACT_RANKS = 50  # largest number of differences with an exact distribution of the signed ranks
ROUNDING = 1e-3  # tolerance of values outside their quantity's range: shares are sums in half or single precision
MIN_SPLIT = 4  # fewest samples, two in each half, to choose heads on one half and test them on the other
WILSON, SCORE, SKEWED_T = "Wilson score", "score", "Student's t, skewness-corrected"
NO_VALUE, ONE_VALUE, NO_SPREAD = "none: no value", "none: one value", "none: no spread"

Bounds = tuple[float | None, float | None]
"""Smallest and largest possible value of a quantity; None for an unbounded end."""
SHARE: Bounds = (0.0, 1.0)
DIFFERENCE: Bounds = (-1.0, 1.0)  # range of the difference of two shares
NONNEGATIVE: Bounds = (0.0, None)
REAL: Bounds = (None, None)


def mean_interval(values, bounds: Bounds | None = None, confidence: float = CONFIDENCE) -> dict:
    """Mean of values, one per sample, with a confidence interval that stays within `bounds`, the quantity's range.

    The method is Student's t after Hall's transformation (1992), which corrects for skewness. If values repeat (at most
    half of them are different, or all lie at the two ends of the range) and both ends are known, it is the score
    interval: Wilson's for 0 and 1, Tango's (1998) for paired differences -1, 0, 1, and the same construction for more
    values; its width is above 0 even for equal values. Without `bounds`, values that are all 0 or 1 are outcomes of a
    rate, and others have an unknown range.

    Returns {"mean", "low", "high", "n", "skipped", "interval"}; the mean is None without a known value. "interval"
    names the method; low and high are None for NO_VALUE, ONE_VALUE, or NO_SPREAD (equal values of unknown range, whose
    interval cannot be estimated). Raises ValueError for values outside `bounds`.
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

    values, control: [sample], in the same order; a single number as control applies to all samples. bounds: range of
    the difference; the default is -1..1 for two outcomes 0 or 1, else an unknown range.
    Returns {"mean", "low", "high", "n", "skipped", "interval", "p", "smallest_p"}: p is None for fewer than two pairs;
    smallest_p is the least possible p for that number of pairs (`smallest_p`). Raises ValueError if the numbers of
    samples differ, or for differences outside `bounds`.
    """
    values = np.asarray(values, np.float64)
    control = np.asarray(control, np.float64)
    if control.ndim and control.shape != values.shape:
        raise InputError(
            "sizes-differ", f"{values.size} values but {control.size} of the control; give one for each sample"
        )
    with np.errstate(invalid="ignore"):  # infinite values on both sides are unknown, too
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

    Under the null hypothesis that value and control are exchangeable within each pair, both signs are equally likely.
    All 2 ** n flips are used for up to 13 pairs, else 9,999 random ones (seeded). `smallest_p` gives the least possible
    p: 0.0625 for 5 pairs.
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
    """Least two-sided p of the sign-flip test, McNemar's and Wilcoxon's, for `pairs` differences other than 0.

    Two of the 2 ** pairs sign assignments are the most extreme; random flips count at most 1 + RESAMPLES of them.
    """
    return max(min(1.0, 2.0 ** (1 - pairs)), 2 / (1 + RESAMPLES))


def too_few(pairs: int) -> str:
    """Sentence that `pairs` pairs cannot give a p of LEVEL or less; "" if they can."""
    least = smallest_p(pairs)
    return "" if least <= LEVEL else f"n = {pairs} pairs allow no p below {least:.2g}: no test can reach {LEVEL}"


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p of McNemar's exact test, from the numbers of samples that only A and only B answered correctly.

    The smaller count is tested under a binomial with probability 1/2; p is 1 if A and B always agree. The least
    possible p is `smallest_p(only_a + only_b)`.
    """
    return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def benjamini_hochberg(p) -> np.ndarray:
    """q-values (Benjamini and Hochberg, 1995) of p-values of any shape, all one family, in the same shape.

    Rejecting all tests with q <= 0.05 bounds the expected share of false rejections (FDR) by 0.05. NaN, a missing
    test, stays NaN and does not count.
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

    The i-th smallest of m becomes the largest of (m - j + 1) p_j over j <= i, at most 1: the level bounds the
    probability of any false rejection (FWER). NaN, a missing test, stays NaN and does not count.
    """
    return _corrected(p, _holm)


def head_tests(differences) -> dict[str, np.ndarray]:
    """Wilcoxon's signed-rank test of every head against its control, over samples; all heads are one family.

    differences: [sample, layer, head], value - control; NaN if a sample lacks a value for a head.
    Returns arrays [layer, head]: "mean"; "effect", the matched-pairs rank-biserial correlation (Kerby, 2014)
    (W+ - W-) / (W+ + W-), with W+ and W- the sums of the ranks of |difference| over positive and negative differences:
    -1..1, 0 for balanced sides; "p" two-sided (exact for up to 50 differences, ties included, else by the normal
    approximation), "q" after `benjamini_hochberg`; "n" and "skipped", the numbers of known and unknown samples.
    Differences of 0 have no sign and count only in the mean and n; if all are 0, effect is 0 and p is 1. If n is 0, all
    but n and skipped are NaN. Raises ValueError for differences of another shape.
    """
    differences = np.asarray(differences, np.float64)
    if differences.ndim != 3:
        raise InputError("differences-shape", f"differences of shape {differences.shape}; give [sample, layer, head]")
    finite = np.isfinite(differences)
    n = finite.sum(0)
    tested = [_signed_ranks(differences[:, *head]) for head in np.ndindex(n.shape)]
    effect, p = np.array(tested, np.float64).reshape(*n.shape, 2).transpose(2, 0, 1)
    q = benjamini_hochberg(p)
    return {"mean": known_mean(differences), "effect": effect, "p": p, "q": q, "n": n, "skipped": len(differences) - n}


def halves(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Indices of `count` samples in two random halves; for an odd count, the second has one more."""
    order = rng.permutation(count)
    return np.sort(order[: count // 2]), np.sort(order[count // 2 :])


def strongest_head(differences, seed: int = 0, bounds: Bounds | None = REAL) -> dict | None:
    """Head of largest |effect| (`head_tests`) on a random half of the samples, with its results on the other half.

    differences: [sample, layer, head]. The split removes selection bias: the choice favours a head whose effect is
    large by chance. Returns {"layer", "head", "chosen_on" (samples), "difference" (`mean_interval`), "effect", "p",
    "smallest_p"}, the results all from the other half; None for fewer than MIN_SPLIT samples, or if every effect in the
    first half is unknown.
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
    """Finite values, float64 [value], and the number of non-finite ones."""
    values = np.asarray(values, np.float64).ravel()
    finite = np.isfinite(values)
    return values[finite], int((~finite).sum())


def known_mean(values) -> np.ndarray:
    """Mean of the finite values over the first axis, [sample, ...] to [...]; NaN without a finite value."""
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    count = finite.sum(0)
    return np.divide(np.where(finite, values, 0).sum(0), count, out=np.full(count.shape, np.nan), where=count > 0)


def _range_of(values: np.ndarray, bounds: Bounds | None) -> Bounds:
    """The given bounds, or those of outcomes 0 and 1; rounding errors beyond them are allowed."""
    if bounds is None:
        return SHARE if len(values) and np.isin(values, (0, 1)).all() else REAL
    low, high = (end if end is not None else sign * np.inf for end, sign in zip(bounds, (-1, 1), strict=True))
    if len(values) and not (low - ROUNDING <= values.min() and values.max() <= high + ROUNDING):
        raise InputError(
            "outside-bounds",
            f"values from {values.min():g} to {values.max():g} lie outside {bounds[0]} to {bounds[1]}, the range of "
            "their quantity; give its true range",
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
    transformation", J. R. Statist. Soc. B 54, 1992, uses a normal quantile instead of Student's. The cube root is kept
    at 0 or above: past that point, 3 s / |g| from the mean, the transformation is flat, and the interval's end would
    diverge (with little change in coverage).
    """
    n, mean, deviation = len(values), values.mean(), values.std(ddof=1)
    a = ((values - mean) ** 3).mean() / values.std() ** 3 / (3 * np.sqrt(n))
    y = special.stdtrit(n - 1, (1 + confidence) / 2) * np.array([1, -1]) - a / 2
    inverse = y if abs(a) < 1e-9 else (np.cbrt(np.maximum(0, 1 + 3 * a * y)) - 1) / a
    low, high = mean - inverse * deviation / np.sqrt(n)
    return float(low), float(high)


def _score(values: np.ndarray, bounds: Bounds, confidence: float) -> tuple[float, float]:
    """Score interval of a mean, of values [value] in a closed range: the means m with |mean - m| <= z sqrt(V(m) / n).

    V(m) is the variance of the maximum likelihood multinomial distribution of mean m over the observed values and the
    ends of the range. For values 0 and 1 this is Wilson's interval, for -1, 0 and 1 Tango's
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
    if end - mean <= 1e-12 + 1e-6 * abs(end):  # the mean equals the end up to rounding: the interval has no interior
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
    """Variance of the maximum likelihood distribution of mean m, for m above the mean of the counted points.

    With d = point - m its weights are counts / (n (1 + l d)), l the Lagrange multiplier of its mean; if even the
    smallest l, -1 / (end - m), leaves the mean below m, the remaining weight lies at the end of the range.
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
    """Two-sided p of the sum of positive ranks over all sign assignments of the ranks, ties included.

    Twice a mid-rank is an integer, so the sums are counted by dynamic programming over the ranks. scipy's exact
    distribution excludes ties, and its normal approximation falls below the least possible p: .046 for four equal
    differences.
    """
    doubled = np.rint(2 * ranks).astype(int)
    counts = np.zeros(doubled.sum() + 1)
    counts[0] = 1.0
    for rank in doubled:
        counts[rank:] += counts[:-rank].copy()
    observed, half = doubled[positive].sum(), doubled.sum() / 2
    extreme = np.abs(np.arange(len(counts)) - half) >= abs(observed - half)
    return float(counts[extreme].sum() / counts.sum())


def _holm(p: np.ndarray) -> np.ndarray:
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(np.arange(len(p), 0, -1) * p[order]).clip(max=1)
    return adjusted[np.argsort(order, kind="stable")]


def _corrected(p, correct) -> np.ndarray:
    """Apply `correct` to the p-values that are not NaN and keep their positions."""
    adjusted = np.array(p, np.float64)
    made = ~np.isnan(adjusted)
    if made.any():
        adjusted[made] = correct(adjusted[made])
    return adjusted
