"""Methods of `evaluate.py --method`: one entry of METHODS each.

An entry states a method's help, its flags and how the flags become an intervention. From the entry follow the choices
of --method, --help, settings.json, the refusal of flags of another method, and the hashes that decide whether a run may
resume. docs/extending.md adds one.

    --method python:MODULE:CALLABLE

is an intervention of the user's own: CALLABLE() is called once and returns an object with `plan(prompt)`
(`models.interventions.Intervention`). MODULE is found and compared between runs like that of a runner
(`models.answering`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Literal

import tyro
from transformers import PreTrainedConfig

from data.gaze_samples import ScanpathSettings
from data.geometry import ImageGrid
from models import answering
from models.adapt_vis import AdaptVis, confidence
from models.answering import BatchSteering
from models.folders import contents
from models.gaze import Gaze, GazeMask, check_layers, parse_mask_type
from models.interventions import Intervention
from models.knockout import Knockout, RowSet, TokenSet
from models.pai import PAI
from models.vaf import VAF
from models.var import VAR, PromptRows

GazeOf = Callable[[object, Sequence[ImageGrid]], tuple[list, str]]
"""Maps a question's key and the grids of its images to gaze points, or to none and the reason."""


def same_for_all(intervention: Intervention | None, model=None, gaze_of=None) -> BatchSteering:
    """One intervention for every batch."""
    return lambda keys, inputs, layouts: (intervention, [{} for _ in keys])


def by_confidence(settings: AdaptVis, model, gaze_of=None) -> BatchSteering:
    """Each sample scaled by its own confidence; counts the samples of each weight, and those that it changes."""

    def steer(keys, inputs, layouts):
        sure = confidence(model, inputs)
        scaling, unsure = settings.scaling(sure), (sure < settings.threshold).tolist()
        counts = [{"weight1" if low else "weight2": 1} for low in unsure]
        for count, weight in zip(counts, scaling.weights, strict=True):
            count.update({"steered": 1} if weight != 1 else {})
        return scaling, counts

    return steer


def by_gaze(mask: GazeMask, model, gaze_of: GazeOf) -> BatchSteering:
    """Each sample by its own gaze; counts the samples without gaze, by reason."""

    def steer(keys, inputs, layouts):
        gaze = [gaze_of(key, layout.grids) for key, layout in zip(keys, layouts, strict=True)]
        counts = [{} if points else {f"no gaze: {reason}": 1} for points, reason in gaze]
        return Gaze(mask, [points for points, _ in gaze]), counts

    return steer


@dataclass(frozen=True)
class VARFlags:
    var_threshold: float | None = None
    """var: |RMSNorm(x)| of a sink exceeds this (default: the --sink-file's, else 20)."""
    var_attn_p: float = 0.6
    """var: the share of its weight that a sink keeps."""
    var_head: float = 0.5
    """var: heads with a larger share of their image attention on sinks are not edited."""
    var_skip_without_visual_sinks: bool = False
    """var: no edit in a layer whose sinks are all text tokens, as in the published code (the paper's formula edits
    it)."""
    var_prompt_rows: PromptRows = "after-image"
    """var: rows of the prompt that are edited; "all" is the choice of the published code's port to Qwen2.5-VL."""
    var_dimensions: tuple[int, ...] = ()
    """var: sink dimensions, counted from 0 (default: those known of the language model)."""
    sink_file: str | None = None
    """var: instead of --var-dimensions, the output of find_sink_dimensions_simple.py."""


def var_settings(flags: VARFlags, checkpoint: PreTrainedConfig | None) -> VAR:
    if flags.var_dimensions and flags.sink_file:
        raise ValueError("--var-dimensions and --sink-file were both given; choose one")
    settings = {
        "rho": flags.var_head,
        "p": flags.var_attn_p,
        "skip_without_visual_sinks": flags.var_skip_without_visual_sinks,
        "prompt_rows": flags.var_prompt_rows,
    }
    settings |= {} if flags.var_threshold is None else {"tau": flags.var_threshold}
    if checkpoint is None:
        return VAR(flags.var_dimensions or (0,), **settings)
    return VAR.for_model(SimpleNamespace(config=checkpoint), flags.var_dimensions or None, flags.sink_file, **settings)


