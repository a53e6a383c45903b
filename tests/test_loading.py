"""Checkpoints in and out: stock folders load whole, and what is wrong is said in one sentence."""

import json

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.utils import logging

import models
from data.errors import InputError, MissingFileError, SampleError
from models import loading
from models.generation import answer, answer_length
from models.loading import describe, place, quantized
from models.trace import AttentionTrace
from tests import tolerance
from tests.errors import refused
from tests.families import FAMILIES
from tests.models import llava, llava_config, llava_processor, picture

logging.disable_progress_bar()


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """A checkpoint folder as the stock classes write it."""
    folder = tmp_path_factory.mktemp("stock")
    torch.manual_seed(0)
    transformers.LlavaForConditionalGeneration(llava_config()).save_pretrained(folder)
    llava_processor().save_pretrained(folder)
    return folder


def copy(folder, tmp_path, **changes):
    """A copy of a checkpoint with fields of its config changed."""
    target = tmp_path / "copy"
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((target / "config.json").read_text())
    for key, value in changes.items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    (target / "config.json").write_text(json.dumps(config))
    return target


@torch.no_grad()
def test_stock_folder_loads_whole_and_back(stock, tmp_path):
    reference = transformers.LlavaForConditionalGeneration.from_pretrained(stock)
    model, processor = models.load(str(stock))
    inputs, _ = model.prepare(processor, [picture()], "where is the red circle ?")
    assert torch.equal(model(**inputs).logits, reference(**inputs).logits)
    assert not model.training and model.dtype == torch.float32
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again(**inputs).logits, reference(**inputs).logits)
    assert describe(model)["family"] == "llava" and describe(model)["devices"] == ["cpu"]


def test_half_precision_on_request(stock):
    assert models.load(str(stock), dtype="bfloat16")[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    "unsaid",
    [
        ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens"),
        ("num_additional_image_tokens",),
    ],
)
def test_old_processor_folder_is_completed(stock, tmp_path, unsaid):
    """Folders of early releases say nothing of patch size and class token, later ones nothing of the latter."""
    folder = copy(stock, tmp_path)
    settings = json.loads((folder / "processor_config.json").read_text())
    for name in unsaid:
        del settings[name]
    (folder / "processor_config.json").write_text(json.dumps(settings))
    model, processor = models.load(str(folder))
    _, layout = model.prepare(processor, [picture()], "what is red ?")
    assert len(layout.image_positions) == 16


