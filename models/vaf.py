"""VAF (Visual Amplification Fusion): scores on the image raised and on the system prompt lowered in middle layers.

    model.generate(**inputs, steering=VAF())

Yin et al., "ClearSight: Visual Signal Enhancement for Object Hallucination Mitigation in Multimodal Large Language
Models" (CVPR 2025, arXiv 2503.13107). In the rows of the text after the image and of the answer, in all heads:

    z_j <- enhance * z_j     for the scores z of image tokens j, before the softmax
    z_j <- suppress * z_j    for the tokens j before the image: the system prompt in LLaVA-1.5

that is Z + a M_enh * Z - b M_sup * Z with enhance = 1 + a and suppress = 1 - b. A factor above 1 raises a positive
score and lowers a negative one. Layers, rows, keys and the defaults 1.15 and 0.95 are those of the published code and
its example (ustc-hyin/ClearSight, visaug/inference): layers 9 to 14 of 32, here in proportion to the model's depth.

The published code edits all heads, with fixed positions of LLaVA-1.5 (35 tokens before 576 of the image). Where we
differ: positions are those of the prompt, in every family and in batches; with several images all of them are enhanced,
the text before the first is suppressed, and the rows after the last are edited. Secondary sources describe a choice of
heads by their image attention, and other values of b, in the paper; neither is in its code, and neither is here. Fuyu
has no token before its image, so nothing is suppressed there. Layers count from 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch

from data.errors import InputError
from models.gaze import check_layers, in_proportion
from models.interventions import LayerEdit, PromptBatch, ScoreEdit, scale_keys

PUBLISHED_LAYERS = (9, 15, 32)  # first, last + 1, number of layers


def amplify(scores: torch.Tensor, image: torch.Tensor, enhance: float, suppress: float) -> torch.Tensor:
    """Scores [..., key] multiplied by `enhance` at the positions `image`, int64 [cell], and by `suppress` at all
    positions before the first of them, in place."""
    scores[..., : int(image[0])] *= suppress
    return scale_keys(scores, image, enhance)


@dataclass(frozen=True)
class VAF:
    """Factors on the scores, and the layers (empty: the published ones in proportion).

    A sample without image tokens is unchanged. Raises ValueError for factors that are not finite numbers >= 0.
    """

    enhance: float = 1.15
    suppress: float = 0.95
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("enhance", "suppress"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(
                    "factor",
                    f"{name} is {getattr(self, name)}; it multiplies attention scores, so give a finite number >= 0",
                )

    @property
    def neutral(self) -> bool:
        """True if these settings change no model."""
        return self.enhance == self.suppress == 1

    def plan(self, prompt: PromptBatch) -> dict[int, LayerEdit]:
        """The same edit for each layer. Raises ValueError for a layer that the model does not have."""
        layers = self.layers or in_proportion(PUBLISHED_LAYERS, prompt.layers)
        layers = check_layers(layers, prompt.layers, "layer")
        edits = {
            sample: ScoreEdit(
                int(image[-1]) + 1,
                partial(amplify, image=image, enhance=self.enhance, suppress=self.suppress),
            )
            for sample, image in enumerate(prompt.images)
            if len(image) and not self.neutral
        }
        return dict.fromkeys(layers if edits else (), prompt.edit_layer(score_edits=edits))
