"""Paired comparison of two evaluation runs over the same records: differences, tests, and figures.

A run is the folder of `evaluate.py`: settings.json, and predictions.jsonl with one line per record (per record and
rotation for rotated options; such a record is correct only if every rotation is). Differences are always B minus A.
Records that failed in either run are left out of both, and counted. Lines of older versions without `cut` and
`image_hashes` are read; these fields are then unknown.

Figures: accuracies of both runs with their difference, and the records that flipped.
"""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from analysis import yes_no
from analysis.evaluation import FIELDS, any_cut, count_cut
from analysis.judges import circular
from analysis.overlay import FLATTEST, show_image
from analysis.plots import BLUE, ORANGE, Figure, for_rows
from analysis.statistics import DIFFERENCE, holm, mcnemar, mean_interval, rate_interval, smallest_p
from data.errors import InputError, MissingFileError

COLUMNS = (
    "image", "task", "prompt", "gold", "prediction_a", "value_a", "correct_a", "cut_a", "prediction_b", "value_b",
    "correct_b", "cut_b", "flip",
)  # fmt: skip
REQUIRED = [name for name in FIELDS if name not in ("cut", "image_hashes")]  # fields of all versions
GAINED, LOST = "gained", "lost"  # wrong in A and correct in B; the reverse


@dataclass(frozen=True)
class Outcome:
    """Result of one record in a run; lists hold one item per rotation of its options, one without rotation."""

    id: str
    task: str
    prompt: str
    golds: list
    options: list
    predictions: list[str | None]
    values: list
    parsed: bool
    correct: bool
    failed: str | None
    cut: bool | None
    image_hashes: list[str] | None


@dataclass(frozen=True)
class EvaluationRun:
    """Run read from its folder: `flags` of settings.json, and `outcomes` by record id, in the order of the file."""

    folder: Path
    flags: dict
    outcomes: dict[str, Outcome]


class Pair(NamedTuple):
    """One record under both runs."""

    a: Outcome
    b: Outcome

    @property
    def failed(self) -> str | None:
        """Reason under which a failed record is counted, with the failed runs; None without a failure."""
        where = [name for name, outcome in zip("AB", self, strict=True) if outcome.failed is not None]
        return f"failed in {' and '.join(where)}" if where else None

    @property
    def flip(self) -> str:
        """GAINED, LOST, or "" if both runs are correct or both wrong."""
        if self.a.correct == self.b.correct:
            return ""
        return GAINED if self.b.correct else LOST


