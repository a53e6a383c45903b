"""Train an embedded checkpoint on a CPU, on generated images and questions.

    python -m models.tiny.train --family llava                       (about an hour on two cores)
    python -m models.tiny.train --family qwen2.5-vl --threads 1      (or qwen2-vl, or fuyu: one thread)

Writes the checkpoint (fp16) and `training.json`: settings, versions, minutes, the learning curve, and accuracies by
kind of question on held-out scenes and, with --real, on real ShapeWorld images.

LLaVA is trained from scratch in five stages: "patches" (the vision encoder predicts patch labels), "words" (projector
and embeddings: alignment of image tokens with word embeddings), "lookup" (questions about one shape), "far" (relations
of shapes in different halves of the image, which the tokens' own "left" and "top" determine), "natural" (all
questions). The other families are distilled from it: "see" (vision encoder and first decoder layers reproduce the
output of LLaVA's projector), then "natural"; Fuyu starts with "hear" (its feed-forward blocks, which have another
architecture, reproduce LLaVA's).
"""

from __future__ import annotations

import copy
import importlib
import json
import platform
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
import transformers
import tyro
from tqdm import tqdm

from models.tiny.learning import WARM_UP, Learner, Optimisers, Student
from models.tiny.scenes import Layout, Pool, crowd, far_pairs, mixed
from models.tiny.score import check_real, score

HERE = Path(__file__).resolve().parent
LOG_EVERY = 50  # steps


@dataclass(frozen=True)
class Config:
    family: str = "llava"
    """Family of the checkpoint, as in `models/tiny/build_<family>.py`."""
    out: Path | None = None
    """Output folder (default: models/tiny/tiny-<family>)."""
    seed: int = 0
    """Random seed."""
    threads: int = 2
    """CPU threads."""
    scale: float = 1.0
    """Factor on the number of steps of every stage, for a quick test."""
    pool: int = 2048
    """Size of the pool of drawn scenes."""
    held_out: int = 500
    """Held-out questions per kind for the accuracies."""
    real: Path | None = None
    """Data root of real ShapeWorld images (data/README.md) for further accuracies; not used in training."""


@dataclass(frozen=True)
class Stage:
    """Stage of the training.

    loss: learner method without the suffix "_loss"; options: its arguments. learns: factor on the learning rate of each
    trained part. rate: learning rate factor at the start and the end (cosine). renew: scenes redrawn per step.
    """

    name: str
    loss: str
    steps: int
    batch: int
    learns: dict[str, float]
    rate: tuple[float, float]
    renew: int
    options: dict = field(default_factory=dict)


LOOKUP = {"where": 2, "colour": 1.4, "shape": 1.2, "cornerwhat": 1.2, "corner": 0.6, "side": 0.5, "exist": 0.5}
RELATIONS = {
    **{"rel": 3, "relwhere": 1, "relyn": 2, "whatrel": 1.2, "first": 1.2, "colour": 0.7, "shape": 0.6},
    **{"describe": 0.8, "exist": 0.8, "corner": 0.5, "where": 0.5, "cornerwhat": 0.5, "amb": 0.3, "side": 0.2},
}
# low decoder rate: at the full rate Muon would erase the structure of the initial weights
EVERYTHING = {"tower": 0.05, "projector": 1.0, "embeddings": 1.0, "decoder": 0.27, "readout": 1.0}
FROM_SCRATCH = (
    Stage("patches", "patches", 1800, 64, {"tower": 1.0, "readout": 1.0}, (1.0, 0.03), 6),
    Stage("words", "words", 300, 64, {"projector": 1.0, "embeddings": 1.0, "readout": 1.0}, (1.0, 0.05), 6),
    Stage("lookup", "questions", 900, 16, EVERYTHING, (1.0, 1.0), 4, {"mix": LOOKUP, "patch_weight": 0.2}),
    Stage("far", "questions", 2200, 16, EVERYTHING, (1.0, 1.0), 4, {"mix": RELATIONS, "patch_weight": 0.2}),
    Stage("natural", "questions", 5400, 16, EVERYTHING, (1.0, 0.02), 4, {"mix": RELATIONS, "patch_weight": 0.2}),
)
VISION = {"tower": 1.0, "projector": 1.0, "first_layers": 0.27, "readout": 1.0}
EVERYTHING_STUDENT = {**EVERYTHING, "first_layers": 0.1}
FROM_TEACHER = (
    Stage("see", "see", 1200, 32, VISION, (1.0, 0.03), 6, {"mix": RELATIONS}),
    Stage("natural", "questions", 900, 16, EVERYTHING_STUDENT, (0.5, 0.02), 4, {"mix": RELATIONS, "patch_weight": 0.2}),
)
HEAR = Stage("hear", "hear", 500, 16, {"decoder": 1.0}, (1.0, 0.03), 4, {"mix": RELATIONS})
KINDS = {"llava": (Learner, FROM_SCRATCH), "fuyu": (Student, (HEAR, *FROM_TEACHER))}
"""Learner and stages of a family; others are students with the stages FROM_TEACHER."""


