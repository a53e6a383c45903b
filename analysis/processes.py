"""Ranks and synchronisation of several processes of one run, and the lock of a run's folder.

accelerate or torchrun starts the processes. They exchange only barriers and flags, over gloo, on GPUs too; results go
into files. gloo fails at once when a process dies; NCCL would wait.

The lock allows one run at a time to read and write a folder. It is flock's lock on FOLDER/.lock, which ends with the
process that holds it, even if killed; a remaining file is not a lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from analysis.files import writing
from analysis.runs import LOCK
from data.errors import InputError

Result = TypeVar("Result")
GOES_ON, ENDS, FAILED = range(3)  # states of the leading process
PATIENCE = timedelta(days=1)  # how long a finished process waits for the slowest


class ProcessLost(RuntimeError):
    """Loss of another process of the run; the message is one sentence for the user."""


@dataclass(frozen=True)
class Team:
    """This process among `size`: `rank` counts over all machines, `local_rank` on this one. Rank 0 leads."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Return whether this process writes the shared files."""
        return self.rank == 0

    def share(self, items: Sequence) -> Sequence:
        """Every n-th item, so that the shares of the processes differ by one item at most."""
        return items[self.rank :: self.size]

    def wait(self) -> None:
        """Wait until all processes have called it. Raises ProcessLost if one has died."""
        if self.size == 1:
            return
        import torch.distributed

        with _lost_process():
            torch.distributed.barrier()

    def lead(self, action: Callable[[], Result]) -> Result | None:
        """Result of `action`, called in the leading process while the others wait for it; None in the others.

        If it raises, the leading process raises the error, and the others exit with status 2 without a message.
        """
        state, result = FAILED, None
        try:
            result = action() if self.leads else None
            state = GOES_ON
        finally:
            state = self._of_leader(state)
        if state == FAILED:
            sys.exit(2)
        return result

    @contextmanager
    def first(self, goes_on: Callable[[], bool]) -> Iterator[None]:
        """Block that the leading process runs before the others. They exit instead if it fails (status 2) or if
        `goes_on()` is false after it (status 0)."""
        if self.leads:
            state = FAILED
            try:
                yield
                state = GOES_ON if goes_on() else ENDS
            finally:
                self._of_leader(state)
            return
        if (state := self._of_leader(FAILED)) != GOES_ON:
            sys.exit(2 if state == FAILED else 0)
        yield

    def _of_leader(self, state: int) -> int:
        """Broadcast of the leading process's state to all processes. Raises ProcessLost if one has died."""
        if self.size == 1:
            return state
        import torch.distributed

        held = torch.tensor([state])
        with _lost_process():
            torch.distributed.broadcast(held, 0)
        return int(held)


@contextmanager
def _lost_process() -> Iterator[None]:
    """Convert the error of an exchange with a lost process into a ProcessLost."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost(
            "another process of this run ended before its part was done; what was written is whole: start the same "
            "command again to go on"
        ) from error


@contextmanager
def team() -> Iterator[Team]:
    """Processes that were launched together; without a launcher this one alone, and no process group.

    Only the leading process prints to stdout.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Team()
        return
    from accelerate import PartialState

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does; accelerate would warn
    state = PartialState(cpu=True, timeout=PATIENCE)
    processes = Team(state.process_index, state.num_processes, state.local_process_index)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if processes.leads else nowhere):
            yield processes
    finally:
        state.destroy_process_group()


def own_device(device: str, team: Team) -> str:
    """Device of this process for a --device flag. Raises ValueError for one that processes cannot share."""
    if team.size == 1 or device == "cpu":
        return device
    if device != "cuda":
        raise InputError(
            "device-of-several-processes",
            f"--device {device} makes no sense with {team.size} processes: give --device cuda, where each takes a GPU "
            "of its own, or --device cpu",
        )
    import torch

    if team.local_rank >= torch.cuda.device_count():
        raise InputError(
            "process-without-gpu",
            f"process {team.local_rank} of this machine has no GPU of its own: there are {torch.cuda.device_count()}; "
            "launch as many processes as there are GPUs, or give --device cpu",
        )
    return f"cuda:{team.local_rank}"


ATTEMPTS = 100  # attempts to open a file whose folder other runs remove meanwhile


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock a folder against every other run until the block ends; make the folder, and remove it if it stays empty.

    On a system without locks, warn on stderr and continue. Raises ValueError if another run holds the folder,
    OutputError if it cannot be made.
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
            with suppress(OSError):  # not empty: the run left files there, or another run began meanwhile
                place.rmdir()


def _locked(folder: Path) -> int | None:
    """Open and locked file of a folder; None if it cannot be opened."""
    path = folder / LOCK
    while True:
        try:
            file = _opened(path)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                _warn_unlocked(folder, error)  # a finished run can still be read
                return None
            with writing(folder):
                raise
        try:
            if error := hold(file, folder):
                _warn_unlocked(folder, error)
        except ValueError:
            os.close(file)
            raise
        if _is_at(file, path):
            return file
        os.close(file)  # the run that held it has removed it: lock its successor


def _opened(path: Path, attempts: int = ATTEMPTS) -> int:
    """Open the lock's file; make it and its folder if missing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except (FileNotFoundError, FileExistsError):  # a run that ended just now has removed the folder
        if attempts == 1:
            raise
        return _opened(path, attempts - 1)


def hold(file: int, folder: Path) -> OSError | None:
    """Lock an open file until it is closed; return the system's error if its file system has no locks.

    Raises ValueError, with the name of `folder`, if another process holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(
            "folder-locked", f"another run is writing to {folder}; wait until it ends, or pass another --out-dir"
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


def _warn_unlocked(folder: Path, error: OSError) -> None:
    sentence = f"note: {folder} cannot be locked ({error.strerror}); start no second run into it before this one ends"
    print(sentence, file=sys.stderr)
