"""VAR in generation against a literal eager model: sinks, heads and rows found and edited one after another."""

import math
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import eager_mask

import models
from models.attention import LISTENERS, STEERING
from models.gaze import NonGaussian, PlacedMask
from models.redistribution import Redistribution
from models.steering import Prompt, RowEdit, Steering
from models.touched import Touched, by_layer
from models.trace import AttentionTrace
from models.var import VAR
from tests.families import FAMILIES
from tests.models import llava, llava_processor, picture

LAYERS, STEPS = 3, 4
SPIKES = (7, 40)  # dimensions
PLANTED = VAR(SPIKES, tau=5.0, first_layer=0, spare_last_layer=False)  # |RMSNorm(x)| is at most 8 in a model 64 wide
STRICT = replace(PLANTED, first_layer=1, spare_last_layer=True, p=0.3, rho=0.15, min_image_mass=0.6)


# Sinks at known tokens


@contextmanager
def planted(model, sinks):
    """Lets tokens spike in the residual stream that enters a layer; sinks: (layer, sample, position) -> dimension."""

    def spike(layer, args):
        hidden = args[0].clone()
        for (where, sample, position), dimension in sinks.items() if hidden.shape[1] > 1 else ():
            if where == layer:
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
    """Of each sample, as lists; positions include padding."""
    return [(row == model.config.image_token_id).nonzero().flatten().tolist() for row in inputs["input_ids"]]


# The formulas, token by token and row by row


def literal_sinks(hidden, dimensions, tau):
    """Positions of a residual stream [row, width] whose largest |x_d| / sqrt(mean x^2 + 1e-6) is above tau."""
    found = []
    for position, x in enumerate(hidden.double()):
        rms = math.sqrt(float((x * x).mean()) + 1e-6)
        if max(abs(float(x[d])) / rms for d in dimensions) > tau:
            found.append(position)
    return found


def literal_row(row, image, sinks, var):
    """(One softmax row [key] after its edit, or why it has none)."""
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
    """The steered model as one would first write it: eager, every matrix whole, edited one row after another."""

    def __init__(self, model, inputs, var):
        self.model, self.var, self.image = model, var, image_positions(model, inputs)
        self.starts = inputs["attention_mask"].int().argmax(1).tolist()
        self.layers = range(var.first_layer, LAYERS - var.spare_last_layer)
        self.sinks = {}  # (layer, sample): positions
        self.rows = {}  # (layer, sample): [(head, row, what came of it)]
        self.weights = []  # per call of a layer: [sample, head, query, key]

    def see(self, layer, hidden):
        for sample, start in enumerate(self.starts):
            if (layer, sample) not in self.sinks:
                found = literal_sinks(hidden[sample, start:], self.var.dimensions, self.var.tau)
                self.sinks[layer, sample] = [position + start for position in found]

    def __call__(self, module, query, key, value, attention_mask, scaling=None, **_):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        weights = ((query @ key.transpose(2, 3)) * scaling + attention_mask).softmax(-1)
        past, layer = key.shape[2] - query.shape[2], module.layer_idx
        for sample, image in enumerate(self.image) if layer in self.layers else ():
            for row in range(query.shape[2]) if image else ():
                if past + row > image[-1]:
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
            module.register_forward_pre_hook(lambda _, args, layer=layer: self.see(layer, args[0]))
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
    """Of any logit of any step."""
    return max(float((a - b)[sample].abs().max()) for a, b in zip(ours.logits, theirs.logits, strict=True))


# Batches


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """(name, model, processor) of a small random model."""
    model, processor = FAMILIES[request.param]
    return request.param, model(), processor()


PROMPTS = ["where is the red circle ?", "what is it ?", "describe the image to the left ."]


def batch(model, processor, padded=True, images=(1, 1, 1), seed=0):
    """Inputs of three samples with so many images each."""
    sizes = [(150, 90), (60, 90), (120, 120)] if padded else [(150, 90)] * 3
    pictures = [
        [picture(*size, seed=seed + 10 * index + place) for index in range(count)]
        for place, (size, count) in enumerate(zip(sizes, images, strict=True))
    ]
    inputs, _ = model.prepare(processor, pictures, PROMPTS if padded else PROMPTS[:1] * 3)
    assert bool((inputs["attention_mask"] == 0).any()) == padded
    return inputs


