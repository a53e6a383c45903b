"""Find the sink dimensions that VAR needs: hidden dimensions with spikes at the most attended tokens.

    python find_sink_dimensions_simple.py --model tiny-llava
    python find_sink_dimensions_simple.py --model model.gguf --text README.md

sink_dimensions.json has at most two recommended dimensions and a threshold tau, or none and the reason; the dimensions
that are consistent over layers, for each half of the samples separately, and the largest of every layer. `visual` and
`text` of a consistent dimension are the numbers of image tokens and of other tokens with a spike in it, per counted
layer and prompt. heatmap.png shows layers x dimensions; samples.csv has the results per prompt.
docs/sink-dimensions.md explains the interpretation; validate_sink_dimensions.py validates the result.
Two forward passes per prompt. The embedded model takes a second per ten images; it has no sinks, which is reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis import command
from analysis.files import write_json
from analysis.plots import dimension_heatmap
from analysis.resume import Result, Run, SampleOutput
from analysis.sinks import (
    FIRST_LAYER,
    KINDS,
    Contrast,
    FindingsFile,
    KindCounts,
    ProbeSettings,
    Profile,
    SinkSearch,
    attention_received,
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

COLUMNS = ("tokens", "candidates", "rows", "top_share")
SHOWN = 20  # dimensions in the heatmap


@dataclass(frozen=True)
class Config:
    load: Load = Load(model="tiny-llava")
    """Vision-language model, causal language model, or .gguf file."""
    prompts: Prompts = Prompts(num_samples=20)
    probe: ProbeSettings = ProbeSettings(top_percent=0.1)
    findings: FindingsFile = FindingsFile()
    output: SampleOutput = SampleOutput()


def main(config: Config) -> int:
    with Run.of(config) as run:
        with run.gathering(), command.setting_up(), following_links(config.prompts.follow_links):
            prompts, unusable, source = gather_prompts(config.prompts)
            print(source)
            if run.claim(config.load.model, prompts, data=source.facts()):
                return command.conclude_finished(run.folder)
            output = config.findings.path(run.folder, run.continued)
        with command.setting_up():
            model, processor = load(config.load.model, **run.load_options)
            run.start(COLUMNS, model=describe(model))

        def probe(prompt: Prompt) -> Result:
            images = [read_image(prompt.path)] if prompt.path else []
            inputs, layout = model.prepare(processor, images, prompt.text)
            watched = watch(layout)
            with AttentionTrace(model, offload=config.probe.offload) as trace:
                prefill(model, inputs)
            contrast = Contrast(attention_received(trace, watched), watched.candidates, config.probe.top_percent)
            del trace
            kinds = KindCounts(layout, lambda magnitude: magnitude >= spike(magnitude.shape[1]))
            with residual_stream(model, contrast.see), residual_stream(model, kinds.see):
                prefill(model, inputs)
            tokens, rows = layout.length - layout.start, watched.last - watched.first
            counts = {"tokens": tokens, "candidates": len(watched.candidates), "rows": rows}
            row = {**counts, "top_share": round(contrast.top_share, 4)}
            return Result(row, {"statistics": contrast.statistics, "kinds": kinds.values})

        run.measure(prompts, probe, unusable)
        about = {"model": config.load.model, "revision": describe(model)["revision"], "dataset": source.place}
        return report(run, {**about, "top_percent": config.probe.top_percent}, output) if run.leads else 0


def report(run: Run, about: dict, output: Path) -> int:
    """Write the findings, headed by `about`, to `output`, and the figure and page; return the exit status."""
    search, kinds = SinkSearch(), 0
    for part in run.results():
        search.add(part.values["statistics"])
        kinds = kinds + part.values["kinds"][:, FIRST_LAYER:].mean(1)  # [kind, width]
    if not search.samples:
        run.finish({})
        return command.conclude(run)
    profile, findings = search.profile(), search.findings()
    for dimension in findings["consistent_dimensions"]:
        dimension |= dict(zip(KINDS, (kinds / search.samples)[:, dimension["dim"]].tolist(), strict=True))
    run.save(draw(profile, search.samples), "heatmap.png")
    write_json(output, {**about, **findings})
    run.finish({name: findings[name] for name in ("recommended_dimensions", "tau", "reason", "consistent_dimensions")})
    print_findings(findings, output)
    return command.conclude(run)


def draw(profile: Profile, samples: int):
    """Heatmap of the dimensions of largest gap in any layer, mean over samples; dots where one stands out."""
    shown = np.sort(np.argsort(-profile.gap.max(0), kind="stable")[:SHOWN])
    title = f"|x| / RMS(x): the most attended tokens above the rest (dot: a spike); mean over n = {samples} prompts"
    return dimension_heatmap(profile.gap[:, shown], shown.tolist(), profile.stands_out[:, shown], title)


def print_findings(findings: dict, output: Path) -> None:
    for dimension in findings["consistent_dimensions"][:5]:
        other = dimension["other_half_score"]
        held = "" if other is None else f", chosen on one half and measured on the other {other:.2f}"
        print(
            f"dimension {dimension['dim']}: stands out in {dimension['frequency']} layers, "
            f"gap {dimension['avg_score']:.2f}{held}; spikes at {dimension['visual']:.2f} image tokens and "
            f"{dimension['text']:.2f} others a layer"
        )
    recommended = findings["recommended_dimensions"]
    if recommended:
        print(f"recommended: {' '.join(map(str, recommended))}, tau {findings['tau']} ({findings['reason']})")
    else:
        print(f"no dimension is recommended: {findings['reason']}")
    print(f"written to {output}")


if __name__ == "__main__":
    command.run(main, Config, __doc__)
