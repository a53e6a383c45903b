"""Precision, recall, F1 and yes-ratio of yes-no questions, as POPE reports them (Li et al. 2023), with intervals.

"yes" is the positive class. An answer that states neither yes nor no is wrong: it counts as a miss of a "yes" gold,
and as no "yes" otherwise. So recall is the share of "yes" among "yes" golds, precision the share of "yes" golds among
"yes" answers, the yes-ratio the share of "yes" among all answers. Rates have Wilson's 95 % intervals. F1 = 2 J / (1 +
J), where J = TP / (TP + FP + FN) is a rate over the records that are not true negatives; the interval of F1 is
Wilson's of J under this map, which is monotone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from analysis.statistics import DIFFERENCE, mean_interval, rate_interval

GOLDS = ("yes", "no")


def is_yes(record: Mapping) -> bool:
    """Return whether the answer of a record with `gold`, `correct` and `parsed` (see `analysis.judges`) says yes.

    A parsed answer that is wrong says the opposite of the gold.
    """
    return bool(record["parsed"] and (record["gold"] == "yes") == record["correct"])


def are_yes_no(rows: Sequence[Mapping]) -> bool:
    """Return whether all golds are "yes" or "no", both occur, and no question has options."""
    golds = {row["gold"] for row in rows}
    return golds == set(GOLDS) and not any(row["options"] for row in rows)


def summarise(rows: Sequence[Mapping]) -> dict:
    """{"yes_no": {"overall": figures, "tasks": {task: figures}}} of answered records; {} unless all are yes-no."""
    if not are_yes_no(rows):
        return {}
    answered = [row for row in rows if row["failed"] is None]
    tasks = sorted({row["task"] for row in rows})
    by_task = {task: score([row for row in answered if row["task"] == task]) for task in tasks}
    return {"yes_no": {"overall": score(answered), "tasks": by_task}}


def score(rows: Sequence[Mapping]) -> dict:
    """{"accuracy", "precision", "recall", "f1", "yes_ratio"}, each as from `rate_interval`; f1 without a count."""
    yes = np.array([is_yes(row) for row in rows], bool)
    gold = np.array([row["gold"] == "yes" for row in rows], bool)
    right = np.array([row["correct"] for row in rows], bool)
    return {
        "accuracy": rate_interval(right),
        "precision": rate_interval(gold[yes]),
        "recall": rate_interval(yes[gold]),
        "f1": f1_interval((yes & gold)[yes | gold]),
        "yes_ratio": rate_interval(yes),
    }


def f1_interval(hits: Iterable[bool]) -> dict:
    """F1 with its interval, in the form of `rate_interval`; hits [record]: true positives among the records that are
    not true negatives."""
    jaccard = rate_interval(hits)
    scaled = {key: None if jaccard[key] is None else _f1(jaccard[key]) for key in ("rate", "low", "high")}
    return {**scaled, "n": jaccard["n"], "interval": jaccard["interval"]}


def _f1(jaccard: float) -> float:
    return 2 * jaccard / (1 + jaccard)


def compare(a: Sequence[Mapping], b: Sequence[Mapping]) -> dict:
    """Scores of two runs over the same records, and paired differences B - A with score intervals.

    Returns {"a", "b", "difference": {"recall", "false_positive_rate", "yes_ratio"}}: of the rates whose records are the
    same in both runs ("yes" golds, "no" golds, all). Empty unless all golds are yes-no.
    """
    if not are_yes_no(a):
        return {}
    gold = np.array([row["gold"] == "yes" for row in a], bool)
    change = np.array([is_yes(row) for row in b], int) - np.array([is_yes(row) for row in a], int)
    changes = {"recall": change[gold], "false_positive_rate": change[~gold], "yes_ratio": change}
    differences = {name: mean_interval(values, DIFFERENCE) for name, values in changes.items()}
    return {"a": score(a), "b": score(b), "difference": differences}


def lines(summary: Mapping) -> list[str]:
    """One line for the terminal per split, and for all."""
    scored = {"all": summary["overall"], **(summary["tasks"] if len(summary["tasks"]) > 1 else {})}
    return [f"{name or '(no sub-task)'}: {', '.join(map(_told, figures.items()))}" for name, figures in scored.items()]


def _told(item: tuple[str, dict]) -> str:
    name, figure = item
    if figure["rate"] is None:
        return f"{name.replace('_', ' ')} undefined"
    return f"{name.replace('_', ' ')} {figure['rate']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