def different_sinks(model, inputs):
    """Sample 0: its first token, the third and the last cell, from layer 0 on. Sample 1: cells that spike late, and a
    word behind the image. Sample 2: nothing."""
    image, start = image_positions(model, inputs), inputs["attention_mask"].int().argmax(1).tolist()
    return {
        (0, 0, start[0]): 40,
        (0, 0, image[0][2]): 7,
        (0, 0, image[0][-1]): 40,
        (1, 1, image[1][0]): 7,
        (1, 1, image[1][1]): 7,
        (0, 1, image[1][-1] + 2): 7,
    }


def check_against_literal(model, inputs, var, sinks):
    """Logits, recorded weights and counts, in prefill and every decode step; returns (ours, the literal model)."""
    literal, touched = Literal(model, inputs, var), Touched()
    with planted(model, sinks):
        expected = literal.generate(inputs)
        with AttentionTrace(model) as trace:
            found = generate(model, inputs, steering=var, touched=touched)
    assert torch.equal(found.sequences, expected.sequences)
    assert largest_change(found, expected) <= 1e-4
    for step in range(STEPS):
        for layer in range(LAYERS):
            reference = literal.weights[step * LAYERS + layer]
            for sample, start in enumerate(literal.starts):
                rows = range(start if step == 0 else trace.prompt_length + step - 1, trace.prompt_length + step)
                ours = trace.weights(layer, rows, samples=[sample])[0, :, :, : reference.shape[-1]]
                assert (ours - reference[sample, :, -len(rows) :]).abs().max() <= 1e-5
                torch.testing.assert_close(ours.sum(-1), torch.ones_like(ours[..., 0]))
    for row in touched.table():
        at = row["layer"], row["sample"]
        edited = {(head, position) for head, position, outcome in literal.rows.get(at, ()) if outcome == "edited"}
        visual = set(literal.sinks[at]) & set(literal.image[row["sample"]])
        assert row == {
            "layer": at[0], "sample": at[1], "visual_sinks": len(visual),
            "text_sinks": len(literal.sinks[at]) - len(visual), "heads": len({head for head, _ in edited}),
            "rows": len({position for _, position in edited}), "pairs": len(edited),
        }  # fmt: skip
    assert len(touched.table()) == len(literal.layers) * len(literal.starts)
    return found, literal


def outcomes(literal, sample):
    """What came of a sample's rows: (whether it was a row of the prompt, outcome)."""
    prompt = literal.weights[0].shape[-1]
    rows = [each for (_, place), rows in literal.rows.items() if place == sample for each in rows]
    return {(position < prompt, outcome) for _, position, outcome in rows}


@pytest.mark.parametrize("var", [PLANTED, STRICT], ids=["planted", "strict"])
@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "left_padded"])
def test_steering_is_the_literal_formula(family, padded, var):
    """Different sinks per sample and layer, of image and text; the sample without sinks as if nothing happened."""
    name, model, processor = family
    inputs = batch(model, processor, padded)
    sinks = different_sinks(model, inputs)
    found, literal = check_against_literal(model, inputs, var, sinks)
    for (layer, sample, position), _ in sinks.items():
        assert position in literal.sinks[layer, sample]
    assert len(literal.sinks[0, 0]) == 3 and len(literal.sinks[0, 1]) == 1 and len(literal.sinks[1, 1]) == 3
    assert not any(literal.sinks[layer, 2] for layer in range(LAYERS))
    reached = outcomes(literal, 0) | outcomes(literal, 1)
    if var == STRICT:
        assert {(True, "edited"), (True, "little image"), (True, "sinks"), (False, "little image")} <= reached
    else:
        assert {(True, "edited"), (False, "edited")} <= outcomes(literal, 0) & outcomes(literal, 1)
    with planted(model, sinks):
        plain = generate(model, inputs)
    assert max(largest_change(found, plain, sample) for sample in (0, 1)) > 1e-3
    assert largest_change(found, plain, 2) == 0


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen2_5_vl"])
def test_several_images_in_one_prompt(name):
    """All images count together; the rows are those behind the last one."""
    model, processor = (make() for make in FAMILIES[name])
    inputs = batch(model, processor, images=(2, 1, 0))
    image = image_positions(model, inputs)
    sinks = {(0, 0, image[0][1]): 7, (0, 0, image[0][-2]): 40, (1, 1, image[1][0]): 7, (0, 2, inputs_end(inputs)): 7}
    _, literal = check_against_literal(model, inputs, PLANTED, sinks)
    assert {(True, "edited"), (False, "edited")} <= outcomes(literal, 0)
    assert (2, 2) not in literal.rows and literal.sinks[0, 2]  # a sink, but no image


