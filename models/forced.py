"""An answer, and the same answer put back behind its prompt: read along with any picture, and how likely it is then.

Generation asks what a model says of a picture; here its words are given, so that two pictures, or a picture and a part
of it, can be compared row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import LogitsProcessorList

from data.errors import SampleError
from models import PATCHED
from models.answer import answer_length
from models.layout import TokenLayout
from models.residual import not_finite, prefill
from models.sampling import penalised
from models.tower import TowerTrace, check_tower
from models.trace import AttentionTrace


@dataclass(frozen=True)
class Spoken:
    """A greedy answer without its end token: text, token ids, and the [start, end) characters of `text` of each."""

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


class Reading(NamedTuple):
    """Prompt and answer, read in one pass: samples are pictures in the given order, answer token i lies at position
    layouts[0].length + i. `tower` is None where it was not asked for."""

    trace: AttentionTrace
    layouts: list[TokenLayout]
    tower: TowerTrace | None


@torch.no_grad()
def speak(model, processor, picture, prompt: str, max_new_tokens: int, repetition_penalty: float = 1.0) -> Spoken:
    """What the model answers to one prompt about one RGB picture.

    Raises SampleError for an empty answer, and for what cannot be prepared.
    """
    inputs, layout = model.prepare(processor, [picture], prompt)
    processors = LogitsProcessorList(penalised(repetition_penalty, inputs["attention_mask"]))
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, logits_processor=processors)
    ids = output[0, layout.length :]
    ids = ids[: answer_length(ids, model.generation_config.eos_token_id)].tolist()
    if not ids:
        raise SampleError("empty answer", "the answer is empty: the model ended at once")
    return spelt(processor.tokenizer, ids)


def spelt(tokenizer, ids: Sequence[int]) -> Spoken:
    """An answer's tokens as text, with the characters that each of them stands for.

    They are decoded from the beginning each time: a piece of a word, decoded alone, loses or gains the space in front.
    """
    text = tokenizer.decode(ids, skip_special_tokens=True)
    ends = [len(tokenizer.decode(ids[:count], skip_special_tokens=True)) for count in range(len(ids) + 1)]
    blank = len(text) - len(text.lstrip())
    spans = ((max(a - blank, 0), max(b - blank, 0)) for a, b in zip(ends, ends[1:], strict=False))
    return Spoken(text.strip(), tuple(ids), tuple(spans))


def with_answer(inputs, ids: Sequence[int]):
    """Model inputs with an answer's tokens behind every prompt of the batch."""
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
    model, processor, pictures, prompt: str, spoken: Spoken, tower: bool = False, offload: bool = False
) -> Reading:
    """Shows each picture with the same prompt and answer, in one pass under a trace (and one of the vision tower)."""
    inputs, layouts = model.prepare(processor, [[picture] for picture in pictures], [prompt] * len(pictures))
    seen = TowerTrace(model, layouts, offload=offload) if tower else None
    with seen or nullcontext(), AttentionTrace(model, offload=offload) as trace:
        prefill(model, with_answer(inputs, spoken.ids))
    return Reading(trace, layouts, seen)


@torch.no_grad()
def log_probabilities(
    model, processor, pictures: Sequence, prompt: str, spoken: Spoken, batch_size: int
) -> torch.Tensor:
    """Log-probability of the answer given each picture, in nats, float32 [picture]: the sum over its tokens."""
    found, ids = [], torch.tensor(spoken.ids)
    for first in range(0, len(pictures), batch_size):
        batch = [[picture] for picture in pictures[first : first + batch_size]]
        inputs, _ = model.prepare(processor, batch, [prompt] * len(batch))
        states = model.base_model(**with_answer(inputs, spoken.ids), use_cache=False).last_hidden_state
        logits = model.get_output_embeddings()(states[:, -len(ids) - 1 : -1]).float().cpu()
        if not logits.isfinite().all():
            raise not_finite(model, inputs)
        chances = logits.log_softmax(-1).gather(2, ids[None, :, None].expand(len(batch), -1, 1))
        found.append(chances.sum((1, 2)))
    return torch.cat(found)


def tower_depth(model, seeds_in: str) -> int | None:
    """How many layers of the vision tower reach the decoder; None where the decoder is asked for ("decoder", or "auto"
    of a model without a tower). Raises ValueError where a tower is asked for that cannot be recorded."""
    if seeds_in == "decoder" or (seeds_in == "auto" and not hasattr(model, "tower_layers")):
        return None
    check_tower(model)
    return len(model.tower_layers())


def check_grid(model, processor) -> None:
    """Raises ValueError for a model of which it is not known where in a picture its image tokens lie."""
    if model.image_grid(processor, 336, 336) is None:
        raise ValueError(
            f"where the image tokens of {type(model).__name__} lie in the picture is not known, so boxes cannot be put "
            f"on them; load {PATCHED}"
        )
