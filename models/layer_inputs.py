"""Recorded inputs of the decoder's layers, from which `models.gradients` replays them: states and position embeddings.

The replay of the rows that predict the answer's tokens needs the input of layer 0 at these rows alone; the replay of
all rows needs the input of every layer.
"""

from __future__ import annotations

import torch


class LayerInputs:
    """Residual stream that enters the layers, and the rotary position embeddings, of one generation.

    `every_row`: all rows of all layers; otherwise the last row of the prompt and each decode row, of layer 0.
    """

    def __init__(self, every_row: bool):
        self.every_row = every_row
        self._states: dict[int, list[torch.Tensor]] = {}
        self._rotary: list[tuple[torch.Tensor, ...]] = []

    def add(self, layer: int, states: torch.Tensor, arguments: dict) -> None:
        """Record one call of a layer: states [sample, row, width] and its keyword arguments."""
        if not self.every_row:
            if layer:
                return
            states = states[:, -1:].clone()  # a view would keep all rows
        self._states.setdefault(layer, []).append(states)
        if layer == 0:
            rotary = arguments.get("position_embeddings") or ()
            self._rotary.append(tuple(each if self.every_row else each[..., -1:, :].clone() for each in rotary))

    def states(self, layer: int, sample: int) -> torch.Tensor:
        """Input of a layer for one sample, [row, width]. Raises IndexError for a layer that was not recorded."""
        if layer not in self._states:
            raise IndexError(
                f"the inputs of layer {layer} were not kept; record with AttentionTrace(model, gradients='all')"
            )
        return torch.cat([states[sample] for states in self._states[layer]])

    def rotary(self, sample: int) -> tuple[torch.Tensor, ...]:
        """Cosine and sine [1, row, width] of one sample's rows; empty for a decoder without rotary embeddings."""
        parts = zip(*self._rotary, strict=True)
        return tuple(torch.cat([each[min(sample, len(each) - 1)] for each in part])[None] for part in parts)
