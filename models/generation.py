"""Recorded generation, teacher forcing of an answer, recorded text, and the yes/no margin.

`answers` generates answers under a trace: tokens, probabilities, and the attention of each token. `generate_answer`,
`with_answer` and `read_along` append an answer to its prompt (teacher forcing) with any image, to compare the attention
and the log-probability of the same tokens between images, or between an image and a part of it. `read_text` records a
text without image and answer. `YesNo` gives log p(yes) - log p(no) of the first token.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from transformers import LogitsProcessorList

from data.errors import InputError, SampleError, check_at_least
from models import PATCHED
from models.attention import not_finite, prefill
from models.generation_settings import check_penalty, penalised
from models.layout import TokenLayout
from models.memory import check_fits
from models.trace import AttentionTrace
from models.vision_encoder import EncoderTrace, check_encoder

ALTERNATIVES = 5


@dataclass(frozen=True)
class Generation:
    """Greedy answers; the fields are options of `answers`."""

    max_new_tokens: int = 16
    """Max new tokens."""
    repetition_penalty: float = 1.0
    """Penalty on tokens that the prompt or the answer holds already; 1 is none and overrides the checkpoint's."""
    offload: bool = False
    """Keep recorded queries and keys on the CPU, for long prompts on a small GPU."""

    def __post_init__(self) -> None:
        check_at_least(self, max_new_tokens=1)
        check_penalty(self.repetition_penalty)


@dataclass(frozen=True, eq=False)
class Answer:
    """A generated answer, without the end token. `tokens` are decoded one by one from `ids`; `probabilities` are the
    model's.

    `trace` covers the whole batch, in which `layout.sample` is this answer's index; the first len(tokens) of its
    generated rows are this answer's.
    `alternatives` are the top-ALTERNATIVES next tokens at the position of each token, with probabilities.
    `first` float32 [vocabulary] are the probabilities of the first token.
    `unknown` are the words of the prompt that the tokenizer encodes as the unknown token.
    `encoder` is the trace of the vision encoder if requested; its images count through the whole batch. `general` holds
    the same images under a general prompt if requested.
    """

    text: str
    tokens: list[str]
    probabilities: list[float]
    alternatives: list[list[tuple[str, float]]]
    first: torch.Tensor
    trace: AttentionTrace
    layout: TokenLayout
    unknown: list[str]
    ids: tuple[int, ...] = ()
    encoder: EncoderTrace | None = None
    general: PromptReading | None = None


class PromptReading(NamedTuple):
    """One recorded prompt without an answer: the trace of the batch, which holds the last row of the prompt alone."""

    trace: AttentionTrace
    layout: TokenLayout


def answer(model, processor, images, prompt: str, **options) -> Answer:
    """The answer to one prompt about a list of RGB images; options as in `answers`.

    Raises SampleError for an empty answer, since it has no tokens whose attention could be read.
    """
    [output] = answers(model, processor, [images], [prompt], **options)
    if isinstance(output, SampleError):
        raise output
    return output


