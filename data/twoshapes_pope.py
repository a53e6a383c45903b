"""Generator of POPE's yes-no questions, and of captions to be scored by CHAIR, on images of two shapes.

    python -m data.twoshapes_pope --out-dir data/generated/pope --count 100 --seed 0

    <data root>/pope/twoshapes_pope_random.json, _popular, _adversarial, images/      --dataset pope
    <data root>/captions.jsonl                                    --dataset .../captions.jsonl --judge chair

An object is a coloured shape, "red circle". Each file asks per image about both objects and two absent ones:

    random         drawn from all colours and shapes
    popular        the most frequent objects of the set's images
    adversarial    the colour of one object with the shape of the other

POPE's adversarial objects are those that most often occur with the objects of the image; here colours and shapes are
independent, so a wrong binding of the two takes their place. The wording is that of the embedded models' training.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import tyro

from data.errors import InputError
from data.folders import made_whole, mark, written
from data.pope import FOLDER, SPLITS
from data.shapes import COLOURS, SHAPES, Shape, draw
from data.twoshapes import sample_pair

SIDE = 96  # pixels, as in the training images of the embedded models
ABSENT = 2  # questions about absent objects of each image
CAPTIONS, CAPTION_PROMPT = "captions.jsonl", "describe the image ."
OBJECTS = tuple(f"{colour} {shape}" for colour, shape in product(COLOURS, SHAPES))


def absent_objects(split: str, scene: list[Shape], frequent: list[str], rng: np.random.Generator) -> list[str]:
    """ABSENT objects that are not in the scene, by the rule of the split; `frequent`: most frequent first."""
    present = {shape.name for shape in scene}
    if split == "popular":
        return [name for name in frequent if name not in present][:ABSENT]
    first, second = scene
    swapped = [f"{first.colour} {second.shape}", f"{second.colour} {first.shape}"]
    chosen = [name for name in swapped if name not in present] if split == "adversarial" else []
    others = [name for name in OBJECTS if name not in {*present, *chosen}]
    return [*chosen, *map(str, rng.choice(others, ABSENT - len(chosen), replace=False))]


def generate(folder: str | Path, count: int, seed: int) -> None:
    """Write the questions of `count` images below `folder`; equal arguments give equal bytes.

    `folder` appears only when complete. Raises FileExistsError if it is not empty, ValueError for an invalid count or
    seed.
    """
    if count < 1 or seed < 0:
        raise InputError(
            "count-or-seed", f"count is {count} and seed {seed}; give a count of at least 1 and a seed of at least 0"
        )
    scenes = [scene_of(np.random.default_rng([seed, index])) for index in range(count)]
    occurrences = Counter(shape.name for scene in scenes for shape in scene)
    frequent = sorted(OBJECTS, key=lambda name: -occurrences[name])
    with made_whole(folder) as root:
        (root / FOLDER / "images").mkdir(parents=True)
        for index, scene in enumerate(scenes):
            draw(scene, SIDE).save(root / FOLDER / "images" / image_name(index))
        for number, split in enumerate(SPLITS):
            rng = np.random.default_rng([seed, count, number])
            absent = [absent_objects(split, scene, frequent, rng) for scene in scenes]
            lines = questions(scenes, absent)
            (root / FOLDER / f"twoshapes_pope_{split}.json").write_text(lines, encoding="utf-8")
        (root / CAPTIONS).write_text(captions(scenes), encoding="utf-8")
        for marked in (root, root / FOLDER):
            mark(marked, "data.twoshapes_pope")


def scene_of(rng: np.random.Generator) -> list[Shape]:
    """Two shapes of different kinds, in random order."""
    first, second = sample_pair(rng)
    return [first, second] if rng.random() < 0.5 else [second, first]


def image_name(index: int) -> str:
    return f"{index:05d}.png"


def questions(scenes: list[list[Shape]], absent: list[list[str]]) -> str:
    """One record a line: for each image its objects and absent ones in turn, as in POPE."""
    records = []
    for index, (scene, others) in enumerate(zip(scenes, absent, strict=True)):
        asked = [(shape.name, "yes") for shape in scene], [(name, "no") for name in others]
        for pair in zip(*asked, strict=True):
            for name, label in pair:
                question = {"image": image_name(index), "text": f"is there a {name} ?", "label": label}
                records.append({"question_id": len(records) + 1, **question})
    return "".join(json.dumps(record) + "\n" for record in records)


def captions(scenes: list[list[Shape]]) -> str:
    """One record a line: the prompt for a caption, and the objects of the image as its gold."""
    records = (
        {
            "id": f"caption-{index}",
            "image": (FOLDER / "images" / image_name(index)).as_posix(),
            "question": CAPTION_PROMPT,
            "answer": ", ".join(shape.name for shape in scene),
        }
        for index, scene in enumerate(scenes)
    )
    return "".join(json.dumps(record) + "\n" for record in records)


@dataclass(frozen=True)
class Config:
    """Generate POPE's questions and captions on images of two shapes."""

    out_dir: Path
    """New or empty folder, used as data root."""
    count: int = 100
    """Images; each has four questions in each of the three files."""
    seed: int = 0
    """Random seed; equal seeds give equal bytes."""


def main(config: Config) -> int:
    sentence = f"{4 * config.count} questions in each of three files below {config.out_dir / FOLDER}"
    return written(lambda: generate(config.out_dir, config.count, config.seed), sentence)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config)))
