"""The flags that say how a model is loaded, shared by every script."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LoadFlags:
    """A script's Config inherits these and hands `loading` on: `models.load(config.model, **config.loading)`."""

    device: str = "auto"
    """auto (all GPUs, else the CPU) | cpu | cuda | cuda:N."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """auto: the checkpoint's own on a GPU, float32 on a CPU."""
    load_4bit: bool = False
    """Quantise to 4 bits while loading (needs bitsandbytes and a GPU)."""
    load_8bit: bool = False
    """Quantise to 8 bits while loading (needs bitsandbytes and a GPU)."""
    revision: str | None = None
    """Revision of a hub model."""
    min_pixels: int | None = None
    """Qwen families: enlarge smaller pictures to so many pixels (default: the checkpoint's limit)."""
    max_pixels: int | None = None
    """Qwen families: shrink larger pictures to so many pixels, and with them the prompt (default: as above)."""

    @property
    def loading(self) -> dict:
        """Options of `models.load`."""
        names = ("device", "dtype", "load_4bit", "load_8bit", "revision", "min_pixels", "max_pixels")
        return {name: getattr(self, name) for name in names}
