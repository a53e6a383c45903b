"""Similarity (Sim) of attention heads to gaze, and settings of the salient-head method for a model.

    Sim(h) = sum over the generated tokens and the image cells of A_h * G / the same sum of A_h

with A_h the attention of the rows of the generated tokens and G a mask over the cells, in 0..1. A head can have a
large Sim and little attention on the image, so its attention mass on the image is reported as well; below a mass of
1e-9, Sim is undefined (NaN).

The method takes, in some layers, at most k heads whose Sim divided by the layer's largest is above tau. Published
values are layers 19..26, k = 8 and tau = 0.5232, for LLaVA-1.5-7B alone. The lift of a head is its Sim with the image's
own gaze minus its Sim with another image's gaze; it separates heads that follow this gaze from heads with a centre
bias. Layers, k and tau are derived from the lift on one half of the images and tested on the other half.

A run writes heads.csv, similarity.npz, two figures, and the proposed settings as a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import special, stats

from analysis.files import save_arrays, write_table
from analysis.plots import Figure, head_heatmap, ranked_bars
from analysis.rollout import answer_rows, check_layout
from analysis.runs import RunFolder
from analysis.statistics import DIFFERENCE, MIN_SPLIT, SHARE, Bounds, halves, known_mean, mean_interval
from data.errors import InputError, SampleError

LIFT_SHARE = 0.5  # minimum lift of a follower, as a fraction of the largest lift of all heads
CONFIDENCE = 0.95  # confidence that no head of the model is a follower by chance
MIN_ATTENTION = 0.1  # minimum attention mass on the image for a head that is worth editing
MIN_IMAGES = 10  # minimum number of images in a half
RESAMPLES = 2000


class Settings(NamedTuple):
    """Settings of the method: `layers` (0-based), `tau`, and at most `heads` heads of a layer."""

    layers: tuple[int, ...]
    tau: float
    heads: int


class Proposal(NamedTuple):
    """Settings and their derivation; `followers` bool [layer, head]; `settings` is None without a follower."""

    settings: Settings | None
    reason: str
    followers: np.ndarray


def find_followers(lift: np.ndarray) -> np.ndarray:
    """Heads that follow the gaze: bool [layer, head] of lifts [image, layer, head].

    A follower has a mean lift of at least LIFT_SHARE of the largest, and above 0 with CONFIDENCE by a two-sided t test,
    corrected for the number of heads (Bonferroni).
    """
    statistics = mean_heads(lift, DIFFERENCE)
    largest = np.fmax.reduce(statistics["mean"], axis=None)
    level = (1 - CONFIDENCE) / lift[0].size
    with np.errstate(invalid="ignore", divide="ignore"):
        t = statistics["mean"] / (statistics["deviation"] / np.sqrt(statistics["n"]))
        return (t > special.stdtrit(statistics["n"] - 1, 1 - level / 2)) & (statistics["mean"] >= LIFT_SHARE * largest)


def propose(own: np.ndarray, shuffled: np.ndarray, image_mass: np.ndarray) -> Proposal:
    """Settings from similarities [image, layer, head] with the image's own gaze and with another image's.

    Layers: those with a follower whose mass on the image (`image_mass`, same shape) is at least MIN_ATTENTION; editing
    a head without image attention has no effect. k: the largest number of followers in one such layer, those
    below MIN_ATTENTION included, since the method takes them as well. tau: see `best_threshold`.
    """
    if len(own) < MIN_IMAGES:
        few = (
            "too few images: settings are chosen on one half of them and tested on the other, so give at least"
            f" {2 * MIN_IMAGES}"
        )
        return Proposal(None, few, np.zeros(own.shape[1:], bool))
    followers = find_followers(own - shuffled)
    attending = followers & (image_mass.mean(0) >= MIN_ATTENTION)
    if not attending.any():
        none = "no head that looks at the image follows its gaze more than it follows another image's"
        return Proposal(None, none, followers)
    layers = np.flatnonzero(attending.any(1)).tolist()
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
        f" ({most:.2f}); {attending.sum()} of them spend at least {MIN_ATTENTION:.0%} of their attention on the image."
        f" These lie in layers {', '.join(map(str, layers))}, with at most {heads} followers in one; {apart}."
    )
    return Proposal(Settings(tuple(layers), tau, heads), reason, followers)


def best_threshold(high: np.ndarray, low: np.ndarray) -> tuple[float, float, float]:
    """(tau, share of `high` above it, share of `low` above it) that best separates values [image, head].

    The difference of the two shares is often flat near its maximum, whose position is then random. As in pruning of
    trees (Breiman et al., 1984), tau is the smallest value whose difference is within one standard error over the
    images of the maximum: a larger tau has no measurable gain and loses some of `high`. 0 for an empty `low`.
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
    """Heads that the method takes: bool [image, layer, head] of similarities of that shape, over whole answers."""
    near = np.nan_to_num(relative(similarity), nan=-1.0)
    rank = (-near).argsort(-1, kind="stable").argsort(-1, kind="stable")
    chosen = (near > settings.tau) & (rank < settings.heads)
    chosen[:, np.setdiff1d(np.arange(chosen.shape[1]), settings.layers)] = False
    return chosen


