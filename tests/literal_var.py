"""Reference implementation of VAR, eager and row by row; planted sinks at known tokens; batches for the tests."""

import math
from contextlib import contextmanager

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from models.attention import LISTENERS, STEERING
from models.var import VAR
from tests.models import picture

LAYERS, STEPS = 3, 4
SPIKES = (7, 40)  # dimensions
PLANTED = VAR(SPIKES, tau=5.0, first_layer=0, spare_last_layer=False)  # |RMSNorm(x)| is at most 8 in a model 64 wide


# Sinks at known tokens


@contextmanager
def planted(model, sinks):
    """Add massive activations to a layer's input; sinks: (layer, sample, position) -> dimension."""

    def spike(layer, args):
        hidden = args[0].clone()
        for (at, sample, position), dimension in sinks.items() if hidden.shape[1] > 1 else ():
            if at == layer:
                hidden[sample, position, dimension] = 40 * hidden[sample, position].float().square().mean().sqrt()
        return (hidden, *args[1:])

    layers = model.get_decoder().layers
    handles = [
        module.register_forward_pre_hook(lambda _, args, layer=layer: spike(layer, args))
        for layer, module in enumerate(layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def image_positions(model, inputs):
    """Image positions of each sample, as lists; positions include padding."""
    return [(row == model.config.image_token_id).nonzero().flatten().tolist() for row in inputs["input_ids"]]


# The formulas, token by token and row by row


def literal_sinks(hidden, dimensions, tau):
    """Positions of a residual stream [row, width] whose largest |x_d| / sqrt(mean x^2 + 1e-6) is above tau."""
    sinks = []
    for position, x in enumerate(hidden.double()):
        rms = math.sqrt(float((x * x).mean()) + 1e-6)
        if max(abs(float(x[d])) / rms for d in dimensions) > tau:
            sinks.append(position)
    return sinks


def literal_row(row, image, sinks, var):
    """(edited softmax row [key], outcome)."""
    if var.skip_without_visual_sinks and not set(image) & set(sinks):
        return row, "no visual sinks"
    image, sinks = [k for k in image if k < len(row)], [k for k in sinks if k < len(row)]
    others = [k for k in image if k not in sinks]
    mass, rest = sum(float(row[k]) for k in image), sum(float(row[k]) for k in others)
    if mass < var.min_image_mass:
        return row, "little image"
    if mass - rest > var.rho * mass:
        return row, "sinks"
    if rest == 0:
        return row, "nothing left"
    freed = sum((1 - var.p) * float(row[k]) for k in sinks)
    edited = row.clone()
    for k in sinks:
        edited[k] = var.p * row[k]
    for k in others:
        edited[k] = row[k] + freed * float(row[k]) / rest
    return edited, "no sinks" if torch.equal(edited, row) else "edited"


class Literal:
    """Model with VAR in a literal implementation: eager, full matrices, edited row by row."""

    def __init__(self, model, inputs, var):
        self.model, self.var, self.image = model, var, image_positions(model, inputs)
        self.starts = inputs["attention_mask"].int().argmax(1).tolist()
        self.layers = range(var.first_layer, LAYERS - var.spare_last_layer)
        self.sinks = {}  # (layer, sample) -> positions
        self.rows = {}  # (layer, sample) -> [(head, row, outcome)]
        self.weights = []  # per call of a layer: [sample, head, query, key]

    def store_sinks(self, layer, hidden):
        for sample, start in enumerate(self.starts):
            if (layer, sample) not in self.sinks:
                sinks = literal_sinks(hidden[sample, start:], self.var.dimensions, self.var.tau)
                self.sinks[layer, sample] = [position + start for position in sinks]

    def __call__(self, module, query, key, value, attention_mask, scaling=None, **_):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        weights = ((query @ key.transpose(2, 3)) * scaling + attention_mask).softmax(-1)
        past, layer = key.shape[2] - query.shape[2], module.layer_idx
        for sample, image in enumerate(self.image) if layer in self.layers else ():
            for row in range(query.shape[2]) if image else ():
                if past + row > image[-1] or (self.var.prompt_rows == "all" and past + row >= self.starts[sample]):
                    for head in range(query.shape[1]):
                        before, sinks = weights[sample, head, row, : past + row + 1], self.sinks[layer, sample]
                        after, outcome = literal_row(before, image, sinks, self.var)
                        weights[sample, head, row, : past + row + 1] = after
                        self.rows.setdefault((layer, sample), []).append((head, past + row, outcome))
        self.weights.append(weights)
        return (weights @ value).transpose(1, 2).contiguous(), weights

    def generate(self, inputs):
        AttentionInterface.register("literal", self)
        self.model.set_attn_implementation({"text_config": "literal"})
        handles = [
            module.register_forward_pre_hook(lambda _, args, layer=layer: self.store_sinks(layer, args[0]))
            for layer, module in enumerate(self.model.get_decoder().layers)
        ]
        try:
            return generate(self.model, inputs)
        finally:
            self.model.set_attn_implementation({"text_config": "sdpa"})
            for handle in handles:
                handle.remove()


AttentionMaskInterface.register("literal", eager_mask)


@torch.no_grad()
def generate(model, inputs, **options):
    options = {"max_new_tokens": STEPS, "do_sample": False, "output_logits": True} | options
    return model.generate(**inputs, return_dict_in_generate=True, **options)


def largest_change(ours, theirs, sample=slice(None)):
    """Largest absolute difference of any logit at any step."""
    return max(float((a - b)[sample].abs().max()) for a, b in zip(ours.logits, theirs.logits, strict=True))


# Batches


PROMPTS = ["where is the red circle ?", "what is it ?", "describe the image to the left ."]


def batch(model, processor, padded=True, images=(1, 1, 1), seed=0):
    """Inputs of three samples; `images` has the number of images of each."""
    sizes = [(150, 90), (60, 90), (120, 120)] if padded else [(150, 90)] * 3
    pictures = [
        [picture(*size, seed=seed + 10 * index + place) for index in range(count)]
        for place, (size, count) in enumerate(zip(sizes, images, strict=True))
    ]
    inputs, _ = model.prepare(processor, pictures, PROMPTS if padded else PROMPTS[:1] * 3)
    assert bool((inputs["attention_mask"] == 0).any()) == padded
    return inputs


def different_sinks(model, inputs):
    """Sinks for `planted`. Sample 0: first token, third and last cell, from layer 0. Sample 1: cells from layer 1, and
    a word after the image. Sample 2: none."""
    image, start = image_positions(model, inputs), inputs["attention_mask"].int().argmax(1).tolist()
    return {
        (0, 0, start[0]): 40,
        (0, 0, image[0][2]): 7,
        (0, 0, image[0][-1]): 40,
        (1, 1, image[1][0]): 7,
        (1, 1, image[1][1]): 7,
        (0, 1, image[1][-1] + 2): 7,
    }


def is_whole(model):
    """True if the model has no hooks or attached objects and uses SDPA."""
    hooks = any(module._forward_pre_hooks for module in model.get_decoder().layers)
    attached = any(hasattr(module, name) for module in model.modules() for name in (LISTENERS, STEERING))
    return not hooks and not attached and model.config.text_config._attn_implementation == "sdpa"
