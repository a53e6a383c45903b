"""Report of an installation: versions, devices, attention kernels, model families, optional packages.

    python -m models.doctor            (seconds; no downloads; --json for programs, --online also tests the hub)
    python -m models.doctor --folder FOLDER       (a checkpoint: loading, recorded weights, batches, two number types)

The checks import the packages, call the kernels and generate with the embedded models. Each line ends in ok, missing or
wrong, the last two with a remedy. Exit status: 0 required checks pass, 1 a required check fails, 2 usage error.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Literal

from models import FAMILIES, TINY
from models.answering import describe
from models.folders import fingerprint

ROOT = Path(__file__).parent.parent
SETUP = "rm -f .venv/installed.txt; bash env_setup_llava.bash"  # without the removal the script skips the installation
PIP = f"{sys.executable} -m pip install"
MODULES = {"pillow": "PIL"}  # import names that differ from package names
FOR_TESTS = ("pytest", "pytest-xdist", "hypothesis", "playwright", "ruff")
EMBEDDED = {
    "llava": ("tiny-llava", "45ead645d29b5833"),
    "qwen2_vl": ("tiny-qwen2-vl", "0d341fba89261270"),
    "qwen2_5_vl": ("tiny-qwen2.5-vl", "1019ef58148a35d0"),
    "fuyu": ("tiny-fuyu", "43048adfd048d7e4"),
}
"""Family -> its embedded checkpoint and the fingerprint of that folder; retraining changes it."""
QUESTION, NOTHING = "describe the image .", "nothing ."  # prompt, and answer of every embedded model for a blank image
RECORDED = 1e-4  # largest relative difference of a layer's recorded weights from eager attention's, in float32
EQUAL = {"float32": 1e-3, "bfloat16": 0.1}
"""Number type -> largest relative difference of attention weights and of logits due to rounding."""
LINEAR = {"flash": "FLASH_ATTENTION", "memory-efficient": "EFFICIENT_ATTENTION", "cudnn": "CUDNN_ATTENTION"}
KERNELS = {**LINEAR, "math": "MATH"}
"""Names of SDPA's kernels in the report -> torch's. Only the last allocates the T x T weights."""
CLOSE = {"float32": 1e-4, "bfloat16": 3e-2}  # largest error of an attention output, for values around 1
OPTIONAL = {
    "datasets": "questions from a hub id",
    "bitsandbytes": "--load-4bit and --load-8bit, on a GPU",
    "torchvision": "processors of a few other families",
}
"""Package -> the only features that need it."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Config:
    json: bool = False
    """Print JSON instead of a table."""
    online: bool = False
    """Also test the connection to the model hub."""
    folder: str | None = None
    """Check this checkpoint (folder or hub id) instead: loading, recorded weights, batches, float32 and bfloat16."""


@dataclass(frozen=True)
class Line:
    """Result of one check: its `status`, the `remedy` for a fault, and whether the exit status depends on it
    (`needed`)."""

    name: str
    found: str
    status: Literal["ok", "missing", "wrong"] = "ok"
    remedy: str = ""
    needed: bool = True


def versions(root: Path = ROOT) -> Iterator[Line]:
    """Import of Python and every package that `root` requires, compared with the required version.

    An older version than required is a fault, since it is untested; a newer one is reported.
    """
    required = re.search(r'requires-python = "(.+)"', (root / "pyproject.toml").read_text())[1]
    old = numbers(platform.python_version()) < numbers(required)
    remedy = f"rm -rf .venv; PYTHON=python{required.lstrip('>=')} bash env_setup_llava.bash" if old else ""
    yield Line("python", f"{platform.python_version()} (asked for {required})", "wrong" if old else "ok", remedy)
    wanted = dict(line.split("==") for line in (root / "requirements.txt").read_text().split())
    yield from (package(name, version) for name, version in wanted.items() if name not in FOR_TESTS)
    lines = [package(name, version, needed=False) for name, version in wanted.items() if name in FOR_TESTS]
    yield from (line for line in lines if line.status != "ok")
    if fine := ", ".join(line.name for line in lines if line.status == "ok"):
        yield Line("for the tests", fine, needed=False)


def package(name: str, required: str, needed: bool = True) -> Line:
    """Import of one package, compared with the required version."""
    remedy = f"{PIP} {name}=={required}"
    try:
        version = metadata.version(name)
        importlib.import_module(MODULES.get(name, name.removeprefix("pytest-")))
    except metadata.PackageNotFoundError:
        return Line(name, f"not installed (asked for {required})", "missing", remedy, needed)
    except Exception as error:  # a broken installation may raise any error
        return Line(name, f"cannot be imported: {describe(error)}", "wrong", f"{remedy} --force-reinstall", needed)
    if numbers(version) == numbers(required):
        return Line(name, version, needed=needed)
    old = numbers(version) < numbers(required)
    return Line(
        name, f"{version}, {'older' if old else 'newer'} than {required} asked for", "wrong", remedy, needed and old
    )