def score(settings: Settings, own: np.ndarray, shuffled: np.ndarray) -> dict:
    """Similarity to the gaze of the heads that `settings` select, mean over images with intervals.

    own, shuffled: similarities [image, layer, head].
    Returns similarity: of the selected heads; shuffled: selected and measured with another image's gaze, so that the
    gain from selecting the largest is equal; lift: the paired difference; heads: number selected per image.
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
    """Mean over the chosen values [image, layer, head] of each image, [image]; NaN for an image without any."""
    counts = chosen.sum((1, 2))
    total = np.where(chosen, values, 0).sum((1, 2))
    return np.divide(total, counts, out=np.full(len(values), np.nan), where=counts > 0)


def carries_over(proposal: Proposal, own: np.ndarray, shuffled: np.ndarray, first_lift: np.ndarray, seed: int) -> dict:
    """Scores of a proposal on images that were not used to derive it.

    own, shuffled: similarities [image, layer, head] of these images; first_lift: mean lift [layer, head] of the images
    used for the proposal. Returns the values of `score`; the number of followers that are found again; how many of each
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

    Percentile bootstrap over the images (RESAMPLES resamples, seeded); NaN counts as 0 (no lift).
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


MIN_IMAGE_MASS = 1e-9  # threshold of the salient-head method; smaller masses are rounding errors


class Inside(NamedTuple):
    """Attention on the image, mean over the rows: `image_mass` float64 [layer, head] is the total mass, `inside` [mask,
    layer, head] the mass weighted by each mask."""

    image_mass: np.ndarray
    inside: np.ndarray

    @property
    def similarity(self) -> np.ndarray:
        """Sim of every head with every mask, float64 [mask, layer, head]; NaN for a mass below MIN_IMAGE_MASS."""
        enough = self.image_mass >= MIN_IMAGE_MASS
        return np.divide(self.inside, self.image_mass, out=np.full_like(self.inside, np.nan), where=enough)

    @property
    def share(self) -> np.ndarray:
        """Fraction of the model's image attention inside each mask, float64 [mask]; NaN without image attention."""
        total = self.image_mass.sum()
        return self.inside.sum((1, 2)) / total if total > 0 else np.full(len(self.inside), np.nan)


@torch.no_grad()
def attention_inside(trace, layout, masks: Sequence, *, rows: str = "predicting", tokens: int | None = None) -> Inside:
    """Attention of the generated tokens' rows to the prompt's first image, in total and inside each mask.

    masks: each [row, col] over the image's grid, in 0..1. `rows` and `tokens` as in `analysis.rollout.rollout`.
    Raises ValueError for a mask of another size, SampleError without an image or without a row for any token.
    """
    check_layout(trace, layout)
    if not layout.images:
        raise SampleError("no image", "the prompt has no image, so there is nothing to look at in it")
    positions = answer_rows(trace, rows, tokens)
    if not positions:
        raise SampleError(f"no {rows} row", f"no generated token has a row under the convention {rows!r}")
    cells = layout.images[0]
    stacked = torch.stack([torch.as_tensor(mask).flatten().double() for mask in masks])
    if stacked.shape[1] != len(cells):
        raise InputError("mask-size", f"the masks have {stacked.shape[1]} cells but the image has {len(cells)}")
    image_mass, inside = [], []
    for layer in range(trace.layers):
        weights = trace.weights(layer, positions, samples=[layout.sample])[0][:, :, cells.to(trace.device(layer))]
        on_image = weights.double().mean(1).cpu()  # [head, cell]
        image_mass.append(on_image.sum(-1))
        inside.append(stacked @ on_image.T)
    return Inside(torch.stack(image_mass).numpy(), torch.stack(inside, dim=1).numpy())


