"""Recording and steering of SDPA attention and of the residual stream; asynchronous copies to the CPU.

transformers selects the attention function by a name in the config of each sub-model. The name is NAME while a listener
or an edit is attached, and is restored afterwards. The mask function under NAME is SDPA's, so the same kernel runs and
the output is bit-identical to the unmodified model's. A function registered without a mask function would receive no
mask, even for padded batches.

Listeners and steering are attached to the attention modules by thread: a forward pass of the same model in another
thread is neither recorded nor steered. `residual_stream` passes the input of each decoder layer to a callback.
`replaying` computes the attention of recorded layers by another function, without listeners and edits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from threading import Lock, get_ident
from typing import Any, Literal

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from data.errors import InputError, SampleError
from models.rows import read_intervals, softmax_rows

NAME = "sightline"
ATTENTION = ("self_attn", "attn", "attention")  # names of attention modules: Llama; GPT-2, Qwen's encoders; GPT-NeoX
# Attributes of an attention module, dictionaries by thread: its listeners, its edit (`models.interventions.LayerEdit`),
# the function of a replay.
LISTENERS, STEERING, REPLAY = "sightline_listeners", "sightline_steering", "sightline_replay"
BLOCK_WEIGHTS = 2**22  # attention weights held at a time where SDPA does not compute them
LOCK = Lock()  # guards changes of these attributes and of the name of the attention function

Part = Literal["decoder", "encoder"]


@dataclass(frozen=True, eq=False)
class Formula:
    """Weights of one call of attention: softmax(cap(scaling * query key^T)), see `models.rows.softmax_rows`.

    `sinks` [head]: the logits of a key without a value. SDPA computes neither a soft cap nor sinks.
    """

    scaling: float
    softcap: float | None = None
    sinks: torch.Tensor | None = None

    @property
    def is_softmax(self) -> bool:
        """Return whether the weights are the softmax of the scaled scores alone."""
        return self.softcap is None and self.sinks is None


Listener = Callable[[int, nn.Module, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, Formula], None]
"""Called with (layer, module, query, key, value, mask, formula) before each attention; shapes as in `attention`."""
Replay = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
"""Maps (layer, query, key, value, scaling) to the output [batch, row, head, width]; shapes as in `attention`."""


def attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """SDPA, preceded by the thread's listeners of `module`; applies the module's edit if there is one.

    A soft cap and sinks, which SDPA lacks, are computed as in eager attention, block by block in float32.

    query [batch, head, row, width] and key, value [batch, key head, key, width] are post-rotary, the cache included;
    attention_mask is None (causal in prefill, everything in decode) or bool [batch, 1, row, key], True = attend.
    Returns (output [batch, row, head, width], None). Raises ValueError as `check_arguments` does.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    replay = attached(module, REPLAY)
    if replay is not None:
        return replay(query, key, value, scale), None
    formula = Formula(scale, kwargs.get("softcap"), kwargs.get("s_aux"))
    listeners, edit = attached(module, LISTENERS, ()), attached(module, STEERING)
    if listeners or edit is not None:
        check_arguments(module, kwargs)
    for listener in listeners:
        listener(module, query, key, value, attention_mask, formula)
    if edit is not None:
        check_steerable(module, query, key, attention_mask, formula)
        plain = partial(sdpa_attention_forward, module, scaling=scale, dropout=dropout, **kwargs)
        return edit.attend(lambda *args: plain(*args)[0], query, key, value, attention_mask, scale), None
    if not formula.is_softmax:
        return attend_in_blocks(module, query, key, value, attention_mask, formula), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)