def numbers(version: str) -> tuple[int, ...]:
    """(2, 13, 0) of "2.13.0+cpu"."""
    return tuple(map(int, re.findall(r"\d+", version.split("+")[0])))


def devices() -> Iterator[Line]:
    """The CPU and every GPU available to torch."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    threads = torch.get_num_threads()
    yield Line("cpu", f"{cores} of {os.cpu_count()} cores, torch uses {threads}; {memory:.0f} GiB memory")
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        with torch.cuda.device(number):
            bf16 = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bfloat16"
        yield Line(f"cuda:{number}", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB memory, {bf16}", needed=False)
    if not torch.cuda.device_count():
        built = f"was built for CUDA {torch.version.cuda}" if torch.version.cuda else "was built without CUDA"
        remedy = "optional; pytorch.org/get-started says how to install"
        yield Line("gpu", f"torch sees none and {built}", "missing", remedy, needed=False)


def kernels() -> Iterator[Line]:
    """Check each kernel of SDPA by two calls: a causal prompt, and one with the mask of a padded batch."""
    import torch

    places = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    for device, dtype, kind in product(places, CLOSE, ("causal", "masked")):
        name = f"{device} {dtype} {kind}"
        able = [kernel for kernel in KERNELS if runs(kernel, device, dtype, kind == "masked")]
        unable = [kernel for kernel in KERNELS if kernel not in able]
        available = f"{', '.join(able) or 'none'}; not here: {', '.join(unable) or 'none'}"
        if LINEAR.keys() & able:
            yield Line(name, available)
        else:
            remedy = f"long prompts take T x T memory; {SETUP}" if able else SETUP
            yield Line(name, available, "missing", remedy, needed=not able)


def runs(kernel: str, device: str, dtype: str, masked: bool) -> bool:
    """Return whether a kernel of SDPA runs and returns softmax(q k^T / sqrt(width)) v, [sample, head, query, width]."""
    import torch
    from torch.nn import attention, functional

    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, 1, 2, 16, 32, generator=generator).to(device, getattr(torch, dtype))
    causal = torch.ones(16, 16, dtype=torch.bool, device=device).tril()
    how = {"attn_mask": causal} if masked else {"is_causal": True}
    try:
        with warnings.catch_warnings(), attention.sdpa_kernel(getattr(attention.SDPBackend, KERNELS[kernel])):
            warnings.simplefilter("ignore")  # on a GPU torch warns why a kernel is unavailable, then raises
            made = functional.scaled_dot_product_attention(*states, **how)
    except RuntimeError:
        return False
    query, key, value = states.double()
    scores = (query @ key.mT / 32**0.5).masked_fill(~causal, float("-inf"))
    return bool((made - scores.softmax(-1) @ value).abs().max() < CLOSE[dtype])


def families(tiny: Path = TINY) -> Iterator[Line]:
    """Check each patched family: the import of its file and, if it has one, its embedded model in `tiny`."""
    for family, (module, name) in FAMILIES.items():
        try:
            getattr(importlib.import_module(module), name)
        except Exception as error:  # another version of a library may raise any error
            yield Line(family, f"{module} cannot be imported: {describe(error)}", "wrong", SETUP)
            continue
        if family in EMBEDDED:
            yield embedded_model(family, tiny)
        else:
            yield Line(family, "its file imports; no embedded model to try it with")
    yield Line("others", "families without a file here are tried when they load")


def embedded_model(family: str, tiny: Path) -> Line:
    """Check a family's embedded model in `tiny`: fingerprint, loading, answer, exact recording."""
    name, came = EMBEDDED[family]
    current = fingerprint(tiny / name)
    remedy = SETUP if current == came else f"git checkout -- models/tiny/{name}"
    if current is None:
        return Line(family, f"{name} is not there", "missing", remedy)
    try:
        text, error = tried(family, str(tiny / name))
    except Exception as fault:  # a damaged file may raise any error
        return Line(family, f"{name} {current}: {describe(fault)}", "wrong", remedy)
    faults = [
        f"files differ from those that came ({came})" * (current != came),
        f"says {text!r} of a blank image, not {NOTHING!r}" * (text != NOTHING),
        f"recorded attention is {error:.0e} off eager's" * (not error <= RECORDED),
    ]
    if any(faults):
        return Line(family, f"{name} {current}: {'; '.join(filter(None, faults))}", "wrong", remedy)
    return Line(family, f"{name} {current}: answers, recorded to {error:.0e}")


def tried(family: str, folder: str) -> tuple[str, float]:
    """Answer of an embedded model about a blank image, and the error of recorded weights against eager attention."""
    from PIL import Image

    from models.generation import answer
    from models.loading import load, quiet
    from models.trace import recorded_errors

    model, processor = load(folder, dtype="float32")
    if model.config.model_type != family:
        raise ValueError(f"its config is of the family {model.config.model_type!r}")
    blank = [Image.new("RGB", (96, 96), "white")]
    text = answer(model, processor, blank, QUESTION, max_new_tokens=4).text
    inputs, _ = model.prepare(processor, blank, QUESTION)
    with quiet():
        return text, max(recorded_errors(model, inputs))


