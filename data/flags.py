"""The flags that say what a script looks at, shared by every script."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SampleFlags:
    """A script's Config inherits these and hands them to `data.samples.collect`, which says what is wrong with them."""

    image: tuple[str, ...] = ()
    """One picture or several."""
    data_root: str | None = None
    """Instead of --image: a folder of pictures, or one that holds spatial_twoshapes/."""
    prompt: str | None = None
    """What to ask. A two-shapes set brings its own questions; given here, it replaces them."""
    limit: int = 8
    """Use at most so many samples of --data-root; 0 uses all."""
