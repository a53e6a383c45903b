"""The sweep over corners: what it runs, what it keeps, and that it ends the same however often it is killed.

Most of it runs in a project of its own, with the real shell script, set-up and generator of pairs, and stand-ins for
the measuring scripts that write the files of a run one by one and can be killed after each. The slow test kills the
real sweep.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data.counterfactual_pairs import CORNERS, generate

ROOT = Path(__file__).parent.parent
SWEEP = "run_corner_experiments.sh"
MEASURED = ("settings.json", "samples.csv", "count_LHN.npy", "summary.json", "report.html")
COMPARED = ("settings.json", "pictures.html", "summary.json", "report.html")
STAND_IN = """
import os, signal, sys, time
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out-dir") + 1])
log = Path(os.environ["LOG"])
if out.exists() and any(out.iterdir()):
    sys.exit(f"{out} is not empty")
out.mkdir(parents=True, exist_ok=True)
for name in FILES:
    (out / name).write_text(" ".join(sys.argv[1:]))
    with open(log, "a") as file:
        file.write(f"{out.name} {name}\\n")
    if len(log.read_text().splitlines()) == int(os.environ.get("KILL_AFTER", 0)):
        os.kill(os.getppid(), signal.SIGKILL)
        if not os.environ.get("ORPHAN"):
            os.kill(os.getpid(), signal.SIGKILL)
    while Path("hold").exists():
        time.sleep(0.02)
"""
FAILS = """
import sys, time
from pathlib import Path
Path("began").touch()
while not Path("fail").exists():
    time.sleep(0.02)
sys.exit(2)
"""
REPORT = "import sys; from pathlib import Path; (Path(sys.argv[1]) / 'report.html').write_text('a page')"


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The four sets of pairs, small."""
    root = tmp_path_factory.mktemp("sets")
    for corner in CORNERS:
        generate(root / f"dataset_{corner}", corner, 3, seed=0)
    return root


@pytest.fixture
def project(tmp_path):
    """A project whose measuring scripts are stand-ins; returns the function that runs its sweep."""
    root = tmp_path / "project"
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / "analysis").mkdir()
    for name in (SWEEP, "env_setup_llava.bash"):
        (root / name).write_text((ROOT / name).read_text())
    for name in ("data", "models"):
        (root / name).symlink_to(ROOT / name)
    python = root / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    for name in ("requirements.txt", ".venv/installed.txt"):
        (root / name).write_text("")
    for name, files in (("head_attention_stats_qwen2.py", MEASURED), ("compare_corner_heads.py", COMPARED)):
        (root / name).write_text(f"FILES = {files!r}\n{STAND_IN}")
    (root / "analysis" / "report.py").write_text(REPORT)
    return root


def environment(project, data, **settings):
    settings = {name: str(value) for name, value in settings.items()}
    where = {"DATA": str(data), "RESULTS": str(project / "results"), "LOG": str(project / "log")}
    return {"PATH": os.environ["PATH"], "COUNT": "3", **where, **settings}


