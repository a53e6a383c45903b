"""Literal computation of every map kind: stock eager attention, all T x T matrices, retained gradients."""

from contextlib import contextmanager
from dataclasses import dataclass

import torch

from models.generation import with_answer


@contextmanager
def eager(model):
    """Stock eager attention of the decoder within the block."""
    config = model.get_decoder().config
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


@dataclass
class Literal:
    """An eager forward pass of one prompt with its answer: attentions [layer][1, head, query, key] (in the graph),
    logits [row, vocabulary] and values [layer][key head, key, width]."""

    first: int  # the row that predicts the first token
    graph: tuple
    logits: torch.Tensor
    values: list

    @property
    def attentions(self):
        """[layer][head, query, key]."""
        return [each[0].detach() for each in self.graph]

    def gradients(self, token, id):
        """d log-odds / dA of one token, [layer][head, query, key]."""
        logits = self.logits[self.first + token]
        others = torch.cat([logits[:id], logits[id + 1 :]])
        score = logits[id] - others.logsumexp(0)
        return [each[0] for each in torch.autograd.grad(score, self.graph, retain_graph=True)]


def literal(model, processor, images, prompt, ids):
    """The `Literal` of one prompt about a list of images, answered by the tokens `ids`.

    `model` is in float64: with float32 on both sides, the differences of saturated tokens reach 1e-4.
    """
    inputs, layout = model.prepare(processor, images, prompt)
    with eager(model), torch.enable_grad():
        output = model(**with_answer(inputs, list(ids[:-1])), output_attentions=True, use_cache=True)
    values = [layer.values[0].detach() for layer in output.past_key_values.layers]
    return Literal(layout.length - 1, output.attentions, output.logits[0], values)


def attention(case, ids):
    rows = [case.first + token for token in range(len(ids))]
    return torch.stack([layer[:, rows].mean(0) for layer in case.attentions]).mean(0)


def gradient(case, ids):
    maps = []
    for token, id in enumerate(ids):
        row = case.first + token
        pairs = zip(case.attentions, case.gradients(token, id), strict=True)
        maps.append(torch.stack([(a[:, row] * g[:, row]).clamp(min=0).mean(0) for a, g in pairs]).mean(0))
    return torch.stack(maps)


def relevance(case, ids):
    """R <- R + Abar R from the first layer up, full matrices in float64."""
    maps = []
    for token, id in enumerate(ids):
        r = torch.eye(case.attentions[0].shape[-1], dtype=torch.float64)
        for a, g in zip(case.attentions, case.gradients(token, id), strict=True):
            r = r + (a.double() * g.double()).clamp(min=0).mean(0) @ r
        maps.append(r[case.first + token])
    return torch.stack(maps)


def value(case, ids, projections):
    """projections: W_O of each layer as stored, [residual width, head x width]."""
    rows, total = [case.first + token for token in range(len(ids))], 0
    for a, v, w in zip(case.attentions, case.values, projections, strict=True):
        heads, width = a.shape[0], v.shape[-1]
        for head in range(heads):
            added = v[head * len(v) // heads] @ w[:, head * width : (head + 1) * width].T
            total = total + a[head, rows] * added.norm(dim=-1) / heads / len(case.attentions)
    return total


def rollout(case, ids, matrices=None):
    size = case.attentions[0].shape[-1]
    product = torch.eye(size, dtype=torch.float64)
    for a in case.attentions if matrices is None else matrices:
        product = (a.double().mean(0) + torch.eye(size)) / 2 @ product
    return product[case.first : case.first + len(ids)]


def corrected(case, ids):
    size = case.attentions[0].shape[-1]
    uniform = torch.ones(size, size, dtype=torch.float64).tril() / torch.arange(1, size + 1)[:, None]
    below = rollout(case, ids, [uniform[None]] * len(case.attentions))
    return torch.where(below > 0, rollout(case, ids) / below, 0)
