"""Two shapes and a sentence on where they are: reader and generator of the ShapeWorld `spatial_twoshapes` layout.

    python -m data.twoshapes --out-dir X --count 100 --seed 0 --size 100

    <data root>/spatial_twoshapes/agreement/relational/shardN/
        caption.txt        one caption per world: "there are two shapes a green rectangle and a blue cross . ..."
        agreement.txt      one number per world: 1.0 where the caption is true of the world
        world_model.json   the worlds: per entity colour, shape, centre, size, rotation, bounding box
        world-I.png        the picture of world I, numbered within its shard

The order of the entities in a world says nothing about the order in its caption, so a caption's shapes are found by
colour and shape. See data/README.md for what was measured on the published data and how the generated data follow it.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from tqdm import tqdm

from data.errors import SampleError, Skip
from data.folders import DATA, GENERATED, Source, is_synthetic, made_whole, mark, published, root_fault, written
from data.images import read_image
from data.shapes import COLOURS, Shape, draw, mask, sample_shape, to_pixels

LAYOUT = Path("spatial_twoshapes", "agreement", "relational")
QUESTION = (
    "there are two shapes a {} {} and a {} {} ."
    " what is the spatial relationship from the first shape to the second shape ? the spatial relation is"
)
CAPTION = re.compile(
    "(?P<question>" + re.escape(QUESTION).replace(r"\{\}", r"(\w+)") + r") (?P<relation>left|right|above|below) \."
)
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
PHRASE = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
SIDE = 100  # pixels of a published picture
LEAST = 32  # pixels; less would leave the smallest shapes a pixel or two
SHARD_SIZE = 100  # worlds

# Measured on the published data: no pair of centres is off by more than 0.05 on the minor axis or nearer than 0.1 on
# the major one (fractions of the world); otherwise their places are as good as uniform.
MAX_MINOR, MIN_MAJOR = 0.05, 0.1
ATTEMPTS = 50  # second shapes tried in one place before both centres are drawn anew


class Entity(NamedTuple):
    """A shape as the picture shows it; box (left, top, right, bottom) and centre (x, y) in the picture's pixels."""

    colour: str
    shape: str
    box: tuple[float, float, float, float]
    centre: tuple[float, float]


@dataclass(frozen=True)
class TwoShapes:
    """One sample. `first` and `second` are in the order of the caption; `relation` is what the caption says of them."""

    id: str  # shard and number, "shard0/17"
    image_path: Path
    caption: str
    question: str  # the caption up to and including "the spatial relation is"
    relation: str  # "left" | "right" | "above" | "below", from the first shape to the second
    first: Entity
    second: Entity
    reversed: bool  # the world lists `second` before `first`


def read(data_root: str | Path, limit: int | None = None) -> tuple[list[TwoShapes], list[Skip]]:
    """All usable samples under `data_root`, shards and worlds in numeric order: (list of TwoShapes, list of Skip).

    limit: stop after so many usable samples. Raises FileNotFoundError where the layout is not there.
    """
    root = Path(data_root).resolve()
    shards = shards_of(root)
    if not shards:
        raise FileNotFoundError(
            f"no data in {data_root}: looked for {LAYOUT}/shard0, shard1, ... below it;"
            f" make some with `python -m data.twoshapes --out-dir {data_root}`"
        )
    samples, skipped = [], []
    for shard in shards:
        try:
            captions, agreements, worlds = _read_shard(shard, root)
        except SampleError as error:
            skipped.append(Skip(shard.name, error.reason))
            continue
        for index in range(max(len(captions), len(agreements), len(worlds))):
            if limit is not None and len(samples) >= limit:
                return samples, skipped
            name = f"{shard.name}/{index}"
            try:
                picture = shard / f"world-{index}.png"
                samples.append(_read_sample(name, picture, root, index, captions, agreements, worlds))
            except SampleError as error:
                skipped.append(Skip(name, error.reason))
    return samples, skipped


def shards_of(data_root: str | Path) -> list[Path]:
    """Folders shard0, shard1, ... of a data root, in numeric order; none where the layout is absent."""
    shards = [path for path in Path(data_root, LAYOUT).glob("shard*") if re.fullmatch(r"shard\d+", path.name)]
    return sorted(shards, key=lambda path: int(path.name.removeprefix("shard")))


class Root(NamedTuple):
    """Data root of a two-shapes set; `place` names it to a person, `made_here` holds where the run made it."""

    path: Path
    place: str
    made_here: bool = False

    def source(self, used: int, unusable: int, limit: int, flag: str = "--limit") -> Source:
        """The set as the source of a run that measures `used` of its samples."""
        synthetic = is_synthetic(self.path / LAYOUT.parts[0]) or is_synthetic(self.path)
        return Source(self.place, count_captions(self.path), used, unusable, limit, flag, synthetic, self.made_here)