def read_run(folder: str | Path) -> EvaluationRun:
    """Run of a folder. Raises FileNotFoundError if it holds no run, ValueError for malformed files."""
    folder = Path(folder)
    settings, predictions = folder / "settings.json", folder / "predictions.jsonl"
    for path in (settings, predictions):
        if not path.is_file():
            raise MissingFileError(
                "run-not-finished", f"{folder} is no finished run of evaluate.py: it has no {path.name}"
            )
    try:
        flags = json.loads(settings.read_text(encoding="utf-8"))["flags"]
        flags["judge"]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError("no-flags", f"{settings} does not hold the flags of evaluate.py, judge among them") from error
    lines = {}
    with open(predictions, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            record = _parse(line, f"line {number} of {predictions}")
            rotations = lines.setdefault(str(record["id"]), {})
            if record["rotation"] in rotations:
                raise InputError("record-repeated", f"line {number} of {predictions} repeats record {record['id']!r}")
            rotations[record["rotation"]] = record
    if not lines:
        raise InputError("no-predictions", f"{predictions} is empty: the run has not answered anything")
    return EvaluationRun(folder, flags, {name: _outcome(rotations) for name, rotations in lines.items()})


def _parse(line: str, where: str) -> dict:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise InputError(
            "line-not-json", f"{where} is not JSON; resume the run with evaluate.py to complete it"
        ) from error
    missing = [field for field in REQUIRED if field not in record] if isinstance(record, dict) else REQUIRED
    if missing:
        raise InputError("no-prediction", f"{where} is no prediction of evaluate.py: it lacks {', '.join(missing)}")
    return record


def _outcome(rotations: dict[int, dict]) -> Outcome:
    lines = [rotations[rotation] for rotation in sorted(rotations)]
    whole = circular(lines)
    return Outcome(
        id=str(whole["id"]),
        task=str(whole["task"] or ""),
        prompt=whole["prompt"],
        golds=[line["gold"] for line in lines],
        options=[line["options"] for line in lines],
        predictions=[line["prediction"] for line in lines],
        values=[line["value"] for line in lines],
        parsed=whole["parsed"],
        correct=whole["correct"],
        failed=whole["failed"],
        cut=any_cut(lines),
        image_hashes=whole.get("image_hashes"),
    )


def pair(a: EvaluationRun, b: EvaluationRun, intersect: bool = False) -> tuple[list[Pair], dict[str, int]]:
    """Records of both runs in A's order, and the number in only one of them: {"only_in_a", "only_in_b"}.

    Raises ValueError for runs that cannot be compared: different judges; no common record, or different records
    without `intersect`; another question, gold answer, options, rotations, or images for the same record.
    """
    if a.flags["judge"] != b.flags["judge"]:
        raise InputError(
            "judges-differ",
            f"A was judged by {a.flags['judge']!r} and B by {b.flags['judge']!r}; judge both alike, then compare",
        )
    only_a = [name for name in a.outcomes if name not in b.outcomes]
    only_b = [name for name in b.outcomes if name not in a.outcomes]
    pairs = [Pair(outcome, b.outcomes[name]) for name, outcome in a.outcomes.items() if name in b.outcomes]
    if not pairs:
        raise InputError(
            "no-common-record", f"the runs have no record in common: A has {len(only_a)}, B has {len(only_b)} others"
        )
    if (only_a or only_b) and not intersect:
        raise InputError(
            "records-differ",
            f"the runs are over different records: {len(only_a)} are only in A, {len(only_b)} only in B (such as"
            f" {(only_a or only_b)[0]!r}); pass --intersect to compare the {len(pairs)} that both have",
        )
    for one, other in pairs:
        if len(one.golds) != len(other.golds):
            raise InputError(
                "rotations-differ",
                f"record {one.id!r} was asked {len(one.golds)} times in A and {len(other.golds)} times in B; run both"
                " with --circular or both without",
            )
        if one.prompt != other.prompt:
            raise InputError(
                "questions-differ",
                f"record {one.id!r} is not the same question in both runs: A asks {one.prompt!r}, B {other.prompt!r};"
                " they read different data",
            )
        if one.golds != other.golds or one.options != other.options:
            raise InputError(
                "golds-differ",
                f"record {one.id!r} is not the same in both runs: A has the answer {one.golds[0]!r} of"
                f" {one.options[0]}, B {other.golds[0]!r} of {other.options[0]}; they read different data",
            )
        if _other_images(one, other):
            raise InputError(
                "images-differ", f"record {one.id!r} has other images in A than in B; they read different data"
            )
    return pairs, {"only_in_a": len(only_a), "only_in_b": len(only_b)}


def _other_images(one: Outcome, other: Outcome) -> bool:
    """Return whether both runs answered and recorded image hashes, and these differ."""
    answered = one.failed is None and other.failed is None
    known = one.image_hashes is not None and other.image_hashes is not None
    return answered and known and one.image_hashes != other.image_hashes


def compare(pairs: Sequence[Pair]) -> dict:
    """Accuracy of both runs and their difference, over all records and per sub-task; failed pairs are left out.

    Returns {"overall": contrast, "tasks": {task: contrast with "p_holm"}}, each from `contrast`; p_holm corrects for
    the number of sub-tasks.
    """
    usable = [pair for pair in pairs if pair.failed is None]
    names = sorted({pair.a.task for pair in usable})
    tasks = {name: contrast([pair for pair in usable if pair.a.task == name]) for name in names}
    for figures, corrected in zip(tasks.values(), holm([figures["p"] for figures in tasks.values()]), strict=True):
        figures["p_holm"] = float(corrected)
    return {"overall": contrast(usable), "tasks": tasks}


def yes_no_differences(pairs: Sequence[Pair]) -> dict:
    """{"yes_no": scores of both runs and their paired differences (`analysis.yes_no.compare`)}; {} unless all golds are
    yes or no. Failed pairs are left out."""
    usable = [pair for pair in pairs if pair.failed is None]
    sides = [
        [{**vars(outcome), "gold": outcome.golds[0], "options": outcome.options[0]} for outcome in side]
        for side in _sides(usable)
    ]
    differences = yes_no.compare(*sides)
    return {"yes_no": differences} if differences else {}


def contrast(pairs: Sequence[Pair]) -> dict:
    """Both accuracies with Wilson's interval ("a", "b"), their paired "difference" b - a with Tango's score interval,
    the counts "gained" and "lost", McNemar's exact "p" with the smallest p possible for so many flips, and per run the
    numbers of unparsed answers and of answers cut by the token limit (None where unknown).
    """
    right_a, right_b = (np.array([outcome.correct for outcome in side], int) for side in _sides(pairs))
    sides = dict(zip("ab", _sides(pairs), strict=True))
    unparsed = {f"unparsed_{name}": sum(not outcome.parsed for outcome in side) for name, side in sides.items()}
    cut = {f"cut_{name}": count_cut(map(vars, side)) for name, side in sides.items()}
    flips = Counter(pair.flip for pair in pairs)
    return {
        "a": rate_interval(right_a),
        "b": rate_interval(right_b),
        "difference": mean_interval(right_b - right_a, DIFFERENCE),
        GAINED: flips[GAINED],
        LOST: flips[LOST],
        "p": mcnemar(flips[LOST], flips[GAINED]),
        "smallest_p": smallest_p(flips[LOST] + flips[GAINED]),
        **unparsed,
        **cut,
    }


def _sides(pairs: Sequence[Pair]) -> tuple[list[Outcome], list[Outcome]]:
    return [pair.a for pair in pairs], [pair.b for pair in pairs]


def table_row(pair: Pair, image: Path | None) -> dict:
    """Row of one record, the values of COLUMNS; rotations in order. `image`: the file of its first image, None
    without one."""
    row = {
        "image": image,
        "task": pair.a.task,
        "prompt": pair.a.prompt,
        "gold": join_answers(pair.a.golds),
        "flip": pair.flip,
    }
    for name, outcome in zip("ab", pair, strict=True):
        row |= {
            f"prediction_{name}": join_answers(outcome.predictions),
            f"value_{name}": join_answers(outcome.values),
            f"correct_{name}": int(outcome.correct),
            f"cut_{name}": "" if outcome.cut is None else int(outcome.cut),
        }
    return row


def join_answers(answers: Sequence) -> str:
    """Answers to the rotations of one question, in one line."""
    return " | ".join("" if answer is None else " ".join(str(answer).split()) for answer in answers)


def run_names(a: EvaluationRun, b: EvaluationRun) -> tuple[str, str]:
    """Labels of the runs in a figure: model (or runner) and method if these differ, else their folders."""
    versions = [
        (Path(run.flags.get("runner") or str(run.flags.get("model"))).name, run.flags.get("method")) for run in (a, b)
    ]
    differing = [place for place in range(2) if versions[0][place] != versions[1][place]]
    if not differing:
        return f"A: {a.folder.resolve().name}", f"B: {b.folder.resolve().name}"
    return tuple(
        f"{letter}: {', '.join(str(names[place]) for place in differing)}"
        for letter, names in zip("AB", versions, strict=True)
    )


def other_flags(a: EvaluationRun, b: EvaluationRun) -> dict[str, list]:
    """Flags that differ between the runs, each with its value in A and in B; the results folder is ignored."""
    flags = [flag for flag in {**a.flags, **b.flags} if flag != "out_dir"]
    return {flag: [a.flags.get(flag), b.flags.get(flag)] for flag in flags if a.flags.get(flag) != b.flags.get(flag)}


MARKS = ((BLUE, "o", -0.14), (ORANGE, "D", 0.14))  # of A and B: colour, marker, offset within the row
CARDS, ACROSS = 6, 3  # records on a page, and per row
LINE, QUESTION_LINES, ANSWER_LINES = 44, 5, 2  # characters and lines under an image
TALL = 300  # pixels


def accuracy_figure(contrasts: dict[str, dict], names: Sequence[str]) -> Figure:
    """Row per (label, contrast): left both accuracies with Wilson intervals, right their paired difference with its
    score interval, the number of records that flipped in each direction, and McNemar's p.

    The first row is all records; the p of the others is corrected over sub-tasks.
    """
    rows = np.arange(len(contrasts))
    figure = Figure(figsize=(7.2, 1.4 + 0.36 * len(rows)), dpi=200, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1))
    for key, name, (colour, marker, shift) in zip("ab", names, MARKS, strict=True):
        rates = _whiskers([contrast[key] for contrast in contrasts.values()], "rate")
        _points(left, rates, rows + shift, color=colour, marker=marker, label=name)
    differences = _whiskers([contrast["difference"] for contrast in contrasts.values()], "mean")
    _points(right, differences, rows, color="black", marker="s")
    right.axvline(0, color="0.5", linewidth=0.8, linestyle="--", zorder=0)
    for row, contrast in zip(rows, contrasts.values(), strict=True):
        p = contrast.get("p_holm", contrast["p"])
        note = f"+{contrast[GAINED]} −{contrast[LOST]}   p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"
        note = note if contrast[GAINED] or contrast[LOST] else "no record flipped"
        right.text(1.03, row, note, transform=right.get_yaxis_transform(), fontsize=7, va="center")
    labels = [f"{label} (n = {contrast['difference']['n']})" for label, contrast in contrasts.items()]
    left.set_yticks(rows, labels=labels, fontsize=8, parse_math=False)
    left.set(xlim=(-0.02, 1.02), ylim=(len(rows) - 0.5, -0.5))
    left.set_xlabel("accuracy\n(95 % interval, Wilson)", fontsize=8)
    right.set_xlabel("difference, B − A\n(95 % interval, paired score)", fontsize=8)
    header = "gained, lost, p" if len(rows) == 1 else "gained, lost, p (tasks: Holm)"
    right.text(1.03, -0.5, header, transform=right.get_yaxis_transform(), fontsize=7, va="bottom")
    for axes in (left, right):
        for_rows(axes)
    if len(rows) > 1:
        for axes in (left, right):
            axes.axhline(0.5, color="0.8", linewidth=0.8)
    legend = figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _whiskers(figures: Sequence[dict], key: str) -> np.ndarray:
    """(middle, low, high) of each as float64 [row, 3]; NaN where undefined."""
    return np.array([[figure[key], figure["low"], figure["high"]] for figure in figures], np.float64)


