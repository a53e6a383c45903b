"""Do Qwen2-VL and Qwen2.5-VL look where the words point?

    python vlm_atten_analysis_qwen2.py
    python vlm_atten_analysis_qwen2.py --model tiny-qwen2-vl --data-root data/generated/twoshapes --limit 100
    python vlm_atten_analysis_qwen2.py --seeds-in decoder --prompt "{caption}"

Which of the two it is stands in the model's config. What is measured, and what comes out, is what
vlm_atten_analysis_llava.py says, by the same functions: where the words of two shapes and of their relation look, and
where cells look, against the shapes' boxes and beside controls; and whether the answer rests on it.
Two things are Qwen's own. A cell is 2 x 2 patches of the tower, merged: it looks as their mean and is looked at as
their sum. And image-to-image attention is the tower's, which sees the whole picture (Qwen2.5-VL's in windows, but for a
few layers), or, with --seeds-in decoder, the language model's, where a cell sees only those before it.
"""

from __future__ import annotations

from dataclasses import dataclass

from analysis import command
from analysis.faithfulness import FaithfulnessSettings
from analysis.runs import Output
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
    output: Output = Output()


if __name__ == "__main__":
    command.run(main, Config, __doc__)
