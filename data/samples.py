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
from data.errors import Skip
from data.folders import LinkFlags, Source, is_synthetic
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
class SampleFlags(LinkFlags):
    """Flags that a script's Config inherits; `data.samples.collect` checks them."""

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
    """Seed of images made here."""


def collect(
    images: tuple[str, ...], data_root: str | None, prompt: str | None, limit: int, seed: int = 0, flag: str = "--limit"
) -> tuple[list[Sample], list[Skip], Source]:
    """The samples of a run, the unusable ones with their reasons, and their source.

    Either `images` (paths) or `data_root`: a folder of images, or one that holds spatial_twoshapes/, whose own
    questions are asked unless `prompt` is given; there, {first} and {second} in it stand for the caption's shapes,
    such as "red circle". Without both, the two-shapes set of `data.twoshapes.find_root`. `limit`, set by `flag`, counts
    samples of the folder; 0 takes all.
    Raises ValueError for flags that exclude each other, FileNotFoundError where no sample exists.
    """
    if images and data_root is not None:
        raise ValueError("give either --image (with --prompt) or --data-root, not both")
    if prompt is not None and not prompt.strip():
        raise ValueError("--prompt is empty; write a question or an instruction")
    if limit < 0:
        raise ValueError(f"{flag} {limit} is negative; give 0 for all samples")
    if images:
        return _pictures([Path(path) for path in images], prompt), [], Source("--image", None, len(images))
    root = find_root(data_root, limit or DEFAULT_COUNT, seed)
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
class PromptFlags(LinkFlags):
    """A script's Config inherits these and hands itself to `gather_prompts`, which says what is wrong with them."""

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


def gather_prompts(flags: PromptFlags) -> tuple[list[Prompt], list[Skip], Source]:
    """Prompts to probe with, unusable samples with their reasons, and the source.

    Raises ValueError for flags that exclude each other, FileNotFoundError where no sample exists.
    """
    if flags.data_root is not None and flags.text is not None:
        raise ValueError("give either --data-root (pictures) or --text (words alone)")
    if flags.num_samples < 0:
        raise ValueError(f"--num-samples {flags.num_samples} is negative; give 0 for all samples")
    if flags.text is not None:
        if flags.prompt is not None or flags.dataset != "auto":
            raise ValueError("--prompt and --dataset belong to --data-root; a text brings its own prompts")
        found = paragraphs(Path(flags.text))
        prompts = found[: flags.num_samples or None]
        return prompts, [], Source(flags.text, len(found), len(prompts), 0, flags.num_samples, LIMIT)
    if flags.dataset in PUBLISHED:
        return questions(flags.dataset, flags.data_root, flags.prompt, flags.num_samples)
    if flags.dataset == "pictures":
        return _prompted_pictures(flags)
    if flags.dataset == "twoshapes" and flags.data_root is not None and not Path(flags.data_root, LAYOUT).is_dir():
        raise FileNotFoundError(f"{flags.data_root} holds no {LAYOUT}, which --dataset twoshapes reads")
    samples, skipped, source = collect((), flags.data_root, flags.prompt, flags.num_samples, flag=LIMIT)
    return [Prompt(sample.name, sample.prompt, sample.path) for sample in samples], skipped, source


def _prompted_pictures(flags: PromptFlags) -> tuple[list[Prompt], list[Skip], Source]:
    """`gather_prompts` for a folder whose pictures are asked about by --prompt, whatever else it holds."""
    if flags.data_root is None:
        raise ValueError("--dataset pictures needs --data-root, the folder of pictures")
    paths = list_images(Path(flags.data_root))
    samples, skipped, _ = collect(tuple(map(str, paths[: flags.num_samples or None])), None, flags.prompt, 0)
    source = Source(flags.data_root, len(paths), len(samples), 0, flags.num_samples, LIMIT)
    return [Prompt(sample.name, sample.prompt, sample.path) for sample in samples], skipped, source


def questions(
    dataset: str, root: str | None, prompt: str | None, limit: int
) -> tuple[list[Prompt], list[Skip], Source]:
    """The questions of a published set, each with its first picture; `prompt` is asked instead where it is given.

    Raises ValueError for an empty prompt, and as `data.spatial_qa.read` does.
    """
    if prompt is not None and not prompt.strip():
        raise ValueError("--prompt is empty; write a question or an instruction")
    root = spatial_qa.find_root(dataset, root)
    found, skipped = spatial_qa.read(dataset, root, limit)
    source = spatial_qa.source_of(dataset, root, len(found), len(skipped), limit, LIMIT)
    return [Prompt(question.id, prompt or question.prompt, question.images[0]) for question in found], skipped, source


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
