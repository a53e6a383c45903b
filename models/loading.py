"""Load a model and its processor by name; any failure is a one-line ValueError or FileNotFoundError."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    BitsAndBytesConfig,
    FineGrainedFP8Config,
    PreTrainedConfig,
)
from transformers.utils import cached_file, extract_commit_hash
from transformers.utils import logging as transformers_logging

from data.errors import InputError, MissingFileError, reason_of
from models import FAMILIES, TINY, embedded, generation_settings
from models.attention import attention_stack, plain_attention, prefill
from models.folders import (
    FP8,
    check_fields,
    check_folder,
    check_hub_adapter,
    check_quantization,
    check_tokenizer_files,
    check_weight_files,
    contents,
    quantization_method,
)
from models.unpatched import check_config, check_recording

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
BLANK = Image.new("RGB", (64, 64))
SUPPORTED = (
    f"supported are {', '.join(FAMILIES)}, and without overlays any family of images and text whose attention goes "
    "through transformers' attention interface and whose image tokens are marked in input_ids"
)


def load(
    name,
    device="auto",
    dtype="auto",
    load_4bit=False,
    load_8bit=False,
    revision=None,
    min_pixels=None,
    max_pixels=None,
):
    """(model, processor), the model in eval mode under SDPA.

    `name` is an embedded checkpoint, a folder or a hub id; the config names the family. An unpatched family is tested
    on a blank image and loads with a UserWarning that its image grid is unknown. `device` "auto" spreads the model over
    all GPUs, or uses the CPU; `dtype` "auto" is the checkpoint's type on a GPU and float32 on a CPU, where half
    precision is slow. `min_pixels` and `max_pixels` of an image replace the limits of a Qwen family's processor.
    Weights are read from safetensors only; code of a checkpoint is never run. Raises ValueError for an invalid setting
    or checkpoint, FileNotFoundError for a name without a checkpoint.
    """
    path = locate(name)
    where = place(device)
    if dtype != "auto" and dtype not in DTYPES:
        raise InputError("unknown-dtype", f"dtype {dtype!r} is unknown; choose auto, {', '.join(DTYPES)}")
    number = DTYPES.get(dtype, torch.float32 if where == {"": "cpu"} else "auto")
    quantization = quantized(load_4bit, load_8bit, where, dtype)
    with quiet():
        config = read_config(path, name, revision)
        revision = config._commit_hash or revision  # read all files from one commit
        patched = config.model_type in FAMILIES
        module, class_name = FAMILIES.get(config.model_type, ("models.unpatched", None))
        family = importlib.import_module(module)
        processor = read_processor(family, path, name, config, revision)
        model_class = getattr(family, class_name) if patched else family.model_class(config, processor)
        pixels = model_class.limit_pixels(processor, min_pixels, max_pixels)
        model = read_weights(
            model_class,
            path,
            name,
            config=config,
            dtype=number,
            device_map=where,
            quantization_config=quantization,
            revision=revision,
        ).eval()
        model.pixel_limits = pixels
        check = check_together if patched else check_unpatched
        check(model, processor, name)
    if not patched:
        warnings.warn(
            f"{name!r} is of the family {config.model_type!r}, whose image grid is not known: attention and rollout "
            "are exact, but maps are flat over the image tokens and there is no overlay "
            f"(known grids: {', '.join(FAMILIES)})",
            stacklevel=3,
        )
    return model, processor


@contextmanager
def quiet():
    """Suppress progress bars, the load report and deprecation warnings of transformers; faults raise errors instead."""
    level, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # published configs use deprecated names
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()


def read_processor(family, path: str, name: str, config, revision: str | None):
    """The processor of a checkpoint. Raises ValueError, or FileNotFoundError without a tokenizer."""
    check_tokenizer_files(path, name)
    try:
        # By default transformers prompts at the terminal whether to run code in the folder.
        return family.load_processor(path, config, revision=revision, trust_remote_code=False)
    except Exception as error:  # tokenizers raise bare Exceptions for a damaged file; any error is the folder's fault
        fault = first_line(error)
        if "custom code" in fault:
            fault = "it needs code of its own (auto_map), which is never run; take the files of the release"
        raise InputError(
            reason_of(error, "unreadable-processor"), f"the processor of {name!r} cannot be read: {fault}"
        ) from error


def read_weights(model_class, path: str, name: str, **settings):
    """The model; every weight is found, used and finite. Raises ValueError otherwise.

    FP8 weights are dequantised during loading, then cast to the requested number type.
    """
    check_quantization(settings["config"], name, settings["device_map"])
    check_weight_files(path, name, model_class.__name__)
    dequantised = quantization_method(settings["config"]) in FP8
    if dequantised:
        settings["quantization_config"] = FineGrainedFP8Config(dequantize=True)
    try:
        model, info = model_class.from_pretrained(
            path,
            attn_implementation=attention_names(settings["config"]),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported in info; check_keys raises for them
            **settings,
        )
    except (SafetensorError, OSError) as error:
        raise ValueError(f"the weights of {name!r} cannot be read (safetensors only): {first_line(error)}") from error
    except torch.OutOfMemoryError as error:
        sentence = f"{name!r} does not fit into memory; pass --dtype bfloat16, --load-4bit, or a smaller --model"
        raise InputError("out-of-memory", sentence) from error
    except ValueError as error:
        if "attention" not in str(error):
            raise InputError("cannot-load", f"{name!r} cannot be loaded: {first_line(error)}") from error
        sentence = first_line(error).split(". ")[0]  # a part of the model has no SDPA attention
        raise InputError(
            "cannot-build", f"{name!r} cannot be built under SDPA attention: {sentence}; {SUPPORTED}"
        ) from error
    except (ImportError, RuntimeError) as error:  # a missing package or kernel for quantised weights
        raise ValueError(f"{name!r} cannot be loaded: {first_line(error)}") from error
    check_keys(name, info)
    if dequantised and isinstance(settings["dtype"], torch.dtype):
        model = model.to(settings["dtype"])
    check_finite_weights(model, name)
    generation_settings.replace(model)
    return model


def attention_names(config) -> str | dict[str, str]:
    """Attention function of every part of a model: SDPA, except eager for a decoder that has no SDPA (gpt-oss)."""
    text = config.get_text_config(decoder=True)
    plain = plain_attention(MODEL_MAPPING[type(text)]) if type(text) in MODEL_MAPPING else "sdpa"
    return plain if plain == "sdpa" or text is config else {"": "sdpa", "text_config": plain}


def check_finite_weights(model, name: str) -> None:
    """Raise ValueError for weights that are NaN or infinite, with the name of the first one in layer order."""
    for weight, values in model.named_parameters():
        if values.is_floating_point() and values.itemsize > 1:  # float8 has its own kernels
            low, high = values.aminmax()  # both propagate NaN
            if not torch.isfinite(low) or not torch.isfinite(high):
                raise ValueError(
                    f"the weights of {name!r} are not finite, first in {weight} ({int((~values.isfinite()).sum())} of "
                    f"{values.numel()} values); download the file again, or load it with --dtype bfloat16 if it is "
                    "whole and float16 cannot hold it"
                )


def check_together(model, processor, name: str) -> None:
    """Check that model and processor belong together, by one forward pass of a blank image."""
    try:
        attention_stack(model, "decoder")
        check_image_token(model, processor)
        check_image_in_template(model, processor)
        inputs, _ = model.prepare(processor, [BLANK], "a")
        prefill(model, inputs)
    except (ValueError, torch.OutOfMemoryError) as error:
        raise InputError(
            reason_of(error, "unusable-checkpoint"), f"{name!r} cannot be used: {first_line(error)}"
        ) from error
    except Exception as error:  # another family's processor or mixed number types may raise any error
        raise ValueError(
            f"{name!r} cannot be used: model and processor fail on a blank image ({type(error).__name__}: "
            f"{first_line(error)}); take all files from one release of the {model.config.model_type} family"
        ) from error


def check_image_token(model, processor) -> None:
    """Raise ValueError unless the tokenizer's image token is the model's image token."""
    token, marked = processor.tokenizer.convert_tokens_to_ids(model.image_token), model.config.image_token_id
    if token != marked:
        raise ValueError(
            f"the tokenizer writes an image as {model.image_token!r} (token {token}), but the model looks for "
            f"token {marked}: they do not belong together"
        )


def check_image_in_template(model, processor) -> None:
    """Raise ValueError for a text-only chat template, which drops images."""
    if processor.chat_template and model.image_token not in model._render(processor, "a", 1).text:
        raise ValueError(
            f"the chat template writes no {model.image_token!r} for an image: it is one of text alone; take the "
            "template (chat_template.jinja or chat_template.json) of the vision-language release"
        )


def check_unpatched(model, processor, name: str) -> None:
    """Check on a blank image that an unpatched family can be recorded. Raises ValueError if it cannot."""
    try:
        check_image_in_template(model, processor)
        check_recording(model, processor)
    except Exception as error:  # an untested family may raise any error
        raise InputError(
            reason_of(error, "unrecordable-family"),
            f"{name!r} is of the family {model.config.model_type!r}, which cannot be recorded: {first_line(error)}; "
            f"{SUPPORTED}",
        ) from error


def locate(name: str) -> str:
    """Folder of an embedded model, else the name itself as a folder or hub id.

    Raises FileNotFoundError for a name without a checkpoint, ValueError as `check_folder` does.
    """
    if name in embedded():
        return str(TINY / name)
    if os.path.isdir(name):
        check_folder(name)
        return name
    if os.path.exists(name) or not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", name) or name.startswith((".", "~")):
        raise MissingFileError(
            "unknown-model",
            f"model {name!r} is neither a folder, nor a hub id (owner/name), nor embedded ({', '.join(embedded())})",
        )
    return name


def checkpoint_hashes(name: str, revision: str | None) -> dict[str, str]:
    """Hash of each file of a checkpoint by its name (`models.folders.contents`); of a model on the hub its commit.

    Raises as `locate` does, and ValueError for a model on the hub that cannot be read.
    """
    path = name if os.path.isfile(name) else locate(name)
    if known := contents(path):
        return known
    with quiet(), reading_config(name):
        return {"commit": str(extract_commit_hash(cached_file(path, "config.json", revision=revision), None))}


def place(device: str) -> str | dict[str, str]:
    """Device map for a device flag."""
    if device == "auto":
        return "auto" if torch.cuda.is_available() else {"": "cpu"}
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise InputError("unknown-device", f"device {device!r} is unknown; use auto, cpu, cuda or cuda:N") from error
    if wanted.type not in ("cpu", "cuda"):
        raise InputError("unsupported-device", f"device {device!r} is not supported; use auto, cpu, cuda or cuda:N")
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "no-gpu", f"device {device!r} was asked for, but torch {torch.__version__} sees no GPU; use cpu"
        )
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise InputError(
            "no-such-device",
            f"device {device!r} does not exist; torch sees {torch.cuda.device_count()}, from cuda:0 on",
        )
    return {"": device}


def quantized(load_4bit: bool, load_8bit: bool, where, dtype: str) -> BitsAndBytesConfig | None:
    """Settings of bitsandbytes; `where` is the device map, `dtype` the number type of products with 4-bit weights."""
    if not (load_4bit or load_8bit):
        return None
    if load_4bit and load_8bit:
        raise InputError("two-quantisations", "load_4bit and load_8bit were both given; choose one")
    flag = "load_4bit" if load_4bit else "load_8bit"
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            "no-bitsandbytes",
            f"{flag} needs the package bitsandbytes, which is not installed: pip install bitsandbytes",
        )
    if not torch.cuda.is_available():
        raise ValueError(f"{flag} needs a GPU, and torch {torch.__version__} sees none; load the model without it")
    if where == {"": "cpu"}:
        raise InputError(
            "quantisation-without-gpu", f"{flag} needs a GPU, and device 'cpu' was asked for; choose one of the two"
        )
    number = DTYPES.get(dtype, torch.bfloat16)  # bitsandbytes defaults to float32, which is slow and large
    return BitsAndBytesConfig(load_in_4bit=load_4bit, load_in_8bit=load_8bit, bnb_4bit_compute_dtype=number)


def read_config(path: str, name: str, revision: str | None):
    """The checkpoint's config; its `_commit_hash` is that of a model on the hub, else None. Raises ValueError for a
    family that, by its config, cannot be recorded."""
    hub = not os.path.isdir(path)
    if hub:
        check_hub_adapter(path, revision)
    with reading_config(name):
        fields = dict(PreTrainedConfig.get_config_dict(path, revision=revision)[0])
    check_fields(fields, name)
    family = fields["model_type"]
    with reading_config(name):
        known = family in CONFIG_MAPPING
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False) if known else None
        commit = extract_commit_hash(cached_file(path, "config.json", revision=revision), None) if hub else None
    if family not in FAMILIES and (fault := check_config(config, fields)):
        raise InputError("unknown-family", f"{name!r} is of the family {family!r}, which {fault}; {SUPPORTED}")
    complete_rope(config, fields)
    config._commit_hash = commit  # transformers 5 no longer sets it
    return config


@contextmanager
def reading_config(name: str):
    """Convert the error of a damaged config, whose class depends on the library, into a FileNotFoundError."""
    try:
        yield
    except Exception as error:
        raise MissingFileError(
            "unreadable-config",
            f"model {name!r} could not be read: {first_line(error)} (embedded models: {', '.join(embedded())})",
        ) from error


def complete_rope(config, fields: dict) -> None:
    """Copy the base of the rotary embedding from the top of a config into its text_config.

    The config of adept/fuyu-8b holds rope_theta 25000 at the top and a text_config with the family's name only;
    transformers 5 reads the latter and uses its default of 10000, which makes every attention weight wrong.
    """
    text, inner = config.get_text_config(), fields.get("text_config")
    stated = isinstance(inner, dict) and inner.keys() & {"rope_theta", "rope_parameters", "rope_scaling"}
    if isinstance(inner, dict) and not stated and "rope_theta" in fields and text.rope_parameters:
        text.rope_parameters["rope_theta"] = fields["rope_theta"]


def check_keys(name: str, info: dict) -> None:
    """Raise ValueError unless every weight was found, was used, and has the right shape."""
    wrong = [
        f"{kind.replace('_', ' ')} {sorted(map(str, info[kind]))[:3]} ({len(info[kind])} in all)"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if info.get(kind)
    ]
    if wrong:
        raise InputError("weights-do-not-fit", f"the weights of {name!r} do not fit its config: {'; '.join(wrong)}")


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def describe(model) -> dict:
    """Description of a model for a run's settings.json: name, revision, family, number type, devices."""
    devices = {str(parameter.device) for parameter in model.parameters()}
    return {
        "name": model.config.name_or_path,
        "revision": getattr(model.config, "_commit_hash", None),
        "family": model.config.model_type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "devices": sorted(devices),
        "attention": "sdpa",
        "pixels of an image": getattr(model, "pixel_limits", None),
        "generation": model.generation_config.to_diff_dict(),
        "generation settings of the checkpoint that are off": model.checkpoint_generation,
    }


