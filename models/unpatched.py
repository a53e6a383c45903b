"""Support for unpatched families: recording and rollout, with an unknown image grid.

Requirements, checked when a model is loaded: image tokens marked in `input_ids`, attention in every layer through
transformers' interface, and recomputed weights equal to the eager model's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import SequenceMatcher
from types import SimpleNamespace

import torch
import transformers
from PIL import Image
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, PROCESSOR_MAPPING, PreTrainedModel, ProcessorMixin

from data.errors import InputError
from models.attention import attention_stack, other_layer_types
from models.folders import version_numbers
from models.processors import WithoutVideo, WithoutVideoArgument
from models.trace import AttentionTrace, recorded_errors
from models.vlm import VisionLanguageModel, check_template

PLACED = "text_replacement_offsets"  # the processor's record of the characters replaced by image tokens
WRITTEN = "text_before_replacement"  # the text in which it replaced them
TOLERANCE = {torch.float32: 1e-3}  # relative error of a layer's weights against eager attention
HALF_TOLERANCE = 0.1  # two kernels diverge over the layers; another formula gives a larger error


class UnpatchedModel(VisionLanguageModel):
    """Mixin for the stock class of a family; image tokens are located, but their cells are unknown."""

    def image_grid(self, processor, width: int, height: int) -> None:
        """None: the cells of an unknown processor are never inferred from a token count."""

    def prepare(self, processor, images, prompt, system=None):
        # override: the processor's record of its placeholders is for the layout, not an input of the model.
        inputs, layouts = super().prepare(processor, images, prompt, system)
        for name in (PLACED, WRITTEN):
            inputs.pop(name, None)
        return inputs, layouts

    def _encode(self, processor, texts, images):
        # Nested, one list per prompt: some families encode several images of one prompt differently from single ones.
        with written_text(processor) as written:
            inputs = processor(
                images=images if any(images) else None,
                text=texts,
                return_tensors="pt",
                padding=True,
                padding_side="left",
                return_text_replacement_offsets=True,
            )
        inputs[WRITTEN] = written or texts
        return inputs

    def _locate(self, processor, inputs, sample: int, ids: list[int], text: str, grids):
        """Offsets of every token and positions of every image's tokens, from the processor's record.

        A placeholder may expand to image tokens with line breaks and tags between them. The expanded text is rebuilt
        and tokenised, so that offsets are exact, and mapped to the text before expansion, and from there to `text`, to
        which a processor may have added characters (PaliGemma, Molmo2).
        Raises ValueError if the tokens differ from the processor's, or an image has no image token.
        """
        placed = inputs.get(PLACED, [[]] * len(inputs["input_ids"]))[sample]
        written = inputs[WRITTEN][sample]
        if len(placed) != len(grids):
            raise ValueError(f"the processor says where it placed {len(placed)} images, of {len(grids)}")
        spans = token_spans(processor.tokenizer, expanded(written, placed), ids)
        images = []
        for part in placed:
            first, last = part["new_span"]
            inside = [i for i, (a, b) in enumerate(spans) if first <= a < b <= last]
            images.append(torch.tensor([i for i in inside if ids[i] == self.config.image_token_id], dtype=torch.long))
        if not all(map(len, images)) or sum(map(len, images)) != ids.count(self.config.image_token_id):
            raise ValueError("the image tokens in input_ids are not those that the processor put in for the images")
        origin = without_insertions(text, written)
        offsets = [(origin[unexpand(a, placed)], origin[unexpand(b, placed, end=True)]) for a, b in spans]
        return offsets, tuple(images)


@contextmanager
def written_text(processor) -> Iterator[list[str]]:
    """The texts, one per prompt, in which a call of the processor within the block replaces its placeholders.

    They differ from the texts of the call for processors that add characters.
    """
    written: list[str] = []
    replace = processor.get_text_with_replacements

    def record(text, *args, **kwargs):
        written[:] = text
        return replace(text, *args, **kwargs)

    processor.get_text_with_replacements = record
    try:
        yield written
    finally:
        del processor.get_text_with_replacements


def without_insertions(text: str, written: str) -> list[int]:
    """Character of `text` for each boundary 0 .. len(written) of a text that was made by inserting characters.

    Inserted characters get the place of their insertion. Raises ValueError for other changes.
    """
    if text == written:
        return list(range(len(text) + 1))
    origin = [0]
    for kind, first, last, _, stop in SequenceMatcher(None, text, written, autojunk=False).get_opcodes():
        if kind not in ("equal", "insert"):
            raise ValueError("the processor rewrote the prompt, so words cannot be located")
        origin += range(first + 1, last + 1) if kind == "equal" else [first] * (stop + 1 - len(origin))
    return origin


def expanded(text: str, placed: list[dict]) -> str:
    """The text with each placeholder replaced, as in the processor; `placed` holds span and replacement of each."""
    pieces, done = [], 0
    for part in placed:
        pieces += [text[done : part["span"][0]], part["replacement"]]
        done = part["span"][1]
    return "".join([*pieces, text[done:]])


def token_spans(tokenizer, text: str, ids: list[int]) -> list[tuple[int, int]]:
    """Characters [start, end) of `text` of each of `ids`. Raises ValueError if the text has other tokens."""
    for special in (True, False):  # the chat template may already include the special tokens
        encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        if encoded["input_ids"] == ids:
            return encoded["offset_mapping"]
    raise ValueError(
        f"the processor made {len(ids)} tokens and the text accounts for {len(encoded['input_ids'])} or other ones, so "
        "words cannot be located"
    )


def unexpand(character: int, placed: list[dict], end: bool = False) -> int:
    """Character of the text before expansion for a boundary in the expanded text.

    A whole replacement maps to its placeholder; `end` is true for the end of a span.
    """
    for part in reversed(placed):
        (first, last), (new_first, new_last) = part["span"], part["new_span"]
        if character - end >= new_last:
            return last + character - new_last
        if character - end >= new_first:
            return last if end else first
    return character


def model_class(config, processor) -> type[UnpatchedModel]:
    """The family's stock class with the mixin, under the same name, which the mapping of checkpoint keys needs."""
    stock = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    return type(stock.__name__, (UnpatchedModel, stock), {"image_token": processor.image_token})