def relative(similarity: np.ndarray) -> np.ndarray:
    """Similarities [..., layer, head] divided by the layer's largest; 0 where that is 0, NaN where it is undefined."""
    similarity = np.asarray(similarity, np.float64)
    largest = np.fmax.reduce(similarity, axis=-1, keepdims=True)
    return np.divide(similarity, largest, out=np.where(np.isnan(similarity), np.nan, 0.0), where=largest > 0)


def mean_heads(values: np.ndarray, bounds: Bounds) -> dict[str, np.ndarray]:
    """Mean over images of values [image, layer, head] with the interval of `mean_interval`, each array [layer, head].

    Returns {"mean", "deviation", "low", "high", "n"}; images with an undefined head (NaN) do not count for that head;
    values that cannot be estimated are NaN. Intervals are per head, without correction for the number of heads.
    """
    values = np.asarray(values, np.float64)
    shape = values.shape[1:]
    intervals = [mean_interval(values[:, *head], bounds) for head in np.ndindex(shape)]
    statistics = {
        name: np.array([interval[name] for interval in intervals], np.float64).reshape(shape)
        for name in ("mean", "low", "high")
    }
    count = np.isfinite(values).sum(0)
    squares = np.where(np.isfinite(values), values - statistics["mean"], 0) ** 2
    variance = np.divide(squares.sum(0), count - 1, out=np.full(shape, np.nan), where=count > 1)
    return {**statistics, "deviation": np.sqrt(variance), "n": count}


COLUMNS = (
    "image", "prompt", "answer", "gold", "tokens", "fixations", "dropped", "mask", "image_attention", "best_layer",
    "best_head", "best_similarity", "best_shuffled",
)  # fmt: skip
LABEL = "similarity with the gaze"
CONTROL = "with another image's gaze"


def sample_row(sample, answer, mask, inside: Inside) -> dict:
    """Row of one image, the values of COLUMNS: `mask` is the mean of G (the similarity of uniform attention);
    `image_attention` the mean over heads of the attention mass on the image; best is the head of largest similarity."""
    own, shuffled = inside.similarity[0], inside.similarity[1:]
    layer, head = np.unravel_index(np.nan_to_num(own, nan=-1).argmax(), own.shape)
    return {
        "image": sample.sample.path,
        "prompt": sample.sample.prompt,
        "answer": answer.text,
        "gold": sample.sample.gold,
        "tokens": len(answer.tokens),
        "fixations": len(sample.points),
        "dropped": len(sample.dropped),
        "mask": float(mask.mean()),
        "image_attention": float(inside.image_mass.mean()),
        "best_layer": int(layer),
        "best_head": int(head),
        "best_similarity": float(own[layer, head]),
        "best_shuffled": float(shuffled[0, layer, head]) if len(shuffled) else "",
    }


class Measured:
    """Values of all images as arrays: `own`, `shuffled` (Sim) and `image_mass`, each [image, layer, head], and `names`.

    `shuffled` is NaN for a single image.
    """

    def __init__(self, measured: Sequence[tuple[str, Inside]]):
        self.names = [name for name, _ in measured]
        self.image_mass = np.stack([inside.image_mass for _, inside in measured])
        similarity = [inside.similarity for _, inside in measured]
        self.own = np.stack([values[0] for values in similarity])
        self.shuffled = np.stack(
            [values[1] if len(values) > 1 else np.full_like(values[0], np.nan) for values in similarity]
        )

    @property
    def lift(self) -> np.ndarray:
        """Similarity with the image's own gaze minus that with another image's, [image, layer, head]."""
        return self.own - self.shuffled


