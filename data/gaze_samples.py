"""Samples of the gaze scripts: images with a question and scanpaths, matched by the question's id or by the image."""

from __future__ import annotations

import math
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from data import scanpaths, twoshapes
from data.errors import InputError, SampleError, Skip, check_at_least
from data.folders import GENERATED, Source, made_whole, published
from data.geometry import ImageGrid
from data.images import read_image
from data.samples import DEFAULT_COUNT, Sample, Samples, collect
from data.scanpaths import Scanpath, Scanpaths, to_cells
from data.spatial_qa import Question
from data.twoshapes import LAYOUT, shards_of
from data.twoshapes_scanpaths import TARGETS


@dataclass(frozen=True)
class ScanpathSettings:
    """Reading of scanpath files, and the cells that their fixations open."""

    units: Literal["pixels", "fractions", "patches"] | None = None
    """Units of scanpath files that do not state their own."""
    display: tuple[int, int] | None = None
    """Width and height, in pixels, of the display that showed the images letterboxed (scaled to fit, centred), for
    scanpaths in its pixels. COCO-Search18: 1680 1050."""
    viewer: str | None = None
    """Read only the scanpaths of this viewer (default: the first scanpath of each image)."""
    task: str | None = None
    """Read only the scanpaths of this task, such as the category of a visual search."""
    condition: str | None = None
    """Read only the scanpaths of this condition, such as present."""
    trajectory: bool = False
    """Also count the cells on the line between consecutive fixations."""
    by_duration: bool = False
    """Weight fixations by duration."""
    margin: int = 1
    """Cells that a fixation opens on each side of its own: 1 opens 3 x 3."""

    def __post_init__(self) -> None:
        check_at_least(self, margin=0)

    @property
    def selection(self) -> dict:
        """Keyword arguments of `data.scanpaths.read`."""
        return {name: getattr(self, name) for name in ("units", "display", "viewer", "task", "condition")}

    @property
    def mapping(self) -> dict[str, bool]:
        """Keyword arguments of `data.scanpaths.to_cells`: how fixations become points."""
        return {"trajectory": self.trajectory, "by_duration": self.by_duration}


class GazeSample(NamedTuple):
    """A sample and one scanpath on its image, in cells of the model's grid.

    name: the sample's, followed by `gaze` where there are several. gaze: short name of the scanpath's file. points:
    (x, y) or (x, y, weight), at least one. dropped: fixations left out, with their reasons. simulated: the scanpath's
    record states that its fixations were generated.
    """

    name: str
    sample: Sample
    gaze: str
    points: list[tuple]
    grid: object
    dropped: list[Skip]
    simulated: bool = False


@dataclass(frozen=True)
class GazeSource:
    """Origin of a run's fixations; `str` is the line that the run prints.

    kind: "simulated" if the records of all scanpaths state it, "recorded" if none does, else "partly simulated".
    scanpaths: usable ones in all `files`. made_here: the files were generated for this run.
    """

    kind: str
    files: tuple[str, ...]
    scanpaths: int
    made_here: bool = False

    @classmethod
    def of(cls, files: Sequence[str | Path], paths: dict[str, Scanpaths], made_here: bool = False) -> GazeSource:
        """Source of the scanpaths `paths` that were read from `files`."""
        marks = [scanpath.synthetic for known in paths.values() for scanpath in known.by_image.values()]
        kind = "simulated" if marks and all(marks) else "partly simulated" if any(marks) else "recorded"
        return cls(kind, tuple(map(str, files)), len(marks), made_here)

    def __str__(self) -> str:
        folders = {str(Path(file).parent) for file in self.files}
        files = ", ".join(self.files)
        if len(self.files) > 1 and len(folders) == 1:
            files = f"{', '.join(Path(file).name for file in self.files)} in {folders.pop()}"
        return f"gaze: {self.kind} ({'made here: ' * self.made_here}{files}), {self.scanpaths} scanpaths"

    def facts(self) -> dict:
        """Source for settings.json: `line` is the printed line, `label` a word for titles."""
        return {"line": str(self), "label": f"{self.kind} gaze", **asdict(self)}


