"""Qwen2.5-VL: Qwen2-VL's grid; the vision encoder attends in windows; the raster order is restored before the decoder.

Hooks (attached by the code named; `N` is a layer, from 0):

- recording and all interventions: `models.attention.attention`, registered with
  transformers as the attention function "sightline", is called in place of SDPA by
  model.language_model.layers.N.self_attn (Qwen2_5_VLAttention).
- sinks of VAR, finder of sink dimensions: a forward pre-hook on model.language_model.layers.N
  (`models.attention.residual_stream`).
- vision encoder, recorded for through-tower maps: the same function, called by
  model.visual.blocks.N.attn (Qwen2_5_VLVisionAttention), once per window.

`models.vlm.VisionLanguageModel` overrides `generate` and `is_custom_code` of the stock class.

Defined here: `encoder_image`; the rest is `QwenGrid`'s.
"""

from __future__ import annotations

from functools import partial

import torch
import transformers
from transformers.vision_utils import get_vision_window_index

from data.geometry import ImageGrid
from models.modeling_qwen2_vl import QwenGrid
from models.modeling_qwen2_vl import load_processor as load_qwen_processor
from models.processors import Qwen2_5_VLImageTextProcessor
from models.vision_encoder import EncoderImage


class Qwen2_5_VLForConditionalGeneration(QwenGrid, transformers.Qwen2_5_VLForConditionalGeneration):
    """The stock model with the mixin. The name is unchanged, since the mapping of checkpoint keys depends on it."""

    def encoder_image(self, grid: ImageGrid) -> EncoderImage:
        # override: the encoder orders the cells by window; `held` lists them in that order.
        vision = self.config.vision_config
        merge = vision.spatial_merge_size
        patches = torch.tensor([[1, grid.rows * merge, grid.cols * merge]])
        held, _ = get_vision_window_index(patches, merge, vision.window_size, vision.patch_size)
        raster = super().encoder_image(grid)
        return EncoderImage(raster.length, raster.cells.flatten(0, 1)[held.argsort()].view(raster.cells.shape))


load_processor = partial(load_qwen_processor, kind=Qwen2_5_VLImageTextProcessor)
