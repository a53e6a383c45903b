"""Norms of what each key adds to the residual stream through its value and the output projection of a layer."""

from __future__ import annotations

import torch
from torch import nn

from models.attention import attention_stack
from models.trace import AttentionTrace

PROJECTIONS = ("o_proj", "dense", "out_proj")  # names of the output projection: Llama and Qwen; Persimmon; GPT-Neo


@torch.no_grad()
def output_norms(trace: AttentionTrace, layer: int, sample: int) -> torch.Tensor:
    """|V[h, j] W_O^h| of every head and key of one sample, float32 [head, key]; keys count from its first token.

    Kobayashi et al., EMNLP 2020. With G = W_O^h (W_O^h)^T [width, width], the squared norm of v W_O^h is v G v^T, so a
    layer takes T width^2 operations per head after G. Raises ValueError for a trace without values and for a layer
    whose output projection is not found.
    """
    recorded = trace._of(layer)
    if recorded.value is None:
        raise ValueError("this trace holds no values; record with AttentionTrace(model, values=True)")
    start = int(trace.start[sample])
    value = recorded.value[sample, :, start:].to(recorded.device).float()
    value = value.repeat_interleave(trace.heads // len(value), 0)
    weight = output_weights(trace.model, layer, value.shape[-1] * trace.heads).unflatten(0, (trace.heads, -1))
    products = torch.bmm(value, weight @ weight.transpose(1, 2))
    return (products * value).sum(-1).clamp_min(0).sqrt()


def output_weights(model, layer: int, width: int) -> torch.Tensor:
    """W_O of a layer, float32 [head x width, residual width]: its projection of unit vectors, without the bias.

    The projection is called, since quantised layers do not hold their weight as a matrix.
    """
    _, modules = attention_stack(model, "decoder")
    found = [getattr(modules[layer], name) for name in PROJECTIONS if hasattr(modules[layer], name)]
    if len(found) != 1 or not isinstance(found[0], nn.Module):
        raise ValueError(
            f"the output projection of {type(modules[layer]).__name__} was not found under {', '.join(PROJECTIONS)}, "
            "so there are no value maps of this model; use another kind"
        )
    unit = torch.eye(width, dtype=model.dtype, device=next(modules[layer].parameters()).device)
    return (found[0](unit) - found[0](torch.zeros_like(unit[:1]))).float()
