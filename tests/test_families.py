"""One measurement for all families: attention, geometry, words and checkpoints, on small random models of the real
classes and on the embedded checkpoints."""

import ast
import inspect
import json
import re
import sys

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

import models
from analysis.rollout import rollout
from data.errors import SampleError
from models.attention import attention_stack
from models.trace import AttentionTrace
from tests import tolerance
from tests.errors import refused
from tests.families import FAMILIES, qwen3, qwen3_processor
from tests.models import picture

pytestmark = pytest.mark.numerical
PROMPTS = ["where is the red circle ?", "describe the image ."]
SIZES = [
    (8, 8), (8, 64), (64, 8), (28, 28), (30, 30), (100, 100), (14, 100), (100, 14), (28, 224), (224, 28), (640, 80),
    (97, 640), (501, 333), (333, 501), (181, 121), (29, 61), (1000, 999),
]  # fmt: skip


@pytest.fixture(scope="module", params=[*FAMILIES, *models.embedded()])
def family(request):
    """Family, model, processor."""
    if request.param in FAMILIES:
        model, processor = (make() for make in FAMILIES[request.param])
    else:
        model, processor = models.load(request.param)
    return model.config.model_type, model, processor


HOOKED = re.compile(r"^  (model[\w.]*)\.N\.(\w+) \((\w+)", re.M)


@pytest.mark.parametrize("name", FAMILIES)
def test_hooks_are_at_the_stated_modules(name):
    """The docstring of the family's file: attention modules of decoder and vision encoder, and the names it defines."""
    model = FAMILIES[name][0]()
    file = sys.modules[type(model).__module__]
    names = {module: path for path, module in model.named_modules()}
    parts = ["decoder"] if name == "fuyu" else ["decoder", "encoder"]
    found = [attention_stack(model, part)[1][0] for part in parts]
    stated = [(f"{layers}.0.{attribute}", kind) for layers, attribute, kind in HOOKED.findall(file.__doc__)]
    assert stated == [(names[module], type(module).__name__) for module in found]
    classes = (node for node in ast.parse(inspect.getsource(file)).body if isinstance(node, ast.ClassDef))
    parts = (part for node in classes for part in node.body)
    defined = {getattr(part, "name", None) or ast.unparse(getattr(part, "target", None) or part.targets[0])
               for part in parts if not isinstance(part, ast.Expr)}  # fmt: skip
    listed = file.__doc__.split("Defined here: ")[1].split("\n\n")[0].split(";")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == defined


def images_of(name, count):
    """Pictures for `count` images per prompt; Fuyu takes one."""
    return [picture(90 + 40 * i, 70, seed=i) for i in range(1 if name == "fuyu" else count)]


@torch.no_grad()
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("batch", [1, 2], ids=["single", "left_padded_batch"])
def test_weights_equal_eager(family, images, batch):
    name, model, processor = family
    if name == "fuyu" and images == 2:
        pytest.skip("Fuyu takes one image per prompt")
    if batch == 1:
        inputs, layouts = model.prepare(processor, images_of(name, images), PROMPTS[0])
        layouts = [layouts]
    else:
        pictures = [images_of(name, images), [picture(60, 90, seed=5)]]
        inputs, layouts = model.prepare(processor, pictures, PROMPTS)
        assert layouts[0].start != layouts[1].start
    options = {"min_new_tokens": 4, "max_new_tokens": 4, "do_sample": False}
    plain = model.generate(**inputs, **options)
    with AttentionTrace(model) as trace:
        assert torch.equal(model.generate(**inputs, **options), plain)
    model.set_attn_implementation({"text_config": "eager"})
    steps = model.generate(**inputs, **options, output_attentions=True, return_dict_in_generate=True).attentions
    model.set_attn_implementation({"text_config": "sdpa"})
    allowed = tolerance.two_runs(tolerance.score_size(trace))
    for layout in layouts:
        for layer in range(trace.layers):
            prefill = trace.weights(layer, range(layout.start, layout.length), samples=[layout.sample])[0]
            expected = steps[0][layer][layout.sample, :, layout.start :]
            assert (prefill[..., : layout.length] - expected).abs().max() <= allowed
            for step in range(1, 4):
                row = layout.length + step - 1
                ours = trace.weights(layer, row, samples=[layout.sample])[0, :, 0, : row + 1]
                assert (ours - steps[step][layer][layout.sample, :, 0]).abs().max() <= allowed
        maps = rollout(trace, layout)
        for index, grid in enumerate(layout.grids):
            assert maps.maps(index).per_token.shape == (4, grid.rows, grid.cols)