def sweep(project, data, **settings):
    return subprocess.run(
        ["bash", project / SWEEP], env=environment(project, data, **settings), capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip


def begin(project, data, **settings):
    """A sweep that is not waited for; what it runs holds on for as long as there is a file named hold."""
    return subprocess.Popen(
        ["bash", project / SWEEP], env=environment(project, data, **settings), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def until_there(path):
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, f"{path} is not there"
        time.sleep(0.02)


def until_it_waits(process):
    assert any("waiting for another sweep" in line for line in process.stderr)


def result(project):
    """The one folder of results."""
    (folder,) = (project / "results").iterdir()
    return folder


def tree(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def steps(project):
    return [tuple(line.split()) for line in (project / "log").read_text().splitlines()]


def test_what_the_sweep_runs(project, sets):
    done = sweep(project, sets, PATCH_SIZE=2, LAYERS="1,3", MAX_NEW_TOKENS=4, MODEL="org/some-model", ABLATE=1)
    assert done.returncode == 0, done.stderr
    out = result(project)
    assert out.name.startswith("some-model-3-pairs-layers-1-3-patch-2-")
    assert done.stdout.splitlines()[-1] == f"Pictures: {out}/comparison/pictures.html"
    assert {path.name for path in out.iterdir()} == {*CORNERS, "comparison", ".lock"}
    for corner, words in zip(CORNERS, ("top left", "top right", "bottom left", "bottom right"), strict=True):
        assert (out / corner / "settings.json").read_text() == (
            f"--model org/some-model --dataset {sets}/dataset_{corner} --max-pairs 3 --prompt is there anything in the"
            f" {words} corner ? --layers 1,3 --topk 3 --ablate 1 --max-new-tokens 4 --corner {corner} --patch-size 2"
            f" --save-diffs --out-dir {out}/{corner}"
        )
    folders = " ".join(f"{out}/{corner}" for corner in CORNERS)
    assert (out / "comparison" / "settings.json").read_text() == f"{folders} --out-dir {out}/comparison"


def test_killed_after_any_file_it_ends_the_same(project, sets):
    assert sweep(project, sets).returncode == 0
    whole, all_steps = tree(result(project)), steps(project)
    assert len(all_steps) == 4 * len(MEASURED) + len(COMPARED)
    # within the second corner after each file, at the end of the last one, and within the comparison
    for killed_after in (*range(6, 11), 20, 21, 23):
        subprocess.run(["rm", "-r", project / "results", project / "log"], check=True)
        assert sweep(project, sets, KILL_AFTER=killed_after).returncode == -signal.SIGKILL
        assert steps(project) == all_steps[:killed_after]
        again = sweep(project, sets)
        assert again.returncode == 0, again.stderr
        found = tree(result(project))
        assert found.keys() == whole.keys()
        assert {name: text for name, text in found.items() if not name.endswith("report.html")} == {
            name: text for name, text in whole.items() if not name.endswith("report.html")
        }
        finished = [name for name, file in all_steps[:killed_after] if file == "summary.json"]
        redone = {name for name, _ in steps(project)[killed_after:]}
        assert not redone & set(finished)
        assert [f"{name}: finished before, kept" in again.stdout for name in CORNERS] == [
            name in finished for name in CORNERS
        ]


def test_nothing_is_done_twice(project, sets):
    assert sweep(project, sets).returncode == 0
    before = steps(project)
    again = sweep(project, sets)
    assert again.returncode == 0 and steps(project) == before
    assert again.stdout.splitlines()[-1].endswith("comparison/pictures.html")
    # a corner that is measured anew is compared anew
    subprocess.run(["rm", "-r", result(project) / "topright"], check=True)
    assert sweep(project, sets).returncode == 0
    assert {name for name, _ in steps(project)[len(before) :]} == {"topright", "comparison"}


def test_settings_and_pairs_never_share_a_folder(project, sets, tmp_path):
    other = tmp_path / "other"
    for corner in CORNERS:
        generate(other / f"dataset_{corner}", corner, 3, seed=1)
    runs = [
        {}, {"MODEL": "a/model"}, {"MODEL": "b/model"}, {"LAYERS": "1,2"}, {"LAYERS": "1-2"}, {"COUNT": 2},
        {"MAX_NEW_TOKENS": 2}, {"PATCH_SIZE": 1}, {"TOPK": 2}, {"ABLATE": 1},
    ]  # fmt: skip
    for settings in runs:
        assert sweep(project, sets, **settings).returncode == 0
    assert len(list((project / "results").iterdir())) == len(runs)
    assert sweep(project, other).returncode == 0
    assert len(list((project / "results").iterdir())) == len(runs) + 1


def test_a_model_that_was_trained_further_has_a_folder_of_its_own(project, sets, tmp_path):
    """Under the same path, with weights of the same size; back at the first ones, the first results are kept."""
    checkpoint = tmp_path / "model"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    for weights, folders in ((b"before", 1), (b"behind", 2), (b"before", 2)):
        (checkpoint / "model.safetensors").write_bytes(weights)
        done = sweep(project, sets, MODEL=checkpoint)
        assert done.returncode == 0 and len(list((project / "results").iterdir())) == folders
    assert done.stdout.count("finished before, kept") == 4


def test_two_sweeps_at_once_wait_for_each_other(project, sets):
    """The second finds what the first has done; so does one that begins while a killed sweep's process still writes."""
    for settings, status in (({}, 0), ({"KILL_AFTER": 1, "ORPHAN": 1}, -signal.SIGKILL)):
        (project / "hold").touch()
        first = begin(project, sets, **settings)
        until_there(project / "log")
        second = begin(project, sets)
        until_it_waits(second)
        (project / "hold").unlink()
        said, _ = second.communicate(timeout=60)
        assert second.returncode == 0 and "topleft: finished before, kept" in said
        first.communicate(timeout=60)
        assert first.returncode == status
        assert len(steps(project)) == len(set(steps(project))) == 4 * len(MEASURED) + len(COMPARED)
        subprocess.run(["rm", "-r", project / "results", project / "log"], check=True)


def test_missing_sets_are_drawn_whole(project, tmp_path):
    """Half of one, left by a sweep that was killed, is thrown away; synthetic sets in DATA stay as they are."""
    data = tmp_path / "data"
    for corner in ("topright", "bottomleft", "bottomright"):
        generate(data / f"dataset_{corner}", corner, 3, seed=5)
    kept = tree_bytes(data / "dataset_topright")
    half = data / "generated" / "unfinished-corner" / "dataset_topleft" / "images"
    half.mkdir(parents=True)
    (half / "pair_00000_full.png").write_text("half")
    done = sweep(project, data)
    assert done.returncode == 0, done.stderr
    assert tree_bytes(data / "dataset_topright") == kept
    drawn = data / "generated" / "dataset_topleft"
    lines = (drawn / "metadata.jsonl").read_text().splitlines()
    pictures = [path.name for path in (drawn / "images").glob("*_full.png")]
    assert len(pictures) == 100 and sorted(pictures) == [f"{json.loads(line)['id']}_full.png" for line in lines]
    assert sorted(path.name for path in (data / "generated").iterdir()) == ["corner.lock", "dataset_topleft"]
    assert (drawn / "SYNTHETIC.txt").is_file() and not (data / "dataset_topleft").exists()
    command = (result(project) / "topleft" / "settings.json").read_text()
    assert f"--dataset {drawn} " in command


def test_drawn_pairs_are_not_compared_with_published_ones(project, tmp_path):
    """Three sets of other people's and none for one corner: no set is drawn, and no corner is measured."""
    data = tmp_path / "data"
    for corner in ("topright", "bottomleft", "bottomright"):
        generate(data / f"dataset_{corner}", corner, 3, seed=5)
        (data / f"dataset_{corner}" / "SYNTHETIC.txt").unlink()
    refused = sweep(project, data)
    assert refused.returncode == 2 and "but not dataset_topleft, and synthetic pairs must not" in refused.stderr
    assert not (data / "generated").exists() and not (project / "results").exists()


def tree_bytes(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_wrong_is_said_first(project, sets, tmp_path):
    for name, value in (
        ("COUNT", "1"), ("COUNT", "many"), ("COUNT", "2; ls"), ("MAX_NEW_TOKENS", "0"), ("PATCH_SIZE", "-1"),
        ("TOPK", "0"), ("ABLATE", "x"),
    ):  # fmt: skip
        wrong = sweep(project, sets, **{name: value})
        assert wrong.returncode == 2 and wrong.stderr.startswith(f"error: {name} is '{value}'; give a whole number")
    wrong = sweep(project, sets, COUNT=4)
    assert wrong.returncode == 2 and "dataset_topleft lists 3 pairs and holds 3 full" in wrong.stderr
    half = tmp_path / "half"
    for corner in CORNERS:
        generate(half / f"dataset_{corner}", corner, 3, seed=0)
    (half / "dataset_topright" / "images" / "pair_00001_control.png").unlink()
    wrong = sweep(project, half)
    assert wrong.returncode == 2 and "dataset_topright lists 3 pairs and holds 3 full and 2 control" in wrong.stderr
    (half / "dataset_topright" / "metadata.jsonl").unlink()
    wrong = sweep(project, half)
    assert wrong.returncode == 2 and "dataset_topright is no complete set of pairs" in wrong.stderr
    assert not (project / "results").exists() and not (project / "log").exists()


def test_a_corner_that_fails_ends_the_sweep(project, sets):
    """With nothing left behind where nothing was found, and with what was found where the second corner fails."""
    works = (project / "head_attention_stats_qwen2.py").read_text()
    (project / "head_attention_stats_qwen2.py").write_text("import sys; sys.exit(2)")
    failed = sweep(project, sets)
    assert failed.returncode == 2 and "Pictures" not in failed.stdout and "comparison" not in failed.stdout
    assert list((project / "results").iterdir()) == []
    (project / "head_attention_stats_qwen2.py").write_text(f"{works}\nsys.exit(3 * (out.name == 'topright'))\n")
    assert sweep(project, sets).returncode == 3
    assert {path.name for path in result(project).iterdir()} == {"topleft", "topright", ".lock"}


def test_who_waits_for_a_sweep_that_fails_locks_a_file_of_its_own(project, sets):
    """The first sweep takes its folder away, with the lock; one that waited for it still keeps out the next."""
    works = (project / "head_attention_stats_qwen2.py").read_text()
    (project / "head_attention_stats_qwen2.py").write_text(FAILS)
    first = begin(project, sets)
    until_there(project / "began")
    (project / "head_attention_stats_qwen2.py").write_text(works)
    (project / "hold").touch()
    second = begin(project, sets)
    until_it_waits(second)
    (project / "fail").touch()
    first.communicate(timeout=60)
    assert first.returncode == 2
    until_there(project / "log")
    third = begin(project, sets)
    until_it_waits(third)
    (project / "hold").unlink()
    for process in (second, third):
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert len(steps(project)) == len(set(steps(project))) == 4 * len(MEASURED) + len(COMPARED)


@pytest.mark.slow
def test_the_real_sweep_killed_again_and_again(tmp_path):
    """Minutes: the embedded model on four pairs, left alone, and killed at random moments until it ends: the same
    files, arrays, tables, figures and pairs."""

    def start(where):
        where.mkdir(exist_ok=True)
        settings = {"COUNT": "4", "DATA": f"{where}/data", "RESULTS": f"{where}/results"}
        with open(where / "log", "a") as log:
            return subprocess.Popen(
                ["bash", ROOT / SWEEP], env={**os.environ, "OMP_NUM_THREADS": "1", **settings}, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    assert start(tmp_path / "whole").wait(timeout=900) == 0, (tmp_path / "whole" / "log").read_text()
    waits, killed = random.Random(0), 0
    while True:
        process = start(tmp_path / "again")
        try:
            status = process.wait(timeout=waits.uniform(1, 20) * (1 + killed / 4))
            assert status == 0, (tmp_path / "again" / "log").read_text()
            break
        except subprocess.TimeoutExpired:
            stop(process, (signal.SIGKILL, signal.SIGINT)[killed % 2])
            killed += 1
    assert killed >= 2
    (whole,), (found,) = (list((tmp_path / name / "results").iterdir()) for name in ("whole", "again"))
    assert whole.name == found.name
    names = {str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()}
    assert {str(path.relative_to(found)) for path in found.rglob("*") if path.is_file()} == names
    for name in names:
        if name.endswith(".npy"):
            np.testing.assert_array_equal(np.load(whole / name), np.load(found / name))
        elif name.endswith((".csv", ".md")):
            assert (found / name).read_text().replace("/again/", "/whole/") == (whole / name).read_text(), name
        elif name.endswith(".png"):
            assert (found / name).read_bytes() == (whole / name).read_bytes(), name
    assert tree_bytes(tmp_path / "again" / "data") == tree_bytes(tmp_path / "whole" / "data")


def stop(process, with_signal):
    """Ends a whole group; where interrupts are ignored, as in a shell's background, by force."""
    os.killpg(process.pid, with_signal)
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
