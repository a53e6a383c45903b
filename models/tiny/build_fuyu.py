"""Embedded Fuyu before training: configuration, tokenizer, processor and initial weights.

A stock `FuyuForCausalLM` without vision encoder: patches of 8 px enter a Persimmon decoder row by row, with a newline
token after each row. The first decoder layers are initialised as a small causal convolutional network with heads for
row and column. The later layers start with the attention of the embedded LLaVA; their feed-forward blocks are distilled
from it.
"""

from __future__ import annotations

from string import ascii_uppercase

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import FuyuConfig, FuyuForCausalLM, FuyuProcessor, GenerationConfig, PreTrainedTokenizerFast

from models.processors import FuyuPilImageProcessor
from models.tiny.build_llava import copy_attention, copy_embeddings
from models.tiny.initialise import earlier_by_rotation, patch_filters, raster_heads
from models.tiny.questions import words

SIDE, PATCH = 96, 8
PATCHES = SIDE // PATCH
WIDTH, HEADS = 128, 4
FIRST_LAYERS = 4
SPECIALS = ("|ENDOFTEXT|", "<unk>", "<s>", "</s>", *(f"<0x0{number}>" for number in range(5)))  # ids 0..8
PLAIN = ("▁", "|SPEAKER|", "|NEWLINE|")  # ids 9..11; the processor expects these as ordinary words
PAD, UNK, BOS, EOS = range(4)
BEGIN_OF_ANSWER, SPACE, IMAGE, NEWLINE = 8, 9, 10, 11
TEACHER_NAMES = {"|ENDOFTEXT|": "<pad>", "<0x04>": ":"}
AFTER_QUESTION, END = ("<0x04>",), "</s>"
# Pair 1 rotates once per row of patches with its newline: from a given column, all newlines have the same phase.
ROPE = {"rope_type": "default", "rope_theta": 335.0, "partial_rotary_factor": 0.5}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level, lower-case tokenizer with separate punctuation, as in the embedded LLaVA."""
    vocabulary = {word: index for index, word in enumerate((*SPECIALS, *PLAIN, *words()))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    # Lowercase() would also change |SPEAKER| and |NEWLINE|
    lower = [normalizers.Replace(Regex(rf"{capital}(?![A-Z]*\|)"), capital.lower()) for capital in ascii_uppercase]
    tokenizer.normalizer = normalizers.Sequence([*lower, normalizers.Prepend("▁")])
    pieces = Regex(r"▁|\|SPEAKER\||\|NEWLINE\||\w+|[^\w\s]")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pieces, "isolated"), pre_tokenizers.Split(Regex(r"\s+"), "removed")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="|ENDOFTEXT|",
        unk_token="<unk>",
        additional_special_tokens=list(SPECIALS[4:]),
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=2048,
    )


def build_processor() -> FuyuProcessor:
    """Processor for images of at most SIDE px in patches of PATCH px."""
    limit = {"height": SIDE, "width": SIDE}
    return FuyuProcessor(
        FuyuPilImageProcessor(size=limit, patch_size={"height": PATCH, "width": PATCH}), build_tokenizer()
    )


def build_config(vocabulary: int) -> FuyuConfig:
    """Configuration with this vocabulary size."""
    shared = {"vocab_size": vocabulary, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    text = {
        "model_type": "persimmon",
        "hidden_size": WIDTH,
        "intermediate_size": 512,
        "num_hidden_layers": FIRST_LAYERS + 4,
        "num_attention_heads": HEADS,
        "qk_layernorm": False,  # the teacher has none
        "max_position_embeddings": 2048,
        "initializer_range": WIDTH**-0.5,
        "rope_parameters": ROPE,
        "tie_word_embeddings": True,
        **shared,
    }
    return FuyuConfig(
        text_config=text,
        hidden_size=WIDTH,
        patch_size=PATCH,
        num_channels=3,
        image_token_id=IMAGE,
        tie_word_embeddings=True,
        **shared,
    )


@torch.no_grad()
def build_model(vocabulary: dict[str, int]) -> FuyuForCausalLM:
    """Untrained model; random initial weights come from torch's global generator."""
    model = FuyuForCausalLM(build_config(len(vocabulary)))
    decoder = model.model.language_model
    copy_embeddings(decoder, vocabulary, TEACHER_NAMES)
    copy_attention(decoder, FIRST_LAYERS)
    filters = patch_filters(WIDTH, PATCH)  # [channel, rgb, row, column]; Fuyu flattens a patch as row, column, rgb
    model.model.vision_embed_tokens.weight.copy_(filters.permute(0, 2, 3, 1).flatten(1))
    model.model.vision_embed_tokens.bias.zero_()
    frequencies = decoder.rotary_emb.inv_freq
    raster_heads(decoder.layers[0], decoder.embed_tokens.weight[NEWLINE], frequencies)
    for index, layer in enumerate(decoder.layers[1:FIRST_LAYERS]):
        earlier_by_rotation(layer, frequencies, PATCHES + 1, index)
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=16, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS
    )
    return model


def parts(model: FuyuForCausalLM) -> dict[str, list]:
    """Groups of modules that share a learning rate; see `models.tiny.learning`."""
    decoder = model.model.language_model
    return {
        "tower": [],
        "projector": [model.model.vision_embed_tokens],
        "embeddings": [decoder.embed_tokens],
        "first_layers": [decoder.layers[:FIRST_LAYERS]],
        "decoder": [decoder.layers[FIRST_LAYERS:], decoder.final_layernorm],
    }


def prefix(vocabulary: dict[str, int]) -> tuple[list[int], list[int]]:
    """Token ids before the question and the indices of the image tokens among them.

    The ids are rows of patches, each with its newline, then <s> and the space that the tokenizer prepends to a text.
    """
    ids = [*([IMAGE] * PATCHES + [NEWLINE]) * PATCHES, BOS, SPACE]
    return ids, [index for index, token in enumerate(ids) if token == IMAGE]


def prefix_positions(ids: list[int]) -> torch.Tensor:
    """[1, token]"""
    return torch.arange(len(ids))[None]


def features(model: FuyuForCausalLM, pixels: torch.Tensor) -> torch.Tensor:
    """Decoder inputs [image, patch, width] of images [image, rgb, row, column]."""
    patches = pixels.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # [image, rgb, down, right, row, column]
    return model.model.vision_embed_tokens(patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2))
