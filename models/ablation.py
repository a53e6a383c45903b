"""Heads that no longer see the image: what is lost of an answer when some heads' attention to it is scaled to nothing.

The causal check behind a correlation: a head whose attention follows what a picture shows may still not matter. Here
the image weights of chosen heads are scaled, to 0 unless told otherwise, in the last row of the prompt and in every
decode row, those that predict the answer, and each row is renormalised: the softmax of such a head over the words
alone. Were the rows not renormalised, the share that is left to the words would still tell what the head had seen.

Settings (a frozen dataclass) over a pure function; nothing holds state. Layers and heads count from 0.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch

from models.interventions import Prompt, RowEdit, Steering


def scale_image(weights: torch.Tensor, heads: torch.Tensor, image: torch.Tensor, scale: float) -> torch.Tensor:
    """Softmax rows [..., head, row, key] whose weights on `image`, int64 [cell], are multiplied by `scale` in some
    heads, renormalised to 1; rows of other heads are as they were bit for bit.

    A row without any weight elsewhere (below what float32 holds) becomes 0 with scale 0: its head says nothing.
    """
    heads, image = heads.to(weights.device), image.to(weights.device)  # a model may lie on several devices
    factors = torch.ones(weights.shape[-1], device=weights.device)
    factors[image] = scale
    scaled = weights[..., heads, :, :] * factors
    total = scaled.sum(-1, keepdim=True)
    edited = weights.clone()
    edited[..., heads, :, :] = torch.where(total > 0, scaled / total, 0)
    return edited


@dataclass(frozen=True)
class HeadAblation:
    """The image attention of `heads`, pairs (layer, head), multiplied by `scale` in the rows that predict the answer.

    Of prompts with several images, that to all of them; a sample without an image is left alone.
    Raises ValueError for what is no pair of whole numbers from 0, and a scale that is negative or not finite.
    """

    heads: tuple[tuple[int, int], ...]
    scale: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", check_heads(self.heads))
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"scale is {self.scale}; it multiplies image attention, so give a finite number >= 0")

    @property
    def neutral(self) -> bool:
        """Whether these settings leave every model as it is."""
        return not self.heads or self.scale == 1

    def check(self, layers: int, heads: int) -> None:
        """Raises ValueError for a head that a model of that size does not have."""
        for layer, head in self.heads:
            if layer >= layers or head >= heads:
                raise ValueError(
                    f"head {head} of layer {layer} does not exist; the model has layers 0 to {layers - 1} with heads 0 "
                    f"to {heads - 1}"
                )

    def steering(self, prompt: Prompt) -> dict[int, Steering]:
        """What is done to each layer that has one of the heads; raises ValueError as `check` does."""
        self.check(prompt.layers, prompt.heads)
        layers = {}
        for layer in sorted({layer for layer, _ in self.heads}) if not self.neutral else ():
            heads = torch.tensor([head for of, head in self.heads if of == layer])
            edits = {}
            for sample, (start, image) in enumerate(zip(prompt.starts, prompt.images, strict=True)):
                if len(image):
                    change = partial(scale_image, heads=heads, image=image, scale=self.scale)
                    edits[sample] = RowEdit(prompt.length - 1 - start, change)
            layers[layer] = Steering(prompt.length, prompt.starts, edits=edits)
        return layers


def check_heads(heads: Iterable) -> tuple[tuple[int, int], ...]:
    """(layer, head) pairs, each once, sorted. Raises ValueError for anything else."""
    try:
        found = sorted({(operator.index(layer), operator.index(head)) for layer, head in heads})
    except (TypeError, ValueError) as error:
        raise ValueError(f"heads are {heads!r}; give pairs (layer, head), such as ((3, 0), (4, 2))") from error
    if wrong := [pair for pair in found if min(pair) < 0]:
        raise ValueError(f"head {wrong[0][1]} of layer {wrong[0][0]} does not exist; both count from 0")
    return tuple(found)
