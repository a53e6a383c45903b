"""Paths inside a data root, and the symbolic links that lead out of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

OUTSIDE = "path leaves the data root"
LINKED = "link leads out of the data root (--follow-links follows it)"
_followed: ContextVar[bool] = ContextVar("followed", default=False)


@dataclass(frozen=True)
class LinkFlags:
    """Flag that a script's Config inherits; the script reads its data inside `following_links`."""

    follow_links: bool = False
    """Follow symbolic links that lead out of the data root; without it, what they name is left out."""


@contextmanager
def following_links(followed: bool = True) -> Iterator[None]:
    """Inside this context the readers of `data` follow symbolic links that lead out of a data root, or refuse them."""
    token = _followed.set(followed)
    try:
        yield
    finally:
        _followed.reset(token)


def root_fault(path: Path, root: Path) -> str:
    """Return the reason for which `path` must not be read as a part of the data root, "" where it may be read.

    A path that leaves the root by itself (absolute, or by "..") is always refused; one that a symbolic link takes
    outside is refused unless `following_links` is active.
    """
    if path.resolve().is_relative_to(root.resolve()):
        return ""
    if not path.is_relative_to(root) or ".." in path.relative_to(root).parts:
        return OUTSIDE
    return "" if _followed.get() else LINKED
