"""Settings of `generate`: greedy decoding, checks for recording, and batch-independent sampling and penalties.

A checkpoint's generation_config.json may set sampling, penalties, beams, another cache or stop strings. They would
change the answer silently, so `replace` turns all of them off when a model is loaded and keeps only the ids of its
special tokens. Pass a setting to `generate` to use it. Sampling and repetition penalty of a sample do not depend on the
rest of its batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel, TemperatureLogitsWarper, TopPLogitsWarper

from data.errors import InputError

KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
GREEDY = {"do_sample": False, "num_beams": 1, "use_cache": True}
FORMAL = ("transformers_version", "_from_model_config", *KEPT, *GREEDY)  # not settings, or reported separately

UNRECORDABLE = {  # setting: (values that allow recording and steering, effect of other values)
    "num_beams": ((None, 1), "reorders the batch"),
    "num_beam_groups": ((None, 1), "reorders the batch"),
    "num_return_sequences": ((None, 1), "multiplies the batch"),
    "constraints": ((None,), "reorders the batch"),
    "force_words_ids": ((None,), "reorders the batch"),
    "penalty_alpha": ((None, 0.0), "feeds several candidates a step"),
    "dola_layers": ((None,), "takes the answer from other layers"),
    "guidance_scale": ((None, 1.0), "runs a second forward pass a step"),
    "prompt_lookup_num_tokens": ((None,), "feeds several tokens a step"),
    "assistant_model": ((None,), "feeds several tokens a step"),
    "assistant_early_exit": ((None,), "feeds several tokens a step"),
    "use_mtp": ((None, False), "feeds several tokens a step"),
    "use_cache": ((None, True), "leaves no keys of earlier tokens"),
    "cache_implementation": ((None, "dynamic"), "keeps other keys than those of the tokens so far"),
    "past_key_values": ((None,), "begins with a cache that was not recorded"),
    "prefill_chunk_size": ((None,), "feeds the prompt in pieces"),
    "token_healing": ((None, False), "changes the prompt"),
    "custom_generate": ((None,), "is a decoding loop of its own"),
    "output_attentions": ((None, False), "gives nothing under SDPA; read the weights from the trace"),
}


def replace(model: PreTrainedModel) -> None:
    """Set greedy decoding on a model; store the settings turned off in `model.checkpoint_generation`.

    That is a dictionary without token ids; `models.loading.describe` reports it.
    """
    checkpoint = model.generation_config
    model.checkpoint_generation = {
        name: value for name, value in checkpoint.to_diff_dict().items() if name not in FORMAL and value is not None
    }
    kept = {name: getattr(checkpoint, name, None) for name in KEPT}
    model.generation_config = GenerationConfig(**GREEDY, **kept)


def check_recordable(action: str, options: Mapping[str, Any], default: GenerationConfig) -> None:
    """Raise ValueError for options of `generate` under which a generation cannot be `action`, "recorded" or "steered".

    `default` is the model's generation_config, used for values that neither an option nor a generation_config among the
    options sets.
    """
    settings = options.get("generation_config") or default
    for name, (allowed, effect) in UNRECORDABLE.items():
        value = options.get(name, getattr(settings, name, None))
        if not any(value is choice or (isinstance(value, int | float | str) and value == choice) for choice in allowed):
            shown = value if isinstance(value, int | float | str) else type(value).__name__
            raise InputError(
                "unrecordable-setting",
                f"{name}={shown} {effect}, so this generation cannot be {action}; leave it out "
                "(greedy decoding and sampling work, with the default cache)",
            )


class FiniteScores(LogitsProcessor):
    """Returns the scores and sets `failed` if any row's largest is NaN or infinite, in any step.

    Such a row is replaced by zeros, so that sampling from it does not fail before the error is raised.
    """

    def __init__(self):
        self.bad = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        bad = ~scores.amax(-1, keepdim=True).isfinite()  # the maximum of a row with NaN is NaN
        self.bad = bad.any() if self.bad is None else self.bad | bad.any()
        return scores.masked_fill(bad, 0)

    @property
    def failed(self) -> bool:
        return self.bad is not None and bool(self.bad)


class OwnNoise(LogitsProcessor):
    """Adds separate Gumbel noise to the scores of each sample, so that greedy decoding samples from their softmax.

    argmax(log p + g) over tokens, g independent standard Gumbel numbers, is a sample of p (the Gumbel-max trick). g
    depends only on (seed, key of the sample, step, token), whereas a batch shares torch's random stream: so an answer
    is the same at every batch size, in every process, and after a resume. Apply it after temperature and top-p, whose
    excluded tokens (-inf) stay excluded, with do_sample=False.

    Use one object per `generate` call; `keys` are the keys of its samples in order, hashed as printed.
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

    As in transformers, but without the padding: `starts` [sample] is the end of each sample's padding.
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


def check_penalty(repetition_penalty: float) -> None:
    """Raise ValueError for a repetition penalty that is not a finite number above 0."""
    if not 0 < repetition_penalty < float("inf"):
        raise ValueError(f"--repetition-penalty {repetition_penalty} is no penalty; give a number above 0 (1: none)")


def penalised(repetition_penalty: float, attention_mask: torch.Tensor) -> list[LogitsProcessor]:
    """Logits processors of a repetition penalty, for prompts padded on the left; none for a penalty of 1."""
    if repetition_penalty == 1:
        return []
    return [RepetitionPenalty(repetition_penalty, attention_mask.int().argmax(1).tolist())]


def sampling(temperature: float, top_p: float, seed: int, keys: Sequence, prompt_length: int) -> list[LogitsProcessor]:
    """Logits processors that sample under greedy decoding, with separate noise per sample; none for temperature 0."""
    if temperature == 0:
        return []
    warpers = [TemperatureLogitsWarper(temperature), *([TopPLogitsWarper(top_p)] if top_p < 1 else [])]
    return [*warpers, OwnNoise(seed, keys, prompt_length)]
