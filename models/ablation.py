"""Head ablation: scale the image attention of selected heads to 0, as an intervention.

    model.generate(**inputs, steering=HeadAblation(((3, 0), (4, 2))))

A causal test: a head whose attention correlates with the content of an image need not affect the answer. The
image weights of the heads are multiplied by `scale` (default 0) in the rows that predict the answer: the last row of
the prompt and every decode row. Each row is renormalised, so with scale 0 it is the softmax over the other tokens.
(Without it, the sum of the remaining weights would still depend on the attention to the image.)

Layers and heads count from 0.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch

from data.errors import InputError
from models.interventions import LayerEdit, PromptBatch, RowEdit


def scale_image(weights: torch.Tensor, heads: torch.Tensor, image: torch.Tensor, scale: float) -> torch.Tensor:
    """Softmax rows [..., head, row, key] whose weights on `image`, int64 [cell], are multiplied by `scale` in some
    heads, renormalised to 1; rows of other heads are bit-identical.

    A row without other weight (below the range of float32) becomes 0 with scale 0.
    """
    heads, image = heads.to(weights.device), image.to(weights.device)  # a model may span several devices
    factors = torch.ones(weights.shape[-1], device=weights.device)
    factors[image] = scale
    scaled = weights[..., heads, :, :] * factors
    total = scaled.sum(-1, keepdim=True)
    edited = weights.clone()
    positive = total > 0  # the gradient of 0 / 0 would be NaN
    edited[..., heads, :, :] = torch.where(positive, scaled / torch.where(positive, total, 1), 0)
    return edited


@dataclass(frozen=True)
class HeadAblation:
    """Multiply the image attention of `heads`, pairs (layer, head), by `scale` in the rows that predict the answer.

    All images of a prompt are scaled; a sample without an image is unchanged. Raises ValueError for heads that are not
    pairs of integers from 0, and for a scale that is negative or not finite.
    """

    heads: tuple[tuple[int, int], ...]
    scale: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", check_heads(self.heads))
        if not 0 <= self.scale < math.inf:
            raise InputError(
                "scale", f"scale is {self.scale}; it multiplies image attention, so give a finite number >= 0"
            )

    @property
    def neutral(self) -> bool:
        """True if these settings change no model."""
        return not self.heads or self.scale == 1

    def check(self, layers: int, heads: int) -> None:
        """Raise ValueError for a head that a model of that size does not have."""
        for layer, head in self.heads:
            if layer >= layers or head >= heads:
                raise InputError(
                    "no-such-head",
                    f"head {head} of layer {layer} does not exist; the model has layers 0 to {layers - 1} with heads 0 "
                    f"to {heads - 1}",
                )

    def plan(self, prompt: PromptBatch) -> dict[int, LayerEdit]:
        """Row edits of each layer that has one of the heads; raises ValueError as `check` does."""
        self.check(prompt.layers, prompt.heads)
        layers = {}
        for layer in sorted({layer for layer, _ in self.heads}) if not self.neutral else ():
            heads = torch.tensor([head for of, head in self.heads if of == layer])
            edits = {}
            for sample, (start, image) in enumerate(zip(prompt.starts, prompt.images, strict=True)):
                if len(image):
                    change = partial(scale_image, heads=heads, image=image, scale=self.scale)
                    edits[sample] = RowEdit(prompt.length - 1 - start, change)
            layers[layer] = prompt.edit_layer(row_edits=edits)
        return layers


def check_heads(heads: Iterable) -> tuple[tuple[int, int], ...]:
    """Unique (layer, head) pairs, sorted. Raises ValueError for other input."""
    try:
        pairs = sorted({(operator.index(layer), operator.index(head)) for layer, head in heads})
    except (TypeError, ValueError) as error:
        raise InputError(
            "heads-not-pairs", f"heads are {heads!r}; give pairs (layer, head), such as ((3, 0), (4, 2))"
        ) from error
    if wrong := [pair for pair in pairs if min(pair) < 0]:
        raise InputError(
            "negative-head", f"head {wrong[0][1]} of layer {wrong[0][0]} does not exist; both count from 0"
        )
    return tuple(pairs)
