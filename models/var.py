"""Visual attention redistribution (VAR): move part of the weight of attention sinks to the other image tokens.

    model.generate(**inputs, steering=VAR.for_model(model))

Kang et al., "See What You Are Told: Visual Attention Sink in Large Multimodal Models" (ICLR 2025). Some tokens have a
residual stream that spikes in a few dimensions of the model; they receive attention regardless of the prompt. In each
layer VAR finds these sinks (`detect_sinks`; DimProspector in the published code), selects the heads with enough
attention on the image outside them (`select_heads`; HeadFork), and multiplies each sink's weight by p; the rest goes to
the other image tokens in proportion to their weights (`redistribute`; VARProcessor).

`VAR.edit` is the definition, over positions. Generation runs the same edit as `Redistribution`, two thin matrix
products, ten times as fast: sums over groups of keys select the heads, and a weight changes by a factor of its group
and row. Tests compare the two.

Where we differ from the published code: a row without weight on the image outside the sinks is unchanged (theirs
becomes NaN), sinks belong to one sample, and a layer whose sinks are all text tokens is edited by the formula
(theirs is unchanged; `skip_without_visual_sinks`). `docs/corrections.md` lists them. Positions and layers count from 0.
"""

from __future__ import annotations

import json
import math
import operator
import re
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch.nn.functional import pad

from data.errors import InputError, MissingFileError
from models.interventions import DeferredEdit, LayerEdit, PromptBatch, RowEdit

EPSILON = 1e-6  # of the RMS normalisation, as published
FINDER = "find_sink_dimensions_simple.py"
PromptRows = Literal["after-image", "all"]
ABOUT = {"model": str, "hidden_dim": int, "num_layers": int}  # fields of a finder's file about its model


def spikes(hidden: torch.Tensor, dimensions: tuple[int, ...]) -> torch.Tensor:
    """max over `dimensions` d of |RMSNorm(x)_d|, float32 [..., row], of the residual stream x [..., row, width].

    RMSNorm without weights: x / sqrt(mean(x^2) + 1e-6). At most sqrt(width).
    """
    square = torch.linalg.vector_norm(hidden, dim=-1, dtype=torch.float32) ** 2 / hidden.shape[-1]
    return hidden[..., list(dimensions)].float().abs().amax(-1) * torch.rsqrt(square + EPSILON)


def detect_sinks(hidden: torch.Tensor, dimensions: tuple[int, ...], tau: float = 20.0) -> torch.Tensor:
    """Mask of the sinks: bool [..., row], of the residual stream [..., row, width] that enters a layer."""
    return spikes(hidden, dimensions) > tau


