"""Small random models of the patched families except LLaVA, with stock classes and processors; no download.

From the shell (the answers are random; prompts must consist of `tests.models.WORDS`):

    python -m tests.families qwen3_vl FOLDER
    python attention_rollout_qwen2.py --model FOLDER --image photo.jpg --prompt "where is the red circle ?"
"""

import sys

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    FuyuConfig,
    FuyuProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
)

from models.modeling_fuyu import FuyuForCausalLM
from models.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from models.modeling_qwen2_vl import Qwen2VLForConditionalGeneration
from models.modeling_qwen3_vl import Qwen3VLForConditionalGeneration, Qwen3VLMoeForConditionalGeneration
from models.processors import (
    FuyuPilImageProcessor,
    Qwen2_5_VLImageTextProcessor,
    Qwen2VLImageTextProcessor,
    Qwen3VLImageTextProcessor,
)
from tests.models import WORDS, llava, llava_processor, sharpen

QWEN_SPECIALS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
]  # fmt: skip
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} {% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ item['text'] }}{% endif %}"
    "{% endfor %}<|im_end|> {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
QWEN_TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
QWEN_ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}


def word_level(specials, **options):
    """Word-level tokenizer that splits special tokens off before it splits words."""
    vocabulary = {word: i for i, word in enumerate([*specials, "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        additional_special_tokens=specials,
        padding_side="left",
        **options,
    )


def qwen_processor(kind=Qwen2VLImageTextProcessor, patch=14, **options):
    """Qwen processor with cells of 2 x 2 patches; images are resized to 4 to 32 cells."""
    tokenizer = word_level(QWEN_SPECIALS, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    cell = (2 * patch) ** 2
    size = {"shortest_edge": 4 * cell, "longest_edge": 32 * cell}
    images = Qwen2VLImageProcessorPil(patch_size=patch, size=size, **options)
    return kind(images, tokenizer, chat_template=QWEN_TEMPLATE)


def qwen_parts(**changes):
    """Text config of the Qwen families with changes, and the ids of the special tokens."""
    text = QWEN_TEXT | {
        "num_key_value_heads": 2, "vocab_size": len(QWEN_SPECIALS) + 1 + len(WORDS),
        "rope_parameters": QWEN_ROPE, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    names = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    return text | changes, {f"{name}_token_id": QWEN_SPECIALS.index(f"<|{pad}|>") for name, pad in names.items()}


def qwen(version="2"):
    """Random Qwen2-VL ("2") or Qwen2.5-VL ("2.5")."""
    text, tokens = qwen_parts()
    torch.manual_seed(0)
    if version == "2":
        vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **tokens))
    else:
        vision = {
            "depth": 2, "hidden_size": 32, "out_hidden_size": 64, "num_heads": 2, "intermediate_size": 64,
            "window_size": 56, "fullatt_block_indexes": [1],
        }  # fmt: skip
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens))
    return sharpen(model.eval())


def qwen3(experts=0):
    """Random Qwen3-VL with heads wider than hidden size / heads, as in the 4B model; with `experts` the MoE variant."""
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [6, 3, 3], "mrope_interleaved": True}
    text, tokens = qwen_parts(head_dim=24, rope_parameters=rope)
    vision = {
        "depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    torch.manual_seed(0)
    if experts:
        text |= {"num_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
        model = Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(text_config=text, vision_config=vision, **tokens))
    else:
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **tokens))
    return sharpen(model.eval())


def qwen3_processor():
    return qwen_processor(Qwen3VLImageTextProcessor, patch=16, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def fuyu_processor(height=120, width=180):
    words = ["|ENDOFTEXT|", "<unk>", "<s>", "</s>", *(f"<0x0{i}>" for i in range(5))]
    plain = ["▁", "|SPEAKER|", "|NEWLINE|", *WORDS]
    vocabulary = {word: i for i, word in enumerate([*words, *plain])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Prepend("▁")
    # The processor expects the prepended "▁" as a separate token, and image tokens as plain words.
    pattern = Regex(r"▁|\|SPEAKER\||\|NEWLINE\||\w+|[^\w\s]")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, "isolated"), pre_tokenizers.Split(Regex(r"\s+"), "removed")]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="|ENDOFTEXT|", unk_token="<unk>",
        additional_special_tokens=words[4:], padding_side="left",
    )  # fmt: skip
    return FuyuProcessor(FuyuPilImageProcessor(size={"height": height, "width": width}), fast)


def fuyu():
    vocabulary = fuyu_processor().tokenizer.get_vocab()
    text = {
        "model_type": "persimmon", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "vocab_size": len(vocabulary), "max_position_embeddings": 512, "bos_token_id": 2,
        "eos_token_id": 3, "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 25000.0, "partial_rotary_factor": 0.5},
    }  # fmt: skip
    torch.manual_seed(0)
    config = FuyuConfig(
        text_config=text, hidden_size=64, vocab_size=len(vocabulary), patch_size=30, num_channels=3,
        image_token_id=vocabulary["|SPEAKER|"], bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    return sharpen(FuyuForCausalLM(config).eval())


FAMILIES = {
    "llava": (llava, llava_processor),
    "qwen2_vl": (qwen, qwen_processor),
    "qwen2_5_vl": (lambda: qwen("2.5"), lambda: qwen_processor(Qwen2_5_VLImageTextProcessor)),
    "qwen3_vl": (qwen3, qwen3_processor),
    "fuyu": (fuyu, fuyu_processor),
}
"""model_type -> (function that builds a random model, function that builds its processor)."""

if __name__ == "__main__":
    for part in FAMILIES[sys.argv[1]]:
        part().save_pretrained(sys.argv[2])
