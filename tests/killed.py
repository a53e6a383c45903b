"""Repeatedly kill and resume evaluations: a program for tests/test_evaluate_processes.py.

    python -m tests.killed FOLDER DATA_ROOT KILLS

Loads the model once, forks one child per round that runs evaluate.py's main, and kills it with SIGKILL at a random
time: every fourth time shortly after its start, else after one to five further answers. A run with all its answers
finishes, and the next round uses a new folder. Prints the kills as JSON.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import evaluate
import models
from analysis.evaluation import parse
from tests.settings import configure


def main(folder: Path, data_root: str, kills: int) -> None:
    load, loaded = models.load, models.load(evaluate.DEFAULT_MODEL, device="cpu")
    models.load = lambda name, **settings: loaded
    rng, report = random.Random(0), {"kills": 0, "answered_at_kill": [], "finished": []}

    def run(out_dir: Path, moment: Callable[[], None] | None) -> int:
        """Exit status of a run in a child process; -9 if it was killed, after `moment` returned."""
        child = os.fork()
        if child == 0:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            config = configure(evaluate, dataset="blink", data_root=data_root, out_dir=str(out_dir), batch_size=2)
            os._exit(evaluate.main(config))
        if moment is not None:
            moment()
            os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert run(folder / "whole", None) == 0
    total, number = answers(folder / "whole"), 0
    while report["kills"] < kills:
        out_dir = folder / f"run-{number}"
        if report["kills"] % 4 == 0:
            moment = partial(time.sleep, rng.uniform(0, 0.2))
        else:
            have = answers(out_dir)
            count = have + rng.randint(1, 5)
            moment = partial(wait, out_dir, min(count, total), rng.uniform(0, 0.03)) if have < total else None
        status = run(out_dir, moment)
        report["kills"] += status == -signal.SIGKILL
        if status == 0:
            number += 1
            report["finished"].append(out_dir.name)
        else:
            report["answered_at_kill"].append(check(out_dir))
    if run(folder / f"run-{number}", None) == 0:
        report["finished"].append(f"run-{number}")
    models.load = load
    print(json.dumps(report))


def wait(out_dir: Path, count: int, seconds: float) -> None:
    """Wait until the folder has `count` answers, then `seconds` more. Raises TimeoutError after a minute."""
    until = time.monotonic() + 60
    while answers(out_dir) < count:
        if time.monotonic() > until:
            raise TimeoutError(f"{out_dir} does not hold {count} answers after a minute")
        time.sleep(0.002)
    time.sleep(seconds)


def answers(out_dir: Path) -> int:
    """Number of complete lines that a run has written."""
    path = out_dir / "parts" / "part-00000.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def check(out_dir: Path) -> int:
    """Number of answers; asserts that complete lines parse and that no id occurs twice."""
    path = out_dir / "parts" / "part-00000.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    keys = [parse(line)["id"] for line in lines]
    assert len(set(keys)) == len(keys), keys
    return len(keys)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
