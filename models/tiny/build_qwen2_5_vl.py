"""Embedded Qwen2.5-VL before training: the embedded Qwen2-VL with a windowed vision encoder."""

from __future__ import annotations

from functools import partial

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from models.processors import Qwen2_5_VLImageTextProcessor
from models.tiny import build_qwen2_vl as qwen2
from models.tiny.build_qwen2_vl import (  # noqa: F401 - shared by both families
    AFTER_QUESTION,
    END,
    FIRST_LAYERS,
    PAD,
    PATCHES,
    SIDE,
    features,
    parts,
    prefix,
    prefix_positions,
)

WINDOW = 32  # px: 4 x 4 cells, nine windows in a square image
FULL_ATTENTION = [1, 3]


def build_config(vocabulary: int) -> Qwen2_5_VLConfig:
    """Configuration with this vocabulary size."""
    vision = {
        "depth": 4,
        "hidden_size": qwen2.ENCODER_WIDTH,
        "intermediate_size": 128,
        "out_hidden_size": qwen2.WIDTH,
        "num_heads": 4,
        "patch_size": qwen2.PATCH,
        "spatial_merge_size": qwen2.MERGE,
        "window_size": WINDOW,
        "fullatt_block_indexes": FULL_ATTENTION,
        "rope_parameters": qwen2.ENCODER_ROPE,
        "initializer_range": qwen2.ENCODER_RANGE,
    }
    return Qwen2_5_VLConfig(
        text_config={**qwen2.TEXT, "vocab_size": vocabulary},
        vision_config=vision,
        tie_word_embeddings=True,
        **qwen2.token_ids(),
    )


def build_model(vocabulary: dict[str, int]) -> Qwen2_5_VLForConditionalGeneration:
    """Untrained model; random initial weights come from torch's global generator."""
    return qwen2.initialise(Qwen2_5_VLForConditionalGeneration(build_config(len(vocabulary))), vocabulary)


build_processor = partial(qwen2.build_processor, Qwen2_5_VLImageTextProcessor)
