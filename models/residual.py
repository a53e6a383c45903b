"""The residual stream that enters each layer of the decoder, passed to a callback; nothing is stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import get_ident

import torch
from torch import nn
from transformers import PreTrainedModel

from models.attention import ATTENTION, attention_stack

See = Callable[[int, torch.Tensor], None]
"""Called with (layer, residual stream [sample, row, width]) before each layer runs; layers count from 0."""


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder's layers in order: the modules that hold its attention. ValueError as `attention_stack` raises it."""
    stack, _ = attention_stack(model, "decoder")
    names = [name for name, _ in stack.named_modules() if name.rpartition(".")[2] in ATTENTION]
    return [stack.get_submodule(name.rpartition(".")[0]) for name in names]


@contextmanager
def residual_stream(model: PreTrainedModel, see: See) -> Iterator[None]:
    """Call `see` with the residual stream that enters every decoder layer, in prefill and at each step of this thread.

    Its argument is the model's own tensor: reduce it at once (a layer of a model 4096 wide holds 64 MB of float32 at
    4096 tokens), and change nothing in it. The model is left as it was.
    """
    with ExitStack() as hooks:
        for layer, module in enumerate(decoder_layers(model)):
            handle = module.register_forward_pre_hook(partial(_show, see, layer, get_ident()), with_kwargs=True)
            hooks.callback(handle.remove)
        yield


def _show(see: See, layer: int, thread: int, module: nn.Module, args: tuple, kwargs: dict) -> None:
    if get_ident() == thread:
        see(layer, (args[0] if args else kwargs["hidden_states"]).detach())


@torch.no_grad()
def prefill(model: PreTrainedModel, inputs) -> None:
    """Runs the prompt through the model once, for its listeners: no logits, no cache."""
    model.base_model(**inputs, use_cache=False)
