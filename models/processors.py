"""Processors that work without torchvision and read and write the folders of the stock processors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from transformers import FuyuProcessor, ProcessorMixin, Qwen2_5_VLProcessor, Qwen2VLProcessor, Qwen3VLProcessor
from transformers.models.fuyu.image_processing_pil_fuyu import FuyuImageProcessorPil


class WithoutVideo:
    """Mixin for a stock processor of images, text and videos that leaves out videos, which need torchvision."""

    @classmethod
    def stock_attributes(cls) -> list[str]:
        """Names of the sub-processors in the order of the stock constructor."""
        return super().get_attributes()

    @classmethod
    def get_attributes(cls):
        # override: transformers builds, loads and saves the sub-processors that are listed here.
        return [name for name in cls.stock_attributes() if name != "video_processor"]

    @classmethod
    def from_args_and_dict(cls, args, processor_dict, **kwargs):
        # override: skip the video section of a folder; some constructors require the argument, as None. The others are
        # passed by name, since the video processor is not the last argument everywhere.
        named = dict(zip(cls.get_attributes(), args, strict=False))
        settings = {name: value for name, value in processor_dict.items() if name not in named}
        return super().from_args_and_dict((), settings | {"video_processor": None}, **named, **kwargs)


class WithoutVideoArgument(ProcessorMixin):
    """Base to follow a stock processor and WithoutVideo: drops the video processor that the stock constructor passes on
    to ProcessorMixin, by name or by position."""

    def __init__(self, *args, **kwargs):
        named = dict(zip(self.stock_attributes(), args, strict=False)) | kwargs
        named.pop("video_processor", None)
        super().__init__(**named)


class _ImageText(WithoutVideo):
    """A Qwen processor for images and text that writes folders readable by the stock processor."""

    video_type = "Qwen2VLVideoProcessor"
    own = {"image_processor_type"}
    """Settings of the image processor that the video processor does not share."""

    def save_pretrained(self, save_directory, **kwargs):
        # override: with torchvision the stock class requires a video section in a folder, so one is written.
        saved = super().save_pretrained(save_directory, **kwargs)
        path = Path(save_directory) / "processor_config.json"
        settings = json.loads(path.read_text())
        video = {name: value for name, value in settings["image_processor"].items() if name not in self.own}
        settings["video_processor"] = video | {"video_processor_type": self.video_type}
        settings["processor_class"] = type(self).stock_name
        path.write_text(json.dumps(settings, indent=2) + "\n")
        return saved


class Qwen2VLImageTextProcessor(_ImageText, Qwen2VLProcessor):
    stock_name = "Qwen2VLProcessor"


class Qwen2_5_VLImageTextProcessor(_ImageText, Qwen2_5_VLProcessor):
    stock_name = "Qwen2_5_VLProcessor"


class Qwen3VLImageTextProcessor(_ImageText, Qwen3VLProcessor):
    stock_name = "Qwen3VLProcessor"
    video_type = "Qwen3VLVideoProcessor"
    own = {"image_processor_type", "size"}  # limits the pixels of an image, but of a whole video in the video processor


class FuyuPilImageProcessor(FuyuImageProcessorPil):
    """Fuyu's PIL image processor, able to cut patches from a tensor, as its processor requires."""

    def patchify_image(self, image, patch_size=None):
        if torch.is_tensor(image):
            patches = super().patchify_image(image.numpy(), patch_size=patch_size)
            return torch.from_numpy(np.ascontiguousarray(patches))
        return super().patchify_image(image, patch_size=patch_size)

    def to_dict(self):
        # override: saved under the stock name, so that other installations load the folder.
        return super().to_dict() | {"image_processor_type": "FuyuImageProcessor"}


def load_fuyu_processor(path: str, **kwargs) -> FuyuProcessor:
    """The stock Fuyu processor with the PIL image processor."""
    processor = FuyuProcessor.from_pretrained(path, **kwargs)
    settings = processor.image_processor.to_dict()
    processor.image_processor = FuyuPilImageProcessor(
        **{name: value for name, value in settings.items() if not name.endswith(("_type", "_class"))}
    )
    return processor
