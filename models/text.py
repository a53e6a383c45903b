"""Load and prepare causal language models, for measures on text without images.

Sources: a checkpoint folder, a hub id, or a GGUF file, dequantised during loading (needs the package gguf).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
)

import models
from data.errors import InputError, MissingFileError, reason_of
from models import generation_settings
from models.attention import other_layer_types
from models.layout import TokenLayout
from models.loading import DTYPES, check_keys, first_line, locate, place, quantized, quiet, read_weights
from models.trace import AttentionTrace
from models.unpatched import check_weights
from models.vlm import MARK, check_prompt

WORDS = "one two three four"  # several tokens: the weights of a single token are 1 under any formula


class CausalLanguageModel:
    """Mixin for a family's stock class; prepares prompts as the vision-language models do, without images."""

    @classmethod
    def is_custom_code(cls) -> bool:
        # override: otherwise a subclass outside transformers skips the renaming of checkpoint keys.
        return False

    def prepare(self, tokenizer, images, prompt: str):
        """(inputs, TokenLayout) of one prompt; `images` must be empty. The chat template is applied if there is one.

        Raises SampleError for an unusable prompt, ValueError for images.
        """
        if images:
            raise InputError(
                "images-of-language-model",
                f"{type(self).__name__} is a language model and sees no images; give images=[]",
            )
        check_prompt(prompt, tokenizer)
        prompt = prompt.strip()
        text, start = render(tokenizer, prompt), render(tokenizer, MARK).find(MARK)
        if not text.startswith(prompt, start):
            raise InputError(
                "template-changes-prompt",
                "the chat template does not hand the prompt on as it is, so its words cannot be located",
            )
        special = tokenizer.chat_template is None  # a template adds the special tokens itself
        encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        ids = torch.tensor([encoded["input_ids"]], device=self.device)
        layout = TokenLayout(
            sample=0,
            start=0,
            length=ids.shape[1],
            text=text,
            prompt=prompt,
            prompt_start=start,
            offsets=tuple(encoded["offset_mapping"]),
            images=(),
        )
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, layout


def render(tokenizer, prompt: str) -> str:
    """The prompt under the chat template; unchanged if there is none."""
    if tokenizer.chat_template is None:
        return prompt
    conversation = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)


def load(name: str, *, min_pixels: int | None = None, max_pixels: int | None = None, **loading):
    """(model, processor or tokenizer): `load_causal` for a causal language model, `models.load` for anything else.

    Settings as in `models.load`. Raises ValueError for pixel limits given to a language model.
    """
    if not is_causal(name, loading.get("revision")):
        return models.load(name, min_pixels=min_pixels, max_pixels=max_pixels, **loading)
    if min_pixels is not None or max_pixels is not None:
        raise ValueError(f"{name!r} is a language model and takes no images; leave --min-pixels and --max-pixels out")
    return load_causal(name, **loading)


def is_causal(name: str, revision: str | None = None) -> bool:
    """Return whether a name is that of a causal language model, by its file or config."""
    if is_gguf(name):
        return True
    path = locate(name)
    try:
        family = PreTrainedConfig.get_config_dict(path, revision=revision)[0].get("model_type")
    except (OSError, ValueError):
        return False  # models.load reports the fault
    causal, with_images = (
        {config.model_type for config in mapping}
        for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
    )
    return family in causal and family not in with_images and family not in models.FAMILIES


def is_gguf(name: str) -> bool:
    """Return whether a name is that of a GGUF file."""
    return name.lower().endswith(".gguf")


