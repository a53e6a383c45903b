"""Planted attention is found where it was planted, in the order of the caption; maps are the model's own rows."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from analysis.spatial import (
    CONTROLS,
    METRICS,
    QUERIES,
    SEEDS,
    WORDS,
    all_maps,
    centre_prior,
    compare_heads,
    decoder_maps,
    encoder_maps,
    measure,
    measure_sample,
    missing_words,
    place,
    seed_rows,
    summarise,
    summarise_heads,
    targets,
    with_controls,
)  # fmt: skip
from analysis.spatial_report import control_boxes, save_heads
from analysis.statistics import benjamini_hochberg
from data import twoshapes
from data.errors import SampleError
from data.geometry import ImageGrid
from models.generation import generate_answer, read_along
from tests import tolerance
from tests.errors import refused
from tests.families import FAMILIES
from tests.models import picture
from tests.runs import make_run

pytestmark = pytest.mark.numerical
GRID = ImageGrid(rows=12, cols=12, width=100, height=100, cell=8, resized=(96, 96))
LAYERS, HEADS, PROMPT = 2, 3, 152
ROWS = {"first": [147, 148], "relation": [151], "second": [149, 150]}
ROW_BEFORE = 3  # positions in front of the image


class PlantedTrace:
    """A trace whose rows are known: `rows` {position: [row, col] weights of the image's cells}, in `heads` of layer 1;
    all others look evenly at the image. Samples are pictures, the second one (shuffled) looks evenly."""

    layers = LAYERS

    def __init__(self, rows, heads=slice(None)):
        self.rows, self.heads = rows, heads

    def device(self, layer):
        return torch.device("cpu")

    def weights(self, layer, queries):
        out = torch.zeros(2, HEADS, len(queries), PROMPT)
        out[..., ROW_BEFORE : ROW_BEFORE + 144] = 0.5 / 144
        for place_, position in enumerate(queries):
            if layer == 1 and position in self.rows:
                cells = torch.from_numpy(self.rows[position].ravel())
                out[0, self.heads, place_, ROW_BEFORE : ROW_BEFORE + 144] = 0.8 * cells / cells.sum()
        return out


LAYOUT = SimpleNamespace(grids=(GRID,), images=(torch.arange(ROW_BEFORE, ROW_BEFORE + 144),), length=PROMPT)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Real samples in the layout of the published set, of every relation and both orders of the world."""
    root = tmp_path_factory.mktemp("pairs") / "set"
    twoshapes.generate(root, 40, seed=3)
    found, _ = twoshapes.read(root)
    kinds = {(pair.relation, pair.reversed): pair for pair in found}
    assert len(kinds) == 8
    return kinds


def measured(pair, first, second, relation=None, heads=slice(None)):
    """One sample with these maps planted under its words, in some heads of layer 1."""
    scene = place(pair, GRID, np.random.default_rng(0))
    planted = {147: first, 148: first, 149: second, 150: second}
    if relation is not None:
        planted[151] = relation
    maps = all_maps(PlantedTrace(planted, heads), [LAYOUT, LAYOUT], ROWS, scene.seeds)
    return measure_sample("sample", scene, maps, dict.fromkeys(QUERIES, (1,)), causal=True), scene


@pytest.mark.parametrize("is_reversed", [False, True], ids=["caption as world", "caption reversed"])
@pytest.mark.parametrize("relation", ["left", "right", "above", "below"])
def test_attention_on_the_right_shapes_is_said_to_be_there(pairs, relation, is_reversed):
    pair = pairs[relation, is_reversed]
    scene = place(pair, GRID, np.random.default_rng(0))
    measured_sample, _ = measured(pair, scene.first, scene.second)
    for word in ("first", "second"):
        heads = measured_sample.heads[word]
        assert heads["own"]["soft_iou"][1, 1] == pytest.approx(1)
        assert heads["own"]["distance"][1, 1] == pytest.approx(0, abs=1e-6)
        assert heads["other"]["soft_iou"][1, 1] < 0.2 and heads["other"]["distance"][1, 1] > 1
        for axis in "xy":
            assert measured_sample.heads[word]["own"][f"wasserstein_{axis}"][1, 1] == pytest.approx(0, abs=1e-5)
        assert measured_sample.heads[word]["own"]["pointing"][1, 1] == 1
        assert (
            measured_sample.heads[word]["own"]["entity_background"][1, 1] > 0.98
        )  # cells on the rim are background in part
        # heads that look evenly, and the shuffled picture, are where an even map is
        even = measured_sample.values[word]["uniform"]
        for name in ("mass", "distance", "wasserstein_x", "wasserstein_y", "topk_iou", "entropy", "dispersion"):
            np.testing.assert_allclose(measured_sample.heads[word]["own"][name][0], even[name], rtol=1e-5)
            np.testing.assert_allclose(measured_sample.heads[word]["shuffled"][name], even[name], rtol=1e-5)
            assert measured_sample.values[word]["shuffled"][name] == pytest.approx(even[name], rel=1e-5)


@pytest.mark.parametrize("is_reversed", [False, True], ids=["caption as world", "caption reversed"])
@pytest.mark.parametrize("relation", ["left", "right", "above", "below"])
def test_attention_on_the_wrong_shape_is_told_apart(pairs, relation, is_reversed):
    """Each word looks at the other's shape: everything is better against the other box than against its own."""
    pair = pairs[relation, is_reversed]
    scene = place(pair, GRID, np.random.default_rng(0))
    measured_sample, _ = measured(pair, scene.second, scene.first)
    offset = np.abs(np.array(pair.first.centre) - pair.second.centre) / (100 / 12)
    axis = "x" if relation in ("left", "right") else "y"
    for word in ("first", "second"):
        values = measured_sample.values[word]
        assert values["own"]["mass"] < values["other"]["mass"] and values["own"]["pointing"] < 1
        assert values["own"]["distance"] > values["other"]["distance"]
        assert measured_sample.heads[word]["own"]["distance"][1, 1] == pytest.approx(
            np.hypot(*offset), abs=0.7
        )  # of boxes' centres
        along = measured_sample.heads[word]["own"][f"wasserstein_{axis}"][1, 1]
        assert along == pytest.approx(offset["xy".index(axis)], abs=0.7) and along > 0.9


def test_attention_on_the_background_is_on_neither(pairs):
    pair = pairs["left", True]
    scene = place(pair, GRID, np.random.default_rng(0))
    corner = np.zeros((12, 12))
    corner[tuple(np.argwhere(scene.both == 0)[-1])] = 1
    measured_sample, _ = measured(pair, corner, corner, corner)
    for word in WORDS:
        heads = {name: values[1, 1] for name, values in measured_sample.heads[word]["own"].items()}
        assert heads["mass"] == heads["pointing"] == heads["soft_iou"] == 0
        assert heads["topk_iou"] < 0.03  # cells that get nothing tie for the places behind the highest
        assert heads["entity_background"] == 0 and heads["entropy"] == heads["dispersion"] == 0
        assert heads["image_attention"] == pytest.approx(0.8)


@pytest.mark.parametrize("is_reversed", [False, True], ids=["caption as world", "caption reversed"])
@pytest.mark.parametrize("relation", ["left", "right", "above", "below"])
def test_relation_is_looked_for_between_the_shapes(pairs, relation, is_reversed):
    """Planted along its axis between the centres, the relation's word is near; at the far edges it is not.

    Published, the distribution was empty wherever the caption did not name the shapes against the world's order.
    """
    pair = pairs[relation, is_reversed]
    scene = place(pair, GRID, np.random.default_rng(0))
    axis, between = targets(scene, causal=True)["relation"].between
    assert axis == ("x" if relation in ("left", "right") else "y") and between.sum() == pytest.approx(1)
    middle = np.array([pair.first.centre, pair.second.centre]).mean(0)["xy".index(axis)] / (100 / 12)
    assert between @ (np.arange(12) + 0.5) == pytest.approx(middle, abs=0.6)
    planted = np.outer(np.ones(12), between) if axis == "x" else np.outer(between, np.ones(12))
    near, _ = measured(pair, scene.first, scene.second, planted)
    assert near.heads["relation"]["own"]["wasserstein_relation"][1, 1] == pytest.approx(0, abs=1e-5)
    far, _ = measured(pair, scene.first, scene.second, planted[::-1, ::-1])
    expected = abs(12 - 2 * (between @ (np.arange(12) + 0.5)))
    assert (
        far.heads["relation"]["own"]["wasserstein_relation"][1, 1] >= expected - 1e-5
    )  # at least what the means differ


def test_seed_counts_neither_itself_nor_what_it_cannot_see(pairs):
    scene = place(pairs["above", False], GRID, np.random.default_rng(0))
    row, col = scene.seeds["seed_second"]
    for causal in (False, True):
        target = targets(scene, causal)["seed_second"]
        assert not target.visible[row, col] and not target.box[row, col]
        assert target.visible.sum() == (row * 12 + col if causal else 143)
        maps = np.zeros((12, 12))
        maps[row, col] = 5
        assert np.isnan(measure(maps, target)["mass"])  # all of it on itself says nothing
        behind = np.ones((12, 12))
        behind.ravel()[: row * 12 + col] = 0
        assert np.isnan(measure(behind, target)["mass"]) == causal
    assert targets(scene, True)["first"].visible.all()


def test_other_metrics_have_their_own_controls(pairs):
    scene = place(pairs["left", False], GRID, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    own, shuffled = rng.random((2, 12, 12))
    for query, target in targets(scene, causal=False).items():
        found = with_controls(own, shuffled, target)
        assert set(found) == {"own", *CONTROLS} - ({"other"} if query in ("relation", "seed_background") else set())
        assert set(found["own"]) == set(METRICS) - (set() if query == "relation" else {"wasserstein_relation"})
        assert set(found["shuffled"]) == set(found["own"])
        assert set(found["own"]) - set(found["centre"]) == {"image_attention"}
        if "other" in found:
            swapped = replace(target, box=target.other)
            assert found["other"]["mass"] == measure(own, swapped, "other")["mass"] != found["own"]["mass"]
            assert set(found["own"]) - set(found["other"]) == {"dispersion", "entropy", "image_attention"}
        assert found["centre"]["distance"] == measure(centre_prior((12, 12)), target)["distance"]


def test_centre_prior_is_a_gaussian_a_quarter_of_the_side_wide():
    prior = centre_prior((1, 5))
    np.testing.assert_allclose(
        prior[0] / prior[0, 2], np.exp(-(np.array([0.4, 0.2, 0, 0.2, 0.4]) ** 2) / (2 * 0.25**2))
    )


def test_scene_of_a_cropped_picture(pairs):
    pair = pairs["left", False]
    scene = place(pair, GRID, np.random.default_rng(7))
    assert scene.seeds["seed_first"] == GRID.cell_at(*pair.first.centre)
    assert (scene.first + scene.second)[scene.seeds["seed_background"]] == 0
    row, col = scene.seeds["seed_first"]
    right = replace(GRID, cols=11 - col, offset=(8 * (col + 1), 0))  # of what lies to the right of the first shape
    with refused("shape cropped away", SampleError) as error:
        place(pair, right, np.random.default_rng(0))
    assert error.value.reason == "shape cropped away"
    whole = replace(pair, first=pair.first._replace(box=(0, 0, 100, 100)))
    with pytest.raises(SampleError) as error:
        place(whole, GRID, np.random.default_rng(0))
    assert error.value.reason == "no background"


def test_summary_of_planted_samples(pairs):
    """Maps planted in one head of six: the words' figures differ from every control, and only in that head."""
    found = []
    for number, pair in enumerate(pairs.values()):
        scene = place(pair, GRID, np.random.default_rng(number))
        found.append(measured(pair, scene.first, scene.second, heads=1)[0])
    summary = summarise(found, seed=0)
    assert set(summary) == set(QUERIES)
    for word in ("first", "second"):
        mass = summary[word]["mass"]
        assert mass["n"] == 8 and mass["low"] < mass["mean"] < mass["high"]
        for control in ("shuffled", "other", "uniform"):
            difference = mass["controls"][control]["difference"]
            assert difference["low"] > 0 and difference["p"] == 2 / 2**8
            assert difference["mean"] == pytest.approx(mass["mean"] - mass["controls"][control]["mean"])
    assert summary["relation"]["mass"]["controls"]["shuffled"]["difference"]["mean"] == pytest.approx(0, abs=1e-6)
    tested = compare_heads(found)
    planted = np.zeros((LAYERS, HEADS), bool)
    planted[1, 1] = True
    assert ((tested["first"]["mass"]["q"] <= 0.05) == planted).all()
    heads = summarise_heads(found, tested, seed=0)["first"]
    assert heads["mass"]["above"] == 1 and heads["distance"]["below"] == 1 and heads["mass"]["heads"] == 6
    strongest = heads["mass"]["strongest"]
    assert (strongest["layer"], strongest["head"], strongest["chosen_on"], strongest["difference"]["n"]) == (1, 1, 4, 4)
    assert strongest["difference"]["low"] > 0 and strongest["p"] == strongest["smallest_p"] == 2 / 2**4
    assert strongest["q"] >= strongest["p"] and heads["mass"]["family_of_q"] == "6 heads, one query and metric"


def anything_drawn(scene, rng):
    """Maps of a head that looks evenly at whatever is no ground, of the picture and of the shuffled one."""
    drawn = (scene.both > 0).astype(float)
    return drawn, rng.permutation(drawn.ravel()).reshape(drawn.shape)


def test_head_that_looks_at_anything_drawn_finds_no_shape(tmp_path_factory):
    """In the shuffled picture the boxes lie on ground, beside which it seems to find them; not beside the other box."""
    root, rng = tmp_path_factory.mktemp("drawn") / "set", np.random.default_rng(0)
    twoshapes.generate(root, 40, seed=5)
    found = []
    for pair in twoshapes.read(root)[0]:
        scene = place(pair, GRID, rng)
        maps = np.broadcast_to(np.stack(anything_drawn(scene, rng))[:, None, None], (2, 1, 1, 12, 12))
        found.append(
            measure_sample(pair.id, scene, dict.fromkeys(QUERIES, maps), dict.fromkeys(QUERIES, (0,)), causal=False)
        )
    tested = compare_heads(found)
    for word in ("first", "second", "seed_first", "seed_second"):
        mass = tested[word]["mass"]
        assert mass["against"] == "other" and mass["q"] > 0.05, word
        assert mass["own"] > 3 * mass["shuffled"] and mass["difference"] == pytest.approx(mass["own"] - mass["other"])
        assert summarise_heads(found, tested, seed=0)[word]["mass"]["above"] == 0
    assert tested["relation"]["mass"]["against"] == "shuffled" and tested["relation"]["mass"]["q"] < 1e-6
    assert tested["first"]["entropy"]["against"] == "shuffled" and np.isnan(tested["first"]["entropy"]["other"])


def test_word_that_is_not_there_is_left_out_alone(pairs):
    """Its figures rest on the other samples; the sample's other words count."""
    found = []
    for number, pair in enumerate(pairs.values()):
        scene = place(pair, GRID, np.random.default_rng(0))
        rows = {**ROWS, "relation": ROWS["relation"] if number else []}
        maps = all_maps(PlantedTrace({147: scene.first}), [LAYOUT, LAYOUT], rows, scene.seeds)
        found.append(measure_sample("sample", scene, maps, dict.fromkeys(QUERIES, (1,)), causal=True))
    assert missing_words(found) == {"relation is neither in prompt nor answer": 1}
    summary, tested = summarise(found, seed=0), compare_heads(found)
    for metric, figure in summary["relation"].items():
        assert (figure["n"], figure["skipped"]) == (7, 1), metric
        assert all(control["difference"]["n"] == 7 for control in figure["controls"].values())
        assert (tested["relation"][metric]["n"] == 7).all()
    assert summary["first"]["mass"]["n"] == 8 and (tested["first"]["mass"]["n"] == 8).all()


def test_p_values_are_one_family(pairs):
    scenes = [place(pair, GRID, np.random.default_rng(0)) for pair in pairs.values()]
    summary = summarise(
        [measured(pair, s.first, s.second)[0] for pair, s in zip(pairs.values(), scenes, strict=True)], 0
    )
    tests = [
        control["difference"]
        for by_metric in summary.values() for figure in by_metric.values() for control in figure["controls"].values()
    ]  # fmt: skip
    assert len(tests) > 200
    expected = benjamini_hochberg([test["p"] for test in tests])
    np.testing.assert_allclose([test["q"] for test in tests], expected)


def test_figures_of_planted_samples(pairs, tmp_path):
    """Drawn without a warning, also where nothing is known: a figure per metric and group, a panel per metric."""
    run = make_run(tmp_path / "out")
    found = []
    for pair in list(pairs.values())[:3]:
        scene = place(pair, GRID, np.random.default_rng(0))
        found.append(measured(pair, scene.first, scene.second)[0])
    for each in found:
        each.values["seed_first"]["other"]["mass"] = np.nan
    tested = compare_heads(found)
    save_heads(run, {query: {"mass": tested[query]["mass"]} for query in QUERIES}, len(found))
    drawn = {str(path.relative_to(run.folder)) for path in run.folder.rglob("*.png")}
    assert drawn == {"heads/words-mass.png", "heads/seeds-mass.png"}
    figure = control_boxes(found, SEEDS)
    run.save(figure, "controls.png")
    assert sum(axes.axison for axes in figure.axes) == len(METRICS) - 1  # without the relation's
    pointing = figure.axes[list(METRICS).index("pointing")]
    assert pointing.get_ylim()[0] < 0  # a mean of 0 shows
    whiskers = [line for line in pointing.lines if len(line.get_xdata()) == 2]
    assert len(whiskers) == len(pointing.patches) == 5 + 5 + 4  # of the queries with and without another box


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_are_the_models_rows(family):
    """Of the decoder, and of the tower, cell by cell: by the weights of its own trace, taken literally."""
    model, processor = (make() for make in FAMILIES[family])
    image = picture(100, 80)
    forced = generate_answer(model, processor, image, "where is the red circle ?", 2)
    has_encoder = family != "fuyu"
    images = [image, picture(100, 80, seed=1)]
    reading = read_along(model, processor, images, "where is the red circle ?", forced, has_encoder)
    layout, grid = reading.layouts[0], reading.layouts[0].grids[0]
    seeds = {"seed_first": (0, 1), "seed_background": (grid.rows - 1, grid.cols - 1)}
    rows = {"first": layout.word("red circle").tolist(), "relation": [layout.length - 1]}
    maps = all_maps(reading.trace, reading.layouts, rows, seeds, reading.encoder)
    assert set(maps) == {*rows, *seeds}
    inside = decoder_maps(reading.trace, reading.layouts, seed_rows(layout, seeds))
    rounding = tolerance.same_states()
    for layer in range(reading.trace.layers):
        full = reading.trace.weights(layer, slice(0, layout.length)).numpy()
        image_keys = layout.images[0].tolist()
        for name, positions in rows.items():
            expected = full[:, :, positions][..., image_keys].mean(2)
            np.testing.assert_allclose(maps[name][:, layer].reshape(expected.shape), expected, atol=rounding)
        for name, (row, col) in seeds.items():
            own = row * grid.cols + col
            expected = full[:, :, image_keys[own]][..., image_keys]
            np.testing.assert_allclose(inside[name][:, layer].reshape(expected.shape), expected, atol=rounding)
            assert not inside[name].reshape(*inside[name].shape[:3], -1)[..., own + 1 :].any()  # causal
    if has_encoder:
        check_encoder_maps(reading.encoder, encoder_maps(reading.encoder, seeds), seeds, grid)


def check_encoder_maps(encoder, maps, seeds, grid):
    patches = encoder.images[0].cells.shape[2]
    first = encoder.images[0].length - grid.rows * grid.cols * patches
    for name, (row, col) in seeds.items():
        assert maps[name].shape[:2] == (2, len(encoder.layers)) and maps[name].shape[3:] == (grid.rows, grid.cols)
        for image in range(2):
            for layer in encoder.layers:
                full = encoder.weights(layer, image).numpy()[:, first:, first:]
                cells = full.reshape(len(full), grid.rows, grid.cols, patches, grid.rows, grid.cols, patches)
                expected = cells[:, row, col].sum(-1).mean(1)
                np.testing.assert_allclose(maps[name][image, layer], expected, atol=tolerance.same_states())


def test_pictures_of_different_grids_are_refused():
    moved = SimpleNamespace(grids=(GRID,), images=(torch.arange(4, 148),))
    with refused("image-positions-differ"):
        decoder_maps(PlantedTrace({}), [LAYOUT, moved], ROWS)
    assert set(SEEDS) == set(QUERIES) - set(WORDS)