class Gathered(NamedTuple):
    """Samples, the unusable ones, scanpaths by short file name, and the sources of both."""

    samples: list[Sample]
    unusable: list[Skip]
    paths: dict[str, Scanpaths]
    source: Source
    fixations: GazeSource


def example_set(count: int, seed: int) -> str:
    """Folder of `count` generated images of two shapes of different colour, with simulated scanpaths; made once."""
    root = GENERATED / f"gaze-{count}-seed-{seed}"
    if not root.exists():
        twoshapes.generate(root, count, seed, same_colour=0.0)
    if not any(root.glob("scanpaths-*.jsonl")):
        scanpaths.generate(root, seed=seed)
    return str(root)


def simulate(root: Path, targets: Sequence[str], seed: int) -> list[Path]:
    """Simulated scanpath files for a two-shapes set without any; made once per content, in data/generated.

    root: the set's data root, which is not changed.
    """
    checksum = 0
    for shard in shards_of(root):
        for name in ("caption.txt", "world_model.json"):
            checksum = zlib.crc32((shard / name).read_bytes() if (shard / name).is_file() else b"", checksum)
    folder = GENERATED / f"gaze-{checksum:08x}-seed-{seed}"
    if not folder.exists():
        with made_whole(folder) as whole:
            scanpaths.generate(root, seed=seed, folder=whole)
    return [folder / f"scanpaths-{target}.jsonl" for target in targets]


def gather(
    settings: Samples, reading: ScanpathSettings, scanpath_files: Sequence[str], targets: Sequence[str]
) -> Gathered:
    """Samples and scanpaths of a run.

    Without images they are those of data/spatial_twoshapes if present, else generated ones; without
    `scanpath_files` they are those that `data.scanpaths` writes into a data root for `targets`, simulated here for
    images not given by a flag. Raises ValueError and FileNotFoundError for unreadable data, and for a scanpath file
    without a usable scanpath.
    """
    given = bool(settings.image) or settings.data_root is not None
    folder = None if given else published(LAYOUT.parts[0])
    data_root, made_here = settings.data_root, not given and folder is None
    if not given:
        data_root = str(folder.parent) if folder else example_set(settings.limit or DEFAULT_COUNT, settings.seed)
    samples, unusable, source = collect(replace(settings, data_root=None if folder else data_root))
    if scanpath_files or given:
        files, simulated = find_files(data_root, scanpath_files, targets), False
    elif files := present_files(data_root, targets):
        simulated = made_here
    else:
        files, simulated = simulate(Path(data_root), targets, settings.seed), True
    paths = read_all(files, data_root, **reading.selection)
    check_images(samples, paths)
    print_unread(paths)
    paths = {name: without_missing(known) for name, known in paths.items()}
    fixations = GazeSource.of(files, paths, simulated)
    return Gathered(samples, unusable, paths, replace(source, made_here=made_here), fixations)


def find_files(data_root: str | None, given: Sequence[str], targets: Sequence[str] = TARGETS) -> list[Path]:
    """Scanpath files `given`, or those in the data root. Raises ValueError without any."""
    if given:
        return [Path(path) for path in given]
    if data_root is None:
        raise InputError(
            "scanpaths-needed", "images need --scanpaths: a .json, .jsonl or .csv file of fixations on them"
        )
    present = present_files(data_root, targets)
    if not present:
        raise InputError(
            "no-scanpaths",
            f"no scanpaths in {data_root}: give --scanpaths, or simulate some for images of two shapes with"
            f" `python -m data.scanpaths --data-root {data_root}`",
        )
    return present


def present_files(data_root: str, targets: Sequence[str]) -> list[Path]:
    """Existing scanpath files of a data root, of those that `data.scanpaths` writes for `targets`."""
    files = (Path(data_root, f"scanpaths-{target}.jsonl") for target in targets)
    return [path for path in files if path.is_file()]


