"""Measured geometry: equal to the hand-written grids, right on hand-worked inputs, and refused with its reason."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers.utils import is_torchvision_available

import models
import models.unpatched
from models import geometry
from models.geometry import NoGeometryError, decode, extents, measure_geometry, waves, without_attention
from tests import zoo
from tests.families import FAMILIES
from tests.measured import REPAINTED, SIZES, TOLERANCE, cell_size, distance, mistakes, repainted
from tests.models import llava, llava_processor
from tests.unpatched import llava_next

pytestmark = pytest.mark.numerical
FEW = [(14, 100), (181, 121), (640, 80), (333, 501)]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("sizes", [FEW, pytest.param(SIZES, marks=pytest.mark.slow)], ids=["few", "all"])
def test_equals_the_grid_and_no_mistaken_grid(name, sizes):
    """All four mistakes move a cell at some size, except a crop ignored where there is none, and a larger cell in the
    six columns of Fuyu's small images."""
    model, processor = (make() for make in FAMILIES[name])
    noticed = set()
    for size in sizes:
        grid, measured = model.image_grid(processor, *size), measure_geometry(model, processor, *size)
        cell = cell_size(grid)
        assert distance(grid.rectangles(), measured.rectangles, cell) <= TOLERANCE
        assert measured.shared == 0 and measured.passes == 2 * (grid.rows * grid.cols - 1).bit_length()
        for mistake, wrong in mistakes(grid).items():
            assert distance(wrong, measured.rectangles, cell) > TOLERANCE, (mistake, size)
            noticed.add(mistake)
    always = {"axes swapped", "rows upside down"}
    assert noticed == always | {"llava": {"cell + 1", "crop ignored"}, "fuyu": set()}.get(name, {"cell + 1"})


@pytest.mark.slow
@pytest.mark.parametrize("name", models.embedded())
def test_trained_models(name):
    model, processor = models.load(name)
    for size in SIZES:
        grid, measured = model.image_grid(processor, *size), measure_geometry(model, processor, *size).rectangles
        assert distance(grid.rectangles(), measured, cell_size(grid)) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the stock processors
@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_further_families(name):
    """Repainting the image outside a token's rectangle changes the token by at most 1 % of what repainting it does."""
    if zoo.needs_torchvision(name) and not is_torchvision_available():
        pytest.skip("its image processor needs torchvision")
    model, processor = zoo.build(name)
    if zoo.FAMILIES[name].refused:
        with pytest.raises(NoGeometryError, match=zoo.FAMILIES[name].refused):
            measure_geometry(model, processor, *REPAINTED[0])
    else:
        assert max(repainted(model, processor, size) for size in REPAINTED) <= 0.01


@pytest.mark.parametrize("size", [1, 2, 31, 300, 1920])
def test_positions_are_decoded(size):
    """Every pixel's own position, from levels rounded to 8 bits: two levels per pixel at the least."""
    levels = [np.rint(255 * wave) / 255 for wave in waves(size)]
    assert np.abs(decode(size, *levels) - (np.arange(size) + 0.5)).max() <= 0.51


def test_extents_by_hand():
    """Three tokens of two numbers each on an axis of 60 pixels, one of them padding, and a token without pixels.

    Two numbers at 10 and 20 have a standard deviation of 5 and the extent 15 +- 5 sqrt(3).
    """
    position = np.array([10, 20, 30, np.nan, 40, 50])
    found = extents(np.array([0, 0, 1, 1, 2, 2]), position, 4, 60)
    half = 5 * 3**0.5
    expected = [[15 - half, 15 + half], [30, 30], [45 - half, 45 + half], [np.nan, np.nan]]
    np.testing.assert_allclose(found, expected)


def test_an_enlarged_border_is_counted():
    """An axis of 4 pixels enlarged 100 times, whose outermost 50 numbers at each end show the border pixel."""
    position = ((np.arange(400) + 0.5) / 100).clip(0.5, 3.5)
    found = extents(np.repeat([0, 1], 200), position, 2, 4)
    np.testing.assert_allclose(found, [[0, 2], [2, 4]], atol=0.01)


