"""Attention rollout of generated tokens onto image cells, attention mass on the image, and vision encoder attention.

Rollout (Abnar & Zuidema, ACL 2020) composes A_L ... A_1, A_l = (1 - w) (mean over heads of layer l) + w I. It is exact,
in memory that grows with T, not T x T: only the rows of the generated tokens are propagated, as row vectors V <- V A_l
from the last layer to the first, and A_l is computed block by block from recorded queries and keys. The decoder's trace
is duck-typed (`layers`, `heads`, `length`, `prompt_length`, `start`, `device`, `blocks`).

The vision encoder mixes patches before the decoder reads them. M [cell, cell] is its attention between cells as a
linear map: for every layer that reaches the decoder, attention averaged over heads, without keys outside the cells
(CLIP's class token), rows renormalised; then the mean over these layers. A cell of several patches is the mean over its
queries and the sum over its keys. Every row of M sums to 1. This is `aggregate_vit_attention` of VLM-Visualizer
(github.com/zjysteven/VLM-Visualizer), which also renormalises each layer before averaging, without storing M: row
vectors pass through blocks of attention, in memory that grows with the number of patches. The encoder's trace is
duck-typed: `layers`, `images` (each with `length` and `cells` [row, col, patch]) and `chunks` (`first`, `last`, `query`
[head, row, width], `device` and `weights`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from data.errors import FlagError, InputError, SampleError


@dataclass(frozen=True)
class Maps:
    """Relevance of one image's cells: `per_token` [token, row, col]; `mean` and `max` over tokens [row, col].

    If the grid is unknown, one row holds all image tokens in order: [token, 1, image token].
    """

    per_token: np.ndarray
    mean: np.ndarray
    max: np.ndarray


@dataclass(frozen=True)
class RolloutSettings:
    """Settings of attention rollout over the decoder's layers."""

    rows: Literal["predicting", "query"] = "predicting"
    """Map of a token: the row that predicted it, or the row in which it is the query."""
    residual: float = 0.5
    """Weight w of the identity in each layer's (1 - w) A + w I."""
    drop_first: bool = False
    """Exclude attention to the first token, a common attention sink."""
    lowest: float = 0.0
    """Lowest layer of the product, as a share of the depth: 0 composes all layers, 0.5 the upper half. In a causal
    decoder the lower layers shift every map towards the first positions."""

    def __post_init__(self) -> None:
        if not 0 <= self.residual < 1:
            raise FlagError(
                "--residual", "out-of-range", f"--residual {self.residual} is out of range; give 0 <= w < 1"
            )
        if not 0 <= self.lowest < 1:
            raise FlagError(
                "--lowest",
                "out-of-range",
                f"--lowest {self.lowest} is out of range; give a share of the depth, 0 <= share < 1",
            )


@dataclass(frozen=True)
class TokenMaps:
    """Relevance of every position for each generated token: `relevance` float32 [token, key], finite and >= 0.

    `rows` is the query row of a token's map: "predicting" (the row that produced the token) or "query" (the row in
    which the token is the query; the last generated token, end token included, lacks this row).
    `composed` holds the settings of the map, by name.
    """

    relevance: torch.Tensor
    rows: str
    layout: object
    composed: dict[str, float] = field(default_factory=dict)

    def maps(self, image: int = 0) -> Maps:
        """Maps of one image of the prompt; `image` counts from 0 in prompt order."""
        positions, grid = self.layout.images[image], self.layout.grids[image]
        shape = (1, len(positions)) if grid is None else (grid.rows, grid.cols)
        cells = self.relevance[:, positions].reshape(-1, *shape).numpy()
        return Maps(cells, cells.mean(0), cells.max(0))

    @property
    def nowhere(self) -> torch.Tensor:
        """Share of each token's relevance that no position receives, float32 [token].

        0, except where rows sum to less than 1, since a sink logit takes the rest (gpt-oss).
        """
        return 1 - self.relevance.sum(1)

    @property
    def per_token(self) -> np.ndarray:
        return self.maps().per_token

    @property
    def mean(self) -> np.ndarray:
        return self.maps().mean

    @property
    def max(self) -> np.ndarray:
        return self.maps().max


@dataclass(frozen=True)
class Rollout(TokenMaps):
    """Maps of attention rollout: rows of `relevance` sum to 1. `composed` holds residual, drop_first and lowest."""


def answer_rows(trace, rows: str, tokens: int | None = None) -> range:
    """Sequence positions of the attention rows of the generated tokens, in order; may be empty.

    `tokens` limits them to that many first tokens. Raises ValueError for an unknown convention.
    """
    if rows not in ("predicting", "query"):
        raise InputError("unknown-rows", f"rows {rows!r} is unknown; choose 'predicting' or 'query'")
    first = trace.prompt_length - (rows == "predicting")
    return range(first, trace.length if tokens is None else min(trace.length, first + tokens))


def token_rows(trace, layout, rows: str, tokens: int | None = None) -> range:
    """`answer_rows` of at least one token. Raises SampleError if all lack a row, ValueError as `check_layout`."""
    check_layout(trace, layout)
    positions = answer_rows(trace, rows, tokens)
    if not positions:
        raise SampleError(
            f"no {rows} row",
            f"no generated token has a row under the convention {rows!r}: "
            f"{trace.length - trace.prompt_length + 1} token(s) were generated; use 'predicting'",
        )
    return positions


