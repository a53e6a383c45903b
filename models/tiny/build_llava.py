"""Embedded LLaVA: model before training, and the trained checkpoint as the teacher of the other families.

Before training: configuration, tokenizer, processor and initial weights of a stock `LlavaForConditionalGeneration`:
images of 96 px in 12 x 12 patches, a CLIP vision encoder, a two-layer projector and a Llama decoder with a word-level
vocabulary.

Teacher: the decoders of the other families start from its decoder, and their first layers are trained to produce the
output of its projector for the same image.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from models.tiny.initialise import convolution_like, mimetic
from models.tiny.packing import Pack, Prefix, register_attention
from models.tiny.questions import words

SIDE, PATCH = 96, 8
PATCHES = SIDE // PATCH
WIDTH = 128
SPECIALS = ("<pad>", "<s>", "</s>", "<unk>", "<image>")  # ids 0..4
PAD, BOS, EOS, UNK, IMAGE = range(5)
AFTER_QUESTION, END = ("assistant", ":"), "</s>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : "
    "{% if message['content'] is string %}{{ message['content'] }} {% else %}"
    "{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}<image> {% elif item['type'] == 'text' %}{{ item['text'] }} {% endif %}"
    "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)
CHECKPOINT = Path(__file__).parent / "tiny-llava"
TEACHER_SCALE = 0.05  # of the teacher's image tokens: students would need long to reach the full norm


def word_level(specials: tuple[str, ...]) -> Tokenizer:
    """Word-level, lower-case tokenizer with separate punctuation; `specials` have the first ids.

    "Where is the red circle?" has the tokens of "where is the red circle ?".
    """
    vocabulary = {word: index for index, word in enumerate((*specials, *words()))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    punctuation = pre_tokenizers.Split(Regex(r"[^\w\s]"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), punctuation])
    return tokenizer


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer that prepends <s>."""
    tokenizer = word_level(SPECIALS)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def build_processor() -> LlavaProcessor:
    """Processor for images of SIDE px in patches of PATCH px, with the chat template."""
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        images,
        build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=CHAT_TEMPLATE,
    )


def build_config(vocabulary: int) -> LlavaConfig:
    """Configuration with this vocabulary size."""
    ids = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        hidden_act="gelu",
        projection_dim=WIDTH,
    )
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        initializer_range=WIDTH**-0.5,
        tie_word_embeddings=True,
        **ids,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        image_seq_length=PATCHES**2,
        projector_hidden_act="gelu",
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        **ids,
    )


def prefix(vocabulary: dict[str, int]) -> tuple[list[int], list[int]]:
    """Token ids before the question, `<s> user : <image> ...`, and the indices of the image tokens among them."""
    start = [BOS, vocabulary["user"], vocabulary[":"]]
    return [*start, *[IMAGE] * PATCHES**2], list(range(len(start), len(start) + PATCHES**2))


def prefix_positions(ids: list[int]) -> torch.Tensor:
    """[1, token]"""
    return torch.arange(len(ids))[None]


def features(model: LlavaForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """Projector inputs [image, patch, width] of images [image, rgb, row, column]."""
    return model.model.vision_tower(pixels).last_hidden_state[:, 1:]


def project(model: LlavaForConditionalGeneration, features: torch.Tensor) -> torch.Tensor:
    """Decoder inputs [image, patch, width] of `features`."""
    return model.model.multi_modal_projector(features)


def parts(model: LlavaForConditionalGeneration) -> dict[str, list]:
    """Groups of modules that share a learning rate; see `models.tiny.learning`."""
    inner = model.model
    return {
        "tower": [inner.vision_tower],
        "projector": [inner.multi_modal_projector],
        "embeddings": [inner.language_model.embed_tokens],
        "decoder": [inner.language_model.layers, inner.language_model.norm],
    }


def build_model(vocabulary: dict[str, int]) -> LlavaForConditionalGeneration:
    """Untrained model; random initial weights come from torch's global generator."""
    model = LlavaForConditionalGeneration(build_config(len(vocabulary)))
    convolution_like(model.model.vision_tower, PATCHES, PATCHES)
    mimetic(model.model.language_model)
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=16, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS
    )
    return model


def load_teacher() -> LlavaForConditionalGeneration:
    """Load the trained checkpoint, frozen, in float32."""
    logging.disable_progress_bar()
    teacher = LlavaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32)
    teacher.set_attn_implementation(register_attention())
    return teacher.eval().requires_grad_(False)


