"""Attention rollout of generated tokens onto the image, exact and in memory that grows with T, not T x T.

Rollout (Abnar & Zuidema, ACL 2020) composes A_L ... A_1, A_l = (1 - w) (mean over heads of layer l) + w I. Only the
rows of the generated tokens are ever needed, so they are carried down as row vectors, V <- V A_l, from the last layer
to the first, and A_l is made block by block from recorded queries and keys. The trace is duck-typed (`layers`, `heads`,
`length`, `prompt_length`, `start`, `device`, `blocks`).

How much of its attention a generated token spends on the image.

Where the image tokens themselves come from: the vision tower's attention as a linear map between cells.

The decoder's map names image tokens, but the tower has mixed the patches behind them. M [cell, cell] says where the
tower looked for each token: for every layer that reaches the decoder, attention averaged over heads, what goes to no
cell (CLIP's class token) dropped and the rows renormalised; then the mean over these layers. A cell of several patches
is the mean over its queries and the sum over its keys. So every row of M sums to 1. This is `aggregate_vit_attention`
of VLM-Visualizer (github.com/zjysteven/VLM-Visualizer), which renormalises each layer before it averages them too, but
M is never made: row vectors are carried through blocks of attention, in memory that grows with the number of patches.

The trace is duck-typed: `layers`, `images` (each with `length` and `cells` [row, col, patch]) and `chunks`, whose
`first`, `last`, `query` [head, row, width], `device` and `weights` are used.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from data.errors import SampleError


@dataclass(frozen=True)
class Maps:
    """Relevance of one image's cells: `per_token` [token, row, col]; `mean` and `max` over tokens [row, col].

    Where the grid is not known, one row holds all image tokens in their order: [token, 1, image token].
    """

    per_token: np.ndarray
    mean: np.ndarray
    max: np.ndarray


@dataclass(frozen=True)
class RolloutSettings:
    """Composition of the layers of a decoder."""

    rows: Literal["predicting", "query"] = "predicting"
    """Map of a token: the row that predicted it, or the row in which it is read as the query."""
    residual: float = 0.5
    """Weight w of the identity in each layer's (1 - w) A + w I."""
    drop_first: bool = False
    """Exclude attention to the first token, a common attention sink."""
    lowest: float = 0.0
    """Where the product of layers ends, as a share of the depth: 0 composes all, 0.5 the upper half. In a causal
    decoder the lower layers carry every map towards the first positions."""

    def __post_init__(self) -> None:
        if not 0 <= self.residual < 1:
            raise ValueError(f"--residual {self.residual} is out of range; give 0 <= w < 1")
        if not 0 <= self.lowest < 1:
            raise ValueError(f"--lowest {self.lowest} is out of range; give a share of the depth, 0 <= share < 1")


@dataclass(frozen=True)
class Rollout:
    """Relevance of every position for each generated token: `relevance` float32 [token, key], rows sum to 1.

    `rows` says which query a token's map belongs to: "predicting" (the row that produced it) or "query" (the row in
    which the token itself is read; the last token generated, end token included, was never read and has none).
    `composed` are the settings of the product: residual, drop_first, lowest.
    """

    relevance: torch.Tensor
    rows: str
    layout: object
    composed: dict[str, float] = field(default_factory=dict)

    def maps(self, image: int = 0) -> Maps:
        """The maps of one image of the prompt, in the order in which the prompt shows them."""
        positions, grid = self.layout.images[image], self.layout.grids[image]
        shape = (1, len(positions)) if grid is None else (grid.rows, grid.cols)
        cells = self.relevance[:, positions].reshape(-1, *shape).numpy()
        return Maps(cells, cells.mean(0), cells.max(0))

    @property
    def per_token(self) -> np.ndarray:
        return self.maps().per_token

    @property
    def mean(self) -> np.ndarray:
        return self.maps().mean

    @property
    def max(self) -> np.ndarray:
        return self.maps().max