def inputs_end(inputs):
    return inputs["input_ids"].shape[1] - 1


@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "left_padded"])
def test_without_sinks_the_model_is_untouched_bit_for_bit(family, padded):
    _, model, processor = family
    inputs, touched = batch(model, processor, padded), Touched()
    plain, found = generate(model, inputs), generate(model, inputs, steering=PLANTED, touched=touched)
    assert largest_change(plain, found) == 0
    counts = ("visual_sinks", "text_sinks", "heads", "rows", "pairs")
    assert by_layer(touched.table()) == [
        {"layer": layer, "samples": 3, **dict.fromkeys(counts, 0)} for layer in range(LAYERS)
    ]


@pytest.mark.parametrize("neutral", [{"p": 1}, {"first_layer": 2, "spare_last_layer": True}], ids=["p", "no_layer"])
@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "left_padded"])
def test_neutral_is_the_untouched_model_bit_for_bit(family, neutral, padded):
    _, model, processor = family
    inputs, var = batch(model, processor, padded), replace(PLANTED, **neutral)
    with planted(model, different_sinks(model, inputs)):
        plain, found = generate(model, inputs), generate(model, inputs, steering=var)
    assert torch.equal(plain.sequences, found.sequences) and largest_change(plain, found) == 0


def test_an_image_that_is_all_sinks_is_left_alone(family):
    """All image mass lies on sinks, whatever the share that is allowed; the sample beside it is edited."""
    _, model, processor = family
    inputs = batch(model, processor)
    sinks = different_sinks(model, inputs) | {(0, 2, cell): 7 for cell in image_positions(model, inputs)[2]}
    found, literal = check_against_literal(model, inputs, replace(PLANTED, rho=1.0, min_image_mass=0.0), sinks)
    assert (True, "nothing left") in outcomes(literal, 2) and (True, "edited") in outcomes(literal, 0)
    assert not any("edited" in each for each in outcomes(literal, 2))
    with planted(model, sinks):
        plain = generate(model, inputs)
    assert largest_change(found, plain, 2) == 0 and largest_change(found, plain, 0) > 1e-3


def test_a_prompt_that_ends_with_its_image():
    """No row of the prompt is behind the image; decode rows are."""
    model, processor = llava(), llava_processor()
    inputs, _ = model.prepare(processor, [picture()], "what ?")
    end = image_positions(model, inputs)[0][-1] + 1
    inputs = {"pixel_values": inputs["pixel_values"]} | {
        name: inputs[name][:, :end] for name in ("input_ids", "attention_mask")
    }
    _, literal = check_against_literal(model, inputs, PLANTED, {(0, 0, 0): 7, (0, 0, end - 1): 40})
    assert outcomes(literal, 0) == {(False, "edited")}


# State


def is_whole(model):
    """Nothing hangs on the model, and it names SDPA as it did."""
    hooks = any(module._forward_pre_hooks for module in model.get_decoder().layers)
    attached = any(hasattr(module, name) for module in model.modules() for name in (LISTENERS, STEERING))
    return not hooks and not attached and model.config.text_config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", FAMILIES)
