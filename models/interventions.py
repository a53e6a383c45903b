"""Interventions on attention: the protocol, the three edits of a layer, and their report; the model runs under SDPA.

    class Intervention:
        def plan(self, prompt: PromptBatch) -> {layer: LayerEdit | DeferredEdit}

    model.generate(**inputs, steering=intervention)

`generate` calls `plan` with the facts of the batch (`PromptBatch`) and applies the edits for this call alone. A layer's
edit may depend on the residual stream that enters the layer (`DeferredEdit`). The edits, in the order of application:

    score edit   a function of the scores of some rows, before the softmax
    key bias     a number added to the scores of each key, for all queries or a set of them: softmax(z + log g) is
                 softmax(z) * g, renormalised, for key multipliers g >= 0; SDPA computes it
    row edit     a function of the softmax weights of some rows

Rows of score edits and row edits are recomputed from queries and keys and written over SDPA's output. A trace
recomputes weights through the same `LayerEdit`, so recorded weights are the edited ones.

    report = InterventionReport()
    model.generate(**inputs, steering=intervention, report=report)
    sum_by_layer(report.table())

The report counts the rows of score edits and row edits, and not those of a key bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import torch
from torch.nn.functional import pad
from transformers import PreTrainedModel

from data.errors import InputError, StateError
from models.attention import (
    LOCK,
    STEERING,
    attach,
    attention_stack,
    cut_layers,
    detach,
    is_attached,
    name_attention,
    residual_stream,
)
from models.contrast import WithoutImages
from models.rows import softmax_rows

BLOCK_ELEMENTS = 2**22  # softmax weights of edited rows held at a time


def no_model():
    """`first_logits` and `without_images` of a `PromptBatch` that was made without its model."""
    raise ValueError("this batch has no model to compute logits with")


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """Facts of a batch of prompts and of the decoder that reads it.

    length: positions of the batch, padding included. starts: per sample the first position after the padding.
    images: per sample the positions of its image tokens, of all images in order, int64 [cell], counted from `starts`.
    layers, heads, width: of the decoder.
    grids: returns per sample the (rows, cols) of its images. Raises ValueError for a family without known grids.
    first_logits: returns the logits of the first token after each prompt, [sample, vocabulary], of the model without
    any edit; costs one prefill.
    without_images: returns the prompts without their images, for logits at each step (`models.contrast`).
    """

    length: int
    starts: tuple[int, ...]
    images: tuple[torch.Tensor, ...]
    layers: int
    heads: int
    width: int
    grids: Callable[[], list[list[tuple[int, int]]]]
    first_logits: Callable[[], torch.Tensor] = no_model
    without_images: Callable[[], WithoutImages] = no_model

    def edit_layer(
        self,
        *,
        bias: KeyBias | None = None,
        row_edits: Mapping[int, RowEdit] | None = None,
        score_edits: Mapping[int, ScoreEdit] | None = None,
        counts: Mapping[int, Mapping[str, int]] | None = None,
    ) -> LayerEdit:
        """The edit of one layer for this batch; row edits, score edits and counts are by sample (`LayerEdit`)."""
        return LayerEdit(self.length, self.starts, bias, row_edits or {}, score_edits or {}, counts or {})


@dataclass(frozen=True, eq=False)
class KeyBias:
    """Numbers added to the scores of each key of the prompt; generated keys have 0.

    `values` float32 [sample, key], -inf for a hidden key. `rows` bool [sample, row]: the rows of the prompt that have
    the bias. `generated` bool [sample]: whether the rows of generated tokens have it.
    """

    values: torch.Tensor
    rows: torch.Tensor
    generated: torch.Tensor

    @classmethod
    def from_multipliers(
        cls,
        multipliers: torch.Tensor,
        starts: torch.Tensor,
        rows: torch.Tensor | None = None,
        generated: torch.Tensor | None = None,
    ) -> KeyBias:
        """The bias of key multipliers >= 0, float32 [sample, key]; `starts` [sample] is where padding ends.

        `rows` bool [sample, row] and `generated` bool [sample] as above (default: all). A row that would keep no key
        is left unedited, since a softmax over no key is not defined.
        """
        length = multipliers.shape[1]
        kept = (multipliers > 0) & (torch.arange(length, device=multipliers.device) >= starts[:, None])
        defined = kept.cumsum(1) > 0  # a row attends to the keys up to its own
        generated = torch.ones_like(kept[:, 0]) if generated is None else generated
        return cls(multipliers.log(), defined if rows is None else defined & rows, generated)

    def for_rows(self, sample: int, start: int, positions: torch.Tensor, keys: int) -> torch.Tensor:
        """The bias of some rows of one sample, [row, key]; `positions` [row] and keys count from its token `start`."""
        values = self.values[sample, start : start + keys]
        values = pad(values, (0, keys - len(values)))[None]
        biased = torch.cat([self.rows[sample, start:], self.generated[sample, None]])
        biased = biased[positions.to(biased.device).clamp_max(len(biased) - 1)]
        return torch.where(biased[:, None], values, 0)

    def widen(self, query, key, value, scaling: float):
        """Query, key and value of a whole prompt with the bias in extra head dimensions.

        [q, 1, 1, 0 ...] . [k, b, b', 0 ...] = q . k + (b + b'), with b + b' the bias / scaling and b' what b loses by
        rounding to half precision. A row without the bias has 0 in place of the ones, so hidden keys have the lowest
        finite number instead of -inf; kept keys lose nothing by it. Fast kernels want a width that is a multiple of 8,
        and values as wide as keys.
        """
        width, dtype = query.shape[-1], query.dtype
        target = (0, 2 + -(width + 2) % 8)
        exact = (self.values.to(query.device) / scaling).clamp_min(torch.finfo(dtype).min / 2)
        rounded = exact.to(dtype)
        query, key, value = pad(query, target), pad(key, target), pad(value, target)
        query[..., width : width + 2] = self.rows.to(query.device)[:, None, :, None]
        key[..., width] = rounded[:, None]
        key[..., width + 1] = (exact - rounded.float())[:, None]
        return query, key, value

    def additive_mask(self, mask: torch.Tensor | None, query: torch.Tensor, keys: int) -> torch.Tensor:
        """The bias as an additive mask [sample, 1, 1, key] of one row after the prompt, joined with a bool mask."""
        values = torch.where(self.generated[:, None], self.values, 0)
        bias = pad(values, (0, keys - values.shape[1])).to(query.device, query.dtype)[:, None, None]
        return bias if mask is None else bias.masked_fill(~mask, float("-inf"))


@dataclass(frozen=True, eq=False)
class RowEdit:
    """A change to the softmax rows of one sample, from row `first` on; rows and keys count from its first token.

    `change` maps float32 [head, row, key], rows that sum to 1, to rows of the same shape; keys end with the last one
    that any of the rows attends to.
    """

    first: int
    change: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class ScoreEdit:
    """A change to the scores (query . key * scaling) of one sample, in the rows `first` to `stop` - 1 (None: to the
    last generated one); rows and keys count from its first token.

    `change` maps float32 scores [head, row, key] of these rows to scores of the same shape. The scores of keys after a
    row are hidden later, so their new values have no effect.
    """

    first: int
    change: Callable[[torch.Tensor], torch.Tensor]
    stop: int | None = None

    def covers(self, positions: torch.Tensor) -> torch.Tensor:
        """Mask of the rows at `positions` that are edited, bool [row]."""
        return (positions >= self.first) & (positions < (positions.max() + 1 if self.stop is None else self.stop))

    def edit(self, scores: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Scores [head, row, key] of the rows at `positions` [row], edited where covered."""
        covered = self.covers(positions)
        if covered.all():
            return self.change(scores)
        if covered.any():
            covered = covered.to(scores.device)
            scores[:, covered] = self.change(scores[:, covered])
        return scores


