"""What a run over heads and gaze leaves behind: heads.csv, similarity.npz, two figures, and the proposal in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.fonts import Figure
from analysis.heads import Inside, mean_heads, relative
from analysis.plots import head_heatmap, ranked_bars
from analysis.results import RunFolder, save_arrays, write_table
from analysis.salient_heads import LEAST, Proposal, Settings, carries_over, propose, score
from analysis.statistics import DIFFERENCE, MIN_SPLIT, SHARE, halves, known_mean, mean_interval

COLUMNS = (
    "image", "prompt", "answer", "gold", "tokens", "fixations", "dropped", "mask", "image_attention", "best_layer",
    "best_head", "best_similarity", "best_shuffled",
)  # fmt: skip
LABEL = "similarity with the gaze"
CONTROL = "with another image's gaze"


def sample_row(sample, said, mask, inside: Inside) -> dict:
    """The row of one image, the values of COLUMNS: `mask` is G's mean, which even attention would have as similarity;
    `image_attention` the mean over heads of what they spend on the image; best is the head of largest similarity."""
    own, shuffled = inside.similarity[0], inside.similarity[1:]
    layer, head = np.unravel_index(np.nan_to_num(own, nan=-1).argmax(), own.shape)
    return {
        "image": sample.sample.path,
        "prompt": sample.sample.prompt,
        "answer": said.text,
        "gold": sample.sample.gold,
        "tokens": len(said.tokens),
        "fixations": len(sample.points),
        "dropped": len(sample.dropped),
        "mask": float(mask.mean()),
        "image_attention": float(inside.seen.mean()),
        "best_layer": int(layer),
        "best_head": int(head),
        "best_similarity": float(own[layer, head]),
        "best_shuffled": float(shuffled[0, layer, head]) if len(shuffled) else "",
    }


class Measured:
    """Every image's figures as arrays: `own`, `shuffled` (Sim) and `seen`, each [image, layer, head], and `names`.

    Without a second image there is nothing to shuffle, and `shuffled` is NaN.
    """

    def __init__(self, measured: Sequence[tuple[str, Inside]]):
        self.names = [name for name, _ in measured]
        self.seen = np.stack([inside.seen for _, inside in measured])
        similarity = [inside.similarity for _, inside in measured]
        self.own = np.stack([values[0] for values in similarity])
        self.shuffled = np.stack(
            [values[1] if len(values) > 1 else np.full_like(values[0], np.nan) for values in similarity]
        )

    @property
    def lift(self) -> np.ndarray:
        """Similarity with the image's own gaze minus that with another's, [image, layer, head]."""
        return self.own - self.shuffled


def save_heads(run: RunFolder, measured: Measured, proposal: Proposal, seed: int) -> None:
    """Write similarity.npz, heads.csv, heads.png and ranked.png. Dots mark the followers of `proposal`."""
    arrays = {"own": measured.own, "shuffled": measured.shuffled, "seen": measured.seen}
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
    """Bars of the most similar heads, ranked on one half of the images and drawn with the values of the other half.

    Heads ranked on the images that are drawn would owe a part of their height to chance, and their intervals would
    miss it. Below MIN_SPLIT images there are no halves, which the title then states.
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
    similarity minus that with another image's gaze, paired. Every interval is that of one head alone; `follows` is
    corrected for the number of heads (`analysis.salient_heads.find_followers`).
    """
    own, lift = mean_heads(measured.own, SHARE), mean_heads(measured.lift, DIFFERENCE)
    shuffled, seen = known_mean(measured.shuffled), measured.seen.mean(0)
    near = relative(own["mean"])
    return [
        {
            "layer": layer, "head": head, "n": int(own["n"][at]), "similarity": float(own["mean"][at]),
            "deviation": float(own["deviation"][at]), "low": float(own["low"][at]), "high": float(own["high"][at]),
            "relative": float(near[at]), "shuffled": float(shuffled[at]), "lift": float(lift["mean"][at]),
            "lift_low": float(lift["low"][at]), "lift_high": float(lift["high"][at]),
            "image_attention": float(seen[at]), "follows": int(followers[at]),
        }
        for at in np.ndindex(near.shape) for layer, head in [at]
    ]  # fmt: skip


def study(measured: Measured, published: Settings, seed: int) -> tuple[Proposal, dict]:
    """The proposal from one half of the images, and the summary: how it does on the other half, beside `published`."""
    first, second = halves(len(measured.names), np.random.default_rng(seed))
    own, shuffled, lift = measured.own, measured.shuffled, measured.lift
    proposal = propose(own[first], shuffled[first], measured.seen[first])
    summary = {
        "image_attention": mean_interval(measured.seen.mean((1, 2)), SHARE),
        "proposal": {
            "settings": proposal.settings and proposal.settings._asdict(),
            "reason": proposal.reason,
            "followers": np.argwhere(proposal.followers),
            "n": len(first),
        },
    }
    if proposal.settings and len(second) >= LEAST:
        images = own[second], shuffled[second]
        summary["other_half"] = carries_over(proposal, *images, known_mean(lift[first]), seed)
        summary["published"] = {"settings": published._asdict(), "other_half": score(published, *images)}
    return proposal, summary


def sentence(proposal: Proposal) -> str:
    """The proposal for a reader at the terminal."""
    if proposal.settings is None:
        return f"no settings for the salient-head method: {proposal.reason}"
    layers, tau, heads = proposal.settings
    return f"proposed for the salient-head method: layers {list(layers)}, tau {tau:.4f}, k {heads}. {proposal.reason}"
