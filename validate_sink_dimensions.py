"""Precision and recall of sink dimensions for the most attended tokens, compared with random dimensions.

    python validate_sink_dimensions.py --model model.gguf --text README.md --dimensions 507 --tau 17
    python validate_sink_dimensions.py --dimensions 42 16 --tau 1.7
    python validate_sink_dimensions.py --model MODEL --data-root PICTURES --prompt "what is this ?" --file sinks.json

Tokens that spike in the given dimensions are compared with the tenth of the tokens that receives most attention, with
intervals: over all layers that VAR edits, per layer, for other values of tau, and for random dimensions. Without
--dimensions and --file, the known dimensions of the model's language model are used.
The verdict is good (precision > 0.5 and recall > 0.3), fair (precision > 0.3) or poor; the exit status is 0 for good
and 1 otherwise. summary.json has the values, agreement.png draws them, samples.csv has those of each prompt.
Two forward passes per prompt; the embedded model takes a second per ten images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from analysis import command
from analysis.plots import Panel, precision_and_recall
from analysis.runs import Output, RunFolder, flat_flags, measure_each
from analysis.sinks import (
    Agreement,
    ProbeSettings,
    RandomControl,
    SinkDimensions,
    Spikes,
    attention_received,
    edited_layers,
    random_sets,
    spike,
    watch,
)
from data.folders import following_links
from data.images import read_image
from data.prompts import Prompt, Prompts, gather_prompts
from models.attention import prefill, residual_stream
from models.loading import Load, describe
from models.text import load
from models.trace import AttentionTrace
from models.var import VAR

COLUMNS = ("tokens", "candidates", "detected", "precision", "recall")
SWEEP = 12  # values of tau, evenly spaced up to the largest possible one


@dataclass(frozen=True)
class Config:
    load: Load = Load(model="tiny-llava")
    """Vision-language model, causal language model, or .gguf file."""
    prompts: Prompts = Prompts(num_samples=20)
    sinks: SinkDimensions = SinkDimensions(dimensions=(), tau=None)
    probe: ProbeSettings = ProbeSettings(top_percent=0.1)
    control: RandomControl = RandomControl(random_sets=20)
    output: Output = Output()


def main(config: Config) -> int:
    with command.setting_up(), following_links(config.prompts.follow_links):
        config.sinks.check_file()
        prompts, unusable, source = gather_prompts(config.prompts)
        print(source)
        out_dir = config.output.folder(config, config.load.model)
        model, processor = load(config.load.model, **config.load.options)
        settings = config.sinks.for_model(model)
        decoder = model.get_decoder().config
        edited = edited_layers(decoder.num_hidden_layers)
        rng = np.random.default_rng(config.control.seed)
        sets = random_sets(decoder.hidden_size, settings.dimensions, config.control.random_sets, rng)
    about = {"flags": flat_flags(config), "model": describe(model), "data": source.facts()}
    run = RunFolder.create(out_dir, about, COLUMNS)
    sweep = [math.sqrt(decoder.hidden_size) * step / (SWEEP + 1) for step in range(1, SWEEP + 1)]
    agreement = Agreement(settings.tau, tuple(sweep), config.probe.top_percent)

    def probe(prompt: Prompt) -> dict:
        images = [read_image(prompt.path)] if prompt.path else []
        inputs, layout = model.prepare(processor, images, prompt.text)
        watched = watch(layout)
        with AttentionTrace(model, offload=config.probe.offload) as trace:
            prefill(model, inputs)
        received = attention_received(trace, watched).numpy()
        del trace
        spikes = Spikes(watched.candidates, sets)
        with residual_stream(model, spikes.see):
            prefill(model, inputs)
        counts = agreement.add(spikes.values, received)
        return {
            "tokens": layout.length - layout.start,
            "candidates": len(watched.candidates),
            "detected": int(counts.detected[edited].sum()),
            "precision": counts.precision(edited),
            "recall": counts.recall(edited),
        }

    measure_each(run, prompts, probe, unusable)
    if not agreement.counts:
        run.finish({})
        return command.conclude(run)
    summary = agreement.summary()
    run.finish({"dimensions": settings.dimensions, "tau": settings.tau, "source": settings.source, **summary})
    run.save(draw(settings, summary, run.done), "agreement.png")
    print_findings(settings, summary, decoder.hidden_size)
    return command.conclude(run) or (0 if summary["verdict"] == "good" else 1)


def draw(settings: VAR, summary: dict, samples: int):
    """Precision and recall by layer and tau, with those of random dimensions that detect the same number of tokens."""
    numbers = " ".join(map(str, settings.dimensions))
    title = f"dimension{'s' * (len(settings.dimensions) > 1)} {numbers} at tau {settings.tau:g}, n = {samples} prompts"
    by_layer, by_tau = summary["by_layer"], summary["by_tau"]
    panels = [
        Panel(f"layer (at tau {settings.tau:g})", [scores["layer"] for scores in by_layer], by_layer),
        Panel("tau (over the layers that VAR edits)", [scores["tau"] for scores in by_tau], by_tau, settings.tau),
    ]
    return precision_and_recall(panels, summary["chance"], summary["random_same_count"]["precision"], title)


def print_findings(settings: VAR, summary: dict, width: int) -> None:
    print(f"dimensions {' '.join(map(str, settings.dimensions))} ({settings.source}) at tau {settings.tau:g}")
    for name, scores in {
        "these dimensions": summary,
        "random, the same tau": summary["random_same_tau"],
        "random, as many tokens": summary["random_same_count"],
    }.items():
        precision, recall = interval(scores["precision"]), interval(scores["recall"])
        print(f"{name:24} precision {precision}, recall {recall}, {scores['detected']:.2f} tokens a layer")
    for at in summary["by_tau"]:
        precision, recall = interval(at["precision"]), interval(at["recall"])
        print(f"tau {at['tau']:<20.1f} precision {precision}, recall {recall}, {at['detected']:.2f} tokens a layer")
    if settings.tau < spike(width):
        print(
            f"tau {settings.tau:g} is below {spike(width):.1f}, where a spike begins in a model {width} wide: what "
            "agrees with the attention there may be content and no sink"
        )
    print(f"verdict: {summary['verdict']}")


def interval(value: dict) -> str:
    if value["mean"] is None:
        return "undefined"
    bounds = "" if value["low"] is None else f" [{value['low']:.2f}, {value['high']:.2f}]"
    return f"{value['mean']:.2f}{bounds} (n={value['n']})"


if __name__ == "__main__":
    command.run(main, Config, __doc__)
