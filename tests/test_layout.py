"""Cells and pixels, words and tokens: checked against the processors themselves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import LlavaImageProcessorPil

from data.errors import SampleError
from data.geometry import ImageGrid
from tests.errors import refused
from tests.models import llava, llava_processor, picture

MODEL, PROCESSOR = llava(), llava_processor()
SIZES = [(100, 100), (501, 333), (97, 640), (333, 501), (56, 57), (640, 80), (80, 640), (1, 1), (3, 200), (1000, 999)]


@pytest.fixture
def model():
    return MODEL


def brightest_cell(processor, image, rows, cols):
    """(row, col) of the model's input that a picture's bright part ends in."""
    pixels = processor.image_processor(images=image, return_tensors="pt")["pixel_values"][0].sum(0)
    pixels = pixels - pixels.min()
    cells = pixels.unfold(0, pixels.shape[0] // rows, pixels.shape[0] // rows)
    cells = cells.unfold(1, pixels.shape[1] // cols, pixels.shape[1] // cols).sum((-1, -2))
    return divmod(int(cells.argmax()), cols), float(cells.max())


def marked(width, height, rect):
    """A black picture with the given rectangle painted white."""
    image = Image.new("RGB", (width, height))
    image.paste((255, 255, 255), tuple(round(edge) for edge in rect))
    return image


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pad", [False, True], ids=["crop", "pad_to_square"])
def test_marked_cell_is_seen_where_predicted(model, size, pad):
    processor = llava_processor()
    if pad:
        processor.image_processor = LlavaImageProcessorPil(
            size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, do_pad=True, image_mean=[0.0] * 3
        )
    grid = model.image_grid(processor, *size)
    assert (grid.rows, grid.cols) == (4, 4)
    tried = 0
    for row in range(4):
        for col in range(4):
            left, top, right, bottom = grid.rect(row, col)
            if min(right, size[0]) - max(left, 0) < 2 or min(bottom, size[1]) - max(top, 0) < 2:
                continue
            inside = max(left, 0), max(top, 0), min(right, size[0]), min(bottom, size[1])
            found, brightness = brightest_cell(processor, marked(*size, inside), 4, 4)
            assert brightness > 0 and found == (row, col)
            tried += 1
            assert grid.cell_at((inside[0] + inside[2]) / 2, (inside[1] + inside[3]) / 2) == (row, col)
    assert tried >= 1 or min(size) < 8  # where a cell is thinner than two pixels, none can be painted


def test_llava_geometry_by_hand(model):
    """501 x 333 at 336/14: resized 505 x 336, 84 pixels cut on the left (transformers' own numbers)."""
    processor = llava_processor(side=336)
    grid = model.image_grid(processor, 501, 333)
    assert grid == ImageGrid(24, 24, 501, 333, 14, (505, 336), (84, 0))
    assert grid.rect(0, 0) == pytest.approx((84 * 501 / 505, 0, 98 * 501 / 505, 14 * 333 / 336))
    assert grid.cell_at(0, 0) is None and grid.cell_at(84, 0) == (0, 0) and grid.cell_at(500, 332) is None
    portrait = model.image_grid(processor, 97, 640)
    assert (portrait.resized, portrait.offset) == ((336, 2216), (0, 940))  # 336 * 640 / 97 = 2216.9, truncated


@settings(max_examples=200, deadline=None)
@given(width=st.integers(1, 2000), height=st.integers(1, 2000), u=st.floats(0, 0.999), v=st.floats(0, 0.999))
def test_pixel_to_cell_and_back(width, height, u, v):
    grid = MODEL.image_grid(PROCESSOR, width, height)
    x, y = u * width, v * height
    cell = grid.cell_at(x, y)
    covering = [
        (row, col)
        for row in range(grid.rows)
        for col in range(grid.cols)
        if grid.rect(row, col)[0] <= x < grid.rect(row, col)[2] and grid.rect(row, col)[1] <= y < grid.rect(row, col)[3]
    ]
    assert covering == ([cell] if cell else []) or _on_an_edge(grid, x, y)


def _on_an_edge(grid, x, y):
    edges_x = [grid.rect(0, col)[0] for col in range(grid.cols + 1)]
    edges_y = [grid.rect(row, 0)[1] for row in range(grid.rows + 1)]
    return min(abs(x - e) for e in edges_x) < 1e-6 or min(abs(y - e) for e in edges_y) < 1e-6


def test_words_become_positions(model):
    inputs, layouts = model.prepare(
        llava_processor(),
        [[picture()], [picture(), picture(50, 90)]],
        ["where is the red circle to the left of the Red square ?", "what is red ?"],
    )
    tokenizer = llava_processor().tokenizer

    def spelled(layout, positions):
        return tokenizer.convert_ids_to_tokens(inputs["input_ids"][layout.sample][positions])

    first, second = layouts
    assert spelled(first, first.word("red")) == ["red"]
    assert first.word("red", occurrence=1) > first.word("red")
    assert torch.equal(first.word("red", -1), first.word("RED", 1))
    assert spelled(first, first.word("red circle")) == ["red", "circle"]
    assert spelled(second, second.word("what")) == ["what"]
    assert second.start == 0 and first.start == len(first.offsets) - len(first.offsets[first.start :]) > 0
    for layout, images in ((first, 1), (second, 2)):
        assert len(layout.images) == images == len(layout.grids)
        for positions in layout.images:
            assert (inputs["input_ids"][layout.sample][positions] == model.config.image_token_id).all()
            assert len(positions) == 16
        assert len(layout.image_positions) == 16 * images
        assert layout.length == inputs["input_ids"].shape[1]
    assert second.grids[1].width == 50


def test_template_words_are_not_the_prompts(model):
    """`user` stands in the template as well; only the prompt's own is found."""
    _, layout = model.prepare(llava_processor(), [picture()], "what is left of the user ?")
    assert len(layout.word("user")) == 1 and int(layout.word("user")) > int(layout.image_positions.max())


def test_prompt_made_of_template_words(model):
    """The template goes on with `assistant :` behind the prompt; the prompt's own word is the one before."""
    inputs, layout = model.prepare(llava_processor(), [picture()], "assistant :")
    ids = llava_processor().tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    assert ids[-4:] == ["assistant", ":", "assistant", ":"]
    assert layout.word("assistant").tolist() == [len(ids) - 4] and layout.word(":").tolist() == [len(ids) - 3]


def test_word_is_stripped_and_special_tokens_are_refused(model):
    _, layout = model.prepare(llava_processor(), [picture()], "  what is red ?  ")
    assert torch.equal(layout.word(" red "), layout.word("red"))
    with refused("special token in the prompt", SampleError):
        model.prepare(llava_processor(), [picture()], "what </s> ?")


def test_template_that_changes_the_prompt_is_refused(model):
    processor = llava_processor()
    processor.chat_template = processor.chat_template.replace("item['text']", "item['text'] | upper")
    with refused("template-changes-prompt"):
        model.prepare(processor, [picture()], "what is red ?")


def test_part_of_a_word_is_not_a_word(model):
    _, layout = model.prepare(llava_processor(), [picture()], "describe the image .")
    with pytest.raises(ValueError, match="word 'mage' .* is not in the prompt, which holds it 0 times: 'describe"):
        layout.word("mage")
    with refused("word-not-in-prompt"):
        layout.word("image", 1)
    with refused("empty-word"):
        layout.word(" ")


def test_prepare_checks_at_the_door(model):
    processor = llava_processor()
    for images, prompt, reason in (
        ([picture()], "  ", "empty prompt"),
        ([picture()], "what is <image> ?", "special token in the prompt"),
        (picture(), "what ?", "single-image"),
        ([picture().convert("CMYK")], "what ?", "not-rgb"),
        (["photo.jpg"], "what ?", "not-rgb"),
        ([picture(1, 300)], "what ?", "image too elongated"),
        ([[picture()]], ["what ?", "where ?"], "prompts-and-images"),
    ):
        with refused(reason, ValueError):
            model.prepare(processor, images, prompt)


def test_foreign_processor_is_noticed(model):
    """A processor of another image size makes other numbers of tokens than the grid has cells."""
    processor = llava_processor()
    processor.num_additional_image_tokens = 0
    with refused("tokens-do-not-fit"):
        model.prepare(processor, [picture()], "what ?")


def test_text_only(model):
    inputs, layout = model.prepare(llava_processor(), [], "what is red ?")
    assert layout.images == () and len(layout.image_positions) == 0 and len(layout.word("red")) == 1
    with torch.no_grad():
        assert model(**inputs).logits.shape[1] == layout.length
