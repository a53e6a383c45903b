"""Questions put to a model in batches, each answered as if it were alone, and what steering did to each answer.

An answer does not depend on the others of its batch: padding is masked, random numbers belong to the question
(`models.sampling`), and what is counted of steering ends with the answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import LogitsProcessorList

from data.geometry import ImageGrid
from models import runner as runners
from models.adapt_vis import AdaptVis, confidence
from models.answer import answer_length
from models.gaze import GazeMask, KeyMask
from models.markers import in_words, marked_order
from models.memory import check_fits
from models.sampling import penalised, sampling
from models.touched import Touched
from models.var import VAR


class Reply(NamedTuple):
    """An answer's text, stripped; what steering did to it: numbers that add up over answers, by name, and, where rows
    were edited, `layers`, a row of `models.touched` for each layer in which something was found; and whether the token
    limit cut it, so that it has no end token (None: unknown)."""

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
        image markers (`models.markers`).

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
    """A user's own model (`models.runner`), asked one question at a time."""

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
