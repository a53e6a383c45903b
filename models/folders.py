"""Checks of a checkpoint's files before loading, and content hashes of files, checkpoints and code.

`check_folder` reads names and small files of a folder, `check_fields` the config, `check_tokenizer_files` and
`check_weight_files` the files of the tokenizer and the model, `check_quantization` the number format of the weights.
All raise ValueError, or FileNotFoundError for a missing file; the message states the fault and the remedy in one
sentence that continues the checkpoint's name. Hashes differ where the content does:

    contents("checkpoint")               {"config.json": "5f0c...", "model.safetensors": "91ab...", ...}
    fingerprint("checkpoint")            one hash of the same
    code("my_model")                     {"my_model": "77d2...", "my_layers": "c01e...", ...}
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import re
import shlex
import sysconfig
from collections.abc import Iterator
from importlib.machinery import all_suffixes
from importlib.util import find_spec, resolve_name
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

from data.errors import InputError, MissingFileError

LFS = b"version https://git-lfs"
ADAPTER, WEIGHTS, INDEX = "adapter_config.json", "model.safetensors", "model.safetensors.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
ORIGINAL_LLAVA = {"mm_projector_type", "mm_vision_tower", "mm_hidden_size"}
"""Fields of the config of the original LLaVA code, which transformers does not read."""

QUANTIZED = {
    "bitsandbytes": ("bitsandbytes", ["bitsandbytes"]),
    "awq": ("AWQ", ["gptqmodel"]),
    "gptq": ("GPTQ", ["optimum", "gptqmodel"]),
    "compressed-tensors": ("compressed-tensors", ["compressed_tensors"]),
    "fbgemm_fp8": ("FBGEMM FP8", ["fbgemm_gpu"]),
    "torchao": ("torchao", ["torchao"]),
    "hqq": ("HQQ", ["hqq"]),
    "quanto": ("quanto", ["optimum"]),
    "auto-round": ("AutoRound", ["auto_round"]),
    "aqlm": ("AQLM", ["aqlm"]),
}
"""quant_method of a config -> its name and the modules that transformers needs for it. Supported on a GPU only."""
FP8 = ("fp8", "mxfp8")  # dequantised during loading, on any device


def check_folder(folder: str) -> None:
    """Check the files that identify a folder as a checkpoint of transformers."""
    path = Path(folder)
    if pointers := [file.name for file in sorted(path.iterdir()) if is_pointer(file)]:
        raise ValueError(
            f"folder {folder!r} holds Git LFS pointers in place of {listed(pointers)}; "
            f"fetch the files: git -C {shlex.quote(folder)} lfs pull"
        )
    if (path / ADAPTER).is_file():
        raise ValueError(adapter_sentence(f"folder {folder!r}", folder, (path / ADAPTER).read_text(errors="replace")))
    if not (path / "config.json").is_file():
        raise MissingFileError(
            "no-config", f"folder {folder!r} holds no config.json, so it is not a checkpoint{nearby(path)}"
        )


def is_pointer(file: Path) -> bool:
    """Return whether a file is a Git LFS pointer, a few lines of text in place of a large file."""
    if not file.is_file() or file.stat().st_size > 1024:
        return False
    with open(file, "rb") as content:
        return content.read(len(LFS)) == LFS


def adapter_sentence(called: str, name: str, adapter: str) -> str:
    """Error message for an adapter; `adapter` is the content of its config."""
    try:
        base = json.loads(adapter).get("base_model_name_or_path") or "BASE"
    except (ValueError, AttributeError):
        base = "BASE"
    model = f"AutoModelForImageTextToText.from_pretrained({base!r})"
    return (
        f"{called} holds an adapter ({ADAPTER}, such as LoRA), which would not be applied; merge it into its base and "
        f"load the result: PeftModel.from_pretrained({model}, {name!r}).merge_and_unload().save_pretrained('MERGED') "
        "(pip install peft; copy the processor's files to MERGED)"
    )


def check_hub_adapter(name: str, revision: str | None) -> None:
    """Check that a hub id holds no adapter. An unreachable hub is reported later, by the read of the config."""
    kinds = ("gated_repo", "missing_entries", "connection_errors")
    quietly = {f"_raise_exceptions_for_{kind}": False for kind in kinds}
    try:
        file = cached_file(name, ADAPTER, revision=revision, **quietly)
    except OSError:  # for example, a missing revision
        return
    if file:
        raise InputError("lora-adapter", adapter_sentence(repr(name), name, Path(file).read_text(errors="replace")))


def nearby(path: Path) -> str:
    """Hint for a folder without a config, from its other files; may be empty."""
    inner = sorted([*path.glob("*/config.json"), *path.glob("snapshots/*/config.json")])
    if inner:
        return f"; one lies in {str(inner[0].parent)!r}: pass that folder"
    if files := sorted(path.glob("*.gguf")):
        return (
            f", but the GGUF file {files[0].name}; scripts on text alone read such a file of a language model "
            "(--model FILE.gguf), and vision-language models need the safetensors release"
        )
    if (path / "params.json").is_file():
        return "; params.json is of the original format of its authors: take the release for transformers"
    return ""


def check_fields(fields: dict, name: str) -> None:
    """Check the config of a checkpoint as a dict, before transformers converts it to its config class."""
    if ORIGINAL_LLAVA & fields.keys() or any(
        "LlavaLlama" in str(architecture) for architecture in fields.get("architectures") or ()
    ):
        size = "13b" if fields.get("hidden_size") == 5120 else "7b"
        raise ValueError(
            f"{name!r} is of LLaVA's original format (mm_vision_tower, mm_projector), which transformers does not "
            f"read; use the converted release, llava-hf/llava-1.5-{size}-hf for LLaVA-1.5 {size.upper()} "
            "(others: llava-hf on the hub)"
        )
    if not fields.get("model_type"):
        raise ValueError(
            f"the config.json of {name!r} names no model_type, so its family is not known; take config.json from the "
            "release for transformers"
        )


def check_tokenizer_files(path: str, name: str) -> None:
    """Check that the folder `path` holds a tokenizer that the installed packages can read."""
    folder = Path(path)
    if not folder.is_dir() or (folder / "tokenizer.json").is_file():
        return
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return
    if not (folder / "tokenizer.model").is_file():
        raise MissingFileError(
            "no-tokenizer",
            f"{name!r} holds no tokenizer (tokenizer.json); copy tokenizer.json and tokenizer_config.json from the "
            "release into the folder",
        )
    if absent := [module for module in ("sentencepiece", "google.protobuf") if not installed(module)]:
        packages = " ".join(module.replace("google.", "") for module in absent)
        raise ValueError(
            f"the tokenizer of {name!r} is tokenizer.model alone, which needs {packages}: pip install {packages}, or "
            "copy tokenizer.json from the release into the folder"
        )


def check_weight_files(path: str, name: str, class_name: str) -> None:
    """Check that the folder `path` holds complete safetensors; `class_name` is the transformers class that reads them.

    Only headers are read. Raises ValueError for weights that are missing, pickled, truncated, or outside the folder.
    """
    folder = Path(path)
    if not folder.is_dir():
        return
    if (folder / WEIGHTS).is_file():
        shards = [WEIGHTS]
    elif (folder / INDEX).is_file():
        shards = indexed_shards(folder / INDEX, name)
    else:
        instead = weights_instead(folder, class_name)
        raise InputError("pickled-weights", f"{name!r} holds no weights that can be loaded ({WEIGHTS}){instead}")
    if missing := [shard for shard in shards if not (folder / shard).is_file()]:
        raise ValueError(
            f"{len(missing)} of the {len(shards)} shards that the index of {name!r} names are missing: "
            f"{listed(missing)}; download them again"
        )
    for shard in shards:
        check_shard(folder / shard, name)


def indexed_shards(index: Path, name: str) -> list[str]:
    """File names of the shards of an index. Raises ValueError for a damaged index and for a file outside the folder."""
    try:
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        sentence = f"{INDEX} of {name!r} is damaged ({type(error).__name__}); download it again"
        raise ValueError(sentence) from error
    if outside := [shard for shard in shards if Path(shard).name != shard or "\\" in shard]:
        raise ValueError(
            f"{INDEX} of {name!r} names a file outside its folder, {outside[0]!r}; do not trust this checkpoint, or "
            "mend the index if it is yours"
        )
    return shards


def check_shard(file: Path, name: str) -> None:
    """Raise ValueError unless a file is complete safetensors by its header and size."""
    size = file.stat().st_size
    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        problem = "is empty" if size == 0 else f"is cut off or no safetensors file ({size:,} bytes: {error})"
        raise InputError(
            "damaged-weights", f"the weight file {file.name} of {name!r} {problem}; download it again"
        ) from error


def weights_instead(folder: Path, class_name: str) -> str:
    """End of the error message for a folder without safetensors under their usual names."""
    if pickled := sorted(file.name for kind in PICKLED for file in folder.glob(kind)):
        where = repr(str(folder))
        code = f"from transformers import {class_name} as M; M.from_pretrained({where}, use_safetensors=False)"
        return (
            f", only pickled ones ({listed(pickled)}); convert them once: "
            f"python -c {shlex.quote(f'{code}.save_pretrained({where})')}"
        )
    if files := sorted(folder.glob("*.safetensors")):
        return f", but {listed([file.name for file in files])} without {INDEX}; download the index as well"
    if files := sorted(folder.glob("*.gguf")):
        return f", but the GGUF file {files[0].name}; take the safetensors release"
    if files := sorted([*folder.glob("*.h5"), *folder.glob("*.msgpack")]):
        return f", but {files[0].name} of another framework; take the safetensors release"
    return "; download the weights into the folder"


def check_quantization(config, name: str, device_map) -> None:
    """Check that quantised weights can be loaded on this machine.

    device_map: the result of `models.loading.place`. Raises ValueError if a required package or GPU is missing.
    """
    method = quantization_method(config)
    if method is None or method in FP8:
        return
    other = "load the release that is not quantised (and --load-4bit on a GPU)"
    if method not in QUANTIZED:
        raise ValueError(f"the weights of {name!r} are quantised by {method!r}, which is not supported here; {other}")
    label, modules = QUANTIZED[method]
    needed = [module for module in modules if not installed(module)]
    packages = " ".join(module.replace("_", "-") for module in needed)
    if not torch.cuda.is_available() or device_map == {"": "cpu"}:
        also = f" and {packages} (not installed)" if needed else ""
        raise InputError(
            "quantised-without-gpu",
            f"the weights of {name!r} are quantised by {label}, which needs a GPU{also}; {other}",
        )
    if needed:
        raise InputError(
            "quantised-without-package",
            f"the weights of {name!r} are quantised by {label}, which needs {packages}, not installed: "
            f"pip install {packages}, or {other}",
        )


def quantization_method(config) -> str | None:
    """quant_method of a checkpoint's config; None for weights that are not quantised."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    if isinstance(settings, dict) and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        return "bitsandbytes"  # early files omit the method
    method = settings.get("quant_method") if isinstance(settings, dict) else settings.quant_method.value
    return str(method)


