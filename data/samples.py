"""What a script is asked to look at: pictures from a flag, a folder of pictures, or a two-shapes set."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from data.images import list_images
from data.twoshapes import LAYOUT, Skip, TwoShapes, read


class Sample(NamedTuple):
    """One question about one picture; `gold` is the right answer, "" where nobody knows it.

    `shapes` are (colour, shape) of what the picture shows, in the order of its caption, where that is known.
    """

    name: str
    path: Path
    prompt: str
    gold: str = ""
    shapes: tuple[tuple[str, str], ...] = ()


def collect(
    images: tuple[str, ...], data_root: str | None, prompt: str | None, limit: int
) -> tuple[list[Sample], list[Skip]]:
    """Samples to look at, and those that cannot be used with their reasons.

    Either `images` (paths) or `data_root`: a folder of pictures, or one that holds spatial_twoshapes/, whose own
    questions are asked unless `prompt` is given; there, {first} and {second} in it stand for the caption's shapes,
    such as "red circle". `limit` counts samples of the folder, 0 takes all.
    Raises ValueError for flags that do not go together, FileNotFoundError where nothing is found.
    """
    if bool(images) == bool(data_root):
        raise ValueError("give either --image (with --prompt) or --data-root")
    if prompt is not None and not prompt.strip():
        raise ValueError("--prompt is empty; write a question or an instruction")
    if limit < 0:
        raise ValueError(f"--limit {limit} is negative; give 0 for all samples")
    root = Path(data_root or "")
    if data_root and ((root / LAYOUT).is_dir() or not root.is_dir()):
        samples, skipped = read(root, limit=limit or None)
        return [_question(sample, prompt) for sample in samples], skipped
    paths = [Path(path) for path in images] or list_images(root)[: limit or None]
    if prompt is None:
        raise ValueError("pictures need a --prompt, such as --prompt 'describe the image .'")
    if not any(path.exists() for path in paths):
        raise FileNotFoundError(f"none of the pictures exists: {', '.join(map(str, paths[:3]))}")
    return [Sample(name, path, prompt) for name, path in zip(names(paths), paths, strict=True)], []


def _question(sample: TwoShapes, prompt: str | None) -> Sample:
    shapes = tuple((entity.colour, entity.shape) for entity in (sample.first, sample.second))
    if prompt is None:
        return Sample(sample.id, sample.image_path, sample.question, sample.relation, shapes)
    for place, shape in zip(("{first}", "{second}"), shapes, strict=True):
        prompt = prompt.replace(place, " ".join(shape))
    return Sample(sample.id, sample.image_path, prompt, "", shapes)


def names(paths: list[Path]) -> list[str]:
    """A name of its own for every picture: the stem where that is enough, else with suffix, else with a number."""
    stems, files, seen = Counter(p.stem for p in paths), Counter(p.name for p in paths), Counter()
    found = []
    for path in paths:
        seen[path.name] += 1
        name = path.stem if stems[path.stem] == 1 else path.name
        found.append(name if files[path.name] == 1 else f"{name}-{seen[path.name]}")
    return found
