"""Map kinds: relevance of image cells for each token of an answer, computed from its trace; MAPS declares them.

    settings = MapSettings()
    output = answer(model, processor, images, prompt, **needs(["rollout", "gradient"], settings))
    maps = MAPS["gradient"].draw(output, settings)      # .per_token [token, row, col], .mean, .max; .maps(image)
    maps.heads                                          # float32 [token, layer, head, cell] of all images, or None

Every kind has this interface: `draw` maps an answer (`models.generation.Answer`) and settings to `AnswerMaps`. Values
are >= 0 and their scale depends on the kind; only a rollout is a distribution. Layers and heads count from 0. All kinds
use the attention that the model used, interventions included, except the general prompt of `contrast`, which is read
without intervention.

Kinds of single rows. `attention`, `gradient` and `value` have a value for each layer and head; the map of a token is
the mean over the chosen layers and heads, negative values (of gradients) counting as 0. With A [head, row, key]:

    attention    A[h, i, j]
    gradient     A[h, i, j] dS/dA[h, i, j], S the score of the token that row i predicts (`models.gradients`)
    value        A[h, i, j] |V[h, j] W_O^h|, the norm of what key j adds to the residual stream of row i
    contrast     the attention map divided by that of the last row of a general prompt about the same images

Composed kinds. `rollout` is `analysis.rollout`; `rollout-corrected` divides it by the rollout of uniform causal
attention, in which every row attends equally to all positions up to its own. `relevance` composes
R <- R + Abar R from the first layer up, Abar = mean over heads of max(A dS/dA, 0): its row i is e_i, then
v <- v + v Abar from the last layer down.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, get_args

import torch
from PIL import Image

from analysis.rollout import RolloutSettings, TokenMaps, rollout, token_rows
from analysis.words import check_layers, select_layers
from data.errors import InputError, SampleError
from models import FAMILIES
from models.generation import Answer, answers
from models.gradients import OutputGradients, Score, answer_gradients, layer_gradients
from models.rows import softmax_rows
from models.trace import BLOCK_ELEMENTS, AttentionTrace, indices_of
from models.values import output_norms

ROLLOUTS = {"rollout", "rollout-corrected"}
GROUP = 4  # tokens whose relevance is computed together: each holds two arrays of the size of the residual stream


@dataclass(frozen=True)
class MapSettings:
    """Settings of the map kinds."""

    score: Score = "log-odds"
    """Score of a token whose gradient is taken (gradient, relevance)."""
    map_layers: str = "all"
    """Layers of attention, gradient, value and contrast maps: all, first_third, mid_third, last_third, last_K, or
    numbers from 0 such as 3,7,12."""
    map_heads: tuple[int, ...] = ()
    """Heads of these maps, from 0; default all."""
    general: str = "Write a general description of the image."
    """General prompt of contrast maps."""
    rollout: RolloutSettings = RolloutSettings()

    def __post_init__(self) -> None:
        if self.score not in get_args(Score):
            raise ValueError(f"--score {self.score!r} is unknown; choose {', '.join(get_args(Score))}")
        check_layers(self.map_layers)
        if any(head < 0 for head in self.map_heads):
            raise ValueError(f"--map-heads holds {min(self.map_heads)}; heads count from 0")
        if not self.general.strip():
            raise ValueError("--general is empty; write a general instruction about the image")


@dataclass(frozen=True)
class MapChoice:
    """Kinds of maps to draw."""

    maps: tuple[str, ...] = ()
    """Any of attention, rollout, rollout-corrected, gradient, relevance, value and contrast (docs/maps.md); default:
    rollout and gradient, with --rows query rollout alone. Files of the first one have no suffix."""
    sanity: bool = False
    """Also draw the maps of the same model with shuffled decoder weights, with their correlation."""

    def __post_init__(self) -> None:
        check_kinds(self.maps, "predicting")

    def kinds(self, rows: str) -> tuple[str, ...]:
        """The kinds for maps of these `rows`. Raises ValueError as `check_kinds` does."""
        default = ("rollout", "gradient") if rows == "predicting" else ("rollout",)
        return check_kinds(self.maps or default, rows)


@dataclass(frozen=True)
class AnswerMaps(TokenMaps):
    """Maps of one kind. `heads` float32 [token, layer, head, cell] holds the values of the chosen `layers` and heads at
    the cells of all images, image by image; None for a kind without them."""

    kind: str = ""
    heads: torch.Tensor | None = field(default=None, repr=False)
    layers: tuple[int, ...] = ()


class MapKind(NamedTuple):
    """A kind of map.

    definition: one sentence. paper: its source. cost: time and memory besides the generation. needs: arguments of
    `models.generation.answers` by name; "general" stands for the general prompt. draw: maps of an answer.
    """

    name: str
    definition: str
    paper: str
    cost: str
    needs: dict[str, object]
    draw: Callable[[Answer, MapSettings], TokenMaps]


def needs(kinds: Iterable[str], settings: MapSettings) -> dict[str, object]:
    """Arguments of `models.generation.answers` for maps of these kinds. Raises ValueError as `check_kinds` does.

    Only rollouts read the prompt's rows; without them, of these only the row that predicts the first token is kept.
    """
    kinds = check_kinds(kinds, settings.rollout.rows)
    wanted: dict[str, object] = {} if ROLLOUTS & set(kinds) else {"rows": [-1]}
    for kind in kinds:
        for name, value in MAPS[kind].needs.items():
            if wanted.get(name) != "all":  # layer inputs of all rows include those of the answer's
                wanted[name] = settings.general if name == "general" else value
    return wanted


def check_kinds(kinds: Iterable[str], rows: str) -> tuple[str, ...]:
    """Each kind once, in the given order. Raises ValueError for an unknown kind, and for a kind that has no meaning
    under the convention `rows`."""
    kinds = tuple(dict.fromkeys(kinds))
    for kind in kinds:
        if kind not in MAPS:
            raise ValueError(f"the map kind {kind!r} is unknown; choose from {', '.join(MAPS)}")
        if "gradients" in MAPS[kind].needs:
            check_predicting(kind, rows)
    return kinds


def drawable_kinds(choice: MapChoice, model, processor, settings: MapSettings) -> tuple[str, ...]:
    """The kinds of a choice that a model can give, tried on a small image unless the family is patched.

    The default leaves out kinds with gradients, with a note on stderr, for attention that cannot be replayed. Raises
    InputError for such a kind in --maps.
    """
    kinds = choice.kinds(settings.rollout.rows)
    if model.config.model_type in FAMILIES:
        return kinds
    try:
        answers(model, processor, [[Image.new("RGB", (64, 64))]], ["a"], max_new_tokens=1, **needs(kinds, settings))
    except SampleError:  # of this image; the samples' own errors are counted
        return kinds
    except InputError as error:
        rest = tuple(kind for kind in kinds if "gradients" not in MAPS[kind].needs)
        if choice.maps or not rest:
            raise
        print(f"note: only {', '.join(rest)} maps are drawn: {error}", file=sys.stderr)
        return rest
    return kinds


def check_predicting(kind: str, rows: str) -> None:
    """Raise ValueError unless `rows` is "predicting": a token's score depends on no later row."""
    if rows != "predicting":
        raise ValueError(
            f"a {kind} map has no {rows} rows, since the score of a token does not depend on the row in which it is "
            "the query; use --rows predicting"
        )