def attend_in_blocks(module: nn.Module, query, key, value, mask, formula: Formula) -> torch.Tensor:
    """Output of attention with a soft cap or sinks, [batch, row, head, width]; memory is linear in the keys."""
    rows, keys = query.shape[2], key.shape[2]
    intervals = read_intervals(mask, rows, keys, module.is_causal)
    output = value.new_empty(len(query), rows, query.shape[1], value.shape[-1])
    step = max(1, BLOCK_WEIGHTS // (query.shape[1] * keys))
    for sample in range(len(query)):
        wide = key[sample].float()
        for begin in range(0, rows, step):
            block = torch.arange(begin, min(begin + step, rows))
            first, last = intervals.of(sample, block)
            last = last.clamp_min(0)  # padding rows, whose output is not used
            weights = softmax_rows(
                query[sample, :, block].float(), wide, formula.scaling, last,
                first=first, softcap=formula.softcap, sinks=formula.sinks,
            )  # fmt: skip
            grouped = weights.to(value.dtype).reshape(len(wide), -1, keys)
            output[sample, block] = torch.bmm(grouped, value[sample]).view(*weights.shape[:2], -1).transpose(0, 1)
    return output


def check_steerable(module: nn.Module, query, key, mask: torch.Tensor | None, formula: Formula) -> None:
    """Raise ValueError unless a call is causal attention to all keys, the softmax of queries and keys alone.

    Only then are edited rows recomputed as the model computes them.
    """
    fault = None
    if not formula.is_softmax:
        fault = "with a soft cap" if formula.softcap is not None else "with a sink logit"
    elif query.shape[2] > 1 and not read_intervals(mask, query.shape[2], key.shape[2], module.is_causal).causal:
        fault = "in a window or in both directions"
    if fault:
        raise InputError(
            "steering-not-causal",
            f"{type(module).__name__} attends {fault}, and steering needs causal attention to all keys; record this "
            "model without steering, or load another one",
        )


def check_arguments(module: nn.Module, arguments: dict[str, Any]) -> None:
    """Raise ValueError for arguments of SDPA under which the weights are not the causal softmax of queries and keys."""
    if arguments.get("position_bias") is not None or arguments.get("is_causal") not in (None, module.is_causal):
        name = "position_bias" if arguments.get("position_bias") is not None else "is_causal"
        raise InputError(
            "attention-arguments",
            f"{type(module).__name__} attends with {name}, which changes its weights; recorded and steered attention "
            "must be the softmax of queries and keys alone, so call the model without it",
        )


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def attention_stack(model: PreTrainedModel, part: Part) -> tuple[PreTrainedModel, list[nn.Module]]:
    """The sub-model whose config names the attention function, and its attention modules in layer order.

    `part` is "decoder" (the language model) or "encoder" (the vision encoder). Raises ValueError for a model whose
    attention cannot be recorded, before any change.
    """
    stack = model.get_decoder() if part == "decoder" else vision_encoder(model)
    modules = list(attention_modules(stack).values())
    kind = type(model).__name__
    if not modules or not stack._can_set_attn_implementation():
        raise InputError(
            "no-attention-interface",
            f"the attention of {kind} does not go through transformers' attention interface, so it cannot be recorded",
        )
    if stack.config._attn_implementation not in (plain := plain_attention(type(stack)), NAME):
        raise InputError(
            "not-sdpa",
            f"{kind} was loaded with attn_implementation={stack.config._attn_implementation!r}; "
            f"recording needs {plain!r} (call model.set_attn_implementation({plain!r}))",
        )
    if part == "decoder":
        check_layers(stack.config, len(modules), kind)
    return stack, modules


def attention_modules(stack: PreTrainedModel) -> dict[str, nn.Module]:
    """Self-attention modules of a sub-model by name, in layer order.

    transformers' interface reads `is_causal` from the modules that call it; linear attention and the container
    modules of older classes (BertAttention) lack it.
    """
    named = ((name, module) for name, module in stack.named_modules() if name.rpartition(".")[2] in ATTENTION)
    return {name: module for name, module in named if hasattr(module, "is_causal")}


def check_layers(config: PreTrainedConfig, count: int, kind: str) -> None:
    """Raise ValueError unless a decoder with this config and `count` attention modules has attention in every layer.
    In a hybrid decoder, the attention layers would otherwise be numbered as if they were all layers."""
    if other := other_layer_types(config):
        raise InputError(
            "partial-attention",
            f"{kind} has layers without attention ({', '.join(other)}); recording needs it in every layer",
        )
    if count != config.num_hidden_layers:
        raise InputError(
            "layers-without-attention",
            f"{kind} has {config.num_hidden_layers} layers and {count} modules of self-attention; recording needs one "
            "in each layer",
        )


def vision_encoder(model: PreTrainedModel) -> PreTrainedModel:
    """The vision encoder. Raises ValueError if the model has none under a known name."""
    for name in ("vision_tower", "visual"):
        if hasattr(model.base_model, name):
            return getattr(model.base_model, name)
    raise InputError(
        "no-vision-encoder",
        f"no vision encoder of {type(model).__name__} is known, so there is none to record; known are those of "
        "LLaVA-1.5, Qwen2-VL, Qwen2.5-VL and Qwen3-VL (Fuyu has none: its patches enter the decoder directly)",
    )


ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}  # layer types whose rows are intervals


