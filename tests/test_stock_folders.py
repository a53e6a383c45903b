"""Checkpoint folders as others wrote them: three generations of files and of weight names, for each patched family."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging

import models
from models.trace import AttentionTrace
from tests.errors import refused
from tests.families import FAMILIES
from tests.hub_folders import PUBLISHED_KEYS
from tests.models import picture

logging.disable_progress_bar()

PROMPT = "where is the red circle ?"
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
STEPS = {"do_rescale": True, "do_normalize": True, "do_resize": True, "rescale_factor": 0.00392156862745098}
QWEN_IMAGES = CLIP | {
    "min_pixels": 4 * 28 * 28, "max_pixels": 32 * 28 * 28, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
    "image_processor_type": "Qwen2VLImageProcessor",
}  # fmt: skip
QWEN3_IMAGES = {  # no limits in pixels beside the size, and a file of its own for videos
    "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"shortest_edge": 4 * 32**2, "longest_edge": 32 * 32**2},
    "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2, "image_processor_type": "Qwen2VLImageProcessor",
}  # fmt: skip
PUBLISHED_IMAGES = {
    "llava": CLIP | STEPS | {
        "crop_size": {"height": 56, "width": 56}, "do_center_crop": True, "do_convert_rgb": True,
        "image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor", "resample": 3,
        "size": {"shortest_edge": 56},
    },
    "qwen2_vl": QWEN_IMAGES | {"processor_class": "Qwen2VLProcessor"},
    "qwen2_5_vl": QWEN_IMAGES | {"processor_class": "Qwen2_5_VLProcessor"},
    "qwen3_vl": QWEN3_IMAGES | {"processor_class": "Qwen3VLProcessor"},
    "fuyu": STEPS | {
        "do_pad": True, "image_mean": 0.5, "image_std": 0.5, "image_processor_type": "FuyuImageProcessor",
        "padding_mode": "constant", "padding_value": 1.0, "patch_size": {"height": 30, "width": 30},
        "processor_class": "FuyuProcessor", "resample": 2, "size": {"height": 120, "width": 180},
    },
}  # fmt: skip
"""preprocessor_config.json of llava-hf/llava-1.5-7b-hf, of Qwen's 7B and 8B models and of adept/fuyu-8b, made small."""

PUBLISHED_NAMES = {
    "llava": "vision_tower.vision_model.embeddings.class_embedding language_model.model.layers.0.mlp.up_proj.weight",
    "qwen2_vl": "visual.blocks.0.attn.qkv.weight visual.merger.mlp.0.weight model.layers.0.self_attn.q_proj.bias",
    "qwen2_5_vl": "visual.blocks.0.mlp.gate_proj.weight model.embed_tokens.weight model.norm.weight lm_head.weight",
    "qwen3_vl": "model.visual.deepstack_merger_list.0.norm.bias model.language_model.layers.0.self_attn.q_norm.weight",
    "fuyu": "language_model.model.layers.0.self_attn.query_key_value.weight vision_embed_tokens.weight",
}
"""Some published names of each family, to hold PUBLISHED_KEYS to."""
LONGER_KEYS = {"llava": [("model.vision_tower.", "model.vision_tower.vision_model.")]}
"""Names in memory for a while, when CLIP's tower was one level deeper."""


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    model, processor = FAMILIES[request.param]
    return request.param, model(), processor()


