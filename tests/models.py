"""Small random models of the stock classes with stock processors; no download."""

import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import LlavaConfig, LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from models.modeling_llava import LlavaForConditionalGeneration

SENTENCE = "where is the red green blue circle square to the left right of a user assistant : ? . what in describe"
WORDS = sorted({*SENTENCE.split(), "image"})
TEMPLATE = (
    "{% for message in messages %}user : {% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}<image> {% else %}{{ item['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Tokenizer with one token per word; unknown words become <unk>."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "<image>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
    )


def llava_processor(side: int = 56, patch: int = 14) -> LlavaProcessor:
    return LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        word_tokenizer(),
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


VISION = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
TEXT = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "vocab_size": 5 + len(WORDS)}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def llava_config(side: int = 56, patch: int = 14, layers: int = 3, heads: int = 4, key_heads: int = 2) -> LlavaConfig:
    depth = {"num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": key_heads}
    return LlavaConfig(
        vision_config=VISION | {"num_attention_heads": 4, "image_size": side, "patch_size": patch},
        text_config=TEXT | IDS | depth | {"max_position_embeddings": 1024},
        image_token_index=4,
        image_seq_length=(side // patch) ** 2,
    )


def llava(seed: int = 0, **config) -> LlavaForConditionalGeneration:
    torch.manual_seed(seed)
    return sharpen(LlavaForConditionalGeneration(llava_config(**config)).eval())


def sharpen(model, factor: float = 6.0):
    """Scale queries and keys of a random model up, so that attention is peaked and errors are visible."""
    for name, weight in model.named_parameters():
        if "q_proj" in name or "k_proj" in name or "query_key_value.weight" in name:
            weight.data *= factor
    model.generation_config.eos_token_id = None  # random models should not stop early
    return model


def picture(width: int = 100, height: int = 80, seed: int = 0) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8).numpy())
