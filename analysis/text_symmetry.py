"""Does the relation word of a sentence look at the entities themselves, or at where they stand in the sentence?

With m1 and m2 the attention that the relation word spends on the entity named first and on the one named second (per
token of its words, mean over the relation word's rows, over heads and over the chosen layers), a sentence has

    asymmetry  a = (m1 - m2) / (m1 + m2)        in -1..1; 1 looks at the first only, 0 at both alike

A counterfactual of the sentence has an asymmetry a' of its own, and symmetry says what a' should be:

    entities swapped    a' = -a    each entity keeps the attention that it had, though the places were exchanged
    relation flipped    a' =  a    which relation is said does not matter to where it looks
    both                a' = -a    the sentence says the same of the picture, the entities keep their attention

With s = -1, 1, -1 the sign of the ideal line a' = s a, a pair is taken apart into

    lean   (a - s a') / 2     what breaks the symmetry; for swapped entities the preference for a place (> 0: first)
    along  (a + s a') / 2     what keeps it; for swapped entities the preference for one entity over the other

so that a = along + lean, and the pair's symmetry score is |lean|, in 0..1: its distance from the ideal line over the
largest one possible. For swapped entities, a model whose attention goes with the entities scores 0 and one that looks
at a place, whatever stands there, scores |a|. A score of 0 alone does not say that entities are looked at: a model
that treats all words alike has it too, and an |along| of 0 beside it.

Two controls. Articles: the same figures of the "a" before each entity, which stands next to it and, in a causal model,
has not yet read it, so they tell what the places alone attract. Shuffled: the score of each caption with another one's
counterfactual; a model that looks at a place scores as high there, one that follows the entities scores higher.
Uniform attention has a = 0, hence 0 all through.

A relation word that comes before an entity cannot see it in a causal model; such sentences are refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from analysis.statistics import DIFFERENCE, SHARE, correct_family, head_tests, mean_interval, paired_difference
from data.errors import SampleError

IDEAL = {"swapped": -1, "flipped": 1, "both": -1}
"""Counterfactual -> sign of the line of ideal symmetry."""
SENTENCES = ("caption", *IDEAL)
MEASURED = ("entities", "articles")
"""What the asymmetry is of; the second is the control of the first."""
ASYMMETRIES = (-2.0, 2.0)  # range of the difference of two asymmetries


@torch.no_grad()
def relation_attention(trace, sample: int, relation: torch.Tensor, words: Sequence[torch.Tensor]) -> np.ndarray:
    """Attention of the relation word to each of some words, float64 [word, layer, head].

    relation, words: positions of the tokens of each. Mean over the relation word's rows and over the tokens of a word,
    so that a word of many tokens is not favoured. Raises SampleError where a word lies behind the relation word.
    """
    if max(int(word.max()) for word in words) > int(relation.min()):
        raise SampleError("relation before an entity", "the relation word comes before an entity and cannot see it")
    found = np.empty((len(words), trace.layers, trace.heads))
    for layer in range(trace.layers):
        rows = trace.weights(layer, relation, samples=[sample])[0].double().mean(1).cpu()  # [head, key]
        for place, word in enumerate(words):
            found[place, layer] = rows[:, word].mean(-1)
    return found


def asymmetry(first, second) -> np.ndarray:
    """(first - second) / (first + second) in -1..1; NaN where there is no attention on either."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    total = first + second
    return np.divide(first - second, total, out=np.full(total.shape, np.nan), where=total > 0)


def lean(caption, counterfactual, kind: str) -> np.ndarray:
    """(a - s a') / 2 of asymmetries a and a' [...], in -1..1; the pair's symmetry score is its absolute value."""
    return (np.asarray(caption) - IDEAL[kind] * np.asarray(counterfactual)) / 2


def along(caption, counterfactual, kind: str) -> np.ndarray:
    """(a + s a') / 2 of asymmetries a and a' [...], in -1..1: what a pair has along the line of ideal symmetry."""
    return (np.asarray(caption) + IDEAL[kind] * np.asarray(counterfactual)) / 2


class Asymmetries:
    """Asymmetries of all sentences of all samples, from `attention` [sample, sentence, word, layer, head].

    The sentences are SENTENCES, the words first and second entity, first and second article. Of what is MEASURED:
    `overall` [sample, sentence] over `layers` together, `by_layer` [sample, sentence, layer] over the heads of each
    layer, `by_head` [sample, sentence, layer, head]; the last two over all layers.
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
    """Of asymmetries [sample, sentence, ...], the captions' and their counterfactuals' of one kind, [sample, ...]."""
    return asymmetries[:, 0], asymmetries[:, SENTENCES.index(kind)]


def summarise(found: Asymmetries, seed: int = 0) -> dict:
    """Every estimate with n, interval and control, for each kind of pair.

    "asymmetry": of the captions. "pairs": per kind the "score", "along" (its absolute value), "shuffled" score and
    "lean" with p against 0, of entities and of articles; "against_articles" and "against_shuffled" are the score of the
    entities minus that control, paired. All p are one family, with q, as "family_of_q" states.
    """
    entities, articles = (found.overall[measured] for measured in MEASURED)
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
    """For each of some samples the index of another one, each taken once; of a single sample its own."""
    order = np.random.default_rng(seed).permutation(count)
    found = np.empty(count, int)
    found[order] = np.roll(order, 1)
    return found


def score_by_layer(found: Asymmetries, kind: str) -> dict[str, list[dict]]:
    """Mean symmetry score of each layer with its interval, of entities and of articles."""
    return {
        measured: [
            mean_interval(scores, SHARE) for scores in np.abs(lean(*pair_of(found.by_layer[measured], kind), kind)).T
        ]
        for measured in MEASURED
    }


def heads_that_lean(found: Asymmetries, kind: str) -> dict[str, dict[str, np.ndarray]]:
    """`head_tests` of the lean of every head, arrays [layer, head], of entities and of articles; each of the two is a
    family of its own."""
    return {measured: head_tests(lean(*pair_of(found.by_head[measured], kind), kind)) for measured in MEASURED}
