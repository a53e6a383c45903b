"""What an evaluation found, of its records: accuracy over all and per sub-task, and what was left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from analysis.judges import circular, summarise


def summarise_run(rows: Sequence[Mapping], skipped: Sequence[tuple[str, str]]) -> dict:
    """summary.json of an evaluation. rows: one per record and rotation, with `touched`; skipped: (where, reason).

    The rotations of a record count as one, right only if all are. `overall` and `tasks` are as `judges.summarise` gives
    them; `failed` counts records by reason, `skipped` those that could not be read, which `skipped_records` names;
    `touched` adds up what steering did to the answers (empty where it did nothing).
    """
    by_record: dict[str, list] = {}
    for row in rows:
        by_record.setdefault(row["id"], []).append(row)
    records = [circular(each) if len(each) > 1 else each[0] for each in by_record.values()]
    failed = Counter(record["failed"] for record in records if record["failed"] is not None)
    touched = Counter()
    for row in rows:
        touched.update({name: count for name, count in (row.get("touched") or {}).items() if name != "layers"})
    return {
        "records": len(records),
        "answers": len(rows),
        **summarise(records),
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


def figures_line(name: str, figures: Mapping) -> str:
    """One line for the terminal: "all 0.840 [0.76, 0.90] of 98, 3 unparsed, 2 failed"."""
    if figures["accuracy"] is None:
        return f"{name}: nothing answered, {figures['failed']} failed"
    bounds = f"[{figures['low']:.3f}, {figures['high']:.3f}]"
    left = "".join(f", {figures[kind]} {kind}" for kind in ("unparsed", "failed") if figures[kind])
    return f"{name}: accuracy {figures['accuracy']:.3f} {bounds}, n = {figures['n']}{left}"
