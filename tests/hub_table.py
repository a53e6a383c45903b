"""Table of all scripts on checkpoint folders in the format of the hub: two samples each, float32 and bfloat16.

    python -m tests.hub_table                                       (five families at published depth: hours on 2 cores)
    python -m tests.hub_table --families llava --faithfulness 1     (with insertion and deletion: minutes per image)
    python -m tests.hub_table --families llava fuyu --layers 4 --dtypes float32

Each line is one script in a separate process: family, data type, script, exit status, seconds. A run is ok if it has
the script's success status and no traceback. The exit status is 1 if any run is not ok.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import tyro

import analysis.command  # noqa: F401  imported before the forks of the scripts
from tests import hub_folders
from tests.shell import ROOT, run

ROLLOUTS = ("attention_rollout_llava.py", "attention_rollout_qwen2.py", "attention_rollout_fuyu.py")
ANALYSES = ("vlm_atten_analysis_llava.py", "vlm_atten_analysis_qwen2.py")
TEXTS = ("text_only_llm_analysis_llava.py", "text_only_llm_analysis_qwen2.py")
CORNERS = ("topleft", "topright", "bottomleft", "bottomright")
UNABLE = {("fuyu", script): "takes exactly one image per prompt" for script in TEXTS}
"""(family, script) -> reason of the skips of a family that does not support the script."""


@dataclass(frozen=True)
class Config:
    """Run all scripts on checkpoint folders in the format of the hub."""

    families: tuple[str, ...] = tuple(hub_folders.NAMES)
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    layers: int | None = None
    """Layers of the decoder, at least 4 (VAR edits layer 2 and skips the last); default: as published."""
    faithfulness: int = 0
    """Samples of the vlm_atten scripts with insertion and deletion, about 180 images each."""


class Run(NamedTuple):
    """One script on one folder; `error` is the end of its output if it failed."""

    family: str
    dtype: str
    script: str
    status: int
    seconds: float
    error: str = ""

    def __str__(self) -> str:
        verdict = "ok" if not self.error else f"FAILED: {self.error}"
        return f"{self.family:<11} {self.dtype:<9} {self.script:<36} {self.status} {self.seconds:5.0f} s  {verdict}"


def commands(data: Path, results: Path, faithfulness: int) -> Iterator[tuple[str, list]]:
    """All scripts with their flags for two samples, in the order of their dependencies."""
    two = ["--limit", 2, "--max-new-tokens", 2]
    prompt = ["--prompt", "describe the image"]
    for script in ROLLOUTS:
        yield script, ["--data-root", data, *two, *prompt]
    yield "gaze_generation_llava.py", [*two, "--pictures", 1]
    yield "gaze_head_similarity_llava.py", two
    for script in ANALYSES:
        flags = ["--prompt", "{caption}", "--pictures", 1, "--faithfulness", faithfulness, "--layers", "all"]
        yield script, [*two, *flags]
    for script in TEXTS:
        yield script, ["--limit", 2]
    for corner in CORNERS:
        flags = ["--max-pairs", 2, "--corner", corner, "--dataset", data / f"dataset_{corner}"]
        yield "head_attention_stats_qwen2.py", [*flags, "--out-dir", results / corner]
    yield "compare_corner_heads.py", [results / corner for corner in CORNERS]
    yield "find_sink_dimensions_simple.py", ["--data-root", data, "--num-samples", 2, *prompt]
    sinks = ["--dimensions", 1, "--tau", 1.0]
    yield "validate_sink_dimensions.py", ["--data-root", data, "--num-samples", 2, *prompt, *sinks]
    for method in (["default"], ["adapt-vis"], ["var", "--var-dimensions", "1", "--var-threshold", "1"]):
        yield "evaluate.py", [*two, "--method", *method, "--out-dir", results / f"evaluate-{method[0]}"]
    yield "compare_runs.py", [results / "evaluate-default", results / "evaluate-adapt-vis"]


def runs(family: str, config: Config, folder: Path) -> Iterator[Run]:
    """Write the folder of a family and run all scripts on it."""
    checkpoint, data = hub_folders.write(folder / family, family, config.layers), folder / "data"
    make_data(data)
    for dtype in config.dtypes:
        results = folder / f"results-{family}-{dtype}"
        for number, (script, flags) in enumerate(commands(data, results, config.faithfulness)):
            own = [] if script.startswith("compare_") else ["--model", checkpoint, "--dtype", dtype]
            if "--out-dir" not in flags:
                own += ["--out-dir", results / f"{number}"]
            start = time.monotonic()
            process = run(script, *own, *flags, cwd=ROOT, timeout=3000)
            yield classify(family, dtype, script, process, time.monotonic() - start)


def classify(family: str, dtype: str, script: str, process, seconds: float) -> Run:
    """Run with its error: a failure status, a traceback, or skipped samples."""
    lines = (process.stderr + process.stdout).strip().splitlines() or [""]
    accepted = (0, 1) if script == "validate_sink_dimensions.py" else (0,)  # 1 is the result for random weights
    error = ""
    if process.returncode not in accepted or "Traceback" in process.stderr:
        error = next((line for line in reversed(lines) if "rror" in line), lines[-1])
    elif skipped := [line for line in lines if line.startswith(("skipped", "failed"))]:
        error = skipped[-1]
    if error and (reason := UNABLE.get((family, script))) and reason in process.stderr + process.stdout:
        error = ""
    return Run(family, dtype, script, process.returncode, seconds, error)


def make_data(data: Path) -> None:
    """Generate two images of two shapes, and two pairs per corner."""
    if data.exists():
        return
    run("data/twoshapes.py", "--out-dir", data, "--count", 2)
    for corner in CORNERS:
        run("data/counterfactual_pairs.py", "--out-dir", data / f"dataset_{corner}", "--corner", corner, "--count", 2)


def main(config: Config) -> int:
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for family in config.families:
            for result in runs(family, config, Path(folder)):
                print(result, flush=True)
                failed += bool(result.error)
    print(f"{failed} runs failed" if failed else "every run is ok")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
