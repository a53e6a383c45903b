"""Steering: what one `generate` call does to attention, while the model goes on running under SDPA.

Every intervention is one of three edits of a layer. A key bias is added to the scores of all queries: multiplying
softmax weights by g >= 0 per key and renormalising is adding log g, and SDPA computes that itself. A row edit is a
function of the softmax weights of some rows: those rows are recomputed by hand, edited, and written over SDPA's output.
A scaled row has its scores multiplied before the softmax, which no function of its weights could do; it is written over
likewise. A trace recomputes its weights through the same `Steering`, so it shows them as steered.

Settings of an intervention (`Intervention`) make the `Steering` of each layer out of what they are told of the prompt
(`Prompt`), or, where that takes the residual stream, as soon as the layer is reached (`FromResidual`).

What steering touched: a report that the caller of `generate` hands in, filled as the model runs.

    touched = Touched()
    model.generate(**inputs, steering=var, touched=touched)
    by_layer(touched.table())

It is of row edits and scaled rows; a key bias acts on all rows alike, so there is nothing to count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn.functional import pad
from transformers import PreTrainedModel

from models.attention import (
    LOCK,
    STEERING,
    attach,
    attention_stack,
    detach,
    is_attached,
    name_attention,
    residual_stream,
)
from models.trace import softmax_rows

if TYPE_CHECKING:
    from models.interventions import Steering


BLOCK_ELEMENTS = 2**22  # softmax weights of edited rows held at a time


@dataclass(frozen=True, eq=False)
class Prompt:
    """What settings are told of a batch of prompts, and of the decoder that they are put to.

    `length` counts positions, padding included; `starts` is where each sample's padding ends. `images` holds for each
    sample the positions of its image tokens, of all images in order, int64 [cell], counted from its first token.
    """

    length: int
    starts: tuple[int, ...]
    images: tuple[torch.Tensor, ...]
    layers: int
    heads: int
    width: int


@dataclass(frozen=True, eq=False)
class KeyBias:
    """What is added to the scores of each key of the prompt; keys that come later have 0.

    `values` float32 [sample, key], -inf for a hidden key. `first` int64 [sample]: the first row that keeps a key. Rows
    before it stay as the model makes them, since a softmax over nothing is not defined.
    """

    values: torch.Tensor
    first: torch.Tensor

    @classmethod
    def multiply(cls, multipliers: torch.Tensor, starts: torch.Tensor) -> KeyBias:
        """The bias of key multipliers >= 0, float32 [sample, key]; `starts` [sample] is where padding ends."""
        length = multipliers.shape[1]
        kept = (multipliers > 0) & (torch.arange(length, device=multipliers.device) >= starts[:, None])
        first = torch.where(kept.any(1), kept.int().argmax(1), length)
        return cls(multipliers.log(), first)

    def of(self, sample: int, start: int, positions: torch.Tensor, keys: int) -> torch.Tensor:
        """The bias of some rows of one sample, [row, key]; `positions` [row] and keys count from its token `start`."""
        values = self.values[sample, start : start + keys]
        values = pad(values, (0, keys - len(values)))[None]
        steered = positions.to(values.device) + start >= self.first[sample]
        return torch.where(steered[:, None], values, 0)

    def widen(self, query, key, value, scaling: float):
        """Query, key and value of a whole prompt with the bias in extra head dimensions.

        [q, 1, 1, 0 ...] . [k, b, b', 0 ...] = q . k + (b + b'), with b + b' the bias / scaling and b' what b loses by
        rounding to half precision. A row that keeps no key has 0 in place of the ones, so hidden keys have the lowest
        finite number instead of -inf; kept keys lose nothing by it. Fast kernels want a width that is a multiple of 8,
        and values as wide as keys.
        """
        width, dtype = query.shape[-1], query.dtype
        target = (0, 2 + -(width + 2) % 8)
        exact = (self.values.to(query.device) / scaling).clamp_min(torch.finfo(dtype).min / 2)
        rounded = exact.to(dtype)
        rows = torch.arange(query.shape[2], device=query.device)
        query, key, value = pad(query, target), pad(key, target), pad(value, target)
        query[..., width : width + 2] = (rows >= self.first.to(rows.device)[:, None])[:, None, :, None]
        key[..., width] = rounded[:, None]
        key[..., width + 1] = (exact - rounded.float())[:, None]
        return query, key, value

    def mask(self, mask: torch.Tensor | None, query: torch.Tensor, keys: int) -> torch.Tensor:
        """The bias as an additive mask [sample, 1, 1, key] for one row behind the prompt, joined with a bool mask."""
        bias = pad(self.values, (0, keys - self.values.shape[1])).to(query.device, query.dtype)[:, None, None]
        return bias if mask is None else bias.masked_fill(~mask, float("-inf"))


@dataclass(frozen=True, eq=False)
class RowEdit:
    """A change to the softmax rows of one sample, from row `first` on; rows and keys count from its first token.

    `change` is given float32 [head, row, key], rows that sum to 1, and returns new ones; keys end with the last one
    that any of the rows sees.
    """

    first: int
    change: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class ScaledRow:
    """The scores (query . key * scaling) of row `row` towards the keys `keys`, int64 [key], multiplied by `factor`.

    Of one sample of the prompt; row and keys count from its first token, and no key lies behind the row.
    """

    row: int
    keys: torch.Tensor
    factor: float

    def factors(self, positions: torch.Tensor, keys: int, device: torch.device) -> torch.Tensor | None:
        """What multiplies the scores of the rows at `positions`: [row, key], 1 but in this row; None without it."""
        here = (positions == self.row).nonzero()
        if not len(here):
            return None
        factors = torch.ones(len(positions), keys, device=device)
        factors[here.to(device), self.keys.to(device)] = self.factor
        return factors


@dataclass(frozen=True, eq=False)
class Steering:
    """What is done to one layer in one `generate` call: scaled rows, a key bias, edits of rows, in that order.

    `starts` is where each sample's padding ends, `prompt_length` the number of positions of the prompt; `scaled` and
    `edits` are by sample. `counts` is what was found in each sample, for a run's log; `note` is shown the rows of each
    sample that are written by hand, as the model runs.
    """

    prompt_length: int
    starts: tuple[int, ...]
    bias: KeyBias | None = None
    edits: Mapping[int, RowEdit] = field(default_factory=dict)
    scaled: Mapping[int, ScaledRow] = field(default_factory=dict)
    counts: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    note: Note | None = None

    def attend(self, plain: Callable, query, key, value, mask, scaling: float) -> torch.Tensor:
        """The steered output, [sample, row, head, width]; shapes and mask as in `models.attention.attention`.

        `plain` is SDPA. Where one row of every sample is edited, as in decoding, it need not run.
        """
        self._check(query, key)
        rows, keys, width = query.shape[2], key.shape[2], value.shape[-1]
        if rows == 1 and len(self.edits) == len(self.starts):
            output = query.new_empty(len(query), rows, query.shape[1], width)
        elif self.bias is None:
            output = plain(query, key, value, mask)
        elif rows == 1:
            output = plain(query, key, value, self.bias.mask(mask, query, keys))
        else:
            output = plain(*self.bias.widen(query, key, value, scaling), mask)[..., :width]
        for sample, scaled in self.scaled.items():
            row = scaled.row + self.starts[sample] - (keys - rows)
            if row >= 0:
                stop = keys - rows + row + 1
                real = slice(self.starts[sample], stop)
                output[sample, row : row + 1] = self._scaled_row(
                    sample, query[sample, :, row : row + 1], key[sample, :, real], value[sample, :, real], scaling
                )
        for sample, edit in self.edits.items():
            real = slice(self.starts[sample], None)
            skipped = max(edit.first + self.starts[sample] - (keys - rows), 0)
            if skipped == rows:  # the prompt ends before its first edited row
                continue
            output[sample, skipped:] = self._edited_rows(
                sample, query[sample, :, skipped:], key[sample, :, real], value[sample, :, real], scaling
            )
        return output

    def _check(self, query, key) -> None:
        rows, keys = query.shape[2], key.shape[2]
        prefill, decode = rows == keys == self.prompt_length, rows == 1 and keys > self.prompt_length
        if len(query) != len(self.starts) or not (prefill or decode):
            raise RuntimeError(
                f"{rows} tokens of {len(query)} samples were fed, with {keys} keys, while a prompt of "
                f"{self.prompt_length} tokens and {len(self.starts)} samples is steered; steering needs an empty "
                "default (dynamic) cache, the prompt in one piece, and one token a step"
            )

    def _edited_rows(self, sample: int, query, key, value, scaling: float) -> torch.Tensor:
        """Output of the last rows of one sample, [row, head, width], from query [head, row, width], block by block."""
        heads, count, _ = query.shape
        first = key.shape[1] - count
        wide = key.float()
        step = max(1, BLOCK_ELEMENTS // (heads * key.shape[1]))
        blocks = []
        for begin in range(0, count, step):
            positions = torch.arange(first + begin, first + min(begin + step, count))
            stop = int(positions[-1]) + 1
            rows = query[:, begin : begin + step].float()
            before = self._unedited(sample, rows, wide[:, :stop], scaling, positions)
            after = self.edits[sample].change(before)
            if self.note is not None:
                self.note(sample, before, after)
            blocks.append(weigh(after.to(value.dtype), value[:, :stop]))
        return torch.cat(blocks, 1).transpose(0, 1)

    def _scaled_row(self, sample: int, query, key, value, scaling: float) -> torch.Tensor:
        """Output of a sample's scaled row, [1, head, width], from query [head, 1, width] and the keys that it sees."""
        rows = (sample, query.float(), key.float(), scaling, torch.tensor([key.shape[1] - 1]))
        after = self._unedited(*rows)
        if self.note is not None:
            self.note(sample, replace(self, scaled={})._unedited(*rows), after)
        return weigh(after.to(value.dtype), value).transpose(0, 1)

    def rows(self, sample: int, query, key, scaling: float, positions: torch.Tensor) -> torch.Tensor:
        """Softmax rows of one sample as steered, float32 [head, row, key]; see `models.trace.softmax_rows`.

        Positions and keys count from the sample's first token.
        """
        weights = self._unedited(sample, query, key, scaling, positions)
        edit = self.edits.get(sample)
        late = positions >= (key.shape[1] if edit is None else edit.first)
        if late.all():  # no copy, and no wait for a GPU
            return edit.change(weights)
        if late.any():
            weights[:, late] = edit.change(weights[:, late])
        return weights

    def _unedited(self, sample: int, query, key, scaling: float, positions: torch.Tensor) -> torch.Tensor:
        """Softmax rows, scaled and with the bias; shapes as in `rows`."""
        scaled, bias = self.scaled.get(sample), None
        factors = None if scaled is None else scaled.factors(positions, key.shape[1], query.device)
        if self.bias is not None:
            bias = self.bias.of(sample, self.starts[sample], positions, key.shape[1]).to(query.device)
        return softmax_rows(query, key, scaling, positions, bias, factors)


