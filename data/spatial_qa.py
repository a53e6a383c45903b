"""Questions about images: reader of BLINK and SAT-2 as published, and of data sets with other common fields.

    conversations   [{"from": "human", "value": "<image>\n..."}, {"from": "gpt", "value": "left"}], also as `messages`
                    with role and content, with `image` (one path or several) or image_1, image_2, ...:
                    spatial_reasoning/blink/blink_validation.jsonl and spatial_reasoning/sat2_test/sat2_test.jsonl
    BLINK's own     idx, question, prompt, choices, answer "(A)", sub_task, image_1 .. image_4
    SAT's own       image_bytes, question, answers, correct_answer or correct_answer_idx, question_type
    VLMEvalKit's    index, question, hint, a column per option (A, B, ...), answer "A", category, image in base64
    POPE's          question_id, image, text, label; one file per split (`data.pope`)

Options of a record that its prompt lacks are appended to the question, "(A) left" and so on; without stated options,
those in the prompt are used (`data/options.py`). `data/spatial_qa_records.py` reads images and their markers. An
unusable record is left out and listed with a reason; the run continues. data/README.md lists fields and reasons. The
module also finds the published sets in their default folder, and builds the source of a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from data import pope
from data.errors import FlagError, InputError, MissingFileError, SampleError, Skip, check_at_least
from data.folders import Links, Source, is_synthetic, published
from data.images import read_image
from data.options import LETTERS, names_others, rewrite
from data.spatial_qa_files import PUBLISHED, Record, find, read_file, read_hub
from data.spatial_qa_records import IDS, understand


@dataclass(frozen=True)
class Question:
    """One question, with the same fields for every file format."""

    id: str
    """Id, unique in the set."""
    task: str
    """Sub-task, "" for a set without sub-tasks."""
    prompt: str
    """Question with the lettered options. `<image 1>` marks the position of the first of `images`, `<image 2>` of the
    second; images precede a text without markers."""
    options: tuple[str, ...]
    """Texts without letters, in order; () for an open question."""
    answer: str
    """Gold answer: the letter for multiple choice, else the text."""
    images: tuple[Path | bytes, ...] = field(repr=False)
    """Images of the prompt in order: files inside the data root, or encoded images."""
    notes: tuple[str, ...] = ()
    """Parts of the record that are not in the model's input."""

    def load_images(self) -> list[Image.Image]:
        """Decoded images, upright, 8-bit RGB. Raises SampleError for an unreadable one."""
        return [read_image(image) for image in self.images]

    @property
    def can_rotate(self) -> bool:
        """Return whether the options can be rotated: there are some, and none names others ("both A and B")."""
        return len(self.options) > 1 and not names_others(self.options)

    def rotated(self, shift: int) -> Question:
        """Question with its options moved up by `shift` places, the first ones to the end: the letters keep their
        positions, the gold follows its text. A full rotation, or options that cannot be rotated, return the question
        unchanged."""
        if not self.can_rotate or shift % len(self.options) == 0:
            return self
        shift %= len(self.options)
        options = self.options[shift:] + self.options[:shift]
        answer = LETTERS[(LETTERS.index(self.answer) - shift) % len(options)]
        return replace(self, prompt=rewrite(self.prompt, self.options, options), options=options, answer=answer)


def read(dataset: str, data_root: str | Path | None = None, limit: int = 0) -> tuple[list[Question], list[Skip]]:
    """Usable questions of a data set, at most `limit` (0: all), and the omitted ones with their reasons.

    dataset: "blink", "sat2" or "pope" (the published files below `data_root`), a .json, .jsonl, .parquet, .csv or .tsv
    file or a folder of such (images then lie below `data_root`, or the file's folder), or a hub id "owner/name" or
    "owner/name:split".
    Raises FileNotFoundError or ValueError, with a one-sentence message, if no question can be read.
    """
    if limit < 0:
        raise FlagError("--limit", "negative-limit", f"--limit {limit} is negative; give 0 for all questions")
    root, files = locate_files(dataset, data_root)
    root = root and root.resolve()
    questions: dict[str, Question] = {}
    skipped: list[Skip] = []
    for record, folder in _records(dataset, files, root, skipped):
        try:
            if record.fault:
                raise SampleError(record.fault)
            content = understand(record.content, root, folder)
            name = content.id or record.id
            if name in questions:
                raise SampleError("duplicate id")
            questions[name] = Question(**content._replace(id=name)._asdict())
        except SampleError as error:
            skipped.append(Skip(record.where + _named(record.content), error.reason))
        if limit and len(questions) == limit:
            break
    return list(questions.values()), skipped


