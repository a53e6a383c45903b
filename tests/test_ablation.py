"""Heads without the image, against a literal eager model: softmax, image weights scaled, renormalised, row by row."""

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from models.ablation import HeadAblation, check_heads, scale_image
from models.generation import YesNo
from models.trace import AttentionTrace
from tests import tolerance
from tests.errors import refused
from tests.families import FAMILIES
from tests.literal_var import STEPS, batch, generate, image_positions, is_whole, largest_change
from tests.models import llava, llava_processor, picture, word_tokenizer

pytestmark = pytest.mark.numerical
HEADS = ((0, 1), (2, 0), (2, 3))


class Literal:
    """The ablated model as one would first write it: eager, every matrix whole, one row and one key after another."""

    def __init__(self, model, inputs, heads, scale):
        self.heads, self.scale = heads, scale
        self.image, self.prompt = image_positions(model, inputs), inputs["input_ids"].shape[1]
        self.weights = []  # per call of a layer: [sample, head, query, key]

    def __call__(self, module, query, key, value, attention_mask, scaling=None, **_):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        weights = ((query @ key.transpose(2, 3)) * scaling + attention_mask).softmax(-1)
        past = key.shape[2] - query.shape[2]
        for layer, head in self.heads:
            for row in range(query.shape[2]) if layer == module.layer_idx else ():
                if past + row >= self.prompt - 1:
                    for sample, image in enumerate(self.image):
                        for position in image:
                            weights[sample, head, row, position] *= self.scale
                        weights[sample, head, row] /= weights[sample, head, row].sum()
        self.weights.append(weights)
        return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionMaskInterface.register("literal", eager_mask)


def literal_generate(model, inputs, literal):
    AttentionInterface.register("literal", literal)
    model.set_attn_implementation({"text_config": "literal"})
    try:
        return generate(model, inputs)
    finally:
        model.set_attn_implementation({"text_config": "sdpa"})


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """(model, processor), small and random."""
    model, processor = FAMILIES[request.param]
    return model(), processor()


@pytest.mark.parametrize("scale", [0.0, 0.5])
@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "left_padded"])
@torch.no_grad()
def test_ablation_is_the_literal_formula(family, padded, scale):
    """Logits and recorded weights, in prefill and every decode step, and the model whole afterwards."""
    model, processor = family
    inputs = batch(model, processor, padded)
    literal = Literal(model, inputs, HEADS, scale)
    expected = literal_generate(model, inputs, literal)
    with AttentionTrace(model) as trace:
        found = generate(model, inputs, steering=HeadAblation(HEADS, scale))
    assert torch.equal(found.sequences, expected.sequences) and largest_change(found, expected) <= tolerance.two_runs()
    for step in range(STEPS):
        for layer in range(3):
            reference = literal.weights[step * 3 + layer]
            for sample, start in enumerate(trace.start.tolist()):
                first = start if step == 0 else trace.prompt_length + step - 1
                rows = range(first, trace.prompt_length + step)
                ours = trace.weights(layer, rows, samples=[sample])[0, :, :, : reference.shape[-1]]
                assert (ours - reference[sample, :, -len(rows) :]).abs().max() <= tolerance.two_runs()
    assert min(largest_change(found, generate(model, inputs), sample) for sample in range(3)) > 1e-3
    assert is_whole(model)


@pytest.mark.parametrize("settings", [HeadAblation(()), HeadAblation(HEADS, 1.0)], ids=["no_head", "no_scaling"])
@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "left_padded"])
@torch.no_grad()
def test_neutral_is_the_untouched_model_bit_for_bit(family, settings, padded):
    model, processor = family
    inputs = batch(model, processor, padded)
    plain, found = generate(model, inputs), generate(model, inputs, steering=settings)
    assert torch.equal(plain.sequences, found.sequences) and largest_change(plain, found) == 0


