"""The lock of a run's folder, held by real processes: one at a time, gone with its holder, in any folder."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from analysis import processes
from analysis.evaluation import Predictions, lock
from analysis.files import OutputError
from analysis.runs import SETTINGS
from tests.errors import refused

ROOT = Path(__file__).parents[1]
REFUSED = "another run is writing to .*run; wait until it ends, or pass another --out-dir"


def python(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


HOLDER = """
import subprocess, sys, time
from pathlib import Path
from analysis.processes import lock
with lock(Path(sys.argv[1])):
    subprocess.Popen(["sleep", "30"], close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_ends_with_the_process_that_holds_it(tmp_path):
    """SIGKILL leaves the file and no lock, though a program that the run started goes on; other folders stay free."""
    holder = python(HOLDER, tmp_path / "run")
    assert holder.stdout.readline() == "held\n"
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with refused("folder-locked"), lock(tmp_path / "run"):
        pass
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    with lock(tmp_path / "other"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert os.listdir(tmp_path / "run") == [processes.LOCK]
    with lock(tmp_path / "run"):
        assert Predictions(tmp_path / "run", {}).answered() == {}
    assert os.listdir(tmp_path / "run") == [] and os.listdir(tmp_path) == ["run"]


def test_a_folder_that_stays_empty_is_removed(tmp_path):
    with pytest.raises(KeyError), lock(tmp_path / "new" / "run"):
        raise KeyError("a setting that the model cannot take")
    assert os.listdir(tmp_path) == []
    with lock(tmp_path / "new" / "run"):
        (tmp_path / "new" / "run" / SETTINGS).write_text("{}")
    assert os.listdir(tmp_path / "new" / "run") == [SETTINGS]


ENTRANT = """
import os, sys
from pathlib import Path
from analysis.processes import lock
folder, inside, entered = Path(sys.argv[1]), Path(sys.argv[2]), 0
while entered < 100:
    try:
        with lock(folder):
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # FileExistsError where another process is inside as well
            entered += 1
            inside.unlink()
    except ValueError:
        pass
print(entered)
"""


def test_one_at_a_time_while_the_folder_comes_and_goes(tmp_path):
    """Each holder makes the folder and removes it, and another may be opening the lock's file at that moment."""
    entrants = [python(ENTRANT, tmp_path / "new" / "run", tmp_path / "inside") for _ in range(3)]
    ends = [entrant.communicate(timeout=200) for entrant in entrants]
    assert [out for out, _ in ends] == ["100\n"] * 3, [errors for _, errors in ends]
    assert all(path.is_dir() for path in tmp_path.rglob("*"))  # one that entered when it was there leaves it


def test_the_file_of_a_run_that_ended_just_now_is_no_lock(tmp_path, monkeypatch):
    """It was opened, and removed by its holder before it could be locked: the folder needs a file that others find."""
    flock, calls = fcntl.flock, []

    def removed_before(file, operation):
        calls.append(file)
        if len(calls) == 1:
            (tmp_path / "run" / processes.LOCK).unlink()
            (tmp_path / "run").rmdir()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", removed_before)
    with lock(tmp_path / "run"):
        assert len(calls) == 2
        with refused("folder-locked"), lock(tmp_path / "run"):
            pass


def test_a_folder_of_something_else_is_refused_unlocked(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError), lock(tmp_path):
        pass
    assert os.listdir(tmp_path) == ["mine.txt"]
    with pytest.raises(FileExistsError), lock(tmp_path / "mine.txt"):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, capsys, code):
    def flock(file, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock(tmp_path / "run"):
        (tmp_path / "run" / "kept").touch()
    sentence = f"note: {tmp_path / 'run'} cannot be locked ({os.strerror(code)}); start no second run into it before"
    assert capsys.readouterr().err.startswith(sentence) and os.listdir(tmp_path / "run") == ["kept"]


@pytest.mark.parametrize(("code", "noted"), [(errno.EROFS, True), (errno.EACCES, True), (errno.ENOSPC, False)])
def test_a_finished_run_that_may_only_be_read(tmp_path, monkeypatch, capsys, code, noted):
    """As on a disk that is mounted so: the summary can be printed all the same. A full disk ends the run."""
    (tmp_path / SETTINGS).write_text("{}")
    opens = os.open

    def refuse(path, flags, *mode):
        if Path(path).name == processes.LOCK:
            raise OSError(code, os.strerror(code))
        return opens(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    if noted:
        with lock(tmp_path):
            pass
        assert "cannot be locked" in capsys.readouterr().err
    else:
        with pytest.raises(OutputError, match="no space left on device"), lock(tmp_path):
            pass
    assert os.listdir(tmp_path) == [SETTINGS]