def find_root(data_root: str | None, count: int, seed: int) -> Root:
    """The data root to read: the flag's, else data/ where spatial_twoshapes/ lies in it, else a generated one.

    `count` and `seed` are those of the generated set, which is made once. Raises ValueError for an empty `data_root`.
    """
    if data_root is not None:
        if not data_root.strip():
            raise ValueError("--data-root is empty; name a folder, or leave the flag out")
        return Root(Path(data_root), data_root)
    if (folder := published(LAYOUT.parts[0])) is not None:
        return Root(folder.parent, str(DATA / LAYOUT.parts[0]))
    root = GENERATED / f"twoshapes-{count}-seed-{seed}"
    if not root.exists():
        generate(root, count, seed)
    return Root(root, str(root), made_here=True)


def count_captions(data_root: str | Path) -> int:
    """Number of samples that the caption files of a set list, usable or not."""
    texts = (path / "caption.txt" for path in shards_of(data_root))
    texts = (path.read_text(encoding="utf-8", errors="replace").rstrip() for path in texts if path.is_file())
    return sum(len(text.split("\n")) for text in texts if text)


def _read_shard(shard: Path, root: Path) -> tuple[list[str], list[str], list]:
    """Captions, agreements (both lines of text) and worlds (parsed JSON) of one shard."""
    texts = []
    for name in ("caption.txt", "agreement.txt", "world_model.json"):
        path = shard / name
        if fault := root_fault(path, root):
            raise SampleError(fault)
        try:
            texts.append(path.read_text(encoding="utf-8", errors="replace"))
        except OSError as error:
            raise SampleError(f"{name} cannot be read") from error
    try:
        worlds = json.loads(texts[2])
    except (ValueError, RecursionError) as error:
        raise SampleError("world_model.json is not valid JSON") from error
    if not isinstance(worlds, list):
        raise SampleError("world_model.json is not a list of worlds")
    return texts[0].rstrip().split("\n"), texts[1].rstrip().split("\n"), worlds


def _read_sample(
    name: str, picture: Path, root: Path, index: int, captions: list[str], agreements: list[str], worlds: list
) -> TwoShapes:
    for lines, reason in ((captions, "no caption"), (agreements, "no agreement"), (worlds, "no world model")):
        if index >= len(lines):
            raise SampleError(reason)
    if agreements[index].strip() != "1.0":
        raise SampleError("agreement is not 1.0")
    caption = captions[index].strip()
    found = CAPTION.fullmatch(caption)
    if not found:
        raise SampleError("caption does not parse")
    side = _checked_picture(picture, root)
    entities = _read_entities(worlds[index], side)
    _, colour, shape, other_colour, other_shape, relation = found.groups()
    first, second = (_find(entities, *wanted) for wanted in ((colour, shape), (other_colour, other_shape)))
    is_reversed = entities.index(first) > entities.index(second)
    return TwoShapes(name, picture, caption, found["question"], relation, first, second, is_reversed)


def _checked_picture(path: Path, root: Path) -> int:
    """Side in pixels of a picture that lies inside `root` and decodes to its last pixel."""
    if fault := root_fault(path, root):
        raise SampleError(fault)
    if not path.is_file():
        raise SampleError("image missing")
    try:
        width, height = read_image(path).size
    except SampleError as error:
        raise SampleError("image cannot be decoded") from error
    if width != height:
        raise SampleError("image is not square")
    return width


def _read_entities(world: dict, side: int) -> list[Entity]:
    entities = []
    try:
        for entity in world["entities"]:
            centre = (entity["center"]["x"], entity["center"]["y"])
            low, high = entity["bounding_box"]["topleft"], entity["bounding_box"]["bottomright"]
            box = (low["x"], low["y"], high["x"], high["y"])
            if not all(math.isfinite(number) for number in (*centre, *box)):
                raise SampleError("world model holds numbers that are not finite")
            box, centre = (tuple(to_pixels(numbers, side).tolist()) for numbers in (box, centre))
            entities.append(Entity(entity["color"]["name"], entity["shape"]["name"], box, centre))
    except (KeyError, TypeError, OverflowError) as error:
        raise SampleError("world model lacks a field, or a number in it") from error
    return entities


def _find(entities: list[Entity], colour: str, shape: str) -> Entity:
    """The one entity of this colour and shape."""
    found = [entity for entity in entities if (entity.colour, entity.shape) == (colour, shape)]
    if len(found) != 1:
        raise SampleError("caption's shape is " + ("in the world twice" if found else "not in the world"))
    return found[0]


