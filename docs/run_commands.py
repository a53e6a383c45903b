"""Runs every shell command that README.md and the pages of docs print, as printed, in a new clone of this repository.

    python -m docs.run_commands                                          # all of it: hours, for benchmarks and training
    python -m docs.run_commands --without benchmarks models.tiny.train
    python -m docs.run_commands --pages README.md docs/steering.md --folder /tmp/clone

The clone begins with nothing but what is committed, a picture `photo.jpg`, a folder `pictures` and scanpaths for it,
`gaze.jsonl`; the first command of README.md sets it up. A Python block of a page whose first line is `# NAME.py` is
saved under that name. A command that stands in two places is run once. Commands that
cannot run here (a checkpoint of the hub, several GPUs, a name to fill in) are listed with the reason. Output goes to
FOLDER/logs. Prints status and seconds of each; exits with 1 if a status is not 0.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro
from matplotlib import get_data_path
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", *(f"docs/{page.name}" for page in sorted(Path(__file__).parent.glob("*.md"))),
         "data/README.md", "models/tiny/README.md")  # fmt: skip
PRINTED = re.compile(
    r"^```(?P<language>\w*)\n(?P<fenced>(?s:.*?))^```|^ {4}(?P<indented>\S.*)$|`(?P<quoted>[^`\n]+)`", re.M
)
COMMAND = re.compile(
    r"(?:[A-Z_]+=\S+ )*(?:for .*; do )?(?:\.venv/bin/)?"
    r"(?:(?:python3?|torchrun|accelerate launch) .*?(?:\w\.py\b|-m \w)|bash \S+\.(?:sh|bash)\b|srun |pip install )"
)
VARIABLE = re.compile(r"[A-Z]+=(?:\$\(.*\)|\S+)")  # set for the commands of the page that follow
REMARK = re.compile(r"\s+#\s.*|\s{3,}\(.*\)$")
CANNOT = {
    "a checkpoint or data of the hub": re.compile(
        r"\b(?:llava-hf|Qwen|adept|meta-llama|BLINK-Benchmark|array)/|results/(?:llava|whatsup)-"
    ),
    "several GPUs": re.compile(r"\bsrun\b|--multi_gpu"),
    "a name to fill in": re.compile(r"(?<!\$)\b(?:MODEL|NAME|RUN_[AB])\b|--data-root DATA\b|\bmodel\.gguf"),
}


@dataclass(frozen=True)
class Config:
    """Run the commands that the pages print."""

    pages: tuple[str, ...] = PAGES
    """Whose commands to run, in this order."""
    without: tuple[str, ...] = ()
    """Leave out commands that contain one of these words."""
    folder: Path | None = None
    """Where the clone goes: a folder that is not there yet (default: a temporary one, removed at the end)."""


def printed(text: str) -> Iterator[str]:
    """The shell commands of a page and the variables that they use, in its order; lines joined, remarks left out."""
    for found in PRINTED.finditer(text):
        language, fenced = found["language"], found["fenced"]
        if fenced is not None and language not in ("bash", ""):
            continue
        lines = (fenced or found["indented"] or found["quoted"]).replace("\\\n", " ").splitlines()
        lines = (REMARK.sub("", line).strip() for line in lines)
        yield from (line for line in lines if COMMAND.match(line) or VARIABLE.fullmatch(line))


def files(text: str) -> dict[str, str]:
    """Python blocks of a page that begin with the name of a file, by name."""
    return {code.split()[1]: code for code in re.findall(r"^```python\n(# \w+\.py\n.*?)^```", text, re.M | re.S)}


def reason(command: str, without: tuple[str, ...]) -> str | None:
    """Why a command is not run; None for one that is."""
    told = (why for why, pattern in CANNOT.items() if pattern.search(command))
    return next(told, "left out" if any(word in command for word in without) else None)


def prepare(folder: Path) -> None:
    """A new clone with the files that commands take for the reader's own."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    (folder / "pictures").mkdir()
    (folder / "logs").mkdir()
    photo = Path(get_data_path(), "sample_data", "grace_hopper.jpg")
    for name in ("photo.jpg", "pictures/first.jpg", "pictures/second.jpg"):
        shutil.copy(photo, folder / name)
    width, height = Image.open(photo).size
    gaze = [{"x": width / 2, "y": height / 3, "duration": 200}, {"x": width / 3, "y": height / 2, "duration": 300}]
    lines = [{"image": f"{name}.jpg", "units": "pixels", "fixations": gaze} for name in ("first", "second")]
    (folder / "gaze.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def ended(script: str, folder: Path, log: Path) -> int:
    """Exit status of a script of bash; `python` is the clone's own."""
    environment = os.environ | {"PATH": f"{folder / '.venv/bin'}:{os.environ['PATH']}"}
    with open(log, "w") as out:
        streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out}
        return subprocess.run(["bash", "-c", script], cwd=folder, env=environment, **streams).returncode


def run(folder: Path, config: Config) -> int:
    """Number of commands that failed."""
    done, failed = set(), 0
    for page in config.pages:
        variables = []
        for name, code in files((folder / page).read_text()).items():
            (folder / name).write_text(code)
        for command in printed((folder / page).read_text()):
            if VARIABLE.fullmatch(command):
                variables.append(command)
                continue
            if (same := command.replace(".venv/bin/", "")) in done:
                continue
            done.add(same)
            if why := reason(command, config.without):
                print(f"   -         -  {command}  [{why}]", flush=True)
                continue
            log, start = folder / "logs" / f"{len(done):03}.txt", time.monotonic()
            status = ended("\n".join([*variables, command]), folder, log)
            failed += status != 0
            print(f"{status:4} {time.monotonic() - start:7.0f} s  {command}  [logs/{log.name}]", flush=True)
    return failed


def main(config: Config) -> int:
    if config.folder is not None and config.folder.exists():
        print(f"error: {config.folder} exists; name a folder that is not there yet", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        folder = (config.folder or Path(temporary, "clone")).resolve()
        prepare(folder)
        if config.pages[:1] != ("README.md",):
            ended("bash env_setup_llava.bash", folder, folder / "logs" / "000.txt")
        failed = run(folder, config)
    print(f"{failed} commands failed" if failed else "every command that was run ended with status 0")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
