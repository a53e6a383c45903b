"""Decoders of many families, small and random: recorded weights are eager attention's, or one sentence refuses."""

import pytest
import torch
import transformers
from transformers.models.llama import modeling_llama

from models.attention import attention_modules, decoder_layers
from models.text import load
from models.trace import AttentionTrace
from tests.errors import refused
from tests.models import IDS, TEXT, word_tokenizer

SIZES = TEXT | IDS | {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
}  # fmt: skip
EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "first_k_dense_replace": 1,
}  # fmt: skip
LATENT = EXPERTS | {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}  # fmt: skip
OPT = {"word_embed_proj_dim": 32, "ffn_dim": 48}
LINEAR = EXPERTS | {
    "num_hidden_layers": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}  # fmt: skip
MAMBA = EXPERTS | {"num_hidden_layers": 4, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8}
ZAMBA = {"layers_block_type": ["mamba", "hybrid"] * 2, "num_hidden_layers": 4, "n_mamba_heads": 2}
WINDOW = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}

EXACT = {
    "Llama": {}, "Qwen2": {}, "Qwen3": {}, "Mistral": {"sliding_window": None}, "Phi": {}, "Phi3": {}, "Gemma": {},
    "Olmo": {}, "Olmo2": {}, "StableLm": {}, "Persimmon": {}, "Cohere": {}, "Granite": {}, "Starcoder2": {},
    "SmolLM3": {}, "Glm": {}, "Glm4": {}, "Helium": {}, "Ernie4_5": {}, "SeedOss": {}, "GPTBigCode": {}, "BioGpt": {},
    "OPT": OPT, "Mixtral": EXPERTS, "Qwen2Moe": EXPERTS, "Qwen3Moe": EXPERTS, "Olmoe": EXPERTS, "GraniteMoe": EXPERTS,
    "Glm4Moe": EXPERTS, "DeepseekV3": LATENT, "MiniCPM3": LATENT, "GPT2": {}, "GPTNeoX": {},
    "Lfm2": {"layer_types": None},
    "Llama4": EXPERTS | {"layer_types": ["chunked_attention", "full_attention"], "intermediate_size_mlp": 48,
                         "attention_chunk_size": 4},
    "Gemma3": WINDOW, "Cohere2": WINDOW, "Gemma2": WINDOW | {"attn_logit_softcapping": 5.0},
    "GptOss": EXPERTS | WINDOW, "Ministral": {"sliding_window": 4, "layer_types": ["sliding_attention"] * 2},
}  # fmt: skip
REFUSED = {
    "Lfm2": ({"layer_types": ["conv", "full_attention"]}, "partial-attention"),
    "Jamba": (MAMBA | {"attn_layer_period": 2, "attn_layer_offset": 1}, "partial-attention"),
    "Bamba": (MAMBA | {"attn_layer_indices": [1]}, "partial-attention"),
    "GraniteMoeHybrid": (MAMBA | {"layer_types": ["mamba", "attention"] * 2}, "partial-attention"),
    "FalconH1": (MAMBA | {"mamba_d_ssm": 64, "mamba_n_groups": 1}, "partial-attention"),
    "Qwen3Next": (LINEAR, "partial-attention"),
    "Qwen3_5": (LINEAR, "partial-attention"),
    "OlmoHybrid": (LINEAR, "partial-attention"),
    "MiniMax": (EXPERTS, "partial-attention"),
    "Zamba2": (ZAMBA, "partial-attention"),
    "NemotronH": (MAMBA | {"layer_types": ["linear_attention", "full_attention"] * 2}, "no-attention-interface"),
    "RecurrentGemma": ({"lru_width": 32, "num_hidden_layers": 3}, "no-attention-interface"),
    "DeepseekV32": (LATENT, "partial-attention"),
    "HrmText": ({}, "layers-without-attention"),
    "DiffLlama": ({}, "attends-twice"),
    "Doge": ({}, "no-attention-interface"),
    "Bloom": ({}, "no-attention-interface"),
    "Mpt": ({}, "no-attention-interface"),
    "GPTJ": ({}, "no-attention-interface"),
}  # fmt: skip


def build(name: str, changes: dict):
    """A random causal language model of a family of transformers, with peaked attention, so that errors show."""
    kind = getattr(transformers, name + ("LMHeadModel" if name == "GPT2" else "ForCausalLM"))
    torch.manual_seed(0)
    model = kind(kind.config_class(**SIZES | changes)).eval()
    for module in attention_modules(model).values():
        for weight in module.parameters():
            if weight.ndim == 2:
                weight.data *= 6
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture
def prompts():
    """A batch of 9 and 5 tokens, padded on the left."""
    ids = torch.arange(4, 22).view(2, 9)
    mask = torch.ones_like(ids)
    mask[1, :4], ids[1, :4] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name", EXACT)
