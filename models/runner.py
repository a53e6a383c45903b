"""A model of the user's own: any Python object that answers prompts about images.

    --runner python:MODULE:CALLABLE

CALLABLE() is called once and returns an object with `generate(prompt, images, **settings)`, which returns the answer
as a string, or (string, cut) with `cut` true where `max_new_tokens` ended it. `prompt` is a string, `images` a list of
PIL images (RGB) in the order of the question's image markers, each of which is the words "image 1" (the first of
`images`), "image 2", ... in `prompt`. `settings` are max_new_tokens, temperature (0: greedy), top_p, repetition_penalty
(1: none), seed (one of its own for each question) and system_prompt (a string or None). MODULE is looked for in the
current folder first, then where Python looks.

A run goes on only with the same code: the files of MODULE and of the modules that it imports, installed packages left
out (`models.fingerprint.code`). Other files that the runner reads, such as its weights, are not compared.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from data.errors import SampleError
from models import fingerprint

FORM = "python:module:callable"


def parse(runner: str) -> tuple[str, str]:
    """(module, callable) of "python:module:callable". Raises ValueError for another form."""
    kind, *parts = runner.split(":")
    if kind != "python" or len(parts) != 2 or not all(part and part.isascii() for part in parts):
        raise ValueError(f"--runner {runner!r} is not of the form {FORM}, such as python:my_model:load")
    return parts[0], parts[1]


@contextmanager
def _current_folder_first() -> Iterator[None]:
    """Modules of the current folder come first, as for `python -m`."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:  # the user's code may have changed the path
            sys.path.remove(folder)


def code(runner: str) -> dict[str, str]:
    """Hashes of the code behind a runner, by module; see `models.fingerprint.code`."""
    with _current_folder_first():
        return fingerprint.code(parse(runner)[0])


def load(runner: str):
    """The object that `runner` names. Raises ValueError where it cannot be made or has no `generate`."""
    module, name = parse(runner)
    try:
        with _current_folder_first():
            made = getattr(importlib.import_module(module), name)()
        generates = callable(getattr(made, "generate", None))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's own code, which may fail in any way, SystemExit included
        raise ValueError(f"--runner {runner!r} could not be made: {describe(error)}") from error
    if not generates:
        raise ValueError(
            f"--runner {runner!r} made {type(made).__name__}, which has no method generate(prompt, images, **settings)"
        )
    return made


def ask(runner, prompt: str, images: list, **settings) -> tuple[str, bool | None]:
    """The runner's answer, and whether the token limit cut it (None where the runner does not say).

    Raises SampleError where the runner fails or returns no text; the run then goes on.
    """
    try:
        answer = runner.generate(prompt, images, **settings)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's own code, which may fail in any way, SystemExit included
        raise SampleError(f"runner raised {type(error).__name__}", f"the runner failed: {describe(error)}") from error
    text, cut = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, None)
    if not isinstance(text, str) or not (cut is None or isinstance(cut, bool)):
        kind = f"({type(text).__name__}, {type(cut).__name__})" if isinstance(answer, tuple) else type(answer).__name__
        raise SampleError(
            "runner returned no text", f"the runner returned {kind}, where a string or (string, bool) was expected"
        )
    return text, cut


def describe(error: BaseException) -> str:
    """An error's kind and the first line of its message."""
    message = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