def installed(module: str) -> bool:
    """Return whether a module can be found, without importing it."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # raised for the parent package
        return False


def listed(names: list[str]) -> str:
    """The first names, at most three, and the number of the others."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def version_numbers(version: str) -> tuple[int, ...]:
    """(5, 23, 0) of "5.23.0"; of "5.24.0.dev0" the first three."""
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


WHOLE = 2**24  # bytes; larger weights are sampled
SAMPLES, LENGTH = 512, 2**15
READ = (".json", ".safetensors", ".jinja", ".model", ".txt", ".tiktoken", ".spm", ".codes", ".tokenizer")
"""Endings of the files that transformers reads from a checkpoint's folder: configs, weights and their index, templates,
vocabularies (`VOCAB_FILES_NAMES` of its tokenizers)."""
TEMPLATES = "additional_chat_templates"  # the only subfolder that transformers reads
INSTALLED = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}


def fingerprint(path: str | Path) -> str | None:
    """Hash of all `contents`; None if they are empty."""
    known = contents(path)
    return _short(hashlib.sha256(json.dumps(known, sort_keys=True).encode())) if known else None


def contents(path: str | Path) -> dict[str, str]:
    """Hash of a file, by its name; or of each file of a checkpoint's folder that transformers reads, by its path in the
    folder. Empty if the path does not exist."""
    path = Path(path)
    files = [path] if path.is_file() else sorted([*path.glob("*"), *path.glob(f"{TEMPLATES}/*")])
    files = [file for file in files if file.is_file() and (file == path or file.suffix in READ)]
    return {file.name if file == path else file.relative_to(path).as_posix(): content_hash(file) for file in files}