@torch.no_grad()
def answers(
    model,
    processor,
    images,
    prompts,
    *,
    max_new_tokens: int = 16,
    offload: bool = False,
    encoder: bool = False,
    rows: Sequence[int] | None = None,
    repetition_penalty: float = 1.0,
    values: bool = False,
    gradients: Literal["answer", "all"] | None = None,
    general: str | None = None,
    **generation,
) -> list[Answer | SampleError]:
    """Greedy answers (by default; see `generation`) to a batch, generated together under one trace.

    Probabilities are the model's, before a repetition penalty.

    images: for each prompt a list of RGB images. `encoder` also records the vision encoder, which takes memory for its
    queries and keys, and negligible time. `rows` are the positions of the prompt whose attention is recorded: [-1] for
    the one that predicts the first token, default all; generated rows are always recorded. `values` and `gradients` as
    in `models.trace.AttentionTrace`; `general` is a prompt that is read with the same images, unsteered, for contrast
    maps (`analysis.maps.needs` gives all three). `generation` may hold `mask_type` and, for each sample, `scanpaths`.
    An empty answer is returned as a SampleError.
    Raises SampleError for a sample that cannot be prepared.
    """
    inputs, layouts = model.prepare(processor, images, prompts)
    check_fits(model, len(layouts), inputs["input_ids"].shape[1] + max_new_tokens, offload=offload)
    processors = LogitsProcessorList(penalised(repetition_penalty, inputs["attention_mask"]))
    options = {"max_new_tokens": max_new_tokens, "logits_processor": processors, **generation}
    encoder_trace = EncoderTrace(model, layouts, offload=offload) if encoder else None
    kept = {"offload": offload, "rows": rows, "values": values, "gradients": gradients}
    with encoder_trace or nullcontext(), AttentionTrace(model, **kept) as trace:
        output = model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)
    compared = [None] * len(layouts) if general is None else read_prompts(model, processor, images, general, offload)
    eos = generation.get("eos_token_id", model.generation_config.eos_token_id)
    return [
        _read(processor, inputs, layout, output, eos, trace, encoder_trace, other)
        for layout, other in zip(layouts, compared, strict=True)
    ]


@torch.no_grad()
def read_prompts(model, processor, images, prompt: str, offload: bool = False) -> list[PromptReading]:
    """Record the last row of one prompt about each of several lists of RGB images."""
    inputs, layouts = model.prepare(processor, images, [prompt] * len(images))
    with AttentionTrace(model, offload=offload, rows=[-1]) as trace:
        prefill(model, inputs)
    return [PromptReading(trace, layout) for layout in layouts]


def _read(processor, inputs, layout: TokenLayout, output, eos, trace, encoder_trace, general) -> Answer | SampleError:
    """One sample's answer, from the output of the batch."""
    ids = output.sequences[layout.sample, layout.length :]
    count = answer_length(ids, eos)
    if count == 0:
        return SampleError("empty answer", "the answer is empty: the model ended at once")
    chances = torch.stack([step[layout.sample] for step in output.logits[:count]]).float().softmax(-1)
    top = chances.topk(min(ALTERNATIVES, chances.shape[-1]))
    return Answer(
        text=processor.tokenizer.decode(ids[:count], skip_special_tokens=True).strip(),
        tokens=[processor.tokenizer.decode([token]) for token in ids[:count].tolist()],
        probabilities=chances.gather(1, ids[:count, None]).flatten().tolist(),
        alternatives=[
            [(processor.tokenizer.decode([token]), chance) for token, chance in zip(*pair, strict=True)]
            for pair in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ],
        first=chances[0].cpu(),
        trace=trace,
        layout=layout,
        unknown=unknown_words(inputs["input_ids"][layout.sample].tolist(), layout, processor.tokenizer.unk_token_id),
        ids=tuple(ids[:count].tolist()),
        encoder=encoder_trace,
        general=general,
    )


def word_probability(first: torch.Tensor, tokenizer, word: str) -> float | None:
    """Probability that an answer begins with a word, from `Answer.first`, over all spellings of its token.

    first: [vocabulary]. Sums over the word's `spellings`; None if no single token is the word.
    """
    ids = spellings(tokenizer, word)
    return float(first[ids].sum()) if ids else None


def spellings(tokenizer, word: str) -> list[int]:
    """The tokens that equal a word up to case and a leading space."""
    space = "\u2581\u0120 "  # leading space in SentencePiece and byte-level tokenizers
    return [id for token, id in tokenizer.get_vocab().items() if token.lstrip(space).lower() == word.lower()]


def unknown_words(ids: list[int], layout: TokenLayout, unknown: int | None) -> list[str]:
    """Pieces of the rendered prompt that became the unknown token, each once, in order."""
    placed = list(zip(ids, layout.offsets, strict=True))[layout.start :]  # the pad token may equal the unknown token
    spans = [span for token, span in placed if token == unknown]
    return list(dict.fromkeys(layout.text[first:last] for first, last in spans))


