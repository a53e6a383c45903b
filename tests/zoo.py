"""Small random models of many families that have no file here, with their real processors; no download.

Each is built from the default config of its class, with all sizes reduced (`shrink`), plus what its entry in FAMILIES
overrides. Families whose processor needs torchvision are built only where it is installed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from inspect import signature

import torch
import transformers
from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, PROCESSOR_MAPPING
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES as IMAGE_PROCESSORS

from models.unpatched import image_text, model_class
from tests.families import word_level
from tests.models import TEMPLATE, WORDS, sharpen

TOKENS = {
    "image_token": "<image>", "video_token": "<video>", "audio_token": "<audio>", "boi_token": "<boi>",
    "eoi_token": "<eoi>", "image_start_token": "<img>", "image_end_token": "</img>", "video_start_token": "<vid>",
    "video_end_token": "</vid>", "start_image_token": "<img>", "end_image_token": "</img>",
    "context_image_token": "<image>", "image_break_token": "<break>", "image_thumbnail_token": "<thumb>",
    "boa_token": "<boa>", "eoa_token": "<eoa>", "fake_image_token": "<fake>", "global_image_token": "<global>",
    "end_of_utterance_token": "<eou>", "image_boundary_token": "<fake>",
}  # fmt: skip
"""Special tokens by the attribute under which a processor looks them up."""

SPECIALS = ["<pad>", "<s>", "</s>", *dict.fromkeys(TOKENS.values())]
SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
LLAMA = SMALL | {"model_type": "llama"}
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
CLIP = TOWER | {"model_type": "clip_vision_model", "image_size": 56, "patch_size": 14}
SIGLIP = CLIP | {"model_type": "siglip_vision_model", "vision_use_head": False}
QWEN_TOWER = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}


@dataclass(frozen=True)
class Family:
    """Overrides of a family: fields of its config and of the sub-configs, of its image processor and its processor."""

    config: dict = field(default_factory=dict)
    vision: dict = field(default_factory=dict)
    text: dict = field(default_factory=lambda: LLAMA)
    images: dict = field(default_factory=dict)
    processor: dict = field(default_factory=dict)
    tokens: tuple[str, ...] = ()  # further special tokens
    named: dict = field(default_factory=dict)  # attributes of the tokenizer that differ from TOKENS
    image_class: str = ""  # image processor, if not that of the family
    refused: str = ""  # reason for which there is no geometry
    model_type: str = ""  # of the config, if not the entry's name
    placeholder: str = "<image>"  # of an image in the prompt


def build(name: str, family: Family | None = None):
    """(stock model with the mixin of unpatched families, its processor) of a family, by default of FAMILIES."""
    family = family or FAMILIES[name]
    kind = CONFIG_MAPPING[family.model_type or name]
    specials = [*SPECIALS, *family.tokens]
    tokenizer = word_level(
        specials, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        extra_special_tokens=TOKENS | {f"extra_{i}": token for i, token in enumerate(family.tokens)} | family.named,
    )  # fmt: skip
    ids = {f"{token}_id": specials.index(text) for token, text in TOKENS.items()}
    ids |= {"image_token_index": ids["image_token_id"], "video_token_index": ids["video_token_id"]}
    common = {"vocab_size": len(specials) + 1 + len(WORDS), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    own = {
        key: specials.index(value) if value in specials else value
        for key, value in family.config.items()
        if isinstance(value, str)
    }
    own |= {"image_token_index": own["image_token_id"]} if "image_token_id" in own else {}
    config = kind(vision_config=family.vision, text_config=common | family.text, **(ids | family.config | own))
    torch.manual_seed(0)
    model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[kind](config).eval()
    processor = make_processor(name, kind, family, tokenizer)
    for module in model.modules():  # untrained projectors may be zero
        for weight in module.parameters(recurse=False):
            if weight.ndim > 1 and not weight.any():
                torch.nn.init.normal_(weight, std=0.2)
    model.__class__ = model_class(config, processor)
    return sharpen(model), processor


def make_processor(name, kind, family, tokenizer):
    stock = image_text(PROCESSOR_MAPPING[kind])
    images = getattr(transformers, family.image_class or image_class(family.model_type or name))(**family.images)
    parameters = signature(stock.__init__).parameters
    required = {"video_processor": None} if "video_processor" in parameters else {}
    if "feature_extractor" in parameters:
        required["feature_extractor"] = transformers.Gemma4AudioFeatureExtractor()
    processor = stock(
        image_processor=images, tokenizer=tokenizer, chat_template=TEMPLATE.replace("<image>", family.placeholder),
        **required, **family.processor,
    )  # fmt: skip
    processor.image_token = getattr(processor, "image_token", "<image>")
    return processor


def image_class(model_type: str) -> str:
    """Name of a family's image processor, in PIL where there is one."""
    return IMAGE_PROCESSORS[model_type].get("pil") or IMAGE_PROCESSORS[model_type]["torchvision"]


