"""Batched answers to questions with intervention counts, from a loaded model or from a user-defined runner.

An answer does not depend on the others of its batch: padding is masked, random numbers are seeded per question
(`models.generation_settings`), and counts of an intervention end with the answer.

    --runner python:MODULE:CALLABLE

CALLABLE() is called once and returns an object with `generate(prompt, images, **settings)`, which returns the answer
as a string, or (string, cut), with `cut` true if `max_new_tokens` ended it. `prompt` is a string, `images` a list of
PIL images (RGB) in the order of the question's image markers, which `prompt` holds as the words "image 1" (the first of
`images`), "image 2", ... `settings` are max_new_tokens, temperature (0: greedy), top_p, repetition_penalty
(1: none), seed (one for each question) and system_prompt (a string or None). MODULE is searched for in the current
folder first, then on Python's path.

A run resumes only with the same code: the files of MODULE and of the modules that it imports, except installed packages
(`models.folders.code`). Other files that the runner reads, such as its weights, are not compared.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import LogitsProcessorList

from data.errors import InputError, SampleError, check_at_least
from models import folders
from models.generation import answer_length
from models.generation_settings import check_penalty, penalised, sampling
from models.interventions import Intervention, InterventionReport
from models.memory import check_fits
from models.vlm import in_words, marked_order


class Reply(NamedTuple):
    """An answer: its stripped text; `changes` by the intervention: numbers, summed over answers, by name, and
    `layers`, a row for each layer with a count that is not 0 (`InterventionReport.table`); `cut`: the token limit ended
    it before its end token (None: unknown)."""

    text: str
    changes: dict[str, int | list]
    cut: bool | None


@dataclass(frozen=True)
class Decoding:
    """Decoding of answers."""

    max_new_tokens: int = 512
    """Max new tokens; an answer without an end token by then is scored as it is and marked `cut`. Short answers end
    before the limit; a reasoning model may need 1024 or more."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy. Each record has its own random numbers."""
    top_p: float = 1.0
    """Nucleus sampling (top-p) threshold."""
    seed: int = 0
    """Seed of the sampling."""
    system_prompt: str | None = None
    """System prompt, inserted before each prompt by the chat template."""
    repetition_penalty: float = 1.0
    """Penalty on tokens that the prompt or the answer holds already; 1 is none and overrides the checkpoint's."""

    def __post_init__(self) -> None:
        check_at_least(self, max_new_tokens=1, seed=0)
        if not 0 <= self.temperature < float("inf") or not 0 < self.top_p <= 1:
            raise ValueError("give --temperature of 0 or more, and --top-p above 0 and at most 1")
        if self.system_prompt is not None and not self.system_prompt.strip():
            raise ValueError("--system-prompt is empty; leave it out")
        check_penalty(self.repetition_penalty)


BatchSteering = Callable[[Sequence, dict, list], tuple[Intervention | None, list[dict[str, int]]]]
"""Maps the keys, inputs and layouts of a batch to its intervention, and to numbers for each `Reply`."""


def no_steering(keys, inputs, layouts) -> tuple[None, list[dict[str, int]]]:
    return None, [{} for _ in keys]


@dataclass(frozen=True)
class ModelBackend:
    """A loaded vision-language model, as the source of answers."""

    model: torch.nn.Module
    processor: object
    decoding: Decoding
    steer: BatchSteering = no_steering

    @torch.no_grad()
    def answer(self, keys: Sequence, prompts: Sequence[str], images: Sequence[list]) -> list[Reply]:
        """Replies to a batch; `keys` identify its questions, `images` holds a list of RGB images for each. Prompts may
        hold image markers (`models.vlm`).

        Raises SampleError for a prompt or an image that the model cannot read.
        """
        chosen, model = self.decoding, self.model
        inputs, layouts = model.prepare(self.processor, images, prompts, chosen.system_prompt)
        length, report = inputs["input_ids"].shape[1], InterventionReport()
        check_fits(model, len(keys), length + chosen.max_new_tokens, recorded=False)
        intervention, counts = self.steer(keys, inputs, layouts)
        processors = [
            *penalised(chosen.repetition_penalty, inputs["attention_mask"]),
            *sampling(chosen.temperature, chosen.top_p, chosen.seed, keys, length),
        ]
        options = {"max_new_tokens": chosen.max_new_tokens, "logits_processor": LogitsProcessorList(processors)}
        output = model.generate(**inputs, **options, steering=intervention, report=report)
        generated, end = output[:, length:], model.generation_config.eos_token_id
        lengths = [answer_length(ids, end) for ids in generated]
        decode = self.processor.tokenizer.decode
        changes = count_changes(report, lengths)
        return [
            Reply(decode(ids[:count], skip_special_tokens=True).strip(), {**before, **edits}, count == len(ids))
            for ids, count, before, edits in zip(generated, lengths, counts, changes, strict=True)
        ]


