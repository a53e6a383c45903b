"""Which hidden dimensions spike at the tokens that receive most attention: the sink dimensions that VAR needs.

    python find_sink_dimensions_simple.py --model tiny-llava
    python find_sink_dimensions_simple.py --model model.gguf --text README.md

sink_dimensions.json has at most two recommended dimensions and a threshold tau, or none and the reason; the dimensions
that are consistent over layers, each half of the samples by itself, and the largest of every layer. heatmap.png shows
layers x dimensions; samples.csv what each prompt gave. docs/sink-dimensions.md explains what good looks like;
validate_sink_dimensions.py checks what is found here.
A prompt passes the model twice. The embedded model takes a second per ten pictures; it has no sinks, and is told so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from analysis import command
from analysis.plots import dimension_heatmap
from analysis.runs import RunFolder, check_place, default_out_dir, measure_each, refuse_existing, write_json
from analysis.sinks import Contrast, Profile, SinkSearch, attention_received, check_top_percent, watch
from data.folders import following_links
from data.images import read_image
from data.samples import Prompt, PromptFlags, gather_prompts
from models.attention import prefill, residual_stream
from models.loading import LoadFlags, describe
from models.text import load
from models.trace import AttentionTrace

COLUMNS = ("tokens", "candidates", "rows", "top_share")
SHOWN = 20  # dimensions in the heatmap


@dataclass(frozen=True)
class Config(LoadFlags, PromptFlags):
    model: str = "tiny-llava"
    """Embedded model, folder or hub id, of images and text or of text alone; or a .gguf file."""
    top_percent: float = 0.1
    """Fraction of the tokens that counts as most attended."""
    offload: bool = False
    """Keep recorded queries and keys on the CPU, for long prompts on a small GPU."""
    output: str | None = None
    """Where to write the JSON (default: sink_dimensions.json in the results folder)."""
    out_dir: str | None = None
    """New or empty folder for the results (default: results/<script>/<model>-<date>)."""

    def written(self, out_dir: Path) -> Path:
        """Where the JSON will be. Raises FileExistsError or ValueError where it cannot be."""
        if self.output is None:
            return out_dir / "sink_dimensions.json"
        output = Path(self.output)
        if output.exists() or out_dir.absolute().is_relative_to(output.absolute()):
            raise FileExistsError(f"{output} exists, and nothing is ever overwritten: pass another --output")
        check_place(output, "--output")
        return output


def main(config: Config) -> int:
    with command.setting_up(), following_links(config.follow_links):
        check_top_percent(config.top_percent)
        prompts, unusable, source = gather_prompts(config)
        print(source)
        out_dir = refuse_existing(config.out_dir or default_out_dir(__file__, config.model))
        output = config.written(out_dir)
        model, processor = load(config.model, **config.loading)
    settings = {"flags": asdict(config), "model": describe(model), "data": source.facts()}
    run = RunFolder.create(out_dir, settings, COLUMNS)
    search = SinkSearch()

    def probe(prompt: Prompt) -> dict:
        pictures = [read_image(prompt.path)] if prompt.path else []
        inputs, layout = model.prepare(processor, pictures, prompt.text)
        watched = watch(layout)
        with AttentionTrace(model, offload=config.offload) as trace:
            prefill(model, inputs)
        contrast = Contrast(attention_received(trace, watched), watched.candidates, config.top_percent)
        del trace
        with residual_stream(model, contrast.see):
            prefill(model, inputs)
        search.add(contrast)
        tokens, rows = layout.length - layout.start, watched.last - watched.first
        counts = {"tokens": tokens, "candidates": len(watched.candidates), "rows": rows}
        return {**counts, "top_share": round(contrast.top_share, 4)}

    measure_each(run, prompts, probe, unusable)
    if not search.samples:
        run.finish({})
        return command.conclude(run)
    profile, findings = search.profile(), search.findings()
    run.save(draw(profile, search.samples), "heatmap.png")
    run.finish({name: findings[name] for name in ("recommended_dimensions", "tau", "reason", "consistent_dimensions")})
    about = {"model": config.model, "revision": describe(model)["revision"], "dataset": source.place}
    write_json(output, {**about, "top_percent": config.top_percent, **findings})
    tell(findings, output)
    return command.conclude(run)


def draw(profile: Profile, samples: int):
    """The dimensions of largest gap in any layer, all layers, mean over samples; dots where one stands out."""
    shown = np.sort(np.argsort(-profile.gap.max(0), kind="stable")[:SHOWN])
    title = f"|x| / RMS(x): the most attended tokens above the rest (dot: a spike); mean over n = {samples} prompts"
    return dimension_heatmap(profile.gap[:, shown], shown.tolist(), profile.stands_out[:, shown], title)


def tell(findings: dict, output: Path) -> None:
    for each in findings["consistent_dimensions"][:5]:
        other = each["other_half_score"]
        held = "" if other is None else f", chosen on one half and measured on the other {other:.2f}"
        print(f"dimension {each['dim']}: stands out in {each['frequency']} layers, gap {each['avg_score']:.2f}{held}")
    recommended = findings["recommended_dimensions"]
    if recommended:
        print(f"recommended: {' '.join(map(str, recommended))}, tau {findings['tau']} ({findings['reason']})")
    else:
        print(f"no dimension is recommended: {findings['reason']}")
    print(f"written to {output}")


if __name__ == "__main__":
    command.run(main, Config, __doc__)
