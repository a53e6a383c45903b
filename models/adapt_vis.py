"""AdaptVis: an unsure model looks at the picture more evenly, a sure one more sharply.

Chen et al., "Why Is Spatial Reasoning Hard for VLMs? An Attention Mechanism Perspective on Focus Areas" (ICML 2025,
arXiv 2503.01773). The model answers once as it is; the probability of its first token is its confidence. Then it
answers with the attention scores towards the image multiplied before the softmax, by `weight1` where the confidence
was below the threshold and by `weight2` where not: a factor below 1 spreads attention, one above 1 gathers it.

As in the published code (shiqichen17/AdaptVis, modeling_llama_add_attn.py) that is done in all layers and heads, in the
last row of the prompt alone; decode rows are as the model makes them. Where we differ: the confidence is compared as it
is (theirs is rounded to two digits), it is of the model's own logits, and any of the patched families will do, with
several pictures and in batches, each sample by its own confidence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from models.interventions import Prompt, ScaledRow, Steering


@dataclass(frozen=True)
class ImageScaling:
    """Scores of the last prompt row towards the image tokens, multiplied by a weight per sample, in every layer.

    The paper's ScalingVis, as settings that `generate(steering=...)` takes. A weight of 1, and a sample without image
    tokens, leave the sample as it is. Raises ValueError for weights that are no numbers >= 0.
    """

    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        for weight in self.weights:
            check_weight("weight", weight)

    def steering(self, prompt: Prompt) -> dict[int, Steering]:
        """The same for each layer. Raises ValueError where there is not one weight per sample."""
        if len(self.weights) != len(prompt.starts):
            raise ValueError(f"{len(self.weights)} weights for {len(prompt.starts)} samples; give one for each")
        scaled = {
            sample: ScaledRow(prompt.length - 1 - prompt.starts[sample], image, weight)
            for sample, (image, weight) in enumerate(zip(prompt.images, self.weights, strict=True))
            if weight != 1 and len(image)
        }
        layers = range(prompt.layers) if scaled else ()
        return dict.fromkeys(layers, Steering(prompt.length, prompt.starts, scaled=scaled))


@dataclass(frozen=True)
class AdaptVis:
    """Settings of the choice; the defaults are those of the published example. Raises ValueError for others than sane.

    model.generate(**inputs, steering=AdaptVis().scaling(confidence(model, inputs)))
    """

    weight1: float = 0.5
    weight2: float = 1.5
    threshold: float = 0.4

    def __post_init__(self) -> None:
        check_weight("weight1", self.weight1)
        check_weight("weight2", self.weight2)
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; it is compared with a probability, so give 0 to 1")

    def scaling(self, confidence: torch.Tensor) -> ImageScaling:
        """What is done to samples of this confidence, float32 [sample]."""
        return ImageScaling(tuple(self.weight1 if c < self.threshold else self.weight2 for c in confidence.tolist()))


@torch.no_grad()
def confidence(model, inputs) -> torch.Tensor:
    """Probability of the first token that the untouched model says greedily, float32 [sample]; costs one prefill."""
    output = model.generate(
        **inputs, max_new_tokens=1, return_dict_in_generate=True, output_logits=True
    )
    return output.logits[0].float().softmax(-1).amax(-1)


def check_weight(name: str, weight: float) -> None:
    """Raises ValueError for what cannot multiply a score."""
    if not 0 <= weight < math.inf:
        raise ValueError(f"{name} is {weight}; it multiplies attention scores, so give a finite number of 0 or more")
