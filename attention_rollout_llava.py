"""Where did LLaVA look when it wrote each word of its answer?

    python attention_rollout_llava.py --image photo.jpg --prompt "describe the image ."
    python attention_rollout_llava.py --data-root data/generated/twoshapes --limit 4

Per picture: overlays of the mean and the maximum over the answer's tokens, a strip with one overlay per token, the
share of attention on the image, and the raw maps (maps.npz). Beside them samples.csv, summary.json, settings.json.
`python -m data.twoshapes --out-dir data/generated/twoshapes` makes a set to try it on.
The embedded model takes about a second a picture; the weights of LLaVA-1.5-7B alone are 14 GB in half precision.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Literal

import matplotlib
import numpy as np
from tqdm import tqdm

import models
from analysis import command
from analysis.gallery import Look, save_answer
from analysis.overlay import COLOURMAP
from analysis.results import RunFolder, default_out_dir, refuse_existing
from analysis.rollout import answer_rows, rollout
from analysis.shares import image_share
from analysis.statistics import mean_interval
from data.images import ImageError, read_image
from data.samples import Sample, collect
from models.answer import answer
from models.errors import SampleError
from models.flags import LoadFlags
from models.loading import describe


@dataclass(frozen=True)
class Config(LoadFlags):
    model: str = "tiny-llava"
    """Embedded model, folder, or hub id such as llava-hf/llava-1.5-7b-hf."""
    image: tuple[str, ...] = ()
    """One picture or several."""
    data_root: str | None = None
    """Instead of --image: a folder of pictures, or one that holds spatial_twoshapes/."""
    prompt: str | None = None
    """What to ask. A two-shapes set brings its own questions; given here, it replaces them."""
    limit: int = 8
    """Use at most so many samples of --data-root; 0 uses all."""
    max_new_tokens: int = 16
    """Longest answer, in tokens."""
    rows: Literal["predicting", "query"] = "predicting"
    """Map of a token: the row that predicted it, or the row in which it is read as the query."""
    residual: float = 0.5
    """Weight w of the identity in each layer's (1 - w) A + w I."""
    drop_first: bool = False
    """Leave out attention to the first token, where many models park what they do not need."""
    offload: bool = False
    """Keep recorded queries on the CPU, for long prompts on a small GPU."""
    alpha: float = 0.7
    """Opacity of the overlay where attention is highest."""
    power: float = 1.5
    """Exponent on the map before it is coloured; higher shows only the peaks."""
    blur: float = 0.5
    """Standard deviation of the overlay's blur, in cells."""
    colourmap: str = COLOURMAP
    """Any colour map of matplotlib, such as jet for comparison with papers."""
    seed: int = 0
    """Seed of the summary's bootstrap interval; the answers are greedy."""
    out_dir: str | None = None
    """New or empty folder for the results (default: results/attention_rollout_llava/<model>-<date>)."""


COLUMNS = ("image", "prompt", "answer", "gold", "tokens", "probability", "image_share", "folder")


def main(config: Config) -> int:
    with command.setting_up():
        check(config)
        samples, unusable = collect(config.image, config.data_root, config.prompt, config.limit)
        out_dir = refuse_existing(config.out_dir or default_out_dir(__file__, config.model))
        model, processor = models.load(config.model, **config.loading)
    run = RunFolder.create(out_dir, {"flags": asdict(config), "model": describe(model)}, COLUMNS)
    for name, reason in unusable:
        run.skip(name, reason)
    shares = []
    for sample in tqdm(samples, unit="picture"):
        try:
            row = look(run, model, processor, config, sample)
        except (ImageError, SampleError) as error:
            tqdm.write(f"skipped {sample.name}: {error}", file=sys.stderr)
            run.skip(sample.name, error.reason)
            continue
        run.add(sample.name, image=sample.path, prompt=sample.prompt, gold=sample.gold, **row)
        shares.append(row["image_share"])
    run.finish({"rows": config.rows, "image_share": mean_interval(shares, config.seed)})
    print(f"{run.done} of {run.done + run.skipped.total()} samples done; results in {run.folder}")
    return 0 if run.done else command.NOTHING_USABLE


def look(run: RunFolder, model, processor, config: Config, sample: Sample) -> dict:
    """Asks, rolls out, draws; returns the sample's row."""
    picture = read_image(sample.path)
    said = answer(
        model, processor, [picture], sample.prompt, max_new_tokens=config.max_new_tokens, offload=config.offload
    )
    if said.unknown:
        tqdm.write(f"note: {config.model} does not know the words {', '.join(said.unknown)}", file=sys.stderr)
    count = min(len(said.tokens), len(answer_rows(said.trace, config.rows)))
    if count == 0:
        raise SampleError("no query row", "the answer is one token that was never read again; use --rows predicting")
    rolled = rollout(
        said.trace, said.layout, tokens=count, rows=config.rows, residual=config.residual, drop_first=config.drop_first
    )
    share = image_share(said.trace, said.layout, rows=config.rows, tokens=count).mean(0)
    style = Look(config.alpha, config.power, config.blur, config.colourmap)
    folder = save_answer(run, sample.name, [picture], said.tokens[:count], rolled, share, style)
    return {
        "answer": said.text,
        "tokens": len(said.tokens),
        "probability": float(np.mean(said.probabilities)),
        "image_share": float(share.mean()),
        "folder": folder.name,
    }


def check(config: Config) -> None:
    """Raises ValueError for flags that cannot work, before anything is loaded."""
    if config.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens {config.max_new_tokens} must be at least 1")
    if not 0 <= config.residual < 1:
        raise ValueError(f"--residual {config.residual} is out of range; give 0 <= w < 1")
    if not 0 <= config.alpha <= 1 or config.power <= 0 or config.blur < 0:
        raise ValueError("give --alpha within 0..1, --power above 0 and --blur of at least 0")
    if config.colourmap not in matplotlib.colormaps:
        raise ValueError(f"--colourmap {config.colourmap!r} is unknown to matplotlib; try turbo, viridis or jet")


if __name__ == "__main__":
    command.run(main, Config, __doc__)
