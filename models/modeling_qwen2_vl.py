"""Qwen2-VL: images of any size, resized to whole cells of 28 x 28 pixels; 2 x 2 patches are merged into a cell.

Hooks (attached by the code named; `N` is a layer, from 0):

- recording and all interventions: `models.attention.attention`, registered with
  transformers as the attention function "sightline", is called in place of SDPA by
  model.language_model.layers.N.self_attn (Qwen2VLAttention).
- sinks of VAR, finder of sink dimensions: a forward pre-hook on model.language_model.layers.N
  (`models.attention.residual_stream`).
- vision encoder, recorded for through-tower maps: the same function, called by
  model.visual.blocks.N.attn (VisionAttention).

`models.vlm.VisionLanguageModel` overrides `generate` and `is_custom_code` of the stock class.
`QwenGrid` is shared by the Qwen families.

Defined here: `image_token`, `image_grid`, `limit_pixels`, `input_grids`, `image_mask`, `encoder_layers`,
`encoder_image`.
"""

from __future__ import annotations

import torch
import transformers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from data.errors import InputError
from data.geometry import ImageGrid
from models.processors import Qwen2VLImageTextProcessor
from models.vision_encoder import EncoderImage
from models.vlm import VisionLanguageModel, check_template


class QwenGrid(VisionLanguageModel):
    """Placeholder and grid (no crop, no padding) of the Qwen families."""

    image_token = "<|image_pad|>"

    def image_grid(self, processor, width: int, height: int) -> ImageGrid:
        settings, vision = processor.image_processor, self.config.vision_config
        made, read = (settings.patch_size, settings.merge_size), (vision.patch_size, vision.spatial_merge_size)
        if made != read:
            raise ValueError(
                f"the processor makes patches of {made[0]} pixels, to be merged {made[1]} x {made[1]}, but the model "
                f"reads patches of {read[0]} pixels and merges {read[1]} x {read[1]}: they do not belong together"
            )
        cell = settings.patch_size * settings.merge_size
        resized_height, resized_width = height, width
        if settings.do_resize:
            resized_height, resized_width = smart_resize(
                height, width, cell, settings.size["shortest_edge"], settings.size["longest_edge"]
            )
        return ImageGrid(
            rows=resized_height // cell,
            cols=resized_width // cell,
            width=width,
            height=height,
            cell=cell,
            resized=(resized_width, resized_height),
        )

    @classmethod
    def limit_pixels(cls, processor, smallest: int | None, largest: int | None) -> dict[str, int]:
        settings = processor.image_processor
        own = settings.size["shortest_edge"], settings.size["longest_edge"]  # numbers of pixels, despite their names
        low, high = (limit if given is None else given for given, limit in zip((smallest, largest), own, strict=True))
        cell = (settings.patch_size * settings.merge_size) ** 2
        if not cell <= high or not 0 < low <= high:
            raise InputError(
                "pixel-limits",
                f"images cannot be resized to between {low:,} and {high:,} pixels; give --min-pixels of at least 1, "
                f"and --max-pixels of at least that and of one cell ({cell} pixels)",
            )
        settings.size = {"shortest_edge": low, "longest_edge": high}
        return {"least": low, "most": high}

    def input_grids(self, inputs) -> list[tuple[int, int]]:
        merge, patches = self.config.vision_config.spatial_merge_size, inputs.get("image_grid_thw")
        return [] if patches is None else [(h // merge, w // merge) for _, h, w in patches.tolist()]

    def image_mask(self, ids: torch.Tensor) -> torch.Tensor:
        # override: a token before and one behind each image.
        frame = self.config.vision_start_token_id, self.config.vision_end_token_id
        return super().image_mask(ids) | (ids == frame[0]) | (ids == frame[1])

    def encoder_layers(self) -> range:
        """Layers of the vision encoder that the decoder's features pass through: all."""
        return range(self.config.vision_config.depth)

    def encoder_image(self, grid: ImageGrid) -> EncoderImage:
        """Layout with the merged patches of a cell contiguous, cells in raster order."""
        merged = self.config.vision_config.spatial_merge_size**2
        cells = torch.arange(grid.rows * grid.cols * merged).view(grid.rows, grid.cols, merged)
        return EncoderImage(cells.numel(), cells)


class Qwen2VLForConditionalGeneration(QwenGrid, transformers.Qwen2VLForConditionalGeneration):
    """The stock model with the mixin. The name is unchanged, since the mapping of checkpoint keys depends on it."""


def load_processor(path: str, config, kind: type = Qwen2VLImageTextProcessor, **kwargs):
    """The processor of a checkpoint, of the family's class `kind`."""
    processor = kind.from_pretrained(path, **kwargs)
    check_template(processor)
    processor.tokenizer.padding_side = "left"
    return processor