def attention_map(answer: Answer, settings: MapSettings) -> AnswerMaps:
    """Attention of the chosen layers and heads, or its mean over all."""
    return averaged("attention", answer, settings, row_weights(answer, settings))


def value_map(answer: Answer, settings: MapSettings) -> AnswerMaps:
    """Attention weighted by the norm of the value's contribution to the residual stream (`models.values`)."""

    def weighted() -> Iterator[Block]:
        for layer, tokens, rows in row_weights(answer, settings):
            norms = output_norms(answer.trace, layer, answer.layout.sample)
            yield layer, tokens, rows * norms[:, None, : rows.shape[-1]]

    return averaged("value", answer, settings, weighted())


def gradient_map(answer: Answer, settings: MapSettings) -> AnswerMaps:
    """Gradient x attention of the score of each token. Raises ValueError for other rows than "predicting"."""
    check_predicting("gradient", settings.rollout.rows)
    token_rows(answer.trace, answer.layout, "predicting")

    def products() -> Iterator[Block]:
        layers = chosen_layers(answer.trace, settings)
        for tokens, found in answer_gradients(answer.trace, answer.layout.sample, answer.ids, settings.score):
            for layer in layers:
                yield layer, tokens, found[layer].weights * found[layer].gradients

    return averaged("gradient", answer, settings, products())


