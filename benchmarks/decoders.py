"""Random decoders with the attention of the four families, and the conditions in which they generate.

Shapes. `llava` is a Llama: one key head per query head. `qwen` is a Qwen2 (the decoder of Qwen2-VL and of Qwen2.5-VL):
four query heads share a key head, and the projections have biases. `fuyu` is a Persimmon: queries and keys are
normalised, and rotary embeddings rotate half of each head's channels.

Conditions (flag --ways, column `way`); all generate from the same prompt. `plain` is SDPA. `recording` stores queries;
`words` stores those of four prompt tokens and computes their maps in every layer; `rollout` records and computes the
rollout of every generated token; `rollout-gradient` computes it by automatic differentiation of SDPA. `eager` is the
common implementation: output_attentions, every matrix stored, full T x T product; `eager-rows` stores the matrices and
multiplies only the rows of the generated tokens through them.

Interventions: each method runs under SDPA (this project's implementation) and, as `eager-<method>`, in a literal eager
implementation, which computes every softmax matrix in float32, edits it (or its scores) with the formulas of the
method's module, and stores none. The prompt represents one image between text tokens: a square of cells with gaze on
its centre. `plant_sinks` gives some tokens a massive activation, which VAR detects as sinks. Gaussian, non-gaussian and
knockout (text rows to image keys) edit every layer, salient heads and VAF the published layers in proportion, PAI those
from the third on, VAR the third to the last but one. PAI is its attention part; the contrast of its logits costs one
more forward pass of the text a token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Literal

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    LlamaConfig,
    LlamaForCausalLM,
    PersimmonConfig,
    PersimmonForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import eager_mask

from analysis.rollout import rollout
from models.attention import residual_stream
from models.gaze import (
    Gaze,
    PlacedMask,
    SalientHead,
    check_scanpath,
    in_proportion,
    multiply_keys,
    over_keys,
    parse_mask_type,
)
from models.interventions import PromptBatch, apply_edits
from models.knockout import Knockout
from models.pai import PAI, strengthen
from models.trace import AttentionTrace
from models.vaf import PUBLISHED_LAYERS, VAF, amplify
from models.var import VAR

Shape = Literal["llava", "qwen", "fuyu"]
HEAD_WIDTH = 64
QUERIES_PER_KEY = 4  # query heads that share a key head in `qwen`
VOCABULARY = 1000
SHARPEN = 4  # factor on the scores: attention as peaked as in a trained model


METHODS = ("gaussian", "non-gaussian", "salient-head", "var", "knockout", "pai", "vaf")
ROLLOUTS = ("rollout", "rollout-gradient", "eager-rows", "eager")
RECORDING = ("plain", "recording", "words", *ROLLOUTS)
VARIANTS = RECORDING + tuple(variant for method in METHODS for variant in (method, f"eager-{method}"))
MAPPED_TOKENS = 4  # of `words`
EAGER = "sightline_literal"  # name of the literal attention function
TEXT_TOKENS = 64  # maximum in the prompt; the others are image tokens
SINK_DIMENSIONS = (3, 11)
SINK_TOKENS = 50  # of the VOCABULARY
SPIKE = 100.0  # the residual stream of a random decoder is of order 1
LAYERS_FOR_VAR = 4  # VAR leaves the first two and the last unchanged
OTHERS = {"knockout": Knockout(), "pai": PAI(gamma=1.0), "vaf": VAF()}  # settings that depend on no prompt


@dataclass(frozen=True)
class Setup:
    """Flags shared by the benchmarks."""

    new_tokens: int = 16
    """Tokens to generate."""
    layers: int = 8
    """Layers of the random decoder."""
    width: int = 512
    """Hidden size, a multiple of the head width of 64."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device of the decoder."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of weights and cache."""
    threads: int = 2
    """CPU threads."""


def build(shape: Shape, width: int, layers: int, device: str, dtype: str) -> PreTrainedModel:
    """Return the random decoder of a shape in eval mode, with the same weights at each call."""
    heads = width // HEAD_WIDTH
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "intermediate_size": width * 8 // 3,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 2**17,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    if shape == "llava":
        model = LlamaForCausalLM(LlamaConfig(**settings, num_key_value_heads=heads))
    elif shape == "qwen":
        model = Qwen2ForCausalLM(Qwen2Config(**settings, num_key_value_heads=max(1, heads // QUERIES_PER_KEY)))
    else:
        rope = {"rope_type": "default", "rope_theta": 25000.0, "partial_rotary_factor": 0.5}
        model = PersimmonForCausalLM(PersimmonConfig(**settings, rope_parameters=rope, qk_layernorm=True))
    for layer in model.model.layers:
        # Persimmon normalises queries after the projection, so the norm's weight sets their scale.
        last = layer.self_attn.q_layernorm if shape == "fuyu" else layer.self_attn.q_proj
        last.weight.data *= SHARPEN
    plant_sinks(model)
    return model.eval().to(device, getattr(torch, dtype))


def prompt_of(length: int, device) -> torch.Tensor:
    """Token ids of the prompt of a given length, int64 [1, position], the same at each call."""
    return torch.randint(0, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(1)).to(device)


def options_of(prompt: torch.Tensor, new_tokens: int) -> dict:
    """Options of `generate` for exactly `new_tokens` greedy tokens."""
    return {
        "attention_mask": torch.ones_like(prompt),
        "max_new_tokens": new_tokens,
        "min_new_tokens": new_tokens,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }


def plant_sinks(model) -> None:
    """Turn the first tokens of the vocabulary into attention sinks, at any position of a prompt."""
    with torch.no_grad():
        model.get_input_embeddings().weight[:SINK_TOKENS, SINK_DIMENSIONS[0]] = SPIKE


@torch.no_grad()
def generate(model, variant: str, length: int, new_tokens: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Generate in one condition: (tokens [1, position], result of the condition).

    The result is rollout rows [token, key]; token maps [layer, token, key] for `words`; logits [token, vocabulary] for
    `plain` and the interventions; None for `recording`.
    """
    prompt = prompt_of(length, model.device)
    options = options_of(prompt, new_tokens)
    if variant == "plain" or variant in INTERVENTIONS:
        with INTERVENTIONS[variant](model, length=length) if variant in INTERVENTIONS else nullcontext():
            output = model.generate(prompt, **options)
        return output.sequences, torch.cat(output.logits).float().cpu()
    if variant.startswith("eager"):
        model.set_attn_implementation("eager")
        try:
            output = model.generate(prompt, output_attentions=True, **options)
        finally:  # also after an out-of-memory error
            model.set_attn_implementation("sdpa")
        multiply = full_product if variant == "eager" else stored_rows
        return output.sequences, multiply(output.attentions, length)
    rows = range(length - MAPPED_TOKENS, length) if variant == "words" else None
    with AttentionTrace(model, rows=rows) as trace:
        tokens = model.generate(prompt, **options).sequences
    return tokens, trace_result(trace, variant, length)


