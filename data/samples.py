"""Samples of a run: images from a flag, a folder of images, or a two-shapes set."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data.errors import Skip, check_at_least
from data.folders import Links, Source, is_synthetic
from data.images import list_images
from data.twoshapes import LAYOUT, Root, TwoShapes, find_root, read

DEFAULT_COUNT = 100  # generated samples without a limit


class Sample(NamedTuple):
    """One question about one image; `gold` is the correct answer, "" where unknown.

    `shapes` are (colour, shape) of the image's content, in the order of its caption, where known.
    """

    name: str
    path: Path
    prompt: str
    gold: str = ""
    shapes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Samples(Links):
    """Images and the question about each."""

    image: tuple[str, ...] = ()
    """One image or several."""
    data_root: str | None = None
    """Folder of images, or one that holds spatial_twoshapes/, instead of --image (default without --image: data, if it
    holds that; else images generated once in data/generated)."""
    prompt: str | None = None
    """Question about each image; replaces the questions of a two-shapes set."""
    limit: int = 8
    """Maximum number of samples of --data-root; 0 uses all."""
    seed: int = 0
    """Seed of generated images and of all random draws of the script."""

    def __post_init__(self) -> None:
        if self.image and self.data_root is not None:
            raise ValueError("give either --image (with --prompt) or --data-root, not both")
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("--prompt is empty; write a question or an instruction")
        check_at_least(self, limit=0, seed=0)


def collect(settings: Samples, flag: str = "--limit") -> tuple[list[Sample], list[Skip], Source]:
    """Samples of a run, the unusable ones with their reasons, and their source.

    A two-shapes set has its own questions unless a prompt is given, in which {first} and {second} are the caption's
    shapes, such as "red circle". Without --image and --data-root, the set is that of `data.twoshapes.find_root`.
    `flag` names the limit in the source. Raises ValueError for images without a prompt, FileNotFoundError without a
    sample.
    """
    prompt, limit = settings.prompt, settings.limit
    if settings.image:
        paths = [Path(path) for path in settings.image]
        return _samples(paths, prompt), [], Source("--image", None, len(paths))
    root = find_root(settings.data_root, limit or DEFAULT_COUNT, settings.seed)
    if (root.path / LAYOUT).is_dir() or not root.path.is_dir():
        return of_twoshapes(root, prompt, limit, flag)
    paths = list_images(root.path)
    samples = _samples(paths[: limit or None], prompt)
    return samples, [], Source(root.place, len(paths), len(samples), 0, limit, flag, is_synthetic(root.path))


def of_twoshapes(
    root: Root, prompt: str | None, limit: int, flag: str = "--limit"
) -> tuple[list[Sample], list[Skip], Source]:
    """`collect` for a two-shapes set."""
    samples, skipped = read(root.path, limit=limit or None)
    source = root.source(len(samples), len(skipped), limit, flag)
    return [_question(sample, prompt) for sample in samples], skipped, source


def _samples(paths: list[Path], prompt: str | None) -> list[Sample]:
    if prompt is None:
        raise ValueError("images need a --prompt, such as --prompt 'describe the image .'")
    if not any(path.exists() for path in paths):
        raise FileNotFoundError(f"none of the images exists: {', '.join(map(str, paths[:3]))}")
    return [Sample(name, path, prompt) for name, path in zip(names(paths), paths, strict=True)]


def _question(sample: TwoShapes, prompt: str | None) -> Sample:
    shapes = tuple((entity.colour, entity.shape) for entity in (sample.first, sample.second))
    if prompt is None:
        return Sample(sample.id, sample.image_path, sample.question, sample.relation, shapes)
    for place, shape in zip(("{first}", "{second}"), shapes, strict=True):
        prompt = prompt.replace(place, " ".join(shape))
    return Sample(sample.id, sample.image_path, prompt, "", shapes)


def names(paths: list[Path]) -> list[str]:
    """Unique name of every image: the first of its stem, its path below the common folder, without and with its
    suffix, that is unique; else that path with a number."""
    top = os.path.commonpath([path.absolute().parent for path in paths])
    places = [path.absolute().relative_to(top) for path in paths]
    forms = [(place.stem, place.with_suffix("").as_posix(), place.as_posix()) for place in places]
    uses, seen = [Counter(form) for form in zip(*forms, strict=True)], Counter()
    taken = {}  # in order
    for form in forms:
        seen[form[-1]] += 1
        unique = (name for name, use in zip(form, uses, strict=True) if use[name] == 1 and name not in taken)
        taken[next(unique, f"{form[-1]}-{seen[form[-1]]}")] = None
    return list(taken)
