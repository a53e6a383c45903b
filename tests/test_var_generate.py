"""VAR in generation against a literal eager model: sinks, heads and rows found and edited one after another."""

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

import models
from models.gaze import Gaussian
from models.interventions import InterventionReport, sum_by_layer
from models.trace import AttentionTrace
from models.var import VAR
from tests import tolerance
from tests.errors import refused
from tests.families import FAMILIES
from tests.literal_attention import check_rows
from tests.literal_var import (
    LAYERS,
    PLANTED,
    PROMPTS,
    Literal,
    batch,
    different_sinks,
    generate,
    image_positions,
    is_whole,
    largest_change,
    planted,
)
from tests.models import llava, llava_processor, picture

pytestmark = pytest.mark.numerical
STRICT = replace(PLANTED, first_layer=1, spare_last_layer=True, p=0.3, rho=0.15, min_image_mass=0.6)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """(name, model, processor) of a small random model."""
    model, processor = FAMILIES[request.param]
    return request.param, model(), processor()


def check_against_literal(model, inputs, var, sinks):
    """Logits, recorded weights and counts, in prefill and every decode step; returns (ours, the literal model)."""
    literal, report = Literal(model, inputs, var), InterventionReport()
    with planted(model, sinks):
        expected = literal.generate(inputs)
        with AttentionTrace(model) as trace:
            found = generate(model, inputs, steering=var, report=report)
    assert torch.equal(found.sequences, expected.sequences)
    assert largest_change(found, expected) <= tolerance.two_runs()
    check_rows(trace, literal)
    for row in report.table():
        at = row["layer"], row["sample"]
        edited = {(head, position) for head, position, outcome in literal.rows.get(at, ()) if outcome == "edited"}
        visual = set(literal.sinks[at]) & set(literal.image[row["sample"]])
        assert row == {
            "layer": at[0], "sample": at[1], "visual_sinks": len(visual),
            "text_sinks": len(literal.sinks[at]) - len(visual), "heads": len({head for head, _ in edited}),
            "rows": len({position for _, position in edited}), "pairs": len(edited),
        }  # fmt: skip
    assert len(report.table()) == len(literal.layers) * len(literal.starts)
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


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_several_images_in_one_prompt(name):
    """All images count together; the rows are those behind the last one."""
    model, processor = (make() for make in FAMILIES[name])
    inputs = batch(model, processor, images=(2, 1, 0))
    image = image_positions(model, inputs)
    sinks = {
        (0, 0, image[0][1]): 7,
        (0, 0, image[0][-2]): 40,
        (1, 1, image[1][0]): 7,
        (0, 2, inputs["input_ids"].shape[1] - 1): 7,
    }
    _, literal = check_against_literal(model, inputs, PLANTED, sinks)
    assert {(True, "edited"), (False, "edited")} <= outcomes(literal, 0)
    assert (2, 2) not in literal.rows and literal.sinks[0, 2]  # a sink, but no image


@pytest.mark.parametrize("skip", [False, True], ids=["formula", "published"])
def test_a_layer_whose_sinks_are_all_text(family, skip):
    """The formula edits every head with enough image mass; the published code selects no head. Beside it a sample with
    a visual sink, which both edit."""
    _, model, processor = family
    inputs = batch(model, processor)
    image, starts = image_positions(model, inputs), inputs["attention_mask"].int().argmax(1).tolist()
    text = starts[0] if image[0][0] > starts[0] else image[0][-1] + 1  # an image of Fuyu's is first
    sinks = {(0, 0, text): 40, (0, 1, image[1][0]): 7}
    var = replace(PLANTED, skip_without_visual_sinks=skip)
    found, literal = check_against_literal(model, inputs, var, sinks)
    assert not any(set(literal.sinks[layer, 0]) & set(image[0]) for layer in range(LAYERS))
    assert ((True, "no visual sinks") if skip else (True, "edited")) in outcomes(literal, 0)
    with planted(model, sinks):
        plain = generate(model, inputs)
    assert largest_change(found, plain, 1) > 1e-3
    changed = largest_change(found, plain, 0)
    assert changed <= tolerance.two_runs() if skip else changed > 1e-3


