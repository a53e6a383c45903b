"""Several questions about one image packed into one sequence, and attention for training on a CPU.

A sequence is a prefix (such as `<s> user :` and the image tokens) and question-answer segments. A segment attends to
the prefix and to itself, and its positions continue those of the prefix, so the model processes each question as if it
were the only one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

IGNORE = -100  # target without loss
ATTENTION = "tiny-training"  # name of `fast_attention` in transformers; checkpoints do not store it
MIN_SDPA = 256  # queries above which attention without a mask uses SDPA


@dataclass(frozen=True)
class Prefix:
    """Tokens before every question, as a family's chat template renders them, and the tokens around an answer.

    ids: token ids. image: indices of the image tokens. positions: int64 [axis, token], positions of the rotary
    embedding (one axis; three in Qwen). after_question: words between question and answer. end: word after an answer.
    """

    ids: list[int]
    image: list[int]
    positions: torch.Tensor
    after_question: tuple[str, ...]
    end: str


@dataclass(frozen=True)
class Pack:
    """Batch of packed sequences, one per image.

    ids, targets: int64 [image, token]; a target is the next token where it belongs to an answer, else -100. positions:
    int64 [axis, image, token]. mask: additive [image, 1, query, key]. segment: int64 [image, token], 0 for the prefix,
    -1 for padding, questions from 1.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    segment: torch.Tensor
    mask: torch.Tensor

    @property
    def position_ids(self) -> torch.Tensor:
        """Positions in the decoder's format: [axis, image, token], or [image, token] with one axis."""
        return self.positions if len(self.positions) > 1 else self.positions[0]


def pack(prefix: Prefix, questions: list[list[tuple[str, str]]], vocabulary: dict[str, int], pad: int) -> Pack:
    """Pack (question, answer) pairs `questions[image][question]` into one sequence per image."""
    rows = [pack_one(prefix, pairs, vocabulary) for pairs in questions]
    longest = max(len(ids) for ids, *_ in rows)
    ids, targets, segment, after = (
        torch.tensor([values + [padding] * (longest - len(values)) for values in column])
        for column, padding in zip(zip(*rows, strict=True), (pad, IGNORE, -1, 0), strict=True)
    )
    axes, length = prefix.positions.shape
    continued = after[:, length:] + prefix.positions.max() + 1
    positions = torch.cat(
        [prefix.positions[:, None].expand(-1, len(rows), -1), continued.expand(axes, *continued.shape)], dim=2
    )
    return Pack(ids, positions, targets, segment, segment_mask(segment))


def pack_one(prefix: Prefix, pairs: list[tuple[str, str]], vocabulary: dict[str, int]) -> tuple[list[int], ...]:
    """Ids, targets, segments and positions within the segment of the sequence of one image."""
    ids, targets = list(prefix.ids), [IGNORE] * len(prefix.ids)
    segments, positions = [0] * len(prefix.ids), [0] * len(prefix.ids)
    for number, (question, answer) in enumerate(pairs, 1):
        prompt = [vocabulary[word] for word in (*question.split(), *prefix.after_question)]
        reply = [vocabulary[word] for word in (*answer.split(), prefix.end)]
        ids += prompt + reply
        targets += [IGNORE] * (len(prompt) - 1) + reply + [IGNORE]
        segments += [number] * (len(prompt) + len(reply))
        positions += range(len(prompt) + len(reply))
    return ids, targets, segments, positions


def segment_mask(segment: torch.Tensor) -> torch.Tensor:
    """Additive causal mask, bfloat16 [image, 1, query, key]: a query attends to the prefix and to its own segment."""
    query, key = segment[:, :, None], segment[:, None, :]
    visible = ((query == key) | (key == 0)).tril()
    return torch.zeros(visible.shape, dtype=torch.bfloat16).masked_fill(~visible, -1e4)[:, None]


def fast_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """Queries, keys, values [batch, head, token, channel], additive mask or None -> [batch, token, head, channel].

    Plain matrix products in bfloat16, faster on a CPU than SDPA for short sequences; SDPA in float32 for long ones.
    """
    with torch.autocast("cpu", enabled=False):
        if query.shape[2] > MIN_SDPA and attention_mask is None:
            states = (states.float() for states in (query, key, value))
            output = F.scaled_dot_product_attention(*states, scale=scaling)
        else:
            scores = (query.bfloat16() * scaling) @ key.bfloat16().transpose(-1, -2)
            if attention_mask is not None:
                scores = scores + attention_mask
            output = torch.softmax(scores, -1) @ value.bfloat16()
    return output.transpose(1, 2).contiguous().to(value.dtype), None


def register_attention() -> str:
    """Register the attention in transformers and return its name."""
    AttentionInterface.register(ATTENTION, fast_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    return ATTENTION
