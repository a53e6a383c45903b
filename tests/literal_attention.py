"""Eager attention with a literal change of the scores, as the reference of an intervention; comparison of its rows."""

from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from tests import tolerance
from tests.literal_var import LAYERS, STEPS, generate, image_positions

LITERAL = "literal_scores"
AttentionMaskInterface.register(LITERAL, eager_mask)


class LiteralScores:
    """Eager attention whose scores a subclass changes before the mask is added.

    image, starts: positions of each sample's image tokens and of its first token, padding included. weights: per call
    of a layer, [sample, head, query, key].
    """

    def __init__(self, model, inputs):
        self.model, self.image = model, image_positions(model, inputs)
        self.starts = inputs["attention_mask"].int().argmax(1).tolist()
        self.weights = []

    def change(self, layer, scores, past):
        """Change scores [sample, head, row, key] in place; their first row is at position `past`."""
        raise NotImplementedError

    def __call__(self, module, query, key, value, attention_mask, scaling=None, **_):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = (query @ key.transpose(2, 3)) * scaling
        self.change(module.layer_idx, scores, key.shape[2] - query.shape[2])
        weights = (scores + attention_mask).softmax(-1)
        self.weights.append(weights)
        return (weights @ value).transpose(1, 2).contiguous(), weights

    def generate(self, inputs, **options):
        AttentionInterface.register(LITERAL, self)
        self.model.set_attn_implementation({"text_config": LITERAL})
        try:
            return generate(self.model, inputs, **options)
        finally:
            self.model.set_attn_implementation({"text_config": "sdpa"})


def check_rows(trace, literal):
    """Assert that every recorded row of the prompt and of the decode steps equals the literal model's."""
    for step in range(STEPS):
        for layer in range(LAYERS):
            reference = literal.weights[step * LAYERS + layer]
            for sample, start in enumerate(literal.starts):
                rows = range(start if step == 0 else trace.prompt_length + step - 1, trace.prompt_length + step)
                ours = trace.weights(layer, rows, samples=[sample])[0, :, :, : reference.shape[-1]]
                assert (ours - reference[sample, :, -len(rows) :]).abs().max() <= tolerance.two_runs()
