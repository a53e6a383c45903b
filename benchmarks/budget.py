"""GPU memory of a run by model and prompt length: arithmetic before loading, and the measured peak of a call.

    python -m benchmarks.budget --model qwen2.5-vl-7b --tokens 16384 --card-gb 24
    python -m benchmarks.budget --model benchmark --tokens 4096 16384

Prints the parts and, for each condition, whether their sum and the CUDA context fit; the last condition is eager
attention. `benchmark` is the decoder of benchmarks.attention_cost, on a CPU. The command measures nothing; docs/cost.md
compares its figures with measured ones. `peak_memory` measures, for the other benchmarks.
"""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from analysis import command
from analysis.resume import out_of_memory
from benchmarks.decoders import METHODS
from models.memory import GB, Decoder, free_bytes, parts

MEGABYTE = 2**20
CONTEXT = 0.6 * GB  # CUDA context and library workspaces
IN_4_BIT = 0.6  # bytes per parameter: half a byte, its scale, and the embeddings in 16 bits

DECODERS = {
    "llava-1.5-7b": Decoder(7.06e9, 32, 32, 32, 128, 4096, 11008),
    "qwen2-vl-7b": Decoder(8.29e9, 28, 28, 4, 128, 3584, 18944),
    "qwen2.5-vl-7b": Decoder(8.29e9, 28, 28, 4, 128, 3584, 18944),
    "fuyu-8b": Decoder(9.41e9, 36, 64, 64, 64, 4096, 16384),
    "benchmark": Decoder(26.2e6, 8, 8, 8, 64, 512, 1365, number=4),
}


@dataclass(frozen=True)
class Config:
    model: Literal["llava-1.5-7b", "qwen2-vl-7b", "qwen2.5-vl-7b", "fuyu-8b", "benchmark"] = "qwen2.5-vl-7b"
    """Sizes of a published checkpoint, or of the decoder of benchmarks.attention_cost."""
    tokens: tuple[int, ...] = (16384,)
    """Sequence lengths: prompt (with image tokens) and answer."""
    card_gb: float = 24.0
    """Memory of the GPU, in GB (10^9 bytes)."""


def condition_totals(part: dict[str, float], decoder: Decoder) -> dict[str, float]:
    """Total bytes of each condition. Rollout starts after the prompt's activations are freed."""
    base = part["weights"] + part["keys and values"]
    plain = base + part["activations"]
    offloaded = base + max(part["activations"], part["rollout"])
    with_rollout = offloaded + part["recorded queries"]
    return {
        "plain": plain,
        "recording, the answer's rows only": plain,
        "recording and rollout": with_rollout,
        "the same with --offload": offloaded,
        "the same with --load-4bit": with_rollout - part["weights"] + IN_4_BIT * decoder.parameters,
        "eager, matrices stored": plain + part["eager matrices"],
    }


def peak_memory(prepare: Callable, run: Callable) -> tuple[float, float] | None:
    """(peak, peak above the memory held before `run`) in MB of run(prepare()) in a fresh process; None if it ran out.

    `prepare` returns a model after one warm-up call. On a GPU the figure is the allocator's count, on a CPU the
    resident size; there the C library returns freed tensors at once, since its heap would retain a random part of them.
    Both functions must be picklable.
    """
    spawn = multiprocessing.get_context("spawn")
    with environment(MALLOC_MMAP_THRESHOLD_=str(MEGABYTE)), ProcessPoolExecutor(1, mp_context=spawn) as executor:
        return attempt(executor.submit(_measure, prepare, run).result)


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables for processes that are started in the block."""
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
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak after `prepare`
    run(model)
    peak = resident("VmHWM")
    return peak, peak - held


def resident(field: str) -> float:
    """Resident size of this process, current (VmRSS) or peak (VmHWM), in MB. Raises RuntimeError without /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        raise RuntimeError("CPU peak memory is read from /proc, which this system lacks; use Linux or a GPU")
    return int(re.search(rf"{field}:\s+(\d+)", status.read_text())[1]) / 1024


def free_memory(device: str) -> float:
    """`models.memory.free_bytes` in MB."""
    return free_bytes(device) / MEGABYTE


def matrix_memory(variant: str, length: int, layers: int, heads: int, dtype: str) -> float | None:
    """MB of the T x T matrices that an eager condition stores; None for the others. Peak memory is half as much again,
    for the current layer's scores and softmax and for products of the matrices.

    An eager intervention stores scores, softmax and an edited copy of one layer in float32; the others store the
    matrices of every layer in the model's data type, `eager-gradient` and `eager-relevance` also their gradients.
    """
    if not variant.startswith("eager"):
        return None
    copies = 2 if variant in ("eager-gradient", "eager-relevance") else 1
    intervention = variant.removeprefix("eager-") in METHODS
    stored = 3 * 4 if intervention else copies * layers * getattr(torch, dtype).itemsize
    return stored * heads * length**2 / MEGABYTE


def attempt(call, *arguments):
    """Return the result of a call, or None if it ran out of memory (or its process was killed for it)."""
    try:
        return call(*arguments)
    except BrokenProcessPool:
        return None
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return None


def main(config: Config) -> int:
    with command.setting_up():
        if not config.tokens or min(config.tokens) < 1 or config.card_gb <= 0:
            raise ValueError("--tokens must be at least 1 and --card-gb above 0")
    decoder = DECODERS[config.model]
    for tokens in config.tokens:
        part = parts(decoder, tokens, "cpu" if config.model == "benchmark" else "cuda")
        print(f"{config.model}, {tokens} tokens, GB (arithmetic)")
        for name, size in part.items():
            print(f"  {name:36}{size / GB:9.2f}")
        for name, size in condition_totals(part, decoder).items():
            verdict = "fits" if size + CONTEXT <= config.card_gb * GB else "does not fit"
            print(f"  = {name:34}{size / GB:9.2f}   {verdict} in {config.card_gb:g} GB")
    return 0


if __name__ == "__main__":
    command.run(main, Config, __doc__)
