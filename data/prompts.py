"""Prompts that probe a language model: questions about images, or texts without an image."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from data import spatial_qa
from data.errors import InputError, MissingFileError, Skip, check_at_least
from data.folders import Links, Source
from data.images import list_images
from data.samples import Samples, collect
from data.spatial_qa_files import PUBLISHED
from data.twoshapes import LAYOUT

LIMIT = "--num-samples"


class Prompt(NamedTuple):
    """Prompt with its image: a file or an encoded image; None for text only."""

    name: str
    text: str
    path: Path | bytes | None = None


@dataclass(frozen=True)
class Prompts(Links):
    """Prompts that probe a language model: questions about images, or texts."""

    data_root: str | None = None
    """Folder of images (with --prompt), or one that holds spatial_twoshapes/ or spatial_reasoning/ with their own
    questions (default: data, if it holds that set; else generated two-shapes images)."""
    dataset: Literal["auto", "twoshapes", "pictures", "blink", "sat2"] = "auto"
    """Content of --data-root; auto is one of the first two. A question about several images gets the first."""
    prompt: str | None = None
    """Question about each image."""
    text: str | None = None
    """Text file instead of --data-root; each of its paragraphs is a prompt without an image."""
    num_samples: int = 20
    """Maximum number of samples; 0 uses all."""

    def __post_init__(self) -> None:
        if self.data_root is not None and self.text is not None:
            raise InputError("images-or-text", "give either --data-root (images) or --text (words alone)")
        check_at_least(self, num_samples=0)
        if self.text is not None and (self.prompt is not None or self.dataset != "auto"):
            raise InputError(
                "prompt-of-text", "--prompt and --dataset belong to --data-root; a text brings its own prompts"
            )
        if self.prompt is not None and not self.prompt.strip():
            raise InputError("empty-prompt", "--prompt is empty; write a question or an instruction")
        if self.dataset == "pictures" and self.data_root is None:
            raise InputError("data-root-needed", "--dataset pictures needs --data-root, the folder of images")


def gather_prompts(settings: Prompts) -> tuple[list[Prompt], list[Skip], Source]:
    """Prompts, unusable samples with their reasons, and the source.

    Raises ValueError for images without a prompt, FileNotFoundError without a sample.
    """
    root, prompt, limit = settings.data_root, settings.prompt, settings.num_samples
    if settings.text is not None:
        texts = paragraphs(Path(settings.text))
        prompts = texts[: limit or None]
        return prompts, [], Source(settings.text, len(texts), len(prompts), 0, limit, LIMIT)
    if settings.dataset in PUBLISHED:
        return _questions(settings)
    if settings.dataset == "twoshapes" and root is not None and not Path(root, LAYOUT).is_dir():
        raise MissingFileError("no-data", f"{root} holds no {LAYOUT}, which --dataset twoshapes reads")
    if settings.dataset == "pictures":  # other content of the folder is ignored
        paths = list_images(Path(root))
        samples, skipped, _ = collect(Samples(image=tuple(map(str, paths[: limit or None])), prompt=prompt, limit=0))
        source = Source(root, len(paths), len(samples), 0, limit, LIMIT)
    else:
        samples, skipped, source = collect(Samples(data_root=root, prompt=prompt, limit=limit), LIMIT)
    return [Prompt(sample.name, sample.prompt, sample.path) for sample in samples], skipped, source


def _questions(settings: Prompts) -> tuple[list[Prompt], list[Skip], Source]:
    """Questions of a published set, each with its first image; --prompt, if given, replaces them.

    Raises as `data.spatial_qa.read` does.
    """
    dataset, limit = settings.dataset, settings.num_samples
    root = spatial_qa.find_root(dataset, settings.data_root)
    questions, skipped = spatial_qa.read(dataset, root, limit)
    prompts = [Prompt(question.id, settings.prompt or question.prompt, question.images[0]) for question in questions]
    return prompts, skipped, spatial_qa.source_of(dataset, root, len(questions), len(skipped), limit, LIMIT)


def paragraphs(path: Path, limit: int = 0) -> list[Prompt]:
    """Paragraphs of a UTF-8 text file, separated by empty lines; at most `limit` of them, 0 for all.

    Raises FileNotFoundError for a missing file, ValueError for an unreadable file or one without text.
    """
    if not path.is_file():
        raise MissingFileError("no-such-file", f"the text file {path} does not exist")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError("not-utf8", f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    texts = [paragraph.strip() for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]
    if not texts:
        raise InputError("no-text", f"{path} holds no text")
    return [Prompt(f"paragraph-{index}", paragraph) for index, paragraph in enumerate(texts)][: limit or None]
