"""Two-shapes samples for the spatial analyses: images with prompts, and captions with their counterfactuals.

    caption   there are two shapes a red circle and a blue cross . ... the spatial relation is left .
    swapped   there are two shapes a blue cross and a red circle . ... the spatial relation is left .
    flipped   there are two shapes a red circle and a blue cross . ... the spatial relation is right .
    both      there are two shapes a blue cross and a red circle . ... the spatial relation is right .

The last has the meaning of the caption, the other two the opposite. The relation word follows both entities, so that
its row in a causal model attends to both.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter
from typing import NamedTuple

import numpy as np

from data.errors import InputError, Skip, check_at_least
from data.folders import Links, Source, published
from data.samples import DEFAULT_COUNT
from data.twoshapes import CAPTION, LAYOUT, OPPOSITE, QUESTION, TwoShapes, caption_of, find_root, read, sample_pair

PLACEHOLDERS = ("question", "caption", "first", "second", "relation")


class SpatialSample(NamedTuple):
    """Two-shapes sample, its prompt, and the words whose attention is measured: "first" and "second", such as
    "red circle", and the true "relation"; `number` counts the usable samples from 0."""

    name: str
    number: int
    pair: TwoShapes
    prompt: str
    words: dict[str, str]


@dataclass(frozen=True)
class SpatialSamples(Links):
    """Images of two shapes and the question about each."""

    data_root: str | None = None
    """Folder that holds spatial_twoshapes/ (default: data, if it holds that; else images generated once in
    data/generated)."""
    prompt: str = "{question}"
    """Prompt. {question} and {caption} are the set's own, {first} and {second} its shapes, such as "red circle",
    {relation} is the true one. Words missing from the prompt must occur in the answer."""
    limit: int = 100
    """Maximum number of samples; 0 uses all of --data-root."""
    seed: int = 0
    """Seed of generated images, shuffled cells, background cells, random orders and intervals."""

    def __post_init__(self) -> None:
        check_at_least(self, limit=0, seed=0)
        if not self.prompt.strip():
            raise ValueError("--prompt is empty; write a question, such as '{question}'")
        try:
            names = [name for _, name, _, _ in Formatter().parse(self.prompt) if name is not None]
        except ValueError as error:
            raise ValueError(f"--prompt {self.prompt!r} is no template: {error}; write {{{{ for a brace") from error
        if unknown := [name for name in names if name not in PLACEHOLDERS]:
            known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
            raise ValueError(f"--prompt holds {{{unknown[0]}}}, which stands for nothing; known are {known}")


def gather(settings: SpatialSamples) -> tuple[list[SpatialSample], list[Skip], Source]:
    """Samples, the unusable ones with their reasons (`data.twoshapes.read`), and their source.

    Raises FileNotFoundError if --data-root holds none.
    """
    limit = settings.limit
    root = find_root(settings.data_root, limit or DEFAULT_COUNT, settings.seed)
    pairs, skipped = read(root.path, limit=limit or None)
    samples = [_sample(number, pair, settings.prompt) for number, pair in enumerate(pairs)]
    return samples, skipped, root.source(len(samples), len(skipped), limit)


def _sample(number: int, pair: TwoShapes, prompt: str) -> SpatialSample:
    first, second = (f"{entity.colour} {entity.shape}" for entity in (pair.first, pair.second))
    words = {"first": first, "relation": pair.relation, "second": second}
    return SpatialSample(
        pair.id, number, pair, prompt.format(question=pair.question, caption=pair.caption, **words), words
    )


class Sentence(NamedTuple):
    """A sentence; `first` and `second` are the entities in the order of the sentence, such as "red circle"."""

    text: str
    first: str
    second: str
    relation: str

    @property
    def words(self) -> tuple[tuple[str, int], ...]:
        """Measured words as (word, its occurrence): the two entities, and as their control the article before each."""
        return (self.first, 0), (self.second, 0), ("a", 0), ("a", 1)


class Caption(NamedTuple):
    """One sample: its `sentences` are "caption" and, by name, its counterfactuals."""

    name: str
    sentences: dict[str, Sentence]


@dataclass(frozen=True)
class Captions(Links):
    """Captions of two shapes."""

    data_root: str | None = None
    """Folder that holds spatial_twoshapes/ (default: data, if it holds that; else synthetic captions of random
    shapes)."""
    limit: int = 0
    """Maximum number of captions; 0 uses all (100 synthetic ones)."""
    seed: int = 0
    """Seed of synthetic captions, intervals and tests."""

    def __post_init__(self) -> None:
        check_at_least(self, limit=0, seed=0)


def gather_captions(settings: Captions) -> tuple[list[Caption], list[Skip], Source]:
    """Captions with their counterfactuals, unusable samples with their reasons, and the source.

    Raises FileNotFoundError for missing data.
    """
    limit, seed = settings.limit, settings.seed
    if settings.data_root is None and published(LAYOUT.parts[0]) is None:
        return _synthetic(limit or DEFAULT_COUNT, seed)
    root = find_root(settings.data_root, DEFAULT_COUNT, seed)
    samples, skipped = read(root.path, limit=limit or None)
    captions = [Caption(sample.id, counterfactuals(sample.caption)) for sample in samples]
    return captions, skipped, root.source(len(samples), len(skipped), limit)


def _synthetic(count: int, seed: int) -> tuple[list[Caption], list[Skip], Source]:
    """`gather_captions` for captions of random shapes; caption i does not depend on `count`."""
    texts = [_random_caption(np.random.default_rng([seed, index])) for index in range(count)]
    captions = [Caption(f"synthetic/{index}", counterfactuals(text)) for index, text in enumerate(texts)]
    place = f"captions of random shapes, seed {seed}"
    return captions, [], Source(place, count, count, synthetic=True, made_here=True)


def _random_caption(rng: np.random.Generator) -> str:
    return caption_of(*rng.permutation(np.array(sample_pair(rng), dtype=object)))


def counterfactuals(caption: str) -> dict[str, Sentence]:
    """The caption and its three counterfactuals by name. Raises ValueError for a sentence of another form."""
    match = CAPTION.fullmatch(caption)
    if not match:
        raise InputError(
            "not-a-caption", f"{caption!r} is not a caption of two shapes, such as {QUESTION.format(*'ABCD')!r}"
        )
    _, colour, shape, other_colour, other_shape, relation = match.groups()
    first, second, opposite = f"{colour} {shape}", f"{other_colour} {other_shape}", OPPOSITE[relation]
    return {
        "caption": _sentence(first, second, relation),
        "swapped": _sentence(second, first, relation),
        "flipped": _sentence(first, second, opposite),
        "both": _sentence(second, first, opposite),
    }


def _sentence(first: str, second: str, relation: str) -> Sentence:
    question = QUESTION.format(*first.split(), *second.split())
    return Sentence(f"{question} {relation} .", first, second, relation)
