"""Processors that work without torchvision, and still read and write the folders of those that have it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from transformers import FuyuProcessor, Qwen2_5_VLProcessor, Qwen2VLProcessor
from transformers.models.fuyu.image_processing_pil_fuyu import FuyuImageProcessorPil
from transformers.processing_utils import ProcessorMixin


class _ImageText:
    """A Qwen processor for images and text. The stock one also needs a video processor, which needs torchvision.

    transformers reads the sub-processors off the signature of __init__, so leaving `video_processor` out of it is
    what leaves it out of loading and saving.
    """

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    def save_pretrained(self, save_directory, **kwargs):
        # override: with torchvision the stock class refuses a folder without a video section, so one is written.
        saved = super().save_pretrained(save_directory, **kwargs)
        path = Path(save_directory) / "processor_config.json"
        settings = json.loads(path.read_text())
        video = {name: value for name, value in settings["image_processor"].items() if name != "image_processor_type"}
        settings["video_processor"] = video | {"video_processor_type": "Qwen2VLVideoProcessor"}
        settings["processor_class"] = type(self).stock_name
        path.write_text(json.dumps(settings, indent=2) + "\n")
        return saved


class Qwen2VLImageTextProcessor(_ImageText, Qwen2VLProcessor):
    stock_name = "Qwen2VLProcessor"


class Qwen2_5_VLImageTextProcessor(_ImageText, Qwen2_5_VLProcessor):
    stock_name = "Qwen2_5_VLProcessor"


class FuyuPilImageProcessor(FuyuImageProcessorPil):
    """Fuyu's PIL image processor, whose patches can be cut from a tensor, which is what its processor hands over."""

    def patchify_image(self, image, patch_size=None):
        if torch.is_tensor(image):
            patches = super().patchify_image(image.numpy(), patch_size=patch_size)
            return torch.from_numpy(np.ascontiguousarray(patches))
        return super().patchify_image(image, patch_size=patch_size)

    def to_dict(self):
        # override: saved under the stock name, so that other installations load the folder.
        return super().to_dict() | {"image_processor_type": "FuyuImageProcessor"}


def load_fuyu_processor(path: str, **kwargs) -> FuyuProcessor:
    """The stock Fuyu processor with our image processor in it."""
    processor = FuyuProcessor.from_pretrained(path, **kwargs)
    settings = processor.image_processor.to_dict()
    processor.image_processor = FuyuPilImageProcessor(
        **{name: value for name, value in settings.items() if not name.endswith(("_type", "_class"))}
    )
    return processor