def generate(folder: str | Path, count: int, seed: int, same_colour: float = 0.24, size: int = SIDE) -> None:
    """Write `count` new samples, in shards of 100, below `folder`; the same seed writes the same bytes.

    same_colour: share of the pairs whose shapes have one colour; they never have the same kind. `size` is the pictures'
    side in pixels. Sample i depends neither on `count` nor, but for its pixels, on `size`. `folder` appears only when
    complete; FileExistsError where it already holds something, ValueError for settings that cannot be.
    """
    if count < 1 or seed < 0:
        raise ValueError(f"count is {count} and seed {seed}; give a count of at least 1 and a seed of at least 0")
    if size < LEAST:
        raise ValueError(f"size is {size} pixels; give at least {LEAST}, below which small shapes are hardly seen")
    progress = tqdm(total=count, desc="drawing", unit="picture", disable=None)
    with made_whole(folder) as root, progress:
        (root / LAYOUT).mkdir(parents=True)
        mark(root / LAYOUT.parts[0], "data.twoshapes")
        for start in range(0, count, SHARD_SIZE):
            shard = root / LAYOUT / f"shard{start // SHARD_SIZE}"
            shard.mkdir()
            captions, worlds = [], []
            for index in range(min(SHARD_SIZE, count - start)):
                rng = np.random.default_rng([seed, start + index])
                pair = sample_pair(rng, same_colour)
                captions.append(caption_of(*rng.permutation(np.array(pair, dtype=object))))
                worlds.append(world_model(pair, size))
                draw(pair, size).save(shard / f"world-{index}.png")
                progress.update()
            (shard / "caption.txt").write_text("".join(f"{caption}\n" for caption in captions))
            (shard / "agreement.txt").write_text("1.0\n" * len(worlds))
            (shard / "world_model.json").write_text(json.dumps(worlds, indent=2, sort_keys=True))


def sample_pair(rng: np.random.Generator, same_colour: float = 0.24) -> list[Shape]:
    """Two shapes of different kinds that lie inside the world, apart, and in a clear relation.

    The centres come first, and a pair d apart is kept with probability 1 - d, as the published distances ask for. Where
    the shapes would then overlap, another second shape is tried in the same place, so that near pairs stay frequent;
    in the published data too, the second shape of a near pair is the smaller one.
    """
    colour, other = (str(colour) for colour in rng.choice(list(COLOURS), 2, replace=False))
    if rng.random() < same_colour:
        other = colour
    while True:
        first, second = _place(rng, sample_shape(rng, colour)), _place(rng, sample_shape(rng, other))
        if not relation(first, second) or rng.random() < math.hypot(first.x - second.x, first.y - second.y):
            continue
        for _ in range(ATTEMPTS):
            if first.shape != second.shape and _inside(second) and not _overlap(first, second):
                return [first, second]
            second = sample_shape(rng, other, centre=(second.x, second.y))


def _place(rng: np.random.Generator, shape: Shape) -> Shape:
    """The shape at a random place of the world, as far from the border as its bounding box needs."""
    left, top, right, bottom = replace(shape, x=0.0, y=0.0).box()
    return replace(shape, x=rng.uniform(-left, 1 - right), y=rng.uniform(-top, 1 - bottom))


def _inside(shape: Shape) -> bool:
    left, top, right, bottom = shape.box()
    return min(left, top) >= 0 and max(right, bottom) <= 1


def _overlap(first: Shape, second: Shape) -> bool:
    return bool((mask(first, SIDE) & mask(second, SIDE)).any())


def relation(first: Shape, second: Shape) -> str | None:
    """Where `first` is, seen from `second`: "left" | "right" | "above" | "below"; None where no word clearly holds."""
    x, y = first.x - second.x, first.y - second.y
    minor, major = sorted((abs(x), abs(y)))
    if minor > MAX_MINOR or major < MIN_MAJOR:
        return None
    if abs(x) > abs(y):
        return "left" if x < 0 else "right"
    return "above" if y < 0 else "below"


def caption_of(first: Shape, second: Shape) -> str:
    """The caption of a pair that lies in a clear relation, as ShapeWorld words it."""
    return f"{QUESTION.format(first.colour, first.shape, second.colour, second.shape)} {relation(first, second)} ."


def world_model(shapes: Sequence[Shape], size: int) -> dict:
    """The world as ShapeWorld's JSON holds it: fractions of the world, rotation in turns, half extents of shapes.

    `size` is the picture's side in pixels.
    """
    entities = []
    for number, shape in enumerate(shapes):
        left, top, right, bottom = shape.box()
        entities.append({
            "id": number,
            "shape": {"name": shape.shape, "size": {"x": shape.width, "y": shape.height}},
            "color": {"name": shape.colour, "rgb": list(COLOURS[shape.colour]), "shade": shape.shade},
            "texture": {"name": "solid"},
            "rotation": shape.rotation,
            "center": {"x": shape.x, "y": shape.y},
            "bounding_box": {"topleft": {"x": left, "y": top}, "bottomright": {"x": right, "y": bottom}},
        })  # fmt: skip
    background = {"name": "black", "rgb": [0.0, 0.0, 0.0], "shade": 0.0}
    return {"size": size, "color": background, "meta": {}, "entities": entities}


@dataclass(frozen=True)
class Config:
    """Write samples in the layout of ShapeWorld's spatial_twoshapes."""

    out_dir: Path
    """New (or empty) folder; becomes a data root for every script."""
    count: int = 100
    """Samples to make, in shards of 100."""
    seed: int = 0
    """The same seed writes the same bytes, and the same shapes in every size."""
    size: int = SIDE
    """Width and height of the pictures in pixels."""


def main(config: Config) -> int:
    sentence = f"{config.count} samples in {config.out_dir / LAYOUT}"
    return written(lambda: generate(config.out_dir, config.count, config.seed, size=config.size), sentence)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config)))
