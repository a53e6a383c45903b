"""Accuracies of a checkpoint by kind of question: exact match of the whole generated answer, as a user would get it.

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
from models.tiny.questions import KINDS, right
from models.tiny.scenes import mixed

HERE = Path(__file__).resolve().parent
HELD_OUT_SEED = 1_000_003  # training seeds are far below
BATCH = 50
RELATION_WORDS = "the spatial relation is"


@dataclass(frozen=True)
class Config:
    model: str = "tiny-llava"
    """Embedded model, or folder of a checkpoint."""
    held_out: int = 500
    """Held-out questions of each kind."""
    real: Path | None = None
    """Data root of real ShapeWorld pictures (data/README.md), to score on as well."""
    threads: int = 2
    """CPU threads."""


@dataclass(frozen=True)
class Trial:
    kind: str
    picture: Image.Image
    shapes: tuple[Shape, ...]
    question: str
    answer: str


def held_out_trials(count: int, smallest: int = 0) -> list[Trial]:
    """`count` questions of each kind, each about a scene of its own, drawn at `smallest` pixels or more."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    trials = []
    for kind, ask in KINDS.items():
        found = 0
        while found < count:
            layout = mixed(rng)
            if asked := ask(layout.shapes, rng):
                picture = draw(list(layout.shapes), max(layout.side, smallest), layout.background)
                trials.append(Trial(kind, picture, layout.shapes, *asked))
                found += 1
    return trials


def check_real(real: Path | None) -> None:
    """Ends the program, with a sentence and status 2, for a folder that holds no pictures to score on."""
    if real is not None and not any(real.glob("**/world_model.json")):
        print(f"error: --real {real} holds no world_model.json; give a data root of that layout", file=sys.stderr)
        sys.exit(2)


def real_trials(root: Path) -> list[Trial]:
    """Every real picture with its own caption ("caption": the four-way relation), and a question of each other kind."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    trials = []
    for world_file in sorted(root.glob("**/world_model.json")):
        shard = world_file.parent
        captions = (shard / "caption.txt").read_text().splitlines()
        for index, (caption, world) in enumerate(zip(captions, json.loads(world_file.read_text()), strict=True)):
            picture = Image.open(shard / f"world-{index}.png").convert("RGB")
            shapes = tuple(shape_of(entity) for entity in world["entities"])
            question, answer = caption.split(RELATION_WORDS)
            trials.append(Trial("caption", picture, shapes, question + RELATION_WORDS, answer.strip(" .")))
            for kind, ask in KINDS.items():
                if kind != "rel" and (asked := ask(shapes, rng)):
                    trials.append(Trial(kind, picture, shapes, *asked))
    return trials


def shape_of(entity: dict) -> Shape:
    """A shape from its entry in a ShapeWorld world model."""
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
    """What the model says, greedily, in batches."""
    said = []
    for start in range(0, len(trials), BATCH):
        batch = trials[start : start + BATCH]
        inputs, _ = model.prepare(processor, [[trial.picture] for trial in batch], [trial.question for trial in batch])
        output = model.generate(**inputs, max_new_tokens=16)[:, inputs["input_ids"].shape[1] :]
        said += [text.strip() for text in processor.tokenizer.batch_decode(output, skip_special_tokens=True)]
    return said


def smallest_side(model, processor) -> int:
    """Side in pixels of the pictures that the checkpoint was trained on, where its processor does not enlarge smaller
    ones to it (Fuyu's does not); else 0."""
    return processor.image_processor.size["width"] if model.config.model_type == "fuyu" else 0


def accuracy(model, processor, trials: list[Trial]) -> dict[str, dict[str, float]]:
    """Per kind: share of right answers and n."""
    marks: dict[str, list[bool]] = {}
    for trial, said in zip(trials, answers(model, processor, trials), strict=True):
        marks.setdefault(trial.kind, []).append(right(trial.kind, trial.shapes, trial.answer, said))
    return {kind: {"accuracy": round(float(np.mean(hits)), 4), "n": len(hits)} for kind, hits in marks.items()}


def score(name: str, held_out: int, real: Path | None) -> dict[str, dict]:
    """Accuracies of a checkpoint as it was saved: on held-out scenes, and on the pictures of a data root if given."""
    model, processor = models.load(name, device="cpu")
    found = {"held_out": accuracy(model, processor, held_out_trials(held_out, smallest_side(model, processor)))}
    if real is not None:
        found["real"] = accuracy(model, processor, real_trials(real))
    return found


def main(config: Config) -> None:
    check_real(config.real)
    torch.set_num_threads(config.threads)
    for source, kinds in score(config.model, config.held_out, config.real).items():
        print(source)
        for kind, row in kinds.items():
            print(f"  {kind:<12}{row['accuracy']:.3f}  n {row['n']}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
