"""Generator of questions about two shapes in the layouts of BLINK and SAT-2, for evaluation without a download.

    python -m data.twoshapes_qa --out-dir data/generated/spatial --count 100 --seed 0

    <data root>/spatial_reasoning/blink/blink_validation.jsonl, images/       --dataset blink
    <data root>/spatial_reasoning/sat2_test/sat2_test.jsonl, images/          --dataset sat2

Each file has `count` questions, cycling through the sub-tasks:

    relation          where is the red circle in relation to the blue cross ?       left, right, above, below
    yes_no            is the red circle to the left of the blue cross ?             yes, no
    corner            is there anything in the top left corner ?                    yes, no
    multiple_choice   what colour is the circle ?, after lettered colours           the colour, or its letter
    two_images        what colour is the circle ?, which is in one of two images    the colour

As in the published files, BLINK's records list each image and SAT-2's have one image, for which two are merged side by
side. The wording is that of the embedded models' training, which had neither letters nor two images: lettered options
precede the question, which disturbs most of these models least (data/README.md has their accuracies).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from data.folders import made_whole, mark, written
from data.shapes import COLOURS, Shape, draw
from data.spatial_qa_files import PUBLISHED
from data.twoshapes import OPPOSITE, PHRASE, relation, sample_pair

SIDE = 96  # pixels, as in the training images of the embedded models
CORNERS = ("top left", "top right", "bottom left", "bottom right")
IN_CORNER, OUT_OF_CORNER = 0.4, 0.5  # maximum / minimum distance of a centre inside / outside from the corner's edges


class Layout(NamedTuple):
    """Format of one of the two files: `mark` is the template of a lettered option, `options` their number."""

    file: Path
    mark: str
    options: int


LAYOUTS = {"blink": Layout(PUBLISHED["blink"], "({}) {}", 2), "sat2": Layout(PUBLISHED["sat2"], "{}. {}", 3)}


class Question(NamedTuple):
    """Question with its answer as text and the scenes of its images."""

    prompt: str
    answer: str
    scenes: tuple[list[Shape], ...]


def relation_question(rng: np.random.Generator, layout: Layout) -> Question:
    """Relation of the first shape to the second, one of four words."""
    first, second = scene = sample_pair(rng)
    return Question(f"where is the {first.name} in relation to the {second.name} ?", relation(first, second), (scene,))


def yes_no_question(rng: np.random.Generator, layout: Layout) -> Question:
    """The true relation or its opposite, with equal probability."""
    first, second = scene = sample_pair(rng)
    holds, side = rng.random() < 0.5, relation(first, second)
    phrase = PHRASE[side if holds else OPPOSITE[side]]
    return Question(f"is the {first.name} {phrase} the {second.name} ?", yes_no(holds), (scene,))


def corner_question(rng: np.random.Generator, layout: Layout) -> Question:
    """A corner with a shape or one clearly without, with equal probability."""
    wanted = rng.random() < 0.5
    while True:
        scene = sample_pair(rng)
        corners = [corner for corner in CORNERS if occupied(scene, corner) is wanted]
        if corners:
            return Question(f"is there anything in the {rng.choice(corners)} corner ?", yes_no(wanted), (scene,))


def multiple_choice_question(rng: np.random.Generator, layout: Layout) -> Question:
    """Colour of one shape; the options are the colours of both shapes and absent ones."""
    first, second = scene = sample_pair(rng, same_colour=0)
    absent = [colour for colour in COLOURS if colour not in (first.colour, second.colour)]
    options = [first.colour, second.colour, *rng.permutation(absent)][: layout.options]
    lines = [
        layout.mark.format(letter, text) for letter, text in zip("ABCDEFG", rng.permutation(options), strict=False)
    ]
    return Question("\n".join([*lines, f"what colour is the {first.shape} ?"]), first.colour, (scene,))


def two_images_question(rng: np.random.Generator, layout: Layout) -> Question:
    """Colour of a shape whose kind occurs in one of two images, each with equal probability."""
    while True:
        scene, other = sample_pair(rng), sample_pair(rng)
        if scene[0].shape not in {shape.shape for shape in other}:
            scenes = (scene, other) if rng.random() < 0.5 else (other, scene)
            return Question(f"what colour is the {scene[0].shape} ?", scene[0].colour, scenes)


TASKS: dict[str, Callable[[np.random.Generator, Layout], Question]] = {
    "relation": relation_question,
    "yes_no": yes_no_question,
    "corner": corner_question,
    "multiple_choice": multiple_choice_question,
    "two_images": two_images_question,
}


def yes_no(truth: bool) -> str:
    """Answer to a yes/no question."""
    return "yes" if truth else "no"


def occupied(scene: list[Shape], corner: str) -> bool | None:
    """True if a centre is in the corner, False if all are clearly outside, else None."""
    reaches = [
        max(shape.y if "top" in corner else 1 - shape.y, shape.x if "left" in corner else 1 - shape.x)
        for shape in scene
    ]
    return True if min(reaches) <= IN_CORNER else None if min(reaches) < OUT_OF_CORNER else False


def generate(folder: str | Path, count: int, seed: int) -> None:
    """Write `count` questions in each layout below `folder`; equal seeds give equal bytes.

    Question i does not depend on `count`. `folder` appears only when complete. Raises FileExistsError if it is not
    empty, ValueError for an invalid count or seed.
    """
    if count < 1 or seed < 0:
        raise ValueError(f"count is {count} and seed {seed}; give a count of at least 1 and a seed of at least 0")
    with made_whole(folder) as root, tqdm(total=count * len(LAYOUTS), unit="question", disable=None) as progress:
        for number, (name, layout) in enumerate(LAYOUTS.items()):
            (root / layout.file.parent / "images").mkdir(parents=True)
            with open(root / layout.file, "w", encoding="utf-8") as lines:
                for index in range(count):
                    task = list(TASKS)[index % len(TASKS)]
                    question = TASKS[task](np.random.default_rng([seed, number, index]), layout)
                    lines.write(json.dumps(record(root, name, index, task, question)) + "\n")
                    progress.update()
            mark(root / layout.file.parent, "data.twoshapes_qa")


def record(root: Path, name: str, index: int, task: str, question: Question) -> dict:
    """Draw the images of a question below `root` and return its record in the layout `name`."""
    folder = LAYOUTS[name].file.parent / "images"
    images = {f"{index:05d}_{number}": draw(scene, SIDE) for number, scene in enumerate(question.scenes, 1)}
    if name == "sat2" and len(images) > 1:
        images = {f"{index:05d}_merged": side_by_side(list(images.values()))}
    paths = [(folder / f"{stem}.png").as_posix() for stem in images]
    for path, image in zip(paths, images.values(), strict=True):
        image.save(root / path)
    turns = (("human", "<image>\n" * len(paths) + question.prompt), ("gpt", question.answer))
    conversations = [{"from": side, "value": text} for side, text in turns]
    if name == "sat2":
        return {"id": f"{name}-{index}", "image": paths[0], "conversations": conversations, "source": task}
    numbered = {"image_1": paths[0], "image_2": paths[1] if len(paths) > 1 else None}  # the same fields in every record
    return {"id": f"{name}-{index}", "sub_task": task, **numbered, "conversations": conversations}


def side_by_side(images: list[Image.Image]) -> Image.Image:
    """Concatenate images of equal height from left to right."""
    return Image.fromarray(np.concatenate([np.asarray(image) for image in images], axis=1))


@dataclass(frozen=True)
class Config:
    """Generate questions about two shapes in the layouts of BLINK and SAT-2."""

    out_dir: Path
    """New or empty folder, used as data root."""
    count: int = 100
    """Questions in each of the two files."""
    seed: int = 0
    """Random seed; equal seeds give equal bytes."""


def main(config: Config) -> int:
    files = " and ".join(str(config.out_dir / layout.file) for layout in LAYOUTS.values())
    sentence = f"{config.count} questions each in {files}"
    return written(lambda: generate(config.out_dir, config.count, config.seed), sentence)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config)))
