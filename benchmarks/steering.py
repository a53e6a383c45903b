"""The four interventions on a bare decoder, each in two ways: ours, and eager as one would first write it.

The prompt stands for one image between a few words: a square of cells, gaze on its middle, and among all of its tokens
some that spike in the residual stream, for VAR to find (`plant_sinks`). Gaussian and non-gaussian act on every layer,
salient heads on the published ones in proportion, VAR on the third to the last but one. The eager way computes every
softmax matrix whole, as float32, and edits it with the formulas of `models.gaze` and `models.var`; it keeps none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import eager_mask

from models.attention import residual_stream
from models.gaze import Gaze, PlacedMask, SalientHead, check_scanpath, multiply_keys, over_keys, parse_mask_type
from models.interventions import PromptBatch, apply_edits
from models.var import VAR

METHODS = ("gaussian", "non-gaussian", "salient-head", "var")
LITERAL = "sightline_literal"
WORDS = 64  # of the prompt at most; the rest is the image
SINK_DIMENSIONS = (3, 11)
SINK_TOKENS = 50  # of a vocabulary of 1000
SPIKE = 100.0  # the residual stream of a random decoder stays around 1
LAYERS_FOR_VAR = 4  # the first two and the last are left alone


def scene(model, length: int) -> tuple[PromptBatch, list[tuple[int, int]]]:
    """A prompt with one image, a square of cells, after half of its words, and gaze on two of the cells."""
    words = min(WORDS, length // 2)
    side = math.isqrt(length - words)
    image = torch.arange(words // 2, words // 2 + side**2, device=model.device)
    config = model.config
    prompt = PromptBatch(
        length=length,
        starts=(0,),
        images=(image,),
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        width=config.hidden_size,
        grids=lambda: [[(side, side)]],
    )
    return prompt, [(side // 2, side // 2), (side // 3, side // 2)]


def place_gaze(model, method: str, prompt: PromptBatch, points: list):
    """Settings of a gaze method, and its mask on the image."""
    settings, [[(rows, cols)]] = parse_mask_type({"type": method}, prompt.layers, prompt.heads), prompt.grids()
    mask = settings.draw(check_scanpath(points, rows, cols), rows, cols)
    return settings, PlacedMask(mask.to(model.device), prompt.images[0])


def redistribution(prompt: PromptBatch) -> VAR:
    """VAR whose threshold the planted sinks pass and no other token does."""
    return VAR(SINK_DIMENSIONS, tau=0.8 * math.sqrt(prompt.width))


def plant_sinks(model) -> None:
    """Makes sinks of the first tokens of the vocabulary, wherever they stand in a prompt."""
    with torch.no_grad():
        model.get_input_embeddings().weight[:SINK_TOKENS, SINK_DIMENSIONS[0]] = SPIKE


@contextmanager
def ours(model, method: str, length: int) -> Iterator[None]:
    """The decoder under SDPA, with its layers edited."""
    prompt, points = scene(model, length)
    intervention = redistribution(prompt) if method == "var" else Gaze({"type": method}, [points])
    with apply_edits(model, intervention.plan(prompt)):
        yield


@contextmanager
def eager(model, method: str, length: int) -> Iterator[None]:
    """The decoder under a literal attention function, edited in the same way."""
    prompt, points = scene(model, length)
    with ExitStack() as scope:
        if method == "var":
            literal = LiteralVAR(redistribution(prompt), prompt)
            scope.enter_context(residual_stream(model, literal.see))
        else:
            literal = LiteralGaze(*place_gaze(model, method, prompt, points), length)
        AttentionInterface.register(LITERAL, literal)
        model.set_attn_implementation(LITERAL)
        scope.callback(model.set_attn_implementation, "sdpa")
        yield


AttentionMaskInterface.register(LITERAL, eager_mask)


class Literal:
    """Eager attention, whose softmax weights [sample, head, row, key] a subclass edits."""

    def __call__(self, module, query, key, value, attention_mask, scaling, **_):
        key, value = (repeat_kv(each, query.shape[1] // each.shape[1]) for each in (key, value))
        weights = (query @ key.transpose(2, 3) * scaling + attention_mask).softmax(-1, dtype=torch.float32)
        weights = self.edit(module.layer_idx, weights).to(query.dtype)
        return (weights @ value).transpose(1, 2).contiguous(), weights

    def edit(self, layer: int, weights: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class LiteralGaze(Literal):
    """A mask on the keys of all rows, or salient heads from the last prompt row on."""

    def __init__(self, settings, placed: PlacedMask, length: int):
        self.settings, self.placed, self.length = settings, placed, length

    def edit(self, layer: int, weights: torch.Tensor) -> torch.Tensor:
        mask, image = self.placed
        if layer not in self.settings.layers:
            return weights
        if isinstance(self.settings, SalientHead):
            return from_row(self.length - 1, weights, partial(self.settings.edit, image=image, mask=mask))
        return multiply_keys(weights, over_keys(mask, image, weights.shape[-1]))


class LiteralVAR(Literal):
    """Sinks kept from the prefill; the rows behind the image redistributed."""

    def __init__(self, var: VAR, prompt: PromptBatch):
        self.var, self.image, self.layers = var, prompt.images[0], var.layers(prompt.layers)
        self.sinks: dict[int, torch.Tensor] = {}  # per layer: positions

    def see(self, layer: int, hidden: torch.Tensor) -> None:
        if layer not in self.sinks:
            self.sinks[layer] = self.var.sinks(hidden[0])

    def edit(self, layer: int, weights: torch.Tensor) -> torch.Tensor:
        if layer not in self.layers:
            return weights
        change = partial(self.var.edit, image=self.image, sinks=self.sinks[layer])
        return from_row(int(self.image[-1]) + 1, weights, change)


def from_row(first: int, weights: torch.Tensor, change) -> torch.Tensor:
    """Weights whose rows from position `first` on are changed; the last row is that of the last key."""
    skipped = max(first - (weights.shape[-1] - weights.shape[-2]), 0)
    weights[:, :, skipped:] = change(weights[:, :, skipped:])
    return weights


WAYS = {method: partial(ours, method=method) for method in METHODS}
WAYS |= {f"eager-{method}": partial(eager, method=method) for method in METHODS}