@torch.no_grad()
def test_two_images_none_and_one():
    """Both images of a sample are taken away; the words share the row in proportion; other heads, rows and a sample
    without images are as they were."""
    model, processor = llava(), llava_processor()
    inputs = batch(model, processor, images=(2, 0, 1))
    with AttentionTrace(model) as plain:
        before = generate(model, inputs, max_new_tokens=1)
    with AttentionTrace(model) as trace:
        after = generate(model, inputs, max_new_tokens=1, steering=HeadAblation(((0, 2),)))
    last = trace.prompt_length - 1
    was, now = plain.weights(0, [last - 1, last]), trace.weights(0, [last - 1, last])
    for sample, image in enumerate(image_positions(model, inputs)):
        words = [key for key in range(trace.prompt_length) if key not in image]
        of_words = was[sample, 2, 1, words]
        assert (now[sample, 2, 1, words] - of_words / of_words.sum()).abs().max() <= tolerance.sums(len(words))
        assert torch.equal(was[sample, [0, 1, 3]], now[sample, [0, 1, 3]])
        assert (now[sample, 2, 1, image] == 0).all() and torch.equal(now[sample, 2, 0], was[sample, 2, 0])
        assert bool((was[sample, 2, 1, image] > 0).any()) == (sample != 1)
    assert largest_change(before, after, 1) <= tolerance.two_runs() and largest_change(before, after, 0) > 1e-3


def test_scaling_by_hand():
    """One of two heads; then a row that holds nothing but the image."""
    weights = torch.tensor([[[0.5, 0.25, 0.25]], [[0.2, 0.4, 0.4]]])
    found = scale_image(weights, torch.tensor([1]), torch.tensor([0, 2]), 0.5)
    assert torch.equal(found[0], weights[0])
    assert found[1, 0].tolist() == pytest.approx([0.1 / 0.7, 0.4 / 0.7, 0.2 / 0.7])
    assert scale_image(weights, torch.tensor([0, 1]), torch.tensor([0, 2]), 0).tolist() == [[[0, 1, 0]]] * 2
    blind = scale_image(torch.tensor([[[0.5, 0.0, 0.5]]]), torch.tensor([0]), torch.tensor([0, 2]), 0)
    assert (blind == 0).all()


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda: HeadAblation(((0, 1),), -1.0), "scale"),
        (lambda: HeadAblation(((0, 1),), float("nan")), "scale"),
        (lambda: HeadAblation((3, 1)), "heads-not-pairs"),
        (lambda: HeadAblation(((0.5, 1),)), "heads-not-pairs"),
        (lambda: HeadAblation(((0, -1),)), "negative-head"),
        (lambda: HeadAblation(((0, 4),)).check(3, 4), "no-such-head"),
        (lambda: HeadAblation(((3, 0),)).check(3, 4), "no-such-head"),
    ],
)
def test_wrong_settings_are_one_sentence(make, reason):
    with refused(reason):
        make()


def test_a_head_beyond_the_model_stops_before_it_runs():
    model, processor = llava(), llava_processor()
    inputs, _ = model.prepare(processor, [picture()], "what ?")
    with refused("no-such-head"):
        model.generate(**inputs, steering=HeadAblation(((1, 9),)))
    assert is_whole(model) and check_heads([(2, 1), (0, 3), (2, 1)]) == ((0, 3), (2, 1))


@torch.no_grad()
def test_yes_against_no_by_hand():
    """log(e^1 + e^3) - log(e^2), of logits and of probabilities; a batch as its samples alone."""
    logits = torch.tensor([5.0, 1.0, 2.0, 3.0])
    words = YesNo(yes=(1, 3), no=(2,))
    expected = (torch.tensor(1.0).exp() + torch.tensor(3.0).exp()).log() - 2
    assert float(words.margin(logits)) == pytest.approx(float(expected), abs=tolerance.same_states())
    assert float(words.margin(logits.softmax(-1).log())) == pytest.approx(float(expected), abs=tolerance.same_states())
    model, processor = llava(), llava_processor()
    inputs = batch(model, processor)
    found = words.steered_margin(model, inputs)
    expected = words.margin(generate(model, inputs, max_new_tokens=1).logits[0])
    assert torch.allclose(found, expected, atol=tolerance.two_runs())
    assert not torch.allclose(found, words.steered_margin(model, inputs, HeadAblation(HEADS)))
    with refused("no-yes-no-token"):
        YesNo.of(word_tokenizer())
