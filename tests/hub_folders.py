"""Checkpoint folders in the format of the hub: released JSON files, published weight names, narrow random weights.

    python -m tests.hub_folders llava FOLDER      (qwen2_vl, qwen2_5_vl, qwen3_vl, fuyu; --layers 4 for fewer layers)

The JSON files come from ../shared/hub-folders with reduced widths; depth, heads, key heads, special tokens and their
ids are those of the release. The vocabulary is a small BPE padded to the published ids. Weights are stored in shards.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

import models
from models.loading import quiet
from tests.models import SENTENCE

PUBLISHED = Path(__file__).parents[2] / "shared" / "hub-folders"
NAMES = {
    "llava": "llava", "qwen2_vl": "Qwen2_VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3_VL", "fuyu": "fuyu",
}  # fmt: skip
"""model_type -> folder of the released JSON files."""

PUBLISHED_KEYS = {
    "llava": [("lm_head.", "language_model.lm_head."), ("model.language_model.", "language_model.model."),
              ("model.vision_tower.", "vision_tower.vision_model."),
              ("model.multi_modal_projector.", "multi_modal_projector.")],
    "qwen2_vl": [("model.language_model.", "model."), ("model.visual.", "visual.")],
    "qwen2_5_vl": [("model.language_model.", "model."), ("model.visual.", "visual.")],
    "qwen3_vl": [],
    "fuyu": [("lm_head.", "language_model.lm_head."), ("model.language_model.", "language_model.model."),
             ("model.vision_embed_tokens.", "vision_embed_tokens.")],
}  # fmt: skip
"""Prefixes of weight names in memory -> in the published checkpoints."""

VISION_HEAD_WIDTH = 16  # Qwen's rotary embedding of the vision encoder needs a multiple of 4
FUYU_VOCABULARY = 71_168  # published: 262,144; the tokenizer's special tokens are in the first part
CORPUS = [SENTENCE, "USER: ASSISTANT: yes no describe the image left right above below Is Answer", "0 1 2 3 4"] * 3
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def narrow(family: str, config: dict, layers: int | None = None) -> dict:
    """Reduce the widths of a released config; `layers` limits the depth of decoder and vision encoder."""
    text = config.get("text_config", config)
    vision = config.get("vision_config", {})
    if family == "llava":  # the released file has LLaMA's default depth and heads
        text |= {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32}
        text |= {"hidden_size": 32 * 8, "intermediate_size": 256}
        vision |= {"hidden_size": 16 * VISION_HEAD_WIDTH, "intermediate_size": 128}
    elif family == "fuyu":
        # text_config contains the family only: all sizes are Persimmon's defaults; rope_theta is outside.
        text |= {"hidden_size": 64 * 4, "intermediate_size": 256, "vocab_size": FUYU_VOCABULARY}
        text |= {"num_hidden_layers": 36, "num_attention_heads": 64}
    else:
        head = 16
        width = 128 if family == "qwen3_vl" else text["num_attention_heads"] * head  # Qwen3 has a fixed head width
        text |= {"hidden_size": width, "intermediate_size": 256}
        text["rope_scaling"] = text["rope_scaling"] | {"mrope_section": [2, 3, 3]}
        if family == "qwen3_vl":
            text["head_dim"] = head
        if family == "qwen2_vl":
            vision |= {"embed_dim": 16 * VISION_HEAD_WIDTH, "hidden_size": text["hidden_size"]}
            config.pop("quantization_config", None)  # of the 4-bit release; this folder is not quantised
        else:
            vision |= {"hidden_size": 16 * VISION_HEAD_WIDTH, "intermediate_size": 128}
            vision |= {"out_hidden_size": text["hidden_size"]}
    if layers:
        shorten(text, vision, layers)
    return config


def shorten(text: dict, vision: dict, layers: int) -> None:
    """Limit the depth of both parts of a config."""
    text["num_hidden_layers"] = layers
    for name in ("num_hidden_layers", "depth"):
        if name in vision or (name == "depth" and "embed_dim" in vision):
            vision[name] = layers + 1
    for name in ("fullatt_block_indexes", "deepstack_visual_indexes"):
        if name in vision:
            vision[name] = [0, layers - 1]


def merges_of(tokens: list[str]) -> list[tuple[str, str]]:
    """BPE merges that build each token from its characters, from the left."""
    merges = [(token[:end], token[end]) for token in tokens for end in range(1, len(token))]
    return list(dict.fromkeys(merges))


def train_bpe(pre_tokenizer, alphabet: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Train a BPE on a few words: (pieces, merges)."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(
        CORPUS, BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False, min_frequency=1)
    )
    model = json.loads(tokenizer.to_str())["model"]
    return list(model["vocab"]), [tuple(pair) for pair in model["merges"]]


def tokenizer_file(special: dict[str, int], pieces: dict[str, int], byte_level: bool) -> dict:
    """tokenizer.json of a BPE with published ids: `special` tokens are split off the text, `pieces` are plain entries,
    free ids get unused tokens."""
    if byte_level:
        split = pre_tokenizers.ByteLevel(add_prefix_space=False)
        words, merges = train_bpe(split, pre_tokenizers.ByteLevel.alphabet())
        first = {}
    else:
        split = pre_tokenizers.Metaspace(split=True)
        words, merges = train_bpe(split, list(map(chr, range(33, 127))))
        first = {"<unk>": 0, "<s>": 1, "</s>": 2, **{byte: 3 + i for i, byte in enumerate(BYTES)}}
    built = merges_of(list(pieces))
    parts = ["".join(pair) for pair in built if "".join(pair) not in pieces]
    placed = first | special | pieces
    free = iter(sorted(set(range(max(placed.values()) + 1)) - set(placed.values())))
    vocabulary = placed | {word: next(free) for word in dict.fromkeys([*words, *parts]) if word not in placed}
    vocabulary |= {f"unused_{i}": i for i in free}
    unknown = None if byte_level else "<unk>"
    tokenizer = Tokenizer(BPE(vocabulary, built + merges, byte_fallback=not byte_level, unk_token=unknown))
    if byte_level:
        tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(steps)
    settings = json.loads(tokenizer.to_str())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    order = sorted((first | special).items(), key=lambda item: item[1])
    settings["added_tokens"] = [{"id": i, "content": token, **flags} for token, i in order if token not in BYTES]
    return settings


def write_tokenizer(folder: Path, family: str) -> None:
    """Write a tokenizer.json with the special tokens of the folder's tokenizer_config.json."""
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    special = {entry["content"]: int(i) for i, entry in settings["added_tokens_decoder"].items()}
    pieces = {"|SPEAKER|": 71011, "|NEWLINE|": 71019, "<0x04>": 71122} if family == "fuyu" else {}
    fields = tokenizer_file(special, pieces, byte_level=family.startswith("qwen"))
    (folder / "tokenizer.json").write_text(json.dumps(fields))


