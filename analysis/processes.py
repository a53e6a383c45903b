"""Several processes with one task: who is who, and waiting for each other. Started by accelerate or torchrun, not here.

They exchange only that one has got this far, over gloo, on GPUs too: what is computed goes into files.
gloo notices at once when a process dies, where NCCL would wait.

The lock of a run's folder: one run at a time reads and writes there.

It is flock's lock on FOLDER/.lock, which ends with the process that holds it, however that ends: a file that a killed
run left holds nothing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from analysis.runs import LOCK, SETTINGS, is_finished, refuse_existing, writing

Result = TypeVar("Result")
PATIENCE = timedelta(days=1)  # how long a process that is done waits for the slowest


class ProcessLost(RuntimeError):
    """Another process of the run is gone; the message is one sentence for the user."""


@dataclass(frozen=True)
class Team:
    """This process among `size`: `rank` counts over all machines, `local_rank` on this one. Rank 0 leads."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Return whether this is the process that writes what is of all."""
        return self.rank == 0

    def share(self, items: Sequence) -> Sequence:
        """Every n-th item, so that all processes have as many, give or take one."""
        return items[self.rank :: self.size]

    def wait(self) -> None:
        """Returns once all processes have called it. Raises ProcessLost where one is gone."""
        if self.size == 1:
            return
        import torch.distributed

        with _lost_process():
            torch.distributed.barrier()

    def lead(self, action: Callable[[], Result]) -> Result | None:
        """The result of `action`, called in the leading process while the others wait for it; None in the others.

        Where it raises, the leading process raises it, and the others exit with status 2 and without a word.
        """
        succeeded, result = False, None
        try:
            result = action() if self.leads else None
            succeeded = True
        finally:
            succeeded = self._of_leader(succeeded)
        if not succeeded:
            sys.exit(2)
        return result

    def _of_leader(self, value: bool) -> bool:
        """The value that the leading process passes, in all processes. Raises ProcessLost where one is gone."""
        if self.size == 1:
            return value
        import torch.distributed

        held = torch.tensor([int(value)])
        with _lost_process():
            torch.distributed.broadcast(held, 0)
        return bool(held)


@contextmanager
def _lost_process() -> Iterator[None]:
    """Turns the error of an exchange with a process that is gone into a ProcessLost."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost(
            "another process of this run ended before its part was done; what was written is whole: start the same "
            "command again to go on"
        ) from error


@contextmanager
def team() -> Iterator[Team]:
    """The processes that were launched together; this one alone, and no process group, where nothing launched any."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Team()
        return
    from accelerate import PartialState

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does; accelerate would warn
    state = PartialState(cpu=True, timeout=PATIENCE)
    try:
        yield Team(state.process_index, state.num_processes, state.local_process_index)
    finally:
        state.destroy_process_group()


def own_device(device: str, team: Team) -> str:
    """The device of this process, of a --device flag. Raises ValueError for one that several processes cannot share."""
    if team.size == 1 or device == "cpu":
        return device
    if device != "cuda":
        raise ValueError(
            f"--device {device} makes no sense with {team.size} processes: give --device cuda, where each takes a GPU "
            "of its own, or --device cpu"
        )
    import torch

    if team.local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"process {team.local_rank} of this machine has no GPU of its own: there are {torch.cuda.device_count()}; "
            "launch as many processes as there are GPUs, or give --device cpu"
        )
    return f"cuda:{team.local_rank}"


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
            (folder / LOCK).unlink(missing_ok=True)
            os.close(file)
        for place in made:
            with suppress(OSError):  # not empty: the run left something there, or another one began beside it
                place.rmdir()


@contextmanager
def claim(folder: Path, settings: Mapping[str, Mapping]) -> Iterator[bool]:
    """Lock a run's folder until the block ends; yield whether it holds the finished run of these settings.

    Raises as `lock` and `runs.is_finished` do.
    """
    if not (folder / SETTINGS).is_file():
        refuse_existing(folder)
    with lock(folder):
        yield is_finished(folder, settings)


def _locked(folder: Path) -> int | None:
    """The open and locked file of a folder; None where none may be opened."""
    path = folder / LOCK
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
    """Return whether an open file is the one under this path."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _tell_unlocked(folder: Path, error: OSError) -> None:
    sentence = f"note: {folder} cannot be locked ({error.strerror}); start no second run into it before this one ends"
    print(sentence, file=sys.stderr)
