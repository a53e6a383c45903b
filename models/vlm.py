"""What the patched models share: loading under our class, preparing a prompt, and knowing where everything is."""

from __future__ import annotations

from PIL import Image

from models.attention import LISTENERS
from models.layout import ImageGrid, TokenLayout, locate

ASPECT_LIMIT = 200  # of an image; beyond it a resize by the shortest edge makes gigabytes out of a few pixels


class VisionLanguageModel:
    """Mixed into a family's own class. A family adds `image_token` and `image_grid`."""

    image_token = "<image>"

    @classmethod
    def is_custom_code(cls) -> bool:
        # override: a subclass outside transformers would otherwise skip the renaming of checkpoint keys and silently
        # keep random weights under the names that changed.
        return False

    def image_grid(self, processor, width: int, height: int) -> ImageGrid:
        """The grid of a picture of width x height original pixels after this family's processor."""
        raise TypeError(f"{type(self).__name__} does not define its image grid")

    def generate(self, *args, num_beams: int | None = None, **kwargs):
        # override: beams reorder the cache after the queries were recorded, so a trace would mix hypotheses.
        beams = num_beams or getattr(kwargs.get("generation_config"), "num_beams", None)
        beams = beams or self.generation_config.num_beams or 1
        if beams > 1 and any(hasattr(module, LISTENERS) for module in self.modules()):
            raise ValueError(f"num_beams={beams} cannot be recorded; use num_beams=1 (greedy or sampling)")
        return super().generate(*args, **({} if num_beams is None else {"num_beams": num_beams}), **kwargs)

    def prepare(self, processor, images, prompt):
        """Model inputs and the token layout for one prompt, or for a batch of prompts.

        One sample: `images` is a list of RGB pictures (PIL) and `prompt` a string; returns (inputs, TokenLayout).
        A batch: `images` is a list of such lists and `prompt` a list of strings; returns (inputs, [TokenLayout, ...]),
        padded on the left. The family's chat template is applied. Inputs lie on the model's device.
        Raises ValueError for an empty prompt, an image that is not RGB, or more than 200 times longer than wide.
        """
        single = isinstance(prompt, str)
        prompts, pictures = ([prompt], [images]) if single else (list(prompt), list(images))
        if len(prompts) != len(pictures):
            raise ValueError(f"{len(prompts)} prompts but {len(pictures)} lists of images; give one list per prompt")
        for text, batch in zip(prompts, pictures, strict=True):
            check_prompt(text, self.image_token)
            check_images(batch)
        texts = [self._render(processor, t, len(p)) for t, p in zip(prompts, pictures, strict=True)]
        inputs = self._encode(processor, texts, pictures).to(self.device)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        layouts = [
            self._layout(processor, inputs, sample, texts[sample], prompts[sample], pictures[sample])
            for sample in range(len(prompts))
        ]
        return inputs, layouts[0] if single else layouts

    def _render(self, processor, prompt: str, images: int) -> str:
        content = [{"type": "image"}] * images + [{"type": "text", "text": prompt.strip()}]
        return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def _encode(self, processor, texts: list[str], pictures: list[list[Image.Image]]):
        flat = [picture for batch in pictures for picture in batch]
        return processor(images=flat or None, text=texts, return_tensors="pt", padding=True, padding_side="left")

    def _offsets(self, processor, text: str, ids: list[int], grids) -> list[tuple[int, int]]:
        cells = [grid.rows * grid.cols for grid in grids]
        return locate(text, ids, processor.tokenizer, self.image_token, cells)

    def _layout(self, processor, inputs, sample, text, prompt, pictures) -> TokenLayout:
        ids, mask = inputs["input_ids"][sample].cpu(), inputs["attention_mask"][sample].cpu()
        grids = tuple(self.image_grid(processor, *picture.size) for picture in pictures)
        start = int(mask.int().argmax())
        cells = [grid.rows * grid.cols for grid in grids]
        offsets = self._offsets(processor, text, ids[start:].tolist(), grids)
        positions = (ids == self.config.image_token_id).nonzero().flatten()
        return TokenLayout(
            sample=sample,
            start=start,
            length=len(ids),
            text=text,
            prompt=prompt.strip(),
            offsets=((0, 0),) * start + tuple(offsets),
            images=positions.split(cells) if cells else (),
            grids=grids,
        )


def check_prompt(prompt: str, image_token: str) -> None:
    if not prompt.strip():
        raise ValueError("the prompt is empty; write a question or an instruction")
    if image_token in prompt:
        raise ValueError(f"the prompt holds the image placeholder {image_token!r}; images are added by themselves")


def check_images(images: list[Image.Image]) -> None:
    for index, image in enumerate(images):
        if not isinstance(image, Image.Image) or image.mode != "RGB":
            found = f"mode {image.mode}" if isinstance(image, Image.Image) else type(image).__name__
            raise ValueError(f"image {index} is {found}, not an RGB picture; read it with data.images.read_image")
        short, long = sorted(image.size)
        if long > ASPECT_LIMIT * short:
            raise ValueError(
                f"image {index} is {image.size[0]} x {image.size[1]} pixels; one side is more than {ASPECT_LIMIT} "
                "times the other, which no model here was trained on: crop it first"
            )
