"""Samples of a run: images from a flag, a folder of images, or a two-shapes set.

Prompts that a language model is probed with: questions about images, or texts without any.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from data import spatial_qa
from data.errors import Skip, check_at_least
from data.folders import Links, Source, is_synthetic
from data.images import list_images
from data.spatial_qa_files import PUBLISHED
from data.twoshapes import LAYOUT, Root, TwoShapes, find_root, read

DEFAULT_COUNT = 100  # generated samples where no limit is set


class Sample(NamedTuple):
    """One question about one image; `gold` is the right answer, "" where it is unknown.

    `shapes` are (colour, shape) of the image's content, in the order of its caption, where they are known.
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
    """One picture or several."""
    data_root: str | None = None
    """Instead of --image: a folder of pictures, or one that holds spatial_twoshapes/ (default without --image: data,
    where it holds that; else images made here, once, in data/generated)."""
    prompt: str | None = None
    """What to ask. A two-shapes set brings its own questions; given here, it replaces them."""
    limit: int = 8
    """Use at most so many samples of --data-root; 0 uses all."""
    seed: int = 0
    """Seed of images made here and of everything that the script draws at random."""

    def __post_init__(self) -> None:
        if self.image and self.data_root is not None:
            raise ValueError("give either --image (with --prompt) or --data-root, not both")
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("--prompt is empty; write a question or an instruction")
        check_at_least(self, limit=0, seed=0)


def collect(settings: Samples, flag: str = "--limit") -> tuple[list[Sample], list[Skip], Source]:
    """The samples of a run, the unusable ones with their reasons, and their source.

    A two-shapes set asks its own questions unless a prompt is given; there, {first} and {second} in it stand for the
    caption's shapes, such as "red circle". Without --image and --data-root, the set of `data.twoshapes.find_root`.
    `flag` names the limit in the source. Raises ValueError for images without a prompt, FileNotFoundError where no
    sample exists.
    """
    prompt, limit = settings.prompt, settings.limit
    if settings.image:
        paths = [Path(path) for path in settings.image]
        return _pictures(paths, prompt), [], Source("--image", None, len(paths))
    root = find_root(settings.data_root, limit or DEFAULT_COUNT, settings.seed)
    if (root.path / LAYOUT).is_dir() or not root.path.is_dir():
        return of_twoshapes(root, prompt, limit, flag)
    paths = list_images(root.path)
    samples = _pictures(paths[: limit or None], prompt)
    return samples, [], Source(root.place, len(paths), len(samples), 0, limit, flag, is_synthetic(root.path))


def of_twoshapes(
    root: Root, prompt: str | None, limit: int, flag: str = "--limit"
) -> tuple[list[Sample], list[Skip], Source]:
    """`collect` for a two-shapes set."""
    samples, skipped = read(root.path, limit=limit or None)
    source = root.source(len(samples), len(skipped), limit, flag)
    return [_question(sample, prompt) for sample in samples], skipped, source


def _pictures(paths: list[Path], prompt: str | None) -> list[Sample]:
    if prompt is None:
        raise ValueError("pictures need a --prompt, such as --prompt 'describe the image .'")
    if not any(path.exists() for path in paths):
        raise FileNotFoundError(f"none of the pictures exists: {', '.join(map(str, paths[:3]))}")
    return [Sample(name, path, prompt) for name, path in zip(names(paths), paths, strict=True)]


def _question(sample: TwoShapes, prompt: str | None) -> Sample:
    shapes = tuple((entity.colour, entity.shape) for entity in (sample.first, sample.second))
    if prompt is None:
        return Sample(sample.id, sample.image_path, sample.question, sample.relation, shapes)
    for place, shape in zip(("{first}", "{second}"), shapes, strict=True):
        prompt = prompt.replace(place, " ".join(shape))
    return Sample(sample.id, sample.image_path, prompt, "", shapes)


def names(paths: list[Path]) -> list[str]:
    """A unique name for every image: the first of its stem, its path below the folder that all lie in, without and with
    its suffix, that no other image has; else that path with a number."""
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


