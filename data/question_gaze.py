"""Scanpaths on the pictures of questions, found by the question's id or by its picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from data.errors import SampleError
from data.gaze_samples import read_all
from data.scanpaths import Scanpath, Scanpaths, to_cells
from data.spatial_qa import Question


def read_for(questions: Iterable[Question], file: str, data_root: str | None, **reading) -> Scanpaths:
    """Scanpaths of a file; reading: of `data.scanpaths.read`.

    Raises ValueError where none can be used for any question, else as `data.scanpaths.read` does.
    """
    [known] = read_all([Path(file)], data_root, **reading).values()
    reasons = set()
    for question in questions:
        try:
            scanpath_of(question, known)
            return known
        except SampleError as error:
            reasons.add(str(error))
    raise ValueError(
        f"{file} is of no use for any question ({max(reasons)}); it names a question by its id, or a picture by its "
        "path below --data-root"
    )


def scanpath_of(question: Question, known: Scanpaths) -> Scanpath:
    """Raises SampleError where there is none, or the question has not one picture."""
    if len(question.images) != 1:
        raise SampleError(f"{len(question.images)} pictures", "a scanpath belongs to one picture")
    [image] = question.images
    return known.by_image.get(question.id) or known.of(image if isinstance(image, Path) else question.id)


def points_of(question: Question, known: Scanpaths, grids: Sequence, **mapping) -> tuple[list, str]:
    """Points of the question's scanpath on its picture's grid, or none and the reason; mapping: of `to_cells`."""
    try:
        path = scanpath_of(question, known)
    except SampleError as error:
        return [], error.reason
    points = to_cells(path, grids[0], **mapping).points
    return points, "" if points else "no fixation that the model can see"
