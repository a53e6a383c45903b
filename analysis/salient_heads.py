"""Settings of the salient-head method for a model: measured on one half of the images, tested on the other.

The method takes, in some layers, at most k heads whose Sim (analysis/heads.py), divided by the layer's largest, is
above tau. Published are 19..26, 8 and 0.5232, for LLaVA-1.5-7B alone. Here every head's Sim with its image's own gaze
is compared with its Sim with another image's gaze. The difference (the lift) tells heads that follow this gaze from
heads with a bias to the common places of gaze; from it follow the layers, k and tau.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import special, stats

from analysis.heads import mean_heads, relative
from analysis.statistics import DIFFERENCE, SHARE, known_mean, mean_interval

LIFT_SHARE = 0.5  # of the largest lift of all heads that a head must reach
CONFIDENCE = 0.95  # of the statement that no head of the model is a follower by chance
LOOKS = 0.1  # of its attention that a head must spend on the image to be worth editing
LEAST = 10  # images in a half
RESAMPLES = 2000


class Settings(NamedTuple):
    """What the method needs: `layers` (0-based), `tau`, and at most `heads` heads of a layer."""

    layers: tuple[int, ...]
    tau: float
    heads: int


class Proposal(NamedTuple):
    """Settings and how they were found; `followers` bool [layer, head]; without any follower `settings` is None."""

    settings: Settings | None
    reason: str
    followers: np.ndarray


def find_followers(lift: np.ndarray) -> np.ndarray:
    """Heads that follow the gaze: bool [layer, head] of lifts [image, layer, head].

    Those whose mean lift is at least LIFT_SHARE of the largest and above 0 with CONFIDENCE by a two-sided t test,
    corrected for the number of heads (Bonferroni).
    """
    found = mean_heads(lift, DIFFERENCE)
    largest = np.fmax.reduce(found["mean"], axis=None)
    level = (1 - CONFIDENCE) / lift[0].size
    with np.errstate(invalid="ignore", divide="ignore"):
        t = found["mean"] / (found["deviation"] / np.sqrt(found["n"]))
        return (t > special.stdtrit(found["n"] - 1, 1 - level / 2)) & (found["mean"] >= LIFT_SHARE * largest)


def propose(own: np.ndarray, shuffled: np.ndarray, seen: np.ndarray) -> Proposal:
    """Settings from similarities [image, layer, head] with the image's own gaze and with another image's.

    Layers: those that hold a follower that spends LOOKS or more of its attention on the image (`seen`, of the same
    shape); to edit a head that does not look changes nothing. k: the most followers that such a layer holds, those
    that do not look included, since the method takes them as well. tau: see `best_threshold`.
    """
    if len(own) < LEAST:
        few = (
            "too few images: settings are chosen on one half of them and tested on the other, so give at least"
            f" {2 * LEAST}"
        )
        return Proposal(None, few, np.zeros(own.shape[1:], bool))
    followers = find_followers(own - shuffled)
    looking = followers & (seen.mean(0) >= LOOKS)
    if not looking.any():
        none = "no head that looks at the image follows its gaze more than it follows another image's"
        return Proposal(None, none, followers)
    layers = np.flatnonzero(looking.any(1)).tolist()
    follows = followers[layers]
    heads = int(follows.sum(1).max())
    near = relative(own)[:, layers]
    tau, kept, passed = best_threshold(near[:, follows], near[:, ~follows])
    most = np.nanmax(known_mean(own - shuffled))
    apart = (
        "there, every head is a follower, so tau has nothing to keep out"
        if follows.all()
        else f"there, {kept:.0%} of the followers' values and {passed:.0%} of the other heads' are above tau, and a"
        " stricter one would not tell them apart better"
    )
    reason = (
        f"{followers.sum()} of {followers.size} heads follow the gaze: their similarity is higher with their image's"
        f" own gaze than with another image's, surely and by at least {LIFT_SHARE:.0%} of the largest such lift"
        f" ({most:.2f}); {looking.sum()} of them spend at least {LOOKS:.0%} of their attention on the image. These lie"
        f" in layers {', '.join(map(str, layers))}, with at most {heads} followers in one; {apart}."
    )
    return Proposal(Settings(tuple(layers), tau, heads), reason, followers)


def best_threshold(high: np.ndarray, low: np.ndarray) -> tuple[float, float, float]:
    """(tau, share of `high` above it, share of `low` above it) of values [image, head] that are to be told apart.

    The difference of the two shares is often flat over a wide range, where its peak is an accident. So, as in pruning
    trees (Breiman et al., 1984), tau is the smallest value at which it is within one standard error over the images of
    its peak: a stricter one gains nothing that can be measured and loses some of `high`. 0 where `low` is empty.
    """
    high, low = (np.nan_to_num(values, nan=-1.0) for values in (high, low))
    if not low.size:
        return 0.0, float((high > 0).mean()), 0.0
    candidates = np.linspace(0, 1, 100, endpoint=False)
    difference = np.stack([(high > tau).mean(1) - (low > tau).mean(1) for tau in candidates])
    means = difference.mean(1)
    peak = means.argmax()
    slack = difference[peak].std(ddof=1) / np.sqrt(len(high))
    tau = float(candidates[(means >= means[peak] - slack).argmax()])
    return tau, float((high > tau).mean()), float((low > tau).mean())


def select(similarity: np.ndarray, settings: Settings) -> np.ndarray:
    """Heads that the method would take: bool [image, layer, head] of similarities of that shape, by whole answers."""
    near = np.nan_to_num(relative(similarity), nan=-1.0)
    rank = (-near).argsort(-1, kind="stable").argsort(-1, kind="stable")
    chosen = (near > settings.tau) & (rank < settings.heads)
    chosen[:, np.setdiff1d(np.arange(chosen.shape[1]), settings.layers)] = False
    return chosen


def score(settings: Settings, own: np.ndarray, shuffled: np.ndarray) -> dict:
    """How near the heads that `settings` take are to the gaze, mean over images with intervals.

    own, shuffled: similarities [image, layer, head].
    Returned are similarity: of the heads taken; shuffled: the same all the way (taken and measured) with another
    image's gaze, so that picking the largest gains as much there; lift: the difference, paired; heads: how many are
    taken an image.
    """
    taken, control = (_mean_over(values, select(values, settings)) for values in (own, shuffled))
    both = ~np.isnan(taken + control)
    return {
        "similarity": mean_interval(taken[both], SHARE),
        "shuffled": mean_interval(control[both], SHARE),
        "lift": mean_interval((taken - control)[both], DIFFERENCE),
        "heads": mean_interval(select(own, settings).sum((1, 2)), (0, settings.heads * len(settings.layers))),
    }


def _mean_over(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Mean of values [image, layer, head] over the chosen ones of each image, [image]; NaN where none is."""
    counts = chosen.sum((1, 2))
    total = np.where(chosen, values, 0).sum((1, 2))
    return np.divide(total, counts, out=np.full(len(values), np.nan), where=counts > 0)