@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "left_padded"])
def test_all_rows_of_the_prompt_can_be_edited(family, padded):
    _, model, processor = family
    inputs = batch(model, processor, padded)
    var = replace(PLANTED, prompt_rows="all")
    _, literal = check_against_literal(model, inputs, var, different_sinks(model, inputs))
    image = image_positions(model, inputs)
    edited = {(sample, row) for (_, sample), rows in literal.rows.items() for _, row, what in rows if what == "edited"}
    assert any(row in image[sample] for sample, row in edited)


@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "left_padded"])
def test_without_sinks_the_model_is_untouched_bit_for_bit(family, padded):
    _, model, processor = family
    inputs, report = batch(model, processor, padded), InterventionReport()
    plain, found = generate(model, inputs), generate(model, inputs, steering=PLANTED, report=report)
    assert largest_change(plain, found) == 0
    counts = ("visual_sinks", "text_sinks", "heads", "rows", "pairs")
    assert sum_by_layer(report.table()) == [
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
        fresh, seen, alone = make(), InterventionReport(), InterventionReport()
        with planted(used, spiking):
            found = generate(used, inputs, steering=PLANTED, report=seen)
        assert is_whole(used)
        with planted(fresh, spiking):
            expected = generate(fresh, inputs, steering=PLANTED, report=alone)
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
            assert (ours[0] - theirs[sample]).abs().max() <= tolerance.two_runs()


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
    "options, reason",
    [
        ({"steering": 3}, "not-an-intervention"),
        ({"steering": VAR}, "not-an-intervention"),
        ({"steering": {"type": "gaussian"}}, "gaze-without-scanpaths"),
        ({"steering": Gaussian((1,))}, "gaze-without-scanpaths"),
        ({"mask_type": {"type": "gaussian"}, "scanpaths": [[(0, 0)]]}, "mask-type-and-steering"),
        ({"scanpaths": [[]]}, "mask-type-and-steering"),
        ({"steering": replace(PLANTED, dimensions=(64,))}, "no-such-dimension"),
        ({"steering": replace(PLANTED, tau=20.0)}, "tau-too-high"),
        ({"steering": replace(PLANTED, first_layer=3)}, "no-such-layer"),
        ({"num_beams": 2}, "unrecordable-setting"),
        ({"attention_mask": None}, "steering-inputs"),
        ({"past_key_values": DynamicCache()}, "steering-inputs"),
    ],
)
def test_what_cannot_be_steered_is_refused_before_the_model_runs(options, reason):
    model, processor = llava(), llava_processor()
    inputs, _ = model.prepare(processor, [picture()], "what ?")
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with refused(reason):
        model.generate(**{**inputs, "steering": PLANTED, **options})


@pytest.mark.parametrize(
    "options", [{"cache_implementation": "static"}, {"prefill_chunk_size": 8}, {"use_cache": False}]
)
@torch.no_grad()
def test_other_caches_are_refused(options):
    model, processor = llava(), llava_processor()
    inputs, _ = model.prepare(processor, [picture()], "what ?")
    with refused("unrecordable-setting"):
        model.generate(**inputs, max_new_tokens=3, steering=PLANTED, **options)
    assert is_whole(model)


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
    report = InterventionReport()
    with AttentionTrace(model) as trace:
        found = generate(model, inputs, steering=var, report=report)
    counts = sum_by_layer(report.table())
    assert [row["layer"] for row in counts] == list(var.layers(trace.layers))
    assert all(row["visual_sinks"] + row["text_sinks"] > 0 for row in counts) and sum(row["pairs"] for row in counts)
    assert largest_change(found, generate(model, inputs)) > 0
    last = trace.weights(trace.layers - 2, slice(trace.prompt_length, None))
    torch.testing.assert_close(last.sum(-1), torch.ones_like(last[..., 0]))