def content_hash(content: Path | bytes) -> str:
    """Hash of a file's content, or of bytes, in 16 hexadecimal digits.

    For weights (safetensors) above 16 MB it covers the size and 512 evenly spaced pieces of 32 KB, since training
    changes all weights. Raises OSError for a file that cannot be read.
    """
    if isinstance(content, bytes):
        return _short(hashlib.sha256(content))
    with open(content, "rb") as file:
        size = content.stat().st_size
        if size <= WHOLE or content.suffix != ".safetensors":
            return _short(hashlib.file_digest(file, "sha256"))
        samples = hashlib.sha256(f"{size}\n".encode())
        for sample in range(SAMPLES):
            file.seek(sample * (size - LENGTH) // (SAMPLES - 1))
            samples.update(file.read(LENGTH))
        return _short(samples)


def _short(digest) -> str:
    return digest.hexdigest()[:16]


def code(module: str) -> dict[str, str]:
    """Hashes of a module's file and of its imports, at any depth and anywhere in the source, by module name.

    Modules of Python and of installed packages are left out, but `module` itself is always included. The code is not
    run; a module that is imported by a computed name is missed. Empty for a module without a file.
    """
    hashes: dict[str, str] = {}
    waiting, seen = list(_with_parents(module)), set()
    while waiting:
        name = waiting.pop()
        path = None if name in seen else _module_file(name)
        seen.add(name)
        if path is None or (is_installed(path) and name != module):
            continue
        hashes[name] = content_hash(path)
        if path.suffix == ".py" and not is_installed(path):
            waiting += [parent for imported in _imports(path, name) for parent in _with_parents(imported)]
    return dict(sorted(hashes.items()))


def _with_parents(name: str) -> Iterator[str]:
    """Names of a module and of its parent packages, whose files run when it is imported."""
    parts = name.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts) + 1))


def _module_file(name: str) -> Path | None:
    """The file of a module, found without an import; None for a folder without one and for an unknown module."""
    package, *inner = name.split(".")
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # raised for a module that was not imported, such as __main__
        return None
    if spec is None:
        return None
    if not inner and spec.submodule_search_locations is None:
        return Path(spec.origin) if spec.has_location else None
    for folder in spec.submodule_search_locations or ():
        place = Path(folder, *inner)
        for candidate in (place / "__init__.py", *(Path(f"{place}{suffix}") for suffix in all_suffixes())):
            if candidate.is_file():
                return candidate
    return None


def is_installed(path: Path) -> bool:
    """Return whether a module's file belongs to Python or to an installed package."""
    return any(path.resolve().is_relative_to(folder) for folder in INSTALLED) or "dist-packages" in path.parts


def _imports(path: Path, name: str) -> Iterator[str]:
    """Names of modules and of imported members in the import statements of a Python file."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # reported by its import
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            try:
                source = resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:  # beyond the top-level package; reported by its import
                continue
            yield from (f"{source}.{alias.name}" for alias in node.names)  # a module, or a member of `source`
