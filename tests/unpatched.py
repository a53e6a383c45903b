"""Checkpoint folders of unpatched families: small random models of the stock classes; no download."""

import json

import torch
import transformers
from transformers import (
    GotOcr2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    LlavaNextImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
    PaddleOCRVLImageProcessorPil,
)

from models.unpatched import image_text
from tests.families import word_level
from tests.models import IDS, TEMPLATE, TEXT, VISION, WORDS, sharpen, word_tokenizer

DEPTH = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
CLIP = VISION | {"num_attention_heads": 4, "image_size": 56, "patch_size": 14}
SIGLIP = CLIP | {"model_type": "siglip_vision_model"}
PINPOINTS = [[56, 112], [112, 56], [112, 112]]
IDEFICS_SPECIALS = [
    "<pad>", "<s>", "</s>", "<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>",
    *(f"<row_{row}_col_{col}>" for row in range(1, 5) for col in range(1, 5)),
]  # fmt: skip
PADDLE_SPECIALS = ["<pad>", "<s>", "</s>", "<|image|>", "<|image_start|>", "<|image_end|>", "<|video|>"]
PADDLE_TOKENS = {"image_token": "<|image|>", "start_token": "<|image_start|>", "end_token": "<|image_end|>"}
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


def paddleocr_vl():
    """PaddleOCR-VL, with positions of image tokens on three axes, computed from the processor's output."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
    config = transformers.PaddleOCRVLConfig(
        text_config=text_config("paddleocr_vl_text", len(PADDLE_SPECIALS) + 1, head_dim=16, rope_parameters=rope),
        vision_config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                       "image_size": 56, "patch_size": 14},
        image_token_id=3, vision_start_token_id=4, vision_end_token_id=5, video_token_id=6, tie_word_embeddings=False,
    )  # fmt: skip
    tokenizer = word_level(PADDLE_SPECIALS, extra_special_tokens=PADDLE_TOKENS, **MARKS)
    images = PaddleOCRVLImageProcessorPil(size={"shortest_edge": 4 * 28**2, "longest_edge": 32 * 28**2})
    template = TEMPLATE.replace("<image>", "".join(PADDLE_SPECIALS[i] for i in (4, 3, 5)))
    processor = transformers.PaddleOCRVLProcessor(images, tokenizer, chat_template=template)
    return transformers.PaddleOCRVLForConditionalGeneration(config), processor


def idefics3():
    """Idefics3, which splits an image into tiles, with a tag before each tile and a line break after each row."""
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
    """Mllama, which attends to the image by cross-attention."""
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
    """PaliGemma, whose processor adds text to the prompt and whose attention over the prompt is bidirectional."""
    images = transformers.SiglipImageProcessorPil(size={"height": 56, "width": 56})
    images.image_seq_length = 16
    tokenizer = word_tokenizer()
    processor = transformers.PaliGemmaProcessor(images, tokenizer, chat_template=TEMPLATE)
    config = transformers.PaliGemmaConfig(
        vision_config=SIGLIP | {"vision_use_head": False, "projection_dim": 64}, projection_dim=64,
        text_config=text_config("gemma", head_dim=16, vocab_size=len(tokenizer)), image_token_index=4,
    )  # fmt: skip
    return transformers.PaliGemmaForConditionalGeneration(config), processor


UNPATCHED = {build.__name__: build for build in (llava_next, llava_onevision, paddleocr_vl, idefics3, internvl)}


def save(folder, make, **options):
    """Write the checkpoint of the stock class and, as with torchvision, of the stock processor."""
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
