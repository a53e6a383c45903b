"""The tree keeps its shape: who imports whom, one environment, nothing generated under version control."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("models", "analysis", "data", "benchmarks")
SOURCES = sorted([*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))])
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}


def imported(path):
    """Top names of everything that a file imports, relative imports resolved to their own package; a script's `main`,
    which a script of the same experiment imports, is left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and is_twin(path, node):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield path.parent.relative_to(ROOT).parts[0] if node.level else node.module.split(".")[0]


def is_twin(path, node):
    """Whether a script imports nothing but `main` from a script of the same experiment, for another model family."""
    names = [alias.name for alias in node.names]
    return path.stem in SCRIPTS and names == ["main"] and experiment(path.stem) == experiment(node.module)


def experiment(script):
    return re.sub(r"_(llava|qwen2|fuyu)$", "", script)


def forbidden(path):
    """Top names that a file must not import: data <- models <- analysis <- scripts."""
    room = path.relative_to(ROOT).parts[0]
    right = {"data": {"models", "analysis"}, "models": {"analysis"}}.get(room, set())
    return right | SCRIPTS - {path.stem}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_rule(path):
    assert not set(imported(path)) & forbidden(path)


def test_the_rule_can_fail(tmp_path, monkeypatch):
    planted = tmp_path / "models" / "planted.py"
    planted.parent.mkdir()
    planted.write_text("import numpy\ndef late():\n    from analysis.words import find_word\n")
    monkeypatch.setattr("tests.test_tree.ROOT", tmp_path)
    assert set(imported(planted)) & forbidden(planted) == {"analysis"}


def test_a_script_imports_a_twin_only_and_its_main_only(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.test_tree.ROOT", tmp_path)
    twin = tmp_path / "attention_rollout_fuyu.py"
    for line, allowed in {
        "from attention_rollout_llava import main": True,
        "from attention_rollout_llava import Config": False,
        "from attention_rollout_llava import Config, main": False,
        "from vlm_atten_analysis_llava import main": False,
        "import attention_rollout_llava": False,
    }.items():
        twin.write_text(line)
        assert (not set(imported(twin)) & forbidden(twin)) == allowed, line


def test_requirements_are_pinned():
    lines = (ROOT / "requirements.txt").read_text().split()
    assert lines and all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in lines)
    assert "torch==2.13.0" in lines and not any(line.startswith("torchvision") for line in lines)


def test_ignored_folders_hold_nothing_tracked():
    tracked = subprocess.run(["git", "ls-files", "-ci", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    assert tracked.returncode != 0 or tracked.stdout == ""


def test_setup_is_quick_to_repeat(tmp_path):
    """A second run of the set-up does nothing; a changed requirement makes it install again."""
    project = tmp_path / "project"
    (project / ".venv" / "bin").mkdir(parents=True)
    (project / "env_setup_llava.bash").write_text((ROOT / "env_setup_llava.bash").read_text())
    (project / "requirements.txt").write_text("")
    calls = project / "calls"
    python = project / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    python.chmod(0o755)

    def setup(*packages, **environment):
        return subprocess.run(
            ["bash", project / "env_setup_llava.bash", *packages], capture_output=True, text=True,
            env={"PATH": "/usr/bin:/bin", "PYTHON": str(python), **environment},
        )  # fmt: skip

    assert setup().returncode == 0 and "pip install" in calls.read_text()
    calls.unlink()
    assert setup().returncode == 0 and not calls.exists()
    assert setup("datasets", "gguf").returncode == 0
    assert calls.read_text().splitlines()[-1].endswith("--constraint requirements.txt datasets gguf")
    calls.unlink()
    (project / "requirements.txt").write_text("tqdm\n")
    assert setup().returncode == 0 and "pip install" in calls.read_text()
    (project / "requirements.txt").write_text("numpy\n")
    old = setup(PYTHON="no-such-python")
    assert old.returncode == 2 and "is not Python 3.11 or newer" in old.stderr
