"""Intervals against cases that can be worked by hand."""

import numpy as np
import pytest

from analysis.statistics import mean_interval, rate_interval


def test_few_values_have_no_interval():
    assert mean_interval([]) == {"mean": None, "low": None, "high": None, "n": 0}
    assert mean_interval([0.5]) == {"mean": 0.5, "low": None, "high": None, "n": 1}


def test_constant_values_have_no_width():
    assert mean_interval([2.0] * 5) == {"mean": 2.0, "low": 2.0, "high": 2.0, "n": 5}


def test_interval_is_that_of_the_normal_approximation():
    """Of 400 zeros and ones in equal parts: .5 +- 1.96 * sqrt(.25 / 400) = .451 to .549."""
    found = mean_interval([0.0, 1.0] * 200)
    assert found["mean"] == 0.5 and found["n"] == 400
    assert found["low"] == pytest.approx(0.451, abs=0.005) and found["high"] == pytest.approx(0.549, abs=0.005)


def test_interval_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = [low["low"] <= 0 <= low["high"] for low in (mean_interval(rng.normal(size=40), seed=i) for i in range(100))]
    assert 88 <= sum(held) <= 99


def test_seed_decides():
    values = np.random.default_rng(1).random(20)
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1) != mean_interval(values, seed=2)


def test_rate_interval_is_wilsons():
    """(p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), z = 1.959964."""
    count, n, z = 7, 20, 1.959963984540054
    p = count / n
    middle, reach = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    found = rate_interval([True] * count + [False] * (n - count))
    assert (found["rate"], found["count"], found["n"]) == (0.35, 7, 20)
    assert found["low"] == pytest.approx((middle - reach) / (1 + z**2 / n))
    assert found["high"] == pytest.approx((middle + reach) / (1 + z**2 / n))
    assert rate_interval([]) == {"rate": None, "low": None, "high": None, "count": 0, "n": 0}
    assert rate_interval([np.bool_(True)] * 3)["rate"] == 1