def read_all(files: Sequence[Path], data_root: str | None, units: str | None = None, **reading) -> dict[str, Scanpaths]:
    """Scanpaths of several files by short file name; those of a data root name images below it.

    units, reading: of `data.scanpaths.read`. Raises ValueError for files of one name or without any usable scanpath,
    else as `data.scanpaths.read` does.
    """
    names = [path.stem.removeprefix("scanpaths-") for path in files]
    if len(set(names)) < len(names):
        raise InputError(
            "names-not-unique", f"scanpath files need names of their own, but these are {', '.join(map(str, files))}"
        )
    by_name = {name: scanpaths.read(path, data_root, units, **reading) for name, path in zip(names, files, strict=True)}
    for path, known in zip(files, by_name.values(), strict=True):
        if not known.by_image:
            reasons = Counter(skip.reason for skip in known.skipped).most_common(1)
            cause = "".join(f", {count} of {len(known.skipped)} because: {reason}" for reason, count in reasons)
            raise InputError(
                "no-usable-scanpath",
                f"{path} holds no scanpath that can be used{cause}{_unknown(known, reading)}; --units says what a file"
                " leaves open, and data/scanpaths.py describes the format",
            )
    return by_name


def _unknown(known: Scanpaths, reading: dict) -> str:
    """Known viewers, tasks and conditions of a file, for each requested one that the file lacks."""
    return "".join(
        f" (the file's {name}s: {', '.join(names[:10]) or 'none'}{' ...' * (len(names) > 10)})"
        for name, names in known.names.items() if reading.get(name) is not None and reading[name] not in names
    )  # fmt: skip


def print_unread(paths: dict[str, Scanpaths]) -> None:
    """Print one line on stderr for each file with unread fields or columns."""
    for name, known in paths.items():
        if known.unread:
            print(f"note: fields of {name} that are not read: {', '.join(known.unread)}", file=sys.stderr)


def without_missing(known: Scanpaths) -> Scanpaths:
    """Scanpaths without those of missing images, which are left out with that reason."""
    missing = [image for image in known.by_image if not (known.root / image).is_file()]
    by_image = {image: scanpath for image, scanpath in known.by_image.items() if image not in set(missing)}
    skipped = [*known.skipped, *(Skip(image, "image missing") for image in missing)]
    return replace(known, by_image=by_image, skipped=skipped)


def check_images(samples: Sequence[Sample], paths: dict[str, Scanpaths]) -> None:
    """Match samples to the images of the files. Raises ValueError without a match."""
    missing = []
    for known in paths.values():
        for sample in samples:
            try:
                known.of(sample.path)
                return
            except SampleError as error:
                missing.append(f"{error} (names are paths below {known.root})")
    if missing:
        raise InputError("no-scanpath-of-image", missing[0])


def locate(
    samples: Sequence[Sample],
    paths: dict[str, Scanpaths],
    grid_of: Callable[[int, int], ImageGrid | None],
    **mapping,
) -> tuple[list[GazeSample], list[Skip]]:
    """Every sample with every scanpath on its image, and the unusable ones with their reasons.

    grid_of: the model's grid of an image of (width, height) pixels, which may raise SampleError. mapping:
    `trajectory` and `by_duration` of `data.scanpaths.to_cells`.
    Raises ValueError for a model with an unknown grid (None).
    """
    located, skipped = [], []
    for sample in tqdm(samples, desc="reading scanpaths", unit="image", disable=None):
        try:
            grid = grid_of(*read_image(sample.path).size)
        except SampleError as error:
            skipped.append(Skip(sample.name, error.reason))
            continue
        if grid is None:
            raise InputError(
                "unknown-grid",
                "where this model's image tokens lie in the image is not known, so gaze cannot be put on them;"
                " load LLaVA-1.5, Qwen2-VL, Qwen2.5-VL, Qwen3-VL or Fuyu",
            )
        for gaze, known in paths.items():
            name = f"{sample.name} {gaze}" if len(paths) > 1 else sample.name
            try:
                scanpath = known.of(sample.path)
                cells = to_cells(scanpath, grid, **mapping)
            except SampleError as error:
                skipped.append(Skip(name, error.reason))
                continue
            if cells.points:
                located.append(GazeSample(name, sample, gaze, cells.points, grid, cells.dropped, scanpath.synthetic))
            else:
                skipped.append(Skip(name, "no fixation that the model can see"))
    return located, skipped


