"""Prompts that a language model is probed with: questions about images, or texts without any."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from data.errors import Skip
from data.folders import Source
from data.images import list_images
from data.links import LinkFlags
from data.samples import collect
from data.spatial_qa import read
from data.spatial_qa_files import PUBLISHED
from data.spatial_qa_source import find_root, source_of
from data.twoshapes import LAYOUT

LIMIT = "--num-samples"


class Prompt(NamedTuple):
    """A prompt and its picture, a file or what would stand in one; None for a text alone."""

    name: str
    text: str
    path: Path | bytes | None = None


@dataclass(frozen=True)
class PromptFlags(LinkFlags):
    """A script's Config inherits these and hands itself to `gather`, which says what is wrong with them."""

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


def gather(flags: PromptFlags) -> tuple[list[Prompt], list[Skip], Source]:
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
        return _pictures(flags)
    if flags.dataset == "twoshapes" and flags.data_root is not None and not Path(flags.data_root, LAYOUT).is_dir():
        raise FileNotFoundError(f"{flags.data_root} holds no {LAYOUT}, which --dataset twoshapes reads")
    samples, skipped, source = collect((), flags.data_root, flags.prompt, flags.num_samples, flag=LIMIT)
    return [Prompt(sample.name, sample.prompt, sample.path) for sample in samples], skipped, source


def _pictures(flags: PromptFlags) -> tuple[list[Prompt], list[Skip], Source]:
    """`gather` for a folder whose pictures are asked about by --prompt, whatever else it holds."""
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
    root = find_root(dataset, root)
    found, skipped = read(dataset, root, limit)
    source = source_of(dataset, root, len(found), len(skipped), limit, LIMIT)
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
