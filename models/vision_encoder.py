"""Attention of the vision encoder, recorded with the decoder's and recomputed in the same way.

An encoder attends within chunks: CLIP within one whole image, class token first; Qwen's encoders within one image per
call, or, in Qwen2.5-VL's windowed layers, within one window of an image, with the patches reordered so that windows are
contiguous. The queries and keys of every chunk are stored; each family defines the map from chunks to images and cells
(`encoder_layers`, `encoder_image`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import nn
from transformers import PreTrainedModel

from data.errors import InputError, StateError
from models.attention import Formula, Offload, attention_stack, listening
from models.layout import TokenLayout
from models.rows import softmax_rows
from models.trace import index_of, indices_of


@dataclass(frozen=True, eq=False)
class EncoderImage:
    """Layout of one image in the vision encoder: `length` rows; `cells` int64 [row, col, patch], the rows of each cell.

    The cells are those of the decoder's grid. Rows outside the cells (CLIP's class token) come first.
    """

    length: int
    cells: torch.Tensor

    @property
    def order(self) -> torch.Tensor:
        """The encoder's row of each position (int64): rows outside the cells, then patches cell by cell."""
        return torch.cat([torch.arange(self.length - self.cells.numel()), self.cells.flatten()])


@dataclass(frozen=True, eq=False)
class Chunk:
    """Rows of one image, from `first` on, that attend only to each other: one call of attention.

    query [head, row, width] and key [key head, row, width] as recorded; weights are computed on `device`.
    """

    first: int
    query: torch.Tensor
    key: torch.Tensor
    scaling: float
    device: torch.device

    @property
    def last(self) -> int:
        """End of the chunk's rows, exclusive."""
        return self.first + self.query.shape[1]

    def weights(self, rows: slice | torch.Tensor) -> torch.Tensor:
        """Weights of some rows, counted from the chunk's first: float32 [head, row, key]; keys are the chunk's rows."""
        query, key = self.query[:, rows].to(self.device).float(), self.key.to(self.device).float()
        return softmax_rows(query, key, self.scaling, None)


class EncoderTrace:
    """Records the vision encoder during one forward pass or one `generate` call of a model under SDPA.

        inputs, layout = model.prepare(processor, images, prompt)
        with EncoderTrace(model, layout) as encoder, AttentionTrace(model) as trace:
            model.generate(**inputs)
        encoder.weights(layer=3, image=0)                 # float32 [head, query, key]

    `layout` is the layout that `prepare` returned with the inputs, a list of them for a batch; images count from 0 in
    the order of the prompts, through the whole batch. `depth` is the number of layers, `layers` are those whose output
    reaches the decoder. `offload` moves queries and keys to the CPU during the pass.
    """

    def __init__(self, model: PreTrainedModel, layout: TokenLayout | Sequence[TokenLayout], offload: bool = False):
        check_encoder(model)
        layouts = [layout] if isinstance(layout, TokenLayout) else layout
        self.model, self.offload = model, offload
        self.images: list[EncoderImage] = [
            model.encoder_image(grid) for of_sample in layouts for grid in of_sample.grids
        ]
        self.layers: range = model.encoder_layers()
        self.depth = len(attention_stack(model, "encoder")[1])
        self._ends = list(accumulate(image.length for image in self.images))
        self._moved = Offload()
        self._recorded = [0] * self.depth  # rows recorded of each layer
        self._chunks: list[list[list[Chunk]]] = [
            [[] for _ in self.images] for _ in self._recorded
        ]  # per layer and image
        self._scope = ExitStack()

    def __enter__(self) -> EncoderTrace:
        if any(self._recorded):
            raise StateError("trace-used", "this trace was used before; open a new EncoderTrace for each generation")
        self._scope.enter_context(listening(self.model, "encoder", self._listen))
        return self

    def __exit__(self, *exception) -> None:
        self._scope.close()

    def _listen(self, layer: int, module: nn.Module, query, key, value, mask, formula: Formula) -> None:
        if not formula.is_softmax:
            raise InputError(
                "encoder-not-softmax",
                f"layer {layer} of the vision encoder attends with a soft cap or a sink logit, which is not recorded; "
                "leave out maps through the encoder",
            )
        shown = query.detach(), key.detach()
        for rows, keys in zip(*(map(self._moved.take, shown) if self.offload else shown), strict=True):
            recorded, count = self._recorded[layer], rows.shape[1]
            image = bisect_right(self._ends, recorded)
            if image == len(self.images) or recorded + count > self._ends[image]:
                raise StateError(
                    "rows-beyond-layouts",
                    f"the vision encoder got {count} rows after {recorded}, but the layouts account for images of "
                    f"{[image.length for image in self.images]}; give the layouts of the very inputs, and open a new "
                    "EncoderTrace for each generation",
                )
            first = recorded - (self._ends[image] - self.images[image].length)
            self._chunks[layer][image].append(Chunk(first, rows, keys, formula.scaling, query.device))
            self._recorded[layer] += count

    def chunks(self, layer: int, image: int = 0) -> list[Chunk]:
        """Recorded chunks of one image in one layer, in the order of the encoder's rows."""
        if not self._ends or self._recorded[-1] < self._ends[-1]:
            raise StateError(
                "nothing-recorded",
                "nothing was recorded: run the model in this thread, inside `with EncoderTrace(model, layout):`",
            )
        self._moved.wait()
        image = index_of(image, len(self.images), "image")
        return self._chunks[index_of(layer, self.depth, "layer")][image]

    def weights(self, layer: int, image: int = 0, queries=slice(None), heads=slice(None)) -> torch.Tensor:
        """Attention weights within one image, float32 [head, query, key]; each row sums to 1.

        Queries and keys count the image's positions in the order of the decoder's grid: CLIP's class token, then the
        patches cell by cell (see `EncoderImage.order`), independent of the encoder's order. `queries` and `heads`
        select in the given order (int, sequence, tensor or slice). A patch outside a query's window has weight 0.
        """
        chunks, held = self.chunks(layer, image), self.images[image]
        picked = indices_of(heads, chunks[0].query.shape[0], "head")
        rows = held.order[indices_of(queries, held.length, "query")]
        out = torch.zeros(len(picked), len(rows), held.length, device=chunks[0].device)
        for chunk in chunks:
            inside = (rows >= chunk.first) & (rows < chunk.last)
            if inside.any():
                out[:, inside, chunk.first : chunk.last] = chunk.weights(rows[inside] - chunk.first)[picked]
        return out[:, :, held.order]


def check_encoder(model: PreTrainedModel) -> None:
    """Raise ValueError unless the model has a vision encoder that can be recorded and separated by images."""
    attention_stack(model, "encoder")
    if not hasattr(model, "encoder_image"):
        raise InputError(
            "unknown-encoder",
            f"how the vision encoder of {type(model).__name__} belongs to its image tokens is not known; "
            "load LLaVA-1.5, Qwen2-VL, Qwen2.5-VL or Qwen3-VL with models.load",
        )