def locate_files(dataset: str, data_root: str | Path | None) -> tuple[Path | None, dict[str, Path]]:
    """(data root, {label: file}) as from `data.spatial_qa_files.find`; of "pope" {split: file}."""
    if dataset != pope.NAME:
        return find(dataset, data_root)
    if data_root is None:
        raise InputError(
            "data-root-needed", f"--dataset {dataset} needs --data-root, the folder that holds {pope.FOLDER}/"
        )
    return Path(data_root), pope.find(Path(data_root))


def _records(
    dataset: str, files: dict[str, Path], root: Path | None, skipped: list[Skip]
) -> Iterator[tuple[Record, Path | None]]:
    """(record, folder of its file) of all files, or of the hub. A file unreadable as a whole, if one of several,
    is added to `skipped`."""
    if not files:
        yield from ((record, None) for record in read_hub(dataset))
    for label, file in files.items():
        try:
            found = pope.read(file, label, root) if dataset == pope.NAME else read_file(file, label)
            yield from ((record, file.resolve().parent) for record in found)
        except ValueError:
            if len(files) == 1:
                raise
            skipped.append(Skip(label.removesuffix("/"), "file is no list of records"))


def _named(content: object) -> str:
    """Id of a record for messages, if it has one."""
    name = next((content[name] for name in IDS if content.get(name)), None) if isinstance(content, dict) else None
    return f" ({name!r})" if isinstance(name, str | int) else ""


FOLDER = "spatial_reasoning"


@dataclass(frozen=True)
class Questions(Links):
    """Data set of questions about images."""

    dataset: str | None = None
    """blink | sat2 | pope | a .json, .jsonl, .parquet, .csv or .tsv file, or a folder of such | a hub id (default:
    blink, else sat2, if data/spatial_reasoning holds it; else a generated set)."""
    data_root: str | None = None
    """Folder of the published files and their images (default for blink, sat2 and pope: data)."""
    limit: int = 0
    """Maximum number of records, in the set's order; 0 uses all."""

    def __post_init__(self) -> None:
        check_at_least(self, limit=0)
        if self.dataset is None and self.data_root is not None:
            raise ValueError("--data-root needs --dataset: blink, sat2, pope, or a file or folder of records")


def find_root(dataset: str, data_root: str | None) -> str | None:
    """Data root of a set: `data_root`; by default data for "blink" and "sat2", if spatial_reasoning/ is in it, and for
    "pope", if pope/ is in it."""
    name = str(pope.FOLDER) if dataset == pope.NAME else FOLDER if dataset in PUBLISHED else None
    if data_root is None and name and (folder := published(name)) is not None:
        return str(folder.parent)
    return data_root


def published_set() -> tuple[str, str] | None:
    """(data set, data root) of the published files in data/spatial_reasoning: BLINK's, else SAT-2's; None without it.

    Raises FileNotFoundError if the folder holds neither.
    """
    if published(FOLDER) is None:
        return None
    for dataset in PUBLISHED:
        root = find_root(dataset, None)
        try:
            find(dataset, root)
        except FileNotFoundError:
            continue
        return dataset, root
    raise MissingFileError(
        "no-data",
        f"data/{FOLDER} holds neither {' nor '.join(str(file.relative_to(FOLDER)) for file in PUBLISHED.values())};"
        " give --dataset, or move the folder away for a generated set",
    )


def source_of(
    dataset: str, data_root: str | None, used: int, unusable: int, limit: int, flag: str = "--limit",
    made_here: bool = False,
) -> Source:  # fmt: skip
    """Source of a run over `used` questions of a set read by `read`.

    Records are counted only if a limit stopped the reading; those of a hub set are then not counted.
    """
    root, files = locate_files(dataset, data_root)
    held = used + unusable
    if limit:
        held = sum(_count(dataset, file) for file in files.values()) or None
    place = str(files[""]) if dataset in PUBLISHED else str(root / pope.FOLDER) if dataset == pope.NAME else dataset
    synthetic = bool(files) and all(is_synthetic(file.parent) for file in files.values())
    return Source(str(root) if made_here else place, held, used, unusable, limit, flag, synthetic, made_here)


def _count(dataset: str, file: Path) -> int:
    """Number of records of a file."""
    if dataset == pope.NAME:
        return sum(1 for _ in pope.read(file, ""))
    if file.suffix.lower() == ".parquet":
        from pyarrow import parquet

        return parquet.read_metadata(file).num_rows
    try:
        return sum(1 for _ in read_file(file))
    except ValueError:
        return 0  # unreadable as a whole, one of several; the reader has listed it as unusable