def test_newlines_are_blind_and_tiles_cover_the_image():
    """LLaVA-NeXT, 112 x 56 pixels: a thumbnail of 4 x 4 tokens, then 4 rows of 8 from two tiles, a newline each."""
    torch.manual_seed(0)
    stock, processor = llava_next()
    model = unpatched(stock, processor)
    measured = measure_geometry(model, processor, 112, 56)
    edges = measured.rectangles.edges
    assert measured.blind == (24, 33, 42, 51) and len(edges) == 16 + 4 * 9
    tile = np.delete(edges[16:], [8, 17, 26, 35], 0)
    row, col = np.divmod(np.arange(32), 8)
    expected = np.stack([col, row, col + 1, row + 1], 1) * 14
    np.testing.assert_allclose(tile, expected, atol=0.5)


def unpatched(stock, processor):
    """The stock model with the mixin of unpatched families, as `models.load` makes it."""
    stock.__class__ = models.unpatched.model_class(stock.config, processor)
    return stock.eval()


def test_tokens_without_the_image_are_refused():
    """A planted projector whose weights are zero, as the untrained one of Gemma 3."""
    model = llava()
    nn.init.zeros_(model.model.multi_modal_projector.linear_2.weight)
    with pytest.raises(NoGeometryError, match="no image token of Llava.* depends on the image"):
        measure_geometry(model, llava_processor(), 60, 50)


def test_tokens_that_mix_are_refused():
    """A planted projector that adds to each token its neighbour."""
    model = llava()
    projector = model.model.multi_modal_projector
    projector.register_forward_hook(lambda module, args, output: output + output.roll(1, 1))
    with pytest.raises(NoGeometryError, match=r"do not stand for parts of the image: \d+% of the input numbers reach"):
        measure_geometry(model, llava_processor(), 60, 50)


def test_a_crop_by_content_is_refused(monkeypatch):
    """A planted processor that makes more input numbers of an image that is not black."""
    model, processor = (make() for make in FAMILIES["qwen2_vl"])
    prepare = model.prepare

    def by_content(processor, images, prompt):
        image = images[0]
        enlarged = image.resize((300, 200)) if image.getextrema() != ((0, 0),) * 3 else image
        return prepare(processor, [enlarged], prompt)

    monkeypatch.setattr(model, "prepare", by_content)
    with pytest.raises(NoGeometryError, match="makes inputs of different sizes of images of 60 x 50 pixels"):
        measure_geometry(model, processor, 60, 50)


def test_measured_once_per_size_and_setting(monkeypatch):
    calls = []
    measure = geometry._measure
    monkeypatch.setattr(geometry, "_measure", lambda *args: calls.append(args[2:]) or measure(*args))
    model, processor = llava(), llava_processor()
    first = measure_geometry(model, processor, 60, 50)
    assert measure_geometry(model, processor, 60, 50) is first
    processor.image_processor.do_center_crop = False
    processor.image_processor.size = {"height": 56, "width": 56}
    second = measure_geometry(model, processor, 60, 50)
    assert calls == [(60, 50), (60, 50)]
    assert first.rectangles.edges[0, 0] > 4 and second.rectangles.edges[0, 0] < 1  # 5 pixels were cropped


@torch.no_grad()
def test_the_model_is_left_as_it_was():
    model, processor = llava(), llava_processor()
    inputs, _ = model.prepare(processor, [Image.new("RGB", (60, 50))], "where")
    before, function = model(**inputs).logits, nn.functional.scaled_dot_product_attention
    measure_geometry(model, processor, 60, 50)
    with pytest.raises(RuntimeError), without_attention(model):
        raise RuntimeError
    assert nn.functional.scaled_dot_product_attention is function
    assert torch.equal(model(**inputs).logits, before)
    assert all(parameter.grad is None for parameter in model.parameters())
