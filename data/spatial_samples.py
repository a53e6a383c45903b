"""Two-shapes samples for the spatial analyses, with their prompts."""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter
from typing import NamedTuple

from data.errors import Skip
from data.folders import Source
from data.links import LinkFlags
from data.samples import DEFAULT_COUNT
from data.twoshapes import TwoShapes, find_root, read

PLACEHOLDERS = ("question", "caption", "first", "second", "relation")


class SpatialSample(NamedTuple):
    """A two-shapes sample, what is asked about it, and the words whose attention is measured: "first" and "second",
    such as "red circle", and the true "relation"; `number` counts the usable samples from 0."""

    name: str
    number: int
    pair: TwoShapes
    prompt: str
    words: dict[str, str]


@dataclass(frozen=True)
class SpatialFlags(LinkFlags):
    """A script's Config inherits these, calls `check_samples` first, and hands itself to `gather`."""

    data_root: str | None = None
    """A folder that holds spatial_twoshapes/ (default: data, where it holds that; else images made here, once, in
    data/generated)."""
    prompt: str = "{question}"
    """What to ask. {question} and {caption} are the set's own, {first} and {second} its shapes, such as "red circle",
    {relation} is the true one. Words that the prompt does not hold must come in the answer."""
    limit: int = 100
    """Use at most so many samples; 0 uses all of --data-root."""
    seed: int = 0
    """Seed of generated pictures, shuffled cells, background cells, random orders and intervals."""

    def check_samples(self) -> None:
        """Raises ValueError for flags that cannot work."""
        if self.limit < 0 or self.seed < 0:
            raise ValueError(f"--limit {self.limit} and --seed {self.seed} must be 0 or more")
        if not self.prompt.strip():
            raise ValueError("--prompt is empty; write a question, such as '{question}'")
        try:
            names = [name for _, name, _, _ in Formatter().parse(self.prompt) if name is not None]
        except ValueError as error:
            raise ValueError(f"--prompt {self.prompt!r} is no template: {error}; write {{{{ for a brace") from error
        if unknown := [name for name in names if name not in PLACEHOLDERS]:
            known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
            raise ValueError(f"--prompt holds {{{unknown[0]}}}, which stands for nothing; known are {known}")


def gather(flags: SpatialFlags) -> tuple[list[SpatialSample], list[Skip], Source]:
    """The samples, the unusable ones with their reasons (`data.twoshapes.read`), and their source.

    Raises FileNotFoundError where --data-root holds none.
    """
    root = find_root(flags.data_root, flags.limit or DEFAULT_COUNT, flags.seed)
    pairs, skipped = read(root.path, limit=flags.limit or None)
    samples = [_asked(number, pair, flags.prompt) for number, pair in enumerate(pairs)]
    return samples, skipped, root.source(len(samples), len(skipped), flags.limit)


def _asked(number: int, pair: TwoShapes, prompt: str) -> SpatialSample:
    first, second = (f"{entity.colour} {entity.shape}" for entity in (pair.first, pair.second))
    words = {"first": first, "relation": pair.relation, "second": second}
    return SpatialSample(
        pair.id, number, pair, prompt.format(question=pair.question, caption=pair.caption, **words), words
    )
