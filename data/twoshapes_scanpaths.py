"""Synthetic scanpaths on a two-shapes set: on the caption's first shape, on its second shape, on the background.

The command is `python -m data.scanpaths`, whose docstring describes the files.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.errors import InputError, Skip
from data.twoshapes import TwoShapes, read

TARGETS = ("first", "second", "background")


def generate(
    data_root: str | Path, count: int = 8, seed: int = 0, jitter: float = 0.5, clearance: float = 0.1,
    folder: str | Path | None = None,
) -> tuple[dict[str, Path], list[Skip]]:  # fmt: skip
    """Write scanpaths-first, -second and -background (.jsonl) for a two-shapes set: ({target: file}, skipped).

    The files are written into `folder` (default: the data root); their records are marked "synthetic". Each image gets
    `count` fixations per file, in pixels: on the caption's first shape, on its second shape, and on the background, at
    least `clearance` (share of the image side) from both boxes. Fixations on a shape are distributed around its centre,
    with a standard deviation of `jitter` times half its shorter side, inside the shape. Equal seeds give equal bytes;
    samples are independent of each other. Raises FileExistsError if a file exists, ValueError for invalid settings.
    """
    root = Path(data_root).resolve()
    if count < 1 or seed < 0:
        raise InputError(
            "below-minimum", f"count is {count} and seed {seed}; give at least 1 fixation and a seed of at least 0"
        )
    if not 0 < jitter < math.inf:
        raise InputError("jitter", f"jitter is {jitter}, expected a number > 0")
    if not 0 <= clearance < 1:
        raise InputError("clearance", f"clearance is {clearance}, expected a share of the image's side, 0 to 1")
    folder = root if folder is None else Path(folder).resolve()
    files = {target: folder / f"scanpaths-{target}.jsonl" for target in TARGETS}
    if existing := [path for path in files.values() if path.exists()]:
        raise FileExistsError(f"{existing[0]} exists; move or remove it first")
    samples, skipped = read(root)
    lines = {target: [] for target in TARGETS}
    for sample in tqdm(samples, desc="simulating gaze", unit="image", disable=None):
        shard, number = (int(part) for part in sample.id.removeprefix("shard").split("/"))
        for index, target in enumerate(TARGETS):
            pixels, probabilities = _candidates(sample, target, jitter, clearance)
            if not len(pixels):
                skipped.append(Skip(sample.id, f"no room for gaze on the {target}"))
                continue
            rng = np.random.default_rng([seed, shard, number, index])
            image = sample.image_path.resolve().relative_to(root).as_posix()
            fixations = _fixations(rng, pixels, probabilities, count)
            record = {"image": image, "units": "pixels", "synthetic": True, "on": target, "fixations": fixations}
            lines[target].append(json.dumps(record))
    with tempfile.TemporaryDirectory(prefix=".scanpaths-", dir=folder) as unfinished:
        for target, path in files.items():
            Path(unfinished, path.name).write_text("".join(f"{text}\n" for text in lines[target]))
        for path in files.values():
            Path(unfinished, path.name).replace(path)
    return files, skipped


def _candidates(sample: TwoShapes, target: str, jitter: float, clearance: float) -> tuple[np.ndarray, np.ndarray]:
    """Candidate pixels (x, y) [pixel, 2] of a fixation and their probabilities [pixel].

    A pixel belongs to a shape if it lies in its box, not in the other's, and has at least half the brightness of the
    shape's centre: the background is black, and shapes fade over their outermost pixel.
    """
    with Image.open(sample.image_path) as image:
        light = np.asarray(image.convert("RGB")).max(-1)
    side = len(light)
    if target == "background":
        away = ~(_box(sample.first.box, side, clearance * side) | _box(sample.second.box, side, clearance * side))
        pixels = np.argwhere(away)[:, ::-1]
        return pixels, np.full(len(pixels), 1 / max(len(pixels), 1))
    own, other = (sample.first, sample.second) if target == "first" else (sample.second, sample.first)
    x, y = own.centre
    bright = light >= max(light[min(int(y), side - 1), min(int(x), side - 1)] / 2, 1)
    pixels = np.argwhere(bright & _box(own.box, side) & ~_box(other.box, side))[:, ::-1]
    left, top, right, bottom = own.box
    deviation = jitter * min(right - left, bottom - top) / 2
    distances = ((pixels + 0.5 - own.centre) ** 2).sum(1)
    probabilities = np.exp(-(distances - distances.min(initial=np.inf)) / (2 * deviation**2))
    return pixels, probabilities / probabilities.sum()


def _box(box: tuple[float, float, float, float], side: int, around: float = 0.0) -> np.ndarray:
    """Mask, bool [row, col], of the pixels that intersect a box enlarged by `around` pixels on every side."""
    left, top, right, bottom = box
    low, high = np.arange(side), np.arange(side) + 1
    columns = (high > left - around) & (low < right + around)
    rows = (high > top - around) & (low < bottom + around)
    return rows[:, None] & columns


def _fixations(rng: np.random.Generator, pixels: np.ndarray, probabilities: np.ndarray, count: int) -> list[dict]:
    """Draw fixations on the pixels, each of 150 to 400 ms, with saccades of 30 ms between them."""
    chosen = pixels[rng.choice(len(pixels), count, p=probabilities)] + rng.integers(100, size=(count, 2)) / 100
    durations = rng.integers(150, 401, count)
    times = np.cumsum(durations + 30) - durations - 30
    return [
        {"x": round(float(x), 2), "y": round(float(y), 2), "duration": int(duration), "time": int(time)}
        for (x, y), duration, time in zip(chosen, durations, times, strict=True)
    ]
