"""Paired comparison of two evaluation runs: difference of accuracy, tests, and the records that differ.

    python compare_runs.py results/evaluate/plain results/evaluate/var
    python compare_runs.py RUN_A RUN_B --intersect

Both are folders of evaluate.py, over the same records and with the same judge; all differences are B minus A. Records
that failed in either run are left out of both, and counted. summary.json has both accuracies with Wilson intervals, the
paired difference with a score interval, McNemar's exact test, and the same per sub-task with Holm's correction; for
yes-no questions also recall, false positive rate and yes-ratio with their paired differences. samples.csv has every
record with both answers, flips.csv those that only one run answered correctly. accuracy.png draws the accuracies;
gained-*.png and lost-*.png draw flipped records with their images. Takes seconds; needs no model.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from PIL import Image

from analysis import command
from analysis.evaluation import PREDICTIONS
from analysis.files import write_table
from analysis.resume import Output, Run
from analysis.run_comparison import (
    COLUMNS,
    GAINED,
    LOST,
    EvaluationRun,
    Pair,
    accuracy_figure,
    compare,
    flip_pages,
    other_flags,
    pair,
    read_run,
    run_names,
    side_by_side,
    table_row,
    yes_no_differences,
)
from analysis.runs import RunFolder
from data.errors import SampleError, check_at_least
from data.folders import following_links
from data.spatial_qa import Question, read

TITLES = {GAINED: "wrong in A, right in B", LOST: "right in A, wrong in B"}


@dataclass(frozen=True)
class Config:
    run_a: tyro.conf.Positional[str]
    """Folder of the baseline run."""
    run_b: tyro.conf.Positional[str]
    """Folder of the run to compare with it."""
    intersect: bool = False
    """Compare the common records of runs over different records."""
    data_root: str | None = None
    """Folder of the images, if moved since run A."""
    pictures: int = 12
    """Flipped records drawn with their images, in each direction; 0 draws none."""
    output: Output = Output()

    def __post_init__(self) -> None:
        check_at_least(self, pictures=0)


@dataclass(frozen=True)
class Records:
    """Questions and images of the compared records, read again from the data; `fault`: why none can be read."""

    by_id: dict[str, Question]
    fault: str = ""

    @classmethod
    def of(cls, a: EvaluationRun, config: Config) -> Records:
        try:
            with following_links(a.flags.get("follow_links", False)):
                questions, _ = read(a.flags.get("dataset"), config.data_root or a.flags.get("data_root"))
        except (FileNotFoundError, ValueError) as error:
            return cls({}, f"the data cannot be read: {error}")
        return cls({question.id: question for question in questions})

    def file(self, name: str) -> Path | None:
        """File of the record's first image, if it is a file."""
        question = self.by_id.get(name)
        return next((image for image in question.images if isinstance(image, Path)), None) if question else None

    def image(self, name: str) -> Image.Image | str:
        """Images of the record side by side, or the reason for their absence."""
        question = self.by_id.get(name)
        if question is None:
            return self.fault or "the data do not hold this record, or not in a form that can be used"
        try:
            images = question.load_images()
        except SampleError as error:
            return str(error)
        return side_by_side(images) if images else "the record has no image"


def main(config: Config) -> int:
    with Run.of(config) as run:
        with run.gathering(), command.setting_up():
            a, b = read_run(config.run_a), read_run(config.run_b)
            pairs, different = pair(a, b, config.intersect)
            both = f"{a.folder.resolve().name}-{b.folder.resolve().name}"
            if run.claim(both, [each.folder / PREDICTIONS for each in (a, b)]):
                return command.conclude_finished(run.folder)
        run.start(COLUMNS)
        return write(run, config, a, b, pairs, different)


