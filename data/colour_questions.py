"""Questions about the colour of one of two shapes, whose answer is in that shape's box alone.

    what colour is the circle ?        in an image of a red circle and a blue cross: red

The asked shape is the first of the caption. The two shapes of an image must differ in kind, so that the question names
one of them, and in colour, so that the answer tells them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data.errors import Skip, check_at_least
from data.folders import Links, Source
from data.samples import DEFAULT_COUNT
from data.twoshapes import Entity, TwoShapes, find_root, read


class ColourQuestion(NamedTuple):
    """Question about the colour of `asked`; `other` is the second shape of the image."""

    name: str
    path: Path
    prompt: str
    asked: Entity
    other: Entity


@dataclass(frozen=True)
class ColourQuestions(Links):
    """Images of two shapes."""

    data_root: str | None = None
    """Folder that holds spatial_twoshapes/ (default: data, if it holds that; else images generated once in
    data/generated)."""
    limit: int = 100
    """Maximum number of images, some of which cannot be asked about; 0 uses all of --data-root."""
    seed: int = 0
    """Seed of generated images."""

    def __post_init__(self) -> None:
        check_at_least(self, limit=0, seed=0)


def gather(settings: ColourQuestions) -> tuple[list[ColourQuestion], list[Skip], Source]:
    """Questions, the images left out with their reasons, and the source.

    Raises FileNotFoundError if --data-root holds no image.
    """
    root = find_root(settings.data_root, settings.limit or DEFAULT_COUNT, settings.seed)
    pairs, skipped = read(root.path, limit=settings.limit or None)
    source = root.source(len(pairs), len(skipped), settings.limit)
    unclear = [Skip(pair.id, reason) for pair in pairs if (reason := ambiguity(pair))]
    return [question(pair) for pair in pairs if not ambiguity(pair)], [*skipped, *unclear], source


def ambiguity(pair: TwoShapes) -> str:
    """The reason why a question about the first shape has no answer of its own; "" for none."""
    if pair.first.shape == pair.second.shape:
        return "two shapes of one kind"
    return "two shapes of one colour" if pair.first.colour == pair.second.colour else ""


def question(pair: TwoShapes) -> ColourQuestion:
    return ColourQuestion(pair.id, pair.image_path, f"what colour is the {pair.first.shape} ?", pair.first, pair.second)