def contrast_map(answer: Answer, settings: MapSettings) -> AnswerMaps:
    """Attention divided by that of the last row of the general prompt, cell by cell; 0 elsewhere.

    Both are means over the chosen layers and heads. Cells without attention under the general prompt are 0. Raises
    ValueError for an answer without a general prompt, and for one about other images.
    """
    if answer.general is None:
        raise ValueError("the answer has no general prompt to compare with; pass general=... to answer()")
    trace, layout = answer.general
    own, other = answer.layout.image_positions, layout.image_positions
    if len(own) != len(other):
        raise ValueError(f"the prompt has {len(own)} image tokens and the general prompt {len(other)}: other images")
    last = [trace.prompt_length - 1]
    heads = chosen_heads(trace, settings)
    general = torch.stack([
        trace.weights(layer, last, heads, [layout.sample])[0, :, 0, other].mean(0).cpu()
        for layer in chosen_layers(trace, settings)
    ]).mean(0)  # fmt: skip
    maps = attention_map(answer, settings)
    relevance = torch.zeros_like(maps.relevance)
    relevance[:, own] = divided(maps.relevance[:, own], general)
    return AnswerMaps(relevance, maps.rows, answer.layout, maps.composed | {"general": settings.general}, "contrast")


def rollout_map(answer: Answer, settings: MapSettings) -> TokenMaps:
    """Attention rollout (`analysis.rollout`)."""
    return rollout(answer.trace, answer.layout, settings.rollout, tokens=len(answer.ids))


def corrected_map(answer: Answer, settings: MapSettings) -> AnswerMaps:
    """Rollout divided, position by position, by the rollout of uniform causal attention: 1 is what position gives."""
    rolled, trace, start = rollout_map(answer, settings), answer.trace, answer.layout.start
    uniform = torch.zeros_like(rolled.relevance)
    positions = token_rows(trace, answer.layout, rolled.rows, len(answer.ids))
    layers = trace.layers - int(settings.rollout.lowest * trace.layers)
    found = uniform_rollout([position - start for position in positions], layers, settings.rollout)
    uniform[:, start : start + found.shape[1]] = found
    relevance = divided(rolled.relevance, uniform)
    return AnswerMaps(relevance, rolled.rows, answer.layout, rolled.composed, "rollout-corrected")


def uniform_rollout(rows: Sequence[int], layers: int, settings: RolloutSettings) -> torch.Tensor:
    """Rollout of uniform causal attention, A[i, j] = 1 / (i + 1) for j <= i, through some layers: float32 [row, key].

    V A is a sum over rows from the last: (V A)[j] = sum over i >= j of V[i] / (i + 1), so each layer takes O(T). With
    `drop_first`, A[i, j] = 1 / i for 1 <= j <= i, and row 0 keeps its own weight.
    """
    length = max(rows) + 1
    vectors = torch.zeros(len(rows), length, dtype=torch.float64)
    vectors[torch.arange(len(rows)), torch.tensor(rows)] = 1
    attended = torch.arange(length, dtype=torch.float64) + (not settings.drop_first)
    for _ in range(layers):
        mixed = (vectors / attended.clamp_min(1)).flip(1).cumsum(1).flip(1)
        if settings.drop_first:
            mixed[:, 0] = vectors[:, 0]
        vectors = settings.residual * vectors + (1 - settings.residual) * mixed
    return vectors.float()


