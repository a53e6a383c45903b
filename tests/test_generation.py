"""An answer behind its prompt is read as it was generated, in every family; pictures are changed in whole cells."""

import numpy as np
import pytest
import torch

from data.images import hide_cells, median_colour, model_window, shuffle_cells
from models.generation import answer, check_grid, encoder_depth, generate_answer, log_probabilities, read_along
from tests import tolerance
from tests.errors import refused
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
    forced_answer = generate_answer(model, processor, image, PROMPT, tokens)
    output = answer(model, processor, [image], PROMPT, max_new_tokens=tokens)
    assert forced_answer.text == output.text and len(forced_answer.ids) == tokens
    other = picture(*size, seed=1)
    reading = read_along(model, processor, [other, image], PROMPT, forced_answer)
    length = output.layout.length
    rows = range(length - 5, length + tokens - 1)
    for layer in range(output.trace.layers):
        generated, forced = output.trace.weights(layer, rows)[0], reading.trace.weights(layer, rows)[1]
        torch.testing.assert_close(forced[..., : generated.shape[-1]], generated, rtol=0, atol=tolerance.two_runs())
    assert reading.trace.length == length + tokens  # the last token too is read
    scores = log_probabilities(model, processor, [image, other, image], PROMPT, forced_answer, batch_size=2)
    assert scores[0].item() == pytest.approx(np.log(output.probabilities).sum(), abs=1e-3)
    assert scores[2].item() == pytest.approx(scores[0].item(), abs=1e-4) and scores[1] != scores[0]


def test_picture_as_seen_keeps_its_cells(family):
    """A model cuts it into the same cells, without another resize or crop, and sees what it saw before."""
    model, processor = family
    for size in ((100, 80), (57, 90)):
        image = picture(*size)
        grid = model.image_grid(processor, *image.size)
        window = model_window(image, grid)
        again = model.image_grid(processor, *window.size)
        assert (again.rows, again.cols, again.cell) == (grid.rows, grid.cols, grid.cell)
        assert again.resized == window.size and again.offset == (0, 0)
        if "fuyu" in type(model).__name__.lower():
            continue  # it does not resize below its limit, and its own resize is bilinear
        shown, original = (
            processor(images=each, text=model.image_token, return_tensors="pt") for each in (window, image)
        )
        torch.testing.assert_close(shown["pixel_values"], original["pixel_values"])


def test_tower_is_there_or_not(family):
    model, processor = family
    check_grid(model, processor)
    assert encoder_depth(model, "decoder") is None
    if hasattr(model, "encoder_layers"):
        assert encoder_depth(model, "auto") == encoder_depth(model, "encoder") == len(model.encoder_layers())
    else:
        assert encoder_depth(model, "auto") is None
        with refused("no-vision-encoder"):
            encoder_depth(model, "encoder")


class Grid:
    """Two rows and three columns of 4 pixels, from a picture twice as large of which one column is cropped away."""

    rows, cols, cell, resized, offset = 2, 3, 4, (16, 8), (4, 0)


def cells(image):
    return np.asarray(image).reshape(2, 4, 3, 4, 3).swapaxes(1, 2).reshape(6, -1)


def test_shuffled_cells_are_the_same_cells_elsewhere():
    image = picture(32, 16)
    window, shuffled = model_window(image, Grid), shuffle_cells(image, Grid, np.random.default_rng(3))
    assert window.size == shuffled.size == (12, 8)
    before, after = cells(window), cells(shuffled)
    assert sorted(map(bytes, before)) == sorted(map(bytes, after)) and (before != after).any()
    again = shuffle_cells(image, Grid, np.random.default_rng(3))
    assert np.array_equal(np.asarray(again), np.asarray(shuffled))
    other = shuffle_cells(image, Grid, np.random.default_rng(4))
    assert (np.asarray(other) != np.asarray(again)).any()


def test_hidden_cells_take_the_colour_and_the_others_stay():
    window = model_window(picture(32, 16), Grid)
    hidden = np.array([[True, False, False], [False, False, True]])
    before, after = cells(window), cells(hide_cells(window, hidden, (1, 2, 3)))
    assert (after[[0, 5]].reshape(-1, 3) == (1, 2, 3)).all()
    assert (after[1:5] == before[1:5]).all()
    with refused("not-whole-cells"):
        hide_cells(window.crop((0, 0, 11, 8)), hidden, (0, 0, 0))


def test_median_colour_is_that_of_the_ground():
    image = picture(10, 10)
    image.paste((10, 20, 30), (0, 0, 10, 6))
    assert median_colour(image) == (10, 20, 30)  # of six rows in ten
