"""Difference between recomputed attention weights and those of the eager model, by model, data type and image.

    python -m benchmarks.exactness
    python -m benchmarks.exactness --models CHECKPOINT --dtypes bfloat16 --device cuda

Each row generates under SDPA with a trace, then under eager attention with the same tokens, and compares all softmax
rows of all layers and heads. `eager` is the largest difference from the eager model's `output_attentions`; `recomputed`
is the largest difference from softmax(scaling q k^T), computed in float64 from the model's own queries and keys, and
measures the error of recomputation. `eager` also contains the difference between the states of the two runs, which
heads with large scores amplify: `scores` is the largest scaling |q| |k|, to which the rounding error of a score is
proportional. The images are a scene of two shapes and uniform noise. Prints a table and writes exactness.csv; the
figures depend on the processor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

import models
from analysis import command
from analysis.files import write_table
from analysis.runs import default_out_dir, refuse_existing
from data.shapes import Shape, draw
from models.attention import Formula, listening
from models.loading import quiet
from models.trace import AttentionTrace

COLUMNS = ("model", "dtype", "image", "tokens", "scores", "recomputed", "eager")
SCENE = [Shape("red", "circle", 0.3, 0.35, 0.2, 0.2), Shape("blue", "square", 0.7, 0.6, 0.25, 0.25)]


@dataclass(frozen=True)
class Config:
    models: tuple[str, ...] = tuple(models.embedded())
    """Embedded models, folders or hub ids."""
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    """Data types of the models."""
    seeds: int = 3
    """Number of noise images."""
    prompt: str = "where is the red circle ?"
    """Prompt of every image."""
    new_tokens: int = 4
    """New tokens per row of the table."""
    device: str = "cpu"
    """cpu | cuda."""
    out_dir: str | None = None
    """Folder for exactness.csv (default: results/exactness/<date>)."""

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.new_tokens < 2:
            raise ValueError("--seeds must be at least 1 and --new-tokens at least 2, so that a decode row is compared")


def images(seeds: int) -> Iterator[tuple[str, Image.Image]]:
    """(name, image): a scene of two shapes, and uniform noise of the same size."""
    yield "shapes", draw(SCENE, 96)
    for seed in range(seeds):
        pixels = np.random.default_rng(seed).integers(0, 256, (96, 96, 3), dtype=np.uint8)
        yield f"noise {seed}", Image.fromarray(pixels)


class ReferenceRows:
    """Softmax rows in float64 from the queries and keys of each attention call, for one prompt without padding."""

    def __init__(self) -> None:
        self.rows: list[torch.Tensor] = []  # [head, row, key] per call
        self.largest = 0.0  # scaling |q| |k|

    def __call__(self, layer: int, module, query, key, value, mask, formula: Formula) -> None:
        scaling = formula.scaling
        query, key = query[0].double(), key[0].double().repeat_interleave(query.shape[1] // key.shape[1], 0)
        self.largest = max(self.largest, scaling * float(query.norm(dim=-1).max() * key.norm(dim=-1).max()))
        scores = scaling * query @ key.transpose(1, 2)
        later = torch.ones_like(scores[0], dtype=torch.bool).triu(key.shape[1] - query.shape[1] + 1)
        self.rows.append(scores.masked_fill(later, -torch.inf).softmax(-1))


@torch.no_grad()
def measure(model, inputs, new_tokens: int) -> tuple[float, float, float]:
    """(scores, recomputed, eager) of one generation, as defined in the module docstring."""
    options = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens, "do_sample": False}
    reference = ReferenceRows()
    with AttentionTrace(model) as trace, listening(model, "decoder", reference):
        sequences = model.generate(**inputs, **options)
    model.set_attn_implementation({"text_config": "eager"})
    try:
        forced = forced_tokens(sequences[0, inputs["input_ids"].shape[1] :])
        eager = model.generate(
            **inputs, **options, logits_processor=[forced], output_attentions=True, return_dict_in_generate=True
        )
    finally:
        model.set_attn_implementation({"text_config": "sdpa"})
    from_states, from_eager = 0.0, 0.0
    for call, expected in enumerate(reference.rows):
        step, layer = divmod(call, trace.layers)
        count, stop = expected.shape[1:]
        ours = trace.weights(layer, range(stop - count, stop))[0, :, :, :stop]
        from_states = max(from_states, float((ours - expected).abs().max()))
        from_eager = max(from_eager, float((ours - eager.attentions[step][layer][0].float()).abs().max()))
    return reference.largest, from_states, from_eager


def forced_tokens(tokens: torch.Tensor):
    """Logits processor that forces generation to repeat these tokens, so that both runs have the same inputs."""
    steps = iter(tokens.tolist())

    def force(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, next(steps)] = 0
        return forced

    return force


def rows(config: Config) -> Iterator[dict]:
    """Measure one row per model, data type and image."""
    for name in config.models:
        for dtype in config.dtypes:
            model, processor = models.load(name, device=config.device, dtype=dtype)
            for image_name, image in images(config.seeds):
                inputs, layout = model.prepare(processor, [image], config.prompt)
                figures = measure(model, inputs, config.new_tokens)
                tokens = layout.length + config.new_tokens
                yield dict(zip(COLUMNS, (name, dtype, image_name, tokens, *figures), strict=True))


def main(config: Config) -> int:
    with command.setting_up():
        out_dir = refuse_existing(config.out_dir or default_out_dir(__file__, "weights"))
    print(f"instruction set: {torch.backends.cpu.get_cpu_capability()}")
    print(" ".join(f"{name:>15}" for name in COLUMNS))
    measured = []
    with quiet():
        for row in rows(config):
            measured.append(row)
            write_table(out_dir / "exactness.csv", measured)  # after every row, so that a later failure loses nothing
            shown = (f"{value:.2g}" if isinstance(value, float) else str(value) for value in row.values())
            print(" ".join(f"{value:>15}" for value in shown), flush=True)
    print(f"results in {out_dir}")
    return 0


if __name__ == "__main__":
    command.run(main, Config, __doc__)