@torch.no_grad()
def relevance_map(answer: Answer, settings: MapSettings, tokens: Sequence[int] | None = None) -> AnswerMaps:
    """Chefer's relevance of the given tokens of the answer, default all: row i of R for the score of its own token.

    `lowest` of the rollout settings leaves out the lower layers. Raises ValueError for other rows than "predicting".
    """
    check_predicting("relevance", settings.rollout.rows)
    trace, layout, start = answer.trace, answer.layout, answer.layout.start
    token_rows(trace, layout, "predicting")
    tokens = range(len(answer.ids)) if tokens is None else tokens
    relevance = torch.zeros(len(tokens), trace.length)
    lowest = int(settings.rollout.lowest * trace.layers)
    for first in range(0, len(tokens), GROUP):
        group = tokens[first : first + GROUP]
        rows = torch.tensor(group) + trace.prompt_length - 1 - start
        vectors = torch.zeros(len(group), int(rows.max()) + 1)
        vectors[torch.arange(len(group)), rows] = 1
        ids = [answer.ids[token] for token in group]
        for layer in layer_gradients(trace, layout.sample, group, ids, settings.score, lowest):
            vectors = vectors + through_relevance(layer, vectors.to(layer.query.device)).cpu()
        relevance[first : first + GROUP, start : start + vectors.shape[1]] = vectors
    composed = {"score": settings.score, "lowest": settings.rollout.lowest}
    return AnswerMaps(relevance, "predicting", layout, composed, "relevance")


