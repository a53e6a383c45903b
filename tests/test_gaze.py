"""Generation steered by gaze against a literal eager model: full softmax, multiplied, renormalised, row by row."""

import math

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from models.attention import LISTENERS, STEERING
from models.gaze import Gaussian, SalientHead
from models.trace import AttentionTrace
from tests import tolerance
from tests.families import FAMILIES
from tests.models import llava, llava_processor, picture

pytestmark = pytest.mark.numerical
TYPES = ["gaussian", "non-gaussian", "salient-head"]
STEPS = 4
TAU = 0.5232
MARGIN = 0


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

    def __init__(self, model, layouts, kind, scanpaths, layers):
        self.kind, self.layers, self.prompt = kind, layers, layouts[0].length
        self.heads = max(1, model.config.text_config.num_attention_heads // 4)
        self.masks = {}
        for layout, points in zip(layouts, scanpaths, strict=True):
            if points:
                mask = literal_mask(kind, points, layout.grids[0].rows, layout.grids[0].cols, MARGIN)
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


def batch(model, processor, padded):
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


def largest_change(ours, theirs, sample=slice(None)):
    """Of any logit of any step."""
    return max(float((a - b)[sample].abs().max()) for a, b in zip(ours.logits, theirs.logits, strict=True))


@pytest.mark.parametrize(
    "padded, target",
    [(False, None), (True, 1), (True, [2, 0]), (True, None)],
    ids=["unpadded-all", "left_padded-one", "left_padded-some", "left_padded-all"],
)
@pytest.mark.parametrize("kind", TYPES)
@torch.no_grad()
def test_steering_is_the_literal_formula(family, kind, padded, target):
    """Logits and recorded weights, in prefill and every decode step; the sample without gaze as if nothing happened."""
    name, model, processor = family
    inputs, layouts, scanpaths = batch(model, processor, padded)
    layers = {1} if target == 1 else set(target or range(3))
    literal = Literal(model, layouts, kind, scanpaths, layers)
    expected = literal_generate(model, inputs, literal)
    # "salient-head" without target layers takes the published ones, in proportion
    mask_type = {"type": kind, "margin": MARGIN, "target-layer": [0, 1, 2] if target is None else target}
    with AttentionTrace(model) as trace:
        found = generate(model, inputs, mask_type=mask_type, scanpaths=scanpaths)
    assert torch.equal(found.sequences, expected.sequences)
    assert largest_change(found, expected) <= tolerance.two_runs()
    for step in range(STEPS):
        for layer in range(3):
            reference = literal.weights[step * 3 + layer]
            for layout in layouts:
                first = layout.start if step == 0 else trace.prompt_length + step - 1
                rows = range(first, trace.prompt_length + step)
                ours = trace.weights(layer, rows, samples=[layout.sample])[0, :, :, : reference.shape[-1]]
                assert (ours - reference[layout.sample, :, -len(rows) :]).abs().max() <= tolerance.two_runs()
    plain = generate(model, inputs)
    assert min(largest_change(found, plain, sample) for sample in (0, 2)) > 1e-2
    # A bias of zeros can send the other samples of a batch through another kernel than no bias does.
    assert largest_change(found, plain, 1) <= tolerance.two_runs()


@pytest.mark.parametrize(
    "mask_type, scanpaths",
    [
        ({"type": "gaussian"}, [[], None, ()]),
        ({"type": "non-gaussian", "margin": 30}, [[(0, 0)], [], [(1, 0)]]),
        ({"type": "salient-head", "margin": 30}, [[(0, 0)], [], [(1, 0)]]),
        (SalientHead((0, 1, 2), heads=0), [[(0, 0)], [], [(1, 0)]]),
        (SalientHead((0, 1, 2), tau=1.0), [[(0, 0)], [], [(1, 0)]]),
        (Gaussian(()), [[(0, 0)], [], [(1, 0)]]),
    ],
    ids=["no_gaze", "all_inside", "all_near", "no_head", "no_head_is_similar_enough", "no_layer"],
)
@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "left_padded"])
@torch.no_grad()
def test_neutral_is_the_untouched_model_bit_for_bit(family, mask_type, scanpaths, padded):
    _, model, processor = family
    inputs, _, _ = batch(model, processor, padded)
    plain, found = generate(model, inputs), generate(model, inputs, mask_type=mask_type, scanpaths=scanpaths)
    assert torch.equal(plain.sequences, found.sequences) and largest_change(plain, found) == 0


@pytest.mark.parametrize("kind", TYPES)
@torch.no_grad()
def test_layers_that_are_not_targeted_are_untouched_bit_for_bit(family, kind):
    _, model, processor = family
    inputs, layouts, scanpaths = batch(model, processor, padded=True)
    with AttentionTrace(model) as plain:
        generate(model, inputs, max_new_tokens=1)
    with AttentionTrace(model) as trace:
        mask_type = {"type": kind, "target-layer": 2}
        generate(model, inputs, max_new_tokens=1, mask_type=mask_type, scanpaths=scanpaths)
    last = trace.prompt_length - 1
    for layer in (0, 1):
        assert torch.equal(trace.weights(layer, last), plain.weights(layer, last))
    assert not torch.equal(trace.weights(2, last), plain.weights(2, last))


def is_whole(model):
    """Nothing hangs on the model, and it names SDPA as it did."""
    attached = any(hasattr(module, name) for module in model.modules() for name in (LISTENERS, STEERING))
    return not attached and model.config.text_config._attn_implementation == "sdpa"