def test_two_generations_give_what_each_gives_alone(name):
    """Other sinks, other prompts and other sizes, with the same settings; and then the first again."""
    make, make_processor = FAMILIES[name]
    used, processor = make(), make_processor()
    first = batch(used, processor)
    second, _ = used.prepare(processor, [[picture(90, 150, seed=7)], [picture(60, 60, seed=8)]], PROMPTS[1:])
    cells = image_positions(used, second)
    sinks = {(0, 0, cells[0][-2]): 40, (0, 1, cells[1][0]): 7, (1, 1, len(second["input_ids"][0]) - 2): 40}
    rounds = [
        (first, different_sinks(used, first)),
        (second, sinks),
        (first, {}),
        (first, different_sinks(used, first)),
    ]
    for inputs, spiking in rounds:
        fresh, seen, alone = make(), Touched(), Touched()
        with planted(used, spiking):
            found = generate(used, inputs, steering=PLANTED, touched=seen)
        assert is_whole(used)
        with planted(fresh, spiking):
            expected = generate(fresh, inputs, steering=PLANTED, touched=alone)
        assert largest_change(found, expected) == 0 and seen.table() == alone.table()
        assert bool(sum(row["pairs"] for row in seen.table())) == bool(spiking)
        assert largest_change(generate(used, inputs), generate(fresh, inputs)) == 0


def test_a_batch_gives_what_each_sample_gives_alone(family):
    _, model, processor = family
    pictures = [[picture(150, 90)], [picture(60, 90, seed=1)]]
    together, _ = model.prepare(processor, pictures, PROMPTS[:2])
    cells, start = image_positions(model, together), together["attention_mask"].int().argmax(1).tolist()
    sinks = {(0, 0, cells[0][2]): 7, (0, 0, cells[0][-1]): 40, (0, 1, cells[1][1]): 40, (1, 1, start[1]): 7}
    with planted(model, sinks):
        batched = generate(model, together, steering=PLANTED)
    for sample in range(2):
        single, _ = model.prepare(processor, pictures[sample], PROMPTS[sample])
        own = {(layer, 0, at - start[sample]): d for (layer, place, at), d in sinks.items() if place == sample}
        with planted(model, own):
            alone = generate(model, single, steering=PLANTED)
        for ours, theirs in zip(alone.logits, batched.logits, strict=True):
            assert (ours[0] - theirs[sample]).abs().max() <= 1e-4


def test_an_error_leaves_the_model_as_it_was(family):
    """In the middle of prefill and of decoding, with and without a trace around it."""
    _, model, processor = family
    inputs = batch(model, processor)
    plain, length = generate(model, inputs), inputs["input_ids"].shape[1]

    def fail(ids, scores):
        if ids.shape[1] > length:
            raise KeyError
        return scores

    with planted(model, different_sinks(model, inputs)):
        with pytest.raises(KeyError):
            generate(model, inputs, steering=PLANTED, logits_processor=[fail])
        with pytest.raises(KeyError), AttentionTrace(model):
            generate(model, inputs, steering=PLANTED, logits_processor=[fail])
    assert is_whole(model) and largest_change(generate(model, inputs), plain) == 0
    handle = model.get_decoder().layers[1].register_forward_hook(lambda *_: {}["no such"])
    with pytest.raises(KeyError):
        generate(model, inputs, steering=PLANTED)
    handle.remove()
    assert is_whole(model) and largest_change(generate(model, inputs), plain) == 0


# What is refused


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"steering": 3}, r"steering is 3; give settings of an intervention, such as VAR.for_model\(model\)"),
        ({"steering": VAR}, "give settings of an intervention"),
        ({"steering": {"type": "gaussian"}}, "gaze goes into mask_type"),
        ({"mask_type": {"type": "gaussian"}, "scanpaths": [[(0, 0)]]}, "mask_type and steering were both given"),
        ({"scanpaths": [[]]}, "mask_type and steering were both given"),
        ({"steering": replace(PLANTED, dimensions=(64,))}, "sink dimension 64 does not exist; the model is 64 wide"),
        ({"steering": replace(PLANTED, tau=20.0)}, r"tau is 20, which no token can pass"),
        ({"steering": replace(PLANTED, first_layer=3)}, "first_layer 3 does not exist"),
        ({"num_beams": 2}, "num_beams=2 cannot be steered"),
        ({"attention_mask": None}, "needs input_ids and attention_mask by name"),
        ({"past_key_values": DynamicCache()}, "needs input_ids and attention_mask by name"),
    ],
)
def test_what_cannot_be_steered_is_refused_before_the_model_runs(options, sentence):
    model, processor = llava(), llava_processor()
    inputs, _ = model.prepare(processor, [picture()], "what ?")
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match=sentence):
        model.generate(**{**inputs, "steering": PLANTED, **options})


