"""VAF against a literal eager model; neutral settings; the published layers in proportion."""

import pytest
import torch

from models.gaze import in_proportion
from models.interventions import InterventionReport
from models.trace import AttentionTrace
from models.vaf import PUBLISHED_LAYERS, VAF, amplify
from tests import tolerance
from tests.errors import refused
from tests.families import FAMILIES
from tests.literal_attention import LiteralScores, check_rows
from tests.literal_var import STEPS, batch, generate, image_positions, is_whole, largest_change
from tests.models import llava, llava_processor

pytestmark = pytest.mark.numerical
SETTINGS = VAF(1.3, 0.6, (0, 2))


SLOW = ("fuyu", "qwen2_vl")
MODELS = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in FAMILIES]


@pytest.fixture(scope="module", params=MODELS)
def family(request):
    """(model, processor), small and random."""
    model, processor = FAMILIES[request.param]
    return model(), processor()


class Literal(LiteralScores):
    """Eager attention whose scores are multiplied one by one, row by row, in the rows behind the image."""

    def __init__(self, model, inputs, settings):
        super().__init__(model, inputs)
        self.settings = settings

    def change(self, layer, scores, past):
        for sample, image in enumerate(self.image) if layer in self.settings.layers else ():
            for row in range(scores.shape[2]) if image else ():
                for position in range(scores.shape[3]) if past + row > image[-1] else ():
                    if position in image:
                        scores[sample, :, row, position] *= self.settings.enhance
                    elif position < image[0]:
                        scores[sample, :, row, position] *= self.settings.suppress


def compare(model, inputs):
    """Logits of every step and weights of every row against the literal model."""
    literal, report = Literal(model, inputs, SETTINGS), InterventionReport()
    expected = literal.generate(inputs)
    with AttentionTrace(model) as trace:
        found = generate(model, inputs, steering=SETTINGS, report=report)
    assert torch.equal(found.sequences, expected.sequences) and is_whole(model)
    assert largest_change(found, expected) <= tolerance.two_runs()
    check_rows(trace, literal)
    return found, report


@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "left_padded"])
def test_steering_is_the_literal_formula(family, padded):
    model, processor = family
    inputs = batch(model, processor, padded)
    found, report = compare(model, inputs)
    assert min(largest_change(found, generate(model, inputs), sample) for sample in range(3)) > 1e-3
    behind = [inputs["input_ids"].shape[1] - image[-1] - 1 for image in image_positions(model, inputs)]
    assert [(row["layer"], row["rows"]) for row in report.table()] == [
        (layer, rows + STEPS - 1) for layer in (0, 2) for rows in behind
    ]


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_two_images_none_and_one(name):
    model, processor = (make() for make in FAMILIES[name])
    inputs = batch(model, processor, images=(2, 0, 1))
    found, _ = compare(model, inputs)
    plain = generate(model, inputs)
    assert largest_change(found, plain, 1) == 0 < largest_change(found, plain, 0)


@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "left_padded"])
def test_neutral_is_the_untouched_model_bit_for_bit(family, padded):
    model, processor = family
    inputs = batch(model, processor, padded)
    assert largest_change(generate(model, inputs), generate(model, inputs, steering=VAF(1.0, 1.0))) == 0


def test_half_precision():
    model, processor = llava().to(torch.bfloat16), llava_processor()
    inputs = batch(model, processor)
    expected = Literal(model, inputs, SETTINGS).generate(inputs).logits[0].float()
    found = generate(model, inputs, steering=SETTINGS).logits[0].float()
    assert (found - expected).norm() <= 2e-2 * expected.norm()


def test_scores_by_hand():
    """Two tokens before the image, one between its parts, one behind it."""
    found = amplify(torch.tensor([[2.0, -2, 1, 8, -1, 4]]), torch.tensor([2, 4]), 1.5, 0.5)
    assert found.tolist() == [[1, -1, 1.5, 8, -1.5, 4]]


def test_layers_of_the_published_code_in_proportion():
    assert in_proportion(PUBLISHED_LAYERS, 32) == (9, 10, 11, 12, 13, 14)
    model, processor = llava(), llava_processor()
    report = InterventionReport()
    generate(model, batch(model, processor), steering=VAF(), report=report)
    assert {row["layer"] for row in report.table()} == {1}  # of 3 layers


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"enhance": -1.0}, "factor"), ({"suppress": float("inf")}, "factor"), ({"layers": (3,)}, "no-such-layer")],
)
def test_wrong_settings_are_refused(settings, reason):
    model, processor = llava(), llava_processor()
    with refused(reason):
        generate(model, batch(model, processor), steering=VAF(**settings))
