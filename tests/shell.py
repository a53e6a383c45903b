"""Scripts as a person runs them: a process of their own, with real flags, output and exit status, without its imports.

A new interpreter needs seconds to import torch. The process that runs the tests has done that, so it is forked.
"""

import os
import runpy
import shutil
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
    """Runs ROOT/script with these arguments; returns what `subprocess.run` would."""
    return start(script, *arguments, cwd=cwd, **environment).ended(timeout)


def start(script, *arguments, cwd=ROOT, **environment) -> "Started":
    """Begins to run ROOT/script with these arguments."""
    argv = [str(ROOT / script), *map(str, arguments)]
    said = Path(tempfile.mkdtemp(prefix="shell-"))
    child = os.fork()
    if child == 0:
        os._exit(_become(argv, cwd, environment, said))
    return Started(child, argv, said)


@dataclass(frozen=True)
class Started:
    """A script that runs; `ended` must be called. `said` holds the files output and errors."""

    child: int
    argv: list[str]
    said: Path

    def ended(self, timeout=300) -> subprocess.CompletedProcess:
        """Waits for the end. Raises TimeoutError for one that has not ended after so many seconds, and kills it."""
        try:
            status = self._wait(time.monotonic() + timeout)
            told = ((self.said / name).read_text() for name in ("output", "errors"))
            return subprocess.CompletedProcess(self.argv, status, *told)
        finally:
            shutil.rmtree(self.said)

    def _wait(self, until: float) -> int:
        while time.monotonic() < until:
            ended, status = os.waitpid(self.child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        os.kill(self.child, 9)
        os.waitpid(self.child, 0)
        raise TimeoutError(f"{' '.join(self.argv)} has not ended")


def _become(argv: list[str], cwd, environment: dict[str, str], said: Path) -> int:
    """In the forked process: everything that a new one would have of its own."""
    for stream, name in ((1, "output"), (2, "errors")):
        os.dup2(os.open(said / name, os.O_CREAT | os.O_WRONLY), stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    sys.argv = argv
    os.chdir(cwd)
    os.environ.update(environment)
    torch.set_num_threads(1)  # threads do not survive a fork, and waiting for them would never end
    warnings.resetwarnings()
    warnings.showwarning = lambda message, category, filename, lineno, file=None, line=None: sys.stderr.write(
        warnings.formatwarning(message, category, filename, lineno, line)
    )
    status = 0
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)  # as the interpreter does
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status