def through_relevance(layer: OutputGradients, vectors: torch.Tensor) -> torch.Tensor:
    """V Abar for row vectors V [token, row], Abar = mean over heads of max(A dS/dA, 0), block by block of rows."""
    query, key, value = (each.float() for each in (layer.query, layer.key, layer.value))
    heads, length, _ = query.shape
    mixed = torch.zeros_like(vectors)
    carrying = int(vectors.any(0).int().argmax())  # in the last layer only the tokens' own rows
    step = max(1, BLOCK_ELEMENTS.get(query.device.type, BLOCK_ELEMENTS["cpu"]) // (heads * length))
    for first in range(carrying, length, step):
        rows = slice(first, min(first + step, length))
        positions, keys = torch.arange(rows.start, rows.stop), slice(0, rows.stop)
        weights = softmax_rows(query[:, rows], key[:, keys], layer.scaling, positions)
        for token, gradients in enumerate(layer.gradients):
            slopes = grouped_product(gradients[:, rows].float(), value[:, keys])
            products = slopes.mul_(weights).clamp_min_(0).flatten(0, 1)
            mixed[token, keys] += vectors[token, rows].repeat(heads) @ products / heads
    return mixed


def grouped_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left [head, row, width] times right [key head, key, width], heads in equal groups: [head, row, key]."""
    grouped = left.reshape(len(right), -1, left.shape[-1])
    return torch.bmm(grouped, right.transpose(1, 2)).view(*left.shape[:2], right.shape[1])


Block = tuple[int, range, torch.Tensor]
"""(layer, indices of tokens, values of all heads [head, token, key]); keys count from the sample's first token."""


@torch.no_grad()
def row_weights(answer: Answer, settings: MapSettings) -> Iterator[Block]:
    """Attention of the tokens' rows in the chosen layers."""
    trace, layout = answer.trace, answer.layout
    positions = token_rows(trace, layout, settings.rollout.rows, len(answer.ids))
    for layer in chosen_layers(trace, settings):
        rows = trace.weights(layer, positions, samples=[layout.sample])[0]
        yield layer, range(len(positions)), rows[..., layout.start : positions[-1] + 1]


def averaged(kind: str, answer: Answer, settings: MapSettings, blocks: Iterator[Block]) -> AnswerMaps:
    """Maps from the values of single layers and heads, in the order of layers within each group of tokens."""
    trace, layout = answer.trace, answer.layout
    heads, layers = chosen_heads(trace, settings), chosen_layers(trace, settings)
    tokens = len(token_rows(trace, layout, settings.rollout.rows, len(answer.ids)))
    relevance = torch.zeros(tokens, trace.length)
    cells = torch.zeros(tokens, len(layers), len(heads), len(layout.image_positions))
    for layer, which, rows in blocks:
        rows, part = rows[heads].cpu(), slice(which.start, which.stop)
        relevance[part, layout.start : layout.start + rows.shape[-1]] += rows.clamp_min(0).mean(0) / len(layers)
        cells[part, layers.index(layer)] = rows[..., layout.image_positions - layout.start].transpose(0, 1)
    composed = {"map_layers": settings.map_layers, "map_heads": ",".join(map(str, settings.map_heads)) or "all"}
    if kind == "gradient":
        composed["score"] = settings.score
    return AnswerMaps(relevance, settings.rollout.rows, layout, composed, kind, cells, layers)


def chosen_layers(trace: AttentionTrace, settings: MapSettings) -> tuple[int, ...]:
    """Layers of the settings. Raises ValueError for a layer that the model does not have."""
    return select_layers(settings.map_layers, trace.layers)


def chosen_heads(trace: AttentionTrace, settings: MapSettings) -> list[int]:
    """Heads of the settings, default all. Raises IndexError for a head that does not exist."""
    return indices_of(list(settings.map_heads) or slice(None), trace.heads, "head").tolist()


def divided(above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """above / below, 0 where below is 0."""
    return torch.where(below > 0, above / torch.where(below > 0, below, 1), 0)


KINDS = (
    MapKind(
        "attention", "attention of the predicting row, mean over the chosen layers and heads",
        "Vaswani et al., Attention is all you need, NeurIPS 2017, equation 1",
        "no more than recording", {}, attention_map,
    ),
    MapKind(
        "rollout", "product over layers of (mean over heads + identity) / 2",
        "Abnar and Zuidema, Quantifying attention flow in transformers, ACL 2020, section 3",
        "O(L T^2) time, O(T) memory", {}, rollout_map,
    ),
    MapKind(
        "rollout-corrected", "rollout divided by the rollout of uniform causal attention",
        "this project; the correction of the position's own share",
        "that of rollout", {}, corrected_map,
    ),
    MapKind(
        "gradient", "attention times the gradient of the token's score, positive part, mean over layers and heads",
        "Chefer et al., Generic attention-model explainability, ICCV 2021, equation 5, of single layers",
        "one pass of the answer's rows forward and backward", {"gradients": "answer"}, gradient_map,
    ),
    MapKind(
        "relevance", "product over layers of identity + positive part of gradient x attention, mean over heads",
        "Chefer et al., Generic attention-model explainability, ICCV 2021, equations 5 and 6",
        "about one plain generation per token; inputs of all layers", {"gradients": "all"}, relevance_map,
    ),
    MapKind(
        "value", "attention times the norm of the value after the output projection",
        "Kobayashi et al., Attention is not only a weight, EMNLP 2020, section 3",
        "one projection of the values per layer; the values are kept", {"values": True}, value_map,
    ),
    MapKind(
        "contrast", "attention divided by that of a general prompt about the same images",
        "Zhang et al., MLLMs know where to look, ICLR 2025, relative attention",
        "one more prefill", {"general": True}, contrast_map,
    ),
)  # fmt: skip
MAPS = {kind.name: kind for kind in KINDS}
