"""One question answered under a trace: the generated tokens, and everything needed to ask where each one looked."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch

from models.errors import SampleError
from models.layout import TokenLayout
from models.tower import TowerTrace
from models.trace import AttentionTrace


@dataclass(frozen=True, eq=False)
class Answer:
    """What was generated, without the end token. `tokens` are decoded one by one, `probabilities` those of the model.

    `trace` and `layout` belong to the whole generation; the first len(tokens) generated rows are this answer's.
    `unknown` are the words of the prompt that the tokenizer does not know and hands over as one and the same token.
    `tower` is the vision tower's own trace, where it was asked for.
    """

    text: str
    tokens: list[str]
    probabilities: list[float]
    trace: AttentionTrace
    layout: TokenLayout
    unknown: list[str]
    tower: TowerTrace | None = None


@torch.no_grad()
def answer(
    model,
    processor,
    images,
    prompt: str,
    *,
    max_new_tokens: int = 16,
    offload: bool = False,
    tower: bool = False,
    **generation,
) -> Answer:
    """Greedy answer (unless `generation` says otherwise) to one prompt about a list of RGB pictures, recorded.

    `tower` records the vision tower as well; it costs memory for its queries and keys, and no time worth naming.
    Raises SampleError where the model ends at once, since an answer without a token looks nowhere.
    """
    inputs, layout = model.prepare(processor, images, prompt)
    options = {"do_sample": False, "max_new_tokens": max_new_tokens, **generation}
    seen = TowerTrace(model, layout, offload=offload) if tower else None
    with seen or nullcontext(), AttentionTrace(model, offload=offload) as trace:
        output = model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)
    ids = output.sequences[0, layout.length :]
    count = answer_length(ids, generation.get("eos_token_id", model.generation_config.eos_token_id))
    if count == 0:
        raise SampleError("empty answer", "the answer is empty: the model ended at once")
    chosen = torch.stack(output.logits[:count])[:, 0].float().softmax(-1).gather(1, ids[:count, None]).flatten()
    return Answer(
        text=processor.tokenizer.decode(ids[:count], skip_special_tokens=True).strip(),
        tokens=[processor.tokenizer.decode([token]) for token in ids[:count].tolist()],
        probabilities=chosen.tolist(),
        trace=trace,
        layout=layout,
        unknown=unknown_words(inputs["input_ids"][0].tolist(), layout, processor.tokenizer.unk_token_id),
        tower=seen,
    )


def unknown_words(ids: list[int], layout: TokenLayout, unknown: int | None) -> list[str]:
    """Pieces of the rendered prompt that became the unknown token, each once, in order."""
    spans = [span for token, span in zip(ids, layout.offsets, strict=True) if token == unknown]
    return list(dict.fromkeys(layout.text[first:last] for first, last in spans))


def answer_length(ids: torch.Tensor, eos: int | list[int] | None) -> int:
    """Number of generated tokens [token] before the first end token."""
    ends = torch.isin(ids, torch.tensor([] if eos is None else eos, device=ids.device, dtype=ids.dtype))
    return int(ends.int().argmax()) if ends.any() else len(ids)
