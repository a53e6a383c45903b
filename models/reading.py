"""A text read under a trace: no picture, no answer, only what each word looked at while it was read."""

from __future__ import annotations

from data.errors import SampleError
from models.answer import unknown_words
from models.layout import TokenLayout
from models.residual import prefill
from models.trace import AttentionTrace


def read_text(model, processor, text: str, offload: bool = False) -> tuple[AttentionTrace, TokenLayout]:
    """What a model attends to in a text, put to it as a prompt without pictures; with where its words are.

    model, processor: as `models.text.load` returns them, of images and text or of text alone.
    Raises SampleError for a text with words that the tokenizer does not know, since they all become one token.
    """
    inputs, layout = model.prepare(processor, [], text)
    tokenizer = getattr(processor, "tokenizer", processor)
    if unknown := unknown_words(inputs["input_ids"][0].tolist(), layout, tokenizer.unk_token_id):
        raise SampleError("word unknown to the tokenizer", f"the tokenizer does not know {', '.join(unknown)}")
    with AttentionTrace(model, offload=offload) as trace:
        prefill(model, inputs)
    return trace, layout