def other_layer_types(config: PreTrainedConfig) -> list[str]:
    """Layer types of a decoder's (text) config that are not attention to an interval of keys, sorted."""
    return sorted(set(getattr(config, "layer_types", None) or ()) - ATTENTION_LAYERS)


def cut_layers(config: PreTrainedConfig) -> set[int]:
    """Layers of a decoder with this (text) config whose cache drops distant keys."""
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return {layer for layer, kind in enumerate(kinds) if kind != "full_attention"}
    return set(range(config.num_hidden_layers)) if getattr(config, "sliding_window", None) else set()


def plain_attention(stack: type[PreTrainedModel]) -> str:
    """Name of the attention function under which a class runs when nothing is attached: SDPA's, if it has that.

    Soft caps (Gemma 2) and sinks (gpt-oss) are not in SDPA's formula.
    """
    return "sdpa" if stack._supports_sdpa else "eager"


@contextmanager
def listening(model: PreTrainedModel, part: Part, listener: Listener) -> Iterator[int]:
    """Call `listener` before every attention of `part` in this thread; yields the number of layers.

    The model is restored on exit.
    """
    stack, modules = attention_stack(model, part)
    listeners = [partial(listener, layer) for layer in range(len(modules))]
    with LOCK:
        for module, own in zip(modules, listeners, strict=True):
            attach(module, LISTENERS, (*attached(module, LISTENERS, ()), own))
        name_attention(stack, modules)
    try:
        yield len(modules)
    finally:
        with LOCK:
            for module, own in zip(modules, listeners, strict=True):
                others = tuple(other for other in attached(module, LISTENERS) if other is not own)
                attach(module, LISTENERS, others) if others else detach(module, LISTENERS)
            name_attention(stack, modules)


def is_attached(module: nn.Module, name: str) -> bool:
    """Return whether this thread attached a value to a module under LISTENERS or STEERING."""
    return get_ident() in getattr(module, name, {})


def attached(module: nn.Module, name: str, default: Any = None) -> Any:
    """The value that this thread attached to a module under LISTENERS or STEERING; `default` if there is none."""
    return getattr(module, name, {}).get(get_ident(), default)


def attach(module: nn.Module, name: str, value: Any) -> None:
    """Attach a value for this thread; the caller holds LOCK."""
    setattr(module, name, getattr(module, name, {}) | {get_ident(): value})


def detach(module: nn.Module, name: str) -> None:
    """Remove this thread's value, which must be there; the caller holds LOCK."""
    others = {thread: value for thread, value in getattr(module, name).items() if thread != get_ident()}
    setattr(module, name, others) if others else delattr(module, name)


def name_attention(stack: PreTrainedModel, modules: list[nn.Module]) -> None:
    """Set NAME in the config while any thread has a value attached, its plain name otherwise; the caller holds LOCK."""
    anything = any(hasattr(module, name) for module in modules for name in (LISTENERS, STEERING, REPLAY))
    stack.config._attn_implementation = NAME if anything else plain_attention(type(stack))


@contextmanager
def replaying(model: PreTrainedModel, replay: Replay) -> Iterator[list[nn.Module]]:
    """Compute the decoder's attention by `replay` within the block, in this thread; yields the decoder's layers.

    Listeners, edits and recorders of the residual stream are not called. The model is restored on exit.
    """
    stack, modules = attention_stack(model, "decoder")
    with LOCK:
        for layer, module in enumerate(modules):
            attach(module, REPLAY, partial(replay, layer))
        name_attention(stack, modules)
    try:
        yield decoder_layers(model)
    finally:
        with LOCK:
            for module in modules:
                detach(module, REPLAY)
            name_attention(stack, modules)