@dataclass(frozen=True)
class ScanpathFlags(ScanpathSettings):
    scanpaths: str | None = None
    """gaussian, non-gaussian, salient-head: fixations, by record id or by image below --data-root."""
    target_layer: tuple[int, ...] = ()
    """The same: edited layers, 0-based (default: all; salient-head: the published 19..26 of 32 in proportion)."""


def gaze_settings(flags: ScanpathFlags, checkpoint: PreTrainedConfig | None) -> GazeMask:
    if flags.scanpaths is None:
        raise ValueError(f"--method {flags.method} needs --scanpaths: a .json, .jsonl or .csv file")
    mask = {"type": flags.method, "margin": flags.margin, "target-layer": list(flags.target_layer) or None}
    if checkpoint is None:
        return parse_mask_type(mask, 1 + max(flags.target_layer, default=0), 1)
    decoder = checkpoint.get_text_config(decoder=True)
    return parse_mask_type(mask, decoder.num_hidden_layers, decoder.num_attention_heads)


@dataclass(frozen=True)
class AdaptVisFlags:
    adapt_weight1: float = 0.5
    """adapt-vis: factor on image scores of samples with a confidence below the threshold."""
    adapt_weight2: float = 1.5
    """adapt-vis: factor on image scores of the others."""
    adapt_threshold: float = 0.4
    """adapt-vis: threshold on the probability of the first token."""


def adapt_vis_settings(flags: AdaptVisFlags, checkpoint: PreTrainedConfig | None) -> AdaptVis:
    return AdaptVis(flags.adapt_weight1, flags.adapt_weight2, flags.adapt_threshold)


@dataclass(frozen=True)
class KnockoutFlags:
    knockout_rows: tuple[RowSet, ...] = ("text", "generated")
    """knockout: rows that do not attend to the keys; sets of tokens, of which the union counts."""
    knockout_keys: tuple[TokenSet, ...] = ("image",)
    """knockout: keys that are hidden from the rows."""
    knockout_layers: tuple[int, ...] = ()
    """knockout: layers, 0-based (default: all)."""


def knockout_settings(flags: KnockoutFlags, checkpoint: PreTrainedConfig | None) -> Knockout:
    if checkpoint is not None:
        check_layers(flags.knockout_layers, decoder_layers(checkpoint), "--knockout-layers")
    return Knockout(flags.knockout_rows, flags.knockout_keys, flags.knockout_layers)


@dataclass(frozen=True)
class PAIFlags:
    pai_alpha: float = 0.2
    """pai: share of |score| added to the scores of image tokens in the rows that predict the answer (0: none)."""
    pai_gamma: float = 1.1
    """pai: weight of the contrast with the prompt without images (1: none, which saves its forward passes)."""
    pai_first_layer: int = 2
    """pai: first layer whose scores are changed, 0-based."""


def pai_settings(flags: PAIFlags, checkpoint: PreTrainedConfig | None) -> PAI:
    settings = PAI(flags.pai_alpha, flags.pai_gamma, flags.pai_first_layer)
    if checkpoint is not None:
        settings.check(decoder_layers(checkpoint))
    return settings


def by_contrast(settings: PAI, model, gaze_of=None) -> BatchSteering:
    """The same for every batch; a sample with an image counts as steered by the contrast of its logits."""

    def steer(keys, inputs, layouts):
        contrasted = [settings.gamma != 1 and len(layout.image_positions) > 0 for layout in layouts]
        return settings, [{"steered": 1} if each else {} for each in contrasted]

    return steer


@dataclass(frozen=True)
class VAFFlags:
    vaf_enhance: float = 1.15
    """vaf: factor on scores of image tokens."""
    vaf_suppress: float = 0.95
    """vaf: factor on scores of the tokens before the image."""
    vaf_layers: tuple[int, ...] = ()
    """vaf: layers, 0-based (default: the published 9..14 of 32 in proportion)."""


def vaf_settings(flags: VAFFlags, checkpoint: PreTrainedConfig | None) -> VAF:
    if checkpoint is not None:
        check_layers(flags.vaf_layers, decoder_layers(checkpoint), "--vaf-layers")
    return VAF(flags.vaf_enhance, flags.vaf_suppress, flags.vaf_layers)


def decoder_layers(checkpoint: PreTrainedConfig) -> int:
    return checkpoint.get_text_config(decoder=True).num_hidden_layers


