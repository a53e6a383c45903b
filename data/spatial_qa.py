"""Questions about pictures: reader of BLINK and SAT-2 as they are published, and of data sets with other common fields.

    conversations   [{"from": "human", "value": "<image>\n..."}, {"from": "gpt", "value": "left"}], also as `messages`
                    with role and content, with `image` (one path or several) or image_1, image_2, ...:
                    spatial_reasoning/blink/blink_validation.jsonl and spatial_reasoning/sat2_test/sat2_test.jsonl
    BLINK's own     idx, question, prompt, choices, answer "(A)", sub_task, image_1 .. image_4
    SAT's own       image_bytes, question, answers, correct_answer or correct_answer_idx, question_type
    VLMEvalKit's    index, question, hint, a column per option (A, B, ...), answer "A", category, image in base64

Options that a record states and its prompt does not show are appended to the question, "(A) left" and so on; where it
states none, those that its prompt shows are taken (`data/options.py`). `data/spatial_qa_records.py` reads images and
their markers. A record that cannot be used is left out and named with a reason; none ends the run. data/README.md lists
fields and reasons.

Default place of the published question sets, and the source that a run over questions states.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from data.errors import SampleError, Skip, check_at_least
from data.folders import Links, Source, is_synthetic, published
from data.images import read_image
from data.options import LETTERS, names_others, rewrite
from data.spatial_qa_files import PUBLISHED, Record, find, read_file, read_hub
from data.spatial_qa_records import IDS, understand


@dataclass(frozen=True)
class Question:
    """One question, the same whatever kind of file it came from."""

    id: str
    """Unique in the set."""
    task: str
    """Sub-task, "" where the set has none."""
    prompt: str
    """With the lettered options. `<image 1>` marks the place of the first of `images`, `<image 2>` of the second; one
    without markers comes after its images."""
    options: tuple[str, ...]
    """Texts without letters, in order; () for an open question."""
    answer: str
    """The letter for multiple choice, else the text."""
    images: tuple[Path | bytes, ...] = field(repr=False)
    """As they are shown: files inside the data root, or encoded pictures."""
    notes: tuple[str, ...] = ()
    """Parts of the record that the model is not shown."""

    def pictures(self) -> list[Image.Image]:
        """The pictures, upright, 8-bit RGB. Raises SampleError for one that cannot be read."""
        return [read_image(image) for image in self.images]

    @property
    def can_rotate(self) -> bool:
        """Return whether the options can change places: there are some, and none names others ("both A and B")."""
        return len(self.options) > 1 and not names_others(self.options)

    def rotated(self, shift: int) -> Question:
        """The same question with its options moved up by `shift` places, those in front going to the end: the letters
        stay where they are, the gold follows its text. A whole turn, and a question whose options cannot change places,
        give the question as it is."""
        if not self.can_rotate or shift % len(self.options) == 0:
            return self
        shift %= len(self.options)
        options = self.options[shift:] + self.options[:shift]
        answer = LETTERS[(LETTERS.index(self.answer) - shift) % len(options)]
        return replace(self, prompt=rewrite(self.prompt, self.options, options), options=options, answer=answer)


def read(dataset: str, data_root: str | Path | None = None, limit: int = 0) -> tuple[list[Question], list[Skip]]:
    """Usable questions of a data set, at most `limit` (0: all), and what was left out with its reason.

    dataset: "blink" or "sat2" (the published files below `data_root`), a .json, .jsonl, .parquet, .csv or .tsv file or
    a folder of such (pictures then lie below `data_root`, or the file's folder), or a hub id "owner/name" or
    "owner/name:split".
    Raises FileNotFoundError or ValueError, in one sentence, where nothing can be read.
    """
    if limit < 0:
        raise ValueError(f"--limit {limit} is negative; give 0 for all questions")
    root, files = find(dataset, data_root)
    root = root and root.resolve()
    questions: dict[str, Question] = {}
    skipped: list[Skip] = []
    for record, folder in _records(dataset, files, skipped):
        try:
            if record.fault:
                raise SampleError(record.fault)
            asked = understand(record.content, root, folder)
            name = asked.id or record.id
            if name in questions:
                raise SampleError("duplicate id")
            questions[name] = Question(**asked._replace(id=name)._asdict())
        except SampleError as error:
            skipped.append(Skip(record.where + _named(record.content), error.reason))
        if limit and len(questions) == limit:
            break
    return list(questions.values()), skipped


def _records(dataset: str, files: dict[str, Path], skipped: list[Skip]) -> Iterator[tuple[Record, Path | None]]:
    """(record, folder of its file) of all files, or of the hub. One of several files that is broken as a whole goes to
    `skipped`."""
    if not files:
        yield from ((record, None) for record in read_hub(dataset))
    for label, file in files.items():
        try:
            yield from ((record, file.resolve().parent) for record in read_file(file, label))
        except ValueError:
            if len(files) == 1:
                raise
            skipped.append(Skip(label.removesuffix("/"), "file is no list of records"))


def _named(content: object) -> str:
    """A record's own id, where it has one, for people to find it by."""
    name = next((content[name] for name in IDS if content.get(name)), None) if isinstance(content, dict) else None
    return f" ({name!r})" if isinstance(name, str | int) else ""


FOLDER = "spatial_reasoning"


@dataclass(frozen=True)
class Questions(Links):
    """Data set of questions about images."""

    dataset: str | None = None
    """blink | sat2 | a .json, .jsonl, .parquet, .csv or .tsv file, or a folder of such | a hub id (default: blink, else
    sat2, where data/spatial_reasoning holds it; else a generated set)."""
    data_root: str | None = None
    """Folder of the published files and their pictures (default for blink and sat2: data)."""
    limit: int = 0
    """Ask at most so many records, in the set's order; 0 asks all."""

    def __post_init__(self) -> None:
        check_at_least(self, limit=0)
        if self.dataset is None and self.data_root is not None:
            raise ValueError("--data-root needs --dataset: blink, sat2, or a file or folder of records")


def find_root(dataset: str, data_root: str | None) -> str | None:
    """The data root of a set: `data_root`; by default, for "blink" and "sat2", data where spatial_reasoning/ lies."""
    if data_root is None and dataset in PUBLISHED and (folder := published(FOLDER)) is not None:
        return str(folder.parent)
    return data_root


def published_set() -> tuple[str, str] | None:
    """(data set, data root) of the published files in data/spatial_reasoning: BLINK's, else SAT-2's; None without it.

    Raises FileNotFoundError where the folder holds neither.
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
    raise FileNotFoundError(
        f"data/{FOLDER} holds neither {' nor '.join(str(file.relative_to(FOLDER)) for file in PUBLISHED.values())};"
        " give --dataset, or move the folder away for a generated set"
    )


def source_of(
    dataset: str, data_root: str | None, used: int, unusable: int, limit: int, flag: str = "--limit",
    made_here: bool = False,
) -> Source:  # fmt: skip
    """The source of a run over `used` questions of a set that `data.spatial_qa.read` has read.

    Records are counted only where a limit stopped the reading; those of a hub set remain uncounted then.
    """
    root, files = find(dataset, data_root)
    held = used + unusable
    if limit:
        held = sum(map(_count, files.values())) or None
    place = str(files[""]) if dataset in PUBLISHED else dataset
    synthetic = bool(files) and all(is_synthetic(file.parent) for file in files.values())
    return Source(str(root) if made_here else place, held, used, unusable, limit, flag, synthetic, made_here)


def _count(file: Path) -> int:
    """Number of records of a file."""
    if file.suffix.lower() == ".parquet":
        from pyarrow import parquet

        return parquet.read_metadata(file).num_rows
    try:
        return sum(1 for _ in read_file(file))
    except ValueError:
        return 0  # of several files, one that is broken as a whole; the reader has named it among the unusable