def weigh(weights: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Weights [head, row, key] times value [key head, key, width], heads in equal groups: [head, row, width]."""
    grouped = weights.reshape(len(value), -1, weights.shape[-1])
    return torch.bmm(grouped, value).view(*weights.shape[:2], -1)


FromResidual = Callable[[torch.Tensor], Steering]
"""Makes a layer's `Steering` of the residual stream [sample, row, width] that enters it at prefill."""


class Intervention(Protocol):
    """Settings that steer: what `generate(steering=...)` takes. They hold no state of any generation."""

    def steering(self, prompt: Prompt) -> Mapping[int, Steering | FromResidual]:
        """What is done to which layers; nothing, where the settings leave the model as it is.

        Raises ValueError for settings that do not fit the model or the prompt.
        """


@contextmanager
def steered(
    model: PreTrainedModel, layers: Mapping[int, Steering | FromResidual], touched: Touched | None = None
) -> Iterator[None]:
    """Steer the given layers of the decoder for the length of the block, in this thread alone.

    No layer leaves the model untouched. `touched` receives what changes. Raises ValueError for one that is no report
    and for a model whose attention cannot be reached, RuntimeError where this thread steers the model already.
    """
    if touched is not None and not isinstance(touched, Touched):
        raise ValueError(f"touched is {touched!r}; give a new models.interventions.Touched(), to be filled")
    if not layers:
        yield
        return
    stack, modules = attention_stack(model, "decoder")
    if any(is_attached(module, STEERING) for module in modules):
        raise RuntimeError("the model is being steered by another generation of this thread; wait until that has ended")
    pending = {layer: steering for layer, steering in layers.items() if not isinstance(steering, Steering)}

    def ready(layer: int, steering: Steering) -> Steering:
        return steering if touched is None else touched.watch(layer, steering)

    def complete(layer: int, hidden: torch.Tensor) -> None:
        if layer in pending:
            steering = ready(layer, pending.pop(layer)(hidden))
            with LOCK:
                attach(modules[layer], STEERING, steering)

    def restore() -> None:
        with LOCK:
            for layer in layers:
                detach(modules[layer], STEERING)
            name_attention(stack, modules)

    # None holds the place of a layer until its residual stream is known.
    known = {layer: None if layer in pending else ready(layer, steering) for layer, steering in layers.items()}
    with ExitStack() as scope:
        with LOCK:
            for layer, steering in known.items():
                attach(modules[layer], STEERING, steering)
            name_attention(stack, modules)
        scope.callback(restore)
        if pending:
            scope.enter_context(residual_stream(model, complete))
        yield


Note = Callable[[int, torch.Tensor, torch.Tensor], None]
"""Called with (sample, rows before, rows after), float32 [head, row, key], for each block of edited rows."""


class Touched:
    """Of one `generate` call: what was found in each sample of each steered layer, and which rows were changed."""

    def __init__(self) -> None:
        self._steering: dict[int, Steering] = {}
        # (layer, sample): (number of keys, bool [head, row]) of each block of rows
        self._changed: dict[tuple[int, int], list[tuple[int, torch.Tensor]]] = {}

    def watch(self, layer: int, steering: Steering) -> Steering:
        """The steering of a layer, reporting here. Raises RuntimeError for a report that holds a call already."""
        if layer in self._steering:
            raise RuntimeError("this report already holds a generation; hand in a new Touched for each one")
        self._steering[layer] = steering
        return replace(steering, note=partial(self._note, layer))

    def _note(self, layer: int, sample: int, before: torch.Tensor, after: torch.Tensor) -> None:
        self._changed.setdefault((layer, sample), []).append((before.shape[-1], (before != after).any(-1)))

    def changed(self, layer: int, sample: int, steps: int | None = None) -> torch.Tensor:
        """Which rows of which heads differ from the unedited ones: bool [head, row].

        Rows are those that the edit was shown: the prompt's from the edit's first on, then one per decode step, of
        which the first `steps` (default: all). Empty ([0, 0]) where there was no edit.
        """
        shown = self._changed.get((layer, sample), [])
        if steps is not None and shown:
            steering = self._steering[layer]
            last = steering.prompt_length - steering.starts[sample] + steps
            shown = [block for block in shown if block[0] <= last]
        return torch.cat([rows for _, rows in shown], 1).cpu() if shown else torch.zeros(0, 0, dtype=torch.bool)

    def table(self, steps: Sequence[int] | None = None) -> list[dict[str, int]]:
        """One row per steered layer and sample: what was found, and how many heads and rows were changed.

        `heads` are those changed in any row, `rows` those changed in any head, `pairs` are (head, row). Decode rows
        after a sample's end token count, as long as its batch goes on, unless `steps` says how many are the sample's.
        """
        found = []
        for layer in sorted(self._steering):
            steering = self._steering[layer]
            for sample in range(len(steering.starts)):
                changed = self.changed(layer, sample, None if steps is None else steps[sample])
                heads, rows, pairs = changed.any(1).sum(), changed.any(0).sum(), changed.sum()
                counts = {"heads": int(heads), "rows": int(rows), "pairs": int(pairs)}
                found.append({"layer": layer, "sample": sample, **steering.counts.get(sample, {}), **counts})
        return found


def by_layer(table: Iterable[Mapping[str, int]]) -> list[dict[str, int]]:
    """Rows of one or many tables added up: one row per layer, with the number of samples and the sum of each count.

    Columns keep the order of the tables.
    """
    sums: dict[int, dict[str, int]] = {}
    for row in table:
        layer = sums.setdefault(row["layer"], {"layer": row["layer"], "samples": 0})
        layer["samples"] += 1
        for name, count in row.items():
            if name not in ("layer", "sample"):
                layer[name] = layer.get(name, 0) + count
    return [sums[layer] for layer in sorted(sums)]