@torch.no_grad()
def test_weights_equal_eager(name, prompts):
    """Prompt rows and decode rows of a padded batch, within 1e-5 of a layer's weights; rounding takes below 1e-6."""
    model = build(name, EXACT[name])
    options = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True}
    with AttentionTrace(model) as trace:
        sequences = model.generate(**prompts, **options).sequences
    assert trace.layers == model.config.num_hidden_layers == 2 and trace.start.tolist() == [0, 4]
    model.set_attn_implementation("eager")
    eager = model.generate(**prompts, **options, output_attentions=True)
    assert torch.equal(eager.sequences, sequences)
    for step, layers in enumerate(eager.attentions):
        for layer, expected in enumerate(layers):
            for sample, start in enumerate([0, 4]):
                rows = range(start, 9) if step == 0 else [8 + step]
                weights = trace.weights(layer, rows, samples=[sample])[0, :, :, : 9 + step]
                wanted = expected[sample, :, start if step == 0 else 0 :]
                weights = weights[:, :, -wanted.shape[-1] :]  # the cache of a window drops keys
                assert (weights - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize("name", REFUSED)
@torch.no_grad()
def test_what_is_refused(name, prompts):
    changes, reason = REFUSED[name]
    model = build(name, changes)
    with refused(reason) as error, AttentionTrace(model):
        model(**prompts)
    assert "\n" not in str(error.value)
    if model.get_decoder().config._attn_implementation != "eager":
        model(**prompts)  # without a trace everything is allowed


@torch.no_grad()
def test_only_what_attends_through_the_interface_counts(prompts):
    """GPT-NeoX's modules are called `attention`, as are BERT's containers of them, which are not found."""
    model = build("GPTNeoX", {})
    assert list(attention_modules(model.get_decoder())) == ["layers.0.attention", "layers.1.attention"]
    assert decoder_layers(model) == list(model.gpt_neox.layers)
    config = transformers.BertConfig(**SIZES, is_decoder=True)
    bert = transformers.BertLMHeadModel(config).eval()
    with refused("no-attention-interface"), AttentionTrace(bert):
        bert(**prompts)


@pytest.mark.parametrize(
    "arguments", [{"position_bias": torch.zeros(1, 4, 9, 9)}, {"is_causal": False}], ids=["position_bias", "is_causal"]
)
@torch.no_grad()
def test_arguments_that_change_the_weights_are_refused(prompts, arguments):
    """What a caller passes to the model's forward pass reaches SDPA."""
    model = build("Llama", {})
    prompts = {"input_ids": prompts["input_ids"]}
    with refused("attention-arguments"), AttentionTrace(model):
        model(**prompts, **arguments)
    with AttentionTrace(model) as trace:
        model(**prompts, is_causal=True)
    assert trace.length == 9


def save(folder, name, changes):
    build(name, changes).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", ["GPTNeoX", "Lfm2", "GPT2", "GptOss", "Mistral"])
def test_checkpoints_of_exact_decoders_load(tmp_path, name):
    model, tokenizer = load(save(tmp_path, name, EXACT.get(name, {})))
    inputs, layout = model.prepare(tokenizer, [], "where is the red circle ?")
    with torch.no_grad(), AttentionTrace(model) as trace:
        model(**inputs)
    assert trace.layers == 2 and trace.length == layout.length


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Lfm2", "partial-attention"),
        ("DiffLlama", "attends-twice"),
        ("HrmText", "layers-without-attention"),
        ("Bloom", "no-attention-interface"),
    ],
)
def test_checkpoints_of_other_decoders_are_refused(tmp_path, name, reason):
    with refused(reason) as error:
        load(save(tmp_path, name, REFUSED[name][0]))
    assert "\n" not in str(error.value)


def test_a_decoder_whose_eager_weights_differ_is_refused(tmp_path, monkeypatch):
    """Queries are squashed in eager attention alone, as in a family whose SDPA leaves a part of the formula out."""
    folder = save(tmp_path, "Llama", {})
    plain = modeling_llama.eager_attention_forward

    def squashed(module, query, key, *args, **kwargs):
        return plain(module, query.tanh(), key, *args, **kwargs)

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", squashed)
    with refused("weights-differ"):
        load(folder)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    """Its tokens are more than the model has."""
    folder = save(tmp_path, "Llama", {"vocab_size": 3})
    with pytest.raises(ValueError, match=r"model and tokenizer fail on .* \(IndexError: .*; take all files"):
        load(folder)
