"""Small runs for tests, and readers of the files that a script wrote."""

import json
from dataclasses import dataclass
from pathlib import Path

from analysis.files import read_table, write_json
from analysis.resume import Result, Run, SampleOutput
from analysis.runs import RunFolder


def make_run(folder, settings=None, columns=()) -> RunFolder:
    """Folder of a run with its settings.json."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    settings = {"flags": {}} if settings is None else settings
    write_json(Path(folder) / "settings.json", settings)
    return RunFolder(folder, columns, {})


@dataclass(frozen=True)
class Config:
    output: SampleOutput


def run_samples(folder, samples, measure, columns=(), size=1, unusable=(), views=None) -> Run:
    """Finished run over samples; `measure(batch)` returns rows, `views` has the views of some samples by name."""
    with Run.of(Config(SampleOutput(str(folder)))) as run:
        run.claim("tiny", [sample.name for sample in samples])
        run.start(columns)

        def results(batch) -> list[Result]:
            named = zip(batch, measure(batch), strict=True)
            return [Result(row, view=(views or {}).get(sample.name)) for sample, row in named]

        run.measure_batches(samples, results, size, unusable)
        run.finish({})
    return run


def table(folder, name="samples.csv"):
    """Rows of a run's table, each a dict of strings."""
    return read_table(Path(folder) / name)


def summary_of(folder):
    """Contents of a run's summary.json."""
    return json.loads((Path(folder) / "summary.json").read_text())
