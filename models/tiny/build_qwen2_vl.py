"""Embedded Qwen2-VL before training: configuration, tokenizer, processor and initial weights.

A stock `Qwen2VLForConditionalGeneration`: images of about 96 x 96 px in patches of 4 px, merged 2 x 2 into cells of
8 px. The vision encoder is initialised as a small convolutional network. The first decoder layer is initialised to
encode the row and column of each cell, since the vision encoder's rotary embedding encodes distances only; the later
layers are those of the embedded LLaVA.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_position_ids

from models.processors import Qwen2VLImageTextProcessor
from models.tiny.build_llava import copy_embeddings, copy_layers, word_level
from models.tiny.initialise import neighbours_by_rotation, patch_filters, place_heads
from models.tiny.packing import fast_attention

SIDE, PATCH, MERGE = 96, 4, 2
PATCHES = SIDE // (PATCH * MERGE)  # cells per side
WIDTH, ENCODER_WIDTH = 128, 64
FIRST_LAYERS = 1  # new decoder layers; the others are copied from the teacher
SPECIALS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>", "<|image_pad|>"),
    *("<|video_pad|>", "<|vision_start|>", "<|vision_end|>"),
)  # ids 0..7
PAD, START, EOS, UNK, IMAGE, VIDEO, VISION_START, VISION_END = range(8)
TEACHER_NAMES = {"<|endoftext|>": "<pad>", "<|im_start|>": "<s>", "<|im_end|>": "</s>"}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} : "
    "{% if message['content'] is string %}{{ message['content'] }} {% else %}"
    "{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif item['type'] == 'text' %}{{ item['text'] }} {% endif %}"
    "{% endfor %}{% endif %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant :{% endif %}"
)
AFTER_QUESTION = ("<|im_end|>", "<|im_start|>", "assistant", ":")
END = "<|im_end|>"
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 384,
    "num_hidden_layers": 4 + FIRST_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "initializer_range": WIDTH**-0.5,
    "rms_norm_eps": 1e-6,
    # time, height, width: every pair rotates by less than one turn over twelve rows or columns
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 12]},
    "tie_word_embeddings": True,
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": EOS,
}
ENCODER_RANGE = 0.06
ENCODER_ROPE = {"rope_type": "axial", "rope_theta": 20.0}  # resolves neighbours in an image of 24 patches per side


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer; the chat template writes all special tokens."""
    return PreTrainedTokenizerFast(
        tokenizer_object=word_level(SPECIALS),
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        additional_special_tokens=[token for token in SPECIALS if token != "<unk>"],
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def build_processor(kind: type = Qwen2VLImageTextProcessor):
    """Processor of class `kind`: images resized to about SIDE x SIDE px, in patches of PATCH px."""
    images = Qwen2VLImageProcessorPil(
        size={"shortest_edge": SIDE**2, "longest_edge": SIDE**2},
        patch_size=PATCH,
        merge_size=MERGE,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return kind(images, build_tokenizer(), chat_template=CHAT_TEMPLATE)


def token_ids() -> dict[str, int]:
    """Config fields with the ids of the vision tokens."""
    return {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END,
    }


def build_config(vocabulary: int) -> Qwen2VLConfig:
    """Configuration with this vocabulary size."""
    vision = {
        "depth": 4,
        "embed_dim": ENCODER_WIDTH,
        "hidden_size": WIDTH,
        "num_heads": 4,
        "mlp_ratio": 3,
        "hidden_act": "gelu",
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "rope_parameters": ENCODER_ROPE,
        "initializer_range": ENCODER_RANGE,
    }
    return Qwen2VLConfig(
        text_config={**TEXT, "vocab_size": vocabulary}, vision_config=vision, tie_word_embeddings=True, **token_ids()
    )


def build_model(vocabulary: dict[str, int]) -> Qwen2VLForConditionalGeneration:
    """Untrained model; random initial weights come from torch's global generator."""
    return initialise(Qwen2VLForConditionalGeneration(build_config(len(vocabulary))), vocabulary)


def initialise(model, vocabulary: dict[str, int]):
    """Initialise a random model of either Qwen family and return it."""
    initialise_vision(model.model.visual)
    decoder = model.model.language_model
    copy_embeddings(decoder, vocabulary, TEACHER_NAMES)
    copy_layers(decoder, FIRST_LAYERS)
    landmarks = decoder.embed_tokens.weight[[START, VISION_START]]
    place_heads(decoder.layers[0], landmarks, decoder.rotary_emb.inv_freq, PATCHES)
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=16, pad_token_id=PAD, bos_token_id=START, eos_token_id=EOS
    )
    return model


@torch.no_grad()
def initialise_vision(visual) -> None:
    """Initialise a Qwen vision encoder as a small convolutional network."""
    filters = patch_filters(ENCODER_WIDTH, PATCH)[:, :, None]  # half of the filter for each of the two identical frames
    visual.patch_embed.proj.weight.zero_()
    visual.patch_embed.proj.weight[: len(filters)] = filters / visual.config.temporal_patch_size
    for index, block in enumerate(visual.blocks):
        neighbours_by_rotation(block.attn, visual.rotary_pos_emb.inv_freq, index)


def parts(model) -> dict[str, list]:
    """Groups of modules that share a learning rate; see `models.tiny.learning`."""
    inner = model.model
    layers = inner.language_model.layers
    return {
        "tower": [inner.visual.patch_embed, inner.visual.blocks],
        "projector": [inner.visual.merger],
        "embeddings": [inner.language_model.embed_tokens],
        "first_layers": [layers[:FIRST_LAYERS]],
        "decoder": [layers[FIRST_LAYERS:], inner.language_model.norm],
    }


def prefix(vocabulary: dict[str, int]) -> tuple[list[int], list[int]]:
    """Token ids before the question and the indices of the image tokens among them."""
    before = [START, vocabulary["user"], vocabulary[":"], VISION_START]
    image = range(len(before), len(before) + PATCHES**2)
    return [*before, *[IMAGE] * PATCHES**2, VISION_END], list(image)


def prefix_positions(ids: list[int]) -> torch.Tensor:
    """[time | row | column, token]: text positions increase; cells share one time and differ in row and column."""
    first = ids.index(IMAGE)
    cell = torch.arange(PATCHES**2)
    cells = first + torch.stack([torch.zeros_like(cell), cell // PATCHES, cell % PATCHES])
    before = torch.arange(first).expand(3, -1)
    after = first + PATCHES + torch.arange(len(ids) - first - PATCHES**2).expand(3, -1)
    return torch.cat([before, cells, after], 1)


def features(model, pixels: torch.Tensor) -> torch.Tensor:
    """Outputs [image, cell, width] of the vision encoder for images [image, rgb, row, column].

    Equals the stock vision encoder, batched over images of one size.
    """
    visual = model.model.visual
    side = PATCHES * MERGE
    blocks = pixels.reshape(len(pixels), 3, PATCHES, MERGE, PATCH, PATCHES, MERGE, PATCH)
    blocks = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(5).flatten(1, 4)  # [image, patch, rgb row column]
    states = F.linear(blocks, visual.patch_embed.proj.weight.sum(2).flatten(1))
    places = get_vision_position_ids(torch.tensor([[1, side, side]]), MERGE)
    rotation = visual.rotary_pos_emb(states, places)
    order, window = window_order(visual)
    states = reorder_cells(states, order)
    rotation = tuple(reorder_cells(angle[None], order)[0] for angle in rotation)
    full = getattr(visual, "fullatt_block_indexes", range(len(visual.blocks)))
    for index, block in enumerate(visual.blocks):
        size = side**2 if index in full else window
        states = states + attend(block.attn, block.norm1(states), rotation, size)
        states = states + block.mlp(block.norm2(states))
    return visual.merger(reorder_cells(states, order.argsort())).view(len(pixels), PATCHES**2, -1)


def window_order(visual) -> tuple[torch.Tensor, int]:
    """Order [cell] of the cells in the vision encoder, and the number of patches per window."""
    if not hasattr(visual, "window_size"):
        return torch.arange(PATCHES**2), (PATCHES * MERGE) ** 2
    cells = visual.window_size // (MERGE * PATCH)
    count = PATCHES // cells
    grid = torch.arange(PATCHES**2).view(count, cells, count, cells)
    return grid.transpose(1, 2).flatten(), (cells * MERGE) ** 2


def reorder_cells(states: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Put the cells (groups of patches) of states [image, patch, width] into the given order."""
    return states.unflatten(1, (len(order), -1))[:, order].flatten(1, 2)


def attend(attention, states: torch.Tensor, rotation, window: int) -> torch.Tensor:
    """Attention within windows of `window` consecutive patches: [image, patch, width] -> the same shape."""
    images, patches, width = states.shape
    query, key, value = attention.qkv(states).view(images, patches, 3, attention.num_heads, -1).unbind(2)
    query, key = apply_rotary_pos_emb_vision(query, key, *rotation)
    windows = (part.reshape(-1, window, *part.shape[2:]).transpose(1, 2) for part in (query, key, value))
    output, _ = fast_attention(attention, *windows, None, scaling=attention.scaling)
    return attention.proj(output.reshape(images, patches, width))
