"""Pairs of an image with an object in one corner and the same image without it: reader and generator.

    python -m data.counterfactual_pairs --corner topleft --count 100 --out-dir data/dataset_topleft --seed 0 --size 96

    <folder>/
        metadata.jsonl                  one pair a line: id, caption, relation, subject_shape, object_shape,
                                        bounding_boxes {"subject": [left, top, right, bottom], "object": ...}, note, ...
        images/pair_00000_full.png      the subject in one corner cell of a 3 x 3 grid, the object in the opposite one
        images/pair_00000_control.png   the same without the subject

Boxes are in pixels of the images. The relation is that of the subject to the object, so it names the corner. Pair i
of one seed has the same two shapes at the same positions in their cells for every corner and number of pairs.
If the folder holds these pairs already, the command changes no file and its exit status is 0.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tyro
from PIL import Image

from data.errors import InputError, MissingFileError, SampleError, Skip, check_at_least
from data.folders import DATA, GENERATED, Links, Source, is_synthetic, made_whole, mark, published, root_fault, written
from data.images import read_image
from data.shapes import COLOURS, SHAPES, Shape, draw, sample_shape, to_pixels

Corner = Literal["topleft", "topright", "bottomleft", "bottomright"]
CORNERS = {"topleft": (0, 0), "topright": (0, 2), "bottomleft": (2, 0), "bottomright": (2, 2)}
"""Cell of each corner in the 3 x 3 grid, (row, col)."""
RELATIONS = {
    "topleft": "upper_left_of",
    "topright": "upper_right_of",
    "bottomleft": "lower_left_of",
    "bottomright": "lower_right_of",
}
SAMPLE, SAMPLE_COUNT = "dataset_sample", 40
FIELDS = ("id", "caption", "relation", "subject_shape", "object_shape", "bounding_boxes")
NOTE = "the control has no subject; the object stays where it is"
GROUND = (245 / 255,) * 3
SIZE = (0.09, 0.13)  # half of a shape's width, as a fraction of the image
PAD = 0.03  # between a shape and the border of its cell, as a fraction of the image
MIN_SIDE = 32  # pixels; in smaller images shapes would cross the border of their cells


class Pair(NamedTuple):
    """One pair: paths of both images, and the fields of its line. Boxes are (left, top, right, bottom) in pixels."""

    name: str
    full: Path
    control: Path
    caption: str
    relation: str
    subject: str
    object: str
    subject_box: tuple[float, float, float, float]
    object_box: tuple[float, float, float, float]
    note: str

    @property
    def corner(self) -> str | None:
        """Corner of the subject; None if the relation names none."""
        return next((corner for corner, relation in RELATIONS.items() if relation == self.relation), None)


def read(folder: str | Path) -> tuple[list[Pair], list[Skip]]:
    """All usable pairs of a folder in the order of its lines, and the unusable ones with their reasons.

    Images are searched in images/, under the names at the end of `full_image` and `control_image`, or those above.
    Raises FileNotFoundError for a missing layout.
    """
    root = Path(folder).resolve()
    table = root / "metadata.jsonl"
    if not table.is_file():
        raise MissingFileError(
            "no-pairs",
            f"no pairs in {folder}: looked for {folder}/metadata.jsonl; make some with "
            f"`python -m data.counterfactual_pairs --corner topleft --out-dir {folder}`",
        )
    pairs, skipped, seen = [], [], set()
    for number, line in enumerate(table.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        name = f"line {number}"
        try:
            record = _record(line)
            name = str(record.get("id", name))
            if name in seen:
                raise SampleError("id was there before")
            seen.add(name)
            pairs.append(_pair(root, record))
        except SampleError as error:
            skipped.append(Skip(name, error.reason))
    return pairs, skipped


def _record(line: str) -> dict:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SampleError("line is not valid JSON") from error
    if not isinstance(record, dict):
        raise SampleError("line is not an object")
    return record


def _pair(root: Path, record: dict) -> Pair:
    for field in FIELDS:
        if field not in record:
            raise SampleError(f"metadata lacks {field}")
        if field != "bounding_boxes" and not (isinstance(record[field], str) and record[field].strip()):
            raise SampleError(f"{field} is no text")
    paths = (_image_path(root, record, kind) for kind in ("full", "control"))
    boxes = (_box(record["bounding_boxes"], shape) for shape in ("subject", "object"))
    texts = (record[field] for field in FIELDS[1:5])
    return Pair(record["id"], *paths, *texts, *boxes, str(record.get("note", "")))


def _image_path(root: Path, record: dict, kind: str) -> Path:
    """Path of one image of a pair. Only the file name is used, so that a folder may be moved."""
    given = record.get(f"{kind}_image", f"{record['id']}_{kind}.png")
    name = Path(given).name if isinstance(given, str) and "\0" not in given else ""
    path = root / "images" / name
    if fault := root_fault(path, root):
        raise SampleError(fault)
    if not name or not path.is_file():
        raise SampleError(f"{kind} image missing")
    return path


def _box(boxes: object, shape: str) -> tuple[float, float, float, float]:
    try:
        left, top, right, bottom = (float(edge + 0) for edge in boxes[shape])  # + 0 raises for a string such as "3"
    except (TypeError, KeyError, ValueError, IndexError, OverflowError) as error:
        raise SampleError(f"bounding box of the {shape} is not four numbers") from error
    if not all(map(math.isfinite, (left, top, right, bottom))) or left >= right or top >= bottom:
        raise SampleError(f"bounding box of the {shape} is not left, top, right, bottom")
    return left, top, right, bottom


def open_pair(pair: Pair) -> tuple[Image.Image, Image.Image]:
    """Both images in RGB, full and control. Raises SampleError for an unreadable image or different sizes."""
    full, control = read_image(pair.full), read_image(pair.control)
    if full.size != control.size:
        raise SampleError(
            "sizes differ",
            f"{pair.full.name} is {full.width} x {full.height} and {pair.control.name} {control.width} x "
            f"{control.height} pixels; a control is the same image without its subject",
        )
    return full, control


def question(corner: str) -> str:
    """Question about any object in a corner."""
    return f"is there anything in the {named(corner)} corner ?"


def named(corner: str) -> str:
    """Words for a corner, such as "top left"."""
    return corner.replace("left", " left").replace("right", " right")


@dataclass(frozen=True)
class Pairs(Links):
    """Pairs of images, and the question about both images of each."""

    dataset: str | None = None
    """Folder of pairs, as data.counterfactual_pairs makes it (default: data/dataset_sample if present, else pairs
    generated once in data/generated)."""
    prompt: str | None = None
    """Question (default: is there anything in the ... corner ?, with the corner of the object)."""
    max_pairs: int = 0
    """Maximum number of pairs; 0 uses all."""

    def __post_init__(self) -> None:
        check_at_least(self, max_pairs=0)
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("--prompt is empty; write a question")


def gather(dataset: str | None, limit: int, flag: str = "--max-pairs") -> tuple[list[Pair], list[Skip], Source]:
    """At most `limit` pairs (0: all), the unusable ones with their reasons, and their source.

    dataset: a folder of pairs (default: data/dataset_sample if present, else SAMPLE_COUNT pairs with the subject at
    the top left, generated once). Raises as `read` does.
    """
    folder, made_here = dataset, False
    if dataset is None:
        folder, made_here = published(SAMPLE), published(SAMPLE) is None
    if made_here and not (folder := GENERATED / SAMPLE).exists():
        generate(folder, "topleft", SAMPLE_COUNT, seed=0)
    pairs, unusable = read(folder)
    used = pairs[: limit or None]
    # sets of earlier versions lack the marker, but their lines have the note
    synthetic = is_synthetic(folder) or (bool(pairs) and all(pair.note == NOTE for pair in pairs))
    place = str(folder if dataset is not None or made_here else DATA / SAMPLE)
    held = len(pairs) + len(unusable)
    return used, unusable, Source(place, held, len(used), len(unusable), limit, flag, synthetic, made_here)


def generate(folder: str | Path, corner: Corner, count: int, seed: int, size: int = 96) -> None:
    """Write `count` pairs of size x size pixels into `folder`; the same seed writes the same bytes.

    `folder` appears only when complete. Raises FileExistsError for a non-empty folder, ValueError for invalid
    settings.
    """
    check(corner, count, seed, size)
    with made_whole(folder) as complete:
        (complete / "images").mkdir()
        mark(complete, "data.counterfactual_pairs")
        with open(complete / "metadata.jsonl", "w", encoding="utf-8") as table:
            for index, (subject, other) in enumerate(scenes(corner, count, seed)):
                record = describe(f"pair_{index:05d}", corner, subject, other, size)
                draw([other, subject], size, GROUND).save(complete / record["full_image"])
                draw([other], size, GROUND).save(complete / record["control_image"])
                table.write(json.dumps(record) + "\n")


def holds(folder: str | Path, corner: str, count: int, seed: int, size: int) -> bool:
    """Return whether a folder holds at least the pairs that `generate` writes with these settings."""
    root = Path(folder)
    if not (root / "metadata.jsonl").is_file():
        return False
    records = [
        describe(f"pair_{index:05d}", corner, *shapes, size) for index, shapes in enumerate(scenes(corner, count, seed))
    ]
    lines = (root / "metadata.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[:count] == [json.dumps(record) for record in records] and all(
        (root / record[f"{kind}_image"]).is_file() for record in records for kind in ("full", "control")
    )


def check(corner: str, count: int, seed: int, size: int) -> None:
    """Check the settings of `generate`. Raises ValueError for invalid ones."""
    if corner not in CORNERS:
        raise ValueError(f"corner {corner!r} is unknown; choose {', '.join(CORNERS)}")
    if count < 1 or seed < 0:
        raise ValueError(f"count is {count} and seed {seed}; give a count of at least 1 and a seed of at least 0")
    if size < MIN_SIDE:
        raise InputError(
            "below-minimum", f"size is {size} pixels; give at least {MIN_SIDE}, below which shapes leave their cells"
        )


def scenes(corner: str, count: int, seed: int) -> Iterator[tuple[Shape, Shape]]:
    """Subject and object of each pair: two colours, two kinds, upright, at random positions inside their cells."""
    cell = CORNERS[corner]
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        colours, kinds = rng.choice(list(COLOURS), 2, replace=False), rng.choice(SHAPES, 2, replace=False)
        shapes = [
            sample_shape(rng, str(colour), str(kind), size=SIZE, rotation=(0, 0), shade=(-0.4, 0.05))
            for colour, kind in zip(colours, kinds, strict=True)
        ]
        places = rng.uniform(size=(2, 2))
        yield tuple(
            replace(shape, x=within(col, shape.width, x), y=within(row, shape.height, y))
            for shape, (row, col), (x, y) in zip(shapes, (cell, (2 - cell[0], 2 - cell[1])), places, strict=True)
        )


def within(cell: int, reach: float, share: float) -> float:
    """Centre at which `reach` stays inside a cell along one axis: `share` 0 is the lowest, 1 the highest."""
    room = 1 / 3 - 2 * (PAD + reach)
    return cell / 3 + PAD + reach + share * room


def describe(name: str, corner: str, subject: Shape, other: Shape, size: int) -> dict:
    """Fields of the line of one pair."""
    vertical, horizontal = ("above", "below")[corner.startswith("bottom")], ("left", "right")[corner.endswith("right")]
    return {
        "id": name,
        "caption": f"is the {subject.name} {vertical} and to the {horizontal} of the {other.name} ?",
        "relation": RELATIONS[corner],
        "subject_shape": subject.shape,
        "object_shape": other.shape,
        "subject_colour": subject.colour,
        "object_colour": other.colour,
        "full_image": f"images/{name}_full.png",
        "control_image": f"images/{name}_control.png",
        "bounding_boxes": {"subject": pixel_box(subject, size), "object": pixel_box(other, size)},
        "note": NOTE,
    }


def pixel_box(shape: Shape, size: int) -> list[float]:
    """Left, top, right, bottom of a shape in pixels of an image of size x size, rounded to a hundredth."""
    return to_pixels(np.array(shape.box()).reshape(2, 2), size).round(2).ravel().tolist()


@dataclass(frozen=True)
class Config:
    """Write pairs of images, with and without a shape in one corner."""

    corner: Corner = "topleft"
    """Corner of the subject; the object lies in the opposite corner."""
    count: int = 100
    """Number of pairs."""
    out_dir: Path | None = None
    """New or empty folder, or one that holds these pairs already (default: data/dataset_<corner>)."""
    seed: int = 0
    """Seed; the same seed writes the same bytes, and the same shapes for every corner."""
    size: int = 96
    """Width and height of the images in pixels."""


def main(config: Config) -> int:
    folder = config.out_dir or Path("data", f"dataset_{config.corner}")
    settings = (config.corner, config.count, config.seed, config.size)
    sentence = f"{config.count} pairs in {folder}"

    def write() -> None:
        check(*settings)
        if not holds(folder, *settings):
            generate(folder, *settings)

    return written(write, sentence)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config)))
