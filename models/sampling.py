"""Sampling and repetition penalty of each sample by itself, whatever else its batch holds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper


class FiniteScores(LogitsProcessor):
    """Passes scores on and remembers in `failed` whether any row's largest was NaN or infinite, in any step.

    Such a row is replaced by zeros, so that a draw from it does not fail before the generation can be refused.
    """

    def __init__(self):
        self.bad = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        bad = ~scores.amax(-1, keepdim=True).isfinite()  # NaN is the largest of its row
        self.bad = bad.any() if self.bad is None else self.bad | bad.any()
        return scores.masked_fill(bad, 0)

    @property
    def failed(self) -> bool:
        return self.bad is not None and bool(self.bad)


class OwnNoise(LogitsProcessor):
    """Adds Gumbel noise of each sample's own to its scores, so that greedy decoding draws from their softmax.

    argmax(log p + g) over tokens, g independent standard Gumbel numbers, is a draw from p (the Gumbel-max trick). g
    belongs to (seed, key of the sample, step, token) alone, where torch's one stream of random numbers is shared by a
    whole batch: so an answer is the same at every batch size, in every process, and after every resume. Comes after
    temperature and top-p, whose excluded tokens (-inf) stay excluded, and goes with do_sample=False.

    One object serves one `generate` call; `keys` name its samples in order, by what they are printed as.
    """

    def __init__(self, seed: int, keys: Sequence, prompt_length: int):
        self.prompt_length = prompt_length
        texts = [str(key).encode("utf-8", "surrogatepass") for key in keys]
        self.entropy = [[seed, int.from_bytes(hashlib.sha256(text).digest())] for text in texts]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        step = input_ids.shape[1] - self.prompt_length
        noise = [np.random.default_rng([*entropy, step]).gumbel(size=scores.shape[1]) for entropy in self.entropy]
        return scores.float() + torch.from_numpy(np.stack(noise)).to(scores.device, torch.float32)


class RepetitionPenalty(LogitsProcessor):
    """Divides positive scores of the tokens so far by `penalty` and multiplies negative ones (Keskar et al. 2019, 4.1).

    As transformers' own, but padding is none of the tokens so far: `starts` [sample] is where each sample's ends.
    """

    def __init__(self, penalty: float, starts: Sequence[int]):
        self.penalty, self.starts = penalty, starts

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        scores = scores.clone()
        for sample, start in enumerate(self.starts):
            tokens = input_ids[sample, start:].unique()
            score = scores[sample, tokens]
            scores[sample, tokens] = torch.where(score < 0, score * self.penalty, score / self.penalty)
        return scores


def penalised(repetition_penalty: float, attention_mask: torch.Tensor) -> list[LogitsProcessor]:
    """Logits processors of a repetition penalty, for prompts padded on the left; 1 needs none."""
    if repetition_penalty == 1:
        return []
    return [RepetitionPenalty(repetition_penalty, attention_mask.int().argmax(1).tolist())]


def sampling(temperature: float, top_p: float, seed: int, keys: Sequence, prompt_length: int) -> list[LogitsProcessor]:
    """Logits processors that sample under greedy decoding, each sample of the batch by its own noise; 0 needs none."""
    if temperature == 0:
        return []
    warpers = [TemperatureLogitsWarper(temperature), *([TopPLogitsWarper(top_p)] if top_p < 1 else [])]
    return [*warpers, OwnNoise(seed, keys, prompt_length)]