def check_layout(trace, layout) -> None:
    """Raise ValueError unless the layout belongs to the recorded prompt of the trace."""
    start = int(trace.start[layout.sample])
    if (start, trace.prompt_length) != (layout.start, layout.length):
        raise InputError(
            "trace-and-layout-differ",
            f"the trace holds a prompt of positions {start} to {trace.prompt_length}, the layout one of "
            f"{layout.start} to {layout.length}: they do not come from the same inputs",
        )


@torch.no_grad()
def rollout(trace, layout, settings: RolloutSettings = RolloutSettings(), *, tokens: int | None = None) -> Rollout:
    """Attention rollout of the generated tokens of one sample to every position of its sequence.

    `tokens` limits the map to that many first generated tokens (default all). `drop_first` removes the first token's
    column from every A_l before the rows are renormalised; a row without other attention keeps it. With `lowest` 0.5,
    the maps give the relevance of the positions' states at half depth. Without `tokens`, a sample of a batch that ended
    early also gets maps of its end and padding tokens. Raises SampleError if all tokens lack a row.
    """
    start, rows = layout.start, settings.rows
    positions = token_rows(trace, layout, rows, tokens)
    vectors = torch.zeros(len(positions), positions[-1] + 1 - start)
    vectors[torch.arange(len(positions)), torch.tensor(positions) - start] = 1
    for layer in reversed(range(int(settings.lowest * trace.layers), trace.layers)):
        vectors = through(trace, layer, layout.sample, vectors, start, settings.residual, settings.drop_first)
    relevance = torch.zeros(len(positions), trace.length)
    relevance[:, start : start + vectors.shape[1]] = vectors.cpu()
    composed = {name: value for name, value in vars(settings).items() if name != "rows"}
    return Rollout(relevance, rows, layout, composed)


def through(trace, layer: int, sample: int, vectors, start: int, residual: float, drop_first: bool) -> torch.Tensor:
    """V A_l for row vectors V [token, key]; keys count from the sample's first token `start`."""
    vectors = vectors.to(trace.device(layer))
    mixed = torch.zeros_like(vectors)
    carrying = int(vectors.any(0).int().argmax())  # first nonzero key; in the last layer only the tokens' own rows
    first, last = start + carrying, start + vectors.shape[1]
    for rows, weights in trace.blocks(layer, sample, first, last, apart=not drop_first):
        share = 1 / trace.heads
        if drop_first:
            weights, share = without_first(weights.mean(0, keepdim=True)), 1
        carried = vectors[:, rows.start - start : rows.stop - start].repeat(1, len(weights))
        mixed[:, : weights.shape[-1]].addmm_(carried, weights.flatten(0, 1), alpha=share)  # sums heads and rows at once
        del weights  # otherwise two blocks would be in memory at once
    return residual * vectors + (1 - residual) * mixed


def without_first(weights: torch.Tensor) -> torch.Tensor:
    """Weights [1, row, key] with the first key's column removed and the rows renormalised.

    A row without other attention, such as row 0, is unchanged, since its remaining sum is 0.
    """
    rest = weights.clone()
    rest[:, :, 0] = 0
    total = rest.sum(-1, keepdim=True)
    return torch.where(total > 0, rest / total, weights)


def image_share(trace, layout, *, rows: str = "predicting", tokens: int | None = None) -> np.ndarray:
    """Attention mass on all image keys, mean over heads, float32 [layer, token], each in [0, 1].

    Attention of single layers, not rollout; `rows` and `tokens` as in `analysis.rollout.rollout`.
    """
    check_layout(trace, layout)
    positions = answer_rows(trace, rows, tokens)
    shares = [
        trace.weights(layer, positions, samples=[layout.sample])[0, :, :, layout.image_positions].sum(-1).mean(0).cpu()
        for layer in range(trace.layers)
    ]
    return np.stack([share.numpy() for share in shares])


BLOCK_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}  # attention weights in memory at a time


@torch.no_grad()
def through_encoder(cells: np.ndarray, trace, image: int = 0) -> np.ndarray:
    """V M: the decoder's relevance propagated through the vision encoder's attention, float32 [token, row, col].

    `cells` are the decoder's maps of one image [token, row, col]; `image` counts the images of the trace. The sum of
    each map is preserved. Raises ValueError for maps on another grid than the image's.
    """
    held = trace.images[image]
    if cells.ndim != 3 or cells.shape[1:] != held.cells.shape[:2]:
        raise InputError(
            "map-size",
            f"maps of shape {cells.shape} do not fit image {image}, which has {held.cells.shape[0]} rows x "
            f"{held.cells.shape[1]} columns: give [token, row, col] of the same image",
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


def rollout_through_encoder(rollout: TokenMaps, trace, first: int = 0) -> TokenMaps:
    """Maps with the relevance of every image propagated through the vision encoder, see `through_encoder`.

    `first` is the index, among the trace's images, of the first image of the maps' sample.
    """
    relevance = rollout.relevance.clone()
    for image, positions in enumerate(rollout.layout.images):
        cells = through_encoder(rollout.maps(image).per_token, trace, first + image)
        relevance[:, positions] = torch.from_numpy(cells).flatten(1)
    return replace(rollout, relevance=relevance)


def encoder_map(trace, image: int = 0) -> np.ndarray:
    """Mean attention of the vision encoder over the image's tokens: column means of M, float32 [row, col], sum 1."""
    shape = trace.images[image].cells.shape[:2]
    return through_encoder(np.full((1, *shape), 1 / shape.numel(), np.float32), trace, image)[0]


def through_chunk(chunk, vectors: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """V A for row vectors V [token, row] over a chunk's rows; A the mean over heads, renormalised over `kept` keys.

    A row without attention on kept keys acts as the identity, since its sum is 0.
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
