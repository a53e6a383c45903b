"""Reader and generator of the ShapeWorld `spatial_twoshapes` layout: two shapes and a caption with their relation.

    python -m data.twoshapes --out-dir X --count 100 --seed 0 --size 100

    <data root>/spatial_twoshapes/agreement/relational/shardN/
        caption.txt        one caption per world: "there are two shapes a green rectangle and a blue cross . ..."
        agreement.txt      one number per world: 1.0 if the caption is true
        world_model.json   the worlds: per entity colour, shape, centre, size, rotation, bounding box
        world-I.png        the image of world I, numbered within its shard

The order of the entities in a world is independent of the order in its caption, so a caption's shapes are identified by
colour and shape. data/README.md has the statistics of the published data and of the generated data.
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

from data.errors import InputError, MissingFileError, SampleError, Skip
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
SIDE = 100  # pixels of a published image
MIN_SIDE = 32  # pixels; below it the smallest shapes have one or two pixels
SHARD_SIZE = 100  # worlds

# Published data: offsets of the centres are at most 0.05 on the minor axis and at least 0.1 on the major one (fractions
# of the world); positions are otherwise close to uniform.
MAX_MINOR, MIN_MAJOR = 0.05, 0.1
ATTEMPTS = 50  # second shapes tried at one place before both centres are redrawn


class Entity(NamedTuple):
    """Shape in an image; box (left, top, right, bottom) and centre (x, y) in pixels of the image."""

    colour: str
    shape: str
    box: tuple[float, float, float, float]
    centre: tuple[float, float]


@dataclass(frozen=True)
class TwoShapes:
    """One sample. `first` and `second` are in the order of the caption; `relation` is that of the caption."""

    id: str  # shard and number, "shard0/17"
    image_path: Path
    caption: str
    question: str  # the caption up to and including "the spatial relation is"
    relation: str  # "left" | "right" | "above" | "below", from the first shape to the second
    first: Entity
    second: Entity
    reversed: bool  # the world has `second` before `first`


def read(data_root: str | Path, limit: int | None = None) -> tuple[list[TwoShapes], list[Skip]]:
    """Read all usable samples under `data_root`, in numeric order of shards and worlds: (samples, skipped).

    limit: maximum number of usable samples. Raises FileNotFoundError if the layout is absent.
    """
    root = Path(data_root).resolve()
    shards = shards_of(root)
    if not shards:
        raise MissingFileError(
            "no-data",
            f"no data in {data_root}: looked for {LAYOUT}/shard0, shard1, ... below it;"
            f" make some with `python -m data.twoshapes --out-dir {data_root}`",
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
                image_path = shard / f"world-{index}.png"
                samples.append(_read_sample(name, image_path, root, index, captions, agreements, worlds))
            except SampleError as error:
                skipped.append(Skip(name, error.reason))
    return samples, skipped


def shards_of(data_root: str | Path) -> list[Path]:
    """Folders shard0, shard1, ... of a data root, in numeric order; empty if the layout is absent."""
    shards = [path for path in Path(data_root, LAYOUT).glob("shard*") if re.fullmatch(r"shard\d+", path.name)]
    return sorted(shards, key=lambda path: int(path.name.removeprefix("shard")))


class Root(NamedTuple):
    """Data root of a two-shapes set; `place` is its name for the user, `made_here` is true if this run generated it."""

    path: Path
    place: str
    made_here: bool = False

    def source(self, used: int, unusable: int, limit: int, flag: str = "--limit") -> Source:
        """Source of a run that measures `used` samples of the set."""
        synthetic = is_synthetic(self.path / LAYOUT.parts[0]) or is_synthetic(self.path)
        return Source(self.place, count_captions(self.path), used, unusable, limit, flag, synthetic, self.made_here)


def find_root(data_root: str | None, count: int, seed: int) -> Root:
    """Find the data root: that of the flag, else data/ if it contains spatial_twoshapes/, else a generated one.

    `count` and `seed` are those of the generated set, which is generated once. Raises ValueError for an empty
    `data_root`.
    """
    if data_root is not None:
        if not data_root.strip():
            raise InputError("empty-data-root", "--data-root is empty; name a folder, or leave the flag out")
        return Root(Path(data_root), data_root)
    if (folder := published(LAYOUT.parts[0])) is not None:
        return Root(folder.parent, str(DATA / LAYOUT.parts[0]))
    root = GENERATED / f"twoshapes-{count}-seed-{seed}"
    if not root.exists():
        generate(root, count, seed)
    return Root(root, str(root), made_here=True)


def count_captions(data_root: str | Path) -> int:
    """Number of captions in a set, usable or not."""
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
    name: str, image_path: Path, root: Path, index: int, captions: list[str], agreements: list[str], worlds: list
) -> TwoShapes:
    for lines, reason in ((captions, "no caption"), (agreements, "no agreement"), (worlds, "no world model")):
        if index >= len(lines):
            raise SampleError(reason)
    if agreements[index].strip() != "1.0":
        raise SampleError("agreement is not 1.0")
    caption = captions[index].strip()
    match = CAPTION.fullmatch(caption)
    if not match:
        raise SampleError("caption does not parse")
    side = _checked_image(image_path, root)
    entities = _read_entities(worlds[index], side)
    _, colour, shape, other_colour, other_shape, relation = match.groups()
    first, second = (_find(entities, *wanted) for wanted in ((colour, shape), (other_colour, other_shape)))
    is_reversed = entities.index(first) > entities.index(second)
    return TwoShapes(name, image_path, caption, match["question"], relation, first, second, is_reversed)


def _checked_image(path: Path, root: Path) -> int:
    """Side in pixels of an image inside `root`, after decoding it completely. Raises SampleError."""
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
    """The single entity with this colour and shape. Raises SampleError."""
    matching = [entity for entity in entities if (entity.colour, entity.shape) == (colour, shape)]
    if len(matching) != 1:
        raise SampleError("caption's shape is " + ("in the world twice" if matching else "not in the world"))
    return matching[0]


def generate(folder: str | Path, count: int, seed: int, same_colour: float = 0.24, size: int = SIDE) -> None:
    """Write `count` samples below `folder`, in shards of 100; equal seeds give equal bytes.

    same_colour: share of pairs whose shapes have the same colour; they never have the same kind. size: side of the
    images in pixels. Sample i does not depend on `count`; only its pixels depend on `size`. `folder` appears only when
    complete. Raises FileExistsError if it is not empty, ValueError for invalid settings.
    """
    if count < 1 or seed < 0:
        raise InputError(
            "below-minimum", f"count is {count} and seed {seed}; give a count of at least 1 and a seed of at least 0"
        )
    if size < MIN_SIDE:
        raise InputError(
            "below-minimum",
            f"size is {size} pixels; give at least {MIN_SIDE}, below which small shapes are hardly seen",
        )
    progress = tqdm(total=count, desc="drawing", unit="image", disable=None)
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
    """Draw two shapes of different kinds inside the world, without overlap and in a clear relation.

    The centres are drawn first; a pair at distance d is kept with probability 1 - d, which gives the distances of the
    published data. If the shapes overlap, another second shape is tried at the same place, so that near pairs stay
    frequent; in the published data, too, the second shape of a near pair is the smaller one.
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
    """Move a shape to a uniformly random place of the world that contains its bounding box."""
    left, top, right, bottom = replace(shape, x=0.0, y=0.0).box()
    return replace(shape, x=rng.uniform(-left, 1 - right), y=rng.uniform(-top, 1 - bottom))


