"""The lock of a run's folder: one run at a time reads and writes there.

It is flock's lock on FOLDER/.lock, which ends with the process that holds it, however that ends: a file that a killed
run left holds nothing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from analysis.results import writing

NAME = ".lock"
ATTEMPTS = 100  # to open a file whose folder other runs remove meanwhile


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a folder against every other run until the block ends; makes the folder, and removes it if it stays empty.

    Where the system has no lock to give, says so on stderr and goes on. Raises ValueError where another run holds the
    folder, OutputError where it cannot be made.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    file = _locked(folder)
    try:
        yield
    finally:
        if file is not None:
            (folder / NAME).unlink(missing_ok=True)
            os.close(file)
        for place in made:
            with suppress(OSError):  # not empty: the run left something there, or another one began beside it
                place.rmdir()


def _locked(folder: Path) -> int | None:
    """The open and locked file of a folder; None where none may be opened."""
    path = folder / NAME
    while True:
        try:
            file = _opened(path)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                _tell_unlocked(folder, error)  # a finished run can be read all the same
                return None
            with writing(folder):
                raise
        try:
            if error := hold(file, folder):
                _tell_unlocked(folder, error)
        except ValueError:
            os.close(file)
            raise
        if _is_at(file, path):
            return file
        os.close(file)  # the run that held it has removed it: lock its successor


def _opened(path: Path, attempts: int = ATTEMPTS) -> int:
    """Opens the lock's file, and makes it and its folder where they are not there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except (FileNotFoundError, FileExistsError):  # a run that ended just now has removed the folder
        if attempts == 1:
            raise
        return _opened(path, attempts - 1)


def hold(file: int, folder: Path) -> OSError | None:
    """Lock an open file until it is closed; returns the system's error where its file system has no locks.

    Raises ValueError, in the name of `folder`, where another process holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(
            f"another run is writing to {folder}; wait until it ends, or pass another --out-dir"
        ) from error
    except OSError as error:
        return error
    return None


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is the one under this path."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _tell_unlocked(folder: Path, error: OSError) -> None:
    sentence = f"note: {folder} cannot be locked ({error.strerror}); start no second run into it before this one ends"
    print(sentence, file=sys.stderr)