See = Callable[[int, torch.Tensor], None]
"""Called with (layer, residual stream [sample, row, width]) before each layer runs; layers count from 0."""


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder's layers in order: the modules that hold its attention. Raises ValueError as `attention_stack`."""
    stack, _ = attention_stack(model, "decoder")
    return [stack.get_submodule(name.rpartition(".")[0]) for name in attention_modules(stack)]


@contextmanager
def residual_stream(model: PreTrainedModel, see: See) -> Iterator[None]:
    """Call `see` with the residual stream that enters every decoder layer, in prefill and at each step of this thread.

    The argument is the model's own tensor: reduce it at once (64 MB of float32 per layer at width 4096 and 4096 tokens)
    and do not modify it. The model is restored on exit.
    """
    with layer_calls(model, lambda layer, states, arguments: see(layer, states)):
        yield


@contextmanager
def layer_calls(model: PreTrainedModel, see: Callable[[int, torch.Tensor, dict], None]) -> Iterator[None]:
    """`residual_stream` whose callback also receives the layer's keyword arguments."""
    _, modules = attention_stack(model, "decoder")
    with ExitStack() as hooks:
        for layer, (module, own) in enumerate(zip(decoder_layers(model), modules, strict=True)):
            show = partial(_show, see, layer, get_ident(), own)
            hooks.callback(module.register_forward_pre_hook(show, with_kwargs=True).remove)
        yield


def _show(see, layer: int, thread: int, own: nn.Module, module: nn.Module, args: tuple, kwargs: dict) -> None:
    if get_ident() == thread and not is_attached(own, REPLAY):
        see(layer, (args[0] if args else kwargs["hidden_states"]).detach(), kwargs)


@torch.no_grad()
def prefill(model: PreTrainedModel, inputs) -> None:
    """Run the prompt through the model once, for its listeners, without logits and cache.

    Raises SampleError if the activations are not finite. The check reads the last row: attention propagates a NaN or an
    infinity of any earlier row of a lower layer into it.
    """
    states = model.base_model(**inputs, use_cache=False).last_hidden_state
    if not states[:, -1].isfinite().all():
        raise not_finite(model, inputs)


def call_unattached(function: Callable, *args):
    """Result of a call in a separate thread, which has none of this thread's listeners and edits."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args).result()


def not_finite(model: PreTrainedModel, inputs: Mapping) -> SampleError:
    """Error for a batch with NaN or infinite activations, with the first decoder layer that produces them.

    inputs: of the model or of its `generate`. The prompt is run again, without listeners and edits.
    """
    place = call_unattached(first_not_finite, model, inputs)
    number = str(model.dtype).removeprefix("torch.")
    remedy = "use --dtype bfloat16 or float32" if number == "float16" else "float32 has the widest range"
    message = f"the activations are not finite in {number}, first in {place}; {remedy}"
    return SampleError("activations not finite", message)


@torch.no_grad()
def first_not_finite(model: PreTrainedModel, inputs: Mapping) -> str:
    """Name of the first place in the decoder with a NaN or infinite row of a prompt; padding is ignored."""
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


class Offload:
    """Copies to pinned host memory on a separate stream, concurrent with the model's next layers.

        moved = Offload()
        host = moved.take(query)        # returns at once; the copy is asynchronous
        moved.wait()                    # before the first read

    A tensor on the CPU is returned unchanged.
    """

    def __init__(self):
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the CPU, same shape and type; valid after `wait`."""
        if not tensor.is_cuda:
            return tensor.cpu()
        if tensor.device not in self._streams:
            self._streams[tensor.device] = torch.cuda.Stream(tensor.device)
        stream = self._streams[tensor.device]
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(stream):
            host.copy_(tensor, non_blocking=True)
        tensor.record_stream(stream)  # keep its memory until the copy is done
        return host

    def wait(self) -> None:
        """Wait until all copies are done."""
        for stream in self._streams.values():
            stream.synchronize()