def eager_rows(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """SDPA's output, and beside it the weights as an eager model computes them from the same queries and keys."""
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling)
    scores = query @ repeat_kv(key, query.shape[1] // key.shape[1]).transpose(2, 3) * scaling
    rows, keys = scores.shape[2:]
    causal = torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows)
    seen = causal if attention_mask is None else attention_mask[:, :, :, :keys]
    kwargs["rows"].append(scores.masked_fill(~seen, -torch.inf).softmax(-1))
    return output, None


@torch.no_grad()
@pytest.mark.parametrize("name", models.embedded())
@pytest.mark.parametrize("batch", [1, 2], ids=["single", "left_padded_batch"])
def test_weights_equal_eager_given_the_models_own_states(name, batch):
    """Without the differences that the states of an eager run add, which sharp heads amplify."""
    model, processor = models.load(name)
    pictures = [images_of(model.config.model_type, 2), [picture(60, 90, seed=5)]][:batch]
    inputs, layouts = model.prepare(processor, pictures, PROMPTS[:batch])
    with AttentionTrace(model) as trace:
        tokens = model.generate(**inputs, min_new_tokens=3, max_new_tokens=3)
    rows = []
    AttentionInterface.register("eager-rows", lambda *args, **kwargs: eager_rows(*args, **kwargs, rows=rows))
    AttentionMaskInterface.register("eager-rows", sdpa_mask)
    model.set_attn_implementation({"text_config": "eager-rows"})
    assert torch.equal(model.generate(**inputs, min_new_tokens=3, max_new_tokens=3), tokens)
    assert len(rows) == 3 * trace.layers
    allowed = tolerance.same_states(tolerance.score_size(trace))
    for layout in layouts:
        for index, expected in enumerate(rows):
            step, layer = divmod(index, trace.layers)
            first = layout.start if step == 0 else trace.prompt_length + step - 1
            last = trace.prompt_length + step
            ours = trace.weights(layer, range(first, last), samples=[layout.sample])[0, :, :, :last]
            assert (ours - expected[layout.sample, :, first - last :]).abs().max() <= allowed