def published_name(family: str, name: str) -> str:
    """Published name of a weight."""
    for ours, theirs in PUBLISHED_KEYS[family]:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def write_shards(folder: Path, weights: dict[str, torch.Tensor], shards: int = 3) -> None:
    """Write weights as safetensors shards with an index."""
    size = -(-len(weights) // shards)
    names, weight_map = list(weights), {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = names[number * size : (number + 1) * size]
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(weight.nbytes for weight in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write(folder: Path, family: str, layers: int | None = None, dtype=torch.bfloat16) -> Path:
    """Write the folder of a family in the format of the hub. Needs ../shared/hub-folders."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in (PUBLISHED / NAMES[family]).glob("*.json"):
        if file.name != "model.safetensors.index.json":
            (folder / file.name).write_bytes(file.read_bytes())
    config = narrow(family, json.loads((folder / "config.json").read_text()), layers)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_tokenizer(folder, family)
    module, name = models.FAMILIES[family]
    torch.manual_seed(0)
    with quiet():  # warnings about older names in a released config
        read = transformers.AutoConfig.from_pretrained(folder)
        model = getattr(importlib.import_module(module), name)._from_config(read, dtype=torch.float32).eval()
    sharpen(model)
    tied = set(model._tied_weights_keys or ()) if read.tie_word_embeddings else set()
    weights = {
        published_name(family, name): weight.to(dtype).contiguous().clone()
        for name, weight in model.state_dict().items()
        if name not in tied
    }
    write_shards(folder, weights)
    return folder


def sharpen(model) -> None:
    """Scale queries and keys of a narrow random model up, so that attention is not uniform."""
    for name, weight in model.named_parameters():
        if any(part in name for part in ("q_proj.weight", "k_proj.weight", "query_key_value.weight")):
            weight.data *= 8
        elif weight.ndim == 1 and "norm" not in name and "bias" in name:
            weight.data.normal_(std=0.02)


if __name__ == "__main__":
    count = int(sys.argv[sys.argv.index("--layers") + 1]) if "--layers" in sys.argv else None
    print(write(Path(sys.argv[2]), sys.argv[1], count))
