"""What a run over words and cells leaves behind: pictures of samples, tables and figures of all, a few sentences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from analysis.faithfulness import Used
from analysis.faithfulness_figures import save_faithfulness
from analysis.gallery import Look
from analysis.results import RunFolder, cell_rects, save_arrays
from analysis.spatial_attention import WORDS, Scene
from analysis.spatial_figures import LABELS, TITLES, looks, save_controls, save_heads
from analysis.spatial_table import (
    FAMILY,
    METRICS,
    Looked,
    compare_heads,
    missing_words,
    save_tables,
    summarise,
    summarise_heads,
)
from analysis.statistics import too_few


def draw_sample(
    run: RunFolder, sample, pictures: Sequence[Image.Image], layouts: Sequence, scene: Scene, looked: Looked
) -> str:
    """Writes looks.png and maps.npz of one sample (`own` and `shuffled` [query, row, col], the boxes' cell weights
    `first` and `second`, `cells` as in every maps.npz); returns its folder's name."""
    folder = run.sample_folder(sample.name)
    grids = [layout.grids[0] for layout in layouts]
    run.save(looks(pictures, grids, scene, sample, looked, Look()), folder.name, "looks.png")
    own, shuffled = np.stack([looked.maps[query] for query in looked.maps]).astype(np.float32).swapaxes(0, 1)
    save_arrays(
        folder / "maps.npz", queries=np.array(list(looked.maps)), own=own, shuffled=shuffled, first=scene.first,
        second=scene.second, cells=cell_rects(grids[0]),
    )  # fmt: skip
    return folder.name


def hidden_by(scene: Scene, looked: Looked) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The maps in whose order cells are hidden, and the boxes that each is held against, [row, col] by name: each
    word's, and "boxes", the true boxes themselves."""
    boxes = {"first": scene.first, "relation": scene.both, "second": scene.second, "boxes": scene.both}
    return {**{word: looked.maps[word][0] for word in WORDS}, "boxes": scene.both}, boxes


def report(run: RunFolder, found: Sequence[Looked], used: Sequence[Used], seed: int, figures: bool = True) -> dict:
    """Writes the tables and (unless told not to) figures of all samples and says the most important; returns the
    summary's figures. Nothing where no sample could be measured.
    """
    if not found:
        return {}
    tested = compare_heads(found)
    save_tables(run, found, tested)
    if figures:
        save_controls(run, found)
        save_heads(run, tested, len(found))
    about = {name: metric._asdict() for name, metric in METRICS.items()}
    summary = {"metrics": about, "skipped_words": missing_words(found)}
    summary |= {"queries": summarise(found, seed), "family_of_q": FAMILY, "heads": summarise_heads(found, tested, seed)}
    if used:
        summary["faithfulness"] = save_faithfulness(run, used, seed)
    for line in sentences(summary):
        print(line)
    return summary


def sentences(summary: dict) -> list[str]:
    """For a reader at the terminal: what the words look at, and whether the answer rests on it."""
    lines = [f"{reason}: left out of {count} samples" for reason, count in summary["skipped_words"].items()]
    few = too_few(max(summary["queries"][word]["mass"]["n"] for word in WORDS))
    lines += [few] if few else []
    for word in WORDS:
        mass = summary["queries"][word]["mass"]
        held = ", ".join(f"{LABELS[name]} {_percent(control)}" for name, control in mass["controls"].items())
        lines.append(f"{TITLES[word]}: {_percent(mass)} of image attention in the box ({held}; n = {mass['n']})")
    for order in (*WORDS, "boxes") if "faithfulness" in summary else ():
        used = summary["faithfulness"]["orders"][order]
        gains = ", ".join(
            f"{way} {_nats(gain)}" for way, gain in ((way, used[f"{way}_gain"]) for way in ("insertion", "deletion"))
        )
        name = TITLES.get(order, "true boxes")
        n = used["deletion_gain"]["n"]
        lines.append(f"cells in the order of the {name}, against the same map shifted: {gains} (n = {n})")
    return lines


def _percent(figure: dict) -> str:
    return "unknown" if figure["mean"] is None else f"{figure['mean']:.0%}"


def _nats(figure: dict) -> str:
    if figure["mean"] is None:
        return "unknown"
    interval = "" if figure["low"] is None else f" [{figure['low']:+.2f}, {figure['high']:+.2f}]"
    return f"{figure['mean']:+.2f} nats{interval}"
