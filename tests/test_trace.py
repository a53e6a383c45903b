"""Recorded attention against what the eager model returns, and that recording leaves no mark."""

import pytest
import torch
import transformers

from data.errors import PositionError, StateError
from models.attention import LISTENERS
from models.trace import BLOCK_ELEMENTS, AttentionTrace, Recorded, together
from tests import tolerance
from tests.errors import refused
from tests.models import llava, llava_processor, picture

pytestmark = pytest.mark.numerical
PROMPTS = ["where is the red circle ?", "describe the image ."]


@pytest.fixture(scope="module", params=[(4, 4), (4, 2), (4, 1)], ids=["heads4", "grouped2", "grouped4"])
def model(request):
    return llava(heads=request.param[0], key_heads=request.param[1])


def single(model):
    return model.prepare(llava_processor(), [picture()], PROMPTS[0])


def batch(model):
    return model.prepare(llava_processor(), [[picture(seed=1)], [picture(60, 90, seed=2)]], PROMPTS)


def generate(model, inputs, **options):
    return model.generate(**inputs, max_new_tokens=5, do_sample=False, **options)


def eager_weights(model, inputs, sequences):
    """[layer][sample, head, query, key] of the eager model reading the prompt and all answer tokens but the last."""
    model.set_attn_implementation({"text_config": "eager"})
    fed = sequences[:, :-1]
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(fed[:, inputs["input_ids"].shape[1] :])], 1)
    position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
    output = model(
        input_ids=fed,
        attention_mask=mask,
        position_ids=position_ids,
        pixel_values=inputs["pixel_values"],
        output_attentions=True,
    )
    model.set_attn_implementation({"text_config": "sdpa"})
    return output.attentions


@pytest.mark.parametrize("prepare", [single, batch], ids=["single", "left_padded_batch"])
@torch.no_grad()
def test_weights_equal_eager(model, prepare):
    inputs, layouts = prepare(model)
    with AttentionTrace(model) as trace:
        sequences = generate(model, inputs)
    reference = eager_weights(model, inputs, sequences)
    for layer, expected in enumerate(reference):
        for layout in layouts if isinstance(layouts, list) else [layouts]:
            rows = range(layout.start, trace.length)
            ours = trace.weights(layer, rows, samples=[layout.sample])[0]
            assert (ours - expected[layout.sample][:, layout.start :]).abs().max() <= tolerance.two_runs()
            torch.testing.assert_close(ours.sum(-1), torch.ones_like(ours[..., 0]))


@torch.no_grad()
def test_decode_rows_equal_eager_decoding(model):
    """Decode steps as eager generation itself returns them, not re-read in one pass."""
    inputs, _ = batch(model)
    with AttentionTrace(model) as trace:
        generate(model, inputs)
    model.set_attn_implementation({"text_config": "eager"})
    steps = generate(model, inputs, output_attentions=True, return_dict_in_generate=True).attentions
    model.set_attn_implementation({"text_config": "sdpa"})
    for step in range(1, len(steps)):
        row = trace.prompt_length + step - 1
        for layer in range(trace.layers):
            ours = trace.weights(layer, row)[..., : row + 1]
            assert (ours - steps[step][layer]).abs().max() <= tolerance.two_runs()


@torch.no_grad()
def test_recording_changes_nothing(model):
    inputs, _ = batch(model)
    plain = model(**inputs).logits
    tokens = generate(model, inputs)
    before = model.config.to_json_string()
    with AttentionTrace(model):
        assert torch.equal(generate(model, inputs), tokens)
    with AttentionTrace(model):
        assert torch.equal(model(**inputs).logits, plain)
    assert model.config.to_json_string() == before
    assert model.config.text_config._attn_implementation == "sdpa"
    assert not any(hasattr(module, LISTENERS) for module in model.modules())
    assert torch.equal(model(**inputs).logits, plain)


@torch.no_grad()
def test_model_is_whole_after_an_error(model):
    with pytest.raises(KeyError), AttentionTrace(model):
        raise KeyError
    assert model.config.text_config._attn_implementation == "sdpa"
    assert not any(hasattr(module, LISTENERS) for module in model.modules())


@pytest.mark.parametrize("elements", [1, 150, 5000, 10**6])
@torch.no_grad()
def test_blocks_are_the_weights(model, elements, monkeypatch):
    monkeypatch.setattr("models.trace.BLOCK_ROWS", 4)
    inputs, layouts = batch(model)
    with AttentionTrace(model) as trace:
        generate(model, inputs)
    short = layouts[1]
    assert short.start > 0
    for first, last in ((short.start, short.start + 3), (trace.prompt_length - 2, trace.length)):
        for apart in (True, False):
            whole = trace.weights(1, range(first, last), samples=[1])[0, :, :, short.start : last]
            blocks = trace.blocks(1, 1, first, last, apart=apart, elements=elements)
            assert_blocks(blocks, whole, first, elements, apart)


