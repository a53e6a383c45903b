"""CHAIR: objects that captions name although the image does not show them, per caption and per named object.

    python -m analysis.chair --captions answers.jsonl --instances instances_val2014.json --synonyms synonyms.txt

Rohrbach et al., "Object Hallucination in Image Captioning" (EMNLP 2018, arXiv 1809.02156):

    CHAIR_s = captions with a hallucinated object / all captions
    CHAIR_i = hallucinated objects named / objects named

and, as later work adds, recall = objects of the image that its caption names. An object counts once per caption. The
published files: captions as JSON lines or a list with `image_id` and `caption`; COCO's instances (`annotations` with
`image_id` and `category_id`, `categories` with `id` and `name`); synonyms, one object a line, its first name followed
by others, separated by commas. Words match whole, with plural endings, the longest name first.

Where we differ from the published code: the objects of COCO's images are those of the instances alone (theirs adds
objects named by the reference captions); words match by spelling without a lemmatiser; there are no exceptions for
compound names such as "hot dog" beyond the longest match. Figures are therefore not those of the published code.

CHAIR_s has Wilson's 95 % interval. Objects of one caption are not independent, so the interval of CHAIR_i is Wilson's
at as many observations as captions that name an object, which is too wide rather than too narrow.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from analysis.statistics import SHARE, mean_interval, rate_interval
from data.errors import InputError
from data.shapes import COLOURS, SHAPES
from models.layout import find_words

ABSENT = " (absent)"
SHAPE_NAMES: dict[str, tuple[str, ...]] = {f"{colour} {shape}": () for colour in COLOURS for shape in SHAPES}
"""Objects of two-shapes captions, "red circle", with no synonyms."""


def named_objects(caption: str, vocabulary: Mapping[str, Sequence[str]]) -> list[str]:
    """Objects of the vocabulary that a caption names, each once, in the order of their first mention.

    vocabulary: synonyms by object. A name inside a longer one ("dog" in "hot dog") is not a mention of its own.
    """
    forms = [(form, name) for name, synonyms in vocabulary.items() for form in (name, *synonyms)]
    text, mentions = caption, []
    for form, name in sorted(forms, key=lambda pair: -len(pair[0])):
        for first, last in find_words(text, form, plural=True):
            mentions.append((first, name))
            text = text[:first] + "\x00" * (last - first) + text[last:]
    return list(dict.fromkeys(name for _, name in sorted(mentions)))


def marked(named: Iterable[str], present: Iterable[str]) -> str:
    """The named objects as one text, each absent one marked."""
    return ", ".join(name if name in set(present) else name + ABSENT for name in named)


def score(captions: Sequence[tuple[Sequence[str], Sequence[str]]]) -> dict:
    """{"sentences", "objects", "recall"} of captions, each as (objects named, objects present).

    Rates as from `rate_interval` (CHAIR_s, CHAIR_i), recall as from `mean_interval`, over images with objects.
    """
    absent = [sum(name not in set(present) for name in named) for named, present in captions]
    named = sum(len(each) for each, _ in captions)
    recalled = [len(set(each) & set(present)) / len(set(present)) for each, present in captions if present]
    return {
        "sentences": rate_interval(count > 0 for count in absent),
        "objects": _objects(sum(absent), named, sum(bool(each) for each, _ in captions)),
        "recall": mean_interval(recalled, SHARE),
    }


def _objects(absent: int, named: int, clusters: int) -> dict:
    """CHAIR_i with the interval of a rate over `clusters` observations: rounded away from the rate on each side."""
    if not named:
        return {**rate_interval(()), "captions": clusters}
    share = absent / named * clusters
    below, above = (
        rate_interval([True] * count + [False] * (clusters - count)) for count in (math.floor(share), math.ceil(share))
    )
    bounds = {"low": below["low"], "high": above["high"], "interval": below["interval"]}
    return {"rate": absent / named, **bounds, "count": absent, "n": named, "captions": clusters}


def summarise(rows: Sequence[Mapping]) -> dict:
    """{"chair": {"overall", "tasks"}}: `score` of the records of an evaluation under the judge `chair`, overall and by
    task; failed ones are left out."""
    answered = [row for row in rows if row["failed"] is None]
    tasks = sorted({row["task"] for row in answered})
    by_task = {task: score([_pair(row) for row in answered if row["task"] == task]) for task in tasks}
    return {"chair": {"overall": score([_pair(row) for row in answered]), "tasks": by_task}}


def _pair(row: Mapping) -> tuple[list[str], list[str]]:
    """Objects named and objects present of a record, from the verdict's value (`marked`) and the gold."""
    return [name.removesuffix(ABSENT) for name in objects_of(row["value"])], objects_of(row["gold"])


