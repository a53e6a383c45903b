"""Do the heads that answer to an object matter for what the model says? Heads chosen, random ones beside, and tests.

Heads are chosen on one half of the pairs, by the size of their mean response, and everything is measured on the other
half: whether they respond there too, and what becomes of log p(yes) - log p(no) when their image attention is taken
away (`models.ablation`). Random heads of the same layers, as many in each, say what taking away any heads would do.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, prod

import numpy as np

from analysis.statistics import (
    DIFFERENCE,
    MIN_SPLIT,
    REAL,
    SHARE,
    benjamini_hochberg,
    correct_family,
    head_tests,
    holm,
    mean_interval,
    paired_difference,
    rate_interval,
)

Heads = tuple[tuple[int, int], ...]
"""(place of the layer among those that were measured, head) pairs, or (layer, head) ones; from 0."""
LEAST = MIN_SPLIT  # pairs
PICTURES = ("full", "control")


def choose(signed: np.ndarray, count: int) -> Heads:
    """The `count` heads of largest |mean response|, of responses [layer, head, pair], largest first.

    At most half of a layer's heads, so that as many others are left to compare with; a head without any response is
    none. Raises ValueError where a model has too few heads for that.
    """
    layers, heads, _ = signed.shape
    if count > layers * (heads // 2):
        raise ValueError(
            f"{count} heads are more than half of those of the {layers} layers with {heads} heads each; choose at most "
            f"{layers * (heads // 2)}, so that as many others are left to compare with"
        )
    size = np.abs(signed.astype(np.float64).mean(-1))
    found: list[tuple[int, int]] = []
    for place in np.argsort(-size, axis=None, kind="stable").tolist():
        layer, head = divmod(place, heads)
        if len(found) < count and size[layer, head] > 0 and sum(of == layer for of, _ in found) < heads // 2:
            found.append((layer, head))
    return tuple(found)


def random_sets(chosen: Heads, heads: int, draws: int, rng: np.random.Generator) -> list[Heads]:
    """Different sets of heads that were not chosen, as many of each layer as were: `draws` of them, or all there are.

    heads: how many a layer has; at most half of them may be chosen.
    """
    taken = {layer: [head for of, head in chosen if of == layer] for layer in sorted({layer for layer, _ in chosen})}
    possible = prod(comb(heads - len(mine), len(mine)) for mine in taken.values())
    found: dict[Heads, None] = {}
    while taken and len(found) < min(draws, possible):
        drawn = []
        for layer, mine in taken.items():
            others = np.setdiff1d(np.arange(heads), mine)
            drawn += [(layer, int(head)) for head in sorted(rng.choice(others, len(mine), replace=False))]
        found[tuple(drawn)] = None
    return list(found)


def held_out(signed: np.ndarray, chosen: Heads, first: np.ndarray, second: np.ndarray, seed: int) -> list[dict]:
    """Responses of the chosen heads on the half that they were not chosen on: one row a head.

    signed: [layer, head, pair]; first, second: the halves' places. "q" is that of the first half over all heads;
    "other_half" has mean, interval, n and p as `analysis.statistics.paired_difference`, and p_holm over these heads.
    """
    tested = head_tests(signed[..., first].transpose(2, 0, 1))
    tests = [paired_difference(signed[*at][second], 0.0, seed, DIFFERENCE) for at in chosen]
    corrected = holm([np.nan if test["p"] is None else test["p"] for test in tests])
    return [
        {
            "layer": layer,
            "head": head,
            "mean": float(tested["mean"][layer, head]),
            "q": float(tested["q"][layer, head]),
            "n": int(tested["n"][layer, head]),
            "other_half": {**test, "p_holm": float(p)},
        }
        for (layer, head), test, p in zip(chosen, tests, corrected, strict=True)
    ]


def summarise(margins: dict[str, np.ndarray], seed: int) -> dict:
    """Effect of ablation, of margins log p(yes) - log p(no) by set of heads, each float64 [pair, full or control].

    Sets are "none", "chosen", and any number of others, the random ones. For the full picture, the control, and
    full - control: the margin without ablation, its change by the chosen heads and by the random ones (mean over the
    random sets of each pair), each with interval, n and p; "chosen_minus_random" is their paired difference, "draws"
    the mean change by each random set. That difference may be sure and yet no larger than those between random sets, so
    "rank" counts the sets, the chosen one among them, that change the margin at least as much, and "p_rank" is their
    share: the p of the hypothesis that the chosen heads are heads like any, never below "smallest_p_rank",
    1 / (1 + draws). q corrects over the nine paired tests, as "family_of_q" states, and "q_rank" over the three ranks.
    "says_yes": share of pairs with a margin above 0 (random: the mean over pairs of the share of the random sets with
    which it is).
    """
    random = [margin for name, margin in margins.items() if name not in ("none", "chosen")]
    mean_random = np.mean(random, axis=0)
    found = {}
    for name, weights in (("full", (1, 0)), ("control", (0, 1)), ("full_minus_control", (1, -1))):
        plain, chosen, control = (values @ weights for values in (margins["none"], margins["chosen"], mean_random))
        draws = [float(np.mean(values @ weights - plain)) for values in random]
        rank = 1 + int((np.abs(draws) >= np.abs(np.mean(chosen - plain))).sum())
        found[name] = {
            "margin": mean_interval(plain, REAL),
            "chosen": paired_difference(chosen, plain, seed, REAL),
            "random": paired_difference(control, plain, seed, REAL),
            "chosen_minus_random": paired_difference(chosen, control, seed, REAL),
            "draws": draws,
            "rank": rank,
            "p_rank": rank / (1 + len(draws)),
            "smallest_p_rank": 1 / (1 + len(draws)),
        }
    parts = list(found.values())
    for part, q in zip(parts, benjamini_hochberg([part["p_rank"] for part in parts]), strict=True):
        part["q_rank"] = float(q)
    tests = [part[name] for part in parts for name in ("chosen", "random", "chosen_minus_random")]
    found["family_of_q"] = correct_family(tests, "three comparisons of full, control and full - control")
    found["says_yes"] = {
        picture: {
            **{name: rate_interval(margins[name][:, place] > 0) for name in ("none", "chosen")},
            "random": mean_interval(np.mean([values[:, place] > 0 for values in random], axis=0), SHARE),
        }
        for place, picture in enumerate(PICTURES)
    }
    return found


def margin_rows(pairs: Sequence[str], margins: dict[str, np.ndarray], names: dict[str, str]) -> list[dict]:
    """The rows of ablation.csv: for each pair and set of heads both margins, of [pair, full or control] as in
    `summarise`; `names` spells the sets' heads."""
    return [
        {"sample": pair, "set": which, "heads": names[which], "full": float(full), "control": float(control)}
        for place, pair in enumerate(pairs)
        for which, (full, control) in ((which, values[place]) for which, values in margins.items())
    ]
