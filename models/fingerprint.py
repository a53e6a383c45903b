"""Hashes of files, checkpoints and code, which differ where the content does. Gigabytes take a moment.

    contents("checkpoint")               {"config.json": "5f0c...", "model.safetensors": "91ab...", ...}
    fingerprint("checkpoint")            one hash of the same
    code("my_model")                     {"my_model": "77d2...", "my_layers": "c01e...", ...}
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import sysconfig
from collections.abc import Iterator
from importlib.machinery import all_suffixes
from importlib.util import resolve_name
from pathlib import Path

WHOLE = 2**24  # bytes; of larger weights samples are read
SAMPLES, LENGTH = 512, 2**15
READ = (".json", ".safetensors", ".jinja", ".model", ".txt", ".tiktoken", ".spm", ".codes", ".tokenizer")
"""Endings of the files that transformers reads from a checkpoint's folder: configs, weights and their index, templates,
vocabularies (`VOCAB_FILES_NAMES` of its tokenizers)."""
TEMPLATES = "additional_chat_templates"  # the one folder in it that transformers reads
INSTALLED = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}


def fingerprint(path: str | Path) -> str | None:
    """A hash of all `contents`; None where there are none."""
    known = contents(path)
    return _short(hashlib.sha256(json.dumps(known, sort_keys=True).encode())) if known else None


def contents(path: str | Path) -> dict[str, str]:
    """The hash of a file, by its name; or of each file of a checkpoint's folder that transformers reads, by its path in
    the folder. Empty where nothing lies."""
    path = Path(path)
    files = [path] if path.is_file() else sorted([*path.glob("*"), *path.glob(f"{TEMPLATES}/*")])
    files = [file for file in files if file.is_file() and (file == path or file.suffix in READ)]
    return {file.name if file == path else file.relative_to(path).as_posix(): content_hash(file) for file in files}


def content_hash(content: Path | bytes) -> str:
    """A hash of a file's content, or of bytes, in 16 hexadecimal digits.

    Of weights (safetensors) above 16 MB the size and 512 pieces of 32 KB, evenly spaced, stand for the whole: training
    changes them everywhere. Raises OSError for a file that cannot be read.
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
    """Hashes of a module's file and of those that it imports, at any depth and anywhere in their text, by module name.

    Modules of Python and installed packages are left out, except that `module` itself counts wherever it lies. Runs
    none of the code; a module that is imported by a computed name stays unknown. Empty for a module without a file.
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
            waiting += [each for imported in _imports(path, name) for each in _with_parents(imported)]
    return dict(sorted(hashes.items()))


def _with_parents(name: str) -> Iterator[str]:
    """A module's name and those of the packages around it, whose files run when it is imported."""
    parts = name.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts) + 1))


def _module_file(name: str) -> Path | None:
    """The file of a module, found without importing anything; None for a folder without one, or no such module."""
    package, *inner = name.split(".")
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # of a module such as __main__ that was not imported
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
    """Whether a module's file belongs to Python or to an installed package."""
    return any(path.resolve().is_relative_to(folder) for folder in INSTALLED) or "dist-packages" in path.parts


def _imports(path: Path, name: str) -> Iterator[str]:
    """Names of modules, and of what is taken out of them, in the import statements of a Python file."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # importing it says what is wrong
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            try:
                source = resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:  # beyond the top-level package; importing it says so
                continue
            yield from (f"{source}.{alias.name}" for alias in node.names)  # a module, or a name out of `source`
