"""The protocol of interventions, its report, and VAR's rows in two matrix products."""

import ast
from dataclasses import dataclass, replace

import pytest
import torch

from data.errors import StateError
from models.ablation import HeadAblation
from models.adapt_vis import AdaptVis, ImageScaling, confidence
from models.gaze import Gaussian, Gaze, GazeMask, KeyMask, NonGaussian, PlacedMask, SalientHead
from models.interventions import InterventionReport, PromptBatch, RowEdit, sum_by_layer
from models.knockout import Knockout
from models.pai import PAI
from models.trace import AttentionTrace
from models.var import Redistribution
from tests import literal_var, test_ablation, test_adapt_vis, test_knockout, test_pai, test_vaf, tolerance
from tests.errors import refused
from tests.families import FAMILIES
from tests.literal_var import PLANTED, STEPS, batch, generate, image_positions, is_whole, largest_change
from tests.models import llava, llava_processor, picture
from tests.test_tree import ROOT

pytestmark = pytest.mark.numerical


@torch.no_grad()
def test_a_report_is_of_one_generation():
    model, processor = llava(), llava_processor()
    inputs, _ = model.prepare(processor, [picture()], "what ?")
    report = InterventionReport()
    model.generate(**inputs, max_new_tokens=1, steering=PLANTED, report=report)
    with refused("report-used", StateError):
        model.generate(**inputs, max_new_tokens=1, steering=PLANTED, report=report)
    assert is_whole(model) and InterventionReport().table() == []
    with refused("not-a-report"):
        model.generate(**inputs, max_new_tokens=1, report=3)


def test_counts_add_up_over_calls():
    tables = [
        {"layer": 4, "sample": 0, "visual_sinks": 3, "heads": 2, "rows": 5, "pairs": 7},
        {"layer": 2, "sample": 0, "visual_sinks": 1, "heads": 0, "rows": 0, "pairs": 0},
        {"layer": 4, "sample": 1, "visual_sinks": 0, "heads": 1, "rows": 1, "pairs": 1},
    ]
    found = sum_by_layer(tables)
    assert [list(row) for row in found] == [["layer", "samples", "visual_sinks", "heads", "rows", "pairs"]] * 2
    assert found == [
        {"layer": 2, "samples": 1, "visual_sinks": 1, "heads": 0, "rows": 0, "pairs": 0},
        {"layer": 4, "samples": 2, "visual_sinks": 3, "heads": 3, "rows": 6, "pairs": 8},
    ]
    assert sum_by_layer([]) == []


def test_a_report_of_gaze_counts_its_rows():
    """Salient heads edit the last prompt row and each decode row; a key bias edits no row by hand."""
    model, processor = llava(), llava_processor()
    inputs, _ = model.prepare(processor, [picture()], "what ?")
    for kind, rows in (("salient-head", STEPS), ("gaussian", 0)):
        report = InterventionReport()
        gaze = {"mask_type": {"type": kind, "target-layer": 1}, "scanpaths": [[(0, 0)]]}
        generate(model, inputs, report=report, **gaze)
        [row] = report.table()
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
    assert (found - expected).abs().max() <= tolerance.sums(keys)
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

    def plan(self, prompt: PromptBatch):
        edits = {s: RowEdit(int(image[-1]) + 1, self.without(image)) for s, image in enumerate(prompt.images)}
        assert prompt.heads == 4 and prompt.width == 64
        return dict.fromkeys(range(prompt.layers), prompt.edit_layer(row_edits=edits))

    def without(self, image):
        def change(weights):
            kept = weights.clone()
            kept[self.head, :, image] = 0
            return kept / kept.sum(-1, keepdim=True)

        return change


@dataclass(frozen=True)
class Hidden:
    """Gaze of the settings' own: the first cell of each image is all that any row sees of it."""

    def plan(self, prompt: PromptBatch):
        corner = torch.zeros(4, 4)
        corner[0, 0] = 1
        placed = {sample: PlacedMask(corner, image) for sample, image in enumerate(prompt.images)}
        return {1: NonGaussian((1,)).edit_layer(placed, prompt)}


def test_settings_of_other_interventions():
    """Any object with `plan`: row edits and key biases, of any layer."""
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


def confidences(model, inputs):
    return [float(row.softmax(-1).max()) for row in generate(model, inputs, max_new_tokens=1).logits[0]]


