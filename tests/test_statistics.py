"""Intervals against cases that can be worked by hand."""

import numpy as np
import pytest

from analysis.statistics import mean_interval


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
