"""AdaptVis against a literal eager model; its neutral setting; each sample by its own confidence."""

import pytest
import torch

from models.adapt_vis import AdaptVis, ImageScaling, confidence
from models.answering import Decoding, ModelBackend
from models.interventions import InterventionReport
from models.methods import by_confidence
from models.trace import AttentionTrace
from tests import tolerance
from tests.errors import refused
from tests.families import FAMILIES
from tests.literal_attention import LiteralScores, check_rows
from tests.literal_var import LAYERS, PROMPTS, batch, generate, is_whole, largest_change
from tests.models import llava, llava_processor, picture

pytestmark = pytest.mark.numerical
WEIGHTS = (0.5, 1.5, 0.0)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """(name, model, processor) of a small random model."""
    model, processor = FAMILIES[request.param]
    return request.param, model(), processor()


class Literal(LiteralScores):
    """Eager attention whose scores are multiplied one by one, as the paper writes it, in the last prompt row alone."""

    def __init__(self, model, inputs, weights):
        super().__init__(model, inputs)
        self.factors = weights

    def change(self, layer, scores, past):
        if past == 0:
            for sample, (image, factor) in enumerate(zip(self.image, self.factors, strict=True)):
                for position in image:
                    scores[sample, :, -1, position] *= factor


@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "left_padded"])
def test_steering_is_the_literal_formula(family, padded):
    """Logits of every step and weights of every row, each sample with a weight of its own."""
    _, model, processor = family
    inputs = batch(model, processor, padded)
    literal, report = Literal(model, inputs, WEIGHTS), InterventionReport()
    expected = literal.generate(inputs)
    with AttentionTrace(model) as trace:
        found = generate(model, inputs, steering=ImageScaling(WEIGHTS), report=report)
    assert torch.equal(found.sequences, expected.sequences) and is_whole(model)
    assert largest_change(found, expected) <= tolerance.two_runs()
    check_rows(trace, literal)
    plain = generate(model, inputs)
    assert all(largest_change(found, plain, sample) > 1e-3 for sample in range(3))
    # one row of each layer and sample: the last of the prompt, in every head
    assert all(row["rows"] == 1 and row["heads"] == row["pairs"] == 4 for row in report.table())


@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "left_padded"])
def test_weights_of_one_are_the_untouched_model_bit_for_bit(family, padded):
    _, model, processor = family
    inputs = batch(model, processor, padded)
    plain, ones = generate(model, inputs), generate(model, inputs, steering=ImageScaling((1.0, 1, 1)))
    assert largest_change(plain, ones) == 0
    one = generate(model, inputs, steering=ImageScaling((1.0, 0.5, 1.0)))
    assert largest_change(plain, one, 0) == largest_change(plain, one, 2) == 0 < largest_change(plain, one, 1)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_several_images_and_none(name):
    model, processor = (make() for make in FAMILIES[name])
    inputs = batch(model, processor, images=(2, 1, 0))
    literal = Literal(model, inputs, WEIGHTS)
    expected, found = literal.generate(inputs), generate(model, inputs, steering=ImageScaling(WEIGHTS))
    assert largest_change(found, expected) <= tolerance.two_runs()
    assert largest_change(found, generate(model, inputs), 2) == 0  # no image, nothing to scale


def test_half_precision():
    model, processor = llava().to(torch.bfloat16), llava_processor()
    inputs = batch(model, processor)
    literal = Literal(model, inputs, WEIGHTS)
    expected, found = literal.generate(inputs), generate(model, inputs, steering=ImageScaling(WEIGHTS))
    first, reference = found.logits[0].float(), expected.logits[0].float()
    assert (first - reference).norm() <= 2e-2 * reference.norm()


def test_each_sample_by_its_own_confidence(family):
    """The same choice, and the same answer, alone and in a batch; confidences by hand from the plain logits."""
    _, model, processor = family
    inputs = batch(model, processor)
    sure = confidence(model, inputs)
    expected = generate(model, inputs).logits[0].softmax(-1).amax(-1)
    torch.testing.assert_close(sure, expected)
    threshold = float(sure.sort().values[:2].mean())  # the least sure sample falls below
    settings = AdaptVis(0.25, 2.0, threshold)
    chosen = settings.scaling(sure).weights
    assert sorted(chosen) == [0.25, 2.0, 2.0] and chosen[int(sure.argmin())] == 0.25
    assert AdaptVis(0.25, 2.0, 0.0).scaling(sure).weights == (2.0,) * 3
    assert AdaptVis(0.25, 2.0, 1.0).scaling(sure).weights == (0.25,) * 3

    backend = ModelBackend(model, processor, Decoding(max_new_tokens=4), by_confidence(settings, model))
    images = [[picture(*size, seed=seed)] for size, seed in (((150, 90), 0), ((60, 90), 1), ((120, 120), 2))]
    together = backend.answer("abc", PROMPTS, images)
    alone = [
        backend.answer(key, [prompt], [image])[0] for key, prompt, image in zip("abc", PROMPTS, images, strict=True)
    ]
    assert together == alone
    assert ["weight1" in reply.changes for reply in alone] == [weight == 0.25 for weight in chosen]
    for reply in alone:
        assert [(row["layer"], row["pairs"]) for row in reply.changes["layers"]] == [(at, 4) for at in range(LAYERS)]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"weight1": -0.1}, "weight"),
        ({"weight2": float("inf")}, "weight"),
        ({"weight2": float("nan")}, "weight"),
        ({"threshold": 1.5}, "threshold"),
    ],
)
def test_settings_out_of_range(settings, reason):
    with refused(reason):
        AdaptVis(**settings)


def test_one_weight_for_each_sample():
    model, processor = llava(), llava_processor()
    with pytest.raises(ValueError, match="2 weights for 3 samples; give one for each"):
        generate(model, batch(model, processor), steering=ImageScaling((0.5, 0.5)))
    assert is_whole(model)