def _inside(shape: Shape) -> bool:
    left, top, right, bottom = shape.box()
    return min(left, top) >= 0 and max(right, bottom) <= 1


def _overlap(first: Shape, second: Shape) -> bool:
    return bool((mask(first, SIDE) & mask(second, SIDE)).any())


def relation(first: Shape, second: Shape) -> str | None:
    """Relation of `first` to `second`: "left" | "right" | "above" | "below"; None if none clearly holds."""
    x, y = first.x - second.x, first.y - second.y
    minor, major = sorted((abs(x), abs(y)))
    if minor > MAX_MINOR or major < MIN_MAJOR:
        return None
    if abs(x) > abs(y):
        return "left" if x < 0 else "right"
    return "above" if y < 0 else "below"


def caption_of(first: Shape, second: Shape) -> str:
    """Caption of a pair in a clear relation, in ShapeWorld's wording."""
    return f"{QUESTION.format(first.colour, first.shape, second.colour, second.shape)} {relation(first, second)} ."


def world_model(shapes: Sequence[Shape], size: int) -> dict:
    """World model in ShapeWorld's JSON format: fractions of the world, rotation in turns, half extents of shapes.

    `size` is the side of the image in pixels.
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
    """Generate samples in the layout of ShapeWorld's spatial_twoshapes."""

    out_dir: Path
    """New or empty folder, used as data root by every script."""
    count: int = 100
    """Number of samples, in shards of 100."""
    seed: int = 0
    """Random seed; equal seeds give equal bytes, and equal shapes at every size."""
    size: int = SIDE
    """Width and height of the images in pixels."""


def main(config: Config) -> int:
    sentence = f"{config.count} samples in {config.out_dir / LAYOUT}"
    return written(lambda: generate(config.out_dir, config.count, config.seed, size=config.size), sentence)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config)))
