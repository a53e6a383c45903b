"""Questions put to a model in batches, each answered as if it were alone, and what steering did to each answer.

An answer does not depend on the others of its batch: padding is masked, random numbers belong to the question
(`models.generation_settings`), and what is counted of steering ends with the answer.

A model of the user's own: any Python object that answers prompts about images.

    --runner python:MODULE:CALLABLE

CALLABLE() is called once and returns an object with `generate(prompt, images, **settings)`, which returns the answer
as a string, or (string, cut) with `cut` true where `max_new_tokens` ended it. `prompt` is a string, `images` a list of
PIL images (RGB) in the order of the question's image markers, each of which is the words "image 1" (the first of
`images`), "image 2", ... in `prompt`. `settings` are max_new_tokens, temperature (0: greedy), top_p, repetition_penalty
(1: none), seed (one of its own for each question) and system_prompt (a string or None). MODULE is looked for in the
current folder first, then where Python looks.

A run goes on only with the same code: the files of MODULE and of the modules that it imports, installed packages left
out (`models.folders.code`). Other files that the runner reads, such as its weights, are not compared.

The flags that say how attention is steered while questions are answered, and what they make of a model.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import torch
from transformers import LogitsProcessorList

from data.errors import SampleError
from data.geometry import ImageGrid
from models import answering as runners
from models import folders
from models.adapt_vis import AdaptVis, confidence
from models.gaze import GazeMask, KeyMask
from models.generation import answer_length
from models.generation_settings import penalised, sampling
from models.interventions import Touched
from models.memory import check_fits
from models.var import VAR, PromptRows
from models.vlm import in_words, marked_order


class Reply(NamedTuple):
    """An answer's text, stripped; what steering did to it: numbers that add up over answers, by name, and, where rows
    were edited, `layers`, a row of `models.interventions.by_layer` for each layer in which something was found; and
    whether the token limit cut it, so that it has no end token (None: unknown)."""

    text: str
    touched: dict[str, int | list]
    cut: bool | None


@dataclass(frozen=True)
class Generation:
    """How answers are generated; temperature 0 is greedy."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    system: str | None = None
    repetition_penalty: float = 1.0


Steer = Callable[[Sequence, dict, list], tuple[dict, list[dict[str, int]]]]
"""Told the keys, the inputs and the layouts of a batch; returns options of `generate`, and numbers for each `Reply`."""


def plain(keys, inputs, layouts) -> tuple[dict, list[dict[str, int]]]:
    """No steering."""
    return {}, [{} for _ in keys]


def redistributed(var: VAR) -> Steer:
    """The same redistribution for all."""
    return lambda keys, inputs, layouts: ({"steering": var}, [{} for _ in keys])


def adapted(model, settings: AdaptVis) -> Steer:
    """Each sample by its own confidence; counts how many got which weight, and those that it changed as steered."""

    def steer(keys, inputs, layouts):
        sure = confidence(model, inputs)
        scaling, unsure = settings.scaling(sure), (sure < settings.threshold).tolist()
        counts = [{"weight1" if each else "weight2": 1} for each in unsure]
        for count, weight in zip(counts, scaling.weights, strict=True):
            count.update({"steered": 1} if weight != 1 else {})
        return {"steering": scaling}, counts

    return steer


def gazed(mask: GazeMask, gaze_of: Callable[[object, Sequence[ImageGrid]], tuple[list, str]]) -> Steer:
    """Each sample by its own gaze: gaze_of(key, grids of its images) gives points, or none and the reason.

    A mask over keys steers every answer that has gaze; what SalientHead edits is counted as it happens (`changes`).
    """
    with_gaze = {"steered": 1} if isinstance(mask, KeyMask) else {}

    def steer(keys, inputs, layouts):
        found = [gaze_of(key, layout.grids) for key, layout in zip(keys, layouts, strict=True)]
        counts = [with_gaze if points else {f"no gaze: {reason}": 1} for points, reason in found]
        return {"mask_type": mask, "scanpaths": [points for points, _ in found]}, counts

    return steer


@dataclass(frozen=True)
class ModelAsked:
    """One of the families, asked under SDPA."""

    model: torch.nn.Module
    processor: object
    generation: Generation
    steer: Steer = plain

    @torch.no_grad()
    def ask(self, keys: Sequence, prompts: Sequence[str], images: Sequence[list]) -> list[Reply]:
        """Replies to a batch; `keys` name its questions, `images` has a list of RGB pictures for each. Prompts may hold
        image markers (`models.vlm`).

        Raises SampleError for one that cannot be put to the model.
        """
        chosen, model = self.generation, self.model
        inputs, layouts = model.prepare(self.processor, images, prompts, chosen.system)
        length, touched = inputs["input_ids"].shape[1], Touched()
        check_fits(model, len(keys), length + chosen.max_new_tokens, recorded=False)
        options, counts = self.steer(keys, inputs, layouts)
        processors = [
            *penalised(chosen.repetition_penalty, inputs["attention_mask"]),
            *sampling(chosen.temperature, chosen.top_p, chosen.seed, keys, length),
        ]
        options["logits_processor"] = LogitsProcessorList(processors)
        output = model.generate(**inputs, **options, max_new_tokens=chosen.max_new_tokens, touched=touched)
        generated, end = output[:, length:], model.generation_config.eos_token_id
        lengths = [answer_length(ids, end) for ids in generated]
        decode = self.processor.tokenizer.decode
        return [
            Reply(decode(ids[:count], skip_special_tokens=True).strip(), {**before, **edited}, count == len(ids))
            for ids, count, before, edited in zip(generated, lengths, counts, changes(touched, lengths), strict=True)
        ]