def load_processor(path: str, config, **kwargs) -> ProcessorMixin:
    """The family's processor, for images and text only: video processors need torchvision.

    Raises ValueError if the rest needs torchvision too, or cannot render a prompt; ImportError for other packages.
    """
    stock = PROCESSOR_MAPPING[type(config)]
    try:
        processor = image_text(stock).from_pretrained(path, **kwargs)
    except ImportError as error:
        if "torchvision" not in str(error).lower():
            raise
        raise ValueError(
            f"{stock.__name__} needs torchvision; install the one for your torch (bash env_setup_llava.bash "
            "torchvision), or choose a checkpoint of another family"
        ) from error
    check_template(processor)
    if not getattr(processor, "image_token", None):
        raise ValueError("it names no image token, so images cannot be located in a prompt")
    processor.tokenizer.padding_side = "left"
    return processor


def image_text(stock: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """A stock processor class without its video processor, under the same name."""
    module = sys.modules.get(stock.__module__)  # a class without its packages is a placeholder of no module
    absent = {}
    if hasattr(module, "num2words"):  # SmolVLM requires an optional package and settings that only videos need
        module.num2words = module.num2words or str
        absent["video_processor"] = SimpleNamespace(num_frames=None, fps=None)
    return type(stock.__name__, (WithoutVideo, stock, WithoutVideoArgument), absent)


def check_config(config, fields: dict) -> str | None:
    """Reason, by its config, for which a model cannot be recorded; None if there is none.

    `config` is None for a family that transformers does not know; `fields` are those of config.json. The reason
    continues "a family that ...".
    """
    if config is None:
        return unknown_family(fields)
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return "is not a model of images and text"
    if type(config) not in PROCESSOR_MAPPING:
        return f"has no processor in transformers {transformers.__version__}"
    if config.is_encoder_decoder or config.get_text_config(decoder=True).is_encoder_decoder:
        return "has an encoder and a decoder, whose attention to the image is another one"
    if getattr(config, "image_token_id", None) is None:
        return "does not mark its image tokens in input_ids"
    if other := other_layer_types(config.get_text_config()):
        return f"has layers without attention ({', '.join(other)})"
    return None


def unknown_family(fields: dict) -> str:
    """Message for a model_type unknown to transformers: too new a checkpoint, or custom code."""
    here, saved = transformers.__version__, str(fields.get("transformers_version", ""))
    if "auto_map" in fields:
        return f"transformers {here} does not know, and the checkpoint's own code (auto_map) is never run"
    if version_numbers(saved) > version_numbers(here):
        return f"transformers {here} does not know (it was saved by {saved}: pip install --upgrade transformers)"
    return f"transformers {here} does not know"


def check_recording(model: UnpatchedModel, processor) -> None:
    """Record two generated tokens about a blank image, and compare a short text with eager attention.

    Raises ValueError if a layer is not recorded completely, and as `check_weights` does.
    """
    attention_stack(model, "decoder")
    inputs, _ = model.prepare(processor, [Image.new("RGB", (64, 64))], "a")
    with AttentionTrace(model):
        model.generate(**inputs, max_new_tokens=2, min_new_tokens=2)
    inputs, _ = model.prepare(processor, [], "a")
    check_weights(model, inputs)


def check_weights(model: PreTrainedModel, inputs) -> None:
    """Raise ValueError if recorded weights differ from eager attention's, and so from the softmax of queries and keys,
    or if eager attention does not return those of every layer."""
    errors = torch.tensor(recorded_errors(model, inputs))
    error = float(errors.max())  # NaN if any is NaN
    if not error <= TOLERANCE.get(model.dtype, HALF_TOLERANCE):
        raise InputError(
            "weights-differ",
            "its attention weights are not the softmax of queries and keys: recomputed ones differ from eager "
            f"attention's by {error:.0%} in some layer",
        )
