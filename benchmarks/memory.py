"""Memory that a call takes: measured in a process of its own, or told beforehand by arithmetic."""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import torch

from analysis.samples import out_of_memory
from models.memory import free_bytes

MEGABYTE = 2**20


def peak_memory(prepare: Callable, run: Callable) -> tuple[float, float] | None:
    """(peak, peak above what was held before `run`) in MB, of run(prepare()) in a fresh process; None if it ran out.

    `prepare` returns a model and does what libraries do once. On a GPU the allocator's own count, else resident size,
    where the C library gives freed tensors back at once: its heap would keep more or less of them, by chance. Both must
    be picklable.
    """
    spawn = multiprocessing.get_context("spawn")
    with environment(MALLOC_MMAP_THRESHOLD_=str(MEGABYTE)), ProcessPoolExecutor(1, mp_context=spawn) as fresh:
        return attempt(fresh.submit(_measure, prepare, run).result)


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Variables that processes started in the block will see."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _measure(prepare: Callable, run: Callable) -> tuple[float, float]:
    model = prepare()
    if model.device.type != "cpu":
        held = torch.cuda.memory_allocated() / MEGABYTE
        torch.cuda.reset_peak_memory_stats()
        run(model)
        peak = torch.cuda.max_memory_allocated() / MEGABYTE
        return peak, peak - held
    held = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of `prepare`
    run(model)
    peak = resident("VmHWM")
    return peak, peak - held


def resident(field: str) -> float:
    """This process's resident size now (VmRSS) or at its highest (VmHWM), in MB. Raises RuntimeError without /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        raise RuntimeError("peak memory of a CPU is read from /proc, which this system has not; use Linux, or a GPU")
    return int(re.search(rf"{field}:\s+(\d+)", status.read_text())[1]) / 1024


def free_memory(device: str) -> float:
    """`models.memory.free_bytes` in MB."""
    return free_bytes(device) / MEGABYTE


def matrices(way: str, length: int, layers: int, heads: int, dtype: str) -> float | None:
    """MB of the T x T matrices that an eager way stores; None for a way that stores none. It needs half as much again,
    for scores and softmax of the layer at hand and for what is made of the matrices.

    `eager` and `eager-rows` keep those of every layer in the model's number type; an eager intervention keeps none, but
    makes scores, their softmax and an edited copy of one layer, float32.
    """
    if not way.startswith("eager"):
        return None
    stored = layers * getattr(torch, dtype).itemsize if way in ("eager", "eager-rows") else 3 * 4
    return stored * heads * length**2 / MEGABYTE


def attempt(call, *arguments):
    """The result of a call, or None where memory ran out (in a process of its own: where it was killed for it)."""
    try:
        return call(*arguments)
    except BrokenProcessPool:
        return None
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return None
