"""Qwen2.5-VL: Qwen2-VL's grid; its tower works in windows, whose order is undone before the decoder sees a token."""

from __future__ import annotations

import transformers

from models.modeling_qwen2_vl import QwenGrid
from models.processors import Qwen2_5_VLImageTextProcessor
from models.vlm import check_template


class Qwen2_5_VLForConditionalGeneration(QwenGrid, transformers.Qwen2_5_VLForConditionalGeneration):
    """The stock model; only what the mixin adds differs. Same name, so that checkpoints map their keys alike."""


def load_processor(path: str, config, **kwargs) -> Qwen2_5_VLImageTextProcessor:
    processor = Qwen2_5_VLImageTextProcessor.from_pretrained(path, **kwargs)
    check_template(processor)
    processor.tokenizer.padding_side = "left"
    return processor
