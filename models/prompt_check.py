"""Refuse a prompt that the model would read as something other than words."""

from __future__ import annotations

import re

from models.errors import SampleError
from models.markers import MARKER

BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
# Markup that some tokenizers (Gemma) keep as single tokens, and that means to the model what it means to the reader.
TAGS = re.compile(
    "</?(table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|ul|ol|li|dl|dt|dd|strong|em|b|i|u|s|sub|sup|code|p|br)>"
)


def check_prompt(prompt: str, tokenizer, own_tokens: tuple[str, ...] = ()) -> None:
    """Raise SampleError for a prompt that is empty or that holds a control token of the tokenizer or the family.

    own_tokens: tokens that the family's processor gives a meaning although the tokenizer lists them as ordinary ones.
    """
    if not MARKER.sub("", prompt).strip():
        raise SampleError("empty prompt", "the prompt is empty; write a question or an instruction")
    for token in (*own_tokens, *control_tokens(tokenizer), *byte_tokens(prompt, tokenizer)):
        if token in prompt:
            raise SampleError(
                "special token in the prompt",
                f"the prompt holds {token!r}, which the model reads as a special token, not as text; remove it (images "
                "are inserted by the chat template)",
            )


def control_tokens(tokenizer) -> list[str]:
    """Special tokens of a tokenizer, and added tokens that it does not mark as special but that are no text either.

    Text are blanks, words and markup: some tokenizers add runs of blanks or HTML tags to save tokens.
    """
    added = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    return [*tokenizer.all_special_tokens, *(token for token in added if not _is_text(token))]


def byte_tokens(prompt: str, tokenizer) -> list[str]:
    """Names of bytes in the prompt, such as <0x0A>, that the tokenizer turns into the byte's own token."""
    names = sorted(set(BYTE.findall(prompt)))
    return [name for name in names if name in tokenizer.tokenize(name)]


def _is_text(token: str) -> bool:
    words = token.replace("▁", " ").replace("Ġ", " ")
    return not words.strip() or words.replace(" ", "").isalnum() or TAGS.fullmatch(token) is not None
