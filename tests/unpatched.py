"""Checkpoint folders of families that have no file here: real stock classes, small and random, nothing downloaded."""

import json

import torch
import transformers
from transformers import (
    GotOcr2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    LlavaNextImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
    Qwen2VLImageProcessorPil,
)

from models.unpatched import image_text
from tests.families import QWEN_SPECIALS, QWEN_TEMPLATE, QWEN_TEXT, word_level
from tests.models import IDS, TEMPLATE, TEXT, VISION, WORDS, sharpen, word_tokenizer

DEPTH = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
CLIP = VISION | {"num_attention_heads": 4, "image_size": 56, "patch_size": 14}
SIGLIP = CLIP | {"model_type": "siglip_vision_model"}
PINPOINTS = [[56, 112], [112, 56], [112, 112]]
IDEFICS_SPECIALS = [
    "<pad>", "<s>", "</s>", "<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>",
    *(f"<row_{row}_col_{col}>" for row in range(1, 5) for col in range(1, 5)),
]  # fmt: skip
INTERN_SPECIALS = ["<pad>", "<s>", "</s>", "<IMG_CONTEXT>", "<img>", "</img>", "<video>"]
INTERN_TOKENS = {
    "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}  # fmt: skip
MARKS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def text_config(kind="llama", specials=5, **changes):
    return TEXT | DEPTH | IDS | {"model_type": kind, "vocab_size": specials + len(WORDS)} | changes


def llava_next(text=None):
    config = transformers.LlavaNextConfig(
        vision_config=CLIP, text_config=text or text_config(), image_token_index=4, image_grid_pinpoints=PINPOINTS
    )
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=PINPOINTS
    )
    options = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = transformers.LlavaNextProcessor(images, word_tokenizer(), chat_template=TEMPLATE, **options)
    return transformers.LlavaNextForConditionalGeneration(config), processor


def llava_onevision():
    config = transformers.LlavaOnevisionConfig(
        vision_config=SIGLIP | {"vision_use_head": False}, text_config=text_config("qwen2"), image_token_index=4,
        video_token_index=3, image_grid_pinpoints=PINPOINTS,
    )  # fmt: skip
    images = LlavaOnevisionImageProcessorPil(size={"height": 56, "width": 56}, image_grid_pinpoints=PINPOINTS)
    kind = image_text(transformers.LlavaOnevisionProcessor)
    options = {"num_image_tokens": 16, "vision_feature_select_strategy": "full"}
    processor = kind(images, word_tokenizer(), chat_template=TEMPLATE, **options)
    return transformers.LlavaOnevisionForConditionalGeneration(config), processor


def qwen3_vl():
    names = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    tokens = {f"{name}_token_id": QWEN_SPECIALS.index(f"<|{token}|>") for name, token in names.items()}
    text = QWEN_TEXT | {
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": len(QWEN_SPECIALS) + 1 + len(WORDS),
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 2, 2]},
        "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **tokens)
    images = Qwen2VLImageProcessorPil(patch_size=16, size={"shortest_edge": 4 * 32**2, "longest_edge": 16 * 32**2})
    tokenizer = word_level(QWEN_SPECIALS, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    processor = image_text(transformers.Qwen3VLProcessor)(images, tokenizer, chat_template=QWEN_TEMPLATE)
    return transformers.Qwen3VLForConditionalGeneration(config), processor


def idefics3():
    """Cuts a picture into tiles, each with a tag before it and line breaks behind each row of them."""
    tokenizer = word_level(IDEFICS_SPECIALS, **MARKS)
    config = transformers.Idefics3Config(
        vision_config={key: CLIP[key] for key in CLIP if key != "model_type"},
        text_config=text_config(specials=len(IDEFICS_SPECIALS) + 1), image_token_id=3, scale_factor=2,
    )  # fmt: skip
    images = Idefics3ImageProcessorPil(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    processor = transformers.Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=TEMPLATE)
    return transformers.Idefics3ForConditionalGeneration(config), processor


def internvl():
    tokenizer = word_level(INTERN_SPECIALS, extra_special_tokens=INTERN_TOKENS, **MARKS)
    config = transformers.InternVLConfig(
        vision_config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                       "image_size": [56, 56], "patch_size": [14, 14]},
        text_config=text_config("qwen2", len(INTERN_SPECIALS) + 1), image_token_id=3, downsample_ratio=0.5,
    )  # fmt: skip
    images = GotOcr2ImageProcessorPil(size={"height": 56, "width": 56}, max_patches=4)
    kind = image_text(transformers.InternVLProcessor)
    template = TEMPLATE.replace("<image>", "<IMG_CONTEXT>")
    processor = kind(images, tokenizer, image_seq_length=4, chat_template=template)
    return transformers.InternVLForConditionalGeneration(config), processor


def mllama():
    """Looks at its image in a layer of cross-attention."""
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_global_layers": 1, "image_size": 56,
        "attention_heads": 4, "patch_size": 14, "vision_output_dim": 64, "intermediate_layers_indices": [0],
        "max_num_tiles": 4,
    }  # fmt: skip
    text = text_config("mllama_text_model", cross_attention_layers=[1])
    config = transformers.MllamaConfig(vision_config=vision, text_config=text, image_token_index=4)
    specials = ["<pad>", "<s>", "</s>", "<|python_tag|>", "<|image|>"]
    tokenizer = word_level(specials, **MARKS)
    images = transformers.MllamaImageProcessorPil(size={"height": 56, "width": 56}, max_image_tiles=4)
    template = TEMPLATE.replace("<image>", "<|image|>")
    processor = transformers.MllamaProcessor(images, tokenizer, chat_template=template)
    return transformers.MllamaForConditionalGeneration(config), processor


def paligemma():
    """Its processor writes into the prompt, and the prompt is read in both directions."""
    images = transformers.SiglipImageProcessorPil(size={"height": 56, "width": 56})
    images.image_seq_length = 16
    tokenizer = word_tokenizer()
    processor = transformers.PaliGemmaProcessor(images, tokenizer, chat_template=TEMPLATE)
    config = transformers.PaliGemmaConfig(
        vision_config=SIGLIP | {"vision_use_head": False, "projection_dim": 64}, projection_dim=64,
        text_config=text_config("gemma", head_dim=16, vocab_size=len(tokenizer)), image_token_index=4,
    )  # fmt: skip
    return transformers.PaliGemmaForConditionalGeneration(config), processor


UNPATCHED = {each.__name__: each for each in (llava_next, llava_onevision, qwen3_vl, idefics3, internvl)}


def save(folder, make, **options):
    """Writes the checkpoint that the stock class and, with torchvision, the stock processor would write."""
    torch.manual_seed(0)
    model, processor = make(**options)
    sharpen(model.eval()).save_pretrained(folder)
    processor.save_pretrained(folder)
    stock = getattr(transformers, type(processor).__name__)
    if "video_processor" in stock.get_attributes():
        path = folder / "processor_config.json"
        settings = json.loads(path.read_text())
        settings["video_processor"] = {"video_processor_type": "Qwen2VLVideoProcessor", "do_resize": True}
        path.write_text(json.dumps(settings))
    return model
