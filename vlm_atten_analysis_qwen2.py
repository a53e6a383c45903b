"""Attention of words and cells of Qwen2-VL and Qwen2.5-VL compared with the boxes of two shapes.

    python vlm_atten_analysis_qwen2.py
    python vlm_atten_analysis_qwen2.py --model tiny-qwen2-vl --data-root data/generated/twoshapes --limit 100
    python vlm_atten_analysis_qwen2.py --seeds-in decoder --prompt "{caption}"

The model's config states the family. Measures and outputs are those of vlm_atten_analysis_llava.py, by the same code.
Two facts differ. A cell is 2 x 2 merged patches of the vision encoder: its attention is the mean over the four queries
and the sum over the four keys. Image-to-image attention is the encoder's, over the whole image (in Qwen2.5-VL within
windows, except in a few layers), or with --seeds-in decoder the language model's, where a cell attends only to the
cells before it.
"""

from __future__ import annotations

from dataclasses import dataclass

from analysis import command
from analysis.faithfulness import FaithfulnessSettings
from analysis.resume import SampleOutput
from analysis.spatial import SpatialSettings
from analysis.spatial_report import FigureSettings
from data.spatial_samples import SpatialSamples
from models.generation import Generation
from models.loading import Load
from vlm_atten_analysis_llava import main


@dataclass(frozen=True)
class Config:
    load: Load = Load(model="tiny-qwen2.5-vl")
    """Any of LLaVA-1.5, Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Fuyu."""
    samples: SpatialSamples = SpatialSamples(prompt="{question}", limit=100)
    attention: SpatialSettings = SpatialSettings(layers="mid_third", seeds_in="auto", tower_layers="all")
    faithfulness: FaithfulnessSettings = FaithfulnessSettings(faithfulness=50, batch_size=24)
    generation: Generation = Generation(max_new_tokens=16)
    drawing: FigureSettings = FigureSettings(pictures=4, figures=True)
    output: SampleOutput = SampleOutput()


if __name__ == "__main__":
    command.run(main, Config, __doc__)
