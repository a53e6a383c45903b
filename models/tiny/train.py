"""Train an embedded checkpoint on a CPU, on generated pictures and questions.

    python -m models.tiny.train --family llava                       (about an hour on two cores)
    python -m models.tiny.train --family qwen2.5-vl --threads 1      (or qwen2-vl, or fuyu: one thread)

Writes the checkpoint (fp16), and beside it `training.json`: settings, versions, minutes, the learning curve, and the
accuracies by kind of question on held-out scenes and, where they are there, on real ShapeWorld pictures.

LLaVA learns from nothing, in five stages: patches (the tower alone learns what lies under each patch), words (projector
and embeddings: the picture's tokens come to speak the decoder's words), lookup (questions about one shape), far
(relations of shapes in different halves of the picture, where "left" and "top" as the tokens carry them settle the
order), natural (everything). The other families learn from it: see (their towers and first decoder layers come to say
of a picture what LLaVA's projector says), natural (everything); Fuyu hears first (its feed-forward blocks, which are of
another kind, come to answer as LLaVA's do).
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

from models.tiny.learning import WARM_UP, Learner, Optimisers, Pupil
from models.tiny.scenes import Layout, Pool, crowd, far_pairs, mixed
from models.tiny.score import check_real, score

HERE = Path(__file__).resolve().parent
LOG_EVERY = 50  # steps


@dataclass(frozen=True)
class Config:
    family: str = "llava"
    """Which checkpoint to train; `models/tiny/build_<family>.py` describes it."""
    out: Path | None = None
    """Where to write it (default: models/tiny/tiny-<family>)."""
    seed: int = 0
    """Seed of every random number."""
    threads: int = 2
    """CPU threads."""
    scale: float = 1.0
    """Factor on the number of steps of every stage, for a quick try."""
    pool: int = 2048
    """Drawn scenes kept at a time."""
    held_out: int = 500
    """Held-out questions of each kind to score on."""
    real: Path | None = None
    """Data root of real ShapeWorld pictures (data/README.md), to score on as well; never trained on."""


@dataclass(frozen=True)
class Stage:
    """`loss`: a method of the learner, without "_loss", and `options` what it takes; `learns`: factor on the learning
    rate of each part that learns; `rate`: from, to (cosine); `renew`: scenes drawn anew at each step."""

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
# the decoder starts from structure that Muon at its full rate would wash out
EVERYTHING = {"tower": 0.05, "projector": 1.0, "embeddings": 1.0, "decoder": 0.27, "readout": 1.0}
FROM_SCRATCH = (
    Stage("patches", "patches", 1800, 64, {"tower": 1.0, "readout": 1.0}, (1.0, 0.03), 6),
    Stage("words", "words", 300, 64, {"projector": 1.0, "embeddings": 1.0, "readout": 1.0}, (1.0, 0.05), 6),
    Stage("lookup", "questions", 900, 16, EVERYTHING, (1.0, 1.0), 4, {"mix": LOOKUP, "patch_weight": 0.2}),
    Stage("far", "questions", 2200, 16, EVERYTHING, (1.0, 1.0), 4, {"mix": RELATIONS, "patch_weight": 0.2}),
    Stage("natural", "questions", 5400, 16, EVERYTHING, (1.0, 0.02), 4, {"mix": RELATIONS, "patch_weight": 0.2}),
)
EYES = {"tower": 1.0, "projector": 1.0, "first_layers": 0.27, "readout": 1.0}
ALL_EYES = {**EVERYTHING, "first_layers": 0.1}
FROM_TEACHER = (
    Stage("see", "see", 1200, 32, EYES, (1.0, 0.03), 6, {"mix": RELATIONS}),
    Stage("natural", "questions", 900, 16, ALL_EYES, (0.5, 0.02), 4, {"mix": RELATIONS, "patch_weight": 0.2}),
)
HEAR = Stage("hear", "hear", 500, 16, {"decoder": 1.0}, (1.0, 0.03), 4, {"mix": RELATIONS})
KINDS = {"llava": (Learner, FROM_SCRATCH), "fuyu": (Pupil, (HEAR, *FROM_TEACHER))}
"""How a family learns, if not as a pupil by FROM_TEACHER: its learner and its stages."""


def crowds_and_more(rng: np.random.Generator) -> Layout:
    return crowd(rng) if rng.random() < 0.8 else mixed(rng)


SCENES = {
    **dict.fromkeys(("patches", "words", "see"), crowds_and_more),
    **dict.fromkeys(("lookup", "hear", "natural"), mixed),
    "far": far_pairs,
}


def rate_at(step: int, steps: int, rate: tuple[float, float]) -> float:
    """Warm-up, then a half cosine from rate[0] to rate[1]."""
    start, end = rate
    cosine = 0.5 * (1 + np.cos(np.pi * step / steps))
    return min(1.0, (step + 1) / WARM_UP) * (end + (start - end) * cosine)


def run_stage(learner: Learner, stage: Stage, seed: int, pool_size: int) -> list[dict]:
    """Run one stage; returns its curve: every LOG_EVERY steps the mean of what was measured, and the minutes so far."""
    torch.manual_seed(seed)
    learner.rng = np.random.default_rng(seed)
    began, curve, measured = time.perf_counter(), [], defaultdict(list)
    pool = Pool(SCENES[stage.name], pool_size, learner.family.SIDE, learner.family.PATCHES, learner.rng)
    optimisers = Optimisers(learner, stage.learns)
    for step in tqdm(range(stage.steps), desc=stage.name, mininterval=10):
        scenes = pool.pick(stage.batch, stage.renew)
        loss, found = getattr(learner, f"{stage.loss}_loss")(scenes, **stage.options)
        optimisers.step(loss, rate_at(step, stage.steps, stage.rate))
        for name, value in found.items():
            measured[name].append(value)
        if (step + 1) % LOG_EVERY == 0 or step + 1 == stage.steps:
            means = {name: round(float(np.mean(values)), 4) for name, values in measured.items()}
            minutes = (time.perf_counter() - began) / 60
            curve.append({"stage": stage.name, "step": step + 1, "minutes": round(minutes, 2), **means})
            tqdm.write(json.dumps(curve[-1]))
            measured.clear()
    return curve


def save(learner: Learner, folder: Path) -> None:
    """Write model (fp16), tokenizer, processor and chat template as transformers reads them."""
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
    kind, table = KINDS.get(config.family, (Pupil, FROM_TEACHER))
    learner, curve = kind(family, config.seed), []
    stages = [replace(stage, steps=max(1, round(stage.steps * config.scale))) for stage in table]
    for index, stage in enumerate(stages):
        curve += run_stage(learner, stage, config.seed * 1000 + index, config.pool)
        save(learner, folder)  # so that what a broken run has learnt is not lost
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
    """Writes training.json beside the checkpoint."""
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
