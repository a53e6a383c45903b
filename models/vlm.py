"""Shared part of the patched models: generation with interventions, prompt checks, inputs and token layouts.

A prompt with a control token raises SampleError, since the model would not read that token as text.

Image markers in a prompt: `<image 1>` is the first image of its sample, `<image 2>` the second. Markers that name every
image exactly once, in any order, are replaced by the images where the chat template can interleave images and text.
Otherwise the images precede the prompt in the given order, and each marker becomes the words "image 1".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from inspect import signature
from typing import NamedTuple

import torch
from jinja2 import TemplateError
from PIL import Image
from transformers import LogitsProcessor, LogitsProcessorList

from data.errors import InputError, SampleError
from data.geometry import ImageGrid
from models import PATCHED
from models.attention import LISTENERS, attention_stack, call_unattached, is_attached, not_finite
from models.contrast import WithoutImages
from models.gaze import Gaze, GazeMask
from models.generation_settings import FiniteScores, check_recordable
from models.interventions import DeferredEdit, LayerEdit, PromptBatch, apply_edits
from models.layout import TokenLayout, locate

ASPECT_LIMIT = 200  # longest side / shortest; above it, a resize by the shortest edge takes gigabytes
MARK = "\ue000"  # from Unicode's private use area


class Rendered(NamedTuple):
    """A prompt under the chat template: `prompt` is `text[start:start + len(prompt)]` with blanks over the template's
    insertions; `order` lists the images, by index, in the order of the text."""

    text: str
    prompt: str
    start: int
    order: list[int]


class VisionLanguageModel:
    """Mixin for a family's class. A family adds `image_token` and `image_grid`."""

    image_token = "<image>"
    control_tokens: tuple[str, ...] = ()  # control tokens that the tokenizer lists as ordinary text

    @classmethod
    def is_custom_code(cls) -> bool:
        # override: otherwise a subclass outside transformers skips the renaming of checkpoint keys and silently keeps
        # random weights under the changed names.
        return False

    def image_grid(self, processor, width: int, height: int) -> ImageGrid | None:
        """Grid of an image of width x height original pixels after this family's processor; None if unknown."""
        raise TypeError(f"{type(self).__name__} does not define its image grid")

    @classmethod
    def limit_pixels(cls, processor, smallest: int | None, largest: int | None) -> dict[str, int] | None:
        """Set the limits, in pixels, of the processor's image resize; None keeps a limit of the checkpoint.

        Returns the limits in force, None for a family without limits. Raises ValueError for invalid limits and for
        limits given to a family without limits.
        """
        if smallest is not None or largest is not None:
            raise InputError(
                "pixel-limits-of-other-family",
                f"--min-pixels and --max-pixels are limits of the Qwen families, and {cls.__name__} resizes every "
                "image in its own way; leave them out",
            )
        return None

    def input_grids(self, inputs) -> list[tuple[int, int]]:
        """(rows, cols) of every image in the model inputs, in the order of the prompts."""
        raise InputError(
            "unknown-grid",
            f"where the image tokens of {type(self).__name__} lie in the image is not known, so gaze cannot be put "
            f"on them; load {PATCHED}",
        )

    def generate(self, *args, mask_type=None, scanpaths=None, steering=None, report=None, **kwargs):
        """The stock `generate`, with an intervention on attention for this call only.

        steering: an intervention (`models.interventions.Intervention`), such as `VAR.for_model(model)` or
        `Gaze(mask, scanpaths)`. report: a new `models.interventions.InterventionReport`, which receives the changes.
        mask_type, scanpaths: the same as steering=Gaze(mask_type, scanpaths), with mask_type {"type": "gaussian" |
        "non-gaussian" | "salient-head", "margin": int, "target-layer": None | int | [int]} or settings.
        Raises ValueError for invalid settings, before the model runs, SampleError if the activations of a sample are
        not finite.
        """
        # override: apply edits; raise for options under which edits or a trace are wrong, and for tokens from NaN.
        if mask_type is not None or scanpaths is not None:
            steering = Gaze.from_arguments(mask_type, scanpaths, steering)
        edits, own = self._plan(steering, kwargs)
        if edits or own:
            check_recordable("steered", kwargs, self.generation_config)
        elif any(is_attached(module, LISTENERS) for module in self.modules()):
            check_recordable("recorded", kwargs, self.generation_config)
        finite = FiniteScores()
        processors = LogitsProcessorList([finite, *own, *(kwargs.pop("logits_processor", None) or ())])
        with apply_edits(self, edits, report):
            output = super().generate(*args, logits_processor=processors, **kwargs)
        if finite.failed:
            raise not_finite(self, kwargs)
        return output

    @torch.no_grad()
    def first_logits(self, inputs) -> torch.Tensor:
        """Logits of the first token after each prompt, [sample, vocabulary], from one prefill."""
        options = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
        return self.generate(**inputs, **options).logits[0]

    def image_mask(self, ids: torch.Tensor) -> torch.Tensor:
        """bool [sample, position]: the image tokens of prompts [sample, position] and the tokens that frame them; those
        that frame them are known for the patched families alone."""
        return ids == self.config.image_token_id

    def _plan(self, intervention, inputs) -> tuple[Mapping[int, LayerEdit | DeferredEdit], list[LogitsProcessor]]:
        """The edits of an intervention by layer, and its logits processors; `inputs` are the arguments of `generate`.
        Both are empty for None."""
        if intervention is None:
            return {}, []
        check_intervention(intervention)
        stack, modules = attention_stack(self, "decoder")
        ids, starts = check_inputs(inputs)
        starts = tuple(starts.tolist())
        image = ids == self.config.image_token_id
        accepted = signature(self.forward).parameters
        own = {name: value for name, value in inputs.items() if name in accepted}
        prompt = PromptBatch(
            length=ids.shape[1],
            starts=starts,
            images=tuple(image[sample, start:].nonzero().flatten() for sample, start in enumerate(starts)),
            layers=len(modules),
            heads=stack.config.num_attention_heads,
            width=stack.config.hidden_size,
            grids=partial(self._grids_by_sample, ids, inputs),
            first_logits=partial(call_unattached, self.first_logits, own),
            without_images=lambda: WithoutImages(self, ids, inputs["attention_mask"].bool() & ~self.image_mask(ids)),
        )
        processor = getattr(intervention, "logits_processor", lambda prompt: None)(prompt)
        return intervention.plan(prompt), [] if processor is None else [processor]

    def _grids_by_sample(self, ids: torch.Tensor, inputs) -> list[list[tuple[int, int]]]:
        """(rows, cols) of the images of each sample, assigned by the samples' image token counts."""
        left = iter(self.input_grids(inputs))
        shared = []
        for sample, count in enumerate((ids == self.config.image_token_id).sum(1).tolist()):
            grids, cells = [], 0
            while cells < count and (grid := next(left, None)):
                grids.append(grid)
                cells += grid[0] * grid[1]
            if cells != count:
                raise InputError(
                    "image-tokens",
                    f"sample {sample} has {count} image tokens, but its {len(grids)} images have {cells} cells; give "
                    "the inputs as prepare returns them",
                )
            shared.append(grids)
        return shared

    def prepare(self, processor, images, prompt, system: str | None = None):
        """Model inputs and the token layout for one prompt, or for a batch of prompts.

        One sample: `images` is a list of RGB images (PIL) and `prompt` a string; returns (inputs, TokenLayout).
        A batch: `images` is a list of such lists and `prompt` a list of strings; returns (inputs, [TokenLayout, ...]),
        padded on the left. The family's chat template is applied. Inputs lie on the model's device.
        Images precede the prompt, or replace its markers `<image 1>`, `<image 2>` (`models.vlm`).
        `system` is a system prompt, the same for all. Raises SampleError for an unusable prompt or image, ValueError
        for input of another form and for a system prompt that the chat template drops.
        """
        single = isinstance(prompt, str)
        if isinstance(images, Image.Image):
            raise InputError("single-image", "images is a single image; give a list, such as images=[image]")
        prompts, images = ([prompt], [images]) if single else (list(prompt), list(images))
        if len(prompts) != len(images):
            raise InputError(
                "prompts-and-images",
                f"{len(prompts)} prompts but {len(images)} lists of images; give one list per prompt",
            )
        own_tokens = (self.image_token, *self.control_tokens)
        if system is not None:
            check_prompt(system, processor.tokenizer, own_tokens)
        for text, batch in zip(prompts, images, strict=True):
            check_prompt(text, processor.tokenizer, own_tokens)
            check_images(batch)
        rendered = [
            self._render(processor, text.strip(), len(batch), system)
            for text, batch in zip(prompts, images, strict=True)
        ]
        shown = [[batch[i] for i in text.order] for text, batch in zip(rendered, images, strict=True)]
        inputs = self._encode(processor, [text.text for text in rendered], shown).to(self.device, self.dtype)
        layouts = [
            self._layout(processor, inputs, sample, rendered[sample], shown[sample]) for sample in range(len(prompts))
        ]
        return inputs, layouts[0] if single else layouts

    def _render(self, processor, prompt: str, images: int, system: str | None = None) -> Rendered:
        """The prompt under the chat template. Images replace their markers if the template keeps the order of images
        and text in the message; otherwise they precede the prompt."""
        order = marked_order(prompt, images)
        if order:
            content = interleaved(prompt)
            rendered = self._fill(processor, content, system, order)
            kinds = [MARK if part["type"] == "text" else self.image_token for part in content]
            marked = self._apply_template(processor, blanked(content), system)
            if rendered and re.findall(f"{MARK}|{re.escape(self.image_token)}", marked) == kinds:
                return rendered
        rendered = self._fill(processor, in_front(prompt, images), system, list(range(images)))
        if rendered is None:
            raise InputError(
                "template-changes-prompt",
                "the chat template does not hand the prompt on as it is, so its words cannot be located",
            )
        return rendered

    def _fill(self, processor, content: list[dict], system: str | None, order: list[int]) -> Rendered | None:
        """The content of a message under the template; None if the template changes its texts. A private-use character
        (MARK) locates the texts."""
        texts = [part["text"] for part in content if part["type"] == "text"]
        text = self._apply_template(processor, content, system)
        *gaps, after = self._apply_template(processor, blanked(content), system).split(MARK)
        if len(gaps) != len(texts) or text != "".join(map("".join, zip(gaps, texts, strict=True))) + after:
            return None
        start = len(gaps[0])
        prompt = "".join(" " * len(gap) + part for gap, part in zip(gaps, texts, strict=True))
        return Rendered(text, prompt[start:], start, order)

    def _apply_template(self, processor, content: list[dict], system: str | None) -> str:
        messages = [{"role": "user", "content": content}]
        if system is None:
            return processor.apply_chat_template(messages, add_generation_prompt=True)
        first = [{"type": "text", "text": system.strip()}]
        try:
            messages = [{"role": "system", "content": first}, *messages]
            text = processor.apply_chat_template(messages, add_generation_prompt=True)
        except TemplateError as error:
            raise InputError(
                "template-refuses-system", f"the chat template refuses a system prompt: {error}"
            ) from error
        if system.strip() not in text or str(first) in text:  # dropped, or printed as a list
            raise InputError(
                "template-drops-system",
                "the chat template drops the system prompt; put its text into the prompts instead",
            )
        return text

    def _encode(self, processor, texts: list[str], images: list[list[Image.Image]]):
        flat = [image for batch in images for image in batch]
        return processor(images=flat or None, text=texts, return_tensors="pt", padding=True, padding_side="left")

    def _offsets(self, processor, text: str, ids: list[int], grids) -> list[tuple[int, int]]:
        cells = [grid.rows * grid.cols for grid in grids]
        return locate(text, ids, processor.tokenizer, self.image_token, cells)

    def _locate(self, processor, inputs, sample: int, ids: list[int], text: str, grids):
        """Characters of `text` of each of `ids` (without padding), and the positions of each image's tokens."""
        cells = [grid.rows * grid.cols for grid in grids]
        offsets = self._offsets(processor, text, ids, grids)
        positions = (torch.tensor(ids) == self.config.image_token_id).nonzero().flatten()
        return offsets, positions.split(cells) if cells else ()

    def _layout(self, processor, inputs, sample: int, rendered: Rendered, images) -> TokenLayout:
        ids, mask = inputs["input_ids"][sample].cpu(), inputs["attention_mask"][sample].cpu()
        start = int(mask.int().argmax())
        grids = tuple(self.image_grid(processor, *image.size) for image in images)
        offsets, positions = self._locate(processor, inputs, sample, ids[start:].tolist(), rendered.text, grids)
        return TokenLayout(
            sample=sample,
            start=start,
            length=len(ids),
            text=rendered.text,
            prompt=rendered.prompt,
            prompt_start=rendered.start,
            offsets=((0, 0),) * start + tuple(offsets),
            images=tuple(keys + start for keys in positions),
            grids=grids,
        )


