"""Questions answered under a trace: the generated tokens, and everything needed to ask where each one looked."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from transformers import LogitsProcessorList

from data.errors import SampleError
from models.layout import TokenLayout
from models.memory import check_fits
from models.sampling import penalised
from models.tower import TowerTrace
from models.trace import AttentionTrace

ALTERNATIVES = 5


@dataclass(frozen=True, eq=False)
class Answer:
    """What was generated, without the end token. `tokens` are decoded one by one, `probabilities` those of the model.

    `trace` belongs to the whole batch, where `layout.sample` is this answer's place; of its generated rows the first
    len(tokens) are this answer's.
    `alternatives` are, for each token, the ALTERNATIVES likeliest ones that could have stood there, with probabilities.
    `first` float32 [vocabulary] are the probabilities of all tokens to begin the answer.
    `unknown` are the words of the prompt that the tokenizer does not know and hands over as one and the same token.
    `tower` is the vision tower's own trace, where it was asked for; its images count through the whole batch.
    """

    text: str
    tokens: list[str]
    probabilities: list[float]
    alternatives: list[list[tuple[str, float]]]
    first: torch.Tensor
    trace: AttentionTrace
    layout: TokenLayout
    unknown: list[str]
    tower: TowerTrace | None = None


def answer(model, processor, images, prompt: str, **options) -> Answer:
    """The answer to one prompt about a list of RGB pictures; options as in `answers`.

    Raises SampleError where the model ends at once, since an answer without a token looks nowhere.
    """
    [said] = answers(model, processor, [images], [prompt], **options)
    if isinstance(said, SampleError):
        raise said
    return said


@torch.no_grad()
def answers(
    model,
    processor,
    images,
    prompts,
    *,
    max_new_tokens: int = 16,
    offload: bool = False,
    tower: bool = False,
    rows: Sequence[int] | None = None,
    repetition_penalty: float = 1.0,
    **generation,
) -> list[Answer | SampleError]:
    """Greedy answers (unless `generation` says otherwise) to a batch, generated together under one trace.

    Probabilities are the model's own, before a repetition penalty.

    images: for each prompt a list of RGB pictures. `tower` records the vision tower as well; it costs memory for its
    queries and keys, and no time worth naming. `rows` are the positions of the prompt whose attention will be asked
    for: [-1] for the one that predicts the first token, default all; generated rows are always kept. `generation` may
    hold `mask_type` and, for each sample, `scanpaths`. In place of an empty answer stands the SampleError that says so.
    Raises SampleError for a sample that cannot be prepared.
    """
    inputs, layouts = model.prepare(processor, images, prompts)
    check_fits(model, len(layouts), inputs["input_ids"].shape[1] + max_new_tokens, offload=offload)
    processors = LogitsProcessorList(penalised(repetition_penalty, inputs["attention_mask"]))
    options = {"max_new_tokens": max_new_tokens, "logits_processor": processors, **generation}
    seen = TowerTrace(model, layouts, offload=offload) if tower else None
    with seen or nullcontext(), AttentionTrace(model, offload=offload, rows=rows) as trace:
        output = model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)
    eos = generation.get("eos_token_id", model.generation_config.eos_token_id)
    return [_read(processor, inputs, layout, output, eos, trace, seen) for layout in layouts]


def _read(processor, inputs, layout: TokenLayout, output, eos, trace, seen) -> Answer | SampleError:
    """One sample's answer out of what was generated for all."""
    ids = output.sequences[layout.sample, layout.length :]
    count = answer_length(ids, eos)
    if count == 0:
        return SampleError("empty answer", "the answer is empty: the model ended at once")
    chances = torch.stack([step[layout.sample] for step in output.logits[:count]]).float().softmax(-1)
    likeliest = chances.topk(min(ALTERNATIVES, chances.shape[-1]))
    return Answer(
        text=processor.tokenizer.decode(ids[:count], skip_special_tokens=True).strip(),
        tokens=[processor.tokenizer.decode([token]) for token in ids[:count].tolist()],
        probabilities=chances.gather(1, ids[:count, None]).flatten().tolist(),
        alternatives=[
            [(processor.tokenizer.decode([token]), chance) for token, chance in zip(*pair, strict=True)]
            for pair in zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        ],
        first=chances[0].cpu(),
        trace=trace,
        layout=layout,
        unknown=unknown_words(inputs["input_ids"][layout.sample].tolist(), layout, processor.tokenizer.unk_token_id),
        tower=seen,
    )


def word_probability(first: torch.Tensor, tokenizer, word: str) -> float | None:
    """Probability that an answer begins with a word, of `Answer.first`, however the word's token is written.

    first: [vocabulary]. Sums over the word's `spellings`; None where no single token is the word.
    """
    ids = spellings(tokenizer, word)
    return float(first[ids].sum()) if ids else None


def spellings(tokenizer, word: str) -> list[int]:
    """The tokens that are a word but for case and a space in front."""
    space = "\u2581\u0120 "  # as SentencePiece and byte-level tokenizers write it
    return [id for token, id in tokenizer.get_vocab().items() if token.lstrip(space).lower() == word.lower()]


def unknown_words(ids: list[int], layout: TokenLayout, unknown: int | None) -> list[str]:
    """Pieces of the rendered prompt that became the unknown token, each once, in order."""
    placed = list(zip(ids, layout.offsets, strict=True))[layout.start :]  # a pad token may be the unknown one
    spans = [span for token, span in placed if token == unknown]
    return list(dict.fromkeys(layout.text[first:last] for first, last in spans))


def answer_length(ids: torch.Tensor, eos: int | list[int] | None) -> int:
    """Number of generated tokens [token] before the first end token; all of them where there is none, since then the
    token limit cut the answer."""
    ends = torch.isin(ids, torch.tensor([] if eos is None else eos, device=ids.device, dtype=ids.dtype))
    return int(ends.int().argmax()) if ends.any() else len(ids)
