"""The tower's recorded attention against eager attention, and its map between cells against full matrices."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

from analysis import rollout as module
from analysis.rollout import encoder_map, through_chunk, through_encoder
from data.errors import PositionError, StateError
from data.geometry import ImageGrid
from models.attention import LISTENERS, Offload
from models.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from models.trace import AttentionTrace
from models.vision_encoder import Chunk, EncoderTrace
from tests import tolerance
from tests.errors import refused
from tests.families import FAMILIES, fuyu, fuyu_processor
from tests.models import llava, llava_processor, picture

pytestmark = pytest.mark.numerical
ENCODERS = ("llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
PROMPTS = ["where is the red circle ?", "describe the image ."]
PICTURES = [[picture(100, 160, seed=1), picture(170, 90, seed=2)], [picture(84, 84, seed=3)]]  # 6x4, 3x6, 3x3 of Qwen


def build(family):
    """A model whose tower looks at something in particular, and a batch: two pictures of unequal size, and one."""
    model, processor = (make() for make in FAMILIES[family])
    for name, weight in model.model.named_parameters():
        if name.startswith("visual") and name.endswith(("qkv.weight", "patch_embed.proj.weight")):
            weight.data *= 12
    return model, *model.prepare(processor, PICTURES, PROMPTS)


@pytest.fixture(scope="module", params=ENCODERS)
def prepared(request):
    return build(request.param)


@torch.no_grad()
def record(model, inputs, layouts):
    with EncoderTrace(model, layouts) as trace:
        model(**inputs)
    return trace


@contextmanager
def eager_calls(model):
    """Runs the tower under eager attention; yields the weights of every call, layer by layer, as they come."""
    calls = []

    def eager(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
        calls.append((query @ key.transpose(2, 3) * scaling).softmax(-1, dtype=torch.float32))
        value = repeat_kv(value, value.shape[1] // key.shape[1])
        return (calls[-1].to(value.dtype) @ value).transpose(1, 2).contiguous(), calls[-1]

    AttentionInterface.register("tower_eager", eager)
    model.set_attn_implementation({"vision_config": "tower_eager"})
    yield calls
    model.set_attn_implementation({"vision_config": "sdpa"})


def raster(model, grid):
    """Patches of the image in the tower's order without windows, as (row, col); cell after cell, as processors do."""
    merge = 1 if model.config.model_type == "llava" else 2
    cells = [(row, col) for row in range(grid.rows) for col in range(grid.cols)]
    return [(merge * r + dy, merge * c + dx) for r, c in cells for dy in range(merge) for dx in range(merge)]


