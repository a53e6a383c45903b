"""The embedded LLaVA as a teacher: its decoder is where the other families' decoders start, and what its projector
says of a picture is what their first layers learn to say of the same picture."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, LlavaForConditionalGeneration
from transformers.utils import logging

from models.tiny import build_llava
from models.tiny.fast_attention import register
from models.tiny.packing import Pack, Prefix

CHECKPOINT = Path(__file__).parent / "tiny-llava"
LOUDNESS = 0.05  # of what is said; tokens as large as the teacher's own would take a pupil long to reach


def load_teacher() -> LlavaForConditionalGeneration:
    """Frozen, in float32."""
    logging.disable_progress_bar()
    teacher = LlavaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32)
    teacher.set_attn_implementation(register())
    return teacher.eval().requires_grad_(False)


@torch.no_grad()
def say(teacher: LlavaForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """What its decoder is told of pictures [picture, rgb, row, column]: [picture, cell, width].

    Said more softly, which its decoder, listening through a norm, mostly understands.
    """
    with torch.autocast("cpu", torch.bfloat16):
        said = teacher.model.multi_modal_projector(build_llava.features(teacher, pixels))
    return LOUDNESS * said.float()


def teachers_frame() -> tuple[Prefix, dict[str, int]]:
    """What stands before and after a question to the teacher, and its vocabulary."""
    vocabulary = AutoTokenizer.from_pretrained(CHECKPOINT).get_vocab()
    ids, image = build_llava.prefix(vocabulary)
    positions = build_llava.prefix_positions(ids)
    return Prefix(ids, image, positions, build_llava.AFTER_QUESTION, build_llava.END), vocabulary


@torch.no_grad()
def observe(teacher, tokens: torch.Tensor, packed: Pack) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What enters (before the norm) and what leaves the feed-forward block of each layer, [picture, token, width]."""
    decoder, before, after = teacher.model.language_model, [], []
    hooks = [
        hook
        for layer in decoder.layers
        for hook in (
            layer.post_attention_layernorm.register_forward_pre_hook(lambda _, states: before.append(states[0])),
            layer.mlp.register_forward_hook(lambda _, states, said: after.append(said.float())),
        )
    ]
    image = (packed.ids == build_llava.IMAGE)[..., None]
    embedded = decoder.embed_tokens(packed.ids).masked_scatter(image, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        decoder(inputs_embeds=embedded, attention_mask=packed.mask, position_ids=packed.positions[0], use_cache=False)
    for hook in hooks:
        hook.remove()
    return before, after


@torch.no_grad()
def copy_embeddings(decoder, vocabulary: dict[str, int], names: dict[str, str]) -> None:
    """`names` says what the teacher calls a word that has another name with it; words that it does not have keep their
    random embedding."""
    theirs = load_teacher().get_input_embeddings().weight
    known = AutoTokenizer.from_pretrained(CHECKPOINT).get_vocab()
    for word, index in vocabulary.items():
        if (place := known.get(names.get(word, word))) is not None:
            decoder.embed_tokens.weight[index] = theirs[place]


@torch.no_grad()
def copy_layers(decoder, first_layers: int) -> None:
    """Copies the layers, behind the first `first_layers`, into a decoder of the same kind (biases apart)."""
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
    """Copies norms and attention, behind the first `first_layers`, into a Persimmon decoder.

    Its queries, keys and values are one matrix, head after head, and only the first half of a head's channels turn:
    the fast pairs of the teacher's go there, the slow ones, which turn little over the length of a question, do not.
    """
    teacher = load_teacher().model.language_model
    for layer, source in zip(decoder.layers[first_layers:], teacher.layers, strict=True):
        attention, theirs = layer.self_attn, source.self_attn
        heads, width = attention.num_heads, attention.head_dim
        pairs = torch.arange(width).view(2, 2, width // 4)  # [member of a pair, fast or slow, pair]
        order = pairs.transpose(0, 1).flatten()  # fast pairs, then slow ones
        query, key, value = (
            linear.weight.view(heads, width, -1) for linear in (theirs.q_proj, theirs.k_proj, theirs.v_proj)
        )
        fused = torch.stack([query[:, order], key[:, order], value], 1)  # [head, 3, channel, width]
        attention.query_key_value.weight.copy_(fused.flatten(0, 2))
        attention.dense.weight.copy_(theirs.o_proj.weight)
        for name in ("input_layernorm", "post_attention_layernorm"):
            layer.get_submodule(name).weight.copy_(source.get_submodule(name).weight)
    decoder.final_layernorm.weight.copy_(teacher.norm.weight)
