"""The residual stream that enters each layer of the decoder, passed to a callback; nothing is stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import signature
from threading import get_ident

import torch
from torch import nn
from transformers import PreTrainedModel

from data.errors import SampleError
from models.attention import attention_modules, attention_stack

See = Callable[[int, torch.Tensor], None]
"""Called with (layer, residual stream [sample, row, width]) before each layer runs; layers count from 0."""


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder's layers in order: the modules that hold its attention. ValueError as `attention_stack` raises it."""
    stack, _ = attention_stack(model, "decoder")
    return [stack.get_submodule(name.rpartition(".")[0]) for name in attention_modules(stack)]


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
    """Run the prompt through the model once, for its listeners: no logits, no cache.

    Raises SampleError where the activations are not finite. The last row tells: attention carries a NaN or an infinity
    of any earlier row of a lower layer into it.
    """
    states = model.base_model(**inputs, use_cache=False).last_hidden_state
    if not states[:, -1].isfinite().all():
        raise not_finite(model, inputs)


def not_finite(model: PreTrainedModel, inputs: Mapping) -> SampleError:
    """The error for a batch whose activations are NaN or infinite, naming the first decoder layer that makes them.

    inputs: of the model or of its `generate`. The prompt runs once more, in a thread of its own: listeners and steering
    of this one are not meant for it.
    """
    with ThreadPoolExecutor(1) as pool:
        place = pool.submit(first_not_finite, model, inputs).result()
    number = str(model.dtype).removeprefix("torch.")
    remedy = "use --dtype bfloat16 or float32" if number == "float16" else "float32 has the widest range"
    message = f"the activations are not finite in {number}, first in {place}; {remedy}"
    return SampleError("activations not finite", message)


@torch.no_grad()
def first_not_finite(model: PreTrainedModel, inputs: Mapping) -> str:
    """The first place in the decoder where a row of a prompt is NaN or infinite; padding does not count."""
    accepted = signature(model.base_model.forward).parameters
    prompt = {name: value for name, value in inputs.items() if name in accepted and name != "past_key_values"}
    rows = inputs["attention_mask"].bool() if inputs.get("attention_mask") is not None else slice(None)
    entering = []
    with residual_stream(model, lambda layer, states: entering.append(bool(states[rows].isfinite().all()))):
        final = model.base_model(**prompt | {"use_cache": False}).last_hidden_state
    finite = [*entering, bool(final[rows].isfinite().all())]
    if all(finite):
        return "a row of a generated token, or under steering"
    layer = finite.index(False)
    return f"the output of decoder layer {layer - 1} of {len(entering)}" if layer else "the embeddings of the prompt"
