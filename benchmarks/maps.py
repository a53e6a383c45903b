"""Conditions of the benchmark that compute maps of the answer's tokens: every kind of `analysis.maps`, and literally.

`<kind>` generates with what the kind needs and draws its maps of all generated tokens; `relevance` that of the last
token. `eager-<kind>` is the literal way: attention, value, contrast and rollout-corrected read the matrices of an eager
generation; gradient and relevance read a generation again in one eager pass that retains all matrices, and take a
backward pass for each token. The general prompt of contrast is the first half of the prompt, with other tokens after
it.
"""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import torch

from analysis.maps import MAPS, MapSettings, needs, relevance_map
from analysis.rollout import RolloutSettings
from benchmarks import decoders
from benchmarks.decoders import full_product, options_of, prompt_of
from models.attention import prefill
from models.generation import PromptReading
from models.gradients import frozen, score
from models.trace import AttentionTrace

KINDS = tuple(kind for kind in MAPS if kind != "rollout")
EAGER_KINDS = tuple(f"eager-{kind}" for kind in KINDS)
VARIANTS = decoders.VARIANTS + tuple(variant for kind in KINDS for variant in (kind, f"eager-{kind}"))
SETTINGS = MapSettings()


def generate(model, variant: str, length: int, new_tokens: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`benchmarks.decoders.generate` with the conditions of this module, whose result is relevance [token, key]."""
    if variant in KINDS:
        return draw(model, variant, length, new_tokens)
    if variant in EAGER_KINDS:
        return draw_literally(model, variant.removeprefix("eager-"), length, new_tokens)
    return decoders.generate(model, variant, length, new_tokens)


@torch.no_grad()
def draw(model, kind: str, length: int, new_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [1, position] and the maps of a kind, [token, key]."""
    prompt, options = prompt_of(length, model.device), needs([kind], SETTINGS)
    general = options.pop("general", None)
    with AttentionTrace(model, **options) as trace:
        tokens = model.generate(prompt, **options_of(prompt, new_tokens)).sequences
    image = torch.arange(length // 2)
    layout = SimpleNamespace(
        sample=0, start=0, length=length, images=(image,), grids=(None,), image_positions=image
    )  # fmt: skip
    answer = SimpleNamespace(trace=trace, layout=layout, ids=tuple(tokens[0, length:].tolist()), general=None)
    if general is not None:
        with AttentionTrace(model, rows=[-1]) as other:
            prefill(model, {"input_ids": general_prompt(prompt)})
        answer.general = PromptReading(other, layout)
    if kind == "relevance":
        return tokens, relevance_map(answer, SETTINGS, tokens=[new_tokens - 1]).relevance
    return tokens, MAPS[kind].draw(answer, SETTINGS).relevance


def general_prompt(prompt: torch.Tensor) -> torch.Tensor:
    """A prompt with the same first half."""
    half = prompt.shape[1] // 2
    return torch.cat([prompt[:, :half], prompt[:, half:].flip(1)], 1)


@contextmanager
def eager(model):
    """Run the model under eager attention within the block, also after an out-of-memory error."""
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


@torch.no_grad()
def draw_literally(model, kind: str, length: int, new_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [1, position] and the maps of a kind, [token, key], computed from stored matrices."""
    prompt = prompt_of(length, model.device)
    options = options_of(prompt, new_tokens)
    if kind in ("gradient", "relevance"):
        tokens = model.generate(prompt, **options).sequences
        return tokens, literal_gradient(model, kind, tokens, length)
    with eager(model):
        output = model.generate(prompt, output_attentions=True, **options)
    if kind == "rollout-corrected":
        return output.sequences, full_product(output.attentions, length) / uniform_product(model, length, new_tokens)
    values = output.past_key_values if kind == "value" else None
    maps = literal_rows(model, output.attentions, values)
    if kind == "contrast":
        with eager(model):
            general = model.base_model(general_prompt(prompt), output_attentions=True, use_cache=False).attentions
        below = torch.stack([weights[0, :, -1].float().mean(0) for weights in general]).mean(0)[: length // 2].cpu()
        maps[:, : length // 2] /= below
        maps[:, length // 2 :] = 0
    return output.sequences, maps


def literal_rows(model, steps, cache) -> torch.Tensor:
    """Mean over layers and heads of the predicting rows, weighted by value norms with a cache: [token, key]."""
    maps = torch.zeros(len(steps), steps[-1][0].shape[-1])
    for layer in range(len(steps[0])):
        norms = 1 if cache is None else literal_norms(model, layer, cache.layers[layer].values[0].float())
        for token, step in enumerate(steps):
            row = step[layer][0, :, -1].float()
            weighted = row * norms[:, : row.shape[1]] if torch.is_tensor(norms) else row
            maps[token, : row.shape[1]] += weighted.mean(0).cpu() / len(steps[0])
    return maps


def literal_norms(model, layer: int, values: torch.Tensor) -> torch.Tensor:
    """|V W_O| [head, key] of values [key head, key, width], head by head."""
    attention = model.base_model.layers[layer].self_attn
    projection = (attention.dense if hasattr(attention, "dense") else attention.o_proj).weight.float()
    width = values.shape[-1]
    heads = projection.shape[1] // width
    parts = [projection[:, head * width : (head + 1) * width].T for head in range(heads)]
    return torch.stack([(values[head * len(values) // heads] @ part).norm(dim=-1) for head, part in enumerate(parts)])


def literal_gradient(model, kind: str, tokens: torch.Tensor, length: int) -> torch.Tensor:
    """Gradient x attention of every token, or the relevance of the last one, from one eager pass: [token, key]."""
    with eager(model), frozen(model), torch.enable_grad():
        embedded = model.get_input_embeddings()(tokens[:, :-1]).requires_grad_()
        output = model(inputs_embeds=embedded, output_attentions=True, use_cache=False)
        count, maps = tokens.shape[1] - length, []
        for token in range(count) if kind == "gradient" else [count - 1]:
            row = length - 1 + token
            chosen = score(output.logits[0, row][None], tokens[0, row + 1][None])
            gradients = torch.autograd.grad(chosen.sum(), output.attentions, retain_graph=token + 1 < count)
            pairs = [(a[0].detach(), g[0]) for a, g in zip(output.attentions, gradients, strict=True)]
            compose = literal_product if kind == "relevance" else literal_mean
            maps.append(compose(pairs, row).cpu())
    return torch.stack(maps)


def literal_mean(pairs, row: int) -> torch.Tensor:
    """Mean over layers and heads of the positive part of gradient x attention of one row, [key]."""
    return torch.stack([(a[:, row] * g[:, row]).float().clamp(min=0).mean(0) for a, g in pairs]).mean(0)


def literal_product(pairs, row: int) -> torch.Tensor:
    """Row of R, R <- R + Abar R from the first layer up, with full matrices: [key]."""
    product = torch.eye(pairs[0][0].shape[-1], device=pairs[0][0].device)
    for a, g in pairs:
        product = product + (a * g).float().clamp(min=0).mean(0) @ product
    return product[row]


def uniform_product(model, length: int, new_tokens: int) -> torch.Tensor:
    """Rollout of uniform causal attention by full matrices, rows of the generated tokens [token, key]; 1 above the
    diagonal, where it is 0."""
    size, residual = length + new_tokens - 1, RolloutSettings().residual
    uniform = torch.ones(size, size).tril() / torch.arange(1, size + 1)[:, None]
    matrix = (1 - residual) * uniform + residual * torch.eye(size)
    rows = torch.matrix_power(matrix, model.config.num_hidden_layers)[length - 1 :]
    return torch.where(rows > 0, rows, 1)
