"""Default place of the published question sets, and the source that a run over questions states."""

from __future__ import annotations

from pathlib import Path

from data.folders import Source, is_synthetic, published
from data.spatial_qa_files import PUBLISHED, find, read_file

FOLDER = "spatial_reasoning"


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
