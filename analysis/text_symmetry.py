"""Symmetry of the relation word's attention under counterfactual captions, with its tables and figures.

m1 and m2 are the attention of the relation word to the entity named first and second: per token of the entity, mean
over the relation word's rows, over heads and over the chosen layers. The asymmetry of a sentence is

    a = (m1 - m2) / (m1 + m2)        in -1..1; 1: attention to the first only, 0: equal attention

A counterfactual of the sentence has an asymmetry a'. Attention that follows the entities gives:

    entities swapped    a' = -a    each entity keeps its attention although the positions are exchanged
    relation flipped    a' =  a    attention does not depend on the relation
    both                a' = -a    same meaning as the caption; the entities keep their attention

With s = -1, 1, -1 the sign of the ideal line a' = s a, a pair is split into

    lean   (a - s a') / 2     part that breaks the symmetry; for swapped entities the position bias (> 0: first)
    along  (a + s a') / 2     part that keeps it; for swapped entities the preference for one entity

so that a = along + lean. The pair's symmetry score is |lean|, in 0..1: its distance from the ideal line divided by the
largest possible one. For swapped entities, a model whose attention follows the entities scores 0; one whose attention
follows the positions scores |a|. A score of 0 does not prove attention to entities: uniform attention also scores 0,
with |along| = 0.

Controls. Articles: the same values for the "a" before each entity, which is adjacent to it and, in a causal model,
precedes it, so it measures the effect of position alone. Shuffled: the score of each caption with another caption's
counterfactual; it equals the score under pure position bias and exceeds it where attention follows the entities.
Uniform attention has a = 0 and all values 0.

A relation word before an entity cannot attend to it in a causal model; such sentences raise SampleError.
A run writes arrays, heads.csv and figures: scatter of pairs around the ideal line, example captions, layers, heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.patches import Patch

from analysis.files import save_arrays, write_table
from analysis.plots import BLUE, ORANGE, Figure, for_bars, for_lines, head_heatmap, whole_numbers
from analysis.runs import RunFolder
from analysis.statistics import (
    DIFFERENCE,
    LEVEL,
    SHARE,
    correct_family,
    head_tests,
    known_mean,
    mean_interval,
    paired_difference,
    smallest_p,
    too_few,
)
from analysis.words import check_layers
from data.errors import SampleError, check_at_least

IDEAL = {"swapped": -1, "flipped": 1, "both": -1}
"""Counterfactual -> sign of the ideal line of symmetry."""
SENTENCES = ("caption", *IDEAL)
MEASURED = ("entities", "articles")
"""Word pairs whose asymmetry is computed; the second is the control of the first."""
ASYMMETRIES = (-2.0, 2.0)  # range of the difference of two asymmetries


@torch.no_grad()
def relation_attention(trace, sample: int, relation: torch.Tensor, words: Sequence[torch.Tensor]) -> np.ndarray:
    """Attention of the relation word to each of the given words, float64 [word, layer, head].

    relation, words: token positions of each. Mean over the relation word's rows and over the tokens of a word, so that
    the number of tokens has no effect. Raises SampleError for a word after the relation word.
    """
    if max(int(word.max()) for word in words) > int(relation.min()):
        raise SampleError("relation before an entity", "the relation word comes before an entity and cannot see it")
    attention = np.empty((len(words), trace.layers, trace.heads))
    for layer in range(trace.layers):
        rows = trace.weights(layer, relation, samples=[sample])[0].double().mean(1).cpu()  # [head, key]
        for place, word in enumerate(words):
            attention[place, layer] = rows[:, word].mean(-1)
    return attention


def asymmetry(first, second) -> np.ndarray:
    """(first - second) / (first + second) in -1..1; NaN where both are 0."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    total = first + second
    return np.divide(first - second, total, out=np.full(total.shape, np.nan), where=total > 0)


def lean(caption, counterfactual, kind: str) -> np.ndarray:
    """(a - s a') / 2 of asymmetries a and a' [...], in -1..1; its absolute value is the pair's symmetry score."""
    return (np.asarray(caption) - IDEAL[kind] * np.asarray(counterfactual)) / 2