@pytest.mark.parametrize(
    "options", [{"cache_implementation": "static"}, {"prefill_chunk_size": 8}, {"use_cache": False}]
)
@torch.no_grad()
def test_other_caches_are_refused(options):
    model, processor = llava(), llava_processor()
    inputs, _ = model.prepare(processor, [picture()], "what ?")
    with pytest.raises(RuntimeError, match="steering needs an empty default"):
        model.generate(**inputs, max_new_tokens=3, steering=PLANTED, **options)
    assert is_whole(model)


@torch.no_grad()
def test_a_report_is_of_one_generation():
    model, processor = llava(), llava_processor()
    inputs, _ = model.prepare(processor, [picture()], "what ?")
    touched = Touched()
    model.generate(**inputs, max_new_tokens=1, steering=PLANTED, touched=touched)
    with pytest.raises(RuntimeError, match="already holds a generation; hand in a new Touched"):
        model.generate(**inputs, max_new_tokens=1, steering=PLANTED, touched=touched)
    assert is_whole(model) and Touched().table() == []


# The report, the two matrix products, other settings, half precision, an embedded model


def test_counts_add_up_over_calls():
    tables = [
        {"layer": 4, "sample": 0, "visual_sinks": 3, "heads": 2, "rows": 5, "pairs": 7},
        {"layer": 2, "sample": 0, "visual_sinks": 1, "heads": 0, "rows": 0, "pairs": 0},
        {"layer": 4, "sample": 1, "visual_sinks": 0, "heads": 1, "rows": 1, "pairs": 1},
    ]
    assert by_layer(tables) == [
        {"layer": 2, "samples": 1, "visual_sinks": 1, "heads": 0, "rows": 0, "pairs": 0},
        {"layer": 4, "samples": 2, "visual_sinks": 3, "heads": 3, "rows": 6, "pairs": 8},
    ]
    assert by_layer([]) == []


def test_a_report_of_gaze_counts_its_rows():
    """Salient heads edit the last prompt row and each decode row; a key bias edits no row by hand."""
    model, processor = llava(), llava_processor()
    inputs, _ = model.prepare(processor, [picture()], "what ?")
    for kind, rows in (("salient-head", STEPS), ("gaussian", 0)):
        touched = Touched()
        gaze = {"mask_type": {"type": kind, "target-layer": 1}, "scanpaths": [[(0, 0)]]}
        generate(model, inputs, touched=touched, **gaze)
        [row] = touched.table()
        assert row["rows"] == rows and row["layer"] == 1 and row["pairs"] == row["rows"]  # one head of four a row


@pytest.mark.parametrize("keys", [20, 9, 31], ids=["prompt", "early_rows", "decode"])
@pytest.mark.parametrize("settings", [{}, {"rho": 0.0}, {"rho": 1.0, "min_image_mass": 0.0, "p": 0.0}])
def test_two_matrix_products_are_the_edit(keys, settings):
    """Against the definition, also where a row sees part of the prompt or more; other rows bit for bit."""
    generator = torch.Generator().manual_seed(0)
    weights = (4 * torch.randn(6, 30, keys, generator=generator)).softmax(-1)
    image, sinks = torch.arange(4, 16), torch.tensor([0, 5, 6, 11, 18])
    weights[:, 3, [k for k in range(4, min(16, keys)) if k not in sinks]] = 0  # nothing left
    weights[:, 4, sinks[sinks < keys]] = 0
    var = replace(PLANTED, **settings)
    redistribution = Redistribution.of(image, sinks, 20, rho=var.rho, min_image_mass=var.min_image_mass, p=var.p)
    found, expected = redistribution(weights), var.edit(weights, image, sinks)
    assert (found - expected).abs().max() <= 1e-6
    same = (weights == expected).all(-1)
    assert torch.equal(found[same], weights[same]) and same[:, 3:5].all() and (same.all() == (var.rho == 0))


def test_hardly_any_weight_left_is_none():
    weights = torch.tensor([[[1.0, 1e-44, 3e-44]]])
    redistribution = Redistribution.of(torch.arange(3), torch.tensor([0]), 3, rho=1.0, min_image_mass=0.0, p=0.6)
    assert torch.equal(redistribution(weights), weights)