def carries_over(proposal: Proposal, own: np.ndarray, shuffled: np.ndarray, first_lift: np.ndarray, seed: int) -> dict:
    """How well a proposal holds on images that it was not made from.

    own, shuffled: similarities [image, layer, head] of these images; first_lift: mean lift [layer, head] of the images
    that the proposal is from. Returns the figures of `score`; how many followers are found again; how many of each
    image's followers tau and k take, and how many of its other heads in these layers; and the rank correlation of all
    heads' lifts in both halves with a bootstrap interval over these images.
    """
    settings = proposal.settings
    again = find_followers(own - shuffled)
    taken = select(own, settings)[:, list(settings.layers)]
    follows = proposal.followers[list(settings.layers)]
    return {
        "gaze": score(settings, own, shuffled),
        "followers": {
            "first_half": int(proposal.followers.sum()),
            "second_half": int(again.sum()),
            "both": int((proposal.followers & again).sum()),
        },
        "followers_taken": mean_interval(taken[:, follows].mean(1), SHARE),
        "others_taken": mean_interval(taken[:, ~follows].mean(1) if not follows.all() else [], SHARE),
        "rank_correlation": rank_correlation(first_lift, own - shuffled, seed),
    }


def rank_correlation(first: np.ndarray, second: np.ndarray, seed: int) -> dict:
    """Spearman's correlation of heads' values [layer, head] with the mean of values [image, layer, head].

    Percentile bootstrap over the images (RESAMPLES resamples, seeded); NaN counts as 0, a head without a lift.
    """
    values = np.nan_to_num(second).reshape(len(second), -1)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), RESAMPLES)
    means = np.concatenate([values.mean(0)[None], counts @ values / len(values)])
    ranks = stats.rankdata(means, axis=1)
    reference = stats.rankdata(np.nan_to_num(first))
    correlations = [np.corrcoef(reference, row)[0, 1] for row in ranks]
    low, high = np.quantile(correlations[1:], [0.025, 0.975])
    return {"correlation": float(correlations[0]), "low": float(low), "high": float(high), "n": len(values)}