LIMIT = "--num-samples"


class Prompt(NamedTuple):
    """A prompt and its picture, a file or what would stand in one; None for a text alone."""

    name: str
    text: str
    path: Path | bytes | None = None


@dataclass(frozen=True)
class Prompts(Links):
    """Prompts to probe a language model with: questions about images, or texts."""

    data_root: str | None = None
    """A folder of pictures (with --prompt), or one that holds spatial_twoshapes/ or spatial_reasoning/, whose own
    questions are asked (default: data, where it holds that set; else two-shapes images made here)."""
    dataset: Literal["auto", "twoshapes", "pictures", "blink", "sat2"] = "auto"
    """Content of --data-root; auto is one of the first two. A question about several pictures gets the first."""
    prompt: str | None = None
    """What to ask about each picture."""
    text: str | None = None
    """Instead of --data-root: a text file; each of its paragraphs is a prompt without a picture."""
    num_samples: int = 20
    """Use at most so many samples; 0 uses all."""

    def __post_init__(self) -> None:
        if self.data_root is not None and self.text is not None:
            raise ValueError("give either --data-root (pictures) or --text (words alone)")
        check_at_least(self, num_samples=0)
        if self.text is not None and (self.prompt is not None or self.dataset != "auto"):
            raise ValueError("--prompt and --dataset belong to --data-root; a text brings its own prompts")
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("--prompt is empty; write a question or an instruction")
        if self.dataset == "pictures" and self.data_root is None:
            raise ValueError("--dataset pictures needs --data-root, the folder of pictures")


def gather_prompts(settings: Prompts) -> tuple[list[Prompt], list[Skip], Source]:
    """Prompts to probe with, unusable samples with their reasons, and the source.

    Raises ValueError for images without a prompt, FileNotFoundError where no sample exists.
    """
    root, prompt, limit = settings.data_root, settings.prompt, settings.num_samples
    if settings.text is not None:
        found = paragraphs(Path(settings.text))
        prompts = found[: limit or None]
        return prompts, [], Source(settings.text, len(found), len(prompts), 0, limit, LIMIT)
    if settings.dataset in PUBLISHED:
        return _questions(settings)
    if settings.dataset == "twoshapes" and root is not None and not Path(root, LAYOUT).is_dir():
        raise FileNotFoundError(f"{root} holds no {LAYOUT}, which --dataset twoshapes reads")
    if settings.dataset == "pictures":  # whatever else the folder holds
        paths = list_images(Path(root))
        samples, skipped, _ = collect(Samples(image=tuple(map(str, paths[: limit or None])), prompt=prompt, limit=0))
        source = Source(root, len(paths), len(samples), 0, limit, LIMIT)
    else:
        samples, skipped, source = collect(Samples(data_root=root, prompt=prompt, limit=limit), LIMIT)
    return [Prompt(sample.name, sample.prompt, sample.path) for sample in samples], skipped, source


def _questions(settings: Prompts) -> tuple[list[Prompt], list[Skip], Source]:
    """The questions of a published set, each with its first picture; --prompt, where given, replaces them.

    Raises as `data.spatial_qa.read` does.
    """
    dataset, limit = settings.dataset, settings.num_samples
    root = spatial_qa.find_root(dataset, settings.data_root)
    found, skipped = spatial_qa.read(dataset, root, limit)
    prompts = [Prompt(question.id, settings.prompt or question.prompt, question.images[0]) for question in found]
    return prompts, skipped, spatial_qa.source_of(dataset, root, len(found), len(skipped), limit, LIMIT)


def paragraphs(path: Path, limit: int = 0) -> list[Prompt]:
    """The paragraphs of a UTF-8 text file, which empty lines separate; at most `limit` of them, 0 for all.

    Raises FileNotFoundError for a file that is not there, ValueError for one that cannot be read or holds no text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"the text file {path} does not exist")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    found = [paragraph.strip() for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]
    if not found:
        raise ValueError(f"{path} holds no text")
    return [Prompt(f"paragraph-{index}", paragraph) for index, paragraph in enumerate(found)][: limit or None]