@dataclass(frozen=True)
class Method:
    """One value of --method.

    summary: a clause for --help.
    settings: maps the flags and the checkpoint's config to an intervention or its settings. Called once with None in
    place of the config, before any model is read, and raises ValueError for flags that cannot work.
    flags: dataclass of the flags that the method reads; field names are unique among all methods.
    files: those of the flags that are paths.
    steering: maps (settings, model, gaze_of) to the interventions of batches; `gaze_of` is None without --scanpaths.
    """

    summary: str
    settings: Callable[[MethodSettings, PreTrainedConfig | None], object]
    flags: type | None = None
    files: tuple[str, ...] = ()
    steering: Callable[[object, object, GazeOf | None], BatchSteering] = same_for_all

    def reads(self, flag: str) -> bool:
        return self.flags is not None and flag in {field.name for field in fields(self.flags)}


def gaze_method(summary: str) -> Method:
    return Method(summary, gaze_settings, ScanpathFlags, ("scanpaths",), by_gaze)


METHODS = {
    "default": Method("the model without intervention", lambda flags, checkpoint: None),
    "var": Method("visual attention redistribution", var_settings, VARFlags, ("sink_file",)),
    "gaussian": gaze_method("image weights multiplied by Gaussians around --scanpaths"),
    "non-gaussian": gaze_method("image tokens far from --scanpaths hidden"),
    "salient-head": gaze_method("image weights of heads that follow --scanpaths, multiplied by a mask"),
    "adapt-vis": Method("image scores scaled by confidence", adapt_vis_settings, AdaptVisFlags, steering=by_confidence),
    "knockout": Method("keys hidden from rows", knockout_settings, KnockoutFlags),
    "pai": Method("image scores raised, contrast with the text alone", pai_settings, PAIFlags, steering=by_contrast),
    "vaf": Method("image scores raised and system scores lowered in middle layers", vaf_settings, VAFFlags),
}
OWN = "an intervention of your own (docs/extending.md)"
HELP = "; ".join(f"{name}: {method.summary}" for name, method in METHODS.items()) + f"; {answering.FORM}: {OWN}."
MethodName = Literal[tuple(METHODS)]


def find_method(name: str) -> Method:
    """The entry of METHODS, or a new one for "python:module:callable". Raises ValueError for other names."""
    if name in METHODS:
        return METHODS[name]
    if not name.startswith("python:"):
        raise ValueError(f"--method {name!r} is unknown; choose {', '.join(METHODS)} or {answering.FORM}")
    answering.parse(name, "--method")

    def settings(flags, checkpoint):
        return checkpoint and answering.load(name, "--method", "plan(prompt)")

    return Method(OWN, settings)


@dataclass(frozen=True)
class MethodSettings(*dict.fromkeys(method.flags for method in reversed(METHODS.values()) if method.flags)):
    """--method and the flags of all methods."""

    method: Annotated[MethodName | str, tyro.conf.arg(help=HELP)] = "default"

    def __post_init__(self) -> None:
        method = find_method(self.method)
        for field in fields(self):
            owners = [name for name, other in METHODS.items() if other.reads(field.name)]
            if owners and not method.reads(field.name) and getattr(self, field.name) != field.default:
                flag = field.name.replace("_", "-")
                raise ValueError(f"--{flag} belongs to --method {', '.join(owners)}, and the method is {self.method}")
        method.settings(self, None)

    def method_settings(self, checkpoint: PreTrainedConfig) -> object:
        """Settings of the method for a model with this config. Raises ValueError for settings that do not fit it."""
        return find_method(self.method).settings(self, checkpoint)

    def method_steering(self, settings: object, model, gaze_of: GazeOf | None) -> BatchSteering:
        return find_method(self.method).steering(settings, model, gaze_of)

    def unread(self) -> set[str]:
        """Names of the flags that the method does not read."""
        method = find_method(self.method)
        return {field.name for field in fields(self) if field.name != "method" and not method.reads(field.name)}

    def method_contents(self) -> dict[str, object]:
        """Hashes of the files and the code that the method's flags name. FileNotFoundError for a missing file."""
        paths = {f"--{name.replace('_', '-')}": getattr(self, name) for name in find_method(self.method).files}
        paths = {flag: path for flag, path in paths.items() if path is not None}
        for flag, path in paths.items():
            if not Path(path).is_file():
                raise FileNotFoundError(f"{flag} {path} does not exist")
        hashes = {f"content of {flag}": contents(path) for flag, path in paths.items()}
        return hashes if self.method in METHODS else {"code of --method": answering.code(self.method, "--method")}