@torch.no_grad()
def teacher_tokens(teacher: LlavaForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """Image tokens [image, cell, width] that the teacher's projector outputs, times TEACHER_SCALE.

    `pixels` [image, rgb, row, column]. The decoder normalises its input, so the scale changes its states little.
    """
    with torch.autocast("cpu", torch.bfloat16):
        tokens = teacher.model.multi_modal_projector(features(teacher, pixels))
    return TEACHER_SCALE * tokens.float()


def teacher_prefix() -> tuple[Prefix, dict[str, int]]:
    """Return the tokens around a question in the teacher's prompt, and its vocabulary."""
    vocabulary = AutoTokenizer.from_pretrained(CHECKPOINT).get_vocab()
    ids, image = prefix(vocabulary)
    positions = prefix_positions(ids)
    return Prefix(ids, image, positions, AFTER_QUESTION, END), vocabulary


@torch.no_grad()
def feed_forward_states(teacher, tokens: torch.Tensor, packed: Pack) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Inputs (before the norm) and outputs of the feed-forward block of each layer, each [image, token, width]."""
    decoder, before, after = teacher.model.language_model, [], []
    hooks = [
        hook
        for layer in decoder.layers
        for hook in (
            layer.post_attention_layernorm.register_forward_pre_hook(lambda _, states: before.append(states[0])),
            layer.mlp.register_forward_hook(lambda _, states, output: after.append(output.float())),
        )
    ]
    image = (packed.ids == IMAGE)[..., None]
    embedded = decoder.embed_tokens(packed.ids).masked_scatter(image, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        decoder(inputs_embeds=embedded, attention_mask=packed.mask, position_ids=packed.positions[0], use_cache=False)
    for hook in hooks:
        hook.remove()
    return before, after


@torch.no_grad()
def copy_embeddings(decoder, vocabulary: dict[str, int], names: dict[str, str]) -> None:
    """Copy the teacher's word embeddings into a decoder.

    `names` maps a word to its name in the teacher's vocabulary where they differ; words that the teacher lacks keep
    their random embedding.
    """
    source = load_teacher().get_input_embeddings().weight
    indices = AutoTokenizer.from_pretrained(CHECKPOINT).get_vocab()
    for word, index in vocabulary.items():
        if (source_index := indices.get(names.get(word, word))) is not None:
            decoder.embed_tokens.weight[index] = source[source_index]


@torch.no_grad()
def copy_layers(decoder, first_layers: int) -> None:
    """Copy the teacher's layers into a decoder of the same kind, after its first `first_layers`; zero the biases."""
    teacher = load_teacher().model.language_model
    for layer, source in zip(decoder.layers[first_layers:], teacher.layers, strict=True):
        for name, parameter in layer.named_parameters():
            if name.endswith(".bias"):  # Llama has none
                parameter.zero_()
            else:
                parameter.copy_(source.get_parameter(name))
    decoder.norm.weight.copy_(teacher.norm.weight)


@torch.no_grad()
def copy_attention(decoder, first_layers: int) -> None:
    """Copy the teacher's norms and attention into a Persimmon decoder, after its first `first_layers`.

    Persimmon fuses queries, keys and values in one matrix, head by head, and rotates only the first half of a head's
    channels. The teacher's fast rotary pairs go to that half; the slow ones, which rotate little over the length of a
    question, go to the other half.
    """
    teacher = load_teacher().model.language_model
    for layer, source in zip(decoder.layers[first_layers:], teacher.layers, strict=True):
        attention, source_attention = layer.self_attn, source.self_attn
        heads, width = attention.num_heads, attention.head_dim
        pairs = torch.arange(width).view(2, 2, width // 4)  # [member of a pair, fast | slow, pair]
        order = pairs.transpose(0, 1).flatten()  # fast pairs, then slow ones
        query, key, value = (
            getattr(source_attention, name).weight.view(heads, width, -1) for name in ("q_proj", "k_proj", "v_proj")
        )
        fused = torch.stack([query[:, order], key[:, order], value], 1)  # [head, 3, channel, width]
        attention.query_key_value.weight.copy_(fused.flatten(0, 2))
        attention.dense.weight.copy_(source_attention.o_proj.weight)
        for name in ("input_layernorm", "post_attention_layernorm"):
            layer.get_submodule(name).weight.copy_(source.get_submodule(name).weight)
    decoder.final_layernorm.weight.copy_(teacher.norm.weight)