def answer_rows(trace, rows: str, tokens: int | None = None) -> range:
    """Sequence positions whose attention stands for the generated tokens, first token first; may be empty.

    `tokens` limits them to the first so many. Raises ValueError for an unknown convention.
    """
    if rows not in ("predicting", "query"):
        raise ValueError(f"rows {rows!r} is unknown; choose 'predicting' or 'query'")
    first = trace.prompt_length - (rows == "predicting")
    return range(first, trace.length if tokens is None else min(trace.length, first + tokens))


def check_layout(trace, layout) -> None:
    """Raises ValueError unless the layout is of the prompt that the trace recorded."""
    start = int(trace.start[layout.sample])
    if (start, trace.prompt_length) != (layout.start, layout.length):
        raise ValueError(
            f"the trace holds a prompt of positions {start} to {trace.prompt_length}, the layout one of "
            f"{layout.start} to {layout.length}: they do not come from the same inputs"
        )


@torch.no_grad()
def rollout(
    trace, layout, settings: RolloutSettings = RolloutSettings(), *, tokens: int | None = None
) -> Rollout:
    """Rolls the generated tokens of one sample out to every position of its sequence.

    `tokens` limits the map to the first so many generated tokens (default all). `drop_first` takes the first token's
    column out of every A_l before the rows are renormalised; a row without any other attention keeps it. Where `lowest`
    is 0.5, the maps say from which positions the states at half depth were read. Without `tokens`, a sample of a batch
    that ended early also gets maps of its end and padding tokens. Raises SampleError where no token has a row.
    """
    check_layout(trace, layout)
    start, rows = layout.start, settings.rows
    positions = answer_rows(trace, rows, tokens)
    if not positions:
        raise SampleError(
            f"no {rows} row",
            f"no generated token has a row under the convention {rows!r}: "
            f"{trace.length - trace.prompt_length + 1} token(s) were generated; use 'predicting'",
        )
    vectors = torch.zeros(len(positions), positions[-1] + 1 - start)
    vectors[torch.arange(len(positions)), torch.tensor(positions) - start] = 1
    for layer in reversed(range(int(settings.lowest * trace.layers), trace.layers)):
        vectors = through(trace, layer, layout.sample, vectors, start, settings.residual, settings.drop_first)
    relevance = torch.zeros(len(positions), trace.length)
    relevance[:, start : start + vectors.shape[1]] = vectors.cpu()
    composed = {name: value for name, value in vars(settings).items() if name != "rows"}
    return Rollout(relevance, rows, layout, composed)


def through(trace, layer: int, sample: int, vectors, start: int, residual: float, drop_first: bool) -> torch.Tensor:
    """V A_l for row vectors V [token, key], keys counted from the sample's first token `start`."""
    vectors = vectors.to(trace.device(layer))
    mixed = torch.zeros_like(vectors)
    carrying = int(vectors.any(0).int().argmax())  # in the last layer only the generated tokens' own rows do
    first, last = start + carrying, start + vectors.shape[1]
    for rows, weights in trace.blocks(layer, sample, first, last, apart=not drop_first):
        share = 1 / trace.heads
        if drop_first:
            weights, share = without_first(weights.mean(0, keepdim=True)), 1
        carried = vectors[:, rows.start - start : rows.stop - start].repeat(1, len(weights))
        mixed[:, : weights.shape[-1]].addmm_(carried, weights.flatten(0, 1), alpha=share)  # sums heads and rows at once
        del weights  # or two blocks would be held while the next one is made
    return residual * vectors + (1 - residual) * mixed


def without_first(weights: torch.Tensor) -> torch.Tensor:
    """Weights [1, row, key] with the first key's column removed and the rows renormalised.

    A row that looks at nothing else, as row 0 must, is left as it is: there is nothing to renormalise.
    """
    rest = weights.clone()
    rest[:, :, 0] = 0
    total = rest.sum(-1, keepdim=True)
    return torch.where(total > 0, rest / total, weights)


