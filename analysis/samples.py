"""The loop of every script: one sample after the other, each measured or counted by the reason why not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence

import torch
from tqdm import tqdm

from analysis.results import RunFolder
from data.errors import SampleError


def measure_each(
    run: RunFolder,
    samples: Sequence,
    measure: Callable[..., dict],
    unusable: Iterable[tuple[str, str]] = (),
) -> list[dict]:
    """Adds the row that `measure(sample)` returns for each sample to the run; returns the rows, in order.

    A sample (anything with a `name`) that raises SampleError is reported on stderr and counted under its reason; so is
    one for which memory runs out. Any other error ends the run.
    `unusable` are (name, reason) of samples that were given up before.
    """
    return measure_batches(run, samples, lambda batch: [measure(batch[0])], 1, unusable)


def measure_batches(
    run: RunFolder,
    samples: Sequence,
    measure: Callable[[Sequence], list[dict]],
    size: int,
    unusable: Iterable[tuple[str, str]] = (),
) -> list[dict]:
    """As `measure_each`, with `measure(batch)` for up to `size` samples at a time, which returns a row for each.

    Where a batch holds a bad sample, its samples are measured one by one.
    """
    for name, reason in unusable:
        run.skip(name, reason)
    rows = []
    with tqdm(total=len(samples), unit="sample") as progress:
        for first in range(0, len(samples), size):
            batch = samples[first : first + size]
            for sample, found in zip(batch, attempt(measure, batch), strict=True):
                progress.update()
                if isinstance(found, Exception):
                    tqdm.write(f"skipped {sample.name}: {found}", file=sys.stderr)
                    run.skip(sample.name, found.reason)
                    continue
                run.add(sample.name, **found)
                rows.append(found)
    return rows


def attempt(measure: Callable[[Sequence], list], batch: Sequence) -> list:
    """The result of `measure(batch)` for each sample of a batch, or the SampleError of a sample that has none."""
    try:
        return measure(batch)
    except SampleError as error:
        failed = error.with_traceback(None)  # whose frames would keep what was recorded
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        failed = SampleError("out of memory", "out of memory; fewer or smaller pictures or half precision may fit")
    torch.cuda.empty_cache()  # here, where the error and its frames are gone
    return [failed] if len(batch) == 1 else [found for one in batch for found in attempt(measure, [one])]


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch's CPU allocator has no exception of its own for it."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
