"""Positions of the image tokens, words and prompt of one sample in the token sequence.

`find_words` finds whole words of a text, ignoring case and Unicode normal form: text and phrase are compared after
compatibility decomposition (NFKD, Unicode Standard Annex 15) and case folding, so that a precomposed letter equals its
decomposed form and a full-width letter the ordinary one. A match must not begin or end between two letters, digits or
underscores, nor before a combining mark. Scripts that are written without blanks between words have no such boundaries:
next to one of their characters a match may begin or end anywhere but before a combining mark.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field

import torch

from data.errors import InputError
from data.geometry import ImageGrid


@dataclass(frozen=True, eq=False)
class TokenLayout:
    """Positions of image, words and prompt of one sample in the (left-padded) sequence.

    Positions count from 0 at the first column of the batch, padding included, so they index attention keys directly.
    `text` is the rendered prompt with one placeholder per image, `prompt` the user's prompt inside it, from character
    `prompt_start` on (blanks over images between the words), and `offsets` the [start, end) characters of `text` of
    each sequence position ((0, 0) for padding). `images` and `grids` follow the order of the images in the text;
    `grids` holds None for an image of a family whose grid is unknown.
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
        """Positions of all image tokens, image by image, each in raster order (int64)."""
        return torch.cat(self.images) if self.images else torch.empty(0, dtype=torch.long)

    def word(self, word: str, occurrence: int = 0) -> torch.Tensor:
        """Positions of the tokens that spell `word` in the user's prompt (int64, at least one).

        The word is found by `find_words`, its tokens by character offsets; `occurrence` counts from 0, -1 is the last.
        Raises ValueError if the prompt has fewer occurrences.
        """
        word = word.strip()
        if not word:
            raise InputError("empty-word", "an empty word was asked for; give a word of the prompt")
        spans = find_words(self.prompt, word)
        if not -len(spans) <= occurrence < len(spans):
            raise InputError(
                "word-not-in-prompt",
                f"word {word!r} (occurrence {occurrence}) is not in the prompt, which holds it {len(spans)} times: "
                f"{self.prompt!r}",
            )
        return self.positions(*spans[occurrence])

    def positions(self, start: int, end: int) -> torch.Tensor:
        """Positions of the tokens that overlap characters [start, end) of the user's prompt (int64)."""
        first, last = self.prompt_start + start, self.prompt_start + end
        return torch.tensor([i for i, (a, b) in enumerate(self.offsets) if a < last and b > first], dtype=torch.long)


def locate(text: str, input_ids: list[int], tokenizer, image_token: str, cells: list[int]) -> list[tuple[int, int]]:
    """Characters of the rendered prompt of each position of `input_ids`: one [start, end) pair per position.

    The processor repeats the i-th placeholder `cells[i]` times before tokenisation, so its offsets refer to an expanded
    string that it does not return. This function tokenises the unexpanded text and maps each placeholder to its run of
    positions. Raises ValueError with the first differing position if the two disagree.
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
        raise InputError(
            "tokens-do-not-fit",
            f"the processor made {len(input_ids)} tokens and the text accounts for {len(expanded)}; they part at "
            f"position {at}: processor and tokenizer do not belong together, or an image was not resized as expected",
        )
    return offsets


# First word of the Unicode names of characters of scripts that are written without blanks between words.
WITHOUT_BLANKS = {
    "CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR",
}  # fmt: skip


def find_words(text: str, phrase: str, plural: bool = False) -> list[tuple[int, int]]:
    """[start, end) in characters of `text` of every occurrence of `phrase`, from left to right, without overlap.

    Blanks between the words of the phrase match any run of blanks. With `plural` an -s or -es may follow the phrase.
    """
    plain, origin = _decompose(text)
    words = r"\s+".join(re.escape(_decompose(word)[0]) for word in phrase.split())
    pattern = re.compile(words + "(?:e?s)?" * plural)
    spans, position = [], 0
    while words and (match := pattern.search(plain, position)):
        first, last = match.span()
        whole = _is_boundary(plain, first) and _is_boundary(plain, last)
        if whole:
            spans.append((origin[first], origin[last - 1] + 1))
        position = last if whole else first + 1
    return spans


def _decompose(text: str) -> tuple[str, list[int]]:
    """The text in NFKD with case folded, and the index in `text` of the source of each of its characters."""
    pairs = [
        (decomposed, index)
        for index, character in enumerate(text)
        for decomposed in unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
    ]
    start = 0
    while start < len(pairs):  # canonical order: marks of one letter are sorted by class (stable)
        end = start + 1
        while end < len(pairs) and unicodedata.combining(pairs[end][0]):
            end += 1
        pairs[start + 1 : end] = sorted(pairs[start + 1 : end], key=lambda pair: unicodedata.combining(pair[0]))
        start = end
    return "".join(character for character, _ in pairs), [index for _, index in pairs]


def _is_boundary(text: str, position: int) -> bool:
    """Return whether a word may begin or end between the characters before and at `position` of a decomposed text."""
    if not 0 < position < len(text):
        return True
    before, after = text[position - 1], text[position]
    if unicodedata.category(after).startswith("M"):
        return False
    if not (_continues_word(before) and _continues_word(after)):
        return True
    return _is_without_blanks(before) or _is_without_blanks(after)


def _continues_word(character: str) -> bool:
    return character.isalnum() or character == "_" or unicodedata.category(character).startswith("M")


def _is_without_blanks(character: str) -> bool:
    return unicodedata.name(character, "").split(" ")[0] in WITHOUT_BLANKS
