"""Families that have no file here: recorded exactly and their words found, or refused in one sentence."""

import warnings

import pytest
import torch
import transformers
from transformers.utils import logging

import models
from analysis.rollout import rollout
from models.generation import answer
from models.trace import AttentionTrace
from models.unpatched import check_recording, image_text, model_class, unexpand, without_insertions
from tests import tolerance
from tests.errors import refused
from tests.models import TEMPLATE, picture, word_tokenizer
from tests.unpatched import UNPATCHED, llava_next, mllama, paligemma, save, text_config

pytestmark = pytest.mark.numerical
PROMPTS = ["is the red circle left of the Red square ?", "what is red ?"]
PICTURES = [[picture(90, 70), picture(60, 130, seed=1)], [picture(60, 90, seed=2)]]
TINY = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3, "d_model": 64, "n_heads": 4, "n_layers": 3}
TINY |= {"vocab_size": text_config()["vocab_size"]}

logging.disable_progress_bar()


@pytest.fixture(scope="module", params=UNPATCHED)
def family(request, tmp_path_factory):
    """(folder as the stock classes write it, the stock class, our model, processor)."""
    folder = tmp_path_factory.mktemp(request.param)
    stock = type(save(folder, UNPATCHED[request.param]))
    with pytest.warns(UserWarning, match=f"of the family '{request.param}', whose image grid is not known") as caught:
        model, processor = models.load(str(folder))
    assert len(caught) == 1 and caught[0].filename == __file__ and "\n" not in str(caught[0].message)
    return folder, stock, model, processor


def prepared(model, processor, batch):
    """(inputs, layouts) of both prompts with three pictures, or of the first with its two."""
    if batch:
        return model.prepare(processor, PICTURES, PROMPTS)
    inputs, layout = model.prepare(processor, PICTURES[0], PROMPTS[0])
    return inputs, [layout]


@torch.no_grad()
@pytest.mark.parametrize("batch", [False, True], ids=["single", "left_padded_batch"])
def test_weights_equal_the_stock_classs_eager(family, batch):
    folder, stock, model, processor = family
    inputs, layouts = prepared(model, processor, batch)
    assert any(layout.start > 0 for layout in layouts) == batch
    options = {"max_new_tokens": 4, "do_sample": False}
    with AttentionTrace(model) as trace:
        tokens = model.generate(**inputs, **options)
    plain = stock.from_pretrained(folder).eval()
    assert torch.equal(plain.generate(**inputs, **options), tokens)
    eager = stock.from_pretrained(folder, attn_implementation={"text_config": "eager"}).eval()
    steps = eager.generate(**inputs, **options, output_attentions=True, return_dict_in_generate=True).attentions
    for layout in layouts:
        for layer in range(trace.layers):
            prefill = trace.weights(layer, range(layout.start, layout.length), samples=[layout.sample])[0]
            expected = steps[0][layer][layout.sample, :, layout.start :]
            assert (prefill[..., : layout.length] - expected).abs().max() <= tolerance.two_runs()
            for step in range(1, 4):
                row = layout.length + step - 1
                ours = trace.weights(layer, row, samples=[layout.sample])[0, :, 0, : row + 1]
                assert (ours - steps[step][layer][layout.sample, :, 0]).abs().max() <= tolerance.two_runs()


@pytest.mark.parametrize("batch", [False, True], ids=["single", "left_padded_batch"])
def test_every_token_knows_its_characters(family, batch):
    """Word-level tokenizers: each token that is no image's must be the very word that its offsets cut out."""
    _, _, model, processor = family
    inputs, layouts = prepared(model, processor, batch)
    for layout in layouts:
        ids = inputs["input_ids"][layout.sample].tolist()
        placeholder = processor.image_token
        for position, (first, last) in enumerate(layout.offsets[layout.start :], layout.start):
            spelled = processor.tokenizer.decode([ids[position]])
            if layout.text[first:last] != placeholder:
                assert layout.text[first:last].lower() == ("" if spelled == "<s>" else spelled)
            else:
                assert not set(spelled) & set("abcdefghijklmnopqrstuvwxyz") or spelled.startswith("<")
        assert processor.tokenizer.decode([ids[i] for i in layout.word("red")]) == "red"
    first = layouts[0]
    assert int(first.word("circle")) == int(first.word("red")) + 1
    assert int(first.word("red", 1)) == int(first.word("square")) - 1