def calls_of_a_layer(model, grid, layer):
    """Patches (indices into `raster`) of each attention call on an image, in the order of the tower's rows.

    Qwen2.5-VL: windows of window_size pixels from the top left, cut at the border, one call each; in the layers of full
    attention one call on the whole image, still window after window. Elsewhere one call in the processor's order.
    """
    patches = raster(model, grid)
    if model.config.model_type != "qwen2_5_vl":
        return [list(range(len(patches)))]
    vision = model.config.vision_config
    side = vision.window_size // vision.patch_size
    groups = {}
    for index, (row, col) in enumerate(patches):
        groups.setdefault((row // side, col // side), []).append(index)
    windows = [groups[key] for key in sorted(groups)]
    return [sum(windows, [])] if layer in vision.fullatt_block_indexes else windows


@torch.no_grad()
def eager_matrices(model, inputs, layouts):
    """[image][layer]: full matrices [head, query, key] in the processor's order of patches, from eager attention."""
    with eager_calls(model) as calls:
        model(**inputs)
    grids = [grid for layout in layouts for grid in layout.grids]
    if model.config.model_type == "llava":
        return [[layer[image] for layer in calls] for image in range(len(grids))]
    full = [[] for _ in grids]
    queue = iter(calls)
    for layer in range(model.config.vision_config.depth):
        for image, grid in enumerate(grids):
            count = len(raster(model, grid))
            matrix = torch.zeros(model.config.vision_config.num_heads, count, count)
            for patches in calls_of_a_layer(model, grid, layer):
                group = torch.tensor(patches)
                matrix[:, group[:, None], group] = next(queue)[0]
            full[image].append(matrix)
    assert next(queue, None) is None
    return full


def literal(model, matrices, grid):
    """M [cell, cell] as the definition says it, from full matrices in float64."""
    merged = len(raster(model, grid)) // (grid.rows * grid.cols)
    read = matrices[:-1] if model.config.model_type == "llava" else matrices
    maps = []
    for matrix in read:
        mean = matrix.double().mean(0)
        if model.config.model_type == "llava":
            mean = mean[1:, 1:] / mean[1:, 1:].sum(-1, keepdim=True)
        cells = mean.view(grid.rows * grid.cols, merged, -1).mean(1)
        maps.append(cells.view(len(cells), -1, merged).sum(-1))
    return torch.stack(maps).mean(0)


def test_weights_equal_eager(prepared):
    model, inputs, layouts = prepared
    trace = record(model, inputs, layouts)
    reference = eager_matrices(model, inputs, layouts)
    assert len(trace.images) == len(reference) == 3
    for image, matrices in enumerate(reference):
        assert len(matrices) == trace.depth
        for layer, expected in enumerate(matrices):
            ours = trace.weights(layer, image)
            assert ours.shape == expected.shape and (ours - expected).abs().max() <= tolerance.two_runs()
            picked = trace.weights(layer, image, queries=[5, 0], heads=[1])
            torch.testing.assert_close(picked, expected[[1]][:, [5, 0]], atol=tolerance.two_runs(), rtol=0)


def test_windows_exist():
    """The windowed layer of the Qwen2.5-VL under test really has several windows, of unequal size."""
    model, inputs, layouts = build("qwen2_5_vl")
    trace = record(model, inputs, layouts)
    lengths = [[chunk.last - chunk.first for chunk in trace.chunks(0, image)] for image in range(3)]
    assert lengths == [[16] * 6, [16, 16, 16, 8, 8, 8], [16, 8, 8, 4]]
    assert [len(trace.chunks(1, image)) for image in range(3)] == [1, 1, 1]
    order = trace.images[0].order
    assert not torch.equal(order, torch.arange(len(order))) and torch.equal(order.sort().values, torch.arange(96))


@pytest.mark.parametrize("block_elements", [1, 300, 2**20])
def test_map_equals_full_matrices(prepared, block_elements, monkeypatch):
    monkeypatch.setitem(module.BLOCK_ELEMENTS, "cpu", block_elements)
    model, inputs, layouts = prepared
    trace = record(model, inputs, layouts)
    grids = [grid for layout in layouts for grid in layout.grids]
    for image, (grid, matrices) in enumerate(zip(grids, eager_matrices(model, inputs, layouts), strict=True)):
        expected = literal(model, matrices, grid)
        cells = np.eye(len(expected), dtype=np.float32).reshape(-1, grid.rows, grid.cols)
        ours = torch.from_numpy(through_encoder(cells, trace, image)).flatten(1)
        assert (ours - expected).abs().max() <= tolerance.two_runs()
        assert (ours.sum(-1) - 1).abs().max() <= 1e-5
        look = torch.from_numpy(encoder_map(trace, image))
        assert look.shape == (grid.rows, grid.cols)
        assert (look.flatten() - expected.mean(0)).abs().max() <= tolerance.two_runs()


def test_window_order_that_is_not_undone_shows(monkeypatch):
    """With Qwen2-VL's plain order in place of the windows' the map is a different one: the tests above can fail."""
    model, inputs, layouts = build("qwen2_5_vl")
    expected = literal(model, eager_matrices(model, inputs, layouts)[0], layouts[0].grids[0])
    plain = super(Qwen2_5_VLForConditionalGeneration, model).encoder_image
    monkeypatch.setattr(Qwen2_5_VLForConditionalGeneration, "encoder_image", lambda self, grid: plain(grid))
    trace = record(model, inputs, layouts)
    cells = np.eye(24, dtype=np.float32).reshape(24, 6, 4)
    assert np.abs(through_encoder(cells, trace).reshape(24, 24) - expected.numpy()).max() > 0.01


@pytest.mark.parametrize("family", ENCODERS)
@torch.no_grad()
def test_layers_are_those_that_the_decoder_reads(family):
    """A tower layer belongs to the map exactly if disturbing its attention changes what the decoder is given."""
    model, inputs, layouts = build(family)
    layers = record(model, inputs, layouts).layers
    before = model(**inputs).logits
    modules = [part for name, part in model.named_modules() if name.endswith(("vision_tower", "visual"))][0]
    attentions = [part for name, part in modules.named_modules() if name.rpartition(".")[2] in ("self_attn", "attn")]
    for layer, attention in enumerate(attentions):
        handle = attention.register_forward_hook(
            lambda part, given, out: (out[0] + 1, out[1]) if isinstance(out, tuple) else out + 1
        )
        assert torch.equal(model(**inputs).logits, before) == (layer not in layers)
        handle.remove()


@pytest.mark.parametrize("read, layers", [(-2, 23), (-1, 24), (5, 5), ([3, -3], 22)])
def test_feature_layer(read, layers):
    """-2 of 24 layers is hidden state 23 of 0 to 24, the output of layer 22."""
    model = llava()
    model.config.vision_config.num_hidden_layers, model.config.vision_feature_layer = 24, read
    assert model.encoder_layers() == range(layers)


@torch.no_grad()
def test_recording_changes_nothing(prepared):
    model, inputs, layouts = prepared
    plain = model(**inputs).logits
    tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    before = model.config.to_json_string()
    with EncoderTrace(model, layouts) as encoder_trace, AttentionTrace(model) as trace:
        assert model.config.vision_config._attn_implementation != "sdpa"
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), tokens)
    with EncoderTrace(model, layouts):
        assert model.config.text_config._attn_implementation == "sdpa"
        assert torch.equal(model(**inputs).logits, plain)
    with AttentionTrace(model) as alone:
        model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(trace.weights(1, -1), alone.weights(1, -1))
    assert torch.equal(encoder_trace.weights(1, 2), record(model, inputs, layouts).weights(1, 2))
    assert model.config.to_json_string() == before
    assert model.config.vision_config._attn_implementation == "sdpa"
    assert not any(hasattr(part, LISTENERS) for part in model.modules())
    assert torch.equal(model(**inputs).logits, plain)


