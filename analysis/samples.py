"""The loop of every script: one sample after the other, each measured or counted by the reason why not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence

from tqdm import tqdm

from analysis.errors import Unmeasurable
from analysis.results import RunFolder


def measure_each(
    run: RunFolder,
    samples: Sequence,
    measure: Callable[..., dict],
    bad_sample: tuple[type[Exception], ...] = (),
    unusable: Iterable[tuple[str, str]] = (),
) -> list[dict]:
    """Adds the row that `measure(sample)` returns for each sample to the run; returns the rows, in order.

    A sample (anything with a `name`) for which Unmeasurable or one of `bad_sample` is raised, each with a `reason`, is
    told on stderr and counted under that reason; any other error ends the run. `unusable` are (name, reason) of samples
    that were given up before.
    """
    for name, reason in unusable:
        run.skip(name, reason)
    rows = []
    for sample in tqdm(samples, unit="sample"):
        try:
            row = measure(sample)
        except (Unmeasurable, *bad_sample) as error:
            tqdm.write(f"skipped {sample.name}: {error}", file=sys.stderr)
            run.skip(sample.name, error.reason)
            continue
        run.add(sample.name, **row)
        rows.append(row)
    return rows