def test_image_tokens_are_shared_out_between_the_pictures(family):
    """Also where two pictures stand side by side; alone, each has as many as in company (LLaVA-OneVision has more)."""
    folder, _, model, processor = family
    inputs, layouts = prepared(model, processor, batch=True)
    for layout in layouts:
        ids = inputs["input_ids"][layout.sample]
        marked = (ids == model.config.image_token_id).nonzero().flatten()
        assert torch.equal(layout.image_positions, marked)
        assert layout.grids == (None,) * len(layout.images)
    if model.config.model_type != "llava_onevision":
        for pictures, layout in zip(PICTURES, layouts, strict=True):
            for image, positions in zip(pictures, layout.images, strict=True):
                alone = model.prepare(processor, [image], "what ?")[1]
                assert len(alone.images[0]) == len(positions)
    assert "text_replacement_offsets" not in inputs


def test_a_prompt_without_pictures_in_a_batch(family):
    """Each prompt has the tokens that it has alone."""
    _, _, model, processor = family
    inputs, layouts = model.prepare(processor, [PICTURES[1], []], PROMPTS)
    assert [len(layout.images) for layout in layouts] == [1, 0]
    for layout, prompt, pictures in zip(layouts, PROMPTS, [PICTURES[1], []], strict=True):
        alone, _ = model.prepare(processor, pictures, prompt)
        assert torch.equal(inputs["input_ids"][layout.sample, layout.start :], alone["input_ids"][0])


def test_answer_and_rollout_run(family):
    _, _, model, processor = family
    output = answer(model, processor, [picture(90, 70)], PROMPTS[0], max_new_tokens=3)
    rolled = rollout(output.trace, output.layout)
    torch.testing.assert_close(rolled.relevance.sum(-1), torch.ones(3))
    assert rolled.maps().per_token.shape == (3, 1, len(output.layout.images[0]))
    assert answer(model, processor, [], "what is red ?", max_new_tokens=1).layout.images == ()


@torch.no_grad()
def test_half_precision_is_accepted(family):
    folder, _, _, _ = family
    with pytest.warns(UserWarning, match="grid is not known"):
        model, processor = models.load(str(folder), dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert len(answer(model, processor, PICTURES[0], PROMPTS[0], max_new_tokens=2).tokens) == 2


def test_unexpand_by_hand():
    """'ab<>cd<>e' where the first <> became five characters and the second one."""
    placed = [{"span": (2, 4), "new_span": (2, 7)}, {"span": (6, 8), "new_span": (9, 10)}]
    starts = [unexpand(character, placed) for character in range(11)]
    assert starts == [0, 1, 2, 2, 2, 2, 2, 4, 5, 6, 8]
    ends = [unexpand(character, placed, end=True) for character in range(12)]
    assert ends == [0, 1, 2, 4, 4, 4, 4, 4, 5, 6, 8, 9]


def refused_folder(folder, sentence):
    """One sentence, and no warning of a model that is not there."""
    with warnings.catch_warnings(record=True) as output:
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match=sentence) as error:
            models.load(str(folder))
    assert "\n" not in str(error.value) and not any("grid" in str(warning.message) for warning in output)


def test_text_only_model_is_refused(tmp_path):
    config = transformers.LlamaConfig(**text_config())
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    refused_folder(tmp_path, "family 'llama', which is not a model of images and text; supported are llava, qwen2_vl")


@pytest.mark.parametrize("text, marked", [("t5", {"image_token_index": 4}), ("opt", {})])
def test_blip2_is_refused(tmp_path, text, marked):
    transformers.Blip2Config(text_config={"model_type": text}, **marked).save_pretrained(tmp_path)
    fault = "has an encoder and a decoder" if text == "t5" else "does not mark its image tokens in input_ids"
    refused_folder(tmp_path, f"family 'blip-2', which {fault}")


