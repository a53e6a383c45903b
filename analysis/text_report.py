"""What a run over sentences and their counterfactuals leaves behind: rows, arrays, heads.csv, figures, summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.layers import check_layers
from analysis.plots import head_heatmap
from analysis.results import RunFolder, save_arrays, write_table
from analysis.statistics import LEVEL, known_mean, smallest_p, too_few
from analysis.text_figures import example_bars, layer_lines, pair_scatter
from analysis.text_symmetry import (
    IDEAL,
    MEASURED,
    SENTENCES,
    Asymmetries,
    along,
    heads_that_lean,
    lean,
    pair_of,
    score_by_layer,
    summarise,
)

WORDS = ("first entity", "second entity", "first article", "second article")
COLUMNS = (
    "first", "second", "relation",
    *(f"asymmetry_{measured}_{sentence}" for measured in MEASURED for sentence in SENTENCES),
    *(f"score_{measured}_{kind}" for measured in MEASURED for kind in IDEAL),
)  # fmt: skip


@dataclass(frozen=True)
class SymmetryFlags:
    """A script's Config inherits these and calls `check_symmetry` before it loads a model."""

    layers: str = "all"
    """all | first_third | mid_third | last_third | last_K, such as last_4 | 3,7,12 (0-based)."""
    examples: int = 4
    """Captions drawn as bars, from the most to the least symmetric."""
    offload: bool = False
    """Keep recorded queries and keys on the CPU."""
    out_dir: str | None = None
    """New or empty folder for the results (default: results/<script>/<model>-<date>)."""

    def check_symmetry(self) -> None:
        """Raises ValueError for flags that cannot work."""
        check_layers(self.layers)
        if self.examples < 0:
            raise ValueError(f"--examples {self.examples} is negative; give 0 to draw none")


class Study:
    """Gathers the attention of one caption after the other; `found` are the asymmetries of all of them."""

    def __init__(self, layers: Sequence[int]):
        self.layers = tuple(layers)
        self.captions: list = []
        self._attention: list[np.ndarray] = []

    def add(self, caption, attention: Mapping[str, np.ndarray]) -> dict:
        """Keeps `attention` of each sentence, [word, layer, head], and returns the caption's row, values of COLUMNS.

        caption: with `name`, and `sentences` by name, each with `first`, `second` and `relation`.
        """
        self.captions.append(caption)
        self._attention.append(np.stack([attention[sentence] for sentence in SENTENCES]))
        found = Asymmetries(self._attention[-1][None], self.layers)
        said = caption.sentences["caption"]
        row = {"first": said.first, "second": said.second, "relation": said.relation}
        for measured in MEASURED:
            values = found.overall[measured]
            row |= {f"asymmetry_{measured}_{name}": float(a) for name, a in zip(SENTENCES, values[0], strict=True)}
            for kind in IDEAL:
                row[f"score_{measured}_{kind}"] = float(np.abs(lean(*pair_of(values, kind), kind))[0])
        return row

    @property
    def found(self) -> Asymmetries:
        """Of all captions that were added."""
        return Asymmetries(np.stack(self._attention), self.layers)


def save_study(run: RunFolder, study: Study, examples: int, seed: int) -> dict:
    """Writes symmetry.npz, heads.csv and the figures; returns the summary."""
    found = study.found
    save_arrays(
        run.folder / "symmetry.npz",
        attention=found.attention.astype(np.float32),
        samples=np.array([caption.name for caption in study.captions], dtype=str),
        sentences=np.array(SENTENCES),
        words=np.array(WORDS),
        layers=np.array(found.layers),
    )
    summary = {"layers": found.layers, **summarise(found, seed)}
    run.save(pair_scatter(found, summary["pairs"]), "pairs.png")
    run.save(layer_lines({kind: score_by_layer(found, kind) for kind in IDEAL}, found.layers), "layers.png")
    if examples:
        chosen = spread(np.abs(lean(*pair_of(found.overall["entities"], "swapped"), "swapped")), examples)
        run.save(example_bars(found, study.captions, chosen), "examples.png")
    if few := too_few(len(found)):
        print(few)
    tests = {kind: heads_that_lean(found, kind) for kind in IDEAL}
    write_table(run.folder / "heads.csv", head_rows(tests, found))
    for kind, tested in tests.items():
        run.save(head_figure(found, tested, kind), f"heads-{kind}.png")
    return {**summary, "heads": {kind: _leaning(tested) for kind, tested in tests.items()}}


def spread(scores: np.ndarray, count: int) -> list[int]:
    """Indices of at most `count` known scores [sample], from the largest to the smallest in even steps of rank."""
    order = [int(index) for index in np.argsort(-scores, kind="stable") if np.isfinite(scores[index])]
    steps = np.linspace(0, len(order) - 1, min(count, len(order)))
    return [order[round(step)] for step in steps]


def _leaning(tested: dict) -> dict:
    """Counts of heads that break the symmetry one way, of entities and of articles; "smallest_p" is the least p that
    the samples allow."""
    return {
        measured: {
            "leaning": int((found["q"] <= LEVEL).sum()), "heads": found["q"].size, "level_of_q": LEVEL,
            "smallest_p": smallest_p(int(found["n"].max())), "family_of_q": _family(found["q"], measured),
        }
        for measured, found in tested.items()
    }  # fmt: skip


def _family(q: np.ndarray, measured: str) -> str:
    """The tests among which q corrects."""
    return f"{np.isfinite(q).sum()} heads, lean of {measured}, one kind of pair"


def mean_along(found: Asymmetries, kind: str) -> np.ndarray:
    """Mean of |along| of the entities over samples, [layer, head]; NaN where it is known of none."""
    return known_mean(np.abs(along(*pair_of(found.by_head["entities"], kind), kind)))


def head_figure(found: Asymmetries, tested: dict, kind: str):
    """Layers x heads: the lean of entities and of articles, with dots where they lean, and what keeps the symmetry."""
    panels = [
        (f"{kind}, n = {len(found)}; dot: q ≤ {LEVEL}\nlean of entities", tested["entities"]["mean"]),
        ("\nlean of articles (control)", tested["articles"]["mean"]),
        ("\n|along| of entities", mean_along(found, kind)),
    ]
    return head_heatmap(panels, [*(tested[measured]["q"] <= LEVEL for measured in MEASURED), None])


def head_rows(tests: dict, found: Asymmetries) -> list[dict]:
    """One row per kind of pair and head: the test of its lean, the articles' lean, and mean |along|. `q` and
    `articles_q` each correct over the heads of one kind of pair, as "family_of_q" states of q."""
    return [
        {
            "kind": kind, "layer": head[0], "head": head[1],
            **{name: tested["entities"][name][head] for name in ("mean", "effect", "p", "q", "n", "skipped")},
            "articles_mean": tested["articles"]["mean"][head], "articles_q": tested["articles"]["q"][head],
            "along": kept[head], "family_of_q": _family(tested["entities"]["q"], "entities"),
        }
        for kind, tested in tests.items() for kept in [mean_along(found, kind)] for head in np.ndindex(kept.shape)
    ]  # fmt: skip
