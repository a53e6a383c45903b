"""Attention rollout of generated tokens onto the image, exact and in memory that grows with T, not T x T.

Rollout (Abnar & Zuidema, ACL 2020) composes A_L ... A_1, A_l = (1 - w) (mean over heads of layer l) + w I. Only the
rows of the generated tokens are ever needed, so they are carried down as row vectors, V <- V A_l, from the last layer
to the first, and A_l is made block by block from recorded queries and keys. The trace is duck-typed (`layers`, `heads`,
`length`, `prompt_length`, `start`, `device`, `blocks`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
    trace,
    layout,
    *,
    tokens: int | None = None,
    rows: str = "predicting",
    residual: float = 0.5,
    drop_first: bool = False,
    lowest: float = 0.0,
) -> Rollout:
    """Rolls the generated tokens of one sample out to every position of its sequence.

    `tokens` limits the map to the first so many generated tokens (default all); `residual` is the weight w of the
    identity, in [0, 1). `drop_first` takes the first token's column, where many models park attention, out of every
    A_l before the rows are renormalised; a row that looks at nothing else keeps it. `lowest` is where the product
    ends, as a share of the depth in [0, 1): 0 composes all layers, 0.5 the upper half, which then says where the states
    at half depth were read from. Without `tokens`, a sample of a batch that ended early also gets maps of its end and
    padding tokens. Raises SampleError where no token has a row.
    """
    check_layout(trace, layout)
    if not 0 <= residual < 1:
        raise ValueError(f"residual weight {residual} is out of range; give 0 <= w < 1")
    if not 0 <= lowest < 1:
        raise ValueError(f"lowest layer {lowest} is out of range; give a share of the depth, 0 <= share < 1")
    start = layout.start
    positions = answer_rows(trace, rows, tokens)
    if not positions:
        raise SampleError(
            f"no {rows} row",
            f"no generated token has a row under the convention {rows!r}: "
            f"{trace.length - trace.prompt_length + 1} token(s) were generated; use 'predicting'",
        )
    vectors = torch.zeros(len(positions), positions[-1] + 1 - start)
    vectors[torch.arange(len(positions)), torch.tensor(positions) - start] = 1
    for layer in reversed(range(int(lowest * trace.layers), trace.layers)):
        vectors = through(trace, layer, layout.sample, vectors, start, residual, drop_first)
    relevance = torch.zeros(len(positions), trace.length)
    relevance[:, start : start + vectors.shape[1]] = vectors.cpu()
    composed = {"residual": residual, "drop_first": drop_first, "lowest": lowest}
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
