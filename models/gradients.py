"""Gradients of a generated token's score with respect to attention weights, from a trace, in memory linear in T.

    with AttentionTrace(model, gradients="answer") as trace:
        output = model.generate(**inputs)
    for tokens, layers in answer_gradients(trace, sample=0, ids=ids):   # ids of the generated tokens
        layers[5].weights * layers[5].gradients                         # float32 [head, token, key]

The score of a token with logits z is its log-odds, z_t - logsumexp(z of all others). A logit alone changes with a
constant added to all logits; the gradient of a log-probability vanishes as the probability approaches 1.

Rows of the answer. In a causal decoder, the score of a token depends on the attention of its predicting row i through
the residual stream of row i alone: later layers read no other row that depends on it. `answer_gradients` therefore runs
only these rows through the layers, against the recorded keys and values of all positions as constants; a row's own key
and value stay part of the graph, with the recorded numbers. One backward pass of the sum of the scores gives every
token, layer and head. The edits of a steered generation are applied, so the gradient is that of the steered model.

All rows. `layer_gradients` gives the gradients for the rows of the prompt, which Chefer's relevance needs: the layers
are replayed from their recorded inputs one at a time, the last one first, so that one layer's graph is in memory. Each
token takes one backward pass through each layer.

Replayed keys are compared with the recorded ones, so a decoder whose layers cannot be replayed gives an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from models.attention import replaying
from models.interventions import weigh
from models.rows import softmax_rows
from models.trace import AttentionTrace

Score = Literal["log-odds", "log-probability", "logit"]
FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f")
NOT_LINEAR = ("logit_scale", "logits_scaling", "final_logit_softcapping")  # config entries that change the logits
CHUNK_ELEMENTS = 2**24  # attention weights of the replayed rows in one graph
TOLERANCE = 0.1  # relative difference of replayed and recorded keys; half precision differs by up to .02


@dataclass(frozen=True, eq=False)
class WeightGradients:
    """One layer's attention weights of the predicting rows and their gradients, float32 [head, token, key].

    Keys count from the sample's first token.
    """

    weights: torch.Tensor
    gradients: torch.Tensor


@dataclass(frozen=True, eq=False)
class OutputGradients:
    """One replayed layer of one sample: `query` [head, row, width], `key` and `value` [key head, row, width], and the
    gradients of the scores with respect to the heads' outputs, `gradients` [token, head, row, width].

    The gradient with respect to the weight of row i on key j is gradients[token, head, i] . value[head, j]. Rows count
    from the sample's first token.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scaling: float
    gradients: torch.Tensor


def score(logits: torch.Tensor, ids: torch.Tensor, of: Score = "log-odds") -> torch.Tensor:
    """Score of the tokens `ids`, int64 [row], under logits [row, vocabulary]: float32 [row]."""
    if of not in get_args(Score):
        raise ValueError(f"the score {of!r} is unknown; choose {', '.join(get_args(Score))}")
    logits = logits.float()
    chosen = logits.gather(1, ids[:, None])[:, 0]
    if of == "logit":
        return chosen
    if of == "log-probability":
        return chosen - logits.logsumexp(1)
    return chosen - logits.scatter(1, ids[:, None], float("-inf")).logsumexp(1)


