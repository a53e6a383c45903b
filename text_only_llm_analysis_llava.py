"""Symmetry of attention in captions without an image: from the relation word to the entities, or to their positions.

    python text_only_llm_analysis_llava.py
    python text_only_llm_analysis_llava.py --data-root data/generated/twoshapes
    python text_only_llm_analysis_llava.py --model tinyllama-folder --layers mid_third

Input of the language model is each caption and its three counterfactuals: the entities swapped, the relation flipped,
and both. The asymmetry of a sentence is (m1 - m2) / (m1 + m2), with m1 and m2 the attention of the relation word to the
entity named first and second; a pair's symmetry score is its distance from the ideal line: 0 where attention follows
the entities, not their positions (definitions: analysis/text_symmetry.py). The control is the article before each
entity. pairs.png has the scatter with the ideal line of symmetry, examples.png some captions as bars, layers.png and
heads-*.png the scores by layer and head; samples.csv, heads.csv, symmetry.npz and summary.json the values. Without
--data-root the captions are those of data/spatial_twoshapes if present, else synthetic. The embedded model takes 20
seconds for 300.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis import command
from analysis.resume import Result, Run, SampleOutput
from analysis.text_symmetry import (
    COLUMNS,
    SENTENCES,
    Asymmetries,
    SymmetrySettings,
    relation_attention,
    sample_row,
    save_study,
)
from analysis.words import select_layers
from data.folders import following_links
from data.spatial_samples import Caption, Captions, gather_captions
from models.generation import read_text
from models.loading import Load, describe
from models.text import load


@dataclass(frozen=True)
class Config:
    load: Load = Load(model="tiny-llava")
    """Language model of a vision-language model, or a plain causal language model, such as a Vicuna or Llama folder
    or a .gguf file."""
    captions: Captions = Captions(limit=0)
    symmetry: SymmetrySettings = SymmetrySettings(layers="all", examples=4)
    output: SampleOutput = SampleOutput()


def main(config: Config) -> int:
    with Run.of(config) as run:
        with run.gathering(), command.setting_up(), following_links(config.captions.follow_links):
            captions, unusable, source = gather_captions(config.captions)
            print(source)
            if run.claim(config.load.model, captions, data=source.facts()):
                return command.conclude_finished(run.folder)
        with command.setting_up():
            model, processor = load(config.load.model, **run.load_options)
            layers = select_layers(config.symmetry.layers, model.config.get_text_config().num_hidden_layers)
            run.start(COLUMNS, model=describe(model), layers=layers)

        def measure(caption: Caption) -> Result:
            attention = []
            for name in SENTENCES:
                sentence = caption.sentences[name]
                trace, layout = read_text(model, processor, sentence.text, config.symmetry.offload)
                words = [layout.word(word, occurrence) for word, occurrence in sentence.words]
                relation = layout.word(sentence.relation, -1)
                attention.append(relation_attention(trace, layout.sample, relation, words))
            return Result(sample_row(caption, np.stack(attention), layers), {"attention": np.stack(attention)})

        run.measure(captions, measure, unusable)
        if not run.leads:
            return 0
        parts = list(run.results())
        summary = {}
        if parts:
            asymmetries = Asymmetries(np.stack([part.values["attention"] for part in parts]), layers)
            measured = [captions[part.index] for part in parts]
            summary = save_study(run, measured, asymmetries, config.symmetry.examples, config.captions.seed)
        run.finish(summary)
        return command.conclude(run)


if __name__ == "__main__":
    command.run(main, Config, __doc__)