def _points(axes, values: np.ndarray, places: np.ndarray, color: str, marker: str, label: str | None = None) -> None:
    axes.hlines(places, values[:, 1], values[:, 2], color=color, linewidth=1.3)
    axes.plot(values[:, 0], places, marker, color=color, markersize=4.5, markeredgecolor="white", label=label)


def flip_pages(pairs: Sequence[Pair], images: Sequence[Image.Image | str], title: str) -> list[Figure]:
    """Pages of six records with both answers. `images`: the image of each, or the reason for its absence."""
    starts = range(0, len(pairs), CARDS)
    pages = []
    for number, start in enumerate(starts, 1):
        several = f" ({number} of {len(starts)})" if len(starts) > 1 else ""
        shown = slice(start, start + CARDS)
        pages.append(_page(pairs[shown], images[shown], title + several))
    return pages


def _page(pairs: Sequence[Pair], images: Sequence[Image.Image | str], title: str) -> Figure:
    rows = -(-len(pairs) // ACROSS)
    aspects = [0.6 if isinstance(image, str) else image.height / image.width for image in images]
    cards = [_card(pair) for pair in pairs]
    lines = max(card.count("\n") + 1 for card in cards)
    height = 2.4 * min(1.0, max(aspects)) + 0.14 * lines + 0.35  # inches of an image, its name and its text
    figure = Figure(figsize=(2.5 * ACROSS, height * rows + 0.3), dpi=200, layout="constrained")
    figure.suptitle(title, fontsize=9, parse_math=False)
    places = list(figure.subplots(rows, ACROSS, squeeze=False).flat)
    for axes in places:
        axes.set(xticks=[], yticks=[], anchor="S")
        axes.spines[:].set_visible(False)
    for axes, pair, image, card in zip(places, pairs, images, cards, strict=False):
        if isinstance(image, str):
            axes.text(0.5, 0.5, textwrap.fill(image, 30), ha="center", va="center", fontsize=7, parse_math=False)
            axes.set(facecolor="0.94", box_aspect=0.6)
        else:
            show_image(axes, image)
        axes.set_title(pair.a.id, fontsize=7, loc="left", parse_math=False)
        axes.set_xlabel(card, fontsize=6.5, loc="left", parse_math=False, linespacing=1.3)
    return figure


def _card(pair: Pair) -> str:
    """Question, gold answer, and the answers of both runs."""
    lines = _cut(pair.a.prompt, QUESTION_LINES)
    lines += _cut(f"right answer: {join_answers(pair.a.golds)}", ANSWER_LINES)
    for name, outcome in zip("AB", pair, strict=True):
        verdict = "right" if outcome.correct else "wrong"
        lines += _cut(f"{name} ({verdict}): {join_answers(outcome.predictions) or 'no answer'}", ANSWER_LINES)
    return "\n".join(lines)


def _cut(text: str, most: int) -> list[str]:
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, LINE)]
    return lines if len(lines) <= most else [*lines[: most - 1], f"{lines[most - 1][: LINE - 2]} …"]


def side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Images of one question in a row, scaled to one height; those flatter than FLATTEST to one width."""
    scaled = []
    for image in images:
        scale = TALL / max(image.height, FLATTEST * image.width)
        size = (max(1, round(scale * image.width)), max(1, round(scale * image.height)))
        scaled.append(image.resize(size, Image.Resampling.LANCZOS))
    gap = 12
    row = Image.new("RGB", (sum(image.width for image in scaled) + gap * (len(scaled) - 1), TALL), "white")
    left = 0
    for image in scaled:
        row.paste(image, (left, 0))
        left += image.width + gap
    return row
