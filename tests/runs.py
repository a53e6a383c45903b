"""Readers of the files that a script wrote."""

import json
from pathlib import Path

from analysis.runs import read_table


def table(folder, name="samples.csv"):
    """Rows of a run's table, each a dict of strings."""
    return read_table(Path(folder) / name)


def summary_of(folder):
    """Contents of a run's summary.json."""
    return json.loads((Path(folder) / "summary.json").read_text())
