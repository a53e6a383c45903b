"""PAI (Pay Attention to Image): stronger attention on the image, and a contrast with the prompt without images.

    model.generate(**inputs, steering=PAI())
    model.generate(**inputs, steering=PAI(gamma=1))      # the attention part alone

Liu et al., "Paying More Attention to Image: A Training-Free Method for Alleviating Hallucination in LVLMs" (ECCV 2024,
arXiv 2407.21771). Two parts:

    attention    z_j <- z_j + alpha |z_j| for the scores z of image tokens j, before the softmax, in the rows that
                 predict the answer (the last row of the prompt, every decode row), in all heads
    logits       gamma log p(y | image, text) + (1 - gamma) log p(y | text) in place of the logits; `models.contrast`

As in the published code (LALBJ/PAI, attention.py and CFG.py), |z| is that of scaled scores, the layers are those from 2
on, log-probabilities are contrasted, and tokens with less than a tenth of the largest probability are excluded. The
defaults are those of its example, alpha 0.2 and gamma 1.1. A score of 0 has no sign to strengthen, and stays 0.

Where we differ: the prompt without images is the tokens of the prompt without those of its images (theirs is rendered
from a template for each model); all images of a prompt count; the logits of a sample without an image are unchanged
(theirs are cut at a tenth); batches are padded on the left and exact. Layers and heads count from 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch

from data.errors import InputError
from models.contrast import Contrast
from models.interventions import LayerEdit, PromptBatch, ScoreEdit

FLOOR = 0.1  # share of the largest probability below which a token is excluded, as published


def strengthen(scores: torch.Tensor, keys: torch.Tensor, alpha: float) -> torch.Tensor:
    """Scores [..., key] with alpha |z| added at the positions `keys`, int64 [key], in place."""
    keys = keys.to(scores.device)
    scores[..., keys] += alpha * scores[..., keys].abs()
    return scores


@dataclass(frozen=True)
class PAI:
    """`alpha` of the attention part (0: none), `gamma` of the logits (1: none), and the first edited layer.

    A sample without image tokens is unchanged. Raises ValueError for settings out of range.
    """

    alpha: float = 0.2
    gamma: float = 1.1
    first_layer: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < math.inf:
            raise InputError("alpha", f"alpha is {self.alpha}; it multiplies |scores|, so give a finite number >= 0")
        if not 1 <= self.gamma < math.inf:
            raise InputError("gamma", f"gamma is {self.gamma}; give a finite number of 1 (no contrast) or more")
        if self.first_layer < 0:
            raise InputError("no-such-layer", f"first layer {self.first_layer} does not exist; layers count from 0")

    def check(self, layers: int) -> None:
        """Raise ValueError for a model without the first layer."""
        if self.first_layer >= layers:
            raise InputError(
                "no-such-layer",
                f"first layer {self.first_layer} does not exist; the model has layers 0 to {layers - 1}",
            )

    def plan(self, prompt: PromptBatch) -> dict[int, LayerEdit]:
        """The same edit for each layer; raises ValueError as `check` does."""
        self.check(prompt.layers)
        edits = {
            sample: ScoreEdit(prompt.length - 1 - start, partial(strengthen, keys=image, alpha=self.alpha))
            for sample, (start, image) in enumerate(zip(prompt.starts, prompt.images, strict=True))
            if len(image) and self.alpha
        }
        layers = range(self.first_layer, prompt.layers) if edits else ()
        return dict.fromkeys(layers, prompt.edit_layer(score_edits=edits))

    def logits_processor(self, prompt: PromptBatch) -> Contrast | None:
        """The contrast of one `generate` call; None with gamma 1 or without images."""
        contrasted = torch.tensor([len(image) > 0 for image in prompt.images])
        if self.gamma == 1 or not contrasted.any():
            return None
        return Contrast(prompt.without_images(), contrasted, self.gamma, FLOOR)
