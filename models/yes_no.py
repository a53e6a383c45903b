"""How much rather an answer begins with "yes" than with "no": log p(yes) - log p(no), of the first token."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from models.answer import spellings


@dataclass(frozen=True)
class YesNo:
    """The tokens that are "yes" and those that are "no", in any case and with or without a space in front."""

    yes: tuple[int, ...]
    no: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer) -> YesNo:
        """Raises ValueError for a tokenizer that has no token for one of the words."""
        found = {word: tuple(spellings(tokenizer, word)) for word in ("yes", "no")}
        if missing := [word for word, ids in found.items() if not ids]:
            raise ValueError(f"the tokenizer has no single token for {missing[0]!r}, so yes and no cannot be compared")
        return cls(**found)

    def margin(self, logits: torch.Tensor) -> torch.Tensor:
        """log p(yes) - log p(no), float64 [...], of logits or log-probabilities [..., token]."""
        logits = logits.double()
        return logits[..., list(self.yes)].logsumexp(-1) - logits[..., list(self.no)].logsumexp(-1)

    @torch.no_grad()
    def ask(self, model, inputs, steering=None) -> torch.Tensor:
        """The margin of a model's answer to each prompt of a prepared batch, float64 [sample], steered or not."""
        output = model.generate(
            **inputs,
            max_new_tokens=1,
            steering=steering,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return self.margin(output.logits[0]).cpu()
