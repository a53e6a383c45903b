"""The sweep over corners: the commands that it runs, its folders, and a sweep that is killed and started again.

The fast tests run the shell script in a project of its own, where stand-ins of the measuring scripts record their
arguments. The slow test kills the real sweep.
"""

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
STAND_IN = """
import os, sys
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out-dir") + 1])
out.mkdir(parents=True, exist_ok=True)
(out / "arguments").write_text(" ".join(sys.argv[1:]))
sys.exit(3 * (out.name == os.environ.get("FAIL")))
"""


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The four sets of pairs, small."""
    root = tmp_path_factory.mktemp("sets")
    for corner in CORNERS:
        generate(root / f"dataset_{corner}", corner, 3, seed=0)
    return root


@pytest.fixture
def project(tmp_path):
    """A project whose measuring scripts are stand-ins."""
    root = tmp_path / "project"
    (root / ".venv" / "bin").mkdir(parents=True)
    for name in (SWEEP, "env_setup_llava.bash"):
        (root / name).write_text((ROOT / name).read_text())
    (root / "data").symlink_to(ROOT / "data")
    python = root / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    for name in ("requirements.txt", ".venv/installed.txt"):
        (root / name).write_text("")
    for name in ("head_attention_stats_qwen2.py", "compare_corner_heads.py"):
        (root / name).write_text(STAND_IN)
    return root


def sweep(project, data, **settings):
    settings = {"COUNT": "3"} | {name: str(value) for name, value in settings.items()}
    places = {"PATH": os.environ["PATH"], "DATA": str(data), "RESULTS": str(project / "results")}
    return subprocess.run(["bash", project / SWEEP], env=places | settings, capture_output=True, text=True, timeout=120)


def folders(project):
    return list((project / "results").iterdir())


def test_commands_of_the_sweep(project, sets):
    done = sweep(project, sets, PATCH_SIZE=2, LAYERS="1,3", MAX_NEW_TOKENS=4, MODEL="org/some-model", ABLATE=1)
    assert done.returncode == 0, done.stderr
    (out,) = folders(project)
    assert out.name.startswith("some-model-3-pairs-layers-1-3-patch-2-")
    assert done.stdout.splitlines()[-1] == f"Page: {out}/comparison/pictures.html"
    for corner, words in zip(CORNERS, ("top left", "top right", "bottom left", "bottom right"), strict=True):
        assert (out / corner / "arguments").read_text() == (
            f"--model org/some-model --dataset {sets}/dataset_{corner} --max-pairs 3 --prompt is there anything in the"
            f" {words} corner ? --layers 1,3 --topk 3 --ablate 1 --max-new-tokens 4 --corner {corner} --patch-size 2"
            f" --save-diffs --out-dir {out}/{corner}"
        )
    inputs = " ".join(f"{out}/{corner}" for corner in CORNERS)
    assert (out / "comparison" / "arguments").read_text() == f"{inputs} --out-dir {out}/comparison"


def test_settings_have_a_folder_each(project, sets):
    """Defaults: no ablation of three pairs, and the top head of an embedded model. The same settings share a folder."""
    runs = [
        {}, {"MODEL": "a/model"}, {"MODEL": "b/model"}, {"LAYERS": "1,2"}, {"LAYERS": "1-2"}, {"COUNT": 2},
        {"MAX_NEW_TOKENS": 2}, {"PATCH_SIZE": 1}, {"TOPK": 2}, {"ABLATE": 1}, {"TOPK": 1, "ABLATE": 0},
    ]  # fmt: skip
    for settings in runs:
        assert sweep(project, sets, **settings).returncode == 0
    assert len(folders(project)) == len(runs) - 1


def test_missing_sets_are_generated(project, tmp_path):
    """With three sets of four in DATA all four are generated, since they must differ in the corner alone."""
    data = tmp_path / "data"
    for corner in ("topright", "bottomleft", "bottomright"):
        generate(data / f"dataset_{corner}", corner, 3, seed=5)
    done = sweep(project, data)
    assert done.returncode == 0, done.stderr
    (out,) = folders(project)
    for corner in CORNERS:
        generated = data / "generated" / f"dataset_{corner}"
        assert f"--dataset {generated} " in (out / corner / "arguments").read_text()
        lines = (generated / "metadata.jsonl").read_text().splitlines()
        assert len(lines) == len(list((generated / "images").glob("*_full.png"))) == 100
        assert (generated / "SYNTHETIC.txt").is_file()
    assert not (data / "dataset_topleft").exists()


def test_a_corner_that_fails_ends_the_sweep(project, sets):
    done = sweep(project, sets, FAIL="topright")
    assert done.returncode == 3 and "Page" not in done.stdout
    (out,) = folders(project)
    assert {path.name for path in out.iterdir()} == {"topleft", "topright"}


@pytest.mark.parametrize("count", ["0", "many", "2; ls"])
def test_a_wrong_count_is_refused(project, sets, count):
    done = sweep(project, sets, COUNT=count)
    assert done.returncode == 2 and done.stderr.startswith("error: COUNT") and not (project / "results").exists()


@pytest.mark.slow
def test_the_real_sweep_killed_again_and_again(tmp_path):
    """Minutes: the embedded model on four pairs, uninterrupted, and killed at four random moments: the same files,
    arrays, tables and pairs."""

    def start(folder):
        folder.mkdir(exist_ok=True)
        settings = {"COUNT": "4", "DATA": f"{folder}/data", "RESULTS": f"{folder}/results", "OMP_NUM_THREADS": "1"}
        with open(folder / "log", "a") as log:
            return subprocess.Popen(
                ["bash", ROOT / SWEEP], env=os.environ | settings, stdout=log, stderr=log, start_new_session=True
            )

    began = time.monotonic()
    assert start(tmp_path / "whole").wait(timeout=900) == 0, (tmp_path / "whole" / "log").read_text()
    duration, moments = time.monotonic() - began, random.Random(0)
    for _ in range(4):
        process = start(tmp_path / "again")
        time.sleep(duration * moments.uniform(0.1, 0.4))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert start(tmp_path / "again").wait(timeout=900) == 0, (tmp_path / "again" / "log").read_text()
    (whole,), (found,) = (list((tmp_path / name / "results").iterdir()) for name in ("whole", "again"))
    names = {str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()}
    assert {str(path.relative_to(found)) for path in found.rglob("*") if path.is_file()} == names
    for name in names:
        if name.endswith(".npy"):
            np.testing.assert_array_equal(np.load(whole / name), np.load(found / name))
        elif name.endswith((".csv", ".md")):
            text = (found / name).read_text().replace("/again/", "/whole/").replace(found.name, whole.name)
            assert text == (whole / name).read_text(), name
    pairs = [
        {path.relative_to(root): path.read_bytes() for path in (root / "data").rglob("*") if path.is_file()}
        for root in (tmp_path / "whole", tmp_path / "again")
    ]
    assert pairs[0] == pairs[1]
