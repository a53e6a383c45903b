"""Attention rollout of Qwen2-VL, Qwen2.5-VL and Qwen3-VL: one map over the image for each token of the answer.

    python attention_rollout_qwen2.py --image photo.jpg --prompt "describe the image ."
    python attention_rollout_qwen2.py --model tiny-qwen2-vl --limit 4

The model's config states the family. The image is resized to whole cells of 2 x 2 merged patches and never cropped.
Released models keep its size within wide limits (a cell is 28 pixels, in Qwen3-VL 32; a larger image has more cells);
the embedded ones resize every image to the area of 96 x 96 pixels.
The files are those of attention_rollout_llava.py: by default the maps are rollout and gradient x attention (maps.png).
--through-tower also composes the rollout with the attention of the vision encoder.
The weights of Qwen2.5-VL-3B are 7.5 GB in half precision, those of the 7B models 16.6 GB.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    load: Load = Load(model="tiny-qwen2.5-vl")
    """Any of LLaVA-1.5, Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Fuyu; other families that can be recorded give maps without
    overlays."""
    samples: Samples = Samples(limit=8)
    generation: Generation = Generation(max_new_tokens=16)
    maps: MapChoice = MapChoice(maps=(), sanity=False)
    map_settings: MapSettings = MapSettings(rollout=RolloutSettings(residual=0.5, lowest=0.0))
    style: OverlayStyle = OverlayStyle(alpha=0.7, power=1.5, blur=0.5)
    page: Page = Page(page_mb=5.0)
    output: SampleOutput = SampleOutput()
    through_tower: bool = False
    """Also draw the vision encoder's attention from the image tokens that the answer attends to (files with -tower)."""


if __name__ == "__main__":
    command.run(main, Config, __doc__)