@torch.no_grad()
def test_nothing_survives_a_generation(family):
    _, model, processor = family
    inputs, _, scanpaths = batch(model, processor, padded=True)
    before = model.config.to_json_string()
    plain = generate(model, inputs)
    first = generate(model, inputs, mask_type={"type": "gaussian"}, scanpaths=scanpaths)
    for kind in TYPES[1:]:
        generate(model, inputs, mask_type={"type": kind}, scanpaths=scanpaths)
        assert largest_change(generate(model, inputs), plain) == 0 and is_whole(model)
    again = generate(model, inputs, mask_type={"type": "gaussian"}, scanpaths=scanpaths)
    assert largest_change(again, first) == 0
    assert model.config.to_json_string() == before


@pytest.mark.parametrize("kind", TYPES)
@torch.no_grad()
def test_an_error_leaves_the_model_as_it_was(family, kind):
    """In the middle of decoding, with and without a trace around it; the trace goes on recording what is plain."""
    _, model, processor = family
    inputs, layouts, scanpaths = batch(model, processor, padded=True)
    plain = generate(model, inputs)

    def fail(ids, scores):
        if ids.shape[1] > layouts[0].length:
            raise KeyError
        return scores

    broken = {"mask_type": {"type": kind}, "scanpaths": scanpaths, "logits_processor": [fail]}
    with pytest.raises(KeyError):
        generate(model, inputs, **broken)
    assert is_whole(model) and largest_change(generate(model, inputs), plain) == 0
    with pytest.raises(KeyError), AttentionTrace(model):
        generate(model, inputs, **broken)
    assert is_whole(model) and largest_change(generate(model, inputs), plain) == 0


@pytest.mark.parametrize("kind", TYPES)
@torch.no_grad()
def test_tracing_changes_nothing_and_shows_one_and_the_same(family, kind):
    """Blocks, single rows and offloaded tensors give the same weights; rows sum to 1."""
    _, model, processor = family
    inputs, layouts, scanpaths = batch(model, processor, padded=True)
    gaze = {"mask_type": {"type": kind, "target-layer": [0, 1, 2]}, "scanpaths": scanpaths}
    with AttentionTrace(model) as trace:
        recorded = generate(model, inputs, **gaze)
    with AttentionTrace(model, offload=True) as offloaded:
        assert largest_change(generate(model, inputs, **gaze), recorded) == 0
    assert largest_change(generate(model, inputs, **gaze), recorded) == 0
    for layout in layouts:
        rows = range(layout.start, trace.length)
        whole = trace.weights(1, rows, samples=[layout.sample])
        assert torch.equal(offloaded.weights(1, rows, samples=[layout.sample]), whole)
        torch.testing.assert_close(whole.sum(-1), torch.ones_like(whole[..., 0]))
        joined = torch.zeros_like(whole[0])
        for few, weights in trace.blocks(1, layout.sample, layout.start, trace.length, apart=False, elements=300):
            joined[:, few.start - layout.start : few.stop - layout.start, layout.start : few.stop] = weights
        torch.testing.assert_close(joined, whole[0])
        late = trace.prompt_length + 1
        mixed = trace.weights(1, [late, layout.start + 2], samples=[layout.sample])
        torch.testing.assert_close(mixed[0], whole[0][:, [late - layout.start, 2]])


@torch.no_grad()
def test_rows_that_would_keep_no_key_stay():
    """Fuyu's picture comes first: with gaze on its last cell alone, all patch rows before it see hidden keys only."""
    model, processor = (make() for make in FAMILIES["fuyu"])
    inputs, layouts, _ = batch(model, processor, padded=True)
    scanpaths = [[(layout.grids[0].cols - 1, layout.grids[0].rows - 1)] for layout in layouts]
    with AttentionTrace(model) as plain:
        generate(model, inputs)
    mask_type = {"type": "non-gaussian", "margin": 0}
    with AttentionTrace(model) as trace:
        found = generate(model, inputs, mask_type=mask_type, scanpaths=scanpaths)
    assert not any(step.isnan().any() for step in found.logits)
    for layout in layouts:
        cells, here = layout.images[0], [layout.sample]
        newline = layout.grids[0].cols + layout.start  # the first token that is kept
        before, after = range(layout.start, newline), range(newline, trace.length)
        torch.testing.assert_close(trace.weights(0, before, samples=here), plain.weights(0, before, samples=here))
        rows = trace.weights(0, after, samples=here)
        assert (rows[..., cells[:-1]] == 0).all() and (rows[0, :, -1, cells[-1]] > 0).all()


@pytest.mark.parametrize("kind", TYPES)
@torch.no_grad()
def test_half_precision(kind):
    """bf16 weights are those of the formula within a hundredth."""
    model, processor = llava(key_heads=2).to(torch.bfloat16), llava_processor()
    inputs, layouts, scanpaths = batch(model, processor, padded=True)
    literal = Literal(model, layouts, kind, scanpaths, {0, 1, 2})
    literal_generate(model, inputs, literal)
    mask_type = {"type": kind, "margin": MARGIN, "target-layer": [0, 1, 2]}
    with AttentionTrace(model) as trace:
        found = generate(model, inputs, mask_type=mask_type, scanpaths=scanpaths)
    assert not any(step.isnan().any() for step in found.logits)
    for layer in range(3):
        for layout in layouts:
            theirs = literal.weights[layer][layout.sample, :, layout.start :].float()
            ours = trace.weights(layer, range(layout.start, layout.length), samples=[layout.sample])[0]
            ours = ours[..., : layout.length]
            assert (ours - theirs).norm() / theirs.norm() <= 1e-2