@pytest.mark.parametrize("name", ["processor_config.json", "preprocessor_config.json"])
def test_code_of_a_checkpoint_never_runs(stock, tmp_path, monkeypatch, name):
    """An image processor of its own: transformers would ask at the terminal, and somebody might say yes."""
    folder = copy(stock, tmp_path)
    settings = json.loads((folder / "processor_config.json").read_text())
    own = {"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "own.Own"}}
    images = settings.pop("image_processor") | own
    if name == "processor_config.json":
        settings["image_processor"] = images
    else:
        (folder / name).write_text(json.dumps(images))
    (folder / "processor_config.json").write_text(json.dumps(settings))
    code = f"from transformers import CLIPImageProcessorPil\nopen({str(tmp_path / 'ran')!r}, 'w')\n"
    (folder / "own.py").write_text(f"{code}class Own(CLIPImageProcessorPil):\n    pass\n")
    monkeypatch.setattr("builtins.input", lambda *prompt: "y")
    with refused("unreadable-processor"):
        models.load(str(folder))
    assert not (tmp_path / "ran").exists()


def test_wrong_weights_are_an_error(stock, tmp_path):
    folder = copy(stock, tmp_path)
    weights = load_file(folder / "model.safetensors")
    missing = next(name for name in weights if "down_proj" in name)
    spare = {name: value for name, value in weights.items() if name != missing}
    save_file(spare | {"left.over": torch.ones(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"do not fit its config: missing keys \[.*down_proj.*unexpected keys \['left"):
        models.load(str(folder))


def test_weights_of_another_shape_are_an_error(stock, tmp_path, capfd):
    folder = copy(stock, tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "down_proj" in name)
    save_file(weights | {name: weights[name][:, :5].clone()}, folder / "model.safetensors", metadata={"format": "pt"})
    with refused("weights-do-not-fit"):
        models.load(str(folder))
    assert "LOAD REPORT" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("processor_config.json", None, "unreadable-processor"),
        ("processor_config.json", "{ broken", "unreadable-processor"),
        ("tokenizer.json", "{ broken", "unreadable-processor"),
        ("tokenizer.json", None, "no-tokenizer"),
        ("chat_template.jinja", None, "unreadable-processor"),
    ],
)
def test_damaged_processor_is_one_sentence(stock, tmp_path, name, content, reason):
    folder = copy(stock, tmp_path)
    (folder / name).unlink()
    if content:
        (folder / name).write_text(content)
    with refused(reason) as error:
        models.load(str(folder))
    assert "\n" not in str(error.value)


def test_processor_of_another_model_is_noticed_at_once(stock, tmp_path):
    """It makes 16 image tokens, the model's patches make 64."""
    folder = copy(stock, tmp_path, vision_config={"patch_size": 7})
    weights = load_file(folder / "model.safetensors")
    wide = next(name for name in weights if "patch_embedding" in name)
    long = next(name for name in weights if "position_embedding" in name)
    resized = {wide: torch.zeros(32, 3, 7, 7), long: torch.zeros(65, 32)}
    save_file(weights | resized, folder / "model.safetensors", metadata={"format": "pt"})
    with refused("tokens-do-not-fit"):
        models.load(str(folder))


def test_processor_with_another_crop_is_noticed_at_once(stock, tmp_path):
    folder = copy(stock, tmp_path)
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["image_processor"]["crop_size"] = {"height": 70, "width": 70}
    path.write_text(json.dumps(settings))
    with refused("unreadable-processor"):
        models.load(str(folder))


def test_damaged_or_pickled_weights_are_refused(stock, tmp_path):
    folder = copy(stock, tmp_path)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    with refused("damaged-weights"):
        models.load(str(folder))
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with refused("pickled-weights"):
        models.load(str(folder))


def test_names_that_lead_nowhere(tmp_path):
    with refused("unknown-model", MissingFileError):
        models.load("tiny-lava")
    with refused("unknown-model", MissingFileError):
        models.load("x" * 300)
    with refused("no-config", MissingFileError):
        models.load(str(tmp_path))
    with refused("unknown-model", MissingFileError):
        models.load("./not/here")
    (tmp_path / "config.json").write_text("{ broken")
    with refused("unreadable-config", MissingFileError):
        models.load(str(tmp_path))


@pytest.mark.parametrize(
    "kind, fault",
    [
        ("bert", "is not a model of images and text"),
        ("llama", "is not a model of images and text"),
        ("tomorrow_vl", "transformers .* does not know"),
        ("blip-2", "does not mark its image tokens in input_ids"),
        ("florence2", "has an encoder and a decoder"),
    ],
)
def test_families_that_cannot_be_recorded(tmp_path, kind, fault):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    supported = ", ".join(models.FAMILIES)
    sentence = f"is of the family '{kind}', which {fault}.*; supported are {supported}, and without overlays any"
    with pytest.raises(InputError, match=sentence) as error:
        models.load(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module", params=FAMILIES)
def family_folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model, processor = FAMILIES[request.param]
    model().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "flash_attention_2"])
def test_attention_that_a_config_asks_for_is_not_followed(family_folder, tmp_path, attention):
    """Whatever the file says, the model comes under SDPA and can be recorded, flash installed or not."""
    folder = copy(family_folder, tmp_path, attn_implementation=attention, _attn_implementation=attention)
    model, processor = models.load(str(folder))
    inputs, _ = model.prepare(processor, [picture()], "what ?")
    with AttentionTrace(model) as trace:
        model(**inputs)
    assert trace.length == inputs["input_ids"].shape[1]


def test_attention_that_a_user_forces_is_refused(family_folder):
    model, processor = models.load(str(family_folder))
    inputs, _ = model.prepare(processor, [picture()], "what ?")
    model.set_attn_implementation("eager")
    with refused("not-sdpa"), AttentionTrace(model):
        pass
    model.get_decoder().config._attn_implementation = "flash_attention_2"  # not installed here, so set by hand
    with refused("not-sdpa"), AttentionTrace(model):
        pass
    model.set_attn_implementation("sdpa")  # what the sentence says to do
    with torch.no_grad(), AttentionTrace(model) as trace:
        model(**inputs)
    assert trace.length == inputs["input_ids"].shape[1]


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_sliding_window_of_a_patched_family(tmp_path, name):
    """Switched on in layers 1 and 2: rows of the last layer attend to 16 keys at most."""
    model, processor = FAMILIES[name]
    model().save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    del fields["text_config"]["layer_types"]
    fields["text_config"] |= {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    model, processor = models.load(str(tmp_path))
    inputs, layout = model.prepare(processor, [picture(200, 120)], "what ?")
    with AttentionTrace(model) as trace:
        model.generate(**inputs, max_new_tokens=4, min_new_tokens=4)
    attended = [(trace.weights(layer, slice(None))[0] > 0).any(0).sum(-1) for layer in range(3)]
    assert attended[0][-1] == trace.length > 16 and attended[1].max() == attended[2].max() == 16


def test_settings_fail_before_the_model_loads(stock):
    for options, reason in (
        ({"dtype": "int8"}, "unknown-dtype"),
        ({"device": "tpu9"}, "unknown-device"),
        ({"device": "meta"}, "unsupported-device"),
        ({"load_4bit": True, "load_8bit": True}, "two-quantisations"),
        ({"load_4bit": True}, "no-bitsandbytes"),
    ):
        with refused(reason):
            models.load(str(stock), **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_missing_gpu_is_said(stock):
    with refused("no-gpu"):
        models.load(str(stock), device="cuda:0")


def test_gpu_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [place(device) for device in ("cuda", "cuda:1")] == [{"": "cuda"}, {"": "cuda:1"}]
    with pytest.raises(ValueError, match="device 'cuda:2' does not exist; torch sees 2, from cuda:0 on"):
        place("cuda:2")


def test_quantisation_multiplies_in_half_precision(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for dtype, expected in (("auto", torch.bfloat16), ("float16", torch.float16)):
        assert quantized(True, False, "auto", dtype).bnb_4bit_compute_dtype == expected
    with refused("quantisation-without-gpu"):
        quantized(False, True, {"": "cpu"}, "auto")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "out-of-memory"),
        (ValueError("On the CPU. Make sure of RAM"), "cannot-load"),
        (ValueError("X has no SDPA attention. See"), "cannot-build"),
    ],
)
def test_why_a_model_does_not_load(stock, monkeypatch, error, reason):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(transformers.LlavaForConditionalGeneration, "from_pretrained", fail)
    with refused(reason):
        models.load(str(stock))


