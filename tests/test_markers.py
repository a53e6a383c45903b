"""Images at the places of their markers: in every family that can, else in front with the markers in words."""

import pytest
import torch
from PIL import Image

import models
from data.errors import SampleError
from models.answering import Decoding, RunnerBackend
from models.vlm import in_words, marked_order
from tests.errors import refused
from tests.families import FAMILIES
from tests.models import llava, llava_processor, picture

SIZES = [(60, 60), (150, 90), (90, 150)]
PROMPT = "the red image <image 2> left of the image <image 1> ? what is <image 3>"
WORDS = ["the red image", "left of the image", "? what is"]
# Puts all images first, as the published template of LLaVA-1.5 does.
IMAGES_FIRST = (
    "{% for message in messages %}user : {% for item in message['content'] if item['type'] == 'image' %}<image> "
    "{% endfor %}{% for item in message['content'] if item['type'] == 'text' %}{{ item['text'] }} {% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)


def pictures():
    return [picture(*size, seed=seed) for seed, size in enumerate(SIZES)]


def check_places(model, processor, inputs, layout, order):
    """Each image stands after the words that its marker followed; grids, tokens and words agree."""
    ids = inputs["input_ids"][layout.sample].tolist()
    assert [(grid.width, grid.height) for grid in layout.grids] == [SIZES[i] for i in order]
    assert [len(positions) for positions in layout.images] == [grid.rows * grid.cols for grid in layout.grids]
    assert layout.image_positions.tolist() == [i for i, id in enumerate(ids) if id == model.config.image_token_id]
    assert list(model.input_grids(inputs)) == [(grid.rows, grid.cols) for grid in layout.grids]
    return ids


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_images_stand_where_their_markers_were(family):
    model, processor = (make() for make in FAMILIES[family])
    images = pictures()
    inputs, layout = model.prepare(processor, images, PROMPT)
    check_places(model, processor, inputs, layout, [1, 0, 2])
    places = [layout.word(words) for words in WORDS]
    for positions, before, after in zip(layout.images, places, [*places[1:], None], strict=True):
        assert before.max() < positions.min() and (after is None or positions.max() < after.min())
    spelled = [processor.tokenizer.decode(inputs["input_ids"][0, at]) for at in layout.word("image", 1)]
    assert spelled == ["image"] and len(layout.prompt) == layout.text.rindex("what is") + 8 - layout.prompt_start
    # The pixels are those of the images in the order of the text.
    other, _ = model.prepare(processor, [images[i] for i in (1, 0, 2)], "what is red ?")
    assert torch.equal(inputs["pixel_values"], other["pixel_values"])
    with torch.no_grad():
        assert model(**inputs).logits.shape[1] == layout.length
    batch, layouts = model.prepare(processor, [images[:1], images], ["what ?", PROMPT])
    ours = batch["input_ids"][1, layouts[1].start :]
    assert torch.equal(ours, inputs["input_ids"][0]) and len(layouts[0].images) == 1


def test_order_of_the_markers_changes_the_model_s_input():
    model, processor = (make() for make in FAMILIES["qwen2_vl"])
    images = [picture(60, 60, seed=1), picture(60, 60, seed=2)]
    straight, _ = model.prepare(processor, images, "what <image 1> is <image 2>")
    crossed, _ = model.prepare(processor, images, "what <image 2> is <image 1>")
    assert torch.equal(straight["input_ids"], crossed["input_ids"])
    assert not torch.equal(straight["pixel_values"], crossed["pixel_values"])


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT + " <image 1>", "what is <image 3>"])
def test_images_go_in_front_where_they_cannot_stand_in_place(prompt):
    """A template that puts images first; markers that name an image twice, or not every image."""
    model, processor = llava(), llava_processor()
    if prompt == PROMPT:
        processor.chat_template = IMAGES_FIRST
    inputs, layout = model.prepare(processor, pictures(), prompt)
    plain, expected = model.prepare(processor, pictures(), in_words(prompt))
    assert layout.prompt == in_words(prompt) and "<image " not in layout.text.replace("<image> ", "")
    assert torch.equal(inputs["input_ids"], plain["input_ids"]) and layout.text == expected.text
    assert torch.equal(inputs["pixel_values"], plain["pixel_values"])
    check_places(model, processor, inputs, layout, [0, 1, 2])