def answer_gradients(
    trace: AttentionTrace, sample: int, ids: Sequence[int], of: Score = "log-odds"
) -> Iterator[tuple[range, list[WeightGradients]]]:
    """Weights and gradients of every layer for the first len(ids) generated tokens of one sample, in groups of tokens.

    Yields (indices of the tokens, a `WeightGradients` per layer). Raises ValueError for a trace without gradients, and
    for a decoder that cannot be replayed.
    """
    check_gradients(trace)
    inputs, first = trace.inputs, trace.prompt_length - 1
    rows = slice(first, first + len(ids)) if inputs.every_row else slice(0, len(ids))  # of the recorded inputs
    states, rotary = inputs.states(0, sample)[rows], [each[:, rows] for each in inputs.rotary(sample)]
    step = max(1, CHUNK_ELEMENTS // (trace.layers * trace.heads * trace.length))
    for begin in range(0, len(ids), step):
        tokens = range(begin, min(begin + step, len(ids)))
        part = slice(tokens.start, tokens.stop)
        replay = AnswerReplay(trace, sample, range(first + tokens.start, first + tokens.stop))
        wanted = torch.tensor(ids[part], device=states.device)
        yield tokens, replay.run(states[part], [each[:, part] for each in rotary], wanted, of)


class AnswerReplay:
    """Replay of the rows at `positions`, a range, of one sample, through all layers."""

    def __init__(self, trace: AttentionTrace, sample: int, positions: range):
        self.trace, self.sample, self.positions = trace, sample, positions
        self.places = torch.tensor(positions) - int(trace.start[sample])
        self.weights: list[torch.Tensor] = []

    def run(self, states: torch.Tensor, rotary, ids: torch.Tensor, of: Score) -> list[WeightGradients]:
        """Gradients of all layers, from states [row, width] that enter layer 0; `ids` int64 [row]."""
        model = self.trace.model
        with frozen(model), replaying(model, self.attend) as layers, torch.enable_grad():
            states = states[None].detach().clone().requires_grad_()
            for layer in layers:
                states = run_layer(layer, states, rotary)
            scores = score(logits_of(model, states)[0], ids.to(states.device), of)
            gradients = torch.autograd.grad(scores.sum(), self.weights)
        pairs = zip(self.weights, gradients, strict=True)
        return [WeightGradients(weights.detach(), gradient) for weights, gradient in pairs]

    def attend(self, layer: int, query, key, value, scaling: float) -> torch.Tensor:
        """Attention of the rows on the recorded keys and values; a row's own are those of the replay."""
        recorded = self.trace._of(layer)
        real = slice(int(self.trace.start[self.sample]), self.positions.stop)
        keys, values = (each[self.sample, :, real].to(query.device).float() for each in (recorded.key, recorded.value))
        check_replay(layer, key[0], keys[:, self.places])
        query, heads = query[0].float(), query.shape[1]
        # Differences that are 0 and have a gradient: the recorded numbers count, and the replay's gradient.
        key, value = (each[0].float().repeat_interleave(heads // each.shape[1], 0) for each in (key, value))
        live = ((key - key.detach()) * query).sum(-1) * scaling
        arguments = (query, keys, scaling, self.places)
        if recorded.edit is None:
            weights = softmax_rows(*arguments, live=live)
        else:
            weights = recorded.edit.recompute_rows(self.sample, *arguments, live)
        self.weights.append(weights)
        own = weights[:, torch.arange(len(self.places)), self.places, None]
        output = weigh(weights, values) + own * (value - value.detach())
        return output.transpose(0, 1)[None].to(self.trace.model.dtype)


def layer_gradients(
    trace: AttentionTrace, sample: int, tokens: Sequence[int], ids: Sequence[int], of: Score, lowest: int = 0
) -> Iterator[OutputGradients]:
    """Gradients of each layer, the last one first down to `lowest`, for the given tokens of one sample; `ids` [token]
    are the tokens' ids.

    Memory grows with len(tokens) times T. Raises ValueError as `answer_gradients` does, IndexError for a trace that
    does not hold the inputs of all layers.
    """
    check_gradients(trace)
    start = int(trace.start[sample])
    rows = torch.tensor(tokens) + trace.prompt_length - 1 - start  # that predict the tokens
    length = int(rows.max()) + 1
    rotary = [each[:, start:][:, :length] for each in trace.inputs.rotary(sample)]
    replay, upstream = LayerReplay(trace, sample, length), None
    with frozen(trace.model), replaying(trace.model, replay.attend) as layers:
        for layer in reversed(range(lowest, trace.layers)):
            states = trace.inputs.states(layer, sample)[start:][None, :length].detach().requires_grad_()
            with torch.enable_grad():
                output = run_layer(layers[layer], states, rotary)
            if upstream is None:
                upstream = score_gradients(trace.model, output.detach(), rows, torch.tensor(ids), of)
            wanted, found = [replay.output, states], []
            for index, vector in enumerate(upstream):
                more = index + 1 < len(upstream)
                found.append(torch.autograd.grad(output, wanted, vector[None], retain_graph=more))
            query, key, value = (each.detach()[0] for each in (replay.query, replay.key, replay.value))
            upstream = torch.stack([entering[0] for _, entering in found])
            gradients = torch.stack([leaving[0] for leaving, _ in found])
            del output, wanted, found
            replay.forget()
            yield OutputGradients(query, key, value, trace._of(layer).scaling, gradients)


class LayerReplay:
    """Replay of the first `length` rows of one sample through one layer; holds the tensors of the latest call."""

    def __init__(self, trace: AttentionTrace, sample: int, length: int):
        self.trace, self.sample, self.length = trace, sample, length
        self.forget()

    def forget(self) -> None:
        """Release the tensors of the latest layer."""
        self.query = self.key = self.value = self.output = None

    def attend(self, layer: int, query, key, value, scaling: float) -> torch.Tensor:
        """Causal SDPA; keeps query, key, value and output [1, head, row, width]."""
        start = int(self.trace.start[self.sample])
        check_replay(layer, key[0], self.trace._of(layer).key[self.sample, :, start : start + self.length])
        shared = query.shape[1] // key.shape[1]
        # Repeated heads: with enable_gqa SDPA may choose a kernel that stores the T x T weights.
        keys, values = (each.repeat_interleave(shared, 1) for each in (key, value))
        self.query, self.key, self.value = query, key, value
        self.output = scaled_dot_product_attention(query, keys, values, is_causal=True, scale=scaling)
        return self.output.transpose(1, 2)


def score_gradients(model, states: torch.Tensor, rows: torch.Tensor, ids: torch.Tensor, of: Score) -> torch.Tensor:
    """Gradient of each token's score with respect to the last layer's output [1, row, width]: [token, row, width]."""
    rows, ids = rows.to(states.device), ids.to(states.device)
    last = states[:, rows].requires_grad_()
    with torch.enable_grad():
        [found] = torch.autograd.grad(score(logits_of(model, last)[0], ids, of).sum(), [last])
    gradients = states.new_zeros(len(rows), *states.shape[1:])
    gradients[torch.arange(len(rows)), rows] = found[0]
    return gradients


def run_layer(layer: nn.Module, states: torch.Tensor, rotary: Sequence[torch.Tensor]) -> torch.Tensor:
    """Output of a decoder layer [1, row, width]; its attention is that of `replaying`."""
    options = {"position_embeddings": tuple(rotary)} if rotary else {}
    output = layer(states, attention_mask=None, past_key_values=None, use_cache=False, **options)
    return output[0] if isinstance(output, tuple) else output


def logits_of(model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
    """Logits [sample, row, vocabulary] of the last layer's output. Raises ValueError for an unknown final part."""
    stack = model.get_decoder()
    norms = [getattr(stack, name) for name in FINAL_NORMS if hasattr(stack, name)]
    scaled = [name for name in NOT_LINEAR if getattr(stack.config, name, None) not in (None, 1, 1.0)]
    if len(norms) != 1 or scaled:
        found = f"its logits are changed by {scaled[0]}" if scaled else "its final norm was not found"
        raise ValueError(
            f"gradients of {type(model).__name__} cannot be computed: {found}; use maps of attention or rollout"
        )
    return model.get_output_embeddings()(norms[0](states))


def check_gradients(trace: AttentionTrace) -> None:
    """Raise ValueError unless a trace holds layer inputs."""
    if trace.inputs is None:
        raise ValueError("this trace holds no layer inputs; record with AttentionTrace(model, gradients='answer')")


def check_replay(layer: int, key: torch.Tensor, recorded: torch.Tensor) -> None:
    """Raise ValueError unless a layer's replayed keys are the recorded ones, up to rounding."""
    recorded = recorded.to(key.device).float()
    difference = float((key.detach().float() - recorded).norm() / recorded.norm())
    if not difference <= TOLERANCE:
        raise ValueError(
            f"layer {layer} replayed other keys than it recorded (relative difference {difference:.2g}), so its "
            "gradients are unknown; use maps of attention or rollout for this model"
        )


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Turn off gradients of all parameters within the block: their graph would hold activations of every layer."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
