"""Knockout against a literal eager model whose mask is -inf for every pair of row and key; rows that lose every key."""

import pytest
import torch

from models.interventions import InterventionReport
from models.knockout import Knockout, Positions
from models.trace import AttentionTrace
from tests import tolerance
from tests.errors import refused
from tests.families import FAMILIES
from tests.literal_attention import LiteralScores, check_rows
from tests.literal_var import batch, generate, image_positions, is_whole, largest_change
from tests.models import llava, llava_processor

pytestmark = pytest.mark.numerical
@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """(model, processor), small and random."""
    model, processor = FAMILIES[request.param]
    return model(), processor()


class Literal(LiteralScores):
    """Eager attention; -inf is added to the score of each hidden key, pair by pair, unless a row would lose all.

    pairs: per sample a function of (row, key), positions with padding, that tells whether the key is hidden.
    """

    def __init__(self, model, inputs, layers, pairs):
        super().__init__(model, inputs)
        self.layers, self.pairs = layers, pairs

    def change(self, layer, scores, past):
        for sample, hidden in enumerate(self.pairs) if layer in self.layers else ():
            for row in range(scores.shape[2]):
                seen = range(self.starts[sample], past + row + 1)
                gone = [at for at in seen if hidden(past + row, at)]
                if len(gone) < len(seen):
                    scores[sample, :, row, gone] = float("-inf")


def compare(model, inputs, knockout, layers, pairs):
    """Logits of every step and weights of every row against the literal model; returns both outputs and the report."""
    literal, report = Literal(model, inputs, layers, pairs), InterventionReport()
    expected = literal.generate(inputs)
    with AttentionTrace(model) as trace:
        found = generate(model, inputs, steering=knockout, report=report)
    assert torch.equal(found.sequences, expected.sequences) and is_whole(model)
    assert largest_change(found, expected) <= tolerance.two_runs()
    check_rows(trace, literal)
    return found, report


def text_to_image(model, inputs, layers):
    """The literal model of Knockout(layers=layers)."""
    image = in_image(image_positions(model, inputs))
    return Literal(model, inputs, layers, [lambda row, key, at=at: at(key) and not at(row) for at in image])


def in_image(image):
    return [set(positions).__contains__ for positions in image]


# name: knockout, and from (length of the prompt, membership in the image of one sample) the pairs that it hides
FLOWS = {
    "text_to_image": (
        Knockout(("text", "generated"), layers=(0, 2)),
        lambda length, image: lambda row, key: image(key) and not image(row),
    ),
    "last_to_image": (
        Knockout(("last",), layers=(0, 2)),
        lambda length, image: lambda row, key: image(key) and row == length - 1,
    ),
    "image_to_image": (
        Knockout(("image",), layers=(0, 2)),
        lambda length, image: lambda row, key: image(key) and image(row),
    ),
    "answer_to_text": (
        Knockout(("last", "generated"), ("text",), layers=(0, 2)),
        lambda length, image: lambda row, key: key < length and not image(key) and row >= length - 1,
    ),
}


@pytest.mark.parametrize("flow", FLOWS)
def test_knockout_is_the_literal_mask(family, flow):
    model, processor = family
    inputs = batch(model, processor)
    knockout, hidden = FLOWS[flow]
    pairs = [hidden(inputs["input_ids"].shape[1], image) for image in in_image(image_positions(model, inputs))]
    found, report = compare(model, inputs, knockout, (0, 2), pairs)
    plain = generate(model, inputs)
    assert min(largest_change(found, plain, sample) for sample in range(3)) > 1e-3
    # Fuyu's image comes first: the cells of its first row, before the first newline token, would keep no key.
    first_row = model.get_decoder().config.model_type == "persimmon" and flow == "image_to_image"
    assert all((row["spared_rows"] > 0) == first_row for row in report.table())


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_word_and_a_box_in_a_batch_with_two_images_and_none(name):
    """Rows and keys by position, other ones in each sample, one sample with none."""
    model, processor = (make() for make in FAMILIES[name])
    inputs = batch(model, processor, images=(2, 0, 1))
    image, length = image_positions(model, inputs), inputs["input_ids"].shape[1]
    rows, keys = [[length - 3, length - 2], [], [length - 1]], [image[0][3:7], [length - 5], image[2][-2:]]
    pairs = [lambda row, key, sample=sample: row in rows[sample] and key in keys[sample] for sample in range(3)]
    found, report = compare(model, inputs, Knockout(Positions(rows), Positions(keys), (1,)), (1,), pairs)
    plain = generate(model, inputs)
    assert largest_change(found, plain, 0) > 1e-3 < largest_change(found, plain, 2)
    assert largest_change(found, plain, 1) <= tolerance.two_runs()
    counts = [(row["knockout_rows"], row["knockout_keys"], row["spared_rows"]) for row in report.table()]
    assert counts == [(2, 4, 0), (0, 1, 0), (1, 2, 0)]
    assert [report.is_biased(sample) for sample in range(3)] == [True, False, True]


def test_a_row_that_loses_every_key_stays(family):
    """All text hidden from all rows: the rows before the image keep no key, as the literal model leaves them."""
    model, processor = family
    inputs = batch(model, processor)
    image, length = image_positions(model, inputs), inputs["input_ids"].shape[1]
    starts = inputs["attention_mask"].int().argmax(1).tolist()
    knockout = Knockout(("text", "image", "generated"), ("text",), layers=(0, 1))
    pairs = [lambda row, key, at=set(at): key < length and key not in at for at in image]
    _, report = compare(model, inputs, knockout, (0, 1), pairs)
    spared = [row["spared_rows"] for row in report.table()[:3]]
    assert spared == [at[0] - start for at, start in zip(image, starts, strict=True)]


@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "left_padded"])
def test_nothing_hidden_is_the_untouched_model_bit_for_bit(family, padded):
    model, processor = family
    inputs = batch(model, processor, padded)
    plain, none = generate(model, inputs), [[]] * 3
    for settings in (Knockout(Positions(none)), Knockout(("text",), Positions(none)), Knockout(("image",), ("last",))):
        assert largest_change(plain, generate(model, inputs, steering=settings)) == 0


def test_half_precision():
    model, processor = llava().to(torch.bfloat16), llava_processor()
    inputs = batch(model, processor)
    with AttentionTrace(model) as trace:
        generate(model, inputs, steering=Knockout())
    for sample, image in enumerate(image_positions(model, inputs)):
        rows = range(image[-1] + 1, trace.length)
        assert (trace.weights(1, rows, samples=[sample])[0][..., image] == 0).all()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda apply: Knockout(("words",)), "token-set"),
        (lambda apply: Knockout("image"), "token-set"),
        (lambda apply: Knockout(keys=("generated",)), "token-set"),
        (lambda apply: Knockout(keys=()), "token-set"),
        (lambda apply: Positions([3, 4]), "positions-form"),
        (lambda apply: apply(Knockout(layers=(3,))), "no-such-layer"),
        (lambda apply: apply(Knockout(Positions([[9]]))), "positions-per-sample"),
        (lambda apply: apply(Knockout(Positions([[900], [], []]))), "no-such-position"),
        (lambda apply: apply(Knockout(Positions([[], [0], []]))), "no-such-position"),  # padding
    ],
)
def test_wrong_settings_are_refused(make, reason):
    model, processor = llava(), llava_processor()
    inputs = batch(model, processor)
    with refused(reason):
        make(lambda knockout: generate(model, inputs, steering=knockout))
    assert is_whole(model)