@torch.no_grad()
def test_offload_gives_the_same(prepared, monkeypatch):
    """Every query and key is moved, none is looked at before all have come, and weights are as without."""
    model, inputs, layouts = prepared
    whole, events = record(model, inputs, layouts), []
    take, wait = Offload.take, Offload.wait
    monkeypatch.setattr(Offload, "take", lambda self, tensor: events.append("take") or take(self, tensor))
    monkeypatch.setattr(Offload, "wait", lambda self: events.append("wait") or wait(self))
    with EncoderTrace(model, layouts, offload=True) as trace:
        model(**inputs)
    taken = len(events)
    assert set(events) == {"take"} and taken % 2 == 0 and taken >= 2 * trace.depth
    assert torch.equal(trace.weights(0, 1), whole.weights(0, 1))
    assert events[taken] == "wait"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", ENCODERS)
@torch.no_grad()
def test_offload_from_a_gpu(family):
    model, inputs, layouts = build(family)
    model.cuda()
    inputs = inputs.to("cuda")
    with EncoderTrace(model, layouts) as whole, EncoderTrace(model, layouts, offload=True) as offloaded:
        model(**inputs)
    for image in range(len(whole.images)):
        assert torch.equal(whole.weights(0, image), offloaded.weights(0, image))
    assert offloaded.chunks(0)[0].query.is_pinned()


@pytest.mark.parametrize("family", ENCODERS)
@torch.no_grad()
def test_half_precision_is_within_a_hundredth(family):
    """bf16 weights, computed in float32 from bf16 queries and keys, against eager attention in bf16.

    Of the first layer: later ones are handed other hidden states under eager, whose output is rounded otherwise.
    """
    model, inputs, layouts = build(family)
    model.to(torch.bfloat16)
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    trace = record(model, inputs, layouts)
    for image, (expected, *_) in enumerate(eager_matrices(model, inputs, layouts)):
        ours = trace.weights(0, image)
        assert ours.dtype == torch.float32 and (ours - expected).norm() / expected.norm() <= 1e-2


