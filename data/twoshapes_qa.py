"""Questions about two shapes in the layout of BLINK and SAT-2, so that evaluation runs with nothing downloaded.

    python -m data.twoshapes_qa --out-dir data/generated/spatial --count 100 --seed 0

    <data root>/spatial_reasoning/blink/blink_validation.jsonl, images/       --dataset blink
    <data root>/spatial_reasoning/sat2_test/sat2_test.jsonl, images/          --dataset sat2

Each file holds `count` questions, the sub-tasks in turn:

    relation          where is the red circle in relation to the blue cross ?       left, right, above, below
    yes_no            is the red circle to the left of the blue cross ?             yes, no
    corner            is there anything in the top left corner ?                    yes, no
    multiple_choice   what colour is the circle ?, below lettered colours           the colour, or its letter
    two_images        what colour is the circle ?, which is in one of two pictures  the colour

As in the published files, BLINK's records name each picture and SAT-2's have one, two pictures being merged side by
side. The wording is what the embedded models know. They were taught neither letters nor two pictures: lettered options
stand above the question, where they disturb most of those models least (data/README.md has their accuracies).
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

SIDE = 96  # pixels, the pictures of the embedded models
CORNERS = ("top left", "top right", "bottom left", "bottom right")
IN_CORNER, OUT_OF_CORNER = 0.4, 0.5  # a centre at most / at least so far from a corner's edges; between: not asked


class Layout(NamedTuple):
    """How one of the two files writes what both ask: `mark` letters an option, `options` is how many there are."""

    file: Path
    mark: str
    options: int


LAYOUTS = {"blink": Layout(PUBLISHED["blink"], "({}) {}", 2), "sat2": Layout(PUBLISHED["sat2"], "{}. {}", 3)}


class Asked(NamedTuple):
    """A question, its answer as text, and the scenes of its pictures."""

    prompt: str
    answer: str
    scenes: tuple[list[Shape], ...]


def ask_relation(rng: np.random.Generator, layout: Layout) -> Asked:
    """Where the first shape is from the second, one of four words."""
    first, second = scene = sample_pair(rng)
    return Asked(f"where is the {first.name} in relation to the {second.name} ?", relation(first, second), (scene,))


def ask_yes_no(rng: np.random.Generator, layout: Layout) -> Asked:
    """The relation that holds, or its opposite, equally likely."""
    first, second = scene = sample_pair(rng)
    holds, side = rng.random() < 0.5, relation(first, second)
    phrase = PHRASE[side if holds else OPPOSITE[side]]
    return Asked(f"is the {first.name} {phrase} the {second.name} ?", yes_no(holds), (scene,))


def ask_corner(rng: np.random.Generator, layout: Layout) -> Asked:
    """A corner with a shape in it, or one clearly without, equally likely."""
    wanted = rng.random() < 0.5
    while True:
        scene = sample_pair(rng)
        corners = [corner for corner in CORNERS if occupied(scene, corner) is wanted]
        if corners:
            return Asked(f"is there anything in the {rng.choice(corners)} corner ?", yes_no(wanted), (scene,))


def ask_multiple_choice(rng: np.random.Generator, layout: Layout) -> Asked:
    """The colour of one shape among those of both and colours that are not there, as far as there is room."""
    first, second = scene = sample_pair(rng, same_colour=0)
    absent = [colour for colour in COLOURS if colour not in (first.colour, second.colour)]
    options = [first.colour, second.colour, *rng.permutation(absent)][: layout.options]
    lines = [
        layout.mark.format(letter, text) for letter, text in zip("ABCDEFG", rng.permutation(options), strict=False)
    ]
    return Asked("\n".join([*lines, f"what colour is the {first.shape} ?"]), first.colour, (scene,))


def ask_two_images(rng: np.random.Generator, layout: Layout) -> Asked:
    """The colour of a shape of a kind that only one of the pictures holds, the first as often as the second."""
    while True:
        scene, other = sample_pair(rng), sample_pair(rng)
        if scene[0].shape not in {shape.shape for shape in other}:
            scenes = (scene, other) if rng.random() < 0.5 else (other, scene)
            return Asked(f"what colour is the {scene[0].shape} ?", scene[0].colour, scenes)


TASKS: dict[str, Callable[[np.random.Generator, Layout], Asked]] = {
    "relation": ask_relation,
    "yes_no": ask_yes_no,
    "corner": ask_corner,
    "multiple_choice": ask_multiple_choice,
    "two_images": ask_two_images,
}


def yes_no(truth: bool) -> str:
    """The answer to a question that is true or not."""
    return "yes" if truth else "no"


def occupied(scene: list[Shape], corner: str) -> bool | None:
    """Whether a centre lies in the corner; None where none does, but one comes near."""
    reaches = [
        max(shape.y if "top" in corner else 1 - shape.y, shape.x if "left" in corner else 1 - shape.x)
        for shape in scene
    ]
    return True if min(reaches) <= IN_CORNER else None if min(reaches) < OUT_OF_CORNER else False


def generate(folder: str | Path, count: int, seed: int) -> None:
    """Write `count` questions in each layout below `folder`; the same seed writes the same bytes.

    Question i does not depend on `count`. `folder` appears only when complete; FileExistsError where it already holds
    something, ValueError for a count or a seed that cannot be.
    """
    if count < 1 or seed < 0:
        raise ValueError(f"count is {count} and seed {seed}; give a count of at least 1 and a seed of at least 0")
    with made_whole(folder) as root, tqdm(total=count * len(LAYOUTS), unit="question", disable=None) as progress:
        for number, (name, layout) in enumerate(LAYOUTS.items()):
            (root / layout.file.parent / "images").mkdir(parents=True)
            with open(root / layout.file, "w", encoding="utf-8") as lines:
                for index in range(count):
                    task = list(TASKS)[index % len(TASKS)]
                    asked = TASKS[task](np.random.default_rng([seed, number, index]), layout)
                    lines.write(json.dumps(record(root, name, index, task, asked)) + "\n")
                    progress.update()
            mark(root / layout.file.parent, "data.twoshapes_qa")


def record(root: Path, name: str, index: int, task: str, asked: Asked) -> dict:
    """The record of a question as its layout has it; its pictures are drawn below `root`."""
    images = LAYOUTS[name].file.parent / "images"
    pictures = {f"{index:05d}_{number}": draw(scene, SIDE) for number, scene in enumerate(asked.scenes, 1)}
    if name == "sat2" and len(pictures) > 1:
        pictures = {f"{index:05d}_merged": side_by_side(list(pictures.values()))}
    paths = [(images / f"{stem}.png").as_posix() for stem in pictures]
    for path, picture in zip(paths, pictures.values(), strict=True):
        picture.save(root / path)
    turns = (("human", "<image>\n" * len(paths) + asked.prompt), ("gpt", asked.answer))
    conversations = [{"from": side, "value": text} for side, text in turns]
    if name == "sat2":
        return {"id": f"{name}-{index}", "image": paths[0], "conversations": conversations, "source": task}
    numbered = {"image_1": paths[0], "image_2": paths[1] if len(paths) > 1 else None}  # the same fields everywhere
    return {"id": f"{name}-{index}", "sub_task": task, **numbered, "conversations": conversations}


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one height as one, from left to right."""
    return Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures], axis=1))


@dataclass(frozen=True)
class Config:
    """Write questions about two shapes in the layout of BLINK and SAT-2."""

    out_dir: Path
    """New (or empty) folder; becomes a data root."""
    count: int = 100
    """Questions in each of the two files."""
    seed: int = 0
    """The same seed writes the same bytes."""


def main(config: Config) -> int:
    files = " and ".join(str(config.out_dir / each.file) for each in LAYOUTS.values())
    sentence = f"{config.count} questions each in {files}"
    return written(lambda: generate(config.out_dir, config.count, config.seed), sentence)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config)))