@torch.no_grad()
def test_long_rows_make_larger_blocks(model, monkeypatch):
    """Where a row alone is more than a block should hold, a block still has BLOCK_ROWS rows of one head."""
    monkeypatch.setattr("models.trace.BLOCK_ROWS", 4)
    monkeypatch.setitem(BLOCK_ELEMENTS, "cpu", 1)
    inputs, _ = single(model)
    with AttentionTrace(model) as trace:
        model(**inputs)
    blocks = list(trace.blocks(0, 0, 0, 10))
    assert [(rows.start, rows.stop) for rows, _ in blocks[:: trace.heads]] == [(0, 4), (4, 8), (8, 10)]
    assert all(len(weights) == 1 for _, weights in blocks)


def assert_blocks(blocks, whole, first, elements, apart):
    """Blocks tile the weights [head, row, key], each row of each head once, in pieces that are no larger than asked."""
    heads, count, keys = whole.shape
    taken = torch.zeros(count, dtype=torch.long)  # heads of each row so far
    for rows, weights in blocks:
        place = torch.tensor(rows) - first
        head = int(taken[place[0]])
        expected = whole[head : head + len(weights), place, : weights.shape[2]]
        torch.testing.assert_close(weights, expected)
        taken[place] += len(weights)
        assert weights.shape[2] == keys - count + rows.stop - first  # no key that none of its rows can see
        assert weights.numel() <= max(elements, keys * (1 if apart else heads))
    assert (taken == heads).all()


@pytest.mark.parametrize(
    ("heads", "shared", "most", "expected"),
    [(8, 1, 100, 8), (8, 1, 3, 3), (28, 7, 20, 14), (28, 7, 7, 7), (28, 7, 6, 1), (12, 6, 5, 3), (12, 6, 0.5, 1)],
)
def test_heads_taken_together(heads, shared, most, expected):
    """28 heads over 4 keys: two groups of 7 where 20 fit, one group, or single heads, as 7 has no other divisor."""
    assert together(heads, shared, max(1, most)) == expected


@torch.no_grad()
def test_a_long_mask_is_read_row_by_row(model, monkeypatch):
    inputs, layouts = batch(model)
    monkeypatch.setattr("models.rows.MASK_ELEMENTS", 40)
    with AttentionTrace(model) as trace:
        model(**inputs)
    assert trace.start.tolist() == [layout.start for layout in layouts] and trace.start.max() > 0


@torch.no_grad()
def test_only_what_will_be_asked_for_is_kept(model):
    inputs, layouts = batch(model)
    with AttentionTrace(model) as trace:
        plain = generate(model, inputs)
    word = layouts[0].word("red")
    last = trace.prompt_length - 1
    with AttentionTrace(model, layers=[-1, 0], rows=[*word, -1, word[0]]) as few:
        assert torch.equal(generate(model, inputs), plain)
    rows = [trace.length - 1, last, *word]
    for layer in (0, trace.layers - 1):
        assert torch.equal(few.weights(layer, rows), trace.weights(layer, rows))
        assert few._recorded[layer].prompt.shape[2] == len(set(word)) + 1
    assert few.layers == trace.layers and few.length == trace.length and few.heads == trace.heads
    with refused("layer-not-kept", PositionError):
        few.weights(1, last)
    with pytest.raises(IndexError, match=f"the query of position {last - 1} was not kept: .* 2 rows of the prompt"):
        few.weights(0, [last, last - 1])
    with refused("row-not-kept", PositionError):
        list(few.blocks(0, 0, last - 1, last + 1))
    with refused("no-such-layer", PositionError), AttentionTrace(model, layers=[3]):
        pass
    with refused("no-layer-kept"), AttentionTrace(model, layers=[]):
        pass
    with refused("no-such-query", PositionError), AttentionTrace(model, rows=[500]):
        model(**inputs)
    assert not any(hasattr(module, LISTENERS) for module in model.modules())


@torch.no_grad()
def test_selection_keeps_order(model):
    inputs, _ = batch(model)
    with AttentionTrace(model) as trace:
        generate(model, inputs)
    whole = trace.weights(0, [trace.length - 1, trace.prompt_length - 1])
    picked = trace.weights(0, [trace.prompt_length - 1, trace.length - 1], heads=[2, 0], samples=[1])
    torch.testing.assert_close(picked, whole[1:, [2, 0]].flip(2))
    assert torch.equal(trace.weights(-1, -1), trace.weights(trace.layers - 1, trace.length - 1))