def answer_length(ids: torch.Tensor, eos: int | list[int] | None) -> int:
    """Number of generated tokens [token] before the first end token; all of them if the token limit cut the
    answer."""
    ends = torch.isin(ids, torch.tensor([] if eos is None else eos, device=ids.device, dtype=ids.dtype))
    return int(ends.int().argmax()) if ends.any() else len(ids)


@dataclass(frozen=True)
class ForcedAnswer:
    """A greedy answer without its end token: text, token ids, and the [start, end) characters of `text` of each."""

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


class Reading(NamedTuple):
    """Prompt and answer in one forward pass: samples are images in the given order, answer token i is at position
    layouts[0].length + i. `encoder` is None if not requested."""

    trace: AttentionTrace
    layouts: list[TokenLayout]
    encoder: EncoderTrace | None


@torch.no_grad()
def generate_answer(
    model, processor, image, prompt: str, max_new_tokens: int, repetition_penalty: float = 1.0
) -> ForcedAnswer:
    """Generate the answer to one prompt about one RGB image.

    Raises SampleError for an empty answer and for a sample that cannot be prepared.
    """
    inputs, layout = model.prepare(processor, [image], prompt)
    processors = LogitsProcessorList(penalised(repetition_penalty, inputs["attention_mask"]))
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, logits_processor=processors)
    ids = output[0, layout.length :]
    ids = ids[: answer_length(ids, model.generation_config.eos_token_id)].tolist()
    if not ids:
        raise SampleError("empty answer", "the answer is empty: the model ended at once")
    return decode_answer(processor.tokenizer, ids)


def decode_answer(tokenizer, ids: Sequence[int]) -> ForcedAnswer:
    """An answer's tokens as text, with the [start, end) characters of each.

    Each prefix is decoded from the first token: a piece of a word, decoded alone, loses or gains the leading space.
    """
    text = tokenizer.decode(ids, skip_special_tokens=True)
    ends = [len(tokenizer.decode(ids[:count], skip_special_tokens=True)) for count in range(len(ids) + 1)]
    blank = len(text) - len(text.lstrip())
    spans = ((max(a - blank, 0), max(b - blank, 0)) for a, b in zip(ends, ends[1:], strict=False))
    return ForcedAnswer(text.strip(), tuple(ids), tuple(spans))


def with_answer(inputs, ids: Sequence[int]):
    """Model inputs with an answer's tokens appended to every prompt of the batch."""
    longer = dict(inputs)
    answer = torch.tensor(ids, device=inputs["input_ids"].device)
    for name, value in (("input_ids", answer), ("attention_mask", 1), ("mm_token_type_ids", 0)):
        if name in inputs:
            prompt = inputs[name]
            behind = torch.as_tensor(value, dtype=prompt.dtype, device=prompt.device).expand(len(prompt), len(ids))
            longer[name] = torch.cat([prompt, behind], 1)
    return longer


@torch.no_grad()
def read_along(
    model, processor, images, prompt: str, answer: ForcedAnswer, encoder: bool = False, offload: bool = False
) -> Reading:
    """Record one forward pass of each image with the same prompt and answer (and the vision encoder, if requested)."""
    inputs, layouts = model.prepare(processor, [[image] for image in images], [prompt] * len(images))
    encoder_trace = EncoderTrace(model, layouts, offload=offload) if encoder else None
    with encoder_trace or nullcontext(), AttentionTrace(model, offload=offload) as trace:
        prefill(model, with_answer(inputs, answer.ids))
    return Reading(trace, layouts, encoder_trace)


@torch.no_grad()
def log_probabilities(
    model, processor, images: Sequence, prompt: str, answer: ForcedAnswer, batch_size: int
) -> torch.Tensor:
    """Log-probability of the answer given each image, in nats, float32 [image]: the sum over its tokens."""
    return token_log_probabilities(model, processor, images, prompt, answer, batch_size).sum(1)


