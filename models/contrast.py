"""Logits of the prompt without its images, and their contrast with those of the whole prompt during generation.

An intervention with a method `logits_processor(prompt)` changes logits as well as attention (`models.pai`). The prompt
without images runs in a thread of its own, so it is neither edited nor recorded, with a cache of its own.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad
from transformers import DynamicCache, LogitsProcessor

from models.attention import call_unattached


class WithoutImages:
    """The unedited model on the prompts of a batch without the tokens of images, one step at a time.

    ids, kept: tokens [sample, position] of the prompts, and which of them stay (padding does not).
    """

    def __init__(self, model, ids: torch.Tensor, kept: torch.Tensor):
        self.model = model
        width = max(1, int(kept.sum(1).max()))
        rows = [row[chosen] for row, chosen in zip(ids, kept, strict=True)]
        self.ids = torch.stack([pad(row, (width - len(row), 0)) for row in rows])
        self.mask = torch.stack([pad(torch.ones_like(row), (width - len(row), 0)) for row in rows])
        self.cache = DynamicCache()

    def logits(self, sequences: torch.Tensor) -> torch.Tensor:
        """Logits of the next token, [sample, vocabulary]; `sequences` [sample, position] are the whole prompts and the
        tokens generated so far, one more at each call."""
        return call_unattached(self._step, sequences)

    @torch.no_grad()  # of the thread that runs it
    def _step(self, sequences: torch.Tensor) -> torch.Tensor:
        new = self.ids
        if self.cache.get_seq_length():
            new, self.mask = sequences[:, -1:], pad(self.mask, (0, 1), value=1)
        positions = (self.mask.cumsum(1) - 1).clamp_min(0)[:, -new.shape[1] :]
        states = self.model.get_decoder()(
            inputs_embeds=self.model.get_input_embeddings()(new),
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        return self.model.get_output_embeddings()(states[:, -1])


class Contrast(LogitsProcessor):
    """gamma * log p(image) + (1 - gamma) * log p(no image), -inf where p(image) is below `floor` times its maximum.

    `contrasted` bool [sample]; the scores of the other samples are returned unchanged.
    """

    def __init__(self, without: WithoutImages, contrasted: torch.Tensor, gamma: float, floor: float):
        self.without, self.contrasted, self.gamma, self.floor = without, contrasted, gamma, floor

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        image = scores.float().log_softmax(-1)
        text = self.without.logits(input_ids).float().log_softmax(-1).to(image.device)
        mixed = self.gamma * image + (1 - self.gamma) * text
        mixed = mixed.masked_fill(image.exp() < self.floor * image.exp().amax(-1, keepdim=True), float("-inf"))
        return torch.where(self.contrasted.to(scores.device)[:, None], mixed, scores.float())