def brightness(name, inputs, grid):
    """What the model is given of each cell, [row, col], summed over its pixels."""
    pixels = inputs["pixel_values"].double()
    pixels = pixels - pixels.min()
    if name == "llava":
        cells = pixels[0].sum(0).reshape(grid.rows, grid.cell, grid.cols, grid.cell).sum((1, 3))
    elif name == "fuyu":
        cells = pixels.sum(-1).reshape(grid.rows, grid.cols)
    else:
        cells = pixels.reshape(grid.rows * grid.cols, -1).sum(-1).reshape(grid.rows, grid.cols)  # 4 patches to a cell
    return cells.numpy()


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_marked_pixels_land_in_the_predicted_cell(family, size):
    """Up to 8 cells of a black picture are painted white one at a time; the model is given light just there."""
    name, model, processor = family
    grid = model.image_grid(processor, *size)
    cells = [(row, col) for row in range(grid.rows) for col in range(grid.cols)]
    picked = np.random.default_rng(0).permutation(len(cells))[:8]
    black, _ = model.prepare(processor, [Image.new("RGB", size)], "what ?")
    ground = brightness(name, black, grid)
    tried = 0
    for row, col in (cells[i] for i in picked):
        left, top, right, bottom = grid.rect(row, col)
        box = [max(round(left), 0), max(round(top), 0), min(round(right), size[0]), min(round(bottom), size[1])]
        if box[2] <= box[0] or box[3] <= box[1]:
            continue
        whole = (min(right, size[0]) - max(left, 0)) * (min(bottom, size[1]) - max(top, 0))
        if whole < 0.3 * (right - left) * (bottom - top):
            continue  # a sliver at the border of a padded picture is too faint to be told from its neighbours
        image = Image.new("RGB", size)
        image.paste((255, 255, 255), tuple(box))
        inputs, _ = model.prepare(processor, [image], "what ?")
        light = brightness(name, inputs, grid) - ground
        assert np.unravel_index(light.argmax(), light.shape) == (row, col)
        assert grid.cell_at((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) == (row, col)
        tried += 1
    assert tried >= 1 or min(size) < 0.3 * grid.cell  # all sliver


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_marked_cell_changes_its_own_image_token_most(name):
    """Behind the tower too, whose windows and merging reorder patches, and in what Qwen3-VL takes from inside it."""
    model, processor = (make() for make in FAMILIES[name])
    size = (200, 120)
    grid = model.image_grid(processor, *size)

    def tokens(image):
        inputs, _ = model.prepare(processor, [image], "what ?")
        made = model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
        return torch.stack([made.pooler_output, *getattr(made, "deepstack_features", [])])

    ground = tokens(Image.new("RGB", size))
    for row in range(grid.rows):
        for col in range(grid.cols):
            image = Image.new("RGB", size)
            image.paste((255, 255, 255), tuple(round(edge) for edge in grid.rect(row, col)))
            changed = (tokens(image) - ground).norm(dim=-1).argmax(1)
            assert changed.tolist() == [row * grid.cols + col] * len(ground)
    assert len(ground) == (3 if name == "qwen3_vl" else 1)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision_is_within_a_hundredth(name):
    """bf16 weights, computed in float32 from bf16 queries and keys, against the eager model in bf16."""
    model, processor = (make() for make in FAMILIES[name])
    model = model.to(torch.bfloat16)
    pictures = [images_of(name, 1), [picture(60, 90, seed=5)]]
    inputs, layouts = model.prepare(processor, pictures, PROMPTS)
    with AttentionTrace(model) as trace:
        model(**inputs)
    model.set_attn_implementation({"text_config": "eager"})
    for layer, expected in enumerate(model(**inputs, output_attentions=True).attentions):
        for layout in layouts:
            ours = trace.weights(layer, range(layout.start, trace.length), samples=[layout.sample])[0]
            theirs = expected[layout.sample][:, layout.start :].float()
            assert (ours - theirs).norm() / theirs.norm() <= 1e-2


def test_words_and_image_tokens(family):
    name, model, processor = family
    pictures = [images_of(name, 2), [picture(60, 90)]]
    inputs, layouts = model.prepare(
        processor, pictures, ["is the red circle left of the Red square ?", "what is red ?"]
    )
    for layout, images in zip(layouts, pictures, strict=True):
        ids = inputs["input_ids"][layout.sample]
        assert (ids[layout.image_positions] == model.config.image_token_id).all()
        assert int((ids == model.config.image_token_id).sum()) == len(layout.image_positions)
        assert [(grid.width, grid.height) for grid in layout.grids] == [image.size for image in images]
        assert [len(positions) for positions in layout.images] == [g.rows * g.cols for g in layout.grids]
        spelled = processor.tokenizer.decode(ids[layout.word("red")])
        assert spelled.strip() == "red"
    first = layouts[0]
    assert int(first.word("circle")) == int(first.word("red")) + 1
    assert int(first.word("red", 1)) == int(first.word("square")) - 1


def test_a_picture_that_vanishes_when_shrunk_is_a_bad_sample():
    model, processor = (make() for make in FAMILIES["fuyu"])  # 180 x 120 at most
    with pytest.raises(SampleError, match="40 x 6000 pixels vanishes when shrunk to the limit of 180 x 120"):
        model.prepare(processor, [Image.new("RGB", (40, 6000))], "describe the image")


def test_the_blank_before_fuyus_first_word_belongs_to_no_word():
    model, processor = (make() for make in FAMILIES["fuyu"])
    inputs, layout = model.prepare(processor, [picture(60, 30)], "red circle ?")
    ids = inputs["input_ids"][0]
    assert processor.tokenizer.convert_ids_to_tokens(ids[layout.word("red")].tolist()) == ["red"]


def test_fuyu_rows_end_in_newlines():
    model, processor = FAMILIES["fuyu"][0](), FAMILIES["fuyu"][1]()
    inputs, layout = model.prepare(processor, [picture(150, 70)], "what ?")
    ids = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    assert ids[:7] == ["|SPEAKER|"] * 5 + ["|NEWLINE|", "|SPEAKER|"]
    assert layout.images[0].tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 13, 14, 15, 16]
    with refused("number of images", SampleError):
        model.prepare(processor, [picture(), picture()], "what ?")
    with refused("number of images", SampleError):
        model.prepare(processor, [], "what ?")


