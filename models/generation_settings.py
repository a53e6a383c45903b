"""Settings of `generate`: greedy decoding in place of a checkpoint's own, and those that rule out recording.

A checkpoint's generation_config.json may ask for sampling, penalties, beams, another cache or stop strings. They would
decide the answer without a word, so `replace` turns all of them off when a model is loaded; only the ids of its special
tokens stay. Whoever wants one passes it to `generate`.

Sampling and repetition penalty of each sample by itself, whatever else its batch holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel, TemperatureLogitsWarper, TopPLogitsWarper

KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
GREEDY = {"do_sample": False, "num_beams": 1, "use_cache": True}
FORMAL = ("transformers_version", "_from_model_config", *KEPT, *GREEDY)  # no settings, or stated for themselves

UNRECORDABLE = {  # setting: (values that allow recording and steering, what any other value does)
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
    """Give a model settings of greedy decoding; those of its checkpoint are kept in `model.checkpoint_generation`.

    That is a dictionary of the settings that were turned off, without token ids; `models.loading.describe` states it.
    """
    checkpoint = model.generation_config
    model.checkpoint_generation = {
        name: value for name, value in checkpoint.to_diff_dict().items() if name not in FORMAL and value is not None
    }
    kept = {name: getattr(checkpoint, name, None) for name in KEPT}
    model.generation_config = GenerationConfig(**GREEDY, **kept)


def check_recordable(action: str, options: Mapping[str, Any], default: GenerationConfig) -> None:
    """Raise ValueError for options of `generate` under which a generation cannot be `action`, "recorded" or "steered".

    `default` is the model's own generation_config, which counts where neither an option nor a generation_config among
    the options names a value.
    """
    settings = options.get("generation_config") or default
    for name, (allowed, effect) in UNRECORDABLE.items():
        value = options.get(name, getattr(settings, name, None))
        if not any(value is choice or (isinstance(value, int | float | str) and value == choice) for choice in allowed):
            shown = value if isinstance(value, int | float | str) else type(value).__name__
            raise ValueError(
                f"{name}={shown} {effect}, so this generation cannot be {action}; leave it out "
                "(greedy decoding and sampling work, with the default cache)"
            )


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


def check_penalty(repetition_penalty: float) -> None:
    """Raise ValueError for a repetition penalty that is not a finite number above 0."""
    if not 0 < repetition_penalty < float("inf"):
        raise ValueError(f"--repetition-penalty {repetition_penalty} is no penalty; give a number above 0 (1: none)")


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
