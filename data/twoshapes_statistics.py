"""Statistics of the shapes in a two-shapes data set: prints the table of data/README.md.

    python -m data.twoshapes_statistics --data-root X        (seconds)

Lengths are fractions of the world's side.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from data.shapes import to_world
from data.twoshapes import SIDE, TwoShapes, read

QUANTILES = (0, 0.05, 0.5, 0.95, 1)


def statistics(samples: Sequence[TwoShapes]) -> dict[str, int | Counter | np.ndarray]:
    """Counts (int or Counter) and lengths (array, one value per sample or per shape) by name."""
    pairs = [(sample.first, sample.second) for sample in samples]
    shapes = [shape for pair in pairs for shape in pair]
    centres = to_world(np.array([[shape.centre for shape in pair] for pair in pairs]), SIDE)  # [sample, shape, xy]
    boxes = to_world(np.array([[shape.box for shape in pair] for pair in pairs]), SIDE)  # [sample, shape, ltrb]
    minor, major = np.sort(np.abs(centres[:, 0] - centres[:, 1]), axis=1).T
    # positive if the boxes are disjoint on an axis, negative if they overlap on both
    gap = (boxes[..., :2].max(axis=1) - boxes[..., 2:].min(axis=1)).max(axis=1)
    return {
        "samples": len(samples),
        "caption names the shapes in reverse": sum(sample.reversed for sample in samples),
        "both of one colour": sum(first.colour == second.colour for first, second in pairs),
        "both of one kind": sum(first.shape == second.shape for first, second in pairs),
        "relation": Counter(sample.relation for sample in samples),
        "colour": Counter(shape.colour for shape in shapes),
        "shape": Counter(shape.shape for shape in shapes),
        "distance of centres": np.hypot(minor, major),
        "offset on the major axis": major,
        "offset on the minor axis": minor,
        "minor / major": minor / major,
        "gap between boxes": gap,
        "box to border": np.minimum(boxes[..., :2], 1 - boxes[..., 2:]).ravel(),
        "box side": (boxes[..., 2:] - boxes[..., :2]).ravel(),
        "centre x": centres[..., 0].ravel(),
        "centre y": centres[..., 1].ravel(),
    }


def table(numbers: dict[str, int | Counter | np.ndarray]) -> str:
    """Format the statistics as lines: a count, counts by name, or minimum, 5 %, median, 95 % and maximum."""
    lines = []
    for name, value in numbers.items():
        if isinstance(value, Counter):
            value = ", ".join(f"{key} {count}" for key, count in sorted(value.items()))
        elif isinstance(value, np.ndarray):
            value = "  ".join(f"{quantile:6.3f}" for quantile in np.quantile(value, QUANTILES))
        lines.append(f"{name:<36}{value}")
    return "\n".join(lines)


@dataclass(frozen=True)
class Config:
    """Print counts, and minimum, 5 %, median, 95 % and maximum of lengths, of a two-shapes data set."""

    data_root: Path
    """Folder that contains spatial_twoshapes."""


def main(config: Config) -> int:
    try:
        samples, skipped = read(config.data_root)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    for reason, count in Counter(skip.reason for skip in skipped).items():
        print(f"skipped {count}: {reason}", file=sys.stderr)
    if not samples:
        print(f"no usable sample in {config.data_root}", file=sys.stderr)
        return 1
    print(table(statistics(samples)))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config)))