def count_changes(report: InterventionReport, lengths: Sequence[int]) -> list[dict]:
    """Changes of each sample: `steered` (1) if a key bias or a row edit changed it, and the `layers` with counts.

    `lengths` are the lengths of the answers without their end tokens, equal to their numbers of decode steps.
    """
    layers = [[] for _ in lengths]
    for row in report.table(lengths):
        counts = {name: count for name, count in row.items() if name not in ("layer", "sample")}
        if any(counts.values()):
            layers[row["sample"]].append({"layer": row["layer"], **counts})
    steered = [any(row["pairs"] for row in rows) or report.is_biased(sample) for sample, rows in enumerate(layers)]
    return [
        {**({"steered": 1} if changed else {}), **({"layers": rows} if rows else {})}
        for changed, rows in zip(steered, layers, strict=True)
    ]


@dataclass(frozen=True)
class RunnerBackend:
    """A user-defined runner, as the source of answers, one question at a time."""

    runner: object
    decoding: Decoding

    def answer(self, keys: Sequence, prompts: Sequence[str], images: Sequence[list]) -> list[Reply]:
        """Replies, as in `ModelBackend.answer`."""
        return [self._one(*question) for question in zip(keys, prompts, images, strict=True)]

    def _one(self, key, prompt: str, images: list) -> Reply:
        chosen = self.decoding
        marked_order(prompt, len(images))  # raises for a marker without its image
        settings = {
            "max_new_tokens": chosen.max_new_tokens,
            "temperature": chosen.temperature,
            "top_p": chosen.top_p,
            "repetition_penalty": chosen.repetition_penalty,
            "seed": own_seed(chosen.seed, key),
            "system_prompt": chosen.system_prompt,
        }
        text, cut = call_runner(self.runner, in_words(prompt), images, **settings)
        return Reply(text.strip(), {}, cut)


def own_seed(seed: int, key) -> int:
    """Seed (32 bits) of one question."""
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode("utf-8", "surrogatepass")).digest()[:4])


FORM = "python:module:callable"


def parse(name: str, flag: str = "--runner") -> tuple[str, str]:
    """(module, callable) of "python:module:callable". Raises ValueError for another form."""
    kind, *parts = name.split(":")
    if kind != "python" or len(parts) != 2 or not all(part and part.isascii() for part in parts):
        raise InputError("runner-form", f"{flag} {name!r} is not of the form {FORM}, such as python:my_model:load")
    return parts[0], parts[1]


@contextmanager
def _current_folder_first() -> Iterator[None]:
    """Search the current folder first for modules, as `python -m` does."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:  # the user's code may have changed the path
            sys.path.remove(folder)


def code(name: str, flag: str = "--runner") -> dict[str, str]:
    """Hashes of the code of a "python:module:callable", by module; see `models.folders.code`."""
    with _current_folder_first():
        return folders.code(parse(name, flag)[0])


def load(name: str, flag: str = "--runner", method: str = "generate(prompt, images, **settings)"):
    """The object that a "python:module:callable" returns. Raises ValueError if it fails or lacks `generate`."""
    module, function = parse(name, flag)
    try:
        with _current_folder_first():
            made = getattr(importlib.import_module(module), function)()
        has_method = callable(getattr(made, method.split("(")[0], None))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's code may raise any error, SystemExit included
        raise InputError("runner-failed", f"{flag} {name!r} could not be made: {describe(error)}") from error
    if not has_method:
        raise ValueError(f"{flag} {name!r} made {type(made).__name__}, which has no method {method}")
    return made


def call_runner(runner, prompt: str, images: list, **settings) -> tuple[str, bool | None]:
    """The runner's answer, and whether the token limit cut it (None if the runner does not report it).

    Raises SampleError if the runner fails or returns no text; the run continues.
    """
    try:
        answer = runner.generate(prompt, images, **settings)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's code may raise any error, SystemExit included
        raise SampleError(f"runner raised {type(error).__name__}", f"the runner failed: {describe(error)}") from error
    text, cut = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, None)
    if not isinstance(text, str) or not (cut is None or isinstance(cut, bool)):
        kind = f"({type(text).__name__}, {type(cut).__name__})" if isinstance(answer, tuple) else type(answer).__name__
        raise SampleError(
            "runner returned no text", f"the runner returned {kind}, where a string or (string, bool) was expected"
        )
    return text, cut


def describe(error: BaseException) -> str:
    """Class of an error and the first line of its message."""
    message = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
