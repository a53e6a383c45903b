"""Generation steered by gaze against a literal eager model: full softmax, multiplied, renormalised, row by row."""

import math

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, GenerationConfig
from transformers.masking_utils import eager_mask

from models.attention import LISTENERS, STEERING
from models.gaze import Gaussian, SalientHead
from models.trace import AttentionTrace
from tests.families import FAMILIES
from tests.models import llava, llava_processor, picture

TYPES = ["gaussian", "non-gaussian", "salient-head"]
STEPS = 4
TAU = 0.5232


# The formulas, cell by cell and row by row


def literal_mask(kind, points, rows, cols, margin):
    """G as a list of rows. Sigmas are in cells of a 24 x 24 grid and scale with the square root of the cells."""
    scale = math.sqrt(rows * cols) / 24
    mask = [[0.0] * cols for _ in range(rows)]
    for y in range(rows):
        for x in range(cols):
            windows = [max(abs(x - px), abs(y - py), margin) - margin for px, py in points]
            if kind == "gaussian":
                squares = [(x - px) ** 2 + (y - py) ** 2 for px, py in points]
                mask[y][x] = sum(math.exp(-square / (2 * (4 * scale) ** 2)) for square in squares)
            elif kind == "non-gaussian":
                mask[y][x] = float(min(windows) == 0)
            elif min(windows) <= math.ceil(3 * 1.5 * scale):
                mask[y][x] = math.exp(-(min(windows) ** 2) / (2 * (1.5 * scale) ** 2))
    largest = max(map(max, mask)) if kind == "gaussian" else 1
    return [[value / largest for value in row] for row in mask]


def literal_row(weights, image, mask):
    """A softmax row [key] with its image weights multiplied and the whole row renormalised, unless nothing is left."""
    row = weights.clone()
    for position, factor in zip(image, mask, strict=True):
        if position < len(row):
            row[position] *= factor
    return row / row.sum() if row.sum() > 0 else weights


def literal_salient(rows, image, mask, count):
    """Edits the rows [head, key] of one query in the heads that follow the gaze."""
    similar = []
    for row in rows:
        seen = sum(float(row[position]) for position in image)
        followed = sum(float(row[position]) * factor for position, factor in zip(image, mask, strict=True))
        similar.append(followed / seen if seen else 0.0)
    ranked = sorted(range(len(rows)), key=lambda head: -similar[head])
    for head in ranked[:count]:
        if max(similar) > 0 and similar[head] / max(similar) > TAU:
            rows[head] = literal_row(rows[head], image, mask)


class Literal:
    """The steered model as one would first write it: eager, every matrix whole, edited one row after another."""

    def __init__(self, model, layouts, kind, scanpaths, margin, layers):
        self.kind, self.layers, self.prompt = kind, layers, layouts[0].length
        self.heads = max(1, model.config.text_config.num_attention_heads // 4)
        self.masks = {}
        for layout, points in zip(layouts, scanpaths, strict=True):
            if points:
                mask = literal_mask(kind, points, layout.grids[0].rows, layout.grids[0].cols, margin)
                self.masks[layout.sample] = (layout.images[0].tolist(), sum(mask, []))
        self.weights = []  # per call of a layer: [sample, head, query, key]

    def __call__(self, module, query, key, value, attention_mask, scaling=None, **_):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        weights = ((query @ key.transpose(2, 3)) * scaling + attention_mask).softmax(-1)
        past = key.shape[2] - query.shape[2]
        for sample, (image, mask) in self.masks.items() if module.layer_idx in self.layers else ():
            for row in range(query.shape[2]):
                if self.kind == "salient-head":
                    if past + row >= self.prompt - 1:
                        literal_salient(weights[sample, :, row], image, mask, self.heads)
                    continue
                for head in range(query.shape[1]):
                    weights[sample, head, row] = literal_row(weights[sample, head, row], image, mask)
        self.weights.append(weights)
        return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionMaskInterface.register("literal", eager_mask)


def generate(model, inputs, **options):
    options = {"max_new_tokens": STEPS, "do_sample": False, "output_logits": True} | options
    return model.generate(**inputs, return_dict_in_generate=True, **options)


def literal_generate(model, inputs, literal):
    AttentionInterface.register("literal", literal)
    model.set_attn_implementation({"text_config": "literal"})
    try:
        return generate(model, inputs)
    finally:
        model.set_attn_implementation({"text_config": "sdpa"})


def batch(name, model, processor, padded):
    """Three samples whose second has no gaze: (inputs, layouts, scanpaths)."""
    sizes = [(150, 90), (60, 90), (120, 120)] if padded else [(150, 90)] * 3
    prompts = ["where is the red circle ?", "what is it ?", "describe the image to the left ."]
    pictures = [[picture(*size, seed=seed)] for seed, size in enumerate(sizes)]
    inputs, layouts = model.prepare(processor, pictures, prompts if padded else prompts[:1] * 3)
    assert any(layout.start > 0 for layout in layouts) == padded
    last = [(layout.grids[0].cols - 1, layout.grids[0].rows - 1) for layout in layouts]
    return inputs, layouts, [[last[0]], [], [(0, 1), last[2], (0, 1)]]  # only the last cell: early rows keep nothing


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """(name, model, processor) of a small random model."""
    model, processor = FAMILIES[request.param]
    return request.param, model(), processor()


@pytest.mark.parametrize("target", [1, [2, 0], None], ids=["one", "some", "all"])
@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "left_padded"])
@pytest.mark.parametrize("kind", TYPES)
@torch.no_grad()
def test_steering_is_the_literal_formula(family, kind, padded, target):
    name, model, processor = family
    inputs, layouts, scanpaths = batch(name, model, processor, padded)
    layers = {1} if target == 1 else set(target or range(3))
    literal = Literal(model, layouts, kind, scanpaths, 0, layers)
    target = list(layers) if target is None else target
    expected = literal_generate(model, inputs, literal)
    with AttentionTrace(model) as trace:
        mask_type = {"type": kind, "margin": 0, "target-layer": target}
        found = generate(model, inputs, mask_type=mask_type, scanpaths=scanpaths)
    assert torch.equal(found.sequences, expected.sequences)
    for ours, theirs in zip(found.logits, expected.logits, strict=True):
        assert (ours - theirs).abs().max() <= 1e-4
    plain = generate(model, inputs)
    changed = [max(float((a - b)[s].abs().max()) for a, b in zip(found.logits, plain.logits)) for s in range(3)]
    print(
        name,
        kind,
        padded,
        target,
        changed,
        max(float((a - b).abs().max()) for a, b in zip(found.logits, expected.logits)),
    )
    worst = 0
    for step in range(STEPS):
        for layer in range(3):
            reference = literal.weights[step * 3 + layer]
            for layout in layouts:
                first = layout.start if step == 0 else trace.prompt_length + step - 1
                rows = range(first, trace.prompt_length + step)
                ours = trace.weights(layer, rows, samples=[layout.sample])[0, :, :, : reference.shape[-1]]
                worst = max(worst, (ours - reference[layout.sample, :, -len(rows) :]).abs().max())
    print(worst)
    assert worst <= 1e-5