@dataclass(frozen=True)
class Load:
    """Model and loading options: `models.load(settings.model, **settings.options)`."""

    model: str
    """Embedded model, folder, or hub id such as llava-hf/llava-1.5-7b-hf or Qwen/Qwen2.5-VL-3B-Instruct."""
    device: str = "auto"
    """auto (all GPUs, else the CPU) | cpu | cuda | cuda:N."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """auto: the checkpoint's type on a GPU, float32 on a CPU."""
    load_4bit: bool = False
    """Quantise to 4 bits during loading (needs bitsandbytes and a GPU)."""
    load_8bit: bool = False
    """Quantise to 8 bits during loading (needs bitsandbytes and a GPU)."""
    revision: str | None = None
    """Revision of a hub model."""
    min_pixels: int | None = None
    """Qwen families: enlarge smaller images to this number of pixels (default: the checkpoint's limit)."""
    max_pixels: int | None = None
    """Qwen families: shrink larger images to this number of pixels, which shortens the prompt (default: as above)."""

    def __post_init__(self) -> None:
        if self.load_4bit and self.load_8bit:
            raise ValueError("--load-4bit and --load-8bit were both given; choose one")

    @property
    def options(self) -> dict:
        """Options of `models.load`."""
        return {name: value for name, value in vars(self).items() if name != "model"}
