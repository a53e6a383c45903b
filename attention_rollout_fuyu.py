"""Attention rollout of Fuyu: one map over the image for each token of the answer.

    python attention_rollout_fuyu.py --image photo.jpg --prompt "describe the image ."
    python attention_rollout_fuyu.py --limit 4

Fuyu has no vision encoder: patches enter the decoder row by row, from the top left of the image at its own size, which
is reduced only above the processor's limit (Fuyu-8B: patches of 30 pixels, limit 1920 x 1080; the embedded model: 8 and
96 x 96). A cell of the map is therefore a square of the image.
The files are those of attention_rollout_llava.py: by default the maps are rollout and gradient x attention (maps.png).
The weights of Fuyu-8B are 19 GB in half precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from analysis import command
from analysis.gallery import Page
from analysis.maps import MapChoice, MapSettings
from analysis.overlay import OverlayStyle
from analysis.resume import SampleOutput
from analysis.rollout import RolloutSettings
from attention_rollout_llava import main
from data.samples import Samples
from models.generation import Generation
from models.loading import Load


@dataclass(frozen=True)
class Config:
    load: Load = Load(model="tiny-fuyu")
    """Any of LLaVA-1.5, Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Fuyu; other families that can be recorded give maps without
    overlays."""
    samples: Samples = Samples(limit=8)
    generation: Generation = Generation(max_new_tokens=16)
    maps: MapChoice = MapChoice(maps=(), sanity=False)
    map_settings: MapSettings = MapSettings(rollout=RolloutSettings(residual=0.5, lowest=0.5))
    """The lower layers do a vision encoder's work; composed too (lowest 0, as published), they carry every map to the
    first patches, the only ones that all others attend to. Fewer layers drift less, and still drift: see
    docs/corrections.md."""
    style: OverlayStyle = OverlayStyle(alpha=0.7, power=1.5, blur=0.3)  # light: each patch was read by itself
    page: Page = Page(page_mb=5.0)
    output: SampleOutput = SampleOutput()
    through_tower: ClassVar[bool] = False  # no flag: Fuyu has no vision encoder


if __name__ == "__main__":
    command.run(main, Config, __doc__)
