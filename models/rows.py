"""Rows of attention: the key interval that each query row attends to, read from a mask, and the softmax over it.

A decoder layer's row attends to one interval of keys [first, last]: causal (from the first token to the row itself), a
sliding window or a chunk (the first key moves), a prefix or an image block that is attended to in both directions (the
last key lies after the row). A mask with holes has no such interval and is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn.functional import pad

MASK_ELEMENTS = 2**26  # mask elements read at a time; limits the copies of a long mask
MEMO = "sightline_intervals"  # attribute of a mask tensor: its intervals, since many layers share one mask


@dataclass(frozen=True, eq=False)
class KeyIntervals:
    """First and last key that each row attends to, int64 [sample or 1, row] on the CPU; without keys, last is -1.

    Keys count from the first key of the mask; the mask's rows are those of the last positions.
    """

    first: torch.Tensor
    last: torch.Tensor

    @cached_property
    def start(self) -> torch.Tensor:
        """First token after the padding on the left in the mask of a prompt, int64 [sample or 1].

        The last row's first key is followed to the row of that key, and so on, to a row that begins with itself.
        """
        start = torch.full((len(self.first),), self.first.shape[1] - 1)
        while not torch.equal(start, further := self.first.gather(1, start[:, None])[:, 0].minimum(start)):
            start = further
        return start

    @cached_property
    def causal(self) -> bool:
        """Return whether every row after the padding attends to all keys from `start` to its own position."""
        rows = torch.arange(self.first.shape[1])
        real = rows >= self.start[:, None]
        right = (self.first == self.start[:, None]) & (self.last == rows)
        return bool((right | ~real).all())

    def of(self, sample: int, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """First and last keys of some rows of one sample, int64 [row] each."""
        sample = min(sample, len(self.first) - 1)
        return self.first[sample, rows], self.last[sample, rows]


def read_intervals(mask: torch.Tensor | None, rows: int, keys: int, causal: bool) -> KeyIntervals:
    """Intervals of the rows of a mask, bool [sample or 1, head or 1, row, key], or of a call without one.

    Without a mask, SDPA is causal if `causal` and there are several rows, and attends to all keys otherwise. Raises
    ValueError, with the fault as the end of a sentence, for a mask of another kind, one that differs between heads and
    one with holes; padding rows on the left are ignored, since transformers fills them in several ways.
    """
    if mask is None:
        last = torch.arange(rows) if causal and rows > 1 else torch.full((rows,), keys - 1)
        return KeyIntervals(torch.zeros(1, rows, dtype=torch.long), last[None])
    if hasattr(mask, MEMO):
        return getattr(mask, MEMO)
    if mask.dtype != torch.bool or mask.shape[2:] != (rows, keys):
        raise ValueError(f"is {mask.dtype} of {tuple(mask.shape[2:])}, not of true and false for {rows} x {keys}")
    if mask.shape[1] > 1 and (mask != mask[:, :1]).any():
        raise ValueError("differs between heads")
    step = max(1, MASK_ELEMENTS // (len(mask) * keys))
    parts = [_ends(mask[:, 0, first : first + step]) for first in range(0, rows, step)]
    first, last, count = (torch.cat(part, 1).cpu() for part in zip(*parts, strict=True))
    intervals = KeyIntervals(torch.where(count > 0, first, 0), torch.where(count > 0, last, -1))
    holes = (count > 0) & (count != last - first + 1)
    if rows > 1:
        holes &= torch.arange(rows) >= intervals.start[:, None]
    if holes.any():
        sample, row = holes.nonzero()[0].tolist()
        raise ValueError(f"has holes (row {row} of sample {sample} skips keys between its first and last one)")
    setattr(mask, MEMO, intervals)
    return intervals


def _ends(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """First and last true key of each row of a mask [sample, row, key], and the number of true keys; int64."""
    number = mask.to(torch.int8)  # argmax is not defined for bool
    last = mask.shape[-1] - 1 - number.flip(-1).argmax(-1)
    return number.argmax(-1), last, mask.sum(-1)


def softmax_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    scaling: float,
    last: torch.Tensor | None,
    bias: torch.Tensor | None = None,
    change: Callable[[torch.Tensor], torch.Tensor] | None = None,
    live: torch.Tensor | None = None,
    *,
    first: torch.Tensor | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(change(cap(scaling * query key^T)) + bias), float32 [head, row, key].

    query [head, row, width] and key [key head, key, width] in float32; heads are groups of equal size over the key
    heads (grouped-query attention), which are never repeated. `first` and `last` [row] are the first and the last key
    that each row attends to (None: all of them); `bias` [row, key] is the same for all heads (None: 0); `change` maps
    scores [head, row, key] to scores, and may write into them (None: unchanged). `live` [head, row] is added to the
    scores of each row towards its last key, before the change (None: 0). `softcap` c: cap(z) = c tanh(z / c) (Gemma 2,
    arXiv 2408.00118, section 2). `sinks` [head]: the logit of a key without a value (gpt-oss,
    arXiv 2508.10925, section 2), so that rows sum to less than 1.
    """
    if first is not None and change is None and len(first) and (skipped := int(first.min())):
        bias = None if bias is None else bias[:, skipped:]
        options = {"first": first - skipped, "softcap": softcap, "sinks": sinks}
        last = None if last is None else last - skipped
        return pad(softmax_rows(query, key[:, skipped:], scaling, last, bias, None, live, **options), (skipped, 0))
    heads, rows, width = query.shape
    grouped = (query * scaling).reshape(key.shape[0], -1, width)
    scores = torch.bmm(grouped, key.transpose(1, 2)).view(heads, rows, key.shape[1])
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    if live is not None:
        scores[:, torch.arange(rows), last] += live
    if change is not None:
        scores = change(scores)
    if bias is not None:
        scores += bias
    hide_outside(scores, first, last)
    if sinks is None:
        return scores.softmax(-1)
    column = sinks.to(scores)[:, None, None].expand(-1, rows, 1)
    return torch.cat([scores, column], -1).softmax(-1)[:, :, :-1]


def hide_outside(scores: torch.Tensor, first: torch.Tensor | None, last: torch.Tensor | None) -> None:
    """Set the scores [head, row, key] of keys outside each row's interval to -inf, in place."""
    keys = scores.shape[2]
    if last is not None:
        # Every row attends to the keys up to the smallest last one; only later columns need the mask.
        free = int(last.min()) + 1
        hidden = torch.arange(free, keys) > last[:, None]
        scores[:, :, free:].masked_fill_(hidden.to(scores.device), float("-inf"))
    if first is not None and (latest := int(first.max())):
        hidden = torch.arange(latest) < first[:, None]
        scores[:, :, :latest].masked_fill_(hidden.to(scores.device), float("-inf"))
