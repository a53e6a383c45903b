"""Coverage of the 95 % intervals: share of simulated samples whose interval contains the true mean.

    python -m benchmarks.coverage
    python -m benchmarks.coverage --runs 20000 --sizes 5 10

One row per distribution, one column per sample size. `analysis.statistics.mean_interval` receives the range of the
quantity; "(Student's t)" is the plain t interval of the same samples, for comparison. A sample without an interval
(equal values of unknown range) counts as not covered. The last row is exact, over all counts. Prints the table and
writes coverage.csv, with the median width of the intervals. Seeded; a few minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from analysis import command
from analysis.files import write_table
from analysis.runs import default_out_dir, refuse_existing
from analysis.statistics import DIFFERENCE, NONNEGATIVE, REAL, SHARE, Bounds, mean_interval, rate_interval

STUDENT = "Student's t"


class Distribution(NamedTuple):
    """`draw(generator, n)` returns n independent values with mean `mean` and range `bounds`."""

    draw: Callable[[np.random.Generator, int], np.ndarray]
    mean: float
    bounds: Bounds | None


def outcomes(rate: float) -> Distribution:
    """Values 0 and 1 with P(1) = `rate`, without a stated range."""
    return Distribution(lambda rng, n: rng.binomial(1, rate, n), rate, None)


def paired(before: float, after: float, correlation: float) -> Distribution:
    """Differences after - before (-1, 0, 1) of two binary outcomes with these rates and Pearson correlation.

    Raises ValueError for a correlation that is impossible with these rates.
    """
    both = before * after + correlation * np.sqrt(before * (1 - before) * after * (1 - after))
    lost, gained = before - both, after - both
    if min(both, lost, gained, 1 - both - lost - gained) < 0:
        raise ValueError(f"outcomes of rates {before} and {after} cannot correlate by {correlation}")
    return on_points((-1, 0, 1), (lost, 1 - lost - gained, gained), DIFFERENCE)


def on_points(points: tuple[float, ...], weights: tuple[float, ...], bounds: Bounds) -> Distribution:
    """Discrete distribution: `points` with probabilities `weights`."""
    return Distribution(lambda rng, n: rng.choice(points, n, p=weights), float(np.dot(points, weights)), bounds)


def mostly_zero(rate: float) -> Distribution:
    """Share in 0..1: uniform with probability `rate`, else 0."""
    return Distribution(lambda rng, n: rng.random(n) * (rng.random(n) < rate), rate / 2, SHARE)


DISTRIBUTIONS = {
    "normal": Distribution(lambda rng, n: rng.normal(size=n), 0.0, REAL),
    "exponential": Distribution(lambda rng, n: rng.exponential(size=n), 1.0, NONNEGATIVE),
    "log-normal": Distribution(lambda rng, n: rng.lognormal(size=n), float(np.exp(0.5)), NONNEGATIVE),
    "Student's t, 3 degrees of freedom": Distribution(lambda rng, n: rng.standard_t(3, n), 0.0, REAL),
    "uniform share": Distribution(lambda rng, n: rng.random(n), 0.5, SHARE),
    "share, beta(0.5, 5)": Distribution(lambda rng, n: rng.beta(0.5, 5, n), 0.5 / 5.5, SHARE),
    "share, 0 in nine of ten": mostly_zero(0.1),
    "0/1, rate .01": outcomes(0.01),
    "0/1, rate .05": outcomes(0.05),
    "0/1, rate .3": outcomes(0.3),
    "0/1, rate .5": outcomes(0.5),
    "paired 0/1, .5 and .5, r = 0": paired(0.5, 0.5, 0.0),
    "paired 0/1, .5 and .6, r = .5": paired(0.5, 0.6, 0.5),
    "paired 0/1, .7 and .8, r = .7": paired(0.7, 0.8, 0.7),
    "paired 0/1, .05 and .05, r = .5": paired(0.05, 0.05, 0.5),
    "-1, 0, 1 with .1, .6, .3": on_points((-1, 0, 1), (0.1, 0.6, 0.3), DIFFERENCE),
    "-1 .. 1 in halves, .05 .1 .5 .2 .15": on_points((-1, -0.5, 0, 0.5, 1), (0.05, 0.1, 0.5, 0.2, 0.15), DIFFERENCE),
    "-1 .. 1 in halves, 0 0 .9 .05 .05": on_points((-1, -0.5, 0, 0.5, 1), (0, 0, 0.9, 0.05, 0.05), DIFFERENCE),
}
WORST = "0/1, worst of all rates (exact)"
COMPARED = ("normal", "exponential", "0/1, rate .05")  # distributions that are also measured with Student's t


@dataclass(frozen=True)
class Config:
    runs: int = 4000
    """Simulated samples per cell; with 4000, a coverage of .95 has a standard error of .0034."""
    sizes: tuple[int, ...] = (5, 8, 10, 20, 100)
    """Sample sizes, one column each."""
    seed: int = 0
    """Random seed."""
    out_dir: str | None = None
    """New or empty folder for coverage.csv (default: results/coverage/<date>)."""

    def check(self) -> None:
        """Raise ValueError for invalid flags."""
        if self.runs < 1 or self.seed < 0 or min(self.sizes, default=0) < 2:
            raise ValueError(
                f"--runs {self.runs}, --seed {self.seed} and --sizes {' '.join(map(str, self.sizes))} are invalid; "
                "give at least 1 run, a seed of at least 0, and sizes of at least 2"
            )


def main(config: Config) -> int:
    with command.setting_up():
        config.check()
        out_dir = refuse_existing(config.out_dir or default_out_dir(__file__, "simulated"))
    print(" " * 40 + "".join(f"n = {n}".rjust(9) for n in config.sizes))
    rows = []
    for name, distribution in DISTRIBUTIONS.items():
        cells = [list(measure(name, distribution, n, config)) for n in config.sizes]
        for method_rows in zip(*cells, strict=True):
            label = f"  ({STUDENT})" if method_rows[0]["method"] == STUDENT else name
            print(label.ljust(40) + "".join(f"{row['coverage']:9.3f}" for row in method_rows), flush=True)
            rows += method_rows
    worst = [worst_rate(n) for n in config.sizes]
    print(WORST.ljust(40) + "".join(f"{row['coverage']:9.3f}" for row in worst))
    rows += worst
    out_dir.mkdir(parents=True, exist_ok=True)
    write_table(out_dir / "coverage.csv", rows)
    print(f"{config.runs} runs per cell; results in {out_dir}")
    return 0


def measure(name: str, distribution: Distribution, n: int, config: Config) -> Iterator[dict]:
    """Rows of one cell: mean_interval and, for COMPARED, Student's t. Every cell has its own random generator."""
    rng = np.random.default_rng([config.seed, n, *name.encode()])
    samples = np.stack([distribution.draw(rng, n) for _ in range(config.runs)])

    @cache
    def bounds_of(values: tuple[float, ...]) -> tuple[float, float]:
        interval = mean_interval(values, distribution.bounds)
        return (np.nan, np.nan) if interval["low"] is None else (interval["low"], interval["high"])

    methods = {"mean_interval": np.array([bounds_of(tuple(sample)) for sample in np.sort(samples, axis=1).tolist()])}
    if name in COMPARED:
        margin = special.stdtrit(n - 1, 0.975) * samples.std(1, ddof=1) / np.sqrt(n)
        methods[STUDENT] = samples.mean(1)[:, None] + margin[:, None] * [-1, 1]
    for method, (low, high) in ((method, ends.T) for method, ends in methods.items()):
        covered = (low <= distribution.mean) & (distribution.mean <= high)
        width = float(np.nanmedian(high - low))
        yield {"distribution": name, "method": method, "n": n, "coverage": float(covered.mean()), "median_width": width}


def worst_rate(n: int) -> dict:
    """Row of WORST: minimum coverage of `rate_interval` over rates from 0 to 1 in steps of 1 / 5,000."""
    counts, rates = np.arange(n + 1), np.linspace(0, 1, 5001)[1:-1, None]
    intervals = [rate_interval([True] * count + [False] * (n - count)) for count in counts.tolist()]
    low, high = (np.array([interval[end] for interval in intervals]) for end in ("low", "high"))
    coverage = (stats.binom.pmf(counts, n, rates) * ((low <= rates) & (rates <= high))).sum(1)
    row = {"distribution": WORST, "method": "rate_interval", "n": n, "coverage": float(coverage.min())}
    return {**row, "median_width": float(np.median(high - low))}


if __name__ == "__main__":
    command.run(main, Config, __doc__)
