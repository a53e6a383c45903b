"""Run every shell command printed in README.md and docs, verbatim, in a new clone of this repository.

    python -m docs.run_commands                             # all: hours, mostly benchmarks and training
    python -m docs.run_commands --without benchmarks models.tiny.train
    python -m docs.run_commands --pages README.md docs/steering.md --folder /tmp/clone

The clone contains the committed files, an image `photo.jpg`, a folder of images `pictures` and its scanpaths
`gaze.jsonl`; the first command of README.md sets it up. A Python block of a page whose first line is `# NAME.py` is
saved under that name. A command printed twice runs once. Commands that cannot run here (a checkpoint of the hub,
several GPUs, a placeholder) are listed with the reason. Output goes to FOLDER/logs. Prints the status and seconds of
each command; the exit status is 1 if any status is not 0.
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
VARIABLE = re.compile(r"[A-Z]+=(?:\$\(.*\)|\S+)")  # set for the later commands of the page
REMARK = re.compile(r"\s+#\s.*|\s{3,}\(.*\)$")
CANNOT = {
    "a checkpoint or data of the hub": re.compile(
        r"\b(?:llava-hf|Qwen|adept|meta-llama|BLINK-Benchmark|array)/|results/(?:llava|whatsup)-|instances_val2014"
    ),
    "several GPUs": re.compile(r"\bsrun\b|--multi_gpu"),
    "a name to fill in": re.compile(r"(?<!\$)\b(?:MODEL|NAME|RUN_[AB])\b|--data-root DATA\b|\bmodel\.gguf"),
}


@dataclass(frozen=True)
class Config:
    """Run the commands printed in the documentation."""

    pages: tuple[str, ...] = PAGES
    """Pages to take commands from, in this order."""
    without: tuple[str, ...] = ()
    """Skip commands that contain one of these words."""
    folder: Path | None = None
    """New folder for the clone (default: a temporary one, removed at the end)."""


def printed(text: str) -> Iterator[str]:
    """Shell commands and variable assignments of a page, in order, with lines joined and remarks removed."""
    for match in PRINTED.finditer(text):
        language, fenced = match["language"], match["fenced"]
        if fenced is not None and language not in ("bash", ""):
            continue
        lines = (fenced or match["indented"] or match["quoted"]).replace("\\\n", " ").splitlines()
        lines = (REMARK.sub("", line).strip() for line in lines)
        yield from (line for line in lines if COMMAND.match(line) or VARIABLE.fullmatch(line))


def files(text: str) -> dict[str, str]:
    """Python blocks of a page that begin with the name of a file, by name."""
    return {code.split()[1]: code for code in re.findall(r"^```python\n(# \w+\.py\n.*?)^```", text, re.M | re.S)}


def skip_reason(command: str, without: tuple[str, ...]) -> str | None:
    """Reason for which a command is skipped; None for none."""
    reasons = (reason for reason, pattern in CANNOT.items() if pattern.search(command))
    return next(reasons, "left out" if any(word in command for word in without) else None)


def prepare(folder: Path) -> None:
    """Clone the repository and add the input files that the commands name."""
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


def run_script(script: str, folder: Path, log: Path) -> int:
    """Run a bash script and return its exit status; `python` is that of the clone."""
    environment = os.environ | {"PATH": f"{folder / '.venv/bin'}:{os.environ['PATH']}"}
    with open(log, "w") as out:
        streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out}
        return subprocess.run(["bash", "-c", script], cwd=folder, env=environment, **streams).returncode


def run_pages(folder: Path, config: Config) -> int:
    """Run the commands of all pages and return the number of failures."""
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
            if reason := skip_reason(command, config.without):
                print(f"   -         -  {command}  [{reason}]", flush=True)
                continue
            log, start = folder / "logs" / f"{len(done):03}.txt", time.monotonic()
            status = run_script("\n".join([*variables, command]), folder, log)
            failed += status != 0
            print(f"{status:4} {time.monotonic() - start:7.0f} s  {command}  [logs/{log.name}]", flush=True)
    return failed


def main(config: Config) -> int:
    if config.folder is not None and config.folder.exists():
        print(f"error: {config.folder} exists; name a new folder", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        folder = (config.folder or Path(temporary, "clone")).resolve()
        prepare(folder)
        if config.pages[:1] != ("README.md",):
            run_script("bash env_setup_llava.bash", folder, folder / "logs" / "000.txt")
        failed = run_pages(folder, config)
    print(f"{failed} commands failed" if failed else "every command ended with status 0")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
