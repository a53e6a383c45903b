"""The flags of a rollout job: how an answer is made, rolled out and drawn, and where the results go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import matplotlib

from analysis.gallery import Look
from analysis.overlay import COLOURMAP


@dataclass(frozen=True)
class RolloutFlags:
    """A script's Config inherits these, calls `check` before it loads a model, and hands on `answering` to the
    generation, `rolling` to `analysis.rollout.rollout` and `look` to `analysis.gallery`."""

    max_new_tokens: int = 16
    """Longest answer, in tokens."""
    repetition_penalty: float = 1.0
    """Penalty on tokens that the prompt or the answer holds already; 1 is none, whatever the checkpoint asks for."""
    rows: Literal["predicting", "query"] = "predicting"
    """Map of a token: the row that predicted it, or the row in which it is read as the query."""
    residual: float = 0.5
    """Weight w of the identity in each layer's (1 - w) A + w I."""
    drop_first: bool = False
    """Leave out attention to the first token, where many models park what they do not need."""
    lowest: float = 0.0
    """Where the product of layers ends, as a share of the depth: 0 composes all, 0.5 the upper half. In a causal
    decoder the lower layers carry every map towards the first positions."""
    offload: bool = False
    """Keep recorded queries on the CPU, for long prompts on a small GPU."""
    alpha: float = 0.7
    """Opacity of the overlay where attention is highest."""
    power: float = 1.5
    """Exponent on the map before it is coloured; higher shows only the peaks."""
    blur: float = 0.5
    """Standard deviation of the overlay's blur, in cells."""
    colourmap: str = COLOURMAP
    """Any colour map of matplotlib, such as jet for comparison with papers."""
    page_mb: float = 5.0
    """How large report.html may grow for the sake of single heads; where that is not enough, some layers have none."""
    out_dir: str | None = None
    """New or empty folder for the results (default: results/<script>/<model>-<date>)."""

    @property
    def answering(self) -> dict:
        """Options of `models.answer.answers`."""
        names = ("max_new_tokens", "repetition_penalty", "offload")
        return {name: getattr(self, name) for name in names}

    @property
    def rolling(self) -> dict:
        """Options of `analysis.rollout.rollout`."""
        return {"rows": self.rows, "residual": self.residual, "drop_first": self.drop_first, "lowest": self.lowest}

    @property
    def look(self) -> Look:
        """How `analysis.gallery` draws."""
        return Look(self.alpha, self.power, self.blur, self.colourmap)

    def check(self) -> None:
        """Raises ValueError for flags that cannot work."""
        if self.max_new_tokens < 1:
            raise ValueError(f"--max-new-tokens {self.max_new_tokens} must be at least 1")
        check_penalty(self.repetition_penalty)
        if not 0 <= self.residual < 1:
            raise ValueError(f"--residual {self.residual} is out of range; give 0 <= w < 1")
        if not 0 <= self.lowest < 1:
            raise ValueError(f"--lowest {self.lowest} is out of range; give a share of the depth, 0 <= share < 1")
        if not 0 <= self.alpha <= 1 or self.power <= 0 or self.blur < 0:
            raise ValueError("give --alpha within 0..1, --power above 0 and --blur of at least 0")
        if not self.page_mb >= 0:
            raise ValueError(f"--page-mb {self.page_mb} is not a size; give 0 or more")
        if self.colourmap not in matplotlib.colormaps:
            raise ValueError(f"--colourmap {self.colourmap!r} is unknown to matplotlib; try turbo, viridis or jet")


def check_penalty(repetition_penalty: float) -> None:
    """Raise ValueError for a repetition penalty that is not a finite number above 0."""
    if not 0 < repetition_penalty < float("inf"):
        raise ValueError(f"--repetition-penalty {repetition_penalty} is no penalty; give a number above 0 (1: none)")
