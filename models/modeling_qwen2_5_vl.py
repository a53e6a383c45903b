"""Qwen2.5-VL: Qwen2-VL's grid; its tower works in windows, whose order is undone before the decoder sees a token."""

from __future__ import annotations

from functools import partial

import transformers

from models.modeling_qwen2_vl import QwenGrid
from models.modeling_qwen2_vl import load_processor as load_qwen_processor
from models.processors import Qwen2_5_VLImageTextProcessor


class Qwen2_5_VLForConditionalGeneration(QwenGrid, transformers.Qwen2_5_VLForConditionalGeneration):
    """The stock model; only what the mixin adds differs. Same name, so that checkpoints map their keys alike."""


load_processor = partial(load_qwen_processor, kind=Qwen2_5_VLImageTextProcessor)
