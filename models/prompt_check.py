"""Refuse a prompt that the model would read as something other than words."""

from __future__ import annotations

import re

from data.errors import SampleError
from models.markers import MARKER

BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
DELIMITED = re.compile(r"<\S.*>|\[\S.*\]|\|\S.*\|", re.DOTALL)
# Markup that some tokenizers (Gemma's) keep as single tokens and that is text all the same.
TAGS = re.compile(
    "</?(table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|ul|ol|li|dl|dt|dd|strong|em|b|i|u|s|sub|sup|code|p|br)>"
)


def check_prompt(prompt: str, tokenizer, own_tokens: tuple[str, ...] = ()) -> None:
    """Raise SampleError for a prompt that is empty or that holds a control token of the tokenizer or the family.

    own_tokens: the family's control tokens that the tokenizer lists as ordinary text.
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
    """Special tokens of a tokenizer, and added tokens in delimiters (<...>, [...], |...|) that it lists as ordinary.

    Other added tokens are text: runs of blanks, words, punctuation and HTML tags, which some tokenizers add to save
    tokens.
    """
    added = map(str, tokenizer.added_tokens_decoder.values())
    return [
        *tokenizer.all_special_tokens,
        *(token for token in added if DELIMITED.fullmatch(token) and not TAGS.fullmatch(token)),
    ]


def byte_tokens(prompt: str, tokenizer) -> list[str]:
    """Byte names in the prompt, such as <0x0A>, that the tokenizer encodes as the byte's own token."""
    names = sorted(set(BYTE.findall(prompt)))
    return [name for name in names if name in tokenizer.tokenize(name)]