@torch.no_grad()
def test_half_precision_is_within_a_hundredth():
    """bf16 weights, computed in float32 from bf16 queries and keys, against the eager model in bf16."""
    model = llava(key_heads=2).to(torch.bfloat16)
    inputs, layouts = batch(model)
    with AttentionTrace(model) as trace:
        sequences = generate(model, inputs)
    for layer, expected in enumerate(eager_weights(model, inputs, sequences)):
        for layout in layouts:
            ours = trace.weights(layer, range(layout.start, trace.length), samples=[layout.sample])[0]
            theirs = expected[layout.sample][:, layout.start :].float()
            assert ours.dtype == torch.float32
            assert (ours - theirs).norm() / theirs.norm() <= 1e-2


@torch.no_grad()
def test_offload_gives_the_same(model):
    inputs, _ = batch(model)
    with AttentionTrace(model) as trace:
        generate(model, inputs)
    with AttentionTrace(model, offload=True) as offloaded:
        generate(model, inputs)
    rows = range(trace.prompt_length - 1, trace.length)
    assert torch.equal(trace.weights(1, rows), offloaded.weights(1, rows))


@torch.no_grad()
def test_offload_moves_everything(model, monkeypatch):
    """No second device here, so the moves themselves are watched: every query as it comes, every key at the end."""
    inputs, _ = batch(model)
    moved = []
    cpu = torch.Tensor.cpu

    def watched_cpu(self):
        moved.append(tuple(self.shape))
        return cpu(self)

    with AttentionTrace(model, offload=True) as trace:
        monkeypatch.setattr(torch.Tensor, "cpu", watched_cpu)
        generate(model, inputs)
    monkeypatch.undo()
    text = model.config.text_config
    prompt, layers = inputs["input_ids"].shape[1], text.num_hidden_layers
    assert moved.count((2, text.num_attention_heads, prompt, 16)) == layers
    assert moved.count((2, text.num_attention_heads, 4, 16)) == layers
    assert moved.count((2, text.num_key_value_heads, trace.length, 16)) == layers


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.no_grad()
def test_offload_from_a_gpu():
    """Copies that run beside the model arrive whole, in pinned memory, and give the same weights."""
    model = llava().to("cuda")
    inputs, _ = batch(model)
    with AttentionTrace(model) as trace, AttentionTrace(model, offload=True) as offloaded:
        generate(model, inputs.to("cuda"))
        rows = range(trace.prompt_length - 3, trace.length)
        assert torch.equal(trace.weights(1, rows), offloaded.weights(1, rows))
    assert offloaded._recorded[0].prompt.is_pinned()
    assert torch.equal(trace.weights(1, rows), offloaded.weights(1, rows))


def tensors(holder):
    """Every tensor reachable through lists, dicts and records of layers."""
    if torch.is_tensor(holder):
        yield holder
    elif isinstance(holder, Recorded):
        yield from tensors(vars(holder))
    elif isinstance(holder, list | tuple | dict):
        for item in holder.values() if isinstance(holder, dict) else holder:
            yield from tensors(item)


@torch.no_grad()
def test_nothing_quadratic_is_kept(model):
    """Whatever a trace holds grows with T: queries and keys, and one start per sample."""
    for words in (50, 400):
        inputs, _ = model.prepare(llava_processor(), [picture()], " ".join(["red"] * words))
        with AttentionTrace(model) as trace:
            model(**inputs)
        text = model.config.text_config
        per_token = text.num_hidden_layers * (text.num_attention_heads + text.num_key_value_heads) * 16
        assert sum(tensor.numel() for tensor in tensors(vars(trace))) == per_token * trace.length + 1


def test_stock_model_is_recorded_too(model):
    stock = transformers.LlavaForConditionalGeneration(model.config).eval()
    stock.load_state_dict(model.state_dict())
    inputs, _ = single(model)
    with torch.no_grad(), AttentionTrace(stock) as trace:
        stock(**inputs)
    with torch.no_grad(), AttentionTrace(model) as ours:
        model(**inputs)
    assert torch.equal(trace.weights(2, 5), ours.weights(2, 5))