def load_causal(name: str, device="auto", dtype="auto", load_4bit=False, load_8bit=False, revision=None):
    """(model, tokenizer) of a causal language model, in eval mode under SDPA; flags as in `models.load`.

    Weights are read from safetensors or a GGUF file only; code of a checkpoint is never run. Raises ValueError for an
    invalid setting or checkpoint, FileNotFoundError for a name without a checkpoint.
    """
    where = place(device)
    if dtype != "auto" and dtype not in DTYPES:
        raise InputError("unknown-dtype", f"dtype {dtype!r} is unknown; choose auto, {', '.join(DTYPES)}")
    number = DTYPES.get(dtype, torch.float32 if where == {"": "cpu"} else "auto")
    quantization = quantized(load_4bit, load_8bit, where, dtype)
    path, source = (gguf_source(name)) if is_gguf(name) else (locate(name), {"revision": revision})
    with quiet():
        config = read_config(path, name, source)
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, config=config, trust_remote_code=False, **source)
        except Exception as error:  # tokenizers raise bare Exceptions for a damaged file
            raise InputError(
                "unreadable-tokenizer", f"the tokenizer of {name!r} cannot be read: {first_line(error)}"
            ) from error
        if not tokenizer.is_fast:
            raise ValueError(f"the tokenizer of {name!r} does not tell where its tokens are in the text")
        stock = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        model_class = type(stock.__name__, (CausalLanguageModel, stock), {})
        settings = {"dtype": number, "device_map": where}
        if is_gguf(name):
            model = read_gguf(model_class, path, name, **settings, **source)
        else:
            settings |= {"config": config, "quantization_config": quantization}
            model = read_weights(model_class, path, name, **settings, **source)
        check_causal(model.eval(), tokenizer, name)
    return model, tokenizer


def check_causal(model: CausalLanguageModel, tokenizer, name: str) -> None:
    """Record two generated tokens, and compare the weights of a short prompt with eager attention.

    Raises ValueError for a model that cannot be recorded, and for the tokenizer of another model.
    """
    try:
        inputs, _ = model.prepare(tokenizer, [], WORDS)
        with AttentionTrace(model):
            model.generate(**inputs, max_new_tokens=2, min_new_tokens=2)
        check_weights(model, inputs)
    except ValueError as error:
        raise InputError(
            reason_of(error, "unusable-checkpoint"), f"{name!r} cannot be used: {first_line(error)}"
        ) from error
    except Exception as error:  # another model's tokenizer or an untested family may raise any error
        raise InputError(
            "model-and-tokenizer",
            f"{name!r} cannot be used: model and tokenizer fail on {WORDS!r} ({type(error).__name__}: "
            f"{first_line(error)}); take all files from one release of the {model.config.model_type} family",
        ) from error


def gguf_source(name: str) -> tuple[str, dict]:
    """Folder of a GGUF file, and the arguments of transformers for it.

    Raises FileNotFoundError for a missing file, ValueError without the package gguf.
    """
    file = Path(name)
    if not file.is_file():
        raise MissingFileError("no-such-file", f"the model file {name!r} does not exist")
    if importlib.util.find_spec("gguf") is None:
        raise InputError(
            "no-gguf", f"reading {name!r} needs the package gguf, which is not installed: pip install gguf"
        )
    return str(file.parent), {"gguf_file": file.name}


def read_config(path: str, name: str, source: dict):
    """The config of a causal language model with attention in every layer. Raises ValueError for any other."""
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, **source)
    except Exception as error:  # each kind of damage raises its own exception class
        raise ValueError(f"model {name!r} could not be read: {first_line(error)}") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"{name!r} is of the family {config.model_type!r}, which is no causal language model")
    if other := other_layer_types(config):
        raise InputError(
            "partial-attention",
            f"{name!r} has layers without attention ({', '.join(other)}); use a checkpoint with attention in every "
            "layer",
        )
    return config


def read_gguf(model_class, path: str, name: str, **settings):
    """The model of a GGUF file; every weight is found and used. Raises ValueError otherwise."""
    try:
        model, info = model_class.from_pretrained(
            path,
            attn_implementation="sdpa",
            trust_remote_code=False,
            output_loading_info=True,
            **settings,
        )
    except Exception as error:  # readers of a binary format may raise any error for a damaged file
        raise ValueError(f"the weights of {name!r} cannot be read: {first_line(error)}") from error
    check_keys(name, info)
    generation_settings.replace(model)
    model.config.name_or_path = name  # the folder does not identify the file
    return model