def along(caption, counterfactual, kind: str) -> np.ndarray:
    """(a + s a') / 2 of asymmetries a and a' [...], in -1..1: component along the ideal line of symmetry."""
    return (np.asarray(caption) + IDEAL[kind] * np.asarray(counterfactual)) / 2


class Asymmetries:
    """Asymmetries of all sentences of all samples, from `attention` [sample, sentence, word, layer, head].

    The sentences are SENTENCES; the words are first and second entity, first and second article. For each of MEASURED:
    `overall` [sample, sentence] over `layers`, `by_layer` [sample, sentence, layer] over the heads of each layer,
    `by_head` [sample, sentence, layer, head]; the last two cover all layers.
    """

    def __init__(self, attention: np.ndarray, layers: Sequence[int]):
        self.attention, self.layers = attention, tuple(layers)
        self.overall, self.by_layer, self.by_head = {}, {}, {}
        for measured, places in zip(MEASURED, ((0, 1), (2, 3)), strict=True):
            first, second = (attention[:, :, place] for place in places)
            chosen = list(layers)
            self.overall[measured] = asymmetry(first[:, :, chosen].mean((2, 3)), second[:, :, chosen].mean((2, 3)))
            self.by_layer[measured] = asymmetry(first.mean(3), second.mean(3))
            self.by_head[measured] = asymmetry(first, second)

    def __len__(self) -> int:
        return len(self.attention)


