"""LLaVA-1.5: image grid and positions of image tokens.

Hooks (attached by the code named; `N` is a layer, from 0):

- recording and all interventions: `models.attention.attention`, registered with
  transformers as the attention function "sightline", is called in place of SDPA by
  model.language_model.layers.N.self_attn (LlamaAttention).
- sinks of VAR, finder of sink dimensions: a forward pre-hook on model.language_model.layers.N
  (`models.attention.residual_stream`).
- vision encoder, recorded for through-tower maps: the same function, called by
  model.vision_tower.encoder.layers.N.self_attn (CLIPAttention).

`models.vlm.VisionLanguageModel` overrides `generate` and `is_custom_code` of the stock class.

Defined here: `image_grid`, `input_grids`, `encoder_layers`, `encoder_image`.
"""

from __future__ import annotations

import torch
import transformers
from transformers import LlavaProcessor

from data.geometry import ImageGrid
from models.vision_encoder import EncoderImage
from models.vlm import VisionLanguageModel, check_template


class LlavaForConditionalGeneration(VisionLanguageModel, transformers.LlavaForConditionalGeneration):
    """The stock model with the mixin. The name is unchanged, since the mapping of checkpoint keys depends on it."""

    def image_grid(self, processor, width: int, height: int) -> ImageGrid:
        """Pad to a square (only if the processor does), resize, centre crop; see `resized_size`."""
        settings = processor.image_processor
        patch = self.config.vision_config.patch_size
        left, top, padded_width, padded_height = 0, 0, width, height
        if type(settings).__name__.startswith("LlavaImageProcessor") and settings.do_pad:
            padded_width = padded_height = max(width, height)
            left, top = (padded_width - width) // 2, (padded_height - height) // 2
        window = resized_size(settings, padded_width, padded_height)
        # Share of the image in the resized square; fractions of a pixel change a cell's rectangle by no more than
        # the rounding to whole resized pixels.
        resized = (window[0] * width / padded_width, window[1] * height / padded_height)
        offset = (-left * window[0] / padded_width, -top * window[1] / padded_height)
        cropped = window
        if settings.do_center_crop:
            cropped = (settings.crop_size["width"], settings.crop_size["height"])
            offset = (offset[0] + (window[0] - cropped[0]) // 2, offset[1] + (window[1] - cropped[1]) // 2)
        return ImageGrid(
            rows=cropped[1] // patch,
            cols=cropped[0] // patch,
            width=width,
            height=height,
            cell=patch,
            resized=resized,
            offset=offset,
        )

    def input_grids(self, inputs) -> list[tuple[int, int]]:
        patch, pixels = self.config.vision_config.patch_size, inputs.get("pixel_values")
        return [] if pixels is None else [(pixels.shape[-2] // patch, pixels.shape[-1] // patch)] * len(pixels)

    def encoder_layers(self) -> range:
        """Layers of the vision encoder that the decoder's features pass through.

        hidden_states[0] is the embedding, so hidden_states[k] is the output of layer k - 1: -2 of 24 layers reads the
        output of layers 0 to 22.
        """
        read = self.config.vision_feature_layer
        states = self.config.vision_config.num_hidden_layers + 1
        return range(max(k % states for k in ([read] if isinstance(read, int) else read)))

    def encoder_image(self, grid: ImageGrid) -> EncoderImage:
        """One patch per cell, in raster order, after the class token if the strategy drops it."""
        dropped = int(self.config.vision_feature_select_strategy == "default")
        cells = dropped + torch.arange(grid.rows * grid.cols).view(grid.rows, grid.cols, 1)
        return EncoderImage(dropped + cells.numel(), cells)


def resized_size(settings, width: int, height: int) -> tuple[int, int]:
    """Width and height after the CLIP processor's resize: a fixed size, or the shortest edge with the other truncated.

    Raises ValueError for a size setting of another kind.
    """
    size = settings.size
    if not settings.do_resize:
        return width, height
    if size.get("height") and size.get("width"):
        return size["width"], size["height"]
    if size.get("shortest_edge") and not size.get("longest_edge"):
        edge = size["shortest_edge"]
        return (edge, int(edge * height / width)) if width <= height else (int(edge * width / height), edge)
    raise ValueError(f"the image processor resizes by {dict(size)}; known are shortest_edge, or height and width")


def load_processor(path: str, config, **kwargs) -> LlavaProcessor:
    """The processor of a checkpoint; settings missing in folders of older releases come from the model's config."""
    processor = LlavaProcessor.from_pretrained(path, **kwargs)
    check_template(processor)
    if processor.patch_size is None:
        processor.patch_size = config.vision_config.patch_size
    if config.vision_config.model_type == "clip_vision_model":
        processor.num_additional_image_tokens = 1  # the class token
    if processor.vision_feature_select_strategy is None:
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy
    check_crop(processor.image_processor, config.vision_config)
    processor.tokenizer.padding_side = "left"
    return processor


def check_crop(settings, vision) -> None:
    """Raise ValueError for a centre crop of another size than CLIP's input."""
    crop = (settings.crop_size["width"], settings.crop_size["height"]) if settings.do_center_crop else None
    if vision.model_type == "clip_vision_model" and crop not in (None, (vision.image_size, vision.image_size)):
        raise ValueError(
            f"it makes {crop[0]} x {crop[1]} pixels of an image and the vision encoder takes {vision.image_size} x "
            f"{vision.image_size}: processor and model do not belong together"
        )
