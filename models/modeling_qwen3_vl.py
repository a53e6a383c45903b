"""Qwen3-VL: Qwen2-VL's grid on patches of 16 pixels; features of early encoder layers are added in the decoder.

Hooks (attached by the code named; `N` is a layer, from 0):

- recording and all interventions: `models.attention.attention`, registered with
  transformers as the attention function "sightline", is called in place of SDPA by
  model.language_model.layers.N.self_attn (Qwen3VLTextAttention; Qwen3VLMoeTextAttention).
- sinks of VAR, finder of sink dimensions: a forward pre-hook on model.language_model.layers.N
  (`models.attention.residual_stream`).
- vision encoder, recorded for through-tower maps: the same function, called by
  model.visual.blocks.N.attn (Qwen3VLVisionAttention; Qwen3VLMoeVisionAttention), once per image.

Queries and keys are recorded after their norms and after the rotary embedding that interleaves time, height and width.

`models.vlm.VisionLanguageModel` overrides `generate` and `is_custom_code` of the stock class.

Defined here: only the classes; the rest is `QwenGrid`'s.

Deepstack: the output of the encoder's layers `deepstack_visual_indexes` is merged like its final output and added,
after the decoder's layers 0, 1, 2, ..., to the hidden states at the image positions, each cell's features at the cell's
own position. Consequences for the maps:

- Recorded weights are exact: attention rows are a function of queries and keys.
- A rollout map is correct up to the features that are added after layer k: rollout treats them as part of the input to
  layer 0, so layers 0 to k mix them, and the first layers spread a map too far. No feature moves to another cell.
- A through-tower map averages all layers of the encoder, as for the other families. For features that leave the encoder
  at layer k it includes the layers after k as well.
"""

from __future__ import annotations

from functools import partial

import transformers

from models.modeling_qwen2_vl import QwenGrid
from models.modeling_qwen2_vl import load_processor as load_qwen_processor
from models.processors import Qwen3VLImageTextProcessor


class Qwen3VLForConditionalGeneration(QwenGrid, transformers.Qwen3VLForConditionalGeneration):
    """The stock model with the mixin. The name is unchanged, since the mapping of checkpoint keys depends on it."""


class Qwen3VLMoeForConditionalGeneration(QwenGrid, transformers.Qwen3VLMoeForConditionalGeneration):
    """The same with mixtures of experts after its attention, which the analyses do not use."""


load_processor = partial(load_qwen_processor, kind=Qwen3VLImageTextProcessor)
