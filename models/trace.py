"""Recorded attention: queries are stored during generation, and weights are recomputed on demand.

An attention row is the softmax of one query over the keys. The KV cache holds the keys, so each layer's post-rotary
queries, O(T) numbers, suffice to recompute any row of any head exactly; the T x T matrices are never stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from data.errors import InputError, PositionError, StateError
from models.attention import STEERING, Formula, Offload, attached, layer_calls, listening, plain_attention
from models.layer_inputs import LayerInputs
from models.rows import KeyIntervals, read_intervals, softmax_rows

BLOCK_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}  # attention weights per block; on a CPU it fits the cache
BLOCK_ROWS = 64  # enough rows per block to make up for reading all keys


@dataclass(eq=False)
class Recorded:
    """Recorded tensors of one layer. Queries [sample, head, row, width]; `key` [sample, key head, key, width].

    `rows` are the prompt's positions whose queries `prompt` holds, int64 [row], ascending; None for all. `answer` holds
    the queries of the decode steps, one row each until they are joined, and `spans` for each step the intervals of its
    mask (None: all keys), the keys that its cache had dropped and those that it held. `key` and `value` (of the same
    shape, None in a trace without values) are shared with the KV cache; once the cache of a sliding layer drops keys,
    `late` holds the keys and values of further steps, until they are joined to the layer's own.
    """

    prompt: torch.Tensor
    rows: torch.Tensor | None
    key: torch.Tensor
    formula: Formula
    intervals: KeyIntervals  # of the prompt
    edit: object | None  # of the layer, a `models.interventions.LayerEdit`
    device: torch.device  # device of the layer
    answer: list[torch.Tensor] = field(default_factory=list)
    value: torch.Tensor | None = None
    spans: list[tuple[KeyIntervals | None, int, int]] = field(default_factory=list)
    late: list[tuple[torch.Tensor, torch.Tensor | None]] = field(default_factory=list)
    cached: int = 0  # keys of the layer's cache at the last step

    @property
    def scaling(self) -> float:
        """Factor of the scores."""
        return self.formula.scaling

    @property
    def length(self) -> int:
        """Number of recorded keys."""
        return self.key.shape[2] + len(self.late)

    def append(self, query: torch.Tensor, key: torch.Tensor, value, intervals: KeyIntervals | None) -> None:
        """Store one decode step: its query, its new key and value, and the intervals of its mask."""
        dropped, self.cached = self.length + 1 - key.shape[2], key.shape[2]
        self.answer.append(query)
        if dropped or self.late:
            self.late.append((key[:, :, -1:], None if value is None else value[:, :, -1:]))
        else:
            self.key, self.value = key, value
        self.spans.append((intervals, dropped, self.cached))

    def join(self) -> None:
        """Join late keys and values to the layer's own."""
        if self.late:
            keys, values = zip(*self.late, strict=True)
            self.key = torch.cat([self.key, *keys], 2)
            self.value = None if self.value is None else torch.cat([self.value, *values], 2)
            self.late.clear()

    def ends(self, sample: int, rows: torch.Tensor, prompt_length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """First and last key that the rows at these positions of one sample attend to, int64 [row] each."""
        early = rows < prompt_length
        if early.all():
            return self.intervals.of(sample, rows)
        ends = torch.empty(2, len(rows), dtype=torch.long)
        ends[0, early], ends[1, early] = self.intervals.of(sample, rows[early])
        late = [self._span(sample, step) for step in (rows[~early] - prompt_length).tolist()]
        ends[:, ~early] = torch.tensor(late).T
        return ends[0], ends[1]

    def _span(self, sample: int, step: int) -> tuple[int, int]:
        """First and last key that one decode step of one sample attends to."""
        intervals, dropped, held = self.spans[step]
        if intervals is None:
            return dropped, dropped + held - 1
        first, last = intervals.of(sample, torch.tensor([-1]))
        return dropped + int(first), dropped + int(last)

    def queries(self, sample: int, rows: torch.Tensor, prompt_length: int) -> torch.Tensor:
        """Recorded queries [head, row, width] of one sample at the given positions, int64 [row]."""
        late = rows >= prompt_length
        place = self.places(rows[~late])
        prompt = self.prompt[sample]
        if not late.any():
            first, count = int(place[0]), len(place)
            run = bool((place == torch.arange(first, first + count)).all())
            return prompt[:, first : first + count] if run else prompt[:, place]
        if len(self.answer) > 1:
            self.answer[:] = [torch.cat(self.answer, 2)]
        taken = prompt.new_empty(prompt.shape[0], len(rows), prompt.shape[2])
        taken[:, ~late] = prompt[:, place]
        taken[:, late] = self.answer[0][sample][:, rows[late] - prompt_length].to(prompt.device)
        return taken

    def places(self, rows: torch.Tensor) -> torch.Tensor:
        """Indices into `prompt` of the queries of these positions. Raises IndexError for unrecorded positions."""
        if self.rows is None or not len(rows):
            return rows
        if missing := sorted(set(rows.tolist()) - set(self.rows.tolist())):
            raise PositionError(
                "row-not-kept",
                f"the query of position {missing[0]} was not kept: this trace was told to keep {len(self.rows)} rows "
                "of the prompt and those of the answer; name it in AttentionTrace(rows=...) or leave `rows` out",
            )
        return torch.searchsorted(self.rows, rows)


class AttentionTrace:
    """Records one forward pass or one `generate` call of a model's decoder, which runs under SDPA.

        with AttentionTrace(model) as trace:
            model.generate(**inputs)
        trace.weights(layer=5, queries=[40, 41])        # float32 [sample, head, query, key]

    Weights are those that the model used, with the edits of a steered generation. `layers` and `rows` limit what is
    recorded: layers counted from 0, and positions of the prompt, in the forms that `weights` accepts (the rows of
    generated tokens are always recorded). `offload` moves the prompt's queries to the CPU during the prefill, and keys
    and the answer's queries when the block ends; weights are still computed on the model's device, one layer at a time.
    `values` also keeps the values, for value-weighted maps. `gradients` keeps what `models.gradients` needs besides:
    "answer" for the attention weights of the rows that predict the answer's tokens, "all" for those of all rows, which
    are the inputs of all layers, as large as the queries.
    Positions count from 0 at the first column of the batch, padding included. Raises IndexError for layers and rows
    that do not exist.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        offload: bool = False,
        layers: Iterable[int] | None = None,
        rows: Iterable[int] | slice | None = None,
        values: bool = False,
        gradients: Literal["answer", "all"] | None = None,
    ):
        if gradients not in (None, "answer", "all"):
            raise ValueError(f"gradients={gradients!r} is unknown; give 'answer', 'all' or None")
        self.model, self.offload = model, offload
        self.values = values or gradients is not None
        self.inputs = None if gradients is None else LayerInputs(every_row=gradients == "all")
        self.layers = 0
        self.start: torch.Tensor | None = None  # int64 [sample]: position of the first token that is not padding
        self.prompt_length = 0
        self._latest: int | None = None  # the layer that attended last
        self._layers, self._rows = layers, rows if rows is None or isinstance(rows, slice) else list(rows)
        self._kept: frozenset[int] = frozenset()
        self._recorded: dict[int, Recorded] = {}
        self._moved = Offload()
        self._scope = ExitStack()

    def __enter__(self) -> AttentionTrace:
        if self.layers:
            raise StateError("trace-used", "this trace was used before; open a new AttentionTrace for each generation")
        with ExitStack() as scope:
            count = scope.enter_context(listening(self.model, "decoder", self._listen))
            chosen = slice(None) if self._layers is None else list(self._layers)
            self._kept = frozenset(indices_of(chosen, count, "layer").tolist())
            if not self._kept:
                raise InputError(
                    "no-layer-kept", "this trace was told to keep no layer; leave `layers` out to keep all"
                )
            if self.inputs is not None:
                scope.enter_context(layer_calls(self.model, self.inputs.add))
            self.layers = count
            self._scope = scope.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._scope.close()
        if self.offload:
            for recorded in self._recorded.values():
                recorded.join()
                recorded.key = recorded.key.cpu()
                recorded.value = None if recorded.value is None else recorded.value.cpu()
                recorded.answer[:] = [torch.cat(recorded.answer, 2).cpu()] if recorded.answer else []

    def _listen(self, layer: int, module: nn.Module, query, key, value, mask, formula: Formula) -> None:
        twice, self._latest = layer == self._latest and self.layers > 1, layer
        if layer not in self._kept:
            return
        recorded = self._recorded.get(layer)
        self._check_step(layer, recorded, query.shape[2], key.shape[2], twice)
        held = value.detach() if self.values else None
        if recorded is not None:
            intervals = None if mask is None else intervals_of(layer, module, query, key, mask)
            recorded.append(query.detach(), key.detach(), held, intervals)
            return
        intervals = intervals_of(layer, module, query, key, mask)
        self.prompt_length = query.shape[2]
        self._find_start(layer, intervals, len(query))
        rows = None if self._rows is None else indices_of(self._rows, self.prompt_length, "query").unique()
        kept = self._keep(query if rows is None else query[:, :, rows.to(query.device)])
        edit = attached(module, STEERING)
        if self.inputs is not None:
            self._check_gradients(layer, edit, formula, intervals)
        self._recorded[layer] = Recorded(kept, rows, key.detach(), formula, intervals, edit, query.device, value=held)

    def _find_start(self, layer: int, intervals: KeyIntervals, samples: int) -> None:
        """Set `start` from the prompt's intervals of a layer; layers whose rows begin later (chunks) do not move it.

        Raises ValueError for a token after `start` that does not attend to itself: padding on the right, or padding
        that differs between layers.
        """
        start = intervals.start.expand(samples)
        moved = self.start is not None and bool((start < self.start).any())
        self.start = start if self.start is None else start.minimum(self.start)
        earlier = [recorded.intervals for recorded in self._recorded.values()] if moved else []
        rows = torch.arange(self.prompt_length)
        if any(((rows >= self.start[:, None]) & (other.last < rows)).any() for other in (intervals, *earlier)):
            raise InputError(
                "padding",
                f"the attention mask of layer {layer} hides a token from itself (padding on the right, or other "
                "padding than in an earlier layer), so weights cannot be recomputed; give padding on the left "
                "(processor.tokenizer.padding_side = 'left') and no 4-D mask",
            )

    def _check_step(self, layer: int, recorded: Recorded | None, rows: int, keys: int, twice: bool) -> None:
        """Raise an error unless a layer sees a whole prompt, or then one new token and its cache.

        The cache holds all keys, or those of a sliding window: never fewer than at the step before.
        """
        cached = 0 if recorded is None else recorded.length
        if recorded is None and keys == rows:
            return
        if recorded is not None and rows == 1 and recorded.cached <= keys <= cached + 1 and keys > 1:
            return
        if cached and keys == rows and twice:
            raise InputError(
                "attends-twice",
                f"layer {layer} attends twice in one forward pass (differential attention), so its weights are not one "
                "softmax of queries and keys and cannot be recorded",
            )
        if cached and keys == rows:
            raise StateError(
                "generation-recorded", "this trace already holds a generation; open a new AttentionTrace for each one"
            )
        raise StateError(
            "cache-not-empty",
            f"layer {layer} was shown {keys} keys for {rows} new tokens after {cached} recorded; recording needs an "
            "empty default (dynamic) cache, the prompt in one piece, and one token a step",
        )

    def _check_gradients(self, layer: int, edit, formula: Formula, intervals: KeyIntervals) -> None:
        """Raise an error for a layer that `models.gradients` cannot replay."""
        if not formula.is_softmax or not intervals.causal:
            raise InputError(
                "gradients-not-causal",
                f"layer {layer} does not attend to all keys up to each row by a plain softmax (a window, attention in "
                "both directions, a soft cap or a sink logit), so its gradients cannot be computed; record without "
                "gradients",
            )
        if edit is not None and self.inputs.every_row:
            raise ValueError(
                "gradients of all rows cannot be recorded under steering, since edited prompt rows are not "
                "differentiable; record gradients='answer' (the gradient map), or generate without steering"
            )

    def _keep(self, query: torch.Tensor) -> torch.Tensor:
        return self._moved.take(query.detach()) if self.offload else query.detach()

    @property
    def length(self) -> int:
        """Number of input positions of the model: the prompt and every generated token but the last."""
        return self._any().length

    @property
    def samples(self) -> int:
        """Size of the recorded batch."""
        return self._any().prompt.shape[0]

    @property
    def heads(self) -> int:
        """Number of query heads of a layer."""
        return self._any().prompt.shape[1]

    def device(self, layer: int) -> torch.device:
        """Device on which the weights of a layer are computed: the layer's own."""
        return self._of(layer).device

    def _any(self) -> Recorded:
        if not self._recorded:
            raise StateError(
                "nothing-recorded",
                "nothing was recorded: run the model in this thread, inside `with AttentionTrace(model) as trace:`",
            )
        if missing := sorted(self._kept - self._recorded.keys()):
            raise StateError(
                "layer-not-recorded",
                f"layer {missing[0]} was not recorded: the run stopped before it, or its attention does not go through "
                "transformers' attention interface",
            )
        return next(iter(self._recorded.values()))

    def _of(self, layer: int) -> Recorded:
        self._any()
        layer = index_of(layer, self.layers, "layer")
        if layer not in self._recorded:
            raise PositionError(
                "layer-not-kept", f"layer {layer} was not kept: this trace was told to keep {sorted(self._kept)}"
            )
        self._recorded[layer].join()
        return self._recorded[layer]

    def weights(self, layer: int, queries, heads=None, samples=None) -> torch.Tensor:
        """Attention weights, float32 [sample, head, query, key]; keys outside a row's interval and padding are 0.

        Each row sums to 1, less the weight of the layer's sink logit where it has one (gpt-oss).

        `layer` counts from 0. `queries` are positions (int, sequence, tensor or slice), the same for every sample;
        `heads` and `samples` select in the given order (default all). Raises IndexError for an index that does not
        exist or was not recorded, ValueError for a query that is padding.
        """
        recorded = self._of(layer)
        rows = indices_of(queries, self.length, "query")
        picked = indices_of(slice(None) if heads is None else heads, self.heads, "head")
        chosen = indices_of(slice(None) if samples is None else samples, self.samples, "sample")
        every = slice(0, self.heads)
        out = torch.zeros(len(chosen), len(picked), len(rows), self.length, device=recorded.device)
        for place, sample in enumerate(chosen.tolist()):
            begin = int(self.start[sample])
            if (rows < begin).any():
                raise InputError(
                    "padding",
                    f"position {int(rows.min())} of sample {sample} is padding; its first token is at position {begin}",
                )
            if len(rows):
                scores = self._softmax(recorded, sample, recorded.key[sample].to(recorded.device), rows, every)
                out[place, :, :, begin : begin + scores.shape[-1]] = scores[picked]
        return out

    def blocks(
        self, layer: int, sample: int, first: int, last: int, *, apart: bool = True, elements: int | None = None
    ) -> Iterator[tuple[range, torch.Tensor]]:
        """Weights of the query rows [first, last) of one sample, block by block: (rows, float32 [head, row, key]).

        Use it for whole matrices. Keys run from the sample's first token (`start[sample]`) to the last one that the
        block's rows attend to, so blocks above the diagonal are not computed. A block holds at most `elements` weights,
        or one row (default: BLOCK_ELEMENTS, or the size of BLOCK_ROWS rows of one head). For long rows a block holds
        fewer heads rather than fewer rows, and the same rows follow with the next heads, except with apart=False or if
        an edit of rows needs all heads. Raises IndexError for rows that do not exist or were not recorded.
        """
        recorded = self._of(layer)
        begin = int(self.start[index_of(sample, self.samples, "sample")])
        if not begin <= first < last <= self.length:
            raise PositionError(
                "no-such-row",
                f"rows [{first}, {last}) of sample {sample} do not exist; it has [{begin}, {self.length})",
            )
        keys = last - begin
        usual = BLOCK_ELEMENTS.get(recorded.device.type, BLOCK_ELEMENTS["cpu"])
        elements = elements or max(usual, BLOCK_ROWS * keys)
        whole = not apart or (recorded.edit is not None and sample in recorded.edit.row_edits)
        most = self.heads if whole else max(1, elements // (BLOCK_ROWS * keys))
        heads = together(self.heads, self.heads // recorded.key.shape[1], most)
        step = max(1, elements // (heads * keys))
        key = recorded.key[sample].to(recorded.device)  # one transfer of offloaded keys
        for row in range(first, last, step):
            rows = range(row, min(row + step, last))
            for head in range(0, self.heads, heads):
                group = slice(head, min(head + heads, self.heads))
                yield rows, self._softmax(recorded, sample, key, torch.arange(rows.start, rows.stop), group)

    def _softmax(self, recorded: Recorded, sample: int, key, rows: torch.Tensor, heads: slice) -> torch.Tensor:
        """Softmax rows [head, row, key] of some heads over the sample's keys, to the last one that a row attends to.

        key [key head, key, width]: all of the sample's. An edit of rows needs all heads.
        """
        self._moved.wait()
        begin, formula = int(self.start[sample]), recorded.formula
        first, last = recorded.ends(sample, rows, self.prompt_length)
        if (last < first).any():
            row = int(rows[last < first][0])
            raise InputError("padding", f"row {row} of sample {sample} attends to no key: it is padding")
        shared = self.heads // len(key)
        query = recorded.queries(sample, rows, self.prompt_length)[heads].to(recorded.device).float()
        key = key[heads.start // shared : -(-heads.stop // shared), begin : int(last.max()) + 1].float()
        if recorded.edit is not None:
            return recorded.edit.recompute_rows(sample, query, key, formula.scaling, rows - begin)
        sinks = None if formula.sinks is None else formula.sinks[heads]
        return softmax_rows(
            query, key, formula.scaling, last - begin, first=first - begin, softcap=formula.softcap, sinks=sinks
        )


def intervals_of(layer: int, module: nn.Module, query, key, mask: torch.Tensor | None) -> KeyIntervals:
    """Intervals of a layer's rows; see `models.rows.read_intervals`. Raises InputError for a mask without intervals."""
    try:
        return read_intervals(mask, query.shape[2], key.shape[2], module.is_causal)
    except ValueError as error:
        raise InputError(
            "mask-not-intervals",
            f"the attention mask of layer {layer} {error}, so weights cannot be recomputed; pad on the left "
            "(processor.tokenizer.padding_side = 'left'), give several images one at a time, and pass no 4-D mask",
        ) from error


def together(heads: int, shared: int, most: int) -> int:
    """Number of query heads per block, of `heads`: at most `most`; each key head's group of `shared` is cut evenly."""
    if most >= heads:
        return heads
    if most >= shared:
        return most // shared * shared
    return max(count for count in range(1, most + 1) if shared % count == 0)


@torch.no_grad()
def recorded_errors(model: PreTrainedModel, inputs) -> list[float]:
    """Relative difference (Frobenius norm) of each layer's recorded weights from eager attention's, for one prompt.

    Layer 0 has the same queries and keys in both; later layers also differ by the rounding errors of earlier ones.
    Raises ValueError for a model whose eager attention does not return the weights of every layer.
    """
    with AttentionTrace(model) as trace:
        model(**inputs)
    stack = model.get_decoder()
    stack.config._attn_implementation = "eager"
    try:
        eager = model(**inputs, output_attentions=True).attentions or ()
    finally:
        stack.config._attn_implementation = plain_attention(type(stack))
    if len(eager) != trace.layers:
        raise ValueError(f"eager attention returns the weights of {len(eager)} layers, of {trace.layers}")
    errors = []
    for layer, expected in enumerate(eager):
        weights = trace.weights(layer, slice(None))
        errors.append(float((weights - expected.to(weights)).norm() / expected.norm()))
    return errors


def index_of(value: int, count: int, what: str) -> int:
    """`value` counted from 0. Raises IndexError for one out of range; `what` names it in the message."""
    if not -count <= value < count:
        raise PositionError(f"no-such-{what}", f"{what} {value} does not exist; there are {count}, counted from 0")
    return value % count


def indices_of(values, count: int, what: str) -> torch.Tensor:
    """An int, sequence, tensor or slice as int64 indices counted from 0. Raises IndexError as `index_of` does."""
    if isinstance(values, slice):
        return torch.arange(count)[values]
    values = torch.as_tensor(values).reshape(-1).tolist() if not isinstance(values, range) else values
    return torch.tensor([index_of(int(value), count, what) for value in values], dtype=torch.long)
