"""AdaptVis and ScalingVis: scale attention scores towards the image before the softmax, as interventions.

    model.generate(**inputs, steering=AdaptVis())              # a weight per sample, by the model's confidence
    model.generate(**inputs, steering=ImageScaling((0.5,)))    # a given weight per sample

Chen et al., "Why Is Spatial Reasoning Hard for VLMs? An Attention Mechanism Perspective on Focus Areas" (ICML 2025,
arXiv 2503.01773). The confidence is the probability of the unedited model's first token. The scores are multiplied by
`weight1` if it is below the threshold and by `weight2` otherwise: a factor below 1 flattens attention over the
image, one above 1 sharpens it.

As in the published code (shiqichen17/AdaptVis, modeling_llama_add_attn.py) the edit covers all layers and heads, and
only the last row of the prompt. Where we differ: the confidence is not rounded (theirs: two digits), it is computed
from the model's own logits, and all patched families are covered, with several images and in batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch

from data.errors import InputError
from models.interventions import LayerEdit, PromptBatch, ScoreEdit, scale_keys


@dataclass(frozen=True)
class ImageScaling:
    """Multiply the scores of the last prompt row towards the image tokens by a weight per sample, in every layer.

    The paper's ScalingVis. A sample with a weight of 1 or without image tokens is unchanged. Raises ValueError for
    weights that are not finite numbers >= 0.
    """

    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        for weight in self.weights:
            check_weight("weight", weight)

    def plan(self, prompt: PromptBatch) -> dict[int, LayerEdit]:
        """The same edit for each layer. Raises ValueError unless there is one weight per sample."""
        if len(self.weights) != len(prompt.starts):
            raise InputError(
                "weights-per-sample", f"{len(self.weights)} weights for {len(prompt.starts)} samples; give one for each"
            )
        lengths = [prompt.length - start for start in prompt.starts]
        scaled = {
            sample: ScoreEdit(length - 1, partial(scale_keys, keys=image, factor=weight), length)
            for sample, (length, image, weight) in enumerate(zip(lengths, prompt.images, self.weights, strict=True))
            if weight != 1 and len(image)
        }
        layers = range(prompt.layers) if scaled else ()
        return dict.fromkeys(layers, prompt.edit_layer(score_edits=scaled))


@dataclass(frozen=True)
class AdaptVis:
    """Weights and threshold; the defaults are those of the published example. Raises ValueError for settings out of
    range."""

    weight1: float = 0.5
    weight2: float = 1.5
    threshold: float = 0.4

    def __post_init__(self) -> None:
        check_weight("weight1", self.weight1)
        check_weight("weight2", self.weight2)
        if not 0 <= self.threshold <= 1:
            raise InputError(
                "threshold", f"threshold is {self.threshold}; it is compared with a probability, so give 0 to 1"
            )

    def scaling(self, confidence: torch.Tensor) -> ImageScaling:
        """The weights of samples with this confidence, float32 [sample]."""
        return ImageScaling(tuple(self.weight1 if c < self.threshold else self.weight2 for c in confidence.tolist()))

    def plan(self, prompt: PromptBatch) -> dict[int, LayerEdit]:
        """Scaling of each sample by its confidence; takes one prefill."""
        return self.scaling(largest_probability(prompt.first_logits())).plan(prompt)


def confidence(model, inputs) -> torch.Tensor:
    """Probability of the first token of the unedited model's greedy answer, float32 [sample]; takes one prefill."""
    return largest_probability(model.first_logits(inputs))


def largest_probability(logits: torch.Tensor) -> torch.Tensor:
    """Probability of the most likely token, float32 [sample], of logits [sample, vocabulary]."""
    return logits.float().softmax(-1).amax(-1)


def check_weight(name: str, weight: float) -> None:
    """Raise ValueError for a weight that is not a finite number >= 0."""
    if not 0 <= weight < math.inf:
        raise InputError(
            "weight", f"{name} is {weight}; it multiplies attention scores, so give a finite number of 0 or more"
        )
