"""Tolerances between two float32 computations of the same quantity, with their derivation.

Tests require bit equality only where the same operations run on the same numbers in tensors of the same shape.
Elsewhere the order of sums differs between implementations and between processors (AVX2, AVX-512, number of threads),
and a test uses a tolerance from this module.

Sums. n numbers added in two orders differ by at most n eps times the sum of their absolute values (Higham, Accuracy and
Stability of Numerical Algorithms, section 4.2), eps = 2^-23.

Attention weights. A score is a product of a query and a key, so its rounding error is of the order of eps |q| |k| times
the scaling; a softmax weight changes by at most half of the largest change of a score. Weights are therefore compared
relative to the largest scaling |q| |k|: 4 to 8.5 for the random models of the tests, 94 to 142 for the embedded
models. Two runs of a whole model differ in all of its states: between eager attention and SDPA the largest difference
measured was 1.7 (random models) and 13 (tiny-qwen2-vl on a noise image) eps of that size, with `pytest --reordered`.
Logits of the random models are below 1 and have the same tolerance. The faults that these tests detect (a wrong row,
head, mask or factor) change weights by 1e-3 or more.

Other tests use the defaults of `torch.testing.assert_close` for float32 (1e-5 + 1.3e-6 relative), for short sums of
numbers of order 1.
"""

import torch

EPS = torch.finfo(torch.float32).eps
RANDOM, EMBEDDED = 8.5, 142  # largest scaling |q| |k| of random and embedded models


def sums(terms, size=1.0):
    """Tolerance of sums of `terms` terms whose absolute values add up to at most `size`."""
    return terms * EPS * size


def score_size(trace):
    """Largest scaling |q| |k| of any layer of a trace."""
    sizes = []
    for layer in range(trace.layers):
        recorded = trace._of(layer)
        queries = torch.cat([recorded.prompt, *recorded.answer], 2).float().norm(dim=-1).max()
        sizes.append(recorded.scaling * float(queries * recorded.key.float().norm(dim=-1).max()))
    return max(sizes)


def same_states(size=RANDOM):
    """Tolerance of attention weights computed twice from the same queries and keys."""
    return 8 * EPS * size


def two_runs(size=RANDOM):
    """Tolerance of attention weights from two runs of a model with different attention functions or batches."""
    return 32 * EPS * size