def split_image(image: torch.Tensor, sinks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Image positions [cell] that are sinks, and those that are not; `sinks` are positions of any tokens."""
    sunk = torch.isin(image, sinks)
    return image[sunk], image[~sunk]


def select_heads(
    weights: torch.Tensor,
    image: torch.Tensor,
    sinks: torch.Tensor,
    rho: float = 0.5,
    min_image_mass: float = 0.2,
) -> torch.Tensor:
    """Mask of the (head, row) whose image mass is sufficient and at most a share `rho` on sinks: bool [..., head, row].

    weights: softmax rows [..., head, row, key]; image and sinks: positions, int64 [cell] and [sink].
    """
    sunk, plain = split_image(image, sinks)
    on_sinks = weights[..., sunk].sum(-1)
    on_image = on_sinks + weights[..., plain].sum(-1)
    return (on_image >= min_image_mass) & (on_sinks <= rho * on_image)


def redistribute(weights: torch.Tensor, image: torch.Tensor, sinks: torch.Tensor, p: float = 0.6) -> torch.Tensor:
    """Rows [..., key] in which every sink keeps p of its weight; the other image tokens receive the rest.

    It is distributed in proportion to their weights, so each row keeps its sum. A row without weight on them is
    bit-identical, as is every row with p = 1 or without sinks. Sinks may be any tokens. Positions as above.
    """
    _, plain = split_image(image, sinks)
    mass = weights[..., plain].sum(-1, keepdim=True)
    freed = (1 - p) * weights[..., sinks].sum(-1, keepdim=True)
    shares = torch.where(mass > 0, weights[..., plain] / mass, 0)
    edited = weights.clone()
    edited[..., sinks] *= p
    edited[..., plain] += shares * freed
    return torch.where(mass > 0, edited, weights)


@dataclass(frozen=True)
class VAR:
    """Settings of the redistribution. `source` is the origin of the dimensions, for a run's log.

    The edit changes the layers from `first_layer` on, except the last one with `spare_last_layer`; in each, the rows
    of the heads that `select_heads` selects, among the text rows after the last image and the decode rows. Two settings
    follow published code instead of the paper's formula:

    `skip_without_visual_sinks`: no edit in a layer whose sinks are all text tokens (seilk/VisAttnSink).
    `prompt_rows` "all": also edit the prompt's rows before and inside the image (the port of that code to Qwen2.5-VL).

    Raises ValueError for settings out of range.
    """

    dimensions: tuple[int, ...]
    tau: float = 20.0
    rho: float = 0.5
    min_image_mass: float = 0.2
    p: float = 0.6
    first_layer: int = 2
    spare_last_layer: bool = True
    skip_without_visual_sinks: bool = False
    prompt_rows: PromptRows = "after-image"
    source: str = "given"

    def __post_init__(self) -> None:
        object.__setattr__(self, "dimensions", check_dimensions(self.dimensions))
        for name in ("rho", "min_image_mass", "p"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError("not-a-share", f"{name} is {getattr(self, name)}; it is a share, so give 0 to 1")
        if not 0 < self.tau < math.inf:
            raise InputError("tau", f"tau is {self.tau}; it is compared with |RMSNorm(x)|, so give a finite number > 0")
        if self.first_layer < 0:
            raise InputError("first-layer", f"first_layer is {self.first_layer}; layers count from 0")
        if self.prompt_rows not in get_args(PromptRows):
            raise InputError(
                "unknown-rows", f"prompt_rows is {self.prompt_rows!r}; choose {' or '.join(get_args(PromptRows))}"
            )

    @classmethod
    def for_model(cls, model, dimensions=None, file: str | Path | None = None, **settings) -> VAR:
        """Settings for a model: with the given dimensions, those in a file of the finder, or those known for its LLM.

        `settings` are the other fields; tau defaults to the file's. Raises ValueError if no dimensions are known, if
        the file is of a model of another size or recommends none, and if they do not fit the model; FileNotFoundError
        for a missing file. Warns if the file is of a model of another name, or does not name it.
        """
        if dimensions is not None and file is not None:
            raise InputError("dimensions-and-file", "dimensions and file were both given; choose one")
        config = model.config.get_text_config(decoder=True)
        if file is not None:
            findings = read_findings(file)
            findings.check(model)
            dimensions, source = findings.dimensions, findings.source
            settings = settings if findings.tau is None else {"tau": findings.tau, **settings}
        elif dimensions is None:
            dimensions, source = known_dimensions(model)
        else:
            source = "given"
        var = cls(dimensions, source=source, **settings)
        var.check(config.hidden_size, config.num_hidden_layers)
        return var

    def check(self, width: int, layers: int) -> None:
        """Raise ValueError unless these settings are valid for a model of this width and number of layers."""
        if outside := [dimension for dimension in self.dimensions if dimension >= width]:
            raise InputError(
                "no-such-dimension",
                f"sink dimension {outside[0]} does not exist; the model is {width} wide, so give 0 to {width - 1}",
            )
        if self.tau >= math.sqrt(width):
            raise InputError(
                "tau-too-high",
                f"tau is {self.tau:g}, which no token can pass: |RMSNorm(x)| is at most {math.sqrt(width):.1f} in a "
                f"model {width} wide; {FINDER} recommends a tau",
            )
        if self.first_layer >= layers:
            raise InputError(
                "no-such-layer",
                f"first_layer {self.first_layer} does not exist; the model has layers 0 to {layers - 1}",
            )

    @property
    def neutral(self) -> bool:
        """True if these settings change no model."""
        return self.p == 1

    def layers(self, count: int) -> range:
        """The edited layers, of `count`."""
        return range(self.first_layer, count - self.spare_last_layer)

    def sinks(self, hidden: torch.Tensor) -> torch.Tensor:
        """Sinks among the tokens of one sample: positions, int64 [sink], of the residual stream [row, width]."""
        return detect_sinks(hidden, self.dimensions, self.tau).nonzero().flatten()

    def select(self, weights: torch.Tensor, image: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
        """The edited (head, row), see `select_heads`."""
        return select_heads(weights, image, sinks, self.rho, self.min_image_mass)

    def edit(self, weights: torch.Tensor, image: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
        """Softmax rows [..., head, row, key] of one sample, redistributed where selected; others are bit-identical.

        Positions after the last key, which rows of an early block do not attend to, are left out.
        """
        keys = weights.shape[-1]
        image, sinks = image[image < keys], sinks[sinks < keys]
        selected = self.select(weights, image, sinks)
        return torch.where(selected[..., None], redistribute(weights, image, sinks, self.p), weights)

    def plan(self, prompt: PromptBatch) -> dict[int, DeferredEdit]:
        """The edit of each layer, deferred until its residual stream is known; raises ValueError as `check` does."""
        self.check(prompt.width, prompt.layers)
        layers = () if self.neutral else self.layers(prompt.layers)
        return {layer: partial(self.edit_layer, prompt) for layer in layers}

    def edit_layer(self, prompt: PromptBatch, hidden: torch.Tensor) -> LayerEdit:
        """Edits of each sample's rows, `prompt_rows` of the prompt and every decode row.

        Sinks are those of the residual stream [sample, row, width]. A sample without sinks, or whose image tokens are
        all sinks, is unchanged; with `skip_without_visual_sinks` also one whose image tokens include no sink.
        """
        settings = {"rho": self.rho, "min_image_mass": self.min_image_mass, "p": self.p}
        edits, counts = {}, {}
        for sample, (start, image) in enumerate(zip(prompt.starts, prompt.images, strict=True)):
            image, sinks = image.to(hidden.device), self.sinks(hidden[sample, start:])
            sunk, plain = split_image(image, sinks)
            counts[sample] = {"visual_sinks": len(sunk), "text_sinks": len(sinks) - len(sunk)}
            enough = len(sunk) if self.skip_without_visual_sinks else len(sinks)
            if enough and len(plain):
                change = Redistribution.of(image, sinks, prompt.length - start, **settings)
                edits[sample] = RowEdit(0 if self.prompt_rows == "all" else int(image[-1]) + 1, change)
        return prompt.edit_layer(row_edits=edits, counts=counts)


def check_dimensions(dimensions) -> tuple[int, ...]:
    """Each dimension once, in the given order. Raises ValueError for an empty list, or for an invalid index."""
    try:
        checked = tuple(dict.fromkeys(operator.index(dimension) for dimension in dimensions))
    except TypeError as error:
        raise InputError(
            "dimensions-form", f"sink dimensions are {dimensions!r}; give whole numbers, counted from 0"
        ) from error
    if not checked or min(checked) < 0:
        raise InputError(
            "dimensions-form", f"sink dimensions are {list(checked)}; give one or more whole numbers, counted from 0"
        )
    return checked


class LanguageModel(NamedTuple):
    """A language model of known sink dimensions: the names of it and of models fine-tuned from it, and its sizes."""

    names: str  # a regular expression
    sizes: dict[str, int]
    dimensions: tuple[int, ...]


# Sun et al., "Massive Activations in Large Language Models" (COLM 2024), and the table of VAR's published code. Vicuna
# 1.5 is fine-tuned from LLaMA-2 (1.3 and before from LLaMA-1), LLaVA-1.5 from Vicuna 1.5: they keep its dimensions.
KNOWN = {
    "LLaMA-2-7B": LanguageModel(
        r"llama-?2-7b|vicuna-7b-v1\.5|llava-v?1\.5-7b",
        {"hidden_size": 4096, "num_hidden_layers": 32, "num_key_value_heads": 32},
        (2533, 1415),
    ),
    "LLaMA-2-13B": LanguageModel(
        r"llama-?2-13b|vicuna-13b-v1\.5|llava-v?1\.5-13b|llava-v1\.6-vicuna-13b",
        {"hidden_size": 5120, "num_hidden_layers": 40, "num_key_value_heads": 40},
        (2100, 4743),
    ),
}


def known_dimensions(model) -> tuple[tuple[int, ...], str]:
    """Sink dimensions of a model's language model, and a description of the match, by both name and sizes.

    The name is that of the text config, else that of the whole model. Raises ValueError for an unknown language
    model.
    """
    text = model.config.get_text_config(decoder=True)
    called = [name for name in (text.name_or_path, model.config.name_or_path) if name]
    alike = None
    for language_model, (pattern, sizes, dimensions) in KNOWN.items():
        if any(getattr(text, key, None) != size for key, size in sizes.items()):
            continue
        for name in called:
            if re.search(pattern, name, re.IGNORECASE):
                return dimensions, f"{language_model}, recognised by the name {name!r} and its sizes"
        alike = f" (its sizes are those of {language_model}, {dimensions}, but its config does not name that)"
    command = f"python {FINDER} --model {model.config.name_or_path or 'MODEL'} --data-root DATA --output sinks.json"
    raise InputError(
        "unknown-sinks",
        f"no sink dimensions are known for {model.config.name_or_path or type(model).__name__!r}{alike or ''}; "
        f"find them with `{command}`, then give the file sinks.json, or the dimensions themselves",
    )


class Findings(NamedTuple):
    """Contents of a file of the finder: its recommendation and its model; None for missing values."""

    file: Path
    dimensions: tuple[int, ...]
    tau: float | None
    model: str | None
    width: int | None
    layers: int | None

    @property
    def source(self) -> str:
        """Origin of the dimensions, for a run's log."""
        return str(self.file) if self.model is None else f"{self.file}, found on {self.model}"

    def check(self, model) -> None:
        """Raise ValueError if the file is of a model of another size; warn as `VAR.for_model` does."""
        config, own = model.config.get_text_config(decoder=True), model.config.name_or_path
        width, layers = config.hidden_size, config.num_hidden_layers
        if self.width not in (None, width) or self.layers not in (None, layers):
            raise InputError(
                "sinks-of-another-model",
                f"{self.file} is of {self.model or 'a model'}, {self.width or '?'} wide and {self.layers or '?'} "
                f"layers deep, but the model is {width} wide and {layers} layers deep; find its own with {FINDER}",
            )
        stated = zip(ABOUT, (self.model, self.width, self.layers), strict=True)
        if unstated := [name for name, value in stated if value is None]:
            problem = f"does not state {', '.join(unstated)}, so its sink dimensions may not be those of"
            warnings.warn(f"{self.file} {problem} {own!r}", stacklevel=3)
        elif Path(self.model).name.lower() != Path(own).name.lower():
            problem = f"holds sink dimensions of {self.model!r}, and the model is"
            warnings.warn(f"{self.file} {problem} {own!r}", stacklevel=3)


def read_findings(file: str | Path) -> Findings:
    """Read a file of the finder; the published finder's files, which have no tau, are accepted.

    Raises FileNotFoundError for a missing file, ValueError for another kind of file and for one without recommended
    dimensions.
    """
    path = Path(file)
    if not path.is_file():
        raise MissingFileError(
            "no-such-file", f"the file of sink dimensions {path} does not exist; write it with {FINDER}"
        )
    try:
        findings = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(findings, dict) or not isinstance(findings.get("recommended_dimensions"), list):
            raise ValueError("it holds no list recommended_dimensions")
        tau = _stated(findings, "tau", int | float)
        about = [_stated(findings, name, kind) for name, kind in ABOUT.items()]
        if tau is not None and not 0 < tau < math.inf:
            raise ValueError(f"tau is {tau}")
        recommended = findings["recommended_dimensions"]
        dimensions = check_dimensions(recommended) if recommended else ()
    except (ValueError, RecursionError) as error:
        raise InputError(
            "not-a-sink-file", f"{path} is not a file of sink dimensions as {FINDER} writes it: {error}"
        ) from error
    if not dimensions:
        raise InputError(
            "no-recommended-dimension",
            f"{path} recommends no sink dimension for {findings.get('model') or 'its model'} "
            f"({findings.get('reason') or 'and gives no reason'}); without sinks there is nothing to redistribute",
        )
    return Findings(path, dimensions, tau, *about)


def _stated(findings: dict, name: str, kind):
    """A value of the file, None if it is missing. Raises ValueError for one of another type."""
    value = findings.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
        raise ValueError(f"{name} is {value!r}")
    return value


@dataclass(frozen=True, eq=False)
class Redistribution:
    """`VAR.edit` for one sample and layer: called with rows [head, row, key], returns new ones.

    `groups` float32 [key, 3] marks the keys of the prompt that are image sinks, other image tokens, and any sinks;
    later keys belong to none.
    """

    groups: torch.Tensor
    rho: float
    min_image_mass: float
    p: float

    @classmethod
    def of(cls, image: torch.Tensor, sinks: torch.Tensor, keys: int, **settings: float) -> Redistribution:
        """Redistribution for the positions of image tokens and of all sinks, int64 [cell] and [sink], of the prompt."""
        groups = torch.zeros(keys, 3, device=image.device)
        groups[image, 1] = 1
        groups[sinks, 2] = 1
        groups[:, 0] = groups[:, 1] * groups[:, 2]
        groups[:, 1] -= groups[:, 0]
        return cls(groups, **settings)

    def __call__(self, weights: torch.Tensor) -> torch.Tensor:
        groups = self.groups.to(weights.device)  # a model may span several devices
        groups = pad(groups, (0, 0, 0, weights.shape[-1] - len(groups)))
        on_sinks, on_others, sunk = (weights @ groups).unbind(-1)
        on_image = on_sinks + on_others
        # Below the smallest normal number the quotient would overflow; such a weight counts as 0.
        chosen = (on_others >= torch.finfo(weights.dtype).tiny) & (on_image >= self.min_image_mass)
        chosen &= on_sinks <= self.rho * on_image
        # The divisor of other rows is replaced, since the gradient of 0 / 0 would be NaN.
        gain = torch.where(chosen, (1 - self.p) * sunk / torch.where(chosen, on_others, 1), 0)
        loss = chosen * (self.p - 1)
        # weights + weights * 0 equals the weights bit for bit, so rows that are not selected are unchanged.
        return torch.addcmul(weights, weights, torch.stack([gain, loss], -1) @ groups[:, 1:].T)