@dataclass(frozen=True)
class Deaf:
    """One head of each layer stops looking at the image, from the first row behind it on."""

    head: int

    def steering(self, prompt: Prompt):
        edits = {s: RowEdit(int(image[-1]) + 1, self.without(image)) for s, image in enumerate(prompt.images)}
        assert prompt.heads == 4 and prompt.width == 64
        return dict.fromkeys(range(prompt.layers), Steering(prompt.length, prompt.starts, edits=edits))

    def without(self, image):
        def change(weights):
            kept = weights.clone()
            kept[self.head, :, image] = 0
            return kept / kept.sum(-1, keepdim=True)

        return change


@dataclass(frozen=True)
class Hidden:
    """Gaze of the settings' own: the first cell of each image is all that any row sees of it."""

    def steering(self, prompt: Prompt):
        corner = torch.zeros(4, 4)
        corner[0, 0] = 1
        starts = torch.tensor(prompt.starts)
        placed = {s: PlacedMask(corner, image + prompt.starts[s]) for s, image in enumerate(prompt.images)}
        return {1: NonGaussian((1,)).steering(placed, starts, prompt.length)}


def test_settings_of_other_interventions():
    """Whatever makes a `Steering` of a `Prompt` steers: row edits and key biases, of any layer."""
    model, processor = llava(), llava_processor()
    inputs = batch(model, processor)
    with AttentionTrace(model) as trace:
        generate(model, inputs, steering=Deaf(2))
    for sample, image in enumerate(image_positions(model, inputs)):
        rows = trace.weights(1, range(image[-1] + 1, trace.length), samples=[sample])[0]
        assert (rows[2][:, image] == 0).all() and (rows[[0, 1, 3]][..., image].sum(-1) > 0).all()
        torch.testing.assert_close(rows.sum(-1), torch.ones_like(rows[..., 0]))
    gaze = {"mask_type": {"type": "non-gaussian", "margin": 0, "target-layer": 1}, "scanpaths": [[(0, 0)]] * 3}
    assert largest_change(generate(model, inputs, steering=Hidden()), generate(model, inputs, **gaze)) == 0


def test_half_precision():
    """bf16 weights are those of the formula within a hundredth."""
    model, processor = llava(key_heads=2).to(torch.bfloat16), llava_processor()
    inputs = batch(model, processor)
    sinks = different_sinks(model, inputs)
    literal = Literal(model, inputs, PLANTED)
    with planted(model, sinks):
        literal.generate(inputs)
        with AttentionTrace(model) as trace:
            found = generate(model, inputs, steering=PLANTED)
        plain = generate(model, inputs)
    assert not any(step.isnan().any() for step in found.logits) and largest_change(found, plain) > 1e-2
    for layer in range(LAYERS):
        for sample, start in enumerate(literal.starts):
            theirs = literal.weights[layer][sample, :, start:].float()
            ours = trace.weights(layer, range(start, trace.prompt_length), samples=[sample])[0]
            ours = ours[..., : trace.prompt_length]
            assert (ours - theirs).norm() / theirs.norm() <= 1e-2


def test_an_embedded_model():
    """Its residual stream has no spikes to speak of, so any dimension and a low threshold stand in."""
    model, processor = models.load("tiny-llava")
    var = VAR.for_model(model, dimensions=(3, 11), tau=2.0, p=0.2)
    inputs, _ = model.prepare(processor, [picture()], "where is the first shape ?")
    touched = Touched()
    with AttentionTrace(model) as trace:
        found = generate(model, inputs, steering=var, touched=touched)
    counts = by_layer(touched.table())
    assert [row["layer"] for row in counts] == list(var.layers(trace.layers))
    assert all(row["visual_sinks"] + row["text_sinks"] > 0 for row in counts) and sum(row["pairs"] for row in counts)
    assert largest_change(found, generate(model, inputs)) > 0
    last = trace.weights(trace.layers - 2, slice(trace.prompt_length, None))
    torch.testing.assert_close(last.sum(-1), torch.ones_like(last[..., 0]))
