"""Precision and recall of sink dimensions for the most attended tokens, compared with random dimensions.

    python validate_sink_dimensions.py --model model.gguf --text README.md --dimensions 507 --tau 17
    python validate_sink_dimensions.py --dimensions 42 16 --tau 1.7
    python validate_sink_dimensions.py --model MODEL --data-root PICTURES --prompt "what is this ?" --file sinks.json

Tokens that spike in the given dimensions are compared with the tenth of the tokens that receives most attention, with
intervals: over all layers that VAR edits, per layer, for other values of tau, and for random dimensions. Without
--dimensions and --file, the known dimensions of the model's language model are used.
The verdict is good (precision > 0.5 and recall > 0.3), fair (precision > 0.3) or poor; the exit status is 0 for good
and 1 otherwise. `kinds` counts the sinks of the whole prompt on image tokens (visual) and on other tokens (text).
summary.json has the values, agreement.png draws them, samples.csv has those of each prompt.
Two forward passes per prompt; the embedded model takes a second per ten images.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from analysis import command
from analysis.plots import Panel, precision_and_recall
from analysis.resume import Result, Run, SampleOutput
from analysis.runs import SUMMARY
from analysis.sinks import (
    KindCounts,
    ProbeSettings,
    RandomControl,
    SampleCounts,
    SinkDimensions,
    Spikes,
    agreement,
    attention_received,
    count_sample,
    edited_layers,
    random_sets,
    spike,
    summarise_kinds,
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
    output: SampleOutput = SampleOutput()


def main(config: Config) -> int:
    with Run.of(config) as run:
        with run.gathering(), command.setting_up(), following_links(config.prompts.follow_links):
            config.sinks.check_file()
            prompts, unusable, source = gather_prompts(config.prompts)
            print(source)
            if run.claim(config.load.model, prompts, data=source.facts()):
                return command.conclude_finished(run.folder) or status(run.folder)
        with command.setting_up():
            model, processor = load(config.load.model, **run.load_options)
            settings = config.sinks.for_model(model)
            decoder = model.get_decoder().config
            edited = edited_layers(decoder.num_hidden_layers)
            rng = np.random.default_rng(config.control.seed)
            sets = random_sets(decoder.hidden_size, settings.dimensions, config.control.random_sets, rng)
            run.start(COLUMNS, model=describe(model))
        sweep = [math.sqrt(decoder.hidden_size) * step / (SWEEP + 1) for step in range(1, SWEEP + 1)]

        def probe(prompt: Prompt) -> Result:
            images = [read_image(prompt.path)] if prompt.path else []
            inputs, layout = model.prepare(processor, images, prompt.text)
            watched = watch(layout)
            with AttentionTrace(model, offload=config.probe.offload) as trace:
                prefill(model, inputs)
            received = attention_received(trace, watched).numpy()
            del trace
            spikes = Spikes(watched.candidates, sets)
            kinds = KindCounts(layout, partial(detected, settings=settings))
            with residual_stream(model, spikes.see), residual_stream(model, kinds.see):
                prefill(model, inputs)
            counts = count_sample(spikes.values, received, settings.tau, sweep, config.probe.top_percent)
            row = {
                "tokens": layout.length - layout.start,
                "candidates": len(watched.candidates),
                "detected": int(counts.own.detected[edited].sum()),
                "precision": counts.own.precision(edited),
                "recall": counts.own.recall(edited),
            }
            return Result(row, {"counts": counts, "kinds": kinds.values})

        run.measure(prompts, probe, unusable)
        return report(run, settings, sweep, decoder.hidden_size) if run.leads else 0


def report(run: Run, settings: VAR, sweep: list[float], width: int) -> int:
    """Write the summary, figure and page; return the exit status."""
    samples, kinds = [], []
    for part in run.results():
        samples.append(SampleCounts.stored(part.values["counts"]))
        kinds.append(part.values["kinds"])
    if not samples:
        run.finish({})
        return command.conclude(run)
    summary = {**agreement(samples, sweep), "kinds": summarise_kinds(kinds)}
    run.save(draw(settings, summary, len(samples)), "agreement.png")
    run.finish({"dimensions": settings.dimensions, "tau": settings.tau, "source": settings.source, **summary})
    print_findings(settings, summary, width)
    return command.conclude(run) or status(run.folder)


def detected(magnitude: torch.Tensor, settings: VAR) -> torch.Tensor:
    """Sinks among tokens of these magnitudes [row, width], bool [row]."""
    return (magnitude[:, list(settings.dimensions)] > settings.tau).any(1)


def status(folder: Path) -> int:
    """Exit status of a finished run: 0 for the verdict good, else 1."""
    return int(json.loads((folder / SUMMARY).read_bytes())["verdict"] != "good")


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
    print_kinds(summary["kinds"])
    print(f"verdict: {summary['verdict']}")


def print_kinds(kinds: dict) -> None:
    """Print the numbers of visual and text sinks of the whole prompt."""
    without = kinds["layers_without_visual"]
    where = f"; layers without a visual sink: {' '.join(map(str, without))}" if without else ""
    print(f"sinks a layer: {kinds['visual']['mean']:.2f} visual, {kinds['text']['mean']:.2f} text{where}")


def interval(value: dict) -> str:
    if value["mean"] is None:
        return "undefined"
    bounds = "" if value["low"] is None else f" [{value['low']:.2f}, {value['high']:.2f}]"
    return f"{value['mean']:.2f}{bounds} (n={value['n']})"


if __name__ == "__main__":
    command.run(main, Config, __doc__)