def save_heads(run: RunFolder, measured: Measured, proposal: Proposal, seed: int) -> None:
    """Write similarity.npz, heads.csv, heads.png and ranked.png. Dots mark the followers of `proposal`."""
    arrays = {"own": measured.own, "shuffled": measured.shuffled, "seen": measured.image_mass}
    save_arrays(run.folder / "similarity.npz", samples=np.array(measured.names, dtype=str), **arrays)
    rows = head_rows(measured, proposal.followers)
    write_table(run.folder / "heads.csv", rows)
    shape = measured.own.shape[1:]
    panels = {
        "similarity / layer's largest": "relative",
        "lift over another's gaze": "lift",
        "attention on the image": "image_attention",
    }
    grids = [(title, np.array([row[name] for row in rows]).reshape(shape)) for title, name in panels.items()]
    run.save(head_heatmap(grids, proposal.followers), "heads.png")
    run.save(ranking(measured, seed), "ranked.png")


def ranking(measured: Measured, seed: int) -> Figure:
    """Bars of the most similar heads, ranked on one half of the images, with the values of the other half.

    Ranking on the drawn images would bias the values upward (selection effect), and the intervals would not cover it.
    Below MIN_SPLIT images all are used for both, which the title states.
    """
    count = len(measured.names)
    first = second = np.arange(count)
    title = f"ranked and drawn on the same {count} images"
    if count >= MIN_SPLIT:
        first, second = halves(count, np.random.default_rng(seed))
        title = f"ranked on {len(first)} images, drawn: the other {len(second)}, mean with 95 % interval"
    drawn = mean_heads(measured.own[second], SHARE)
    columns = (drawn["mean"], drawn["low"], drawn["high"], known_mean(measured.shuffled[second]))
    return ranked_bars(
        [f"{layer}.{head}" for layer, head in np.ndindex(drawn["mean"].shape)],
        *(values.ravel() for values in columns),
        order_by=known_mean(measured.own[first]).ravel(), label=LABEL, control_label=CONTROL, axis_label="layer.head",
        title=title,
    )  # fmt: skip


def head_rows(measured: Measured, followers: np.ndarray) -> list[dict]:
    """One row per head, layer by layer; `followers` bool [layer, head].

    similarity: mean over images, with deviation, 95 % interval and n; relative: divided by the layer's largest; lift:
    similarity minus that with another image's gaze, paired. Intervals are per head; `follows` is corrected for the
    number of heads (`find_followers`).
    """
    own, lift = mean_heads(measured.own, SHARE), mean_heads(measured.lift, DIFFERENCE)
    shuffled, image_mass = known_mean(measured.shuffled), measured.image_mass.mean(0)
    near = relative(own["mean"])
    return [
        {
            "layer": layer, "head": head, "n": int(own["n"][at]), "similarity": float(own["mean"][at]),
            "deviation": float(own["deviation"][at]), "low": float(own["low"][at]), "high": float(own["high"][at]),
            "relative": float(near[at]), "shuffled": float(shuffled[at]), "lift": float(lift["mean"][at]),
            "lift_low": float(lift["low"][at]), "lift_high": float(lift["high"][at]),
            "image_attention": float(image_mass[at]), "follows": int(followers[at]),
        }
        for at in np.ndindex(near.shape) for layer, head in [at]
    ]  # fmt: skip


def study(measured: Measured, published: Settings, seed: int) -> tuple[Proposal, dict]:
    """Proposal from one half of the images, and the summary of its scores on the other half and of `published`."""
    first, second = halves(len(measured.names), np.random.default_rng(seed))
    own, shuffled, lift = measured.own, measured.shuffled, measured.lift
    proposal = propose(own[first], shuffled[first], measured.image_mass[first])
    summary = {
        "image_attention": mean_interval(measured.image_mass.mean((1, 2)), SHARE),
        "proposal": {
            "settings": proposal.settings and proposal.settings._asdict(),
            "reason": proposal.reason,
            "followers": np.argwhere(proposal.followers),
            "n": len(first),
        },
    }
    if proposal.settings and len(second) >= MIN_IMAGES:
        images = own[second], shuffled[second]
        summary["other_half"] = carries_over(proposal, *images, known_mean(lift[first]), seed)
        summary["published"] = {"settings": published._asdict(), "other_half": score(published, *images)}
    return proposal, summary


def sentence(proposal: Proposal) -> str:
    """Proposal as one sentence for the terminal."""
    if proposal.settings is None:
        return f"no settings for the salient-head method: {proposal.reason}"
    layers, tau, heads = proposal.settings
    return f"proposed for the salient-head method: layers {list(layers)}, tau {tau:.4f}, k {heads}. {proposal.reason}"
