"""Coverage of the 95 % intervals: how often each holds the true mean, over simulated samples of known mean.

    python -m benchmarks.coverage
    python -m benchmarks.coverage --runs 20000 --sizes 5 10

Every row is one distribution, every column one number of samples. `analysis.statistics.mean_interval` gets the range
that the quantity has; "(Student's t)" is the plain t interval of the same samples, for comparison. A sample without an
interval (equal values of unknown range) counts as a miss. The last row is exact, over all counts. Prints the table and
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
from analysis.runs import default_out_dir, refuse_existing, write_table
from analysis.statistics import DIFFERENCE, NONNEGATIVE, REAL, SHARE, Bounds, mean_interval, rate_interval

STUDENT = "Student's t"


class Distribution(NamedTuple):
    """`draw` of (generator, n) gives n independent values of mean `mean` and range `bounds`."""

    draw: Callable[[np.random.Generator, int], np.ndarray]
    mean: float
    bounds: Bounds | None


def outcomes(rate: float) -> Distribution:
    """0 and 1, given without a range."""
    return Distribution(lambda rng, n: rng.binomial(1, rate, n), rate, None)


def paired(before: float, after: float, correlation: float) -> Distribution:
    """Differences after - before of two outcomes with these rates and Pearson correlation: -1, 0 and 1.

    Raises ValueError for a correlation that two such rates cannot have.
    """
    both = before * after + correlation * np.sqrt(before * (1 - before) * after * (1 - after))
    lost, gained = before - both, after - both
    if min(both, lost, gained, 1 - both - lost - gained) < 0:
        raise ValueError(f"outcomes of rates {before} and {after} cannot correlate by {correlation}")
    return on_points((-1, 0, 1), (lost, 1 - lost - gained, gained), DIFFERENCE)


def on_points(points: tuple[float, ...], weights: tuple[float, ...], bounds: Bounds) -> Distribution:
    """These points with these probabilities."""
    return Distribution(lambda rng, n: rng.choice(points, n, p=weights), float(np.dot(points, weights)), bounds)


def mostly_zero(rate: float) -> Distribution:
    """A share in 0..1 that is uniform with probability `rate` and 0 otherwise."""
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
COMPARED = ("normal", "exponential", "0/1, rate .05")  # rows that Student's t gets, too


@dataclass(frozen=True)
class Config:
    runs: int = 4000
    """Simulated samples of every cell; of 4000, a coverage of .95 has a standard error of .0034."""
    sizes: tuple[int, ...] = (5, 8, 10, 20, 100)
    """Values in a sample, one column each."""
    seed: int = 0
    """Seed of the samples."""
    out_dir: str | None = None
    """New or empty folder for coverage.csv (default: results/coverage/<date>)."""

    def check(self) -> None:
        """Raises ValueError for flags that cannot work."""
        if self.runs < 1 or self.seed < 0 or min(self.sizes, default=0) < 2:
            raise ValueError(
                f"--runs {self.runs}, --seed {self.seed} and --sizes {' '.join(map(str, self.sizes))} cannot work; "
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
        for of_method in zip(*cells, strict=True):
            label = f"  ({STUDENT})" if of_method[0]["method"] == STUDENT else name
            print(label.ljust(40) + "".join(f"{row['coverage']:9.3f}" for row in of_method), flush=True)
            rows += of_method
    worst = [worst_rate(n) for n in config.sizes]
    print(WORST.ljust(40) + "".join(f"{row['coverage']:9.3f}" for row in worst))
    rows += worst
    out_dir.mkdir(parents=True, exist_ok=True)
    write_table(out_dir / "coverage.csv", rows)
    print(f"{config.runs} runs of each cell; results in {out_dir}")
    return 0


def measure(name: str, distribution: Distribution, n: int, config: Config) -> Iterator[dict]:
    """The rows of one cell: mean_interval's and, of COMPARED, Student's t. Every cell has a generator of its own."""
    rng = np.random.default_rng([config.seed, n, *name.encode()])
    samples = np.stack([distribution.draw(rng, n) for _ in range(config.runs)])

    @cache
    def bounds_of(values: tuple[float, ...]) -> tuple[float, float]:
        found = mean_interval(values, distribution.bounds)
        return (np.nan, np.nan) if found["low"] is None else (found["low"], found["high"])

    methods = {"mean_interval": np.array([bounds_of(tuple(sample)) for sample in np.sort(samples, axis=1).tolist()])}
    if name in COMPARED:
        reach = special.stdtrit(n - 1, 0.975) * samples.std(1, ddof=1) / np.sqrt(n)
        methods[STUDENT] = samples.mean(1)[:, None] + reach[:, None] * [-1, 1]
    for method, (low, high) in ((method, ends.T) for method, ends in methods.items()):
        held = (low <= distribution.mean) & (distribution.mean <= high)
        width = float(np.nanmedian(high - low))
        yield {"distribution": name, "method": method, "n": n, "coverage": float(held.mean()), "median_width": width}


def worst_rate(n: int) -> dict:
    """The row of WORST: the least coverage of `rate_interval` over rates from 0 to 1 in steps of 1 / 5,000."""
    counts, rates = np.arange(n + 1), np.linspace(0, 1, 5001)[1:-1, None]
    intervals = [rate_interval([True] * count + [False] * (n - count)) for count in counts.tolist()]
    low, high = (np.array([interval[end] for interval in intervals]) for end in ("low", "high"))
    held = (stats.binom.pmf(counts, n, rates) * ((low <= rates) & (rates <= high))).sum(1)
    row = {"distribution": WORST, "method": "rate_interval", "n": n, "coverage": float(held.min())}
    return {**row, "median_width": float(np.median(high - low))}


if __name__ == "__main__":
    command.run(main, Config, __doc__)
