"""Kill every script that walks over samples, start it again, and compare its files with those of an uninterrupted run.

    python -m tests.killed_scripts FOLDER                                (10 rounds of each script: half an hour)
    python -m tests.killed_scripts FOLDER --scripts text_only_llm_analysis_llava.py --rounds 3
    python -m tests.killed_scripts FOLDER --rounds 2 --processes 2       (torchrun; every other round begins with one)

Each round starts the script in an empty folder, kills it with SIGKILL at a random moment (even rounds) or at a random
one of its file operations (odd rounds), up to three times, and lets the same command finish. All files must then equal
those of the uninterrupted run byte for byte, dates aside. Prints rounds, kills and differences per script; the exit
status is 1 if there is a difference.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

import analysis.command  # noqa: F401  imported before the forks of the scripts
from tests.shell import ROOT, start

RUN = "run"  # name of the folder of every run while it runs, so that all paths are equal
DATE = re.compile(rb"20\d\d-\d\d-\d\d[T ]\d\d:\d\d:\d\d([+-]\d\d:\d\d)?")
ALWAYS = ("--device", "cpu", "--out-dir", RUN)
ENOUGH = 3  # kills of a round
COMMANDS = {
    "attention_rollout_llava.py": "--limit 3 --max-new-tokens 4",
    "attention_rollout_qwen2.py": "--limit 3 --max-new-tokens 4",
    "attention_rollout_fuyu.py": "--limit 3 --max-new-tokens 4",
    "attention_knockout_llava.py": "--limit 6 --widths 2 --batch-size 2",
    "gaze_generation_llava.py": "--limit 4 --pictures 2 --batch-size 2 --max-new-tokens 3",
    "gaze_head_similarity_llava.py": "--limit 4 --max-new-tokens 3",
    "vlm_atten_analysis_llava.py": "--limit 3 --faithfulness 1 --pictures 1 --no-figures",
    "vlm_atten_analysis_qwen2.py": "--limit 3 --faithfulness 1 --pictures 1 --no-figures",
    "text_only_llm_analysis_llava.py": "--limit 6",
    "text_only_llm_analysis_qwen2.py": "--limit 6",
    "head_attention_stats_qwen2.py": "--max-pairs 6 --ablate 1 --draws 3 --batch-size 2 --save-diffs",
    "find_sink_dimensions_simple.py": "--num-samples 4",
    "validate_sink_dimensions.py": "--num-samples 4 --dimensions 42 16 --tau 1.7",
}


@dataclass(frozen=True)
class Config:
    folder: tyro.conf.Positional[Path]
    """New folder for the runs."""
    scripts: tuple[str, ...] = tuple(COMMANDS)
    rounds: int = 10
    processes: int = 1
    """Processes that finish a run. With more than one, even rounds are not killed."""
    seed: int = 0


def main(config: Config) -> int:
    rng, faults = random.Random(config.seed), 0
    print(f"{'script':<34} rounds kills differences", flush=True)
    for script in config.scripts:
        here = config.folder / script
        seconds = run(script, here)
        whole = (here / RUN).rename(here / "whole")
        kills, different = 0, []
        for number in range(config.rounds):
            if config.processes == 1 or number % 2:
                kills += kill(script, here, rng, seconds, at_operation=bool(number % 2))
            run(script, here, config.processes)
            finished = (here / RUN).rename(here / f"round-{number}")
            different += [f"{number}: {name}" for name in differences(whole, finished)]
        faults += len(different)
        print(f"{script:<34} {config.rounds:6} {kills:5} {len(different):11} {' '.join(different[:4])}", flush=True)
    return int(faults > 0)


def begin(script: str, here: Path, **environment):
    here.mkdir(parents=True, exist_ok=True)
    return start(script, *COMMANDS[script].split(), *ALWAYS, cwd=here, **environment)


def run(script: str, here: Path, processes: int = 1) -> float:
    """Run a script to its end in `here`; return its seconds. Raises AssertionError if it fails."""
    begun = time.monotonic()
    if processes == 1:
        errors = begin(script, here).ended(600).stderr
    else:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        command = [*launcher, str(ROOT / script), *COMMANDS[script].split(), *ALWAYS]
        one_thread = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        here.mkdir(parents=True, exist_ok=True)
        errors = subprocess.run(command, cwd=here, env=one_thread, capture_output=True, text=True).stderr
    assert (here / RUN / "summary.json").is_file(), errors
    return time.monotonic() - begun


def kill(script: str, here: Path, rng: random.Random, seconds: float, at_operation: bool) -> int:
    """Start and kill a script up to ENOUGH times, unless it finishes; return the number of kills."""
    for kills in range(ENOUGH):
        if at_operation:
            process = begin(script, here, KILL_AT_OPERATION=str(rng.randint(1, 60)))
        else:
            process = begin(script, here)
            time.sleep(rng.uniform(0, seconds))
            os.kill(process.child, signal.SIGKILL)
        if process.ended(600).returncode != -signal.SIGKILL:
            return kills
    return ENOUGH


def differences(whole: Path, other: Path) -> list[str]:
    """Files that exist in one folder alone or differ in more than dates."""
    names = {path.relative_to(root).as_posix() for root in (whole, other) for path in root.rglob("*") if path.is_file()}
    return sorted(name for name in names if content(whole / name) != content(other / name))


def content(path: Path) -> bytes | None:
    return DATE.sub(b"", path.read_bytes()) if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