def blanked(content: list[dict]) -> list[dict]:
    """The content of a message with MARK in place of each text."""
    return [part | {"text": MARK} if part["type"] == "text" else part for part in content]


def check_intervention(intervention) -> None:
    """Raise ValueError for an object without `plan`, and for a gaze mask without scanpaths."""
    if isinstance(intervention, GazeMask | Mapping):
        raise InputError(
            "gaze-without-scanpaths",
            f"steering is the gaze mask {intervention!r} without scanpaths; give steering=Gaze(mask, scanpaths) of "
            "models.gaze, with a list of (x, y) cells for each sample",
        )
    if isinstance(intervention, type) or not callable(getattr(intervention, "plan", None)):
        raise InputError(
            "not-an-intervention",
            f"steering is {intervention!r}; give settings of an intervention, such as VAR.for_model(model) or "
            "Gaze(mask, scanpaths)",
        )


def check_inputs(inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """input_ids [sample, position] and the end of each sample's padding, int64 [sample], of inputs to steer.

    Raises ValueError for inputs without input_ids or attention_mask, and for padding that is not on the left.
    """
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if ids is None or mask is None or inputs.get("past_key_values") is not None:
        raise InputError(
            "steering-inputs",
            "steering needs input_ids and attention_mask by name and an empty cache; call generate(**inputs, ...) with "
            "the inputs that prepare returns",
        )
    if mask.ndim != 2 or not mask[:, -1].all() or (mask[:, 1:] < mask[:, :-1]).any():
        raise InputError(
            "mask-not-left-padded",
            "the attention mask is not one of padding on the left, so it is not clear which rows and keys to steer; "
            "pad on the left (processor.tokenizer.padding_side = 'left')",
        )
    return ids, mask.int().argmax(1)


def check_images(images: list[Image.Image]) -> None:
    """Raise ValueError for anything but an RGB image, SampleError for an aspect ratio above ASPECT_LIMIT."""
    for index, image in enumerate(images):
        if not isinstance(image, Image.Image) or image.mode != "RGB":
            kind = f"mode {image.mode}" if isinstance(image, Image.Image) else type(image).__name__
            raise InputError(
                "not-rgb", f"image {index} is {kind}, not an RGB image; read it with data.images.read_image"
            )
        short, long = sorted(image.size)
        if long > ASPECT_LIMIT * short:
            raise SampleError(
                "image too elongated",
                f"image {index} is {image.size[0]} x {image.size[1]} pixels; one side is more than {ASPECT_LIMIT} "
                "times the other, which no model here was trained on: crop it first",
            )


def check_template(processor) -> None:
    """Raise ValueError for a processor without a chat template."""
    if not processor.chat_template:
        raise ValueError("it has no chat template (chat_template.jinja), so prompts cannot be rendered")


BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
DELIMITED = re.compile(r"<\S.*>|\[\S.*\]|\|\S.*\|", re.DOTALL)
# Markup that some tokenizers (Gemma's) keep as single tokens; it is text.
TAGS = re.compile(
    "</?(table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|ul|ol|li|dl|dt|dd|strong|em|b|i|u|s|sub|sup|code|p|br)>"
)


def check_prompt(prompt: str, tokenizer, own_tokens: tuple[str, ...] = ()) -> None:
    """Raise SampleError for a prompt that is empty or that holds a control token of the tokenizer or the family.

    own_tokens: the family's control tokens that the tokenizer lists as ordinary text.
    """
    if not MARKER.sub("", prompt).strip():
        raise SampleError("empty prompt", "the prompt is empty; write a question or an instruction")
    for token in (*own_tokens, *control_tokens(tokenizer), *byte_tokens(prompt, tokenizer)):
        if token in prompt:
            raise SampleError(
                "special token in the prompt",
                f"the prompt holds {token!r}, which the model reads as a special token, not as text; remove it (images "
                "are inserted by the chat template)",
            )


def control_tokens(tokenizer) -> list[str]:
    """Special tokens of a tokenizer, and added tokens in delimiters (<...>, [...], |...|) that it lists as ordinary.

    Other added tokens are text: runs of blanks, words, punctuation and HTML tags, which some tokenizers add to save
    tokens.
    """
    added = map(str, tokenizer.added_tokens_decoder.values())
    return [
        *tokenizer.all_special_tokens,
        *(token for token in added if DELIMITED.fullmatch(token) and not TAGS.fullmatch(token)),
    ]


def byte_tokens(prompt: str, tokenizer) -> list[str]:
    """Byte names in the prompt, such as <0x0A>, that the tokenizer encodes as the byte's own token."""
    names = sorted(set(BYTE.findall(prompt)))
    return [name for name in names if name in tokenizer.tokenize(name)]


MARKER = re.compile(r"<image (\d+)>")


def in_words(prompt: str) -> str:
    """The prompt with "image 1" for `<image 1>`."""
    return MARKER.sub(r"image \1", prompt)


def marked_order(prompt: str, images: int) -> list[int]:
    """Indices from 0 of the images in the order of their markers; [] unless each is named exactly once.

    Raises SampleError for a marker that names none of `images` images.
    """
    numbers = [int(number) for number in MARKER.findall(prompt)]
    if absent := [number for number in numbers if not 1 <= number <= images]:
        raise SampleError(
            "image marker without its image",
            f"the prompt names <image {absent[0]}> and has {images} images; give the image, or leave the marker out",
        )
    return [number - 1 for number in numbers] if sorted(numbers) == list(range(1, images + 1)) else []


def interleaved(prompt: str) -> list[dict]:
    """The prompt as content of a chat message: text and images in the order of the prompt."""
    texts = MARKER.split(prompt)[::2]
    content = [{"type": "image"}] * (2 * len(texts) - 1)
    content[::2] = [{"type": "text", "text": text} for text in texts]
    return [part for part in content if part != {"type": "text", "text": ""}]


def in_front(prompt: str, images: int) -> list[dict]:
    """The prompt in words as content of a chat message, after its images."""
    return [{"type": "image"}] * images + [{"type": "text", "text": in_words(prompt)}]
