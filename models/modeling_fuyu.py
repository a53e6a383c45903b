"""Fuyu: 30 x 30 pixel patches enter the decoder row by row, a newline token after each row; no vision encoder.

Hooks (attached by the code named; `N` is a layer, from 0):

- recording and all interventions: `models.attention.attention`, registered with
  transformers as the attention function "sightline", is called in place of SDPA by
  model.language_model.layers.N.self_attn (PersimmonAttention).
- sinks of VAR, finder of sink dimensions: a forward pre-hook on model.language_model.layers.N
  (`models.attention.residual_stream`).
- vision encoder: none.

`models.vlm.VisionLanguageModel` overrides `generate` and `is_custom_code` of the stock class.

Defined here: `image_token`, `control_tokens`, `image_grid`, `input_grids`, `image_mask`, and, without a chat template
and with samples encoded one by one, `_render`, `_encode`, `_offsets`.
"""

from __future__ import annotations

import math

import torch
import transformers
from transformers import BatchFeature, FuyuProcessor

from data.errors import SampleError
from data.geometry import ImageGrid
from models.processors import load_fuyu_processor
from models.vlm import Rendered, VisionLanguageModel, in_words, marked_order

BEGIN, BEGIN_OF_ANSWER = "<s>", "<0x04>"


class FuyuForCausalLM(VisionLanguageModel, transformers.FuyuForCausalLM):
    """The stock model with the mixin. The name is unchanged, since the mapping of checkpoint keys depends on it.

    One image per prompt, as in its training. The sequence is: rows of patches with their newlines, <s>, the prompt,
    begin of answer. It has no chat template: a line break follows the prompt, and image markers become words.
    """

    image_token = "|SPEAKER|"
    # The processor's names for boxes and points, and the vocabulary's entries for them and for the end of a row.
    control_tokens = (
        "|NEWLINE|", "<box>", "</box>", "<point>", "</point>", "<0x00>", "<0x01>", "<0x02>", "<0x03>", BEGIN_OF_ANSWER,
    )  # fmt: skip

    def image_grid(self, processor, width: int, height: int) -> ImageGrid:
        """Grid of the image at the top left, shrunk only above the size limit; the last cells may extend past it."""
        settings = processor.image_processor
        limit, patch = settings.size, self.config.patch_size
        made = (settings.patch_size["width"], settings.patch_size["height"])
        if made != (patch, patch):
            raise ValueError(
                f"the processor makes patches of {made[0]} x {made[1]} pixels, but the model reads {patch} x {patch}: "
                "they do not belong together"
            )
        resized = (width, height)
        if settings.do_resize and (width > limit["width"] or height > limit["height"]):
            scale = min(limit["height"] / height, limit["width"] / width)
            resized = (int(width * scale), int(height * scale))
        if min(resized) < 1:
            raise SampleError(
                "image too elongated",
                f"an image of {width} x {height} pixels vanishes when shrunk to the limit of {limit['width']} x "
                f"{limit['height']}; crop it first",
            )
        return ImageGrid(
            rows=math.ceil(resized[1] / patch),
            cols=math.ceil(resized[0] / patch),
            width=width,
            height=height,
            cell=patch,
            resized=resized,
        )

    def input_grids(self, inputs) -> list[tuple[int, int]]:
        """Grids from the prompts: one newline token separates two rows of patches."""
        grids = []
        for sample, ids in enumerate(inputs["input_ids"]):
            positions = (ids == self.config.image_token_id).nonzero().flatten()
            rows = int((positions.diff() > 1).sum()) + 1
            cols = len(positions) // rows
            expected = torch.arange(rows)[:, None] * (cols + 1) + torch.arange(cols)
            if (positions - positions[:1]).tolist() != expected.flatten().tolist():
                raise ValueError(f"the image tokens of sample {sample} are not rows of equal length of one image")
            grids += [(rows, cols)] * (cols > 0)
        return grids

    def image_mask(self, ids: torch.Tensor) -> torch.Tensor:
        # override: a newline token behind each row of patches; the config does not name it.
        image = super().image_mask(ids)
        return image | image.roll(1, 1)

    def _render(self, processor, prompt: str, images: int, system: str | None = None) -> Rendered:
        if system is not None:
            raise ValueError("Fuyu has no chat template and so no system prompt; put its text into the prompts instead")
        if images != 1:
            raise SampleError("number of images", f"Fuyu takes exactly one image per prompt, but {images} were given")
        marked_order(prompt, images)  # raises for a marker that names another image
        prompt = in_words(prompt)
        return Rendered(prompt + "\n", prompt, 0, [0])

    def _encode(self, processor: FuyuProcessor, texts, images) -> BatchFeature:
        # One sample at a time: the processor returns a single-cell image without its patch axis, and a batch would lose
        # it. The patches of all samples are then joined in one list, as the model expects.
        for batch in images:
            self.image_grid(processor, *batch[0].size)  # raises where the processor would fail
        samples = [
            processor(images=batch[0], text=text, return_tensors="pt", return_legacy_image_output=False)
            for text, batch in zip(texts, images, strict=True)
        ]
        padded = processor.tokenizer.pad(
            {name: [sample[name][0] for sample in samples] for name in ("input_ids", "attention_mask")},
            padding_side="left",
            return_tensors="pt",
        )
        width = self.config.patch_size**2 * self.config.num_channels
        patches = [sample["pixel_values"].reshape(-1, width) for sample in samples]
        return BatchFeature({**padded, "pixel_values": torch.cat(patches)})

    def _offsets(self, processor, text: str, ids: list[int], grids) -> list[tuple[int, int]]:
        tokenizer = processor.tokenizer
        encoded = tokenizer(text + BEGIN_OF_ANSWER, add_special_tokens=False, return_offsets_mapping=True)
        image = [tokenizer.convert_tokens_to_ids(self.image_token)] * grids[0].cols
        rows = (image + [tokenizer.convert_tokens_to_ids("|NEWLINE|")]) * grids[0].rows
        before = [*rows, tokenizer.convert_tokens_to_ids(BEGIN)]
        if before + encoded["input_ids"] != ids:
            raise ValueError(
                f"the processor made {len(ids)} tokens and {grids[0].rows} rows of {grids[0].cols} patches with the "
                f"prompt account for {len(before) + len(encoded['input_ids'])}: processor and tokenizer do not belong "
                "together, or the image was not resized as expected"
            )
        spans = [(min(a, len(text)), min(b, len(text))) for a, b in encoded["offset_mapping"]]
        # A blank that the tokenizer inserts before the text is mapped to the first word's first character.
        blank = tokenizer.convert_tokens_to_ids("\u2581")
        spans = [(0, 0) if token == blank else span for token, span in zip(encoded["input_ids"], spans, strict=True)]
        return [(0, 0)] * len(before) + spans


def load_processor(path: str, config, **kwargs) -> FuyuProcessor:
    return load_fuyu_processor(path, **kwargs)
