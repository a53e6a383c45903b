"""An answer behind its prompt is read as it was generated, in every family; pictures are changed in whole cells."""

import numpy as np
import pytest
import torch

from data.images import as_seen, hide_cells, median_colour, shuffle_cells
from models.generation import answer, check_grid, log_probabilities, read_along, speak, tower_depth
from tests import tolerance
from tests.families import FAMILIES
from tests.models import picture

pytestmark = pytest.mark.numerical
PROMPT = "where is the red circle ?"


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    model, processor = FAMILIES[request.param]
    return model(), processor()


@pytest.mark.parametrize("size", [(100, 80), (56, 90)], ids=["landscape", "portrait"])
def test_answer_is_read_and_scored_as_it_was_generated(family, size):
    """Rows and probabilities of the forced pass are those of the generation, and stay so beside another picture."""
    model, processor = family
    image, tokens = picture(*size), 3
    spoken = speak(model, processor, image, PROMPT, tokens)
    said = answer(model, processor, [image], PROMPT, max_new_tokens=tokens)
    assert spoken.text == said.text and len(spoken.ids) == tokens
    other = picture(*size, seed=1)
    reading = read_along(model, processor, [other, image], PROMPT, spoken)
    length = said.layout.length
    rows = range(length - 5, length + tokens - 1)
    for layer in range(said.trace.layers):
        generated, forced = said.trace.weights(layer, rows)[0], reading.trace.weights(layer, rows)[1]
        torch.testing.assert_close(forced[..., : generated.shape[-1]], generated, rtol=0, atol=tolerance.two_runs())
    assert reading.trace.length == length + tokens  # the last token too is read
    scores = log_probabilities(model, processor, [image, other, image], PROMPT, spoken, batch_size=2)
    assert scores[0].item() == pytest.approx(np.log(said.probabilities).sum(), abs=1e-3)
    assert scores[2].item() == pytest.approx(scores[0].item(), abs=1e-4) and scores[1] != scores[0]


def test_picture_as_seen_keeps_its_cells(family):
    """A model cuts it into the same cells, without another resize or crop, and sees what it saw before."""
    model, processor = family
    for size in ((100, 80), (57, 90)):
        image = picture(*size)
        grid = model.image_grid(processor, *image.size)
        seen = as_seen(image, grid)
        again = model.image_grid(processor, *seen.size)
        assert (again.rows, again.cols, again.cell) == (grid.rows, grid.cols, grid.cell)
        assert again.resized == seen.size and again.offset == (0, 0)
        if "fuyu" in type(model).__name__.lower():
            continue  # it does not resize below its limit, and its own resize is bilinear
        shown, original = (
            processor(images=each, text=model.image_token, return_tensors="pt") for each in (seen, image)
        )
        torch.testing.assert_close(shown["pixel_values"], original["pixel_values"])


def test_tower_is_there_or_not(family):
    model, processor = family
    check_grid(model, processor)
    assert tower_depth(model, "decoder") is None
    if hasattr(model, "tower_layers"):
        assert tower_depth(model, "auto") == tower_depth(model, "tower") == len(model.tower_layers())
    else:
        assert tower_depth(model, "auto") is None
        with pytest.raises(ValueError, match="tower"):
            tower_depth(model, "tower")


class Grid:
    """Two rows and three columns of 4 pixels, from a picture twice as large of which one column is cropped away."""

    rows, cols, cell, resized, offset = 2, 3, 4, (16, 8), (4, 0)


def cells(image):
    return np.asarray(image).reshape(2, 4, 3, 4, 3).swapaxes(1, 2).reshape(6, -1)


def test_shuffled_cells_are_the_same_cells_elsewhere():
    image = picture(32, 16)
    seen, shuffled = as_seen(image, Grid), shuffle_cells(image, Grid, np.random.default_rng(3))
    assert seen.size == shuffled.size == (12, 8)
    before, after = cells(seen), cells(shuffled)
    assert sorted(map(bytes, before)) == sorted(map(bytes, after)) and (before != after).any()
    again = shuffle_cells(image, Grid, np.random.default_rng(3))
    assert np.array_equal(np.asarray(again), np.asarray(shuffled))
    other = shuffle_cells(image, Grid, np.random.default_rng(4))
    assert (np.asarray(other) != np.asarray(again)).any()


def test_hidden_cells_take_the_colour_and_the_others_stay():
    seen = as_seen(picture(32, 16), Grid)
    hidden = np.array([[True, False, False], [False, False, True]])
    before, after = cells(seen), cells(hide_cells(seen, hidden, (1, 2, 3)))
    assert (after[[0, 5]].reshape(-1, 3) == (1, 2, 3)).all()
    assert (after[1:5] == before[1:5]).all()
    with pytest.raises(ValueError, match="not 3 x 2 whole cells; use as_seen"):
        hide_cells(seen.crop((0, 0, 11, 8)), hidden, (0, 0, 0))


def test_median_colour_is_that_of_the_ground():
    image = picture(10, 10)
    image.paste((10, 20, 30), (0, 0, 10, 6))
    assert median_colour(image) == (10, 20, 30)  # of six rows in ten
