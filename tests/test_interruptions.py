"""Scripts that end early: signals, a full disk, kill -9 and several processes; the same command finishes the run."""

import os
import signal
import subprocess
import time

import pytest

from tests import killed_scripts, shell
from tests.killed_scripts import RUN, differences

SCRIPT = "text_only_llm_analysis_llava.py"
ROLLOUT = ("attention_rollout_llava.py", "--limit", 3, "--max-new-tokens", 3, "--out-dir", RUN)


OTHERS = [pytest.param(number, 128 + number, marks=pytest.mark.slow) for number in (signal.SIGHUP, signal.SIGINT)]


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), *OTHERS])
def test_a_signal_is_one_sentence_and_the_same_command_goes_on(tmp_path, number, status):
    process = shell.start(*ROLLOUT, cwd=tmp_path)
    until = time.monotonic() + 120
    while not list(tmp_path.glob(f"{RUN}/parts/*.npz")) and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(process.child, number)
    ended = process.ended()
    assert ended.returncode == status
    assert ended.stderr.splitlines()[-1] == "error: interrupted; start the same command again to go on"
    again = shell.run(*ROLLOUT, cwd=tmp_path)
    assert again.returncode == 0 and (tmp_path / RUN / "summary.json").is_file(), again.stderr


@pytest.mark.slow
def test_killed_runs_of_one_script_equal_an_uninterrupted_one(tmp_path):
    """One script and few rounds; `python -m tests.killed_scripts` runs all of them."""
    config = killed_scripts.Config(tmp_path, scripts=(SCRIPT,), rounds=2)
    assert killed_scripts.main(config) == 0


@pytest.mark.slow
def test_two_processes_give_the_files_of_one(tmp_path):
    assert killed_scripts.main(killed_scripts.Config(tmp_path, scripts=(SCRIPT,), rounds=2, processes=2)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [150, 500, 1100])
def test_a_full_disk_is_one_sentence_and_the_same_command_finishes(tmp_path, kilobytes):
    """A small disk that is full at the start, among the samples, or near the end, and is enlarged then."""
    whole = tmp_path / "whole"
    whole.mkdir()
    assert shell.run(*ROLLOUT, cwd=whole).returncode == 0
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("no disk of a given size: mount needs root")
    try:
        (disk / "data").symlink_to(whole / "data")
        full = shell.run(*ROLLOUT, cwd=disk)
        assert full.returncode == 1 and "no space left on device; free space" in full.stderr.splitlines()[-1]
        assert "Traceback" not in full.stderr
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        assert shell.run(*ROLLOUT, cwd=disk).returncode == 0
        names = [name for name in differences(whole / RUN, disk / RUN) if name.endswith((".png", "maps.npz"))]
        assert names == []
    finally:
        subprocess.run(["umount", disk], check=True)