def changes(touched: Touched, lengths: Sequence[int]) -> list[dict]:
    """What row edits did to each sample: `steered` (1) where they changed a row, and the `layers` that they touched.

    `lengths` are those of the answers without their end tokens, which take as many decode steps.
    """
    found = [[] for _ in lengths]
    for row in touched.table(lengths):
        counts = {name: count for name, count in row.items() if name not in ("layer", "sample")}
        if any(counts.values()):
            found[row["sample"]].append({"layer": row["layer"], **counts})
    return [
        {**({"steered": 1} if any(row["pairs"] for row in rows) else {}), **({"layers": rows} if rows else {})}
        for rows in found
    ]


@dataclass(frozen=True)
class RunnerAsked:
    """A user's own model (`models.answering`), asked one question at a time."""

    runner: object
    generation: Generation

    def ask(self, keys: Sequence, prompts: Sequence[str], images: Sequence[list]) -> list[Reply]:
        """Replies, as `ModelAsked.ask` gives them."""
        return [self._one(*each) for each in zip(keys, prompts, images, strict=True)]

    def _one(self, key, prompt: str, images: list) -> Reply:
        chosen = self.generation
        marked_order(prompt, len(images))  # raises for a marker that names no image
        settings = {
            "max_new_tokens": chosen.max_new_tokens,
            "temperature": chosen.temperature,
            "top_p": chosen.top_p,
            "repetition_penalty": chosen.repetition_penalty,
            "seed": own_seed(chosen.seed, key),
            "system_prompt": chosen.system,
        }
        text, cut = runners.ask(self.runner, in_words(prompt), images, **settings)
        return Reply(text.strip(), {}, cut)


def own_seed(seed: int, key) -> int:
    """A seed of 32 bits for one question."""
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode("utf-8", "surrogatepass")).digest()[:4])


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
    """Hashes of the code behind a runner, by module; see `models.folders.code`."""
    with _current_folder_first():
        return folders.code(parse(runner)[0])


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


GAZE = ("gaussian", "non-gaussian", "salient-head")
BELONGS = {"var": ("var",), "sink": ("var",), "adapt": ("adapt-vis",)}  # first word of a flag -> methods that read it


@dataclass(frozen=True)
class MethodFlags:
    """A script's Config inherits these; `var` and `adapt_vis` are the settings that they make."""

    method: Literal["default", "var", "gaussian", "non-gaussian", "salient-head", "adapt-vis"] = "default"
    """default: the model as it is; var: visual attention redistribution; gaussian, non-gaussian, salient-head: along
    --scanpaths; adapt-vis: image scores scaled by confidence."""
    var_threshold: float | None = None
    """var: |RMSNorm(x)| of a sink exceeds this (default: the --sink-file's, else 20)."""
    var_attn_p: float = 0.6
    """var: the share of its weight that a sink keeps."""
    var_head: float = 0.5
    """var: heads with a larger share of their image attention on sinks are left alone."""
    var_skip_without_visual_sinks: bool = False
    """var: leave a layer alone whose sinks are all text tokens, as the published code does (the paper's formula edits
    it)."""
    var_prompt_rows: PromptRows = "after-image"
    """var: rows of the prompt that are edited; "all" is what the published code's port to Qwen2.5-VL does."""
    var_dimensions: tuple[int, ...] = ()
    """var: sink dimensions, counted from 0 (default: those known of the language model)."""
    sink_file: str | None = None
    """var: instead of --var-dimensions, what find_sink_dimensions_simple.py wrote."""
    adapt_weight1: float = 0.5
    """adapt-vis: what multiplies image scores where the model is unsure."""
    adapt_weight2: float = 1.5
    """adapt-vis: what multiplies them where it is sure."""
    adapt_threshold: float = 0.4
    """adapt-vis: probability of the first token below which it is unsure."""

    def check_method(self) -> None:
        """Raises ValueError for flags that cannot work with any model, or that the method does not read."""
        for field in fields(MethodFlags):
            methods = BELONGS.get(field.name.split("_")[0], (self.method,))
            if self.method not in methods and getattr(self, field.name) != field.default:
                flag = field.name.replace("_", "-")
                raise ValueError(f"--{flag} belongs to --method {methods[0]}, and the method is {self.method}")
        if self.method == "adapt-vis":
            self.adapt_vis()
        if self.method == "var":
            if self.var_dimensions and self.sink_file:
                raise ValueError("--var-dimensions and --sink-file were both given; choose one")
            VAR(self.var_dimensions or (0,), **self._var())

    def adapt_vis(self) -> AdaptVis:
        """Raises ValueError as `AdaptVis` does."""
        return AdaptVis(self.adapt_weight1, self.adapt_weight2, self.adapt_threshold)

    def var(self, model) -> VAR:
        """Settings for this model. Raises as `VAR.for_model` does."""
        return VAR.for_model(model, self.var_dimensions or None, self.sink_file, **self._var())

    def _var(self) -> dict:
        settings = {
            "rho": self.var_head,
            "p": self.var_attn_p,
            "skip_without_visual_sinks": self.var_skip_without_visual_sinks,
            "prompt_rows": self.var_prompt_rows,
        }
        return settings if self.var_threshold is None else {"tau": self.var_threshold, **settings}
