"""Where did Qwen2-VL, Qwen2.5-VL or Qwen3-VL look when it wrote each word of its answer?

    python attention_rollout_qwen2.py --image photo.jpg --prompt "describe the image ."
    python attention_rollout_qwen2.py --model tiny-qwen2-vl --limit 4

Which it is stands in the model's config. All see the whole picture, whatever its shape: resized to whole cells of
2 x 2 merged patches. Released models keep its size within wide limits (a cell is 28 pixels, Qwen3-VL's 32; more picture
is more cells); the embedded ones bring every picture to the area of 96 x 96 pixels.
Per picture: overlays of the mean and the maximum over the answer's tokens, a strip with one overlay per token, the
share of attention on the image, and the raw maps (maps.npz). Beside them samples.csv, summary.json, settings.json.
--through-tower adds what lies behind the image tokens: the same maps, handed on to where the vision tower looked.
The weights of Qwen2.5-VL-3B alone are 7.5 GB in half precision, those of the 7B models 16.6 GB.
"""

from __future__ import annotations

from dataclasses import dataclass

from analysis import command
from analysis.overlay import OverlayStyle
from analysis.report_views import Page
from analysis.rollout import RolloutSettings
from analysis.runs import Output
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
    rollout: RolloutSettings = RolloutSettings(residual=0.5, lowest=0.0)
    style: OverlayStyle = OverlayStyle(alpha=0.7, power=1.5, blur=0.5)
    page: Page = Page(page_mb=5.0)
    output: Output = Output()
    through_tower: bool = False
    """Also draw where the vision tower looked for the image tokens that the answer looked at (files with -tower)."""


if __name__ == "__main__":
    command.run(main, Config, __doc__)
