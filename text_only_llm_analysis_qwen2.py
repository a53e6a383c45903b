"""Symmetry of attention in captions without an image: from the relation word to the entities, or to their positions.

    python text_only_llm_analysis_qwen2.py
    python text_only_llm_analysis_qwen2.py --data-root data/generated/twoshapes
    python text_only_llm_analysis_qwen2.py --model Qwen2.5-1.5B-Instruct --layers mid_third

Input of the language model of Qwen2-VL or Qwen2.5-VL is each caption and its three counterfactuals: the entities
swapped, the relation flipped, and both. The asymmetry of a sentence is (m1 - m2) / (m1 + m2), with m1 and m2 the
attention of the relation word to the entity named first and second; a pair's symmetry score is its distance from the
ideal line: 0 where attention follows the entities, not their positions (definitions: analysis/text_symmetry.py). The
control is the article before each entity. pairs.png has the scatter with the ideal line of symmetry, examples.png some
captions as bars, layers.png and heads-*.png the scores by layer and head; samples.csv, heads.csv, symmetry.npz and
summary.json the values. Without --data-root the captions are those of data/spatial_twoshapes if present, else
synthetic. The embedded model takes 20 seconds for 300.
"""

from __future__ import annotations

from dataclasses import dataclass

from analysis import command
from analysis.resume import SampleOutput
from analysis.text_symmetry import SymmetrySettings
from data.spatial_samples import Captions
from models.loading import Load
from text_only_llm_analysis_llava import main


@dataclass(frozen=True)
class Config:
    load: Load = Load(model="tiny-qwen2-vl")
    """Language model of a vision-language model, or a plain causal language model, such as a Qwen2.5 folder
    or a .gguf file."""
    captions: Captions = Captions(limit=0)
    symmetry: SymmetrySettings = SymmetrySettings(layers="all", examples=4)
    output: SampleOutput = SampleOutput()


if __name__ == "__main__":
    command.run(main, Config, __doc__)