def needs_torchvision(name: str) -> bool:
    """Whether the image processor of a family has no version in PIL, or its processor requires the other one."""
    family = FAMILIES[name]
    return name in PIXTRAL_FAMILIES or not (family.image_class or image_class(family.model_type or name)).endswith(
        "Pil"
    )


TILED = {"size": {"height": 56, "width": 56}, "max_patches": 4}
SQUARE = {"size": {"height": 56, "width": 56}}
QWEN_SIZE = {"size": {"shortest_edge": 4 * 28**2, "longest_edge": 32 * 28**2}}
NATIVE = {"patch_size": 14, **QWEN_SIZE}
PIXTRAL_FAMILIES = ("mistral3",)  # processors whose module imports torchvision
PINPOINTS = [[56, 112], [112, 56], [112, 112]]
NEXT = {"size": {"shortest_edge": 56}, "crop_size": SQUARE["size"], "image_grid_pinpoints": PINPOINTS}
CLIP_TOKENS = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
PIXTRAL = TOWER | {"model_type": "pixtral", "head_dim": 8, "image_size": 112, "patch_size": 14}
INTERN = TOWER | {"image_size": [56, 56], "patch_size": [14, 14]}
MROPE = SMALL | {"rope_parameters": ROPE}
GLM = {"vision": QWEN_TOWER | {"patch_size": 14, "image_size": 56}, "text": MROPE, "images": NATIVE}
EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_k": 2,
    "moe_num_experts": 4, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 48, "n_shared_experts": 1,
    "n_group": 1, "topk_group": 1,
}  # fmt: skip
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}  # fmt: skip
QWEN_3_5 = {
    "vision": QWEN_TOWER | {"num_position_embeddings": 16, "patch_size": 14}, "text": MROPE | LINEAR | EXPERTS,
    "images": NATIVE,
}  # fmt: skip