def pair_of(asymmetries: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Asymmetries of captions and of one kind of counterfactual, each [sample, ...], from [sample, sentence, ...]."""
    return asymmetries[:, 0], asymmetries[:, SENTENCES.index(kind)]


def summarise(asymmetries: Asymmetries, seed: int = 0) -> dict:
    """Every estimate with n, interval and control, for each kind of pair.

    "asymmetry": of the captions. "pairs": per kind the "score", "along" (its absolute value), "shuffled" score and
    "lean" with p against 0, for entities and for articles; "against_articles" and "against_shuffled" are the paired
    differences of the entities' score minus that control. All p form one family for q; see "family_of_q".
    """
    entities, articles = (asymmetries.overall[measured] for measured in MEASURED)
    difference = paired_difference(entities[:, 0], articles[:, 0], seed, ASYMMETRIES)
    pairs = {kind: _pair_summary(entities, articles, kind, seed) for kind in IDEAL}
    tests = [difference]
    for of_kind in pairs.values():
        tests += [*(of_kind[measured]["lean"] for measured in MEASURED)]
        tests += [of_kind[f"against_{control}"] for control in ("articles", "shuffled")]
    return {
        "asymmetry": {
            "entities": mean_interval(entities[:, 0], DIFFERENCE),
            "articles": mean_interval(articles[:, 0], DIFFERENCE),
            "difference": difference,
        },
        "pairs": pairs,
        "family_of_q": correct_family(tests, 'every p of "asymmetry" and "pairs"'),
    }


def _pair_summary(entities: np.ndarray, articles: np.ndarray, kind: str, seed: int) -> dict:
    summary, scores = {}, {}
    for measured, asymmetries in zip(MEASURED, (entities, articles), strict=True):
        captions, counterfactuals = pair_of(asymmetries, kind)
        broken, kept = (part(captions, counterfactuals, kind) for part in (lean, along))
        others = lean(captions, counterfactuals[others_of(len(captions), seed)], kind)
        scores[measured], scores["shuffled", measured] = np.abs(broken), np.abs(others)
        summary[measured] = {
            "score": mean_interval(scores[measured], SHARE),
            "along": mean_interval(np.abs(kept), SHARE),
            "shuffled": mean_interval(scores["shuffled", measured], SHARE),
            "lean": paired_difference(broken, 0.0, seed, DIFFERENCE),
        }
    score = scores["entities"]
    return {
        **summary,
        "against_articles": paired_difference(score, scores["articles"], seed, DIFFERENCE),
        "against_shuffled": paired_difference(score, scores["shuffled", "entities"], seed, DIFFERENCE),
    }


def others_of(count: int, seed: int) -> np.ndarray:
    """Index of another sample for each sample, each index used once; a single sample gets its own index."""
    order = np.random.default_rng(seed).permutation(count)
    others = np.empty(count, int)
    others[order] = np.roll(order, 1)
    return others


def score_by_layer(asymmetries: Asymmetries, kind: str) -> dict[str, list[dict]]:
    """Mean symmetry score of each layer with its interval, for entities and for articles."""
    return {
        measured: [
            mean_interval(scores, SHARE)
            for scores in np.abs(lean(*pair_of(asymmetries.by_layer[measured], kind), kind)).T
        ]
        for measured in MEASURED
    }


def heads_that_lean(asymmetries: Asymmetries, kind: str) -> dict[str, dict[str, np.ndarray]]:
    """`head_tests` of the lean of every head, arrays [layer, head], for entities and for articles; each of the two is a
    separate family."""
    return {measured: head_tests(lean(*pair_of(asymmetries.by_head[measured], kind), kind)) for measured in MEASURED}


WORDS = ("first entity", "second entity", "first article", "second article")
COLUMNS = (
    "first", "second", "relation",
    *(f"asymmetry_{measured}_{sentence}" for measured in MEASURED for sentence in SENTENCES),
    *(f"score_{measured}_{kind}" for measured in MEASURED for kind in IDEAL),
)  # fmt: skip


@dataclass(frozen=True)
class SymmetrySettings:
    """Layers to average and captions to draw."""

    layers: str = "all"
    """all | first_third | mid_third | last_third | last_K, such as last_4 | 3,7,12 (0-based)."""
    examples: int = 4
    """Captions drawn as bars, from the most to the least symmetric; 0 draws none."""
    offload: bool = False
    """Keep recorded queries and keys on the CPU."""

    def __post_init__(self) -> None:
        check_layers(self.layers)
        check_at_least(self, examples=0)


def sample_row(caption, attention: np.ndarray, layers: Sequence[int]) -> dict:
    """Row of a caption, values of COLUMNS; attention: [sentence, word, layer, head], sentences as in SENTENCES."""
    asymmetries = Asymmetries(attention[None], layers)
    words = caption.sentences["caption"]
    row = {"first": words.first, "second": words.second, "relation": words.relation}
    for measured in MEASURED:
        values = asymmetries.overall[measured]
        row |= {f"asymmetry_{measured}_{name}": float(a) for name, a in zip(SENTENCES, values[0], strict=True)}
        for kind in IDEAL:
            row[f"score_{measured}_{kind}"] = float(np.abs(lean(*pair_of(values, kind), kind))[0])
    return row


def save_study(run: RunFolder, captions: Sequence, asymmetries: Asymmetries, examples: int, seed: int) -> dict:
    """Write symmetry.npz, heads.csv and the figures of the measured captions; return the summary."""
    save_arrays(
        run.folder / "symmetry.npz",
        attention=asymmetries.attention.astype(np.float32),
        samples=np.array([caption.name for caption in captions], dtype=str),
        sentences=np.array(SENTENCES),
        words=np.array(WORDS),
        layers=np.array(asymmetries.layers),
    )
    summary = {"layers": asymmetries.layers, **summarise(asymmetries, seed)}
    run.save(pair_scatter(asymmetries, summary["pairs"]), "pairs.png")
    run.save(layer_lines({kind: score_by_layer(asymmetries, kind) for kind in IDEAL}, asymmetries.layers), "layers.png")
    if examples:
        chosen = spread(np.abs(lean(*pair_of(asymmetries.overall["entities"], "swapped"), "swapped")), examples)
        run.save(example_bars(asymmetries, captions, chosen), "examples.png")
    if few := too_few(len(asymmetries)):
        print(few)
    tests = {kind: heads_that_lean(asymmetries, kind) for kind in IDEAL}
    write_table(run.folder / "heads.csv", head_rows(tests, asymmetries))
    for kind, tested in tests.items():
        run.save(head_figure(asymmetries, tested, kind), f"heads-{kind}.png")
    return {**summary, "heads": {kind: _leaning(tested) for kind, tested in tests.items()}}


def spread(scores: np.ndarray, count: int) -> list[int]:
    """Indices of at most `count` finite scores [sample], from the largest to the smallest in even steps of rank."""
    order = [int(index) for index in np.argsort(-scores, kind="stable") if np.isfinite(scores[index])]
    steps = np.linspace(0, len(order) - 1, min(count, len(order)))
    return [order[round(step)] for step in steps]


def _leaning(tested: dict) -> dict:
    """Counts of heads that break the symmetry in each direction, for entities and for articles; "smallest_p" is the
    least p possible with this number of samples."""
    return {
        measured: {
            "leaning": int((test["q"] <= LEVEL).sum()), "heads": test["q"].size, "level_of_q": LEVEL,
            "smallest_p": smallest_p(int(test["n"].max())), "family_of_q": _family(test["q"], measured),
        }
        for measured, test in tested.items()
    }  # fmt: skip


def _family(q: np.ndarray, measured: str) -> str:
    """Description of the family of tests that q corrects for."""
    return f"{np.isfinite(q).sum()} heads, lean of {measured}, one kind of pair"


def mean_along(asymmetries: Asymmetries, kind: str) -> np.ndarray:
    """Mean of |along| of the entities over samples, [layer, head]; NaN where no sample has a finite value."""
    return known_mean(np.abs(along(*pair_of(asymmetries.by_head["entities"], kind), kind)))


def head_figure(asymmetries: Asymmetries, tested: dict, kind: str):
    """Layers x heads: lean of entities and of articles, with dots at significant heads, and mean |along|."""
    panels = [
        (f"{kind}, n = {len(asymmetries)}; dot: q ≤ {LEVEL}\nlean of entities", tested["entities"]["mean"]),
        ("\nlean of articles (control)", tested["articles"]["mean"]),
        ("\n|along| of entities", mean_along(asymmetries, kind)),
    ]
    return head_heatmap(panels, [*(tested[measured]["q"] <= LEVEL for measured in MEASURED), None])


def head_rows(tests: dict, asymmetries: Asymmetries) -> list[dict]:
    """One row per kind of pair and head: the test of its lean, the articles' lean, and mean |along|. `q` and
    `articles_q` each correct over the heads of one kind of pair; see "family_of_q" for q."""
    return [
        {
            "kind": kind, "layer": head[0], "head": head[1],
            **{name: tested["entities"][name][head] for name in ("mean", "effect", "p", "q", "n", "skipped")},
            "articles_mean": tested["articles"]["mean"][head], "articles_q": tested["articles"]["q"][head],
            "along": kept[head], "family_of_q": _family(tested["entities"]["q"], "entities"),
        }
        for kind, tested in tests.items() for kept in [mean_along(asymmetries, kind)] for head in np.ndindex(kept.shape)
    ]  # fmt: skip


TITLES = {"swapped": "entities swapped", "flipped": "relation flipped", "both": "both"}
STYLES = {"entities": (BLUE, "o"), "articles": (ORANGE, "D")}
LABELS = {"entities": "entities", "articles": "articles (control)"}


def pair_scatter(asymmetries: Asymmetries, figures: dict) -> Figure:
    """Scatter per kind of pair: asymmetry of the caption (x) and of its counterfactual (y), with the ideal line.

    figures: "pairs" of `summarise`.
    """
    figure = Figure(figsize=(2.75 * len(IDEAL), 3.35), dpi=200, layout="constrained")
    for axes, (kind, sign) in zip(figure.subplots(1, len(IDEAL)), IDEAL.items(), strict=True):
        axes.axhline(0, color="0.85", linewidth=0.8)
        axes.axvline(0, color="0.85", linewidth=0.8)
        axes.plot([-1, 1], [-sign, sign], color="black", linewidth=0.9, linestyle="--", label="ideal symmetry")
        for measured in reversed(STYLES):
            colour, marker = STYLES[measured]
            across, up = pair_of(asymmetries.overall[measured], kind)
            axes.plot(
                across, up, marker, color=colour, markersize=2.6, alpha=0.5, markeredgewidth=0, label=LABELS[measured]
            )
        axes.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal", xticks=(-1, 0, 1), yticks=(-1, 0, 1))
        axes.set_xlabel("asymmetry of the caption", fontsize=8)
        axes.set_ylabel(f"asymmetry, {TITLES[kind]}", fontsize=8)
        lines = [f"{measured}: score {_interval(figures[kind][measured]['score'])}" for measured in STYLES]
        axes.set_title(
            "\n".join([f"{TITLES[kind]} (n = {figures[kind]['entities']['score']['n']})", *lines]), fontsize=7
        )
        axes.tick_params(labelsize=7)
    legend = {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        legend.values(), legend, loc="outside lower center", ncols=3, frameon=False, fontsize=7, markerscale=1.8
    )
    return figure


def _interval(figure: dict) -> str:
    if figure["low"] is None:
        return "unknown" if figure["mean"] is None else f"{figure['mean']:.3f}"
    return f"{figure['mean']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def example_bars(asymmetries: Asymmetries, captions: Sequence, chosen: Sequence[int]) -> Figure:
    """Bars of the relation word's attention to each entity in every sentence of some captions, in order of naming.

    chosen: indices of captions. One colour is one entity: where attention follows the entities, each colour keeps its
    height at its new position.
    """
    masses = asymmetries.attention[:, :, :2][..., list(asymmetries.layers), :].mean(
        (-2, -1)
    )  # [sample, sentence, place]
    scores = np.abs(lean(*pair_of(asymmetries.overall["entities"], "swapped"), "swapped"))
    figure = Figure(figsize=(7.0, 1.5 * len(chosen) + 0.7), dpi=200, layout="constrained")
    figure.suptitle("attention of the relation word to each entity; the left bar is the one named first", fontsize=8)
    for axes, index in zip(figure.subplots(len(chosen), 1, squeeze=False)[:, 0], chosen, strict=True):
        sentences = captions[index].sentences
        for place, sentence in enumerate(SENTENCES):
            swapped = IDEAL.get(sentence) == -1
            colours = (ORANGE, BLUE) if swapped else (BLUE, ORANGE)
            axes.bar([place - 0.2, place + 0.2], masses[index, place], width=0.36, color=colours)
        labels = [f"{name}\n({sentences[name].relation})" for name in SENTENCES]
        axes.set_xticks(range(len(SENTENCES)), labels=labels, fontsize=7)
        axes.set_ylabel("attention per token", fontsize=7)
        axes.set_title(f"{captions[index].name}: score of the swapped pair {scores[index]:.3f}", fontsize=8, loc="left")
        names = (sentences["caption"].first, sentences["caption"].second)
        patches = [Patch(color=colour, label=name) for colour, name in zip((BLUE, ORANGE), names, strict=True)]
        axes.legend(handles=patches, frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
        for_bars(axes)
    return figure


def layer_lines(scores: dict[str, dict[str, list[dict]]], chosen: Sequence[int]) -> Figure:
    """Panel per kind of pair: mean symmetry score of every layer with its interval, for entities and articles.

    scores: per kind the result of `score_by_layer`. The `chosen` layers have a grey background unless all layers are
    chosen.
    """
    layers = len(next(iter(scores.values()))["entities"])
    figure = Figure(figsize=(2.75 * len(scores), 2.7), dpi=200, layout="constrained")
    for axes, (kind, by_measured) in zip(figure.subplots(1, len(scores), sharey=True), scores.items(), strict=True):
        for layer in chosen if len(chosen) < layers else ():
            axes.axvspan(layer - 0.5, layer + 0.5, color="0.93", linewidth=0)
        for measured, figures in by_measured.items():
            colour, marker = STYLES[measured]
            mean, low, high = (
                np.array([score[key] for score in figures], np.float64) for key in ("mean", "low", "high")
            )
            places = np.arange(layers)
            axes.fill_between(places, low, high, color=colour, alpha=0.25, linewidth=0)
            axes.plot(
                places, mean, marker, linestyle="-", color=colour, markersize=3, linewidth=1.2, label=LABELS[measured]
            )
        axes.set_title(f"{TITLES[kind]} (n = {max(figure['n'] for figure in figures)})", fontsize=8, loc="left")
        axes.set_xlabel("layer", fontsize=8)
        whole_numbers(axes.xaxis)
        axes.set_xlim(-0.5, layers - 0.5)
        axes.set_ylim(bottom=0)
        for_lines(axes)
    figure.axes[0].set_ylabel("symmetry score, 0 = ideal", fontsize=8)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=7
    )
    return figure
