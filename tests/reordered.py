"""Torch mode that emulates another processor: the same operations with sums in another order.

Kernels for AVX2, AVX-512 and other instruction sets differ in the order of their sums and in the last bit of their
transcendental functions. `pytest --reordered` runs the tests in this mode, so that a test that depends on the order
fails on every machine. The order depends on shapes only: equal calls on equal numbers give equal bits, as on any
processor. Results that are exact in every order (sums of small integers, products with 0 and 1) are unchanged. The mode
does not affect processes that a test starts.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ATEN = torch.ops.aten
TRANSCENDENTAL = {
    ATEN.exp.default, ATEN.log.default, ATEN.sin.default, ATEN.cos.default, ATEN.tanh.default, ATEN.sigmoid.default,
    ATEN.silu.default, ATEN.gelu.default, ATEN.erf.default, ATEN.rsqrt.default,
}  # fmt: skip
SDPA = ATEN._scaled_dot_product_flash_attention_for_cpu.default


def order(size, *shape):
    """Permutation of `size` indices, determined by the shape."""
    seed = hash((size, *shape)) % 2**31
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


def product(function, left, right):
    """Matrix product with reordered inner sums."""
    inner = order(left.shape[-1], *left.shape, *right.shape)
    return function(left[..., inner], right[..., inner, :])


def reduction(function, values, dims, **options):
    """Reduction over `dims` of values reordered along each of them."""
    for dim in dims if dims else range(values.dim()):
        values = values.index_select(dim, order(values.shape[dim], *values.shape))
    return function(values, **options)


def softmax(function, values, dim, *rest):
    indices = order(values.shape[dim], *values.shape)
    return function(values.index_select(dim, indices), dim, *rest).index_select(dim, indices.argsort())


def scaled_dot_product(query, key, value, *rest, attn_mask=None, **options):
    """SDPA with scores reordered over the width and, without the causal flag, values reordered over the keys."""
    options.setdefault("scale", query.shape[-1] ** -0.5)
    width = order(query.shape[-1], *query.shape, *key.shape)
    query, key = query[..., width], key[..., width]
    causal = rest[1] if len(rest) > 1 else options.get("is_causal", False)
    if not causal:
        keys = order(key.shape[2], *query.shape, *key.shape)
        key, value = key[:, :, keys], value[:, :, keys]
        attn_mask = None if attn_mask is None else attn_mask[..., keys]
    return SDPA(query, key, value, *rest, attn_mask=attn_mask, **options)


class Reordered(TorchDispatchMode):
    """Dispatch mode that reorders sums; see the module docstring."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        if not tensors or not tensors[0].is_floating_point() or tensors[0].device.type != "cpu":
            return function(*args, **kwargs)
        first = tensors[0]
        if function in (ATEN.mm.default, ATEN.bmm.default):
            return product(function, *args)
        if function in (ATEN.addmm.default, ATEN.addmm_.default, ATEN.baddbmm.default, ATEN.baddbmm_.default):
            return product(lambda left, right: function(first, left, right, **kwargs), *args[1:])
        if function is ATEN._softmax.default or function is ATEN._log_softmax.default:
            return softmax(function, *args)
        if function in (ATEN.sum.default, ATEN.mean.default) and first.dim():
            return reduction(function, first, None, **kwargs)
        if function in (ATEN.sum.dim_IntList, ATEN.mean.dim) and first.dim():
            return reduction(lambda values, **_: function(values, *args[1:], **kwargs), first, args[1])
        if function is SDPA:
            return scaled_dot_product(*args, **kwargs)
        if function in TRANSCENDENTAL and first.dtype == torch.float32:
            rest = [value.double() if isinstance(value, torch.Tensor) else value for value in args]
            return function(*rest, **kwargs).float()
        return function(*args, **kwargs)
