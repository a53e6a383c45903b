"""PAI against a literal eager model, and its logits against a second model that reads the prompt without images."""

import pytest
import torch
from transformers import LogitsProcessorList

from models.interventions import InterventionReport
from models.pai import PAI, strengthen
from models.trace import AttentionTrace
from tests import tolerance
from tests.errors import refused
from tests.families import FAMILIES
from tests.literal_attention import LiteralScores, check_rows
from tests.literal_var import PROMPTS, STEPS, batch, generate, image_positions, is_whole, largest_change
from tests.models import llava, llava_processor

pytestmark = pytest.mark.numerical
SLOW = ("fuyu", "qwen2_vl")
MODELS = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in FAMILIES]


@pytest.fixture(scope="module", params=MODELS)
def family(request):
    """(name, model, processor) of a small random model."""
    model, processor = FAMILIES[request.param]
    return request.param, model(), processor()


class Literal(LiteralScores):
    """Eager attention whose scores gain alpha |z| one by one, in the last row that is fed, and literal logits.

    `blind` is a second model with the same weights, which reads `texts`, the prompts of the samples without images, as
    the tokens of one unpadded sample at a time, whole at each step.
    """

    def __init__(self, model, inputs, settings, blind=None, texts=()):
        super().__init__(model, inputs)
        self.settings, self.prompt = settings, inputs["input_ids"].shape[1]
        self.blind, self.texts = blind, texts

    def change(self, layer, scores, past):
        for sample, image in enumerate(self.image) if layer >= self.settings.first_layer else ():
            for position in image:
                score = scores[sample, :, -1, position]
                scores[sample, :, -1, position] = score + self.settings.alpha * score.abs()

    def refine(self, sequences, scores):
        refined = scores.clone()
        for sample, text in enumerate(self.texts):
            if self.image[sample]:
                ids = torch.cat([text, sequences[sample, self.prompt :]])[None]
                image = scores[sample].log_softmax(-1)
                blind = self.blind(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1].log_softmax(-1)
                gamma = self.settings.gamma
                mixed = gamma * (image - blind) + blind
                mixed[image < image.max() + torch.tensor(0.1).log()] = float("-inf")
                refined[sample] = mixed
        return refined

    def generate(self, inputs):
        processors = LogitsProcessorList([self.refine] if self.blind else [])
        return super().generate(inputs, output_scores=True, logits_processor=processors)


def compare(model, inputs, settings, literal):
    """Logits and scores of every step, and weights of every row."""
    report = InterventionReport()
    expected = literal.generate(inputs)
    with AttentionTrace(model) as trace:
        found = generate(model, inputs, steering=settings, report=report, output_scores=True)
    assert torch.equal(found.sequences, expected.sequences) and is_whole(model)
    assert largest_change(found, expected) <= tolerance.two_runs()
    for ours, theirs in zip(found.scores, expected.scores, strict=True):
        assert torch.equal(ours.isinf(), theirs.isinf())
        assert (ours - theirs)[ours.isfinite()].abs().max() <= 2 * tolerance.two_runs()
    check_rows(trace, literal)
    return found, report


@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "left_padded"])
def test_attention_is_the_literal_formula(family, padded):
    _, model, processor = family
    inputs, settings = batch(model, processor, padded), PAI(0.5, 1.0, first_layer=1)
    found, report = compare(model, inputs, settings, Literal(model, inputs, settings))
    assert min(largest_change(found, generate(model, inputs), sample) for sample in range(3)) > 1e-3
    # the last row of the prompt and each decode row, in every head
    assert [row["layer"] for row in report.table()] == [1, 1, 1, 2, 2, 2]
    assert all(row["rows"] == STEPS and row["pairs"] == 4 * STEPS for row in report.table())


def text_ids(name, model, processor, inputs):
    """Tokens of each prompt without its image, without padding: as `prepare` makes them for no image, except Fuyu,
    which has no such prompt; there those behind the last newline token."""
    if name == "fuyu":
        last = [at[-1] for at in image_positions(model, inputs)]
        return [row[at + 2 :] for row, at in zip(inputs["input_ids"], last, strict=True)]
    return [model.prepare(processor, [], prompt)[0]["input_ids"][0] for prompt in PROMPTS]


@torch.no_grad()
def test_the_contrast_is_with_the_prompt_without_images(family):
    name, model, processor = family
    inputs, settings = batch(model, processor), PAI(0.5, 3.0)
    literal = Literal(model, inputs, settings, FAMILIES[name][0](), text_ids(name, model, processor, inputs))
    found, _ = compare(model, inputs, settings, literal)
    attention_alone = generate(model, inputs, steering=PAI(0.5, 1.0), output_scores=True)
    assert all(
        (ours - theirs)[ours.isfinite()].abs().max() > 1e-3
        for ours, theirs in zip(found.scores[0], attention_alone.scores[0].log_softmax(-1), strict=True)
    )


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_two_images_none_and_one(name):
    """All images count; the sample without one has the logits and scores of the plain model."""
    model, processor = (make() for make in FAMILIES[name])
    inputs, settings = batch(model, processor, images=(2, 0, 1)), PAI(0.5, 2.0, first_layer=0)
    texts = [model.prepare(processor, [], prompt)[0]["input_ids"][0] for prompt in PROMPTS]
    found, _ = compare(model, inputs, settings, Literal(model, inputs, settings, FAMILIES[name][0](), texts))
    plain = generate(model, inputs, output_scores=True)
    assert largest_change(found, plain, 1) == 0 < largest_change(found, plain, 0)
    assert all(torch.equal(ours[1], theirs[1]) for ours, theirs in zip(found.scores, plain.scores, strict=True))


@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "left_padded"])
def test_neutral_is_the_untouched_model_bit_for_bit(family, padded):
    _, model, processor = family
    inputs = batch(model, processor, padded)
    plain = generate(model, inputs, output_scores=True)
    found = generate(model, inputs, steering=PAI(0.0, 1.0), output_scores=True)
    assert all(torch.equal(a, b) for a, b in zip(plain.scores, found.scores, strict=True))


def test_half_precision():
    model, processor = llava().to(torch.bfloat16), llava_processor()
    inputs, settings = batch(model, processor), PAI(0.5, 1.0, first_layer=0)
    expected = Literal(model, inputs, settings).generate(inputs).logits[0].float()
    found = generate(model, inputs, steering=settings).logits[0].float()
    assert (found - expected).norm() <= 2e-2 * expected.norm()
    assert generate(model, inputs, steering=PAI()).sequences.shape[1] == inputs["input_ids"].shape[1] + STEPS


def test_scores_by_hand():
    """A negative score rises towards 0, a positive one grows, one of no image token stays."""
    found = strengthen(torch.tensor([[-2.0, 4.0, 0.0, 3.0]]), torch.tensor([0, 1, 2]), 0.25)
    assert found.tolist() == [[-1.5, 5.0, 0.0, 3.0]]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: PAI(alpha=-0.1), "alpha"),
        (lambda: PAI(alpha=float("nan")), "alpha"),
        (lambda: PAI(gamma=0.5), "gamma"),
        (lambda: PAI(first_layer=-1), "no-such-layer"),
        (lambda: PAI(first_layer=3).check(3), "no-such-layer"),
    ],
)
def test_wrong_settings_are_refused(make, reason):
    with refused(reason):
        make()