@dataclass(frozen=True, eq=False)
class LayerEdit:
    """The edit of one layer in one `generate` call: score edits, a key bias, row edits, applied in that order.

    `prompt_length` is the number of positions of the prompt, `starts` per sample the first position after the padding.
    `row_edits` and `score_edits` are by sample. `counts` holds per sample numbers for the report, by name. `on_rows` is
    called with the recomputed rows as the model runs.
    """

    prompt_length: int
    starts: tuple[int, ...]
    bias: KeyBias | None = None
    row_edits: Mapping[int, RowEdit] = field(default_factory=dict)
    score_edits: Mapping[int, ScoreEdit] = field(default_factory=dict)
    counts: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    on_rows: RowCallback | None = None

    def attend(self, plain: Callable, query, key, value, mask, scaling: float) -> torch.Tensor:
        """The edited output, [sample, row, head, width]; shapes and mask as in `models.attention.attention`.

        `plain` is SDPA. It is not called where the only row of every sample is recomputed, as in decoding.
        """
        self._check(query, key)
        rows, keys, width = query.shape[2], key.shape[2], value.shape[-1]
        recomputed = {sample: self._recomputed(sample, rows, keys) for sample in {*self.score_edits, *self.row_edits}}
        recomputed = {sample: chosen for sample, chosen in recomputed.items() if chosen}
        if rows == 1 and len(recomputed) == len(self.starts):
            output = query.new_empty(len(query), rows, query.shape[1], width)
        elif self.bias is None:
            output = plain(query, key, value, mask)
        elif rows == 1:
            output = plain(query, key, value, self.bias.additive_mask(mask, query, keys))
        else:
            output = plain(*self.bias.widen(query, key, value, scaling), mask)[..., :width]
        for sample, chosen in recomputed.items():
            real = slice(self.starts[sample], keys - rows + chosen.stop)
            chosen = slice(chosen.start, chosen.stop)
            output[sample, chosen] = self._edited_rows(
                sample, query[sample, :, chosen], key[sample, :, real], value[sample, :, real], scaling
            )
        return output

    def _recomputed(self, sample: int, rows: int, keys: int) -> range:
        """The rows of a sample that an edit needs, as a range of the last `rows` of `keys` positions; may be empty."""
        past = keys - rows - self.starts[sample]  # position of the first row, from the sample's first token
        edits = [edit[sample] for edit in (self.score_edits, self.row_edits) if sample in edit]
        ends = [rows if getattr(edit, "stop", None) is None else min(edit.stop - past, rows) for edit in edits]
        return range(max(min(edit.first for edit in edits) - past, 0), max(ends))

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
            rows = (sample, query[:, begin : begin + step].float(), wide[:, :stop], scaling, positions)
            before = self._without_row_edits(*rows)
            after = self._row_edited(sample, before, positions)
            if self.on_rows is not None:
                if sample in self.score_edits:
                    before = replace(self, score_edits={})._without_row_edits(*rows)
                self.on_rows(sample, before, after)
            blocks.append(weigh(after.to(value.dtype), value[:, :stop]))
        return torch.cat(blocks, 1).transpose(0, 1)

    def recompute_rows(self, sample: int, query, key, scaling: float, positions, live=None) -> torch.Tensor:
        """Edited softmax rows of one sample, float32 [head, row, key]; see `models.rows.softmax_rows`.

        Positions, int64 [row], and keys count from the sample's first token.
        """
        weights = self._without_row_edits(sample, query, key, scaling, positions, live)
        return self._row_edited(sample, weights, positions)

    def _row_edited(self, sample: int, weights: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Softmax rows after the row edit; `weights` are those before it."""
        edit = self.row_edits.get(sample)
        if edit is None:
            return weights
        late = positions >= edit.first
        if late.all():  # no copy, and no wait for a GPU
            return edit.change(weights)
        if late.any():
            weights = weights.clone()  # softmax's backward pass and the report read them
            weights[:, late] = edit.change(weights[:, late])
        return weights

    def _without_row_edits(self, sample: int, query, key, scaling: float, positions, live=None) -> torch.Tensor:
        """Softmax rows with the score edit and the bias, before any row edit; shapes as in `recompute_rows`."""
        edit, bias = self.score_edits.get(sample), None
        if self.bias is not None:
            bias = self.bias.for_rows(sample, self.starts[sample], positions, key.shape[1]).to(query.device)
        change = edit and partial(edit.edit, positions=positions)
        return softmax_rows(query, key, scaling, positions, bias, change, live)


def scale_keys(scores: torch.Tensor, keys: torch.Tensor, factor: float) -> torch.Tensor:
    """Scores [..., key] multiplied by a factor at the positions `keys`, int64 [key], in place."""
    scores[..., keys.to(scores.device)] *= factor
    return scores


def weigh(weights: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Weights [head, row, key] times value [key head, key, width], heads in equal groups: [head, row, width]."""
    grouped = weights.reshape(len(value), -1, weights.shape[-1])
    return torch.bmm(grouped, value).view(*weights.shape[:2], -1)


DeferredEdit = Callable[[torch.Tensor], LayerEdit]
"""Maps the residual stream [sample, row, width] that enters a layer at prefill to the layer's edit."""


class Intervention(Protocol):
    """Settings of an intervention, as `generate(steering=...)` takes them. They hold no state of a generation.

    An intervention may also have a method `logits_processor(prompt)`, which returns a processor of transformers for the
    logits of one call, or None; it is applied before those that are passed to `generate`.
    """

    def plan(self, prompt: PromptBatch) -> Mapping[int, LayerEdit | DeferredEdit]:
        """The edit of each layer, by layer from 0; empty where the settings change nothing.

        Raises ValueError for settings that do not fit the model or the prompt.
        """


@contextmanager
def apply_edits(
    model: PreTrainedModel, edits: Mapping[int, LayerEdit | DeferredEdit], report: InterventionReport | None = None
) -> Iterator[None]:
    """Edit the given layers of the decoder within the block, in this thread alone.

    Without layers nothing is attached to the model. `report` receives the changes. Raises ValueError for anything else
    than a report and for a model whose attention cannot be reached, RuntimeError where this thread edits the model
    already.
    """
    if report is not None and not isinstance(report, InterventionReport):
        raise InputError("not-a-report", f"report is {report!r}; give a new models.interventions.InterventionReport()")
    if not edits:
        yield
        return
    stack, modules = attention_stack(model, "decoder")
    if cut := sorted(cut_layers(stack.config) & edits.keys()):
        raise InputError(
            "steering-window",
            f"layer {cut[0]} of {type(model).__name__} attends in a sliding window, whose cache drops keys that "
            "steering needs; steer layers with full attention only, or record the model without steering",
        )
    if any(is_attached(module, STEERING) for module in modules):
        raise StateError(
            "steered-already",
            "the model is being steered by another generation of this thread; wait until that has ended",
        )
    pending = {layer: edit for layer, edit in edits.items() if not isinstance(edit, LayerEdit)}

    def observed(layer: int, edit: LayerEdit) -> LayerEdit:
        return edit if report is None else report.observe(layer, edit)

    def complete(layer: int, hidden: torch.Tensor) -> None:
        if layer in pending:
            edit = observed(layer, pending.pop(layer)(hidden))
            with LOCK:
                attach(modules[layer], STEERING, edit)

    def restore() -> None:
        with LOCK:
            for layer in edits:
                detach(modules[layer], STEERING)
            name_attention(stack, modules)

    # None reserves a layer until its residual stream is known.
    known = {layer: None if layer in pending else observed(layer, edit) for layer, edit in edits.items()}
    with ExitStack() as scope:
        with LOCK:
            for layer, edit in known.items():
                attach(modules[layer], STEERING, edit)
            name_attention(stack, modules)
        scope.callback(restore)
        if pending:
            scope.enter_context(residual_stream(model, complete))
        yield


RowCallback = Callable[[int, torch.Tensor, torch.Tensor], None]
"""Called with (sample, rows before, rows after), float32 [head, row, key], for each block of edited rows."""


class InterventionReport:
    """Report of one `generate` call: counts of each sample and edited layer, and the changed heads and rows."""

    def __init__(self) -> None:
        self._edits: dict[int, LayerEdit] = {}
        # (layer, sample): (number of keys, bool [head, row]) of each block of rows
        self._changed: dict[tuple[int, int], list[tuple[int, torch.Tensor]]] = {}

    def observe(self, layer: int, edit: LayerEdit) -> LayerEdit:
        """The edit of a layer, with this report attached. Raises RuntimeError for a report of an earlier call."""
        if layer in self._edits:
            raise StateError(
                "report-used", "this report already holds a generation; give a new InterventionReport to each one"
            )
        self._edits[layer] = edit
        return replace(edit, on_rows=partial(self._record, layer))

    def _record(self, layer: int, sample: int, before: torch.Tensor, after: torch.Tensor) -> None:
        self._changed.setdefault((layer, sample), []).append((before.shape[-1], (before != after).any(-1)))

    def is_biased(self, sample: int) -> bool:
        """True if a key bias changes the score of any key in any row of a sample."""
        biases = {id(edit.bias): edit.bias for edit in self._edits.values() if edit.bias is not None}
        return any(
            bool(bias.values[sample].any() and (bias.rows[sample].any() or bias.generated[sample]))
            for bias in biases.values()
        )

    def changed_rows(self, layer: int, sample: int, steps: int | None = None) -> torch.Tensor:
        """Mask of the rows of each head that differ from the unedited ones: bool [head, row].

        Rows are the edited ones: the prompt's from the edit's first on, then one per decode step, of which the first
        `steps` (default: all). Empty ([0, 0]) where there was no edit.
        """
        blocks = self._changed.get((layer, sample), [])
        if steps is not None and blocks:
            edit = self._edits[layer]
            last = edit.prompt_length - edit.starts[sample] + steps
            blocks = [block for block in blocks if block[0] <= last]
        return torch.cat([rows for _, rows in blocks], 1).cpu() if blocks else torch.zeros(0, 0, dtype=torch.bool)

    def table(self, steps: Sequence[int] | None = None) -> list[dict[str, int]]:
        """One row per edited layer and sample: the edit's counts, and the numbers of heads and rows that changed.

        `heads` are those changed in any row, `rows` those changed in any head, `pairs` are (head, row). Decode rows
        after a sample's end token count, as long as its batch goes on, unless `steps` gives each sample's number.
        """
        table = []
        for layer in sorted(self._edits):
            edit = self._edits[layer]
            for sample in range(len(edit.starts)):
                changed = self.changed_rows(layer, sample, None if steps is None else steps[sample])
                heads, rows, pairs = changed.any(1).sum(), changed.any(0).sum(), changed.sum()
                counts = {"heads": int(heads), "rows": int(rows), "pairs": int(pairs)}
                table.append({"layer": layer, "sample": sample, **edit.counts.get(sample, {}), **counts})
        return table


def sum_by_layer(table: Iterable[Mapping[str, int]]) -> list[dict[str, int]]:
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