FAMILIES = {
    "vipllava": Family(
        vision=CLIP,
        config={"vision_feature_layers": [-1, -2]},
        processor=CLIP_TOKENS,
        images={"size": {"shortest_edge": 56}, "crop_size": SQUARE["size"]},
    ),
    "llava_next": Family(
        vision=CLIP,
        config={"image_grid_pinpoints": PINPOINTS},
        images=NEXT,
        processor=CLIP_TOKENS,
    ),
    "llava_next_video": Family(
        vision=CLIP,
        config={"image_grid_pinpoints": PINPOINTS},
        images=NEXT,
        processor=CLIP_TOKENS,
    ),
    "llava_onevision": Family(
        vision=SIGLIP,
        config={"image_grid_pinpoints": PINPOINTS},
        images=SQUARE | {"image_grid_pinpoints": PINPOINTS},
        processor={"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
    ),
    "aya_vision": Family(
        vision=SIGLIP,
        config={"downsample_factor": 2, "image_token_id": "<|IMG_PATCH|>"},
        images=TILED,
        processor={"patch_size": 14, "img_size": 56, "downsample_factor": 2},
        tokens=("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL"),
    ),
    "cohere2_vision": Family(
        vision=SIGLIP,
        config={"downsample_factor": 2, "alignment_intermediate_size": 64},
        images=TILED | {"patch_size": 2},
        named={"img_line_break_token": "<break>"},
    ),
    "internvl": Family(
        vision=INTERN,
        config={"downsample_ratio": 0.5},
        images=TILED,
        processor={"image_seq_length": 4},
    ),
    "qianfan_ocr": Family(
        vision=INTERN,
        config={"downsample_ratio": 0.5},
        images=TILED,
        processor={"image_seq_length": 4},
    ),
    "ovis2": Family(
        vision=TOWER | {"image_size": 56, "patch_size": 14, "vocab_size": 64, "hidden_stride": 2},
        config={"visual_indicator_token_ids": [4, 5, 6, 7, 8], "image_token_id": "<IMG_ATOM>", "hidden_size": 64},
        images=SQUARE,
        processor={"image_seq_length": 4},
        tokens=("<IMG_START>", "<IMG_ATOM>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"),
    ),
    "perception_lm": Family(
        vision={
            "model_type": "timm_wrapper",
            "architecture": "vit_pe_core_tiny_patch16_384",
            "do_pooling": False,
            "model_args": {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": [56, 56], "patch_size": 14},
        },
        config={"projector_pooling_ratio": 2},
        images=SQUARE | {"tile_size": 56, "max_num_tiles": 4},
        processor={"patch_size": 14},
    ),
    "lfm2_vl": Family(
        vision=TOWER | {"model_type": "siglip2_vision_model", "patch_size": 14, "num_patches": 64},
        config={"downsample_factor": 2, "projector_hidden_size": 64},
        images={
            "downsample_factor": 2,
            "encoder_patch_size": 14,
            "tile_size": 56,
            "min_image_tokens": 4,
            "max_image_tokens": 16,
            "max_num_patches": 64,
            "max_tiles": 4,
        },
    ),
    "lighton_ocr": Family(
        vision=PIXTRAL,
        config={"spatial_merge_size": 2},
        processor={"patch_size": 14, "spatial_merge_size": 2},
        images={"patch_size": {"height": 28, "width": 28}, "size": {"longest_edge": 112}},
    ),
    "mistral3": Family(
        vision=PIXTRAL,
        config={"spatial_merge_size": 2},
        placeholder="<image>",
        processor={
            "patch_size": 14,
            "spatial_merge_size": 2,
            "image_token": "<image>",
            "image_break_token": "<break>",
            "image_end_token": "</img>",
        },
        images={"patch_size": {"height": 28, "width": 28}, "size": {"longest_edge": 112}},
    ),
    "gemma3": Family(
        vision=SIGLIP,
        text=SMALL | {"sliding_window": 16},
        config={"mm_tokens_per_image": 4},
        images=SQUARE,
        processor={"image_seq_length": 4},
        placeholder="<boi>",
    ),
    "gemma4": Family(
        vision=TOWER | {"head_dim": 8, "num_key_value_heads": 4, "patch_size": 8, "pooling_kernel_size": 2},
        text=SMALL | {"sliding_window": 16, "hidden_size_per_layer_input": 8, "global_head_dim": 16},
        config={"audio_config": None},
        images={"patch_size": 8, "max_soft_tokens": 70, "pooling_kernel_size": 2},
        processor={"image_seq_length": 16},
    ),
    "paligemma": Family(
        vision=SIGLIP | {"projection_dim": 64},
        text=SMALL | {"model_type": "gemma"},
        config={"projection_dim": 64},
        images=SQUARE | {"image_seq_length": 16},
    ),
    "idefics3": Family(
        vision=CLIP,
        config={"scale_factor": 2},
        processor={"image_seq_len": 4},
        images={"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}},
        tokens=(
            "<fake_token_around_image>",
            "<global-img>",
            *(f"<row_{row}_col_{col}>" for row in range(1, 5) for col in range(1, 5)),
        ),
    ),
    "smolvlm": Family(
        vision=CLIP,
        config={"scale_factor": 2},
        processor={"image_seq_len": 4},
        images={"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}},
        tokens=(
            "<fake_token_around_image>",
            "<global-img>",
            *(f"<row_{row}_col_{col}>" for row in range(1, 5) for col in range(1, 5)),
        ),
    ),
    "glm4v": Family(**GLM),
    "glm46v": Family(**GLM),
    "glm4v_moe": Family(**GLM | {"text": MROPE | EXPERTS, "image_class": "Glm4vImageProcessorPil"}),
    "paddleocr_vl": Family(
        vision=TOWER | {"image_size": 56, "patch_size": 14},
        text=MROPE,
        images=QWEN_SIZE,
    ),
    "qwen3_5": Family(**QWEN_3_5),
    "qwen3_5_moe": Family(**QWEN_3_5),
    "video_llama_3": Family(vision=TOWER | {"patch_size": 14}, images=QWEN_SIZE | {"patch_size": 14}),
    "hyperclovax_vision_v2": Family(
        vision=QWEN_TOWER | {"model_type": "qwen2_5_vl_vision", "window_size": 56, "fullatt_block_indexes": [1]},
        images=NATIVE,
    ),
    "ernie4_5_vl_moe": Family(
        vision={"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2},
        text=MROPE | EXPERTS | {"moe_intermediate_size": [48, 48], "mlp_layer_types": ["dense", "dense"]},
        images=NATIVE,
    ),
    "kimi_k25": Family(
        vision=TOWER | {"pos_emb_height": 8, "pos_emb_width": 8},
        config={"projection_hidden_size": 32},
        images={"patch_size": 14},
    ),
    "minimax_m3_vl": Family(
        vision=TOWER | {"image_size": 56},
        config={"projector_hidden_size": 64, "image_token_id": "]<]image[>["},
        text=SMALL
        | EXPERTS
        | {
            "rotary_dim": 8,
            "dense_intermediate_size": 96,
            "shared_intermediate_size": 48,
            "mlp_layer_types": ["dense", "dense"],
        },
        tokens=("]<]image[>[", "]<]video[>[", "]<]start of image[>[", "]<]end of image[>["),
        placeholder="]<]image[>[",
    ),
    "hunyuan_vl": Family(
        vision=TOWER | {"image_size": 56, "patch_size": 14},
        placeholder="<img><image></img>",
        images=NATIVE,
        text=SMALL | {"rope_parameters": ROPE | {"mrope_section": [2, 2, 2, 2]}},
    ),
    "deepseek_vl": Family(vision=SIGLIP, images=SQUARE | {"min_size": 14}, processor={"num_image_tokens": 16}),
    "janus": Family(
        vision=TOWER
        | {"image_size": 56, "patch_size": 14, "projection_dim": 64, "mlp_ratio": 2, "num_image_tokens": 16},
        config={
            "vq_config": {
                "embed_dim": 8,
                "num_embeddings": 16,
                "latent_channels": 8,
                "base_channels": 32,
                "channel_multiplier": [1],
                "num_res_blocks": 1,
                "num_patches": 4,
                "projection_dim": 64,
                "image_token_embed_dim": 64,
            }
        },
        images=SQUARE | {"min_size": 14},
        processor={"num_image_tokens": 16},
    ),
    "exaone4_5": Family(
        vision=QWEN_TOWER | {"window_size": 56, "fullatt_block_indexes": [1], "num_key_value_heads": 2},
        images=NATIVE,
        text=SMALL | {"model_type": "exaone4"},
    ),
    "glm5_next": Family(
        vision=GLM["vision"] | {"projection_intermediate_size": 48},
        images=NATIVE,
        text=SMALL
        | EXPERTS
        | {
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "v_head_dim": 16,
            "qk_nope_head_dim": 16,
            "index_head_dim": 16,
            "index_n_heads": 2,
        },
    ),
    "aria": Family(
        vision=TOWER | {"model_type": "idefics3_vision", "image_size": 980, "patch_size": 70},
        text=SMALL | EXPERTS,
        config={"projector_patch_to_query_dict": {196: 8}},
        processor={"size_conversion": {980: 8}},
        refused="resampler",
    ),
}

WINDOW = SMALL | {"sliding_window": 16}
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
ATTENTION = {
    "gemma3": replace(
        FAMILIES["gemma3"], text=WINDOW | {"num_hidden_layers": 3, "layer_types": ALTERNATING}, model_type="gemma3"
    ),
    "gemma4": replace(
        FAMILIES["gemma4"], model_type="gemma4",
        text=FAMILIES["gemma4"].text | {"num_hidden_layers": 3, "layer_types": [*ALTERNATING[::2], "full_attention"],
                                        "use_bidirectional_attention": "vision"},
    ),
    "mistral": replace(FAMILIES["llava_next"], text=WINDOW | {"model_type": "mistral"}, model_type="llava_next"),
    "cohere2": replace(
        FAMILIES["cohere2_vision"], model_type="cohere2_vision",
        text=WINDOW | {"model_type": "cohere2", "num_hidden_layers": 3, "layer_types": ALTERNATING},
    ),
    "paligemma": replace(FAMILIES["paligemma"], model_type="paligemma"),
    "paligemma2": replace(
        FAMILIES["paligemma"], model_type="paligemma",
        text=WINDOW | {"model_type": "gemma2", "attn_logit_softcapping": 5.0},
    ),
    "gpt_oss": replace(
        FAMILIES["internvl"], model_type="internvl",
        text=WINDOW | {"model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
}  # fmt: skip
"""Families under other kinds of attention: windows of 16 keys, image blocks and prefixes that are attended to in both
directions, soft caps, sink logits."""
