"""Several questions about one picture in one sequence, so that the picture is read once.

A sequence is a prefix (`<s> user :` and the picture) and question-answer segments. A segment sees the prefix and
itself; its positions continue the prefix's, so to the model each question is the first one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

IGNORE = -100


@dataclass(frozen=True)
class Pack:
    """`ids`, `positions`, `targets` int64 [picture, token]; `targets` holds the next token where it is part of an
    answer, else -100. `mask` is additive [picture, 1, query, key]. `segment` int64 [picture, token]: 0 the prefix,
    -1 padding, then the questions from 1."""

    ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    segment: torch.Tensor
    mask: torch.Tensor


def segment_words(question: str, answer: str) -> tuple[list[str], list[str]]:
    """The words after the picture, as the chat template renders them, and the words to be learnt."""
    return [*question.split(), "assistant", ":"], [*answer.split(), "</s>"]


def pack(prefix: list[int], asked: list[list[tuple[str, str]]], vocabulary: dict[str, int], pad: int) -> Pack:
    """`prefix` token ids shared by all; `asked[picture]` its (question, answer) pairs."""
    rows = [pack_one(prefix, pairs, vocabulary) for pairs in asked]
    longest = max(len(ids) for ids, *_ in rows)
    fill = (pad, 0, IGNORE, -1)
    columns = zip(*rows, strict=True)
    padded = [
        torch.tensor([values + [filler] * (longest - len(values)) for values in column])
        for column, filler in zip(columns, fill, strict=True)
    ]
    ids, positions, targets, segment = padded
    return Pack(ids, positions, targets, segment, segment_mask(segment))


def pack_one(prefix: list[int], pairs: list[tuple[str, str]], vocabulary: dict[str, int]) -> tuple[list[int], ...]:
    """Ids, positions, targets, segments of one picture's sequence."""
    ids, positions = list(prefix), list(range(len(prefix)))
    targets, segments = [IGNORE] * len(prefix), [0] * len(prefix)
    for number, (question, answer) in enumerate(pairs, 1):
        said, learnt = ([vocabulary[word] for word in words] for words in segment_words(question, answer))
        ids += said + learnt
        positions += range(len(prefix), len(prefix) + len(said) + len(learnt))
        targets += [IGNORE] * (len(said) - 1) + learnt + [IGNORE]
        segments += [number] * (len(said) + len(learnt))
    return ids, positions, targets, segments


def segment_mask(segment: torch.Tensor) -> torch.Tensor:
    """Additive bfloat16 [picture, 1, query, key]: causal, and only the prefix and the query's own segment."""
    query, key = segment[:, :, None], segment[:, None, :]
    seen = ((query == key) | (key == 0)).tril()
    return torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill(~seen, -1e4)[:, None]
