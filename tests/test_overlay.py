"""The map lands on the pixels its cells cover, in any geometry; pictures are blended, enlarged and strung together."""

import math
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from analysis.gaze import PLAIN, comparison
from analysis.overlay import OverlayStyle, enlarge, input_pixels, overlay, strip, to_pixels
from analysis.plots import share_plot, visible
from analysis.run_comparison import side_by_side
from data.geometry import ImageGrid
from tests.errors import refused

SIDES = st.integers(1, 400)


def llava(width, height, side=56, cell=14):
    """Shortest edge to `side`, the long edge truncated, centre crop."""
    short = min(width, height)
    resized = int(side * width / short), int(side * height / short)
    offset = (resized[0] - side) // 2, (resized[1] - side) // 2
    return ImageGrid(side // cell, side // cell, width, height, cell, resized, offset)


def qwen(width, height, cell=28):
    """Each side to the nearest multiple of the cell, so the two axes shrink differently; no crop."""
    cols, rows = max(1, round(width / cell)), max(1, round(height / cell))
    return ImageGrid(rows, cols, width, height, cell, (cols * cell, rows * cell))


def fuyu(width, height, limit=(240, 180), cell=30):
    """Shrunk only above the limit, padded at the right and at the bottom to whole cells."""
    scale = min(1, limit[0] / width, limit[1] / height)
    resized = max(1, int(width * scale)), max(1, int(height * scale))
    return ImageGrid(math.ceil(resized[1] / cell), math.ceil(resized[0] / cell), width, height, cell, resized)


def padded(width, height, side=56, cell=14):
    """Padded to a square on both sides, as the original LLaVA-1.5 does: the input starts outside the image."""
    long = max(width, height)
    resized = max(1, side * width // long), max(1, side * height // long)
    offset = -((side - resized[0]) // 2), -((side - resized[1]) // 2)
    return ImageGrid(side // cell, side // cell, width, height, cell, resized, offset)


def cells_of_pixels(grid):
    """The cell of every pixel, one by one: {(x, y): (row, col) or None}."""
    return {(x, y): grid.cell_at(x + 0.5, y + 0.5) for x in range(grid.width) for y in range(grid.height)}


def one_hot(grid, cell):
    cell_map = np.zeros((grid.rows, grid.cols), np.float32)
    cell_map[cell] = 1
    return cell_map


@pytest.mark.parametrize("family", [llava, qwen, fuyu, padded])
@settings(deadline=None)  # the machine may be busy
@given(width=SIDES, height=SIDES, data=st.data())
def test_a_marked_pixel_lights_exactly_the_pixels_of_its_cell(family, width, height, data):
    grid = family(width, height)
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    cell = grid.cell_at(x + 0.5, y + 0.5)
    if cell is None:
        assert not input_pixels(grid)[y, x]
        return
    lit = to_pixels(one_hot(grid, cell), grid)
    assert lit.shape == (height, width) and lit.dtype == np.float32
    assert lit[y, x] == 1
    # the other pixels of its row and its column, which cross every border of the cell
    across = np.array([grid.cell_at(i + 0.5, y + 0.5) == cell for i in range(width)], np.float32)
    down = np.array([grid.cell_at(x + 0.5, i + 0.5) == cell for i in range(height)], np.float32)
    np.testing.assert_array_equal(lit, np.outer(down, across))


@pytest.mark.parametrize("family", [llava, qwen, fuyu, padded])
@settings(deadline=None, max_examples=50)
@given(width=st.integers(1, 60), height=st.integers(1, 60))
def test_every_pixel_has_the_value_of_its_own_cell(family, width, height):
    grid = family(width, height)
    values = np.arange(1, 1 + grid.rows * grid.cols, dtype=np.float32).reshape(grid.rows, grid.cols)
    pixels, visible_to_model = to_pixels(values, grid), input_pixels(grid)
    for (x, y), cell in cells_of_pixels(grid).items():
        assert pixels[y, x] == (0 if cell is None else values[cell])
        assert visible_to_model[y, x] == (cell is not None)


def test_a_crop_by_hand():
    # 6 x 4 picture, no resize, the middle 4 x 4 is the input, cells of 2: columns 0 and 5 are never seen
    grid = ImageGrid(rows=2, cols=2, width=6, height=4, cell=2, resized=(6, 4), offset=(1, 0))
    expected = [[0, 1, 1, 2, 2, 0], [0, 1, 1, 2, 2, 0], [0, 3, 3, 4, 4, 0], [0, 3, 3, 4, 4, 0]]
    np.testing.assert_array_equal(to_pixels([[1, 2], [3, 4]], grid), expected)


def test_a_border_through_the_middle_of_a_pixel_belongs_to_the_right_cell():
    # 3 pixels over 2 cells: the middle of pixel 1 lies on the border
    grid = ImageGrid(rows=1, cols=2, width=3, height=1, cell=3, resized=(6, 3))
    np.testing.assert_array_equal(to_pixels([[1, 2]], grid), [[1, 2, 2]])


def test_enlarging_repeats_the_cells_exactly():
    grid = ImageGrid(rows=2, cols=2, width=4, height=4, cell=14, resized=(28, 28))
    values = [[1, 2], [3, 4]]
    large = np.kron(to_pixels(values, grid), np.ones((5, 5)))
    np.testing.assert_array_equal(to_pixels(values, grid, size=(20, 20)), large)


def test_blur_agrees_with_sampling_the_gaussian_and_keeps_a_flat_map_flat():
    grid = llava(90, 61)
    flat = np.full((grid.rows, grid.cols), 0.25)
    np.testing.assert_allclose(to_pixels(flat, grid, blur=0.7)[input_pixels(grid)], 0.25, rtol=1e-5)
    assert (to_pixels(flat, grid, blur=0.7)[~input_pixels(grid)] == 0).all() and not input_pixels(grid).all()

    # by numbers: the map as a step function over the cells, times a Gaussian around the pixel's place, on a fine line
    line = ImageGrid(rows=1, cols=4, width=8, height=1, cell=2, resized=(8, 2))
    fine = (np.arange(40000) + 0.5) / 10000  # in cells
    steps = np.array([1.0, 0.0, 5.0, 2.0])
    for pixel, got in enumerate(to_pixels(steps[None], line, blur=0.6)[0]):
        weight = np.exp(-0.5 * ((fine - (pixel + 0.5) / 2) / 0.6) ** 2)
        assert got == pytest.approx((weight * steps[fine.astype(int)]).sum() / weight.sum(), rel=1e-4)


def test_no_attention_leaves_the_picture_and_full_attention_gives_the_colour():
    grid = ImageGrid(rows=1, cols=2, width=4, height=2, cell=2, resized=(4, 2))
    picture = Image.new("RGB", (4, 2), (10, 200, 30))
    assert overlay(picture, np.zeros((1, 2)), grid).tobytes() == picture.tobytes()
    drawn = np.asarray(overlay(picture, [[0, 3]], grid, OverlayStyle(alpha=1, blur=0, colourmap="inferno")))
    assert (drawn[:, :2] == (10, 200, 30)).all()
    assert (drawn[:, 2:] == (252, 254, 164)).all()  # the top of inferno


def test_cover_and_colour_by_hand():
    # half the maximum to the power 2 is 1/4: colour at a quarter of the map, covering alpha * sqrt(1/4) of the picture
    grid = ImageGrid(rows=1, cols=2, width=2, height=1, cell=1, resized=(2, 1))
    drawn = overlay(Image.new("RGB", (2, 1)), [[1, 2]], grid, OverlayStyle(0.8, 2, 0, "gray"))
    assert drawn.getpixel((0, 0)) == (26, 26, 26)  # 0.4 * 64
    assert drawn.getpixel((1, 0)) == (204, 204, 204)  # 0.8 * 255


def test_unseen_margins_are_dimmed_or_left():
    grid = ImageGrid(rows=2, cols=2, width=6, height=4, cell=2, resized=(6, 4), offset=(1, 0))
    white = Image.new("RGB", (6, 4), "white")
    dimmed = np.asarray(overlay(white, np.zeros((2, 2)), grid, unseen=0.2))
    assert (dimmed[:, [0, 5]] == 51).all() and (dimmed[:, 1:5] == 255).all()
    assert (np.asarray(overlay(white, np.zeros((2, 2)), grid, unseen=1)) == 255).all()


def test_small_pictures_are_enlarged_by_whole_numbers():
    picture = Image.fromarray(np.arange(64 * 48 * 3, dtype=np.uint8).reshape(48, 64, 3))
    large = enlarge(picture, at_least=400)
    assert large.size == (448, 336)
    assert (np.asarray(large)[::7, ::7] == np.asarray(picture)).all()
    assert enlarge(picture, at_least=50) == picture
    assert overlay(picture, np.zeros((4, 4)), llava(64, 48), unseen=1, at_least=400) == large


def test_large_pictures_can_be_shrunk_with_the_map_in_place():
    grid = llava(800, 600)
    picture = Image.new("RGB", (800, 600), (40, 40, 40))
    small = overlay(picture, one_hot(grid, (1, 2)), grid, OverlayStyle(blur=0), at_most=80)
    assert small.size == (80, 60) and picture.size == (800, 600)
    coloured = np.argwhere(np.ptp(np.asarray(small), axis=2) > 0)
    left, top, right, bottom = np.array(grid.rect(1, 2)) / 10
    assert (coloured.min(axis=0) == (round(top), round(left))).all()
    assert (coloured.max(axis=0) + 1 == (round(bottom), round(right))).all()
    assert overlay(picture, one_hot(grid, (1, 2)), grid, at_most=900).size == (800, 600)


@pytest.mark.parametrize(
    ("size", "cell_map", "reason"),
    [
        ((8, 8), np.zeros((3, 4)), "map-size"),
        ((8, 8), np.full((4, 4), np.nan), "map-values"),
        ((8, 8), np.full((4, 4), -1.0), "map-values"),
        ((8, 9), np.zeros((4, 4)), "image-size"),
    ],
)
def test_a_map_or_picture_that_does_not_fit_says_so(size, cell_map, reason):
    with refused(reason):
        overlay(Image.new("RGB", size), cell_map, llava(8, 8))


TOKENS = ["the", "<0x0A>", "$x$", "a_b", "\n", " ", "▁red", "<", "averyveryverylongtoken"]
TOKENS += ["$", "\\frac", "", "?", "</s>", "%", "x"]


@pytest.mark.parametrize("count", [1, 3, 8, 9, 16])
def test_strip_shows_every_picture_with_its_literal_token(count, tmp_path):
    pictures = [Image.new("RGB", (40, 30), (10 * index, 0, 0)) for index in range(count)]
    figure = strip(pictures, TOKENS[:count], shares=np.linspace(0, 1, count), title="a_b $c$")
    figure.savefig(tmp_path / "strip.png")
    shown = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_xlabel().split("\n")[0] for axes in shown] == [visible(token) for token in TOKENS[:count]]
    assert not any(axes.xaxis.label.get_parse_math() for axes in shown)
    for picture, axes in zip(pictures, shown, strict=True):
        assert (axes.images[0].get_array() == np.asarray(picture)).all()
    # reading order: left to right, then down
    corners = [(-round(axes.get_position().y0, 3), round(axes.get_position().x0, 3)) for axes in shown]
    assert corners == sorted(corners)
    assert matplotlib.image.imread(tmp_path / "strip.png").shape[1] >= 200


@pytest.mark.parametrize("size", [(10, 4000), (4000, 10), (20, 1000), (1000, 20), (1, 1), (40, 30)])
def test_strip_of_any_shape_is_bounded_and_undistorted(size, tmp_path):
    figure = strip([Image.new("RGB", size, "red")] * 3, ["a", "b", "c"], shares=[0.1, 0.2, 0.3])
    figure.savefig(tmp_path / "strip.png")
    height, width = matplotlib.image.imread(tmp_path / "strip.png").shape[:2]
    assert width == 900 and 100 <= height <= 1100
    renderer = FigureCanvasAgg(figure).get_renderer()
    labels = [axes.xaxis.label.get_window_extent(renderer) for axes in figure.axes]
    assert all(left.x1 < right.x0 for left, right in zip(labels, labels[1:], strict=False))
    for axes in figure.axes:
        (left, bottom), (right, top) = axes.transData.transform([(-0.5, size[1] - 0.5), (size[0] - 0.5, -0.5)])
        assert (right - left) / (top - bottom) == pytest.approx(size[0] / size[1])  # the whole image, in its own shape
        assert axes.bbox.x0 - 0.01 <= left and right <= axes.bbox.x1 + 0.01
        assert axes.bbox.y0 - 0.01 <= bottom and top <= axes.bbox.y1 + 0.01


@pytest.mark.parametrize("size", [(10, 4000), (4000, 10)])
def test_other_figures_of_any_shape_are_bounded(size, tmp_path):
    picture, grid = Image.new("RGB", size, "red"), ImageGrid(4, 4, *size, 14, (56, 56))
    cells = np.eye(4, dtype=np.float32)
    question = SimpleNamespace(prompt="what ?")
    sample = SimpleNamespace(sample=question, points=[(1, 1), (2, 3)], grid=grid, simulated=True)
    outcomes = {
        way: SimpleNamespace(mask=mask, maps=SimpleNamespace(mean=cells), tokens=["a"], probabilities=[0.5], inside=0.3)
        for way, mask in ((PLAIN, None), ("gaussian", cells))
    }
    comparison(sample, picture, outcomes, OverlayStyle()).savefig(tmp_path / "comparison.png")
    height, width = matplotlib.image.imread(tmp_path / "comparison.png").shape[:2]
    assert width == 820 and height < 3000
    assert max(side_by_side([picture, picture]).size) <= 6012  # two images and the gap between them


def test_strip_and_share_plot_refuse_lists_that_do_not_match():
    with refused("overlays-per-token"):
        strip([Image.new("RGB", (4, 4))], ["a", "b"])
    with refused("shares-per-token"):
        strip([Image.new("RGB", (4, 4))], ["a"], shares=[0.1, 0.2])
    with refused("overlays-per-token"):
        strip([], [])
    with refused("shares-per-token"):
        share_plot(["a", "b"], [0.5])


def test_labels_show_white_space_and_cut_long_tokens():
    assert [visible(token) for token in ["a", "\n", " ", "", "▁a b", "x" * 20, "\x07", "\u3000", "左"]] == [
        "a", "\\n", "␣", "␣", "▁a b", "x" * 13 + "…", "\\x07", "\\u3000", "左",
    ]  # fmt: skip


def test_share_plot_draws_the_shares(tmp_path):
    shares = np.linspace(0, 1, len(TOKENS))
    figure = share_plot(TOKENS, shares)
    figure.savefig(tmp_path / "shares.png")
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.patches] == pytest.approx(shares)
    assert [label.get_text() for label in axes.get_xticklabels()] == [visible(token) for token in TOKENS]
    assert not any(label.get_parse_math() for label in axes.get_xticklabels())
    assert axes.get_ylim() == (0, 1)
