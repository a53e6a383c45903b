"""The flags that say how the attention of words and cells is measured, shared by the scripts that do it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from analysis.flags import check_penalty
from analysis.layers import check_layers, select_layers
from analysis.spatial_attention import SEEDS, WORDS


@dataclass(frozen=True)
class SpatialAttentionFlags:
    """A script's Config inherits these, calls `check_measures` before it loads a model, and `queried_layers` after."""

    layers: str = "mid_third"
    """Decoder layers to average: all | first_third | mid_third | last_third | last_4 | 3,7,12 (0-based)."""
    seeds_in: Literal["auto", "tower", "decoder"] = "auto"
    """Whose image-to-image attention: the vision tower's, or the decoder's, where a cell sees only those before it;
    auto: the tower's where there is one."""
    tower_layers: str = "all"
    """Layers of the tower to average, of those that reach the decoder; as --layers."""
    rows: Literal["predicting", "query"] = "predicting"
    """A word of the answer: the row that predicted it, or the row in which it is read."""
    words_in: Literal["prompt", "answer"] = "prompt"
    """Which counts where a word stands both in the prompt and in the answer."""
    faithfulness: int = 50
    """Samples whose cells are also hidden and shown one tenth after the other, to see whether the answer, whatever the
    model says to the prompt, rests on them; 0 leaves it out. This is most of the run's time."""
    batch_size: int = 24
    """Pictures with hidden cells that the model sees together."""
    pictures: int = 4
    """Samples that get a picture of what looks where, and their raw maps."""
    figures: bool = True
    """Draw controls-*.png and heads/ (a quarter of a minute)."""
    max_new_tokens: int = 16
    """Longest answer, in tokens."""
    repetition_penalty: float = 1.0
    """Penalty on tokens that the prompt or the answer holds already; 1 is none, whatever the checkpoint asks for."""
    offload: bool = False
    """Keep recorded queries and keys on the CPU, for long prompts on a small GPU."""
    out_dir: str | None = None
    """New or empty folder for the results (default: results/<script>/<model>-<date>)."""

    @property
    def answering(self) -> dict:
        """Options of `models.answer.answers`."""
        names = ("max_new_tokens", "repetition_penalty", "offload")
        return {name: getattr(self, name) for name in names}

    def check_measures(self) -> None:
        """Raises ValueError for flags that cannot work with any model."""
        check_layers(self.layers)
        check_layers(self.tower_layers)
        if self.max_new_tokens < 1 or self.batch_size < 1:
            raise ValueError("give --max-new-tokens and --batch-size of at least 1")
        check_penalty(self.repetition_penalty)
        if self.faithfulness < 0 or self.pictures < 0:
            raise ValueError("give --faithfulness and --pictures of at least 0")

    def queried_layers(self, decoder: int, tower: int | None) -> dict[str, tuple[int, ...]]:
        """The layers that are averaged for each query, of so many; `tower` None: seeds are those of the decoder.

        Raises ValueError for layers that are not there.
        """
        words = select_layers(self.layers, decoder)
        seeds = words if tower is None else select_layers(self.tower_layers, tower)
        return dict.fromkeys(WORDS, words) | dict.fromkeys(SEEDS, seeds)
