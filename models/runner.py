"""A model of the user's own: any Python object that answers prompts about pictures.

    --runner python:MODULE:CALLABLE

CALLABLE() is called once and returns an object with `generate(prompt, images, **settings) -> str`. `prompt` is a
string, `images` a list of PIL images (RGB) in the order of the question's image markers, each of which is the words
"image 1" (the first of `images`), "image 2", ... in `prompt`. `settings` are max_new_tokens, temperature (0: greedy),
top_p, repetition_penalty (1: none), seed (one of its own for each question) and system_prompt (a string or None).
MODULE is looked for in the current folder first, then where Python looks.
"""

from __future__ import annotations

import importlib
import os
import sys

from models.errors import SampleError

FORM = "python:module:callable"


def parse(runner: str) -> tuple[str, str]:
    """(module, callable) of "python:module:callable". Raises ValueError for another form."""
    kind, *parts = runner.split(":")
    if kind != "python" or len(parts) != 2 or not all(part and part.isascii() for part in parts):
        raise ValueError(f"--runner {runner!r} is not of the form {FORM}, such as python:my_model:load")
    return parts[0], parts[1]


def load(runner: str):
    """The object that `runner` names. Raises ValueError where it cannot be had or has no `generate`."""
    module, name = parse(runner)
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        make = getattr(importlib.import_module(module), name)
        made = make()
    except Exception as error:  # the user's own code, which may fail in any way
        raise ValueError(f"--runner {runner!r} could not be made: {describe(error)}") from error
    finally:
        sys.path.remove(here)
    if not callable(getattr(made, "generate", None)):
        raise ValueError(
            f"--runner {runner!r} made {type(made).__name__}, which has no method generate(prompt, images, **settings)"
        )
    return made


def ask(runner, prompt: str, images: list, **settings) -> str:
    """The runner's answer. Raises SampleError where it fails or returns no text; the run then goes on."""
    try:
        answer = runner.generate(prompt, images, **settings)
    except Exception as error:  # the user's own code, which may fail in any way
        raise SampleError(f"runner raised {type(error).__name__}", f"the runner failed: {describe(error)}") from error
    if not isinstance(answer, str):
        kind = type(answer).__name__
        raise SampleError("runner returned no text", f"the runner returned {kind}, where a string was expected")
    return answer


def describe(error: Exception) -> str:
    """An error's kind and the first line of what it says."""
    said = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