def adaptive_weights(model, inputs):
    """By hand: 0.25 for the least confident sample, 2.0 for the others."""
    found = confidences(model, inputs)
    return [0.25 if each == min(found) else 2.0 for each in found]


SCANPATHS = [[(0, 0), (3, 1)], [], [(2, 3)]]
# intervention: settings for a model and its inputs, and the expected output: a literal eager model's, or the sugar's
INTERVENTIONS = {
    "VAR": (lambda *_: PLANTED, lambda model, inputs: literal_var.Literal(model, inputs, PLANTED).generate(inputs)),
    "HeadAblation": (
        lambda *_: HeadAblation(test_ablation.HEADS),
        lambda model, inputs: test_ablation.literal_generate(
            model, inputs, test_ablation.Literal(model, inputs, test_ablation.HEADS, 0.0)
        ),
    ),
    "ImageScaling": (
        lambda *_: ImageScaling(test_adapt_vis.WEIGHTS),
        lambda model, inputs: test_adapt_vis.Literal(model, inputs, test_adapt_vis.WEIGHTS).generate(inputs),
    ),
    "AdaptVis": (
        lambda model, inputs: AdaptVis(0.25, 2.0, sum(sorted(confidences(model, inputs))[:2]) / 2),
        lambda model, inputs: test_adapt_vis.Literal(model, inputs, adaptive_weights(model, inputs)).generate(inputs),
    ),
    "Knockout": (
        lambda *_: Knockout(layers=(0, 2)),
        lambda model, inputs: test_knockout.text_to_image(model, inputs, (0, 2)).generate(inputs),
    ),
    "PAI": (
        lambda *_: PAI(0.5, 1.0),
        lambda model, inputs: test_pai.Literal(model, inputs, PAI(0.5, 1.0)).generate(inputs),
    ),
    "VAF": (
        lambda *_: test_vaf.SETTINGS,
        lambda model, inputs: test_vaf.Literal(model, inputs, test_vaf.SETTINGS).generate(inputs),
    ),
    **{
        f"Gaze {type(mask).__name__}": (
            lambda *_, mask=mask: Gaze(mask, SCANPATHS),
            lambda model, inputs, mask=mask: generate(model, inputs, mask_type=mask, scanpaths=SCANPATHS),
        )
        for mask in (Gaussian((0, 2)), NonGaussian((1,)), SalientHead((0, 1, 2), heads=2))
    },
}


def test_every_intervention_is_in_the_table():
    """All classes of models/ with a method `plan`, and all gaze masks."""
    found = set()
    for path in (ROOT / "models").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any(getattr(part, "name", "") == "plan" for part in node.body):
                found.add(node.name)
    masks = {f"Gaze {mask.__name__}" for mask in (*KeyMask.__subclasses__(), *GazeMask.__subclasses__())}
    assert found - {"Intervention", "Gaze"} | masks - {"Gaze KeyMask"} == set(INTERVENTIONS)


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_every_intervention_runs_through_generate(name):
    """The expected logits, to rounding for a literal model and exactly for the sugar; the model whole afterwards."""
    model, processor = llava(), llava_processor()
    inputs = batch(model, processor)
    make, reference = INTERVENTIONS[name]
    with literal_var.planted(model, literal_var.different_sinks(model, inputs)):
        plain, expected = generate(model, inputs), reference(model, inputs)
        found = generate(model, inputs, steering=make(model, inputs))
    assert torch.equal(found.sequences, expected.sequences) and is_whole(model)
    assert largest_change(found, expected) <= (0 if name.startswith("Gaze") else tolerance.two_runs())
    assert largest_change(found, plain) > 1e-3


def test_the_prefill_of_a_confidence_is_not_recorded():
    """For every family: the same answer as with the weights given, and a trace of the answer alone."""
    for make, make_processor in FAMILIES.values():
        model, processor = make(), make_processor()
        inputs = batch(model, processor)
        settings = INTERVENTIONS["AdaptVis"][0](model, inputs)
        with AttentionTrace(model) as trace:
            found = generate(model, inputs, steering=settings)
        given = generate(model, inputs, steering=settings.scaling(confidence(model, inputs)))
        assert largest_change(found, given) == 0 and trace.length == found.sequences.shape[1] - 1