STOCK = {
    "llava": "LlavaForConditionalGeneration",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "fuyu": "FuyuForCausalLM",
}


@torch.no_grad()
def test_stock_checkpoint_loads_whole_and_back(family, tmp_path):
    """Written by the stock class, read by ours, written by ours, read by the stock class: equal logits throughout."""
    name, model, processor = family
    stock_class = getattr(transformers, STOCK[name])
    stock = stock_class(model.config).eval()
    stock.load_state_dict(model.state_dict())
    stock.save_pretrained(tmp_path / "stock")
    processor.save_pretrained(tmp_path / "stock")
    ours, read = models.load(str(tmp_path / "stock"))
    assert type(ours).__name__ == stock_class.__name__ and type(ours) is not stock_class
    inputs, _ = ours.prepare(read, [picture(150, 70)], PROMPTS[0])
    expected = stock(**inputs).logits
    assert torch.equal(ours(**inputs).logits, expected)
    ours.save_pretrained(tmp_path / "ours")
    read.save_pretrained(tmp_path / "ours")
    again = stock_class.from_pretrained(tmp_path / "ours").eval()
    assert torch.equal(again(**inputs).logits, expected)
    saved = json.loads((tmp_path / "ours" / "processor_config.json").read_text())
    assert not saved["image_processor"]["image_processor_type"].endswith("Pil")
    if name.startswith("qwen"):
        assert saved["processor_class"] in ("Qwen2VLProcessor", "Qwen2_5_VLProcessor", "Qwen3VLProcessor")
        version = 3 if name == "qwen3_vl" else 2
        assert saved["video_processor"]["video_processor_type"] == f"Qwen{version}VLVideoProcessor"
        assert ("size" in saved["video_processor"]) == (version == 2)


@torch.no_grad()
def test_mixture_of_experts(tmp_path):
    """Qwen3-VL's, whose published files hold the experts' weights transposed, and a wrong type for the tower."""
    model, processor = qwen3(experts=4), qwen3_processor()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    transposed = {name: w.mT.contiguous() if "experts" in name else w for name, w in weights.items()}
    save_file(transposed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    fields = json.loads((tmp_path / "config.json").read_text())
    fields["vision_config"]["model_type"] = "qwen3_vl_moe"
    (tmp_path / "config.json").write_text(json.dumps(fields))
    loaded, read = models.load(str(tmp_path))
    inputs, layout = loaded.prepare(read, images_of("qwen3_vl_moe", 2), PROMPTS[0])
    with AttentionTrace(loaded) as trace:
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    model.set_attn_implementation({"text_config": "eager"})
    for layer, expected in enumerate(model(**inputs, output_attentions=True).attentions):
        assert (trace.weights(layer, slice(0, layout.length)) - expected).abs().max() <= tolerance.two_runs()
    assert [(grid.rows, grid.cols, grid.cell) for grid in layout.grids] == [(2, 3, 32), (2, 4, 32)]
