"""The flags that say how attention is steered while questions are answered, and what they make of a model."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from models.adapt_vis import AdaptVis
from models.var import VAR, PromptRows

GAZE = ("gaussian", "non-gaussian", "salient-head")
BELONGS = {"var": ("var",), "sink": ("var",), "adapt": ("adapt-vis",)}  # first word of a flag -> methods that read it


@dataclass(frozen=True)
class MethodFlags:
    """A script's Config inherits these; `var` and `adapt_vis` are the settings that they make."""

    method: Literal["default", "var", "gaussian", "non-gaussian", "salient-head", "adapt-vis"] = "default"
    """default: the model as it is; var: visual attention redistribution; gaussian, non-gaussian, salient-head: along
    --scanpaths; adapt-vis: image scores scaled by confidence."""
    var_threshold: float | None = None
    """var: |RMSNorm(x)| of a sink exceeds this (default: the --sink-file's, else 20)."""
    var_attn_p: float = 0.6
    """var: the share of its weight that a sink keeps."""
    var_head: float = 0.5
    """var: heads with a larger share of their image attention on sinks are left alone."""
    var_skip_without_visual_sinks: bool = False
    """var: leave a layer alone whose sinks are all text tokens, as the published code does (the paper's formula edits
    it)."""
    var_prompt_rows: PromptRows = "after-image"
    """var: rows of the prompt that are edited; "all" is what the published code's port to Qwen2.5-VL does."""
    var_dimensions: tuple[int, ...] = ()
    """var: sink dimensions, counted from 0 (default: those known of the language model)."""
    sink_file: str | None = None
    """var: instead of --var-dimensions, what find_sink_dimensions_simple.py wrote."""
    adapt_weight1: float = 0.5
    """adapt-vis: what multiplies image scores where the model is unsure."""
    adapt_weight2: float = 1.5
    """adapt-vis: what multiplies them where it is sure."""
    adapt_threshold: float = 0.4
    """adapt-vis: probability of the first token below which it is unsure."""

    def check_method(self) -> None:
        """Raises ValueError for flags that cannot work with any model, or that the method does not read."""
        for field in fields(MethodFlags):
            methods = BELONGS.get(field.name.split("_")[0], (self.method,))
            if self.method not in methods and getattr(self, field.name) != field.default:
                flag = field.name.replace("_", "-")
                raise ValueError(f"--{flag} belongs to --method {methods[0]}, and the method is {self.method}")
        if self.method == "adapt-vis":
            self.adapt_vis()
        if self.method == "var":
            if self.var_dimensions and self.sink_file:
                raise ValueError("--var-dimensions and --sink-file were both given; choose one")
            VAR(self.var_dimensions or (0,), **self._var())

    def adapt_vis(self) -> AdaptVis:
        """Raises ValueError as `AdaptVis` does."""
        return AdaptVis(self.adapt_weight1, self.adapt_weight2, self.adapt_threshold)

    def var(self, model) -> VAR:
        """Settings for this model. Raises as `VAR.for_model` does."""
        return VAR.for_model(model, self.var_dimensions or None, self.sink_file, **self._var())

    def _var(self) -> dict:
        settings = {
            "rho": self.var_head,
            "p": self.var_attn_p,
            "skip_without_visual_sinks": self.var_skip_without_visual_sinks,
            "prompt_rows": self.var_prompt_rows,
        }
        return settings if self.var_threshold is None else {"tau": self.var_threshold, **settings}
