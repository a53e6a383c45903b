"""evaluate.py in several processes, killed, and out of disk: what was written stays, and all is done in the end."""

import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import evaluate
from analysis.evaluation import lock
from analysis.files import OutputError
from tests import shell
from tests.evaluation import COUNT, RUNNER, generated, lines_of_parts, predictions, run, settings, summary
from tests.settings import changed

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return settings(generated(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def reference(config, tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    run(config, folder)
    return folder


def program(module, *arguments):
    """A program of the tests in a new interpreter: it forks, which needs a process without torch's threads."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)


@pytest.mark.slow
@pytest.mark.parametrize("kills, between", [(20, 8)])
def test_killed_and_still_the_same(config, tmp_path, kills, between):
    """Real processes and real SIGKILLs at random moments, at least `between` of them between the first and the last
    answer."""
    done = program("tests.killed", tmp_path, config.questions.data_root, kills)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["kills"] >= kills, report
    assert sum(0 < count < COUNT for count in report["answered_at_kill"]) >= between, report
    assert report["finished"]
    for name in report["finished"]:
        assert predictions(tmp_path / name) == predictions(tmp_path / "whole")
        assert summary(tmp_path / name) == summary(tmp_path / "whole")
        assert lines_of_parts(tmp_path / name) == lines_of_parts(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("offsets", [(0, 0.2, 0.5, 1, 3)])
def test_two_runs_into_one_folder(tmp_path, offsets):
    """Started some seconds apart: one is refused with one sentence, and nothing of it is in the folder."""
    done = program("tests.two_runs", tmp_path, 1, *offsets)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"one refused": len(offsets)}


def started_together(*flags):
    """Two processes of one run, as torchrun starts them, and what became of them."""
    together = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        together["MASTER_PORT"] = str(free.getsockname()[1])
    command = ["evaluate.py", "--dataset", "blink", "--device", "cpu", *flags]
    processes = [shell.start(*command, **together, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]
    return [process.ended(timeout=120) for process in processes]


def test_a_second_run_of_several_processes_is_refused_once(config, tmp_path):
    """By the leading process; the other one ends in silence."""
    with lock(tmp_path / "run"):
        ends = started_together("--data-root", config.questions.data_root, "--out-dir", tmp_path / "run")
        assert os.listdir(tmp_path / "run") == [".lock"]
    sentence = f"error: another run is writing to {tmp_path / 'run'}; wait until it ends, or pass another --out-dir\n"
    assert [end.returncode for end in ends] == [2, 2] and [end.stderr for end in ends] == [sentence, ""]


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"],
}


@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("accelerate", marks=pytest.mark.slow)])
def test_two_processes_go_on_where_one_began(reference, config, tmp_path, launcher):
    """Flags with underscores; a limit that grew; another number of processes."""
    out = tmp_path / "run"
    run(changed(config, limit=4), out)
    command = [
        sys.executable, "-m", *LAUNCHERS[launcher], "evaluate.py", "--dataset", "blink",
        "--data_root", config.questions.data_root, "--device", "cpu", "--batch_size", "2",
        "--max_new_tokens", "6", "--out_dir", out,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert predictions(out) == predictions(reference) and summary(out) == summary(reference)
    parts = [path.read_text().count("\n") for path in sorted((out / "parts").iterdir())]
    assert parts == [4 + 6, 5] and lines_of_parts(out) == lines_of_parts(reference)
    assert done.stdout.count(f"results in {out}") == 1
    assert len(run(config, out)) == COUNT  # and back to one process, with nothing left to do


DYING = """
def answer(prompt, images, settings):
    if os.environ.get("RANK") == "1" and "corner" in prompt:
        os._exit(9)
    return " yes "

def make():
    return Runner(answer)
"""


def test_a_process_that_dies_takes_the_run_with_it(config, tmp_path, monkeypatch):
    """No launcher watches these two: the survivor notices by itself, reports no success, and one process goes on."""
    (tmp_path / "dying.py").write_text(RUNNER + DYING)
    monkeypatch.syspath_prepend(tmp_path)
    ends = started_together(
        "--data-root", config.questions.data_root, "--out-dir", tmp_path / "run", "--batch-size", "1",
        "--runner", "python:dying:make",
    )  # fmt: skip
    assert [end.returncode for end in ends] == [1, 9], [end.stderr for end in ends]
    sentence = "error: another process of this run ended before its part was done; what was written is whole"
    assert sentence in ends[0].stderr
    assert not (tmp_path / "run" / "summary.json").exists()
    given = changed(config, max_new_tokens=512, runner="python:dying:make")
    assert [row["prediction"] for row in run(given, tmp_path / "run")] == ["yes"] * COUNT


def test_a_full_disk_ends_the_run_and_loses_nothing(reference, config, tmp_path):
    """The file may not grow to its full length, so a line is torn; with room again the run goes on."""
    out = tmp_path / "run"
    room = (reference / "parts" / "part-00000.jsonl").stat().st_size - 100
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        with pytest.raises(OutputError, match="could not write .*part-00000.jsonl: file too large; free space or pass"):
            evaluate.main(changed(config, out_dir=str(out), batch_size=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (out / "parts" / "part-00000.jsonl").stat().st_size == room and not (out / "summary.json").exists()
    run(config, out)
    assert predictions(out) == predictions(reference) and lines_of_parts(out) == lines_of_parts(reference)


def test_several_processes_need_a_device_each(config, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        evaluate.evaluate(changed(config, device="auto"), evaluate.Team(0, 2, 0))
    assert "--device auto makes no sense with 2 processes" in capsys.readouterr().err
