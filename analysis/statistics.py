"""Figures with their uncertainty."""

from __future__ import annotations

import numpy as np
from scipy import stats


def mean_interval(values, seed: int = 0, confidence: float = 0.95) -> dict:
    """Mean of finite values, one per sample, with a percentile bootstrap interval (9,999 resamples, seeded).

    Returns {"mean", "low", "high", "n"}; the bounds are None for fewer than two values, the mean too for none.
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return {"mean": float(values[0]) if len(values) else None, "low": None, "high": None, "n": len(values)}
    interval = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=confidence,
        method="percentile",
        batch=max(1, 1_000_000 // len(values)),  # resamples held at a time
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return {"mean": float(values.mean()), "low": float(interval.low), "high": float(interval.high), "n": len(values)}


def rate_interval(outcomes, confidence: float = 0.95) -> dict:
    """Share of true outcomes, one per sample, with Wilson's score interval.

    Returns {"rate", "low", "high", "count", "n"}; rate and bounds are None for no outcome.
    """
    outcomes = [bool(outcome) for outcome in outcomes]
    if not outcomes:
        return {"rate": None, "low": None, "high": None, "count": 0, "n": 0}
    count, n = sum(outcomes), len(outcomes)
    interval = stats.binomtest(count, n).proportion_ci(confidence, method="wilson")
    return {"rate": count / n, "low": float(interval.low), "high": float(interval.high), "count": count, "n": n}