def trace_result(trace: AttentionTrace, variant: str, length: int) -> torch.Tensor | None:
    """Return the result of a recording condition, computed from its trace."""
    if variant == "rollout":
        return rollout(trace, SimpleNamespace(sample=0, start=0, length=length)).relevance
    if variant == "rollout-gradient":
        return gradient_rollout(trace)
    if variant == "words":
        rows = range(length - MAPPED_TOKENS, length)
        return torch.stack([trace.weights(layer, rows)[0].mean(0).cpu() for layer in range(trace.layers)])
    return None


def gradient_rollout(trace: AttentionTrace) -> torch.Tensor:
    """Rollout by vector-Jacobian products: V A is the gradient of sum(V^T * (A x)) with respect to the values x."""
    last = trace.prompt_length - 1
    rows = torch.arange(trace.length)
    vectors = torch.eye(trace.length)[last:]
    for layer in reversed(range(trace.layers)):
        recorded = trace._recorded[layer]
        query = recorded.queries(0, rows, trace.prompt_length)[None].to(recorded.device)
        key = repeat_kv(recorded.key, query.shape[1] // recorded.key.shape[1]).to(query.device)
        vectors = vectors.to(query.device)
        width, products = query.shape[-1], []
        for chunk in vectors.split(width):
            value = torch.zeros_like(query, requires_grad=True)
            cotangent = pad(chunk.T, (0, width - len(chunk))).to(query.dtype).expand_as(query).contiguous()
            with torch.enable_grad():
                output = scaled_dot_product_attention(query, key, value, is_causal=True, scale=recorded.scaling)
            [gradient] = torch.autograd.grad(output, value, cotangent)
            products.append(gradient[0, :, :, : len(chunk)].float().mean(0).T)
        vectors = (vectors + torch.cat(products)) / 2
    return vectors.cpu()


def layer_matrix(steps, layer: int) -> torch.Tensor:
    """A_l = (mean over heads + I) / 2, [key, key], from `output_attentions` of prefill and decode steps."""
    length = steps[-1][0].shape[-1]
    matrix = torch.eye(length, device=steps[0][0].device)
    row = 0
    for step in steps:
        weights = step[layer][0].float().mean(0)
        matrix[row : row + weights.shape[0], : weights.shape[1]] += weights
        row += weights.shape[0]
    return matrix.div_(2)


def full_product(steps, length: int) -> torch.Tensor:
    """Rows of the generated tokens in the product A_L ... A_1 of full matrices."""
    product = layer_matrix(steps, 0)
    for layer in range(1, len(steps[0])):
        product = layer_matrix(steps, layer) @ product
    return product[length - 1 :].cpu()


def stored_rows(steps, length: int) -> torch.Tensor:
    """The rows of `full_product`, by row-vector products from the last layer to the first."""
    rows = torch.eye(steps[-1][0].shape[-1], device=steps[0][0].device)[length - 1 :]
    for layer in reversed(range(len(steps[0]))):
        rows = rows @ layer_matrix(steps, layer)
    return rows.cpu()


def image_prompt(model, length: int) -> tuple[PromptBatch, list[tuple[int, int]]]:
    """Return a prompt with one image, a square of cells, after half of its text tokens, and gaze on two cells."""
    text = min(TEXT_TOKENS, length // 2)
    side = math.isqrt(length - text)
    image = torch.arange(text // 2, text // 2 + side**2, device=model.device)
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


def gaze_mask(model, method: str, prompt: PromptBatch, points: list):
    """Return the settings of a gaze method and its mask on the image."""
    settings, [[(rows, cols)]] = parse_mask_type({"type": method}, prompt.layers, prompt.heads), prompt.grids()
    mask = settings.draw(check_scanpath(points, rows, cols), rows, cols)
    return settings, PlacedMask(mask.to(model.device), prompt.images[0])


def var_settings(prompt: PromptBatch) -> VAR:
    """VAR with a threshold that only the planted sinks exceed."""
    return VAR(SINK_DIMENSIONS, tau=0.8 * math.sqrt(prompt.width))


@contextmanager
def sdpa_intervention(model, method: str, length: int) -> Iterator[None]:
    """Apply an intervention under SDPA."""
    prompt, points = image_prompt(model, length)
    if method in OTHERS:
        intervention = OTHERS[method]
    else:
        intervention = var_settings(prompt) if method == "var" else Gaze({"type": method}, [points])
    with apply_edits(model, intervention.plan(prompt)):
        yield


@contextmanager
def eager_intervention(model, method: str, length: int) -> Iterator[None]:
    """Apply an intervention in a literal attention function."""
    prompt, points = image_prompt(model, length)
    attention = eager_attention(model, method, prompt, points)
    with ExitStack() as scope:
        if method == "var":
            scope.enter_context(residual_stream(model, attention.store_sinks))
        AttentionInterface.register(EAGER, attention)
        model.set_attn_implementation(EAGER)
        scope.callback(model.set_attn_implementation, "sdpa")
        yield


def eager_attention(model, method: str, prompt: PromptBatch, points: list) -> EagerAttention:
    """Return the literal attention function of an intervention."""
    [image] = prompt.images
    if method == "var":
        return EagerVAR(var_settings(prompt), prompt)
    if method == "knockout":
        return EagerKnockout(image)
    if method == "pai":
        change = partial(strengthen, keys=image, alpha=OTHERS[method].alpha)
        return EagerScores(range(OTHERS[method].first_layer, prompt.layers), prompt.length - 1, change)
    if method == "vaf":
        change = partial(amplify, image=image, enhance=OTHERS[method].enhance, suppress=OTHERS[method].suppress)
        return EagerScores(in_proportion(PUBLISHED_LAYERS, prompt.layers), int(image[-1]) + 1, change)
    return EagerGaze(*gaze_mask(model, method, prompt, points), prompt.length)


AttentionMaskInterface.register(EAGER, eager_mask)


class EagerAttention:
    """Eager attention; subclasses edit its scores or softmax weights [sample, head, row, key]."""

    def __call__(self, module, query, key, value, attention_mask, scaling, **_):
        key, value = (repeat_kv(states, query.shape[1] // states.shape[1]) for states in (key, value))
        scores = self.rescore(module.layer_idx, query @ key.transpose(2, 3) * scaling)
        weights = (scores + attention_mask).softmax(-1, dtype=torch.float32)
        weights = self.edit(module.layer_idx, weights).to(query.dtype)
        return (weights @ value).transpose(1, 2).contiguous(), weights

    def rescore(self, layer: int, scores: torch.Tensor) -> torch.Tensor:
        """Edited scores of a layer, same shape."""
        return scores

    def edit(self, layer: int, weights: torch.Tensor) -> torch.Tensor:
        """Edited weights of a layer, same shape."""
        return weights


class EagerGaze(EagerAttention):
    """Mask on the keys of all rows, or salient heads from the last prompt row on."""

    def __init__(self, settings, placed: PlacedMask, length: int):
        self.settings, self.placed, self.length = settings, placed, length

    def edit(self, layer: int, weights: torch.Tensor) -> torch.Tensor:
        mask, image = self.placed
        if layer not in self.settings.layers:
            return weights
        if isinstance(self.settings, SalientHead):
            return from_row(self.length - 1, weights, partial(self.settings.edit, image=image, mask=mask))
        return multiply_keys(weights, over_keys(mask, image, weights.shape[-1]))


class EagerVAR(EagerAttention):
    """VAR with the sinks of the prefill, on the rows after the image."""

    def __init__(self, var: VAR, prompt: PromptBatch):
        self.var, self.image, self.layers = var, prompt.images[0], var.layers(prompt.layers)
        self.sinks: dict[int, torch.Tensor] = {}  # layer -> positions

    def store_sinks(self, layer: int, hidden: torch.Tensor) -> None:
        if layer not in self.sinks:
            self.sinks[layer] = self.var.sinks(hidden[0])

    def edit(self, layer: int, weights: torch.Tensor) -> torch.Tensor:
        if layer not in self.layers:
            return weights
        change = partial(self.var.edit, image=self.image, sinks=self.sinks[layer])
        return from_row(int(self.image[-1]) + 1, weights, change)


class EagerKnockout(EagerAttention):
    """No weight on the image from the text rows before and after it; renormalised."""

    def __init__(self, image: torch.Tensor):
        self.image = image

    def edit(self, layer: int, weights: torch.Tensor) -> torch.Tensor:
        image_row = torch.zeros(weights.shape[-1], dtype=torch.bool, device=weights.device)
        image_row[self.image] = True
        text = ~image_row[-weights.shape[-2] :]
        weights.masked_fill_(text[:, None] & image_row, 0)
        return weights / weights.sum(-1, keepdim=True)


class EagerScores(EagerAttention):
    """A change of the scores in some layers, in the rows from position `first` on."""

    def __init__(self, layers: Iterable[int], first: int, change: Callable[[torch.Tensor], torch.Tensor]):
        self.layers, self.first, self.change = layers, first, change

    def rescore(self, layer: int, scores: torch.Tensor) -> torch.Tensor:
        return from_row(self.first, scores, self.change) if layer in self.layers else scores


def from_row(first: int, weights: torch.Tensor, change) -> torch.Tensor:
    """Apply `change` to the rows from position `first` on; the last row has the position of the last key."""
    skipped = max(first - (weights.shape[-1] - weights.shape[-2]), 0)
    weights[:, :, skipped:] = change(weights[:, :, skipped:])
    return weights


INTERVENTIONS = {method: partial(sdpa_intervention, method=method) for method in METHODS}
INTERVENTIONS |= {f"eager-{method}": partial(eager_intervention, method=method) for method in METHODS}
