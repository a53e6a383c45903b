"""Run scripts in a separate process with real flags, output and exit status.

The process is forked from the test process, which has already imported torch; a new interpreter would need seconds.
With KILL_AT_OPERATION=n in its environment it is killed at its n-th file operation below its working directory.
"""

import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent


def run(script, *arguments, cwd=ROOT, timeout=300, **environment) -> subprocess.CompletedProcess:
    """Run ROOT/script with these arguments; returns the same as `subprocess.run`."""
    return start(script, *arguments, cwd=cwd, **environment).ended(timeout)


def start(script, *arguments, cwd=ROOT, **environment) -> "Process":
    """Start ROOT/script with these arguments."""
    argv = [str(ROOT / script), *map(str, arguments)]
    streams = Path(tempfile.mkdtemp(prefix="shell-"))
    child = os.fork()
    if child == 0:
        os._exit(_run_forked(argv, cwd, environment, streams))
    return Process(child, argv, streams)


@dataclass(frozen=True)
class Process:
    """Running script; `ended` must be called. `streams` is the folder of the files output and errors."""

    child: int
    argv: list[str]
    streams: Path

    def ended(self, timeout=300) -> subprocess.CompletedProcess:
        """Wait for the end; after `timeout` seconds, kill the process and raise TimeoutError."""
        try:
            status = self._wait(time.monotonic() + timeout)
            texts = ((self.streams / name).read_text() for name in ("output", "errors"))
            return subprocess.CompletedProcess(self.argv, status, *texts)
        finally:
            shutil.rmtree(self.streams)

    def _wait(self, until: float) -> int:
        while time.monotonic() < until:
            ended, status = os.waitpid(self.child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        os.kill(self.child, 9)
        os.waitpid(self.child, 0)
        raise TimeoutError(f"{' '.join(self.argv)} has not ended")


OPERATIONS = ("open", "os.rename", "os.mkdir", "os.remove")  # audit events of file operations


def die_at_operation(count: int, folder: str) -> None:
    """Kill this process at its `count`-th file operation below `folder`."""
    left = count

    def hook(event: str, arguments: tuple) -> None:
        nonlocal left
        if event in OPERATIONS and isinstance(arguments[0], str | Path) and folder in os.path.abspath(arguments[0]):
            writes = event != "open" or (isinstance(arguments[1], str) and arguments[1][:1] in "wax")
            left -= writes
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _run_forked(argv: list[str], cwd, environment: dict[str, str], streams: Path) -> int:
    """Run a script in the forked process, with the state that a new process would have."""
    for stream, name in ((1, "output"), (2, "errors")):
        os.dup2(os.open(streams / name, os.O_CREAT | os.O_WRONLY), stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    sys.argv = argv
    os.chdir(cwd)
    os.environ.update(environment)
    for number in (signal.SIGINT, signal.SIGHUP):  # a test run in the background ignores them
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    torch.set_num_threads(1)  # threads do not survive a fork; waiting for them would block
    warnings.resetwarnings()
    warnings.showwarning = lambda message, category, filename, lineno, file=None, line=None: sys.stderr.write(
        warnings.formatwarning(message, category, filename, lineno, line)
    )
    if "KILL_AT_OPERATION" in environment:
        die_at_operation(int(environment["KILL_AT_OPERATION"]), str(cwd))
    status = 0
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)  # as in a new interpreter
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status