@torch.no_grad()
def test_misuse_is_explained(model):
    inputs, layouts = batch(model)
    with refused("nothing-recorded", StateError):
        AttentionTrace(model).weights(0, 0)
    with AttentionTrace(model) as trace:
        model(**inputs)
        with refused("generation-recorded", StateError):
            model(**inputs)
    with refused("no-such-layer", PositionError):
        trace.weights(9, 0)
    with refused("no-such-head", PositionError):
        trace.weights(0, -1, heads=[4])
    with refused("no-such-query", PositionError):
        trace.weights(0, 99999)
    with pytest.raises(ValueError, match="position 0 of sample 1 is padding; its first token is at position"):
        trace.weights(0, 0)
    with refused("trace-used", StateError), trace:
        pass
    with refused("cache-not-empty", StateError), AttentionTrace(model):
        in_pieces(model, inputs)


@torch.no_grad()
def test_right_padding_is_refused(model):
    inputs, _ = batch(model)
    inputs["input_ids"], inputs["attention_mask"] = inputs["input_ids"].flip(1), inputs["attention_mask"].flip(1)
    with refused("padding"), AttentionTrace(model):
        model(**inputs)


def test_unhookable_models_are_refused():
    model = llava()
    model.set_attn_implementation({"text_config": "eager"})
    with refused("not-sdpa"), AttentionTrace(model):
        pass


def test_attention_outside_the_interface_is_refused():
    """A decoder that computes its attention itself never shows a query to anyone."""
    model = llava()
    for layer in model.model.language_model.layers:
        layer.own_attention = layer.self_attn
        del layer.self_attn
    with (
        refused("no-attention-interface"),
        AttentionTrace(model),
    ):
        pass


@torch.no_grad()
@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}])
def test_batch_that_is_reordered_is_refused(model, options):
    inputs, _ = single(model)
    with refused("unrecordable-setting"), AttentionTrace(model):
        model.generate(**inputs, max_new_tokens=2, **options)
    before = model.generation_config
    model.generation_config = transformers.GenerationConfig(**options)
    with refused("unrecordable-setting"), AttentionTrace(model):
        model.generate(**inputs, max_new_tokens=2)
    model.generation_config = before
    model.generate(**inputs, max_new_tokens=2, **options)  # without a trace everything is allowed


@torch.no_grad()
def test_prompt_in_pieces_is_refused(model):
    inputs, _ = single(model)
    with refused("cache-not-empty", StateError), AttentionTrace(model):
        in_pieces(model, inputs)


def in_pieces(model, inputs):
    """Feed the prompt in two pieces, past `generate`, which refuses to."""
    first = model(**{name: value[:, :-2] if value.ndim == 2 else value for name, value in inputs.items()})
    model(inputs["input_ids"][:, -2:], past_key_values=first.past_key_values)


@pytest.mark.parametrize("elements", [2**26, 40])
@torch.no_grad()
def test_masks_with_holes_are_refused(model, elements, monkeypatch):
    """A hole in the padding mask, and a 4-D mask in which one early row looks ahead; read whole, or row by row."""
    monkeypatch.setattr("models.rows.MASK_ELEMENTS", elements)
    inputs, _ = single(model)
    holed = inputs["attention_mask"].clone()
    holed[0, 5] = 0
    with refused("mask-not-intervals"), AttentionTrace(model):
        model(**inputs | {"attention_mask": holed})
    count = holed.shape[1]
    ahead = torch.ones(count, count, dtype=torch.bool).tril()[None, None].clone()
    ahead[0, 0, 3, 7] = True
    with refused("mask-not-intervals"), AttentionTrace(model):
        model(**inputs | {"attention_mask": ahead})


@torch.no_grad()
def test_an_interrupted_run_is_named(model):
    inputs, _ = single(model)

    def stop(*_):
        raise KeyboardInterrupt

    hook = model.get_decoder().layers[1].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt), AttentionTrace(model) as trace:
        model(**inputs)
    hook.remove()
    with refused("layer-not-recorded", StateError):
        trace.weights(0, 0)


@torch.no_grad()
def test_traces_may_close_in_any_order(model):
    inputs, _ = single(model)
    first, second = AttentionTrace(model), AttentionTrace(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    model(**inputs)
    second.__exit__(None, None, None)
    assert model.config.text_config._attn_implementation == "sdpa" and second.length == inputs["input_ids"].shape[1]
    with refused("nothing-recorded", StateError):
        first.weights(0, 0)


@torch.no_grad()
def test_block_out_of_range(model):
    inputs, layouts = batch(model)
    with AttentionTrace(model) as trace:
        model(**inputs)
    start = layouts[1].start
    for first, last in ((start - 1, start + 1), (start, trace.length + 1), (start + 2, start + 2)):
        with refused("no-such-row", PositionError):
            list(trace.blocks(0, 1, first, last))
