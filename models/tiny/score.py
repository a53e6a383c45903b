"""Accuracy of a checkpoint by kind of question: exact match of the whole generated answer.

python -m models.tiny.score --model tiny-llava        (prints a table)
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image

import models
from data.shapes import Shape, draw
from models.tiny.questions import KINDS, is_correct
from models.tiny.scenes import mixed

HERE = Path(__file__).resolve().parent
HELD_OUT_SEED = 1_000_003  # training seeds are far below
BATCH = 50
RELATION_WORDS = "the spatial relation is"


@dataclass(frozen=True)
class Config:
    model: str = "tiny-llava"
    """Embedded model or folder of a checkpoint."""
    held_out: int = 500
    """Held-out questions per kind."""
    real: Path | None = None
    """Data root of real ShapeWorld images (data/README.md) for a second table."""
    threads: int = 2
    """CPU threads."""


@dataclass(frozen=True)
class Trial:
    """One question about one image, with its gold answer."""

    kind: str
    image: Image.Image
    shapes: tuple[Shape, ...]
    question: str
    answer: str


def held_out_trials(count: int, smallest: int = 0) -> list[Trial]:
    """Draw `count` questions per kind, each about a separate scene with a side of at least `smallest` pixels."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    trials = []
    for kind, sample in KINDS.items():
        drawn = 0
        while drawn < count:
            layout = mixed(rng)
            if question := sample(layout.shapes, rng):
                image = draw(list(layout.shapes), max(layout.side, smallest), layout.background)
                trials.append(Trial(kind, image, layout.shapes, *question))
                drawn += 1
    return trials


def check_real(real: Path | None) -> None:
    """Exit with status 2 and a one-line error if the folder contains no ShapeWorld images."""
    if real is not None and not any(real.glob("**/world_model.json")):
        print(f"error: --real {real} holds no world_model.json; give a data root of that layout", file=sys.stderr)
        sys.exit(2)


def real_trials(root: Path) -> list[Trial]:
    """Trials on real images: each image's caption (kind "caption", the relation) and a question of each other kind."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    trials = []
    for world_file in sorted(root.glob("**/world_model.json")):
        shard = world_file.parent
        captions = (shard / "caption.txt").read_text().splitlines()
        for index, (caption, world) in enumerate(zip(captions, json.loads(world_file.read_text()), strict=True)):
            image = Image.open(shard / f"world-{index}.png").convert("RGB")
            shapes = tuple(shape_of(entity) for entity in world["entities"])
            prompt, answer = caption.split(RELATION_WORDS)
            trials.append(Trial("caption", image, shapes, prompt + RELATION_WORDS, answer.strip(" .")))
            for kind, sample in KINDS.items():
                if kind != "rel" and (question := sample(shapes, rng)):
                    trials.append(Trial(kind, image, shapes, *question))
    return trials


def shape_of(entity: dict) -> Shape:
    """Shape of an entity in a ShapeWorld world model."""
    colour, centre, shape = entity["color"], entity["center"], entity["shape"]
    size = shape["size"]
    return Shape(
        colour["name"],
        shape["name"],
        centre["x"],
        centre["y"],
        size["x"],
        size["y"],
        entity["rotation"],
        colour["shade"],
    )


def answers(model, processor, trials: list[Trial]) -> list[str]:
    """Generate the answers of all trials greedily, in batches."""
    texts = []
    for start in range(0, len(trials), BATCH):
        batch = trials[start : start + BATCH]
        inputs, _ = model.prepare(processor, [[trial.image] for trial in batch], [trial.question for trial in batch])
        output = model.generate(**inputs, max_new_tokens=16)[:, inputs["input_ids"].shape[1] :]
        texts += [text.strip() for text in processor.tokenizer.batch_decode(output, skip_special_tokens=True)]
    return texts


def smallest_side(model, processor) -> int:
    """Side in pixels of the training images if the processor does not enlarge smaller images (Fuyu), else 0."""
    return processor.image_processor.size["width"] if model.config.model_type == "fuyu" else 0


def accuracy(model, processor, trials: list[Trial]) -> dict[str, dict[str, float]]:
    """Accuracy and n per kind."""
    correct: dict[str, list[bool]] = {}
    for trial, text in zip(trials, answers(model, processor, trials), strict=True):
        correct.setdefault(trial.kind, []).append(is_correct(trial.kind, trial.shapes, trial.answer, text))
    return {kind: {"accuracy": round(float(np.mean(hits)), 4), "n": len(hits)} for kind, hits in correct.items()}


def score(name: str, held_out: int, real: Path | None) -> dict[str, dict]:
    """Accuracies of a saved checkpoint on held-out scenes and, if `real` is set, on the images of that data root."""
    model, processor = models.load(name, device="cpu")
    scores = {"held_out": accuracy(model, processor, held_out_trials(held_out, smallest_side(model, processor)))}
    if real is not None:
        scores["real"] = accuracy(model, processor, real_trials(real))
    return scores


def main(config: Config) -> None:
    check_real(config.real)
    torch.set_num_threads(config.threads)
    for source, kinds in score(config.model, config.held_out, config.real).items():
        print(source)
        for kind, row in kinds.items():
            print(f"  {kind:<12}{row['accuracy']:.3f}  n {row['n']}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