@torch.no_grad()
def token_log_probabilities(
    model, processor, images: Sequence, prompt: str, answer: ForcedAnswer, batch_size: int
) -> torch.Tensor:
    """Log-probability of each token of the answer given each image, in nats, float32 [image, token]."""
    found, ids = [], torch.tensor(answer.ids)
    for first in range(0, len(images), batch_size):
        batch = [[image] for image in images[first : first + batch_size]]
        inputs, _ = model.prepare(processor, batch, [prompt] * len(batch))
        states = model.base_model(**with_answer(inputs, answer.ids), use_cache=False).last_hidden_state
        logits = model.get_output_embeddings()(states[:, -len(ids) - 1 : -1]).float().cpu()
        if not logits.isfinite().all():
            raise not_finite(model, inputs)
        chances = logits.log_softmax(-1).gather(2, ids[None, :, None].expand(len(batch), -1, 1))
        found.append(chances[..., 0])
    return torch.cat(found)


def encoder_depth(model, seeds_in: str) -> int | None:
    """Number of layers of the vision encoder that reach the decoder; None for the decoder ("decoder", or "auto"
    of a model without a vision encoder). Raises ValueError if a requested encoder cannot be recorded."""
    if seeds_in == "decoder" or (seeds_in == "auto" and not hasattr(model, "encoder_layers")):
        return None
    check_encoder(model)
    return len(model.encoder_layers())


def check_grid(model, processor) -> None:
    """Raise ValueError for a model whose image grid is unknown."""
    if model.image_grid(processor, 336, 336) is None:
        raise ValueError(
            f"where the image tokens of {type(model).__name__} lie in the image is not known, so boxes cannot be put "
            f"on them; load {PATCHED}"
        )


def read_text(model, processor, text: str, offload: bool = False) -> tuple[AttentionTrace, TokenLayout]:
    """Record the attention of a text given as a prompt without images, with the positions of its words.

    model, processor: as `models.text.load` returns them, vision-language or text-only.
    Raises SampleError for words that the tokenizer does not know, since they all become one token.
    """
    inputs, layout = model.prepare(processor, [], text)
    tokenizer = getattr(processor, "tokenizer", processor)
    if unknown := unknown_words(inputs["input_ids"][0].tolist(), layout, tokenizer.unk_token_id):
        raise SampleError("word unknown to the tokenizer", f"the tokenizer does not know {', '.join(unknown)}")
    with AttentionTrace(model, offload=offload) as trace:
        prefill(model, inputs)
    return trace, layout


@dataclass(frozen=True)
class YesNo:
    """The tokens "yes" and "no", in any case, with or without a leading space."""

    yes: tuple[int, ...]
    no: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer) -> YesNo:
        """Yes and no tokens of a tokenizer. Raises ValueError if one of the words has no token."""
        tokens = {word: tuple(spellings(tokenizer, word)) for word in ("yes", "no")}
        if missing := [word for word, ids in tokens.items() if not ids]:
            raise InputError(
                "no-yes-no-token",
                f"the tokenizer has no single token for {missing[0]!r}, so yes and no cannot be compared",
            )
        return cls(**tokens)

    def margin(self, logits: torch.Tensor) -> torch.Tensor:
        """log p(yes) - log p(no), float64 [...], of logits or log-probabilities [..., token]."""
        logits = logits.double()
        return logits[..., list(self.yes)].logsumexp(-1) - logits[..., list(self.no)].logsumexp(-1)

    @torch.no_grad()
    def steered_margin(self, model, inputs, steering=None) -> torch.Tensor:
        """Yes/no margin of each prompt of a prepared batch, float64 [sample], steered or not."""
        output = model.generate(
            **inputs,
            max_new_tokens=1,
            steering=steering,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return self.margin(output.logits[0]).cpu()