def batch_error(model, processor, image) -> float:
    """Relative difference of the next token's logits of a prompt in a padded batch from those of the prompt alone."""
    import torch

    prompts = [QUESTION, f"{QUESTION} {QUESTION} {QUESTION}"]
    together, _ = model.prepare(processor, [[image], [image]], prompts)
    alone, _ = model.prepare(processor, [image], prompts[0])
    with torch.no_grad():
        batch, single = (model(**inputs).logits[0, -1].float() for inputs in (together, alone))
    return float((batch - single).norm() / single.norm())


def checkpoint(folder: str) -> Iterator[Line]:
    """Check a checkpoint in each number type: loading, recorded against eager weights, batch against single logits."""
    from PIL import Image

    from models.loading import load, quiet
    from models.trace import recorded_errors

    image = Image.new("RGB", (224, 160), "white")
    for dtype, bound in EQUAL.items():
        try:
            model, processor = load(folder, dtype=dtype)
        except (ValueError, OSError) as error:
            yield Line(dtype, str(error), "wrong")
            continue
        inputs, layout = model.prepare(processor, [image], QUESTION)
        text = model.config.get_text_config()
        size = f"{text.num_hidden_layers} layers, {text.num_attention_heads} heads, {layout.length} tokens"
        yield Line(dtype, f"{model.config.model_type}, {size}")
        with quiet():
            errors = recorded_errors(model, inputs)
        finding = f"recorded attention is {errors[0]:.0e} off eager's in layer 0, at most {max(errors):.0e} in any"
        judged = max(errors) if dtype == "float32" else errors[0]  # in half precision two kernels diverge
        yield Line(f"{dtype} weights", finding, "ok" if judged <= bound else "wrong")
        error = batch_error(model, processor, image)
        finding = f"logits in a padded batch are {error:.0e} off those alone"
        yield Line(f"{dtype} batch", finding, "ok" if error <= bound else "wrong")


def optional() -> Iterator[Line]:
    """Optional packages."""
    for name, purpose in OPTIONAL.items():
        if find_spec(name) is None:
            yield Line(name, f"for {purpose}", "missing", f"{PIP} {name}", needed=False)
            continue
        try:
            importlib.import_module(name)
            yield Line(name, f"for {purpose}", needed=False)
        except Exception as error:  # for example, built for another torch
            yield Line(name, describe(error), "wrong", f"{PIP} --upgrade {name}", needed=False)
    purpose = "for tests of report pages"
    if browser := next(filter(None, map(shutil.which, BROWSERS)), None):
        yield Line("chromium", f"{browser}; {purpose}", needed=False)
    else:
        yield Line("chromium", purpose, "missing", "apt-get install chromium", needed=False)


def hub() -> Iterator[Line]:
    """Return whether the model hub responds within 10 seconds."""
    from urllib.request import Request, urlopen

    from huggingface_hub import constants

    try:
        with urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=10):
            yield Line("hub", f"{constants.ENDPOINT} answers", needed=False)
    except OSError as error:
        remedy = "embedded models and folders work without; else see to network and proxy"
        yield Line("hub", f"{constants.ENDPOINT}: {describe(error)}", "missing", remedy, needed=False)


SECTIONS: dict[str, Callable[[], Iterator[Line]]] = {
    "versions": versions, "devices": devices, "attention": kernels, "families": families, "optional": optional,
}  # fmt: skip


def checked(section: str, folder: str | None = None) -> list[Line]:
    """The lines of a section, or one line with the error if the section fails (torch does not import)."""
    try:
        return list({**SECTIONS, "hub": hub, "checkpoint": lambda: checkpoint(folder)}[section]())
    except Exception as error:  # a failing check must not abort the report
        return [Line(section, f"cannot be checked: {describe(error)}", "wrong", SETUP)]


def main(config: Config) -> int:
    checks = {}
    for section in [*SECTIONS, *["hub"] * config.online] if config.folder is None else ["checkpoint"]:
        checks[section] = checked(section, config.folder)
        if not config.json:
            print(section, *map(shown, checks[section]), sep="\n", flush=True)
    failing = [line.name for lines in checks.values() for line in lines if line.needed and line.status != "ok"]
    if config.json:
        sections = {section: [asdict(line) for line in lines] for section, lines in checks.items()}
        print(json.dumps({"ok": not failing, **sections}, indent=1))
    else:
        print("all that is needed: ok" if not failing else f"needed and not in order: {', '.join(failing)}")
    return 1 if failing else 0


def shown(line: Line) -> str:
    return f"  {line.name:<22} {line.found:<58} {line.status}" + (f" ({line.remedy})" if line.remedy else "")


if __name__ == "__main__":
    if find_spec("tyro") is None:  # the flags need it; report its absence
        sys.exit(main(Config()))
    import tyro

    sys.exit(main(tyro.cli(Config, description=__doc__)))
