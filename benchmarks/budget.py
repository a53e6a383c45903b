"""Arithmetic of the GPU memory that a run needs, by model and length of the prompt, before anything is loaded.

    python -m benchmarks.budget --model qwen2.5-vl-7b --tokens 16384 --card-gb 24
    python -m benchmarks.budget --model benchmark --tokens 4096 16384

Prints the parts, and for each way to run whether the sum leaves room for the CUDA context; the eager way stands beside
it. `benchmark` is the decoder of benchmarks.attention_cost, on a CPU. Nothing here is measured; docs/cost.md compares
it with what was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from analysis import command
from models.memory import GB, Decoder, parts

CONTEXT = 0.6 * GB  # CUDA context and library workspaces
IN_4_BIT = 0.6  # bytes a parameter: half a byte, its scale, and the embeddings that stay in 16 bits


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
    """Whose sizes: a published checkpoint's, or those of the decoder of benchmarks.attention_cost."""
    tokens: tuple[int, ...] = (16384,)
    """Positions: prompt and answer, pictures included."""
    card_gb: float = 24.0
    """Memory of the GPU, in GB (10^9 bytes)."""


def ways(part: dict[str, float], decoder: Decoder) -> dict[str, float]:
    """Bytes that each way to run needs in all. Rollout begins when the prompt's activations are gone."""
    base = part["weights"] + part["keys and values"]
    plain = base + part["activations"]
    offloaded = base + max(part["activations"], part["rollout"])
    rolled = offloaded + part["recorded queries"]
    return {
        "plain": plain,
        "recording, the answer's rows only": plain,
        "recording and rollout": rolled,
        "the same with --offload": offloaded,
        "the same with --load-4bit": rolled - part["weights"] + IN_4_BIT * decoder.parameters,
        "eager, matrices stored": plain + part["eager matrices"],
    }


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
        for name, size in ways(part, decoder).items():
            verdict = "fits" if size + CONTEXT <= config.card_gb * GB else "does not fit"
            print(f"  = {name:34}{size / GB:9.2f}   {verdict} in {config.card_gb:g} GB")
    return 0


if __name__ == "__main__":
    command.run(main, Config, __doc__)