def test_family_without_full_attention_is_refused(tmp_path):
    transformers.Qwen3_5Config().save_pretrained(tmp_path)
    refused_folder(
        tmp_path, r"family 'qwen3_5', which has layers without attention \(linear_attention\);"
    )


def test_windows_and_sinks_load(tmp_path):
    """gpt-oss, which runs under eager attention, in LLaVA-NeXT: a short generation over its window of 16 keys."""
    text = text_config("gpt_oss", head_dim=16, sliding_window=16, num_local_experts=4, num_experts_per_tok=2)
    save(tmp_path, llava_next, text=text)
    with pytest.warns(UserWarning, match="grid is not known"):
        model, processor = models.load(str(tmp_path))
    assert model.get_decoder().config._attn_implementation == "eager"
    answered = answer(model, processor, [picture(90, 70)], PROMPTS[0], max_new_tokens=2)
    sums = answered.trace.weights(0, [answered.layout.length - 1]).sum(-1)
    assert (sums < 1).all() and (sums > 0).all()


def test_family_whose_processor_needs_torchvision_is_refused(tmp_path):
    transformers.Mistral3Config().save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    refused_folder(tmp_path, "PixtralProcessor needs torchvision; install the one")


@pytest.mark.parametrize(
    "text, sentence",
    [
        (TINY | {"model_type": "falcon"}, "the attention of .* does not go through transformers' attention interface"),
        (TINY | {"model_type": "mpt"}, "the attention of .* does not go through transformers' attention interface"),
    ],
    ids=["own_attention", "no_sdpa"],
)
def test_unfit_decoder_in_a_fit_family_is_refused(tmp_path, text, sentence):
    save(tmp_path, llava_next, text=text)
    refused_folder(tmp_path, sentence)


def test_cross_attention_is_refused(tmp_path):
    save(tmp_path, mllama)
    refused_folder(tmp_path, "family 'mllama', which cannot be recorded: Mllama.* 3 layers and 2 modules")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # within transformers' processor
def test_processor_that_writes_into_the_prompt():
    """PaliGemma: a begin token after the images and a line break at the end; words keep their characters."""
    stock, processor = paligemma()
    stock.__class__ = model_class(stock.config, processor)
    inputs, layout = stock.prepare(processor, PICTURES[1], PROMPTS[0])
    assert len(layout.images[0]) == 16
    assert [processor.tokenizer.decode(inputs["input_ids"][0, [i]]) for i in layout.word("red", 1)] == ["red"]


def test_rewritten_prompts():
    """Characters inserted at the start, in the middle and at the end; any other change is refused."""
    assert without_insertions("ab", "ab") == [0, 1, 2]
    assert without_insertions("ab", "<ab") == [0, 0, 1, 2]
    assert without_insertions("ab", "a--b!") == [0, 1, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="the processor rewrote the prompt"):
        without_insertions("ab", "cb")


def test_a_video_processor_that_is_not_the_last_argument(tmp_path):
    """LLaVA-NeXT-Video's comes first; its folder is read and written without it."""
    _, made = llava_next()
    kind = image_text(transformers.LlavaNextVideoProcessor)
    assert kind.get_attributes() == ["image_processor", "tokenizer"]
    options = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    kind(None, made.image_processor, made.tokenizer, chat_template=TEMPLATE, **options).save_pretrained(tmp_path)
    read = kind.from_pretrained(tmp_path)
    assert type(read.image_processor) is type(made.image_processor) and read.patch_size == 14
    assert len(read.tokenizer) == len(made.tokenizer)


def test_weights_that_are_not_the_eager_models_are_refused(tmp_path):
    """A planted layer that scales its scores otherwise under eager attention than under any other."""
    save(tmp_path, llava_next)
    with pytest.warns(UserWarning, match="grid is not known"):
        model, processor = models.load(str(tmp_path))
    check_recording(model, processor)
    layer = model.model.language_model.layers[1].self_attn
    scaling = layer.scaling

    def rescale(module, _):
        module.scaling = scaling * (1.5 if module.config._attn_implementation == "eager" else 1)

    layer.register_forward_pre_hook(rescale)
    with refused("weights-differ"):
        check_recording(model, processor)
    assert layer.config._attn_implementation == "sdpa"