@torch.no_grad()
def test_nothing_quadratic_is_kept():
    """Queries and keys of every layer, and nothing that grows with the square of the patches."""
    model, processor = (make() for make in FAMILIES["qwen2_vl"])
    for size in (56, 140):
        inputs, layout = model.prepare(processor, [picture(size, size)], PROMPTS[0])
        trace = record(model, inputs, layout)
        chunks = [chunk for layer in range(trace.depth) for chunk in trace.chunks(layer)]
        vision = model.config.vision_config
        kept = sum(chunk.query.numel() + chunk.key.numel() for chunk in chunks)
        assert kept == 2 * vision.depth * vision.embed_dim * (size // 14) ** 2


def test_a_row_that_sees_only_the_class_token_stays():
    """One head, rows CLS, a, b: a looks only at CLS, b at a. So a's relevance stays at a, and b's goes to a."""
    big = 200.0
    query = torch.tensor([[[0.0, 0.0], [big, 0.0], [0.0, big]]])
    key = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]])
    chunk = Chunk(0, query, key, 1.0, torch.device("cpu"))
    kept = torch.tensor([False, True, True])
    assert through_chunk(chunk, torch.tensor([[0.0, 0.25, 0.75]]), kept).tolist() == [[0.0, 1.0, 0.0]]


def test_two_cells_of_two_patches_by_hand():
    """Patches a, b | c, d; a and b look at c, c at a and d at d: cell 0 goes to 1, cell 1 half to 0, half to 1."""
    matrix = torch.tensor([[0.0, 0, 1, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    chunk = SimpleNamespace(
        first=0, last=4, query=matrix[None], device=torch.device("cpu"), weights=lambda rows: matrix[None, rows]
    )
    held = SimpleNamespace(length=4, cells=torch.arange(4).view(1, 2, 2))
    trace = SimpleNamespace(layers=range(1), images=[held], chunks=lambda layer, image: [chunk])
    assert through_encoder(np.array([[[1.0, 0.0]], [[0.2, 0.4]]]), trace).tolist() == [
        [[0.0, 1.0]],
        [[pytest.approx(0.2), pytest.approx(0.4)]],
    ]
    assert encoder_map(trace).tolist() == [[0.25, 0.75]]


def test_maps_of_another_grid_are_refused():
    model, inputs, layouts = build("qwen2_vl")
    trace = record(model, inputs, layouts)
    with pytest.raises(ValueError, match=r"maps of shape \(2, 3, 6\) do not fit image 0, which has 6 rows x 4 columns"):
        through_encoder(np.zeros((2, 3, 6)), trace)


@torch.no_grad()
def test_misuse_is_explained():
    model, inputs, layouts = build("qwen2_5_vl")
    with refused("nothing-recorded", StateError):
        EncoderTrace(model, layouts).weights(0)
    with EncoderTrace(model, layouts) as trace:
        model(**inputs)
        with refused("rows-beyond-layouts", StateError):
            model(**inputs)
    with refused("trace-used", StateError), trace:
        pass
    with refused("rows-beyond-layouts", StateError), EncoderTrace(model, layouts[1]):
        model(**inputs)
    with refused("no-such-image", PositionError):
        trace.weights(0, 3)
    with refused("no-such-layer", PositionError):
        trace.weights(2)
    with refused("no-such-head", PositionError):
        trace.weights(0, 0, heads=2)
    with refused("no-such-query", PositionError):
        trace.weights(0, 0, queries=96)


def test_towers_that_cannot_be_recorded_are_refused():
    model = fuyu()
    _, layout = model.prepare(fuyu_processor(), [picture()], PROMPTS[0])
    with refused("no-vision-encoder"):
        EncoderTrace(model, layout)
    model = llava()
    _, layout = model.prepare(llava_processor(), [picture()], PROMPTS[0])
    with refused("unknown-encoder"):
        EncoderTrace(transformers.LlavaForConditionalGeneration(model.config), layout)
    model.set_attn_implementation({"vision_config": "eager"})
    with refused("not-sdpa"):
        EncoderTrace(model, layout)


@torch.no_grad()
def test_class_token_that_is_kept_is_refused():
    """Under the strategy "full" CLIP's class token is an image token too, which no cell of the grid is."""
    model = llava()
    processor = llava_processor()
    model.config.vision_feature_select_strategy = processor.vision_feature_select_strategy = "full"
    with refused("tokens-do-not-fit"):
        model.prepare(processor, [picture()], PROMPTS[0])


@torch.no_grad()
def test_tower_without_class_token():
    """SigLIP has none, and its LLaVA checkpoints say "full": every row of the tower is a cell."""
    model = llava()
    model.config.vision_feature_select_strategy = "full"
    grid = ImageGrid(rows=4, cols=4, width=56, height=56, cell=14, resized=(56, 56))
    held = model.encoder_image(grid)
    assert held.length == 16 and held.cells.flatten().tolist() == list(range(16))