def test_a_trailing_image_of_a_template_that_puts_images_first():
    """Its one text comes out as it is, and the image does not: the marker must not vanish."""
    model, processor = llava(), llava_processor()
    processor.chat_template = IMAGES_FIRST
    _, layout = model.prepare(processor, [picture()], "what is in <image 1>")
    assert layout.text == "user : <image> what is in image 1 assistant :"


def test_texts_that_a_template_trims_are_kept_in_words():
    model, processor = llava(), llava_processor()
    processor.chat_template = processor.chat_template.replace("item['text']", "item['text'] | trim")
    _, layout = model.prepare(processor, pictures()[:2], "what <image 1> is <image 2>")
    assert layout.prompt == "what image 1 is image 2"


def test_fuyu_says_its_image_in_words():
    model, processor = (make() for make in FAMILIES["fuyu"])
    inputs, layout = model.prepare(processor, [picture()], "what is <image 1> ?")
    assert layout.prompt == "what is image 1 ?" and layout.word("image").min() > layout.image_positions.max()
    with refused("image marker without its image", SampleError):
        model.prepare(processor, [picture()], "what is <image 2> ?")


@pytest.mark.parametrize("number", [0, 4, 12])
def test_a_marker_without_its_image_is_refused(number):
    prompt = f"what is <image 1> <image 2> <image 3> <image {number}>"
    model, processor = llava(), llava_processor()
    with refused("image marker without its image", SampleError) as raised:
        model.prepare(processor, pictures(), prompt)
    assert raised.value.reason == "image marker without its image"
    with refused("image marker without its image", SampleError):
        model.prepare(processor, [], "what is <image 1> ?")
    with refused("empty prompt", SampleError):
        model.prepare(processor, [picture()], "<image 1>")


def test_order_of_markers():
    assert marked_order("<image 2> a <image 1>", 2) == [1, 0] and marked_order("a", 0) == marked_order("a", 2) == []
    assert marked_order("<image 1> <image 1>", 1) == [] and marked_order("<image 2>", 2) == []


def test_a_runner_gets_the_markers_in_words():
    class Runner:
        def generate(self, prompt, images, **settings):
            return f"{prompt} {[image.size for image in images]}"

    backend = RunnerBackend(Runner(), Decoding())
    [reply] = backend.answer(["a"], ["is <image 1> like <image 2> ?"], [pictures()[:2]])
    assert reply.text == "is image 1 like image 2 ? [(60, 60), (150, 90)]"
    with refused("image marker without its image", SampleError):
        backend.answer(["a"], ["is <image 3> red ?"], [pictures()[:2]])


@pytest.mark.parametrize("name", ["tiny-qwen2-vl", "tiny-qwen2.5-vl", "tiny-llava"])
def test_embedded_models_take_images_in_place(name):
    """Image tokens lie between the words before and after the marker, and the model answers."""
    model, processor = models.load(name, device="cpu")
    images = [Image.new("RGB", (96, 96), colour) for colour in ("red", "blue")]
    inputs, layout = model.prepare(processor, images, "the circle <image 1> the square <image 2> what colour is it ?")
    circle, square, colour = (layout.word(word).item() for word in ("circle", "square", "colour"))
    first, second = layout.images
    assert circle < first.min() <= first.max() < square < second.min() <= second.max() < colour
    between = inputs["input_ids"][0, circle + 1 : square].tolist()
    assert between.count(model.config.image_token_id) == layout.grids[0].rows * layout.grids[0].cols
    output = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert output.shape[1] > layout.length


def test_embedded_fuyu_takes_its_image_in_front():
    model, processor = models.load("tiny-fuyu", device="cpu")
    inputs, layout = model.prepare(processor, [Image.new("RGB", (96, 96))], "what colour is <image 1> ?")
    assert layout.word("colour").item() > layout.image_positions.max() and layout.prompt == "what colour is image 1 ?"
