"""Do these dimensions pick the tokens that receive the attention?

    python validate_sink_dimensions.py --model model.gguf --text README.md --dimensions 507 --tau 17
    python validate_sink_dimensions.py --dimensions 42 16 --tau 1.7
    python validate_sink_dimensions.py --model MODEL --data-root PICTURES --prompt "what is this ?" --file sinks.json

Precision and recall of the tokens that spike in the given dimensions against the tenth of the tokens that receives
most attention, with intervals: over all layers that VAR edits, per layer, for other values of tau, and for random
dimensions. Without --dimensions and --file, the dimensions that are known of the model's language model.
The verdict is good (precision > 0.5 and recall > 0.3), fair (precision > 0.3) or poor; the exit status is 0 when it is
good and 1 when not. summary.json has the figures, agreement.png shows them, samples.csv has those of each prompt.
A prompt passes the model twice; the embedded model takes a second per ten pictures.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from analysis import command
from analysis.plots import Panel, precision_and_recall
from analysis.runs import RunFolder, default_out_dir, measure_each, refuse_existing
from analysis.sinks import (
    Agreement,
    Spikes,
    attention_received,
    check_top_percent,
    edited_layers,
    random_sets,
    spike,
    watch,
)
from data.folders import following_links
from data.images import read_image
from data.samples import Prompt, PromptFlags, gather_prompts
from models.attention import prefill, residual_stream
from models.loading import LoadFlags, describe
from models.text import load
from models.trace import AttentionTrace
from models.var import VAR, read_findings

COLUMNS = ("tokens", "candidates", "detected", "precision", "recall")
SWEEP = 12  # values of tau, evenly spaced up to the largest that is possible


@dataclass(frozen=True)
class Config(LoadFlags, PromptFlags):
    model: str = "tiny-llava"
    """Embedded model, folder or hub id, of images and text or of text alone; or a .gguf file."""
    dimensions: tuple[int, ...] = ()
    """Hidden dimensions, counted from 0."""
    file: str | None = None
    """Instead of --dimensions: what find_sink_dimensions_simple.py wrote."""
    tau: float | None = None
    """A token is a sink where |RMSNorm(x)| is above tau in one of the dimensions (default: the file's, else 20, which
    belongs to a model 4096 wide)."""
    top_percent: float = 0.1
    """Fraction of the tokens that counts as most attended."""
    random_sets: int = 20
    """How many sets of random dimensions stand beside the given ones."""
    seed: int = 0
    """Seed of the random dimensions."""
    offload: bool = False
    """Keep recorded queries and keys on the CPU, for long prompts on a small GPU."""
    out_dir: str | None = None
    """New or empty folder for the results (default: results/<script>/<model>-<date>)."""

    def check(self) -> None:
        """Raises ValueError for flags that cannot work with any model, FileNotFoundError for a missing file."""
        check_top_percent(self.top_percent)
        if self.random_sets < 1:
            raise ValueError(f"--random-sets {self.random_sets} must be at least 1")
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed} is negative; give 0 or more")
        if self.dimensions and self.file:
            raise ValueError("--dimensions and --file were both given; choose one")
        found = read_findings(self.file).dimensions if self.file else self.dimensions
        VAR(found or (0,), **self.threshold)

    @property
    def threshold(self) -> dict[str, float]:
        return {} if self.tau is None else {"tau": self.tau}

    def settings(self, model) -> VAR:
        """What is validated on this model. Raises as `VAR.for_model` does."""
        return VAR.for_model(model, self.dimensions or None, self.file, **self.threshold)


def main(config: Config) -> int:
    with command.setting_up(), following_links(config.follow_links):
        config.check()
        prompts, unusable, source = gather_prompts(config)
        print(source)
        out_dir = refuse_existing(config.out_dir or default_out_dir(__file__, config.model))
        model, processor = load(config.model, **config.loading)
        settings = config.settings(model)
        decoder = model.get_decoder().config
        edited = edited_layers(decoder.num_hidden_layers)
        rng = np.random.default_rng(config.seed)
        sets = random_sets(decoder.hidden_size, settings.dimensions, config.random_sets, rng)
    about = {"flags": asdict(config), "model": describe(model), "data": source.facts()}
    run = RunFolder.create(out_dir, about, COLUMNS)
    sweep = [math.sqrt(decoder.hidden_size) * step / (SWEEP + 1) for step in range(1, SWEEP + 1)]
    agreement = Agreement(settings.tau, tuple(sweep), config.top_percent)

    def probe(prompt: Prompt) -> dict:
        pictures = [read_image(prompt.path)] if prompt.path else []
        inputs, layout = model.prepare(processor, pictures, prompt.text)
        watched = watch(layout)
        with AttentionTrace(model, offload=config.offload) as trace:
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
    tell(settings, summary, decoder.hidden_size)
    return command.conclude(run) or (0 if summary["verdict"] == "good" else 1)


def draw(settings: VAR, summary: dict, samples: int):
    """Precision and recall by layer and by tau, over those of random dimensions that detect as many tokens."""
    numbers = " ".join(map(str, settings.dimensions))
    title = f"dimension{'s' * (len(settings.dimensions) > 1)} {numbers} at tau {settings.tau:g}, n = {samples} prompts"
    by_layer, by_tau = summary["by_layer"], summary["by_tau"]
    panels = [
        Panel(f"layer (at tau {settings.tau:g})", [each["layer"] for each in by_layer], by_layer),
        Panel("tau (over the layers that VAR edits)", [each["tau"] for each in by_tau], by_tau, settings.tau),
    ]
    return precision_and_recall(panels, summary["chance"], summary["random_same_count"]["precision"], title)


def tell(settings: VAR, summary: dict, width: int) -> None:
    print(f"dimensions {' '.join(map(str, settings.dimensions))} ({settings.source}) at tau {settings.tau:g}")
    for name, scores in {
        "these dimensions": summary,
        "random, the same tau": summary["random_same_tau"],
        "random, as many tokens": summary["random_same_count"],
    }.items():
        precision, recall = interval(scores["precision"]), interval(scores["recall"])
        print(f"{name:24} precision {precision}, recall {recall}, {scores['detected']:.2f} tokens a layer")
    for each in summary["by_tau"]:
        precision, recall = interval(each["precision"]), interval(each["recall"])
        print(f"tau {each['tau']:<20.1f} precision {precision}, recall {recall}, {each['detected']:.2f} tokens a layer")
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
