"""What a script left behind, read again by its tests."""

import json
from pathlib import Path

from analysis.runs import read_table


def table(folder, name="samples.csv"):
    """Rows of a run's table, each a dict of texts."""
    return read_table(Path(folder) / name)


def summary_of(folder):
    """The figures of a run."""
    return json.loads((Path(folder) / "summary.json").read_text())