def objects_of(text: str) -> list[str]:
    """Objects of a text that separates them by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def lines(scores: Mapping) -> list[str]:
    """Lines for the terminal."""
    sentences, objects, recall = scores["sentences"], scores["objects"], scores["recall"]
    figures = {
        f"captions with an absent object (CHAIR_s, n = {sentences['n']})": (sentences["rate"], sentences),
        f"absent among named objects (CHAIR_i, n = {objects['n']})": (objects["rate"], objects),
        f"objects named of those present (n = {recall['n']})": (recall["mean"], recall),
    }
    return [
        f"{name}: undefined" if value is None else f"{name}: {value:.3f} [{each['low']:.3f}, {each['high']:.3f}]"
        for name, (value, each) in figures.items()
    ]


def read_captions(file: Path) -> list[tuple[str, str]]:
    """(image id, caption) of a file of captions. Raises ValueError for another kind of file."""
    text = _read(file)
    try:
        listed = text.lstrip().startswith("[")
        records = json.loads(text) if listed else [json.loads(line) for line in text.splitlines() if line.strip()]
        return [(str(record["image_id"]), str(record["caption"])) for record in records]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            "no-captions", f"{file} is no file of captions, one {{image_id, caption}} a line: {error!r}"
        ) from error


def read_instances(file: Path) -> dict[str, set[str]]:
    """Names of the objects of each image, by its id. Raises ValueError for another kind of file."""
    try:
        content = json.loads(_read(file))
        names = {category["id"]: category["name"] for category in content["categories"]}
        present: dict[str, set[str]] = {str(image["id"]): set() for image in content.get("images", ())}
        for annotation in content["annotations"]:
            present.setdefault(str(annotation["image_id"]), set()).add(names[annotation["category_id"]])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            "no-instances", f"{file} holds no COCO instances (annotations and categories): {error!r}"
        ) from error
    return present


def read_synonyms(file: Path) -> dict[str, list[str]]:
    """Synonyms by object. Raises ValueError for a file without any."""
    lines = [[name.strip() for name in line.split(",") if name.strip()] for line in _read(file).splitlines()]
    if not (vocabulary := {line[0]: line[1:] for line in lines if line}):
        raise InputError("no-synonyms", f"{file} holds no object; expected one a line, with its synonyms after commas")
    return vocabulary


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError("not-text", f"{file} is not UTF-8 text") from error


@dataclass(frozen=True)
class Config:
    """CHAIR of a file of captions against COCO's instances."""

    captions: Path
    """JSON lines, or a list, of {"image_id", "caption"}."""
    instances: Path
    """COCO's instances_val2014.json, or a file of its form."""
    synonyms: Path
    """One object a line, as the instances name it, followed by its synonyms, separated by commas."""


def main(config: Config) -> int:
    try:
        captions, present = read_captions(config.captions), read_instances(config.instances)
        vocabulary = read_synonyms(config.synonyms)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    known = [
        (named_objects(caption, vocabulary), sorted(present[image])) for image, caption in captions if image in present
    ]
    if left_out := len(captions) - len(known):
        print(f"left out: {left_out} captions of images that {config.instances} does not list")
    if unnamed := sorted(set().union(*present.values()) - set(vocabulary)):
        print(f"not in {config.synonyms}, so never named: {', '.join(unnamed)}")
    print(*lines(score(known)), sep="\n")
    return 0 if known else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config)))