def write(run: Run, config: Config, a: EvaluationRun, b: EvaluationRun, pairs: Sequence[Pair], different: dict) -> int:
    """Write all files of the comparison and print its findings; return the exit status."""
    shown, names = Records.of(a, config), run_names(a, b)
    for record in pairs:
        if record.failed:
            run.skip(record.a.id, record.failed)
        else:
            run.add(record.a.id, **table_row(record, shown.file(record.a.id)))
    about = {"a": config.run_a, "b": config.run_b, **different, "flags_that_differ": other_flags(a, b)}
    if not run.done:
        run.finish(about)
        return command.conclude(run)
    figures = {**compare(pairs), **yes_no_differences(pairs)}
    contrasts = {"all": figures["overall"], **(figures["tasks"] if len(figures["tasks"]) > 1 else {})}
    run.save(accuracy_figure(contrasts, names), "accuracy.png")
    flips = [record for record in pairs if record.failed is None and record.flip]
    rows = [{"sample": record.a.id, **table_row(record, shown.file(record.a.id))} for record in flips]
    write_table(run.folder / "flips.csv", rows, ["sample", *COLUMNS])
    drawn = draw_flips(run, flips, shown, config.pictures)
    run.finish({**about, **figures, "pictures": drawn})
    print(sentence(figures["overall"], names))
    for name, change in figures.get("yes_no", {}).get("difference", {}).items():
        if change["n"]:
            bounds = f"[{change['low']:+.3f}, {change['high']:+.3f}]"
            print(f"{name.replace('_', ' ')}: difference {change['mean']:+.3f} {bounds}, n = {change['n']}")
    print(f"flags that differ: {describe_flags(about['flags_that_differ']) or 'none'}")
    warn_cut(figures["overall"])
    return command.conclude(run)


def draw_flips(run: RunFolder, flips: Sequence[Pair], records: Records, count: int) -> dict:
    """Draw the first `count` flipped records of each direction; return their numbers and reasons for missing images."""
    by_flip = {flip: [record for record in flips if record.flip == flip] for flip in (GAINED, LOST)}
    chosen = {flip: some[:count] for flip, some in by_flip.items()}
    shown = {record.a.id: records.image(record.a.id) for some in chosen.values() for record in some}
    missing = {name: reason for name, reason in shown.items() if isinstance(reason, str)}
    for name, reason in missing.items():
        print(f"no image of {name}: {reason}", file=sys.stderr)
    for flip, some in chosen.items():
        title = f"{TITLES[flip]}: {len(some)} of {len(by_flip[flip])} records"
        for number, page in enumerate(flip_pages(some, [shown[record.a.id] for record in some], title), 1):
            run.save(page, f"{flip}-{number}.png")
    return {"records_drawn": {flip: len(some) for flip, some in chosen.items()}, "missing": missing}


def warn_cut(overall: dict) -> None:
    """Warn on stderr if a run's token limit cut answers, since these are judged as cut."""
    cut = {name.upper(): overall[f"cut_{name}"] for name in "ab" if overall[f"cut_{name}"]}
    if cut:
        counts = " and ".join(f"{count} in {name}" for name, count in cut.items())
        print(f"warning: --max-new-tokens cut answers of {counts}, of {overall['difference']['n']}", file=sys.stderr)


def sentence(overall: dict, names: tuple[str, str]) -> str:
    """Result as one sentence for the terminal."""
    difference = overall["difference"]
    interval = "" if difference["low"] is None else f" [{difference['low']:+.3f}, {difference['high']:+.3f}]"
    p = "< 0.0001" if overall["p"] < 1e-4 else f"= {overall['p']:.4f}"
    flips = f"{overall[GAINED]} gained, {overall[LOST]} lost, p {p}"
    flips = flips if overall[GAINED] or overall[LOST] else "no record flipped"
    return (
        f"{names[0]} {overall['a']['rate']:.3f}, {names[1]} {overall['b']['rate']:.3f}:"
        f" difference {difference['mean']:+.3f}{interval}, {flips}, n = {difference['n']}"
    )


def describe_flags(different: dict[str, list]) -> str:
    """Each flag with its value in A and in B."""
    return "; ".join(f"--{flag.replace('_', '-')} {a!r} in A, {b!r} in B" for flag, (a, b) in different.items())


if __name__ == "__main__":
    command.run(main, Config, __doc__)