def image_share(trace, layout, *, rows: str = "predicting", tokens: int | None = None) -> np.ndarray:
    """Attention on all image keys, mean over heads, float32 [layer, token], each in [0, 1].

    Plain attention of single layers, not rollout; `rows` and `tokens` as in `analysis.rollout.rollout`.
    """
    check_layout(trace, layout)
    positions = answer_rows(trace, rows, tokens)
    shares = [
        trace.weights(layer, positions, samples=[layout.sample])[0, :, :, layout.image_positions].sum(-1).mean(0).cpu()
        for layer in range(trace.layers)
    ]
    return np.stack([share.numpy() for share in shares])


BLOCK_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}  # attention weights held at a time


@torch.no_grad()
def through_tower(cells: np.ndarray, trace, image: int = 0) -> np.ndarray:
    """V M: each cell's relevance handed on to the cells where the tower looked for it, float32 [token, row, col].

    `cells` are the decoder's maps of one image [token, row, col]; `image` counts the images of the trace. The sum of
    each map stays. Raises ValueError for maps on another grid than the image's.
    """
    held = trace.images[image]
    if cells.ndim != 3 or cells.shape[1:] != held.cells.shape[:2]:
        raise ValueError(
            f"maps of shape {cells.shape} do not fit image {image}, which has {held.cells.shape[0]} rows x "
            f"{held.cells.shape[1]} columns: give [token, row, col] of the same image"
        )
    places = held.cells.flatten(0, 1)
    spread = torch.as_tensor(cells, dtype=torch.float32).flatten(1)[:, :, None] / places.shape[1]
    vectors = torch.zeros(len(cells), held.length)
    vectors[:, places] = spread.expand(-1, -1, places.shape[1])
    kept = torch.zeros(held.length, dtype=torch.bool)
    kept[places] = True
    mixed = torch.zeros_like(vectors)
    for layer in trace.layers:
        for chunk in trace.chunks(layer, image):
            rows = slice(chunk.first, chunk.last)
            mixed[:, rows] += through_chunk(chunk, vectors[:, rows], kept[rows]).cpu()
    return (mixed[:, places].sum(-1) / len(trace.layers)).unflatten(1, held.cells.shape[:2]).numpy()


def rollout_through_tower(rollout: Rollout, trace, first: int = 0) -> Rollout:
    """The same rollout with the relevance of every image handed on by the tower, see `through_tower`.

    `first` is the number, among the trace's images, of the first image of the rollout's sample.
    """
    relevance = rollout.relevance.clone()
    for image, positions in enumerate(rollout.layout.images):
        cells = through_tower(rollout.maps(image).per_token, trace, first + image)
        relevance[:, positions] = torch.from_numpy(cells).flatten(1)
    return replace(rollout, relevance=relevance)


def tower_look(trace, image: int = 0) -> np.ndarray:
    """Mean attention of the vision encoder over the image's tokens: column means of M, float32 [row, col], sum 1."""
    shape = trace.images[image].cells.shape[:2]
    return through_tower(np.full((1, *shape), 1 / shape.numel(), np.float32), trace, image)[0]


def through_chunk(chunk, vectors: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """V A for row vectors V [token, row] over a chunk's rows; A the mean over heads, renormalised over `kept` keys.

    A row that looks at none of them stays where it is: there is nothing to renormalise.
    """
    heads, count, _ = chunk.query.shape
    vectors, kept = vectors.to(chunk.device), kept.to(chunk.device)
    mixed = torch.zeros_like(vectors)
    rows = max(1, BLOCK_ELEMENTS.get(chunk.device.type, BLOCK_ELEMENTS["cpu"]) // (heads * count))
    for first in range(0, count, rows):
        block = slice(first, first + rows)
        weights = chunk.weights(block).mean(0) * kept
        total = weights.sum(-1)
        blind = total == 0
        mixed += vectors[:, block] @ (weights / (total + blind)[:, None])
        mixed[:, block] += vectors[:, block] * blind
    return mixed
