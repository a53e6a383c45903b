"""The summary of an evaluation's records: accuracy over all and per sub-task, and what was left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from analysis.judges import circular, summarise


def summarise_run(rows: Sequence[Mapping], skipped: Sequence[tuple[str, str]]) -> dict:
    """summary.json of an evaluation. rows: one per record and rotation, with `touched`; skipped: (where, reason).

    The rotations of a record count as one, right only if all are. `overall` and `tasks` are as `judges.summarise` gives
    them, each with `cut`, the number of answered records of which the token limit cut an answer (None where no record
    says); `failed` counts records by reason, `skipped` those that could not be read, which `skipped_records` names;
    `touched` adds up what steering did to the answers (empty where it did nothing).
    """
    by_record: dict[str, list] = {}
    for row in rows:
        by_record.setdefault(row["id"], []).append(row)
    records = [{**circular(each), "cut": any_cut(each)} for each in by_record.values()]
    failed = Counter(record["failed"] for record in records if record["failed"] is not None)
    touched = Counter()
    for row in rows:
        touched.update({name: count for name, count in (row.get("touched") or {}).items() if name != "layers"})
    figures = summarise(records)
    figures["overall"]["cut"] = count_cut(records)
    for task, each in figures["tasks"].items():
        each["cut"] = count_cut([record for record in records if record["task"] == task])
    return {
        "records": len(records),
        "answers": len(rows),
        **figures,
        "failed": dict(sorted(failed.items())),
        "skipped": dict(sorted(Counter(reason for _, reason in skipped).items())),
        "skipped_records": [list(each) for each in skipped],
        "touched": dict(sorted(touched.items())),
    }


def constant_gold(rows: Iterable[Mapping]) -> str | None:
    """A warning where all questions with options, of at least two, have the same letter for a gold; else None."""
    golds = [row["gold"] for row in rows if row["options"]]
    if len(golds) < 2 or len(set(golds)) > 1:
        return None
    return (
        f"the gold of all {len(golds)} multiple-choice questions is {golds[0]}, so a model that always answers "
        f"{golds[0]} would score 1.000 on them: check the set, or rotate the options by --circular"
    )


def any_cut(rows: Iterable[Mapping]) -> bool | None:
    """Whether the token limit cut one of the answers; None where no row says."""
    known = [row["cut"] for row in rows if row.get("cut") is not None]
    return any(known) if known else None


def count_cut(records: Iterable[Mapping]) -> int | None:
    """The number of answered records with a cut answer; None where no record says."""
    known = [record["cut"] for record in records if record["failed"] is None and record["cut"] is not None]
    return sum(known) if known else None


def figures_line(name: str, figures: Mapping) -> str:
    """One line for the terminal: "all: accuracy 0.840 [0.755, 0.900], n = 98, 3 unparsed, 1 cut, 2 failed"."""
    if figures["accuracy"] is None:
        return f"{name}: nothing answered, {figures['failed']} failed"
    bounds = f"[{figures['low']:.3f}, {figures['high']:.3f}]"
    left = "".join(f", {figures[kind]} {kind}" for kind in ("unparsed", "cut", "failed") if figures.get(kind))
    return f"{name}: accuracy {figures['accuracy']:.3f} {bounds}, n = {figures['n']}{left}"