@pytest.mark.numerical
@torch.no_grad()
def test_answer_knows_its_tokens_and_their_probabilities():
    model, processor = llava(), llava_processor()
    output = answer(model, processor, [picture()], "where is the red circle ?", max_new_tokens=4)
    inputs, layout = model.prepare(processor, [picture()], "where is the red circle ?")
    sequence = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert output.text == processor.tokenizer.decode(sequence[0, layout.length :], skip_special_tokens=True)
    assert output.trace.length == layout.length + 3
    logits = model(sequence[:, :-1], pixel_values=inputs["pixel_values"]).logits[0, layout.length - 1 :].softmax(-1)
    expected = logits.gather(1, sequence[0, layout.length :, None]).flatten()
    torch.testing.assert_close(torch.tensor(output.probabilities), expected, atol=tolerance.two_runs(), rtol=0)


@pytest.mark.parametrize(
    "ids, eos, length",
    [([5, 6, 2, 0, 0], 2, 2), ([2], 2, 0), ([5, 6], 2, 2), ([5, 3, 2], [2, 3], 1), ([5, 2], None, 2)],
)
def test_answer_ends_at_the_first_end_token(ids, eos, length):
    assert answer_length(torch.tensor(ids), eos) == length


def test_unknown_words_are_named():
    model, processor = llava(), llava_processor()
    known = answer(model, processor, [picture()], "where is the red circle ?", max_new_tokens=1)
    assert known.unknown == []
    strange = answer(model, processor, [picture()], "where is the mauve circle or mauve dodo ?", max_new_tokens=1)
    assert strange.unknown == ["mauve", "or", "dodo"]


def test_empty_answer_is_said():
    model, processor = llava(), llava_processor()
    model.generation_config.eos_token_id = list(range(model.config.text_config.vocab_size))
    with refused("empty answer", SampleError):
        answer(model, processor, [picture()], "what ?")


@pytest.mark.parametrize("name", ["tiny-qwen2-vl", "tiny-qwen2.5-vl"])
def test_pixel_limits_decide_the_number_of_image_tokens(name):
    """640 x 480 pixels in cells of 8: 7,056 pixels are at most 12 x 9 cells, 307,200 keep all 80 x 60."""
    for most, cells in ((7056, (9, 12)), (640 * 480, (60, 80))):
        model, processor = models.load(name, device="cpu", min_pixels=64, max_pixels=most)
        inputs, layout = model.prepare(processor, [Image.new("RGB", (640, 480))], "what ?")
        assert (layout.grids[0].rows, layout.grids[0].cols) == cells and len(layout.images[0]) == cells[0] * cells[1]
        assert inputs["image_grid_thw"].prod() == 4 * cells[0] * cells[1]
        assert describe(model)["pixels of an image"] == {"least": 64, "most": most}


@pytest.mark.parametrize("limits", [{"max_pixels": 63}, {"min_pixels": 10**9}, {"min_pixels": 0}, {"max_pixels": -4}])
def test_pixel_limits_that_cannot_hold_are_refused(limits):
    with refused("pixel-limits"):
        models.load("tiny-qwen2-vl", device="cpu", **limits)


def test_pixel_limits_of_other_families_are_refused_before_weights_load(monkeypatch):
    monkeypatch.setattr(loading, "read_weights", lambda *_, **__: pytest.fail("weights were loaded"))
    with refused("pixel-limits-of-other-family"):
        models.load("tiny-llava", device="cpu", max_pixels=100_000)
