"""Random decoders with the attention of the four families, and one prompt for each length.

`llava` is a Llama: every query head has a key head of its own. `qwen` is a Qwen2 (the decoder of Qwen2-VL and of
Qwen2.5-VL): four query heads share a key head, and projections have biases. `fuyu` is a Persimmon: queries and keys are
normalised, and half of each head is rotated.

Memory that a call takes: measured in a process of its own, or told beforehand by arithmetic.
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
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PersimmonConfig,
    PersimmonForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from analysis.runs import out_of_memory
from benchmarks import steering
from models.memory import free_bytes

Shape = Literal["llava", "qwen", "fuyu"]
HEAD_WIDTH = 64
SHARED = 4  # query heads to a key head of `qwen`
VOCABULARY = 1000
SHARPEN = 4  # times larger scores, so that attention is as uneven as a trained model's


@dataclass(frozen=True)
class Setup:
    """Flags that the benchmarks share."""

    new_tokens: int = 16
    """Tokens to generate."""
    layers: int = 8
    """Layers of the random decoder."""
    width: int = 512
    """Its hidden size, a multiple of the head width of 64."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where it runs."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number type of weights and cache."""
    threads: int = 2
    """CPU threads."""


def build(shape: Shape, width: int, layers: int, device: str, dtype: str) -> PreTrainedModel:
    """The random decoder of a shape in eval mode, the same at each call."""
    heads = width // HEAD_WIDTH
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "intermediate_size": width * 8 // 3,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 2**17,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    if shape == "llava":
        model = LlamaForCausalLM(LlamaConfig(**settings, num_key_value_heads=heads))
    elif shape == "qwen":
        model = Qwen2ForCausalLM(Qwen2Config(**settings, num_key_value_heads=max(1, heads // SHARED)))
    else:
        rope = {"rope_type": "default", "rope_theta": 25000.0, "partial_rotary_factor": 0.5}
        model = PersimmonForCausalLM(PersimmonConfig(**settings, rope_parameters=rope, qk_layernorm=True))
    for layer in model.model.layers:
        # Persimmon's queries are normalised after their projection, so there the scale is the norm's.
        last = layer.self_attn.q_layernorm if shape == "fuyu" else layer.self_attn.q_proj
        last.weight.data *= SHARPEN
    steering.plant_sinks(model)
    return model.eval().to(device, getattr(torch, dtype))


def prompt_of(length: int, device) -> torch.Tensor:
    """Token ids of the prompt of a length, int64 [1, position], always the same."""
    return torch.randint(0, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(1)).to(device)


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