def left_out(paths: dict[str, Scanpaths], samples: Sequence[GazeSample]) -> dict[str, dict[str, int]]:
    """Numbers of omitted records of the scanpath files and omitted fixations of the samples, by reason."""
    return {
        "records": dict(Counter(skip.reason for known in paths.values() for skip in known.skipped)),
        "fixations": dict(Counter(skip.reason for sample in samples for skip in sample.dropped)),
    }


def shuffled(samples: Sequence[GazeSample], rng: np.random.Generator) -> list[list[tuple] | None]:
    """Another image's gaze for each sample, on its own grid: no scanpath is used twice or on its own image.

    A control: a head that follows such a gaze has a centre bias and does not follow the gaze on this image. Where grids
    differ, points keep their position as fractions of the grid. None where no gaze of another image remains, as for a
    single sample, or where more than half of the samples are of one image.
    """
    images = [sample.sample.path.resolve() for sample in samples]
    alike: dict[Path, list[int]] = {}
    for index in rng.permutation(len(samples)).tolist():
        alike.setdefault(images[index], []).append(index)
    order = [index for group in alike.values() for index in group]
    step = max(map(len, alike.values()), default=0)  # at least the size of the largest group of one image
    assigned: list[list[tuple] | None] = [None] * len(samples)
    for index, other in zip(order, order[step:] + order[:step], strict=True):
        if images[other] != images[index]:
            assigned[index] = moved(samples[other], samples[index].grid)
    return assigned


def moved(sample: GazeSample, grid) -> list[tuple]:
    """The sample's points on another grid: the cell that contains the centre of the old one."""
    across, down = grid.cols / sample.grid.cols, grid.rows / sample.grid.rows
    return [(math.floor((x + 0.5) * across), math.floor((y + 0.5) * down), *weight) for x, y, *weight in sample.points]


def read_for(questions: Iterable[Question], file: str, data_root: str | None, **reading) -> Scanpaths:
    """Scanpaths of a file; reading: of `data.scanpaths.read`.

    Raises ValueError if none can be used for any question, else as `data.scanpaths.read` does.
    """
    [known] = read_all([Path(file)], data_root, **reading).values()
    reasons = set()
    for question in questions:
        try:
            scanpath_of(question, known)
            return known
        except SampleError as error:
            reasons.add(str(error))
    raise InputError(
        "no-scanpath-of-question",
        f"{file} is of no use for any question ({max(reasons)}); it names a question by its id, or an image by its "
        "path below --data-root",
    )


def scanpath_of(question: Question, known: Scanpaths) -> Scanpath:
    """Scanpath of a question. Raises SampleError without one, or unless the question has exactly one image."""
    if len(question.images) != 1:
        raise SampleError(f"{len(question.images)} images", "a scanpath belongs to one image")
    [image] = question.images
    return known.by_image.get(question.id) or known.of(image if isinstance(image, Path) else question.id)


def points_of(question: Question, known: Scanpaths, grids: Sequence, **mapping) -> tuple[list, str]:
    """Points of the question's scanpath on its image's grid, or none and the reason; mapping: of `to_cells`."""
    try:
        path = scanpath_of(question, known)
    except SampleError as error:
        return [], error.reason
    points = to_cells(path, grids[0], **mapping).points
    return points, "" if points else "no fixation that the model can see"
