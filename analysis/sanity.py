"""Maps of a model and of its copy with random weights, compared (Adebayo et al., "Sanity checks for saliency maps",
NeurIPS 2018): the copy generates the same answer by force, and a map that hardly changes shows the architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from models.generation import Answer, answer


class ForcedTokens(LogitsProcessor):
    """Lets `generate` produce the given tokens, whatever the scores are."""

    def __init__(self, ids: Sequence[int], prompt_length: int | None = None):
        self.ids, self.prompt_length = ids, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self.prompt_length is None:
            self.prompt_length = input_ids.shape[1]
        forced = torch.full_like(scores, float("-inf"))
        forced[:, self.ids[input_ids.shape[1] - self.prompt_length]] = 0
        return forced


def forced_answer(model, processor, images: Sequence, prompt: str, ids: Sequence[int], options: Mapping) -> Answer:
    """The given tokens as the answer to a prompt about images; options as in `models.generation.answers`."""
    forced = {"logits_processor": LogitsProcessorList([ForcedTokens(ids)]), "max_new_tokens": len(ids)}
    return answer(model, processor, list(images), prompt, **options | forced)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's correlation of two maps over cells; NaN for a constant map."""
    first, second = first.astype(float).ravel(), second.astype(float).ravel()
    if not (np.ptp(first) and np.ptp(second)):
        return np.nan
    return float(np.corrcoef(first, second)[0, 1])
