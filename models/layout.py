"""Positions of the image tokens, words and prompt of one sample in the token sequence."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from data.geometry import ImageGrid
from models.word_search import find_words


@dataclass(frozen=True, eq=False)
class TokenLayout:
    """Where image, words and prompt of one sample lie in the (left-padded) sequence.

    Positions count from 0 at the first column of the batch, padding included, so they index attention keys directly.
    `text` is the rendered prompt with one placeholder per image, `prompt` the user's own words inside it, beginning at
    character `prompt_start` (blanks over images between the words), and `offsets` the [start, end) characters of `text`
    that each sequence position stands for ((0, 0) for padding). `images` and `grids` follow the order in which the text
    shows the images; `grids` holds None for an image of a family whose grid is not known.
    """

    sample: int
    start: int
    length: int
    text: str
    prompt: str
    prompt_start: int
    offsets: tuple[tuple[int, int], ...] = field(repr=False)
    images: tuple[torch.Tensor, ...] = field(repr=False)
    grids: tuple[ImageGrid | None, ...] = ()

    @property
    def image_positions(self) -> torch.Tensor:
        """Positions of all image tokens, image after image, each in raster order (int64)."""
        return torch.cat(self.images) if self.images else torch.empty(0, dtype=torch.long)

    def word(self, word: str, occurrence: int = 0) -> torch.Tensor:
        """Positions of the tokens that spell `word` in the user's prompt (int64, at least one).

        The word is found by `find_words`, its tokens by character offsets; `occurrence` counts from 0, -1 is the last.
        Raises ValueError when the prompt does not hold the word that often.
        """
        word = word.strip()
        if not word:
            raise ValueError("an empty word was asked for; give a word of the prompt")
        spans = find_words(self.prompt, word)
        if not -len(spans) <= occurrence < len(spans):
            raise ValueError(
                f"word {word!r} (occurrence {occurrence}) is not in the prompt, which holds it {len(spans)} times: "
                f"{self.prompt!r}"
            )
        return self.positions(*spans[occurrence])

    def positions(self, start: int, end: int) -> torch.Tensor:
        """Positions of the tokens that overlap characters [start, end) of the user's prompt (int64)."""
        first, last = self.prompt_start + start, self.prompt_start + end
        return torch.tensor([i for i, (a, b) in enumerate(self.offsets) if a < last and b > first], dtype=torch.long)


def locate(text: str, input_ids: list[int], tokenizer, image_token: str, cells: list[int]) -> list[tuple[int, int]]:
    """Characters of the rendered prompt behind each position of `input_ids`: one [start, end) pair per position.

    The processor repeats the i-th placeholder `cells[i]` times before it tokenises, so its own offsets point into a
    string that nobody has. We tokenise the unexpanded text and let each placeholder stand for its run of positions.
    Raises ValueError where the two disagree, with the first differing position.
    """
    encoded = tokenizer(text, return_offsets_mapping=True)
    image_id = tokenizer.convert_tokens_to_ids(image_token)
    runs = iter(cells)
    expanded, offsets = [], []
    for token, span in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        count = next(runs, 0) if token == image_id else 1
        expanded += [token] * count
        offsets += [tuple(span)] * count
    if expanded != list(input_ids):
        pairs = enumerate(zip(expanded, input_ids, strict=False))
        at = next((i for i, (ours, theirs) in pairs if ours != theirs), min(len(expanded), len(input_ids)))
        raise ValueError(
            f"the processor made {len(input_ids)} tokens and the text accounts for {len(expanded)}; they part at "
            f"position {at}: processor and tokenizer do not belong together, or an image was not resized as expected"
        )
    return offsets