def patch_layouts(rng: np.random.Generator) -> Layout:
    """Layout for the stages that train on patch labels."""
    return crowd(rng) if rng.random() < 0.8 else mixed(rng)


SCENES = {
    **dict.fromkeys(("patches", "words", "see"), patch_layouts),
    **dict.fromkeys(("lookup", "hear", "natural"), mixed),
    "far": far_pairs,
}


def rate_at(step: int, steps: int, rate: tuple[float, float]) -> float:
    """Learning rate factor: linear warm-up times a half cosine from rate[0] to rate[1]."""
    start, end = rate
    cosine = 0.5 * (1 + np.cos(np.pi * step / steps))
    return min(1.0, (step + 1) / WARM_UP) * (end + (start - end) * cosine)


def run_stage(learner: Learner, stage: Stage, seed: int, pool_size: int) -> list[dict]:
    """Run one stage and return its curve: mean metrics and minutes so far, every LOG_EVERY steps."""
    torch.manual_seed(seed)
    learner.rng = np.random.default_rng(seed)
    began, curve, measured = time.perf_counter(), [], defaultdict(list)
    pool = Pool(SCENES[stage.name], pool_size, learner.family.SIDE, learner.family.PATCHES, learner.rng)
    optimisers = Optimisers(learner, stage.learns)
    for step in tqdm(range(stage.steps), desc=stage.name, mininterval=10):
        scenes = pool.pick(stage.batch, stage.renew)
        loss, metrics = getattr(learner, f"{stage.loss}_loss")(scenes, **stage.options)
        optimisers.step(loss, rate_at(step, stage.steps, stage.rate))
        for name, value in metrics.items():
            measured[name].append(value)
        if (step + 1) % LOG_EVERY == 0 or step + 1 == stage.steps:
            means = {name: round(float(np.mean(values)), 4) for name, values in measured.items()}
            minutes = (time.perf_counter() - began) / 60
            curve.append({"stage": stage.name, "step": step + 1, "minutes": round(minutes, 2), **means})
            tqdm.write(json.dumps(curve[-1]))
            measured.clear()
    return curve


def save(learner: Learner, folder: Path) -> None:
    """Save model (fp16), tokenizer, processor and chat template in the format of transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    model = copy.deepcopy(learner.model).half()
    model.set_attn_implementation("sdpa")
    model.save_pretrained(folder)
    learner.processor.save_pretrained(folder)


def main(config: Config) -> None:
    check_real(config.real)
    torch.set_num_threads(config.threads)
    torch.set_flush_denormal(True)
    family = importlib.import_module(f"models.tiny.build_{config.family.replace('-', '_').replace('.', '_')}")
    folder = config.out or HERE / f"tiny-{config.family}"
    began, started = time.perf_counter(), datetime.now(UTC)
    kind, table = KINDS.get(config.family, (Student, FROM_TEACHER))
    learner, curve = kind(family, config.seed), []
    stages = [replace(stage, steps=max(1, round(stage.steps * config.scale))) for stage in table]
    for index, stage in enumerate(stages):
        curve += run_stage(learner, stage, config.seed * 1000 + index, config.pool)
        save(learner, folder)  # after every stage, so that an interrupted run keeps its weights
    record = {
        "settings": {name: value for name, value in asdict(config).items() if name not in ("out", "real")},
        "stages": [asdict(stage) for stage in stages],
        "versions": {
            "python": platform.python_version(),
            **{module.__name__: module.__version__ for module in (torch, transformers, np)},
        },
        "started": started.isoformat(timespec="seconds"),
        "parameters": sum(parameter.numel() for parameter in learner.model.parameters()),
        "training_minutes": round((time.perf_counter() - began) / 60, 1),
        "processor_minutes": round(time.process_time() / 60, 1),
        "curve": curve,
    }
    write(folder, record)  # before the scores, so that a failure there loses nothing
    write(folder, {**record, "accuracy": score(str(folder), config.held_out, config.real)})


def write(folder: Path, record: dict) -> None:
    """Write training.json into the checkpoint folder."""
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
