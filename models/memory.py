"""Memory that a generation needs, in bytes, and free memory of a device.

`benchmarks.budget` prints it for published checkpoints; `check_fits` compares it with the model's device.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from models.trace import BLOCK_ELEMENTS, BLOCK_ROWS

GB = 1e9


@dataclass(frozen=True)
class Decoder:
    """Sizes of a checkpoint: parameters of the model, and layers, heads and widths of its decoder."""

    parameters: float
    layers: int
    heads: int
    key_heads: int
    head_width: int
    width: int
    inner: int
    """Width inside the MLP."""
    number: int = 2
    """Bytes of a number: 2 for half precision, 4 for float32."""

    @classmethod
    def of(cls, model) -> Decoder:
        """Sizes of a loaded model. Dimensions missing in its config take the usual value."""
        config, heads = model.get_decoder().config, model.get_decoder().config.num_attention_heads
        return cls(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            layers=config.num_hidden_layers,
            heads=heads,
            key_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
            width=config.hidden_size,
            inner=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            number=model.dtype.itemsize,
        )


def parts(decoder: Decoder, tokens: int, device: str = "cuda") -> dict[str, float]:
    """Peak bytes of each part.

    `activations`: one layer's MLP on the whole prompt, three arrays of its inner width (gate, up, and their product)
    and three of the model's width. `rollout`: a block of scores and its softmax, float32, and a layer's keys.
    """
    layer = decoder.head_width * decoder.number * tokens
    block = max(BLOCK_ELEMENTS[device], BLOCK_ROWS * tokens)
    return {
        "weights": decoder.parameters * decoder.number,
        "keys and values": 2 * decoder.layers * decoder.key_heads * layer,
        "recorded queries": decoder.layers * decoder.heads * layer,
        "activations": 3 * (decoder.inner + decoder.width) * decoder.number * tokens,
        "rollout": 2 * 4 * block + 4 * decoder.key_heads * decoder.head_width * tokens,
        "eager matrices": decoder.layers * decoder.heads * decoder.number * tokens**2,
    }


def needed(decoder: Decoder, tokens: int, device: str, recorded: bool = True, offload: bool = False) -> float:
    """Bytes besides the weights of a generation over so many tokens, unrecorded, or `recorded` with a rollout.

    Rollout begins after the prompt's activations are freed. On a CPU offloading has no effect.
    """
    part = parts(decoder, tokens, device)
    if not recorded:
        return part["keys and values"] + part["activations"]
    queries = 0 if offload and device != "cpu" else part["recorded queries"]
    return part["keys and values"] + max(part["activations"], part["rollout"]) + queries


def free_bytes(device: str) -> float:
    """Bytes that this process or another can still allocate on a device; infinite if the system reports none."""
    if device != "cpu":
        torch.cuda.empty_cache()  # count the memory freed by earlier runs as free
        return torch.cuda.mem_get_info()[0]
    table = Path("/proc/meminfo")
    return int(re.search(r"MemAvailable:\s+(\d+)", table.read_text())[1]) * 1024 if table.exists() else float("inf")


def check_fits(model, samples: int, tokens: int, recorded: bool = True, offload: bool = False) -> None:
    """Warn if a batch of `samples` generations over so many tokens needs more memory than the device has free.

    The estimate leaves out the vision encoder; a model spread over several devices is not checked.
    """
    if len({parameter.device for parameter in model.parameters()}) != 1:
        return
    device = model.device.type
    need, free = samples * needed(Decoder.of(model), tokens, device, recorded, offload), free_bytes(device)
    if need > free:
        prompts = "a prompt" if samples == 1 else f"a batch of {samples} prompts"
        warnings.warn(
            f"{prompts} of {tokens:,} tokens may not fit: it needs about {need / GB:.1f} GB above the weights, and "
            f"{free / GB:.1f} GB are free on {device} (docs/cost.md); show smaller images (--max-pixels for the Qwen "
            "families), or pass --offload, --dtype bfloat16 or a smaller --batch-size",
            stacklevel=2,
        )