def published_config(name, config):
    """config.json with the older names for number type and rotary embedding; Qwen2's text fields lie at the top."""
    fields = json.loads(config.to_json_string(use_diff=False))
    text = fields.pop("text_config")
    for each in (fields, text):
        each["torch_dtype"] = each.pop("dtype", None) or "float32"
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope["rope_theta"], "rope_scaling": None}
    if name == "fuyu":
        return text | fields | {"text_config": text | {"partial_rotary_factor": rope["partial_rotary_factor"]}}
    if name == "llava":
        return fields | {"text_config": text, "ignore_index": -100, "vocab_size": text["vocab_size"]}
    if name == "qwen3_vl":  # the tower's type was a wrong one
        return fields | {
            "text_config": text | {"rope_scaling": {key: rope[key] for key in rope if key != "rope_theta"}},
            "vision_config": fields["vision_config"] | {"model_type": name},
        }
    text = {key: value for key, value in text.items() if key not in ("layer_types", "model_type")}
    window = {"sliding_window": 32768, "use_sliding_window": False, "max_window_layers": 3}
    return text | fields | window | {"rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}}


def write_weights(folder, model, renames=()):
    """Safetensors under names of which the first fitting (prefix, new prefix) is applied."""

    def renamed(key):
        for ours, theirs in renames:
            if key.startswith(ours):
                return theirs + key.removeprefix(ours)
        return key

    weights = {renamed(key): value.contiguous().clone() for key, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def write_published(folder, name, model, processor):
    """Without processor_config.json, the template in a JSON file of its own, and the older weight names."""
    processor.tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(PUBLISHED_IMAGES[name]))
    if processor.chat_template:
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": processor.chat_template}))
    (folder / "config.json").write_text(json.dumps(published_config(name, model.config)))
    write_weights(folder, model, PUBLISHED_KEYS[name])
    assert set(PUBLISHED_NAMES[name].split()) <= load_file(folder / "model.safetensors").keys()


def write_fast(folder, name, model, processor):
    """As torchvision's "fast" processors were saved for a while: two preprocessor files, weights named as in memory."""
    processor.tokenizer.save_pretrained(folder)
    images = PUBLISHED_IMAGES[name] | {"image_processor_type": PUBLISHED_IMAGES[name]["image_processor_type"] + "Fast"}
    (folder / "preprocessor_config.json").write_text(json.dumps(images | {"device": None, "return_tensors": None}))
    if name.startswith("qwen"):
        video = images | {"video_processor_type": processor.video_type}
        (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
    if processor.chat_template:
        (folder / "chat_template.jinja").write_text(processor.chat_template)
    model.config.save_pretrained(folder)
    write_weights(folder, model, LONGER_KEYS.get(name, ()))


def write_current(folder, name, model, processor):
    """As transformers 5 with torchvision saves: one processor_config.json, video section and all."""
    write_published(folder, name, model, processor)
    (folder / "preprocessor_config.json").unlink()
    (folder / "chat_template.json").unlink(missing_ok=True)
    if processor.chat_template:
        (folder / "chat_template.jinja").write_text(processor.chat_template)
    images = dict(PUBLISHED_IMAGES[name])
    settings = {"processor_class": images.pop("processor_class"), "image_processor": images}
    if name.startswith("qwen2"):
        images["size"] = {"shortest_edge": images.pop("min_pixels"), "longest_edge": images.pop("max_pixels")}
    if name.startswith("qwen"):
        video = {"video_processor_type": processor.video_type, "return_metadata": False}
        settings["video_processor"] = images | video
    if name == "llava":
        settings |= {"patch_size": 14, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
    (folder / "processor_config.json").write_text(json.dumps(settings))
    model.config.save_pretrained(folder)


@torch.no_grad()
@pytest.mark.parametrize("write", [write_published, write_fast, write_current])
def test_folder_of_another_hand_loads_whole(family, tmp_path, write):
    """The same tokens, pixels and logits as the model and processor that the folder was made of."""
    name, model, processor = family
    write(tmp_path, name, model, processor)
    loaded, read = models.load(str(tmp_path))
    inputs, layout = model.prepare(processor, [picture(150, 70)], PROMPT)
    again, theirs = loaded.prepare(read, [picture(150, 70)], PROMPT)
    assert inputs.keys() == again.keys() and layout.grids == theirs.grids
    for key in inputs:
        torch.testing.assert_close(again[key], inputs[key], rtol=0, atol=1e-6)
    with AttentionTrace(loaded) as trace:
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert trace.length == layout.length


def edit(path, *where, value):
    """Puts `value` into a JSON file, under the last of the keys `where`."""
    settings = inner = json.loads(path.read_text())
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    path.write_text(json.dumps(settings))


@pytest.mark.parametrize(
    "name, where, value, sentence",
    [
        ("qwen2_vl", ("image_processor", "patch_size"), 16, "patches of 16 pixels, .* reads patches of 14 pixels"),
        ("qwen2_5_vl", ("image_processor", "merge_size"), 1, "merged 1 x 1, but the model .* merges 2 x 2"),
        ("qwen3_vl", ("image_processor", "patch_size"), 14, "patches of 14 pixels, .* reads patches of 16 pixels"),
        ("fuyu", ("image_processor", "patch_size"), {"height": 30, "width": 15}, "15 x 30 pixels, .* reads 30 x 30"),
        ("llava", ("image_token_index",), 1, "'<image>' .token 4., but the model looks for token 1: they"),
        ("qwen2_vl", ("image_token_id",), 1, "token 5., but the model looks for token 1: they"),
        ("fuyu", ("image_token_id",), 1, "token 10., but the model looks for token 1: they"),
    ],
)
def test_processor_of_another_model_is_told(tmp_path, name, where, value, sentence):
    model, processor = (make() for make in FAMILIES[name])
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    edit(tmp_path / ("config.json" if len(where) == 1 else "processor_config.json"), *where, value=value)
    with refused("unusable-checkpoint"):
        models.load(str(tmp_path))


def test_tied_published_checkpoint_has_no_head(tmp_path):
    """Qwen2-VL-2B ties its word embeddings, and its file holds no lm_head."""
    model, processor = FAMILIES["qwen2_vl"][0](), FAMILIES["qwen2_vl"][1]()
    write_published(tmp_path, "qwen2_vl", model, processor)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"tie_word_embeddings": True}))
    weights = load_file(tmp_path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, _ = models.load(str(tmp_path))
    assert torch.equal(loaded.lm_head.weight, model.model.language_model.embed_tokens.weight)


def test_buffers_of_early_files_are_no_fault(tmp_path):
    """Files of 2023 also hold rotary frequencies and position ids, which the model makes for itself today."""
    model, processor = FAMILIES["llava"][0](), FAMILIES["llava"][1]()
    write_published(tmp_path, "llava", model, processor)
    weights = load_file(tmp_path / "model.safetensors")
    weights["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    weights["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, _ = models.load(str(tmp_path))
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
