"""Rollout against the literal product of full matrices, and on cases that can be worked by hand."""

from types import SimpleNamespace

import pytest
import torch

from analysis.rollout import RolloutSettings, image_share, rollout
from data.errors import SampleError
from data.geometry import ImageGrid
from models.trace import AttentionTrace
from tests import tolerance
from tests.errors import refused
from tests.models import llava, llava_processor, picture

pytestmark = pytest.mark.numerical


class PlantedTrace:
    """A trace whose attention is given: `matrices` [layer, head, query, key], causal, one sample."""

    def __init__(self, matrices, prompt_length):
        self.matrices, self.prompt_length = matrices, prompt_length
        self.layers, self.heads, self.length = matrices.shape[0], matrices.shape[1], matrices.shape[2]
        self.start = torch.zeros(1, dtype=torch.long)

    def device(self, layer):
        return torch.device("cpu")

    def blocks(self, layer, sample, first, last, apart=True):
        """Two rows at a time, and one head at a time where they may come apart."""
        for row in range(first, last, 2):
            rows = range(row, min(row + 2, last))
            for heads in self.matrices[layer].split(1 if apart else self.heads):
                yield rows, heads[:, rows.start : rows.stop, : rows.stop]


def planted_layout(length, images):
    grid = ImageGrid(rows=1, cols=len(images), width=len(images), height=1, cell=1, resized=(len(images), 1))
    return SimpleNamespace(sample=0, start=0, length=length, grids=(grid,), images=(torch.tensor(images),))


def literal(matrices, rows, residual=0.5):
    """The formula as it is written: full T x T matrices, multiplied from the first layer up."""
    product = torch.eye(matrices.shape[-1], dtype=torch.float64)
    for layer in matrices.double():
        product = ((1 - residual) * layer.mean(0) + residual * torch.eye(layer.shape[-1])) @ product
    return product[list(rows)]


def rounding(matrices):
    """Each layer [head, query, key] adds over heads and keys, rows that sum to 1."""
    layers, heads, _, keys = matrices.shape
    return tolerance.sums(layers * heads * keys)


def test_two_layers_by_hand():
    """Tokens: image 0, image 1, word. Layer 0: image 1 looks at image 0. Layer 1: the word looks at image 1.

    With the identity mixed in, A_0 = [[1, 0, 0], [.5, .5, 0], [0, 0, 1]] and the word's row of A_1 is [0, .5, .5]:
    .5 [.5, .5, 0] + .5 [0, 0, 1] = [.25, .25, .5]. In the wrong order image 0 would get nothing.
    """
    attention = torch.zeros(2, 1, 3, 3)
    attention[0, 0] = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 0, 1]])
    attention[1, 0] = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 0]])
    result = rollout(PlantedTrace(attention, prompt_length=3), planted_layout(3, [0, 1]))
    assert result.relevance.tolist() == [[0.25, 0.25, 0.5]]
    assert result.per_token.tolist() == [[[0.25, 0.25]]]


def test_image_tokens_without_a_grid_are_one_row():
    """As above, for a layout that does not know how its tokens lie in the picture."""
    attention = torch.eye(3).repeat(1, 1, 1, 1)
    attention[0, 0, 2] = torch.tensor([0.25, 0.5, 0.25])
    layout = planted_layout(3, [0, 1])
    layout.grids = (None,)
    result = rollout(PlantedTrace(attention, prompt_length=3), layout, RolloutSettings(residual=0))
    assert result.per_token.tolist() == [[[0.25, 0.5]]] and result.mean.shape == result.max.shape == (1, 2)


@pytest.mark.parametrize("residual", [0.0, 0.5, 0.9])
def test_random_matrices(residual):
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(5, 3, 20, 20, generator=generator)
    attention = scores.masked_fill(torch.ones(20, 20).triu(1).bool(), -torch.inf).softmax(-1)
    trace = PlantedTrace(attention, prompt_length=16)
    result = rollout(trace, planted_layout(16, [1, 2, 3]), RolloutSettings(residual=residual))
    assert (result.relevance - literal(attention, range(15, 20), residual)).abs().max() <= rounding(attention)
    assert (result.relevance.sum(-1) - 1).abs().max() <= rounding(attention)
    query = rollout(trace, planted_layout(16, [1, 2, 3]), RolloutSettings(residual=residual, rows="query"))
    torch.testing.assert_close(query.relevance, result.relevance[1:])
    maps = result.maps()
    torch.testing.assert_close(torch.from_numpy(maps.mean), result.relevance[:, 1:4].mean(0)[None])
    assert torch.equal(torch.from_numpy(maps.max), result.relevance[:, 1:4].max(0).values[None])


def test_first_token_can_be_dropped():
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(3, 2, 8, 8, generator=generator)
    attention = scores.masked_fill(torch.ones(8, 8).triu(1).bool(), -torch.inf).softmax(-1)
    averaged = attention.mean(1, keepdim=True)
    expected = averaged.clone()
    expected[..., 0] = 0
    expected /= expected.sum(-1, keepdim=True)
    expected[:, :, 0] = averaged[:, :, 0]
    result = rollout(PlantedTrace(attention, 6), planted_layout(6, [1, 2]), RolloutSettings(drop_first=True))
    assert (result.relevance - literal(expected, range(5, 8))).abs().max() <= rounding(attention)
    assert result.relevance[:, 0].max() == 0


@pytest.mark.parametrize(("lowest", "first"), [(0.0, 0), (0.2, 1), (0.5, 2), (0.99, 4)])
def test_the_product_may_end_above_the_lowest_layers(lowest, first):
    generator = torch.Generator().manual_seed(2)
    scores = 3 * torch.randn(5, 2, 8, 8, generator=generator)
    attention = scores.masked_fill(torch.ones(8, 8).triu(1).bool(), -torch.inf).softmax(-1)
    result = rollout(PlantedTrace(attention, 6), planted_layout(6, [1, 2]), RolloutSettings(lowest=lowest))
    assert (result.relevance - literal(attention[first:], range(5, 8))).abs().max() <= rounding(attention)


@torch.no_grad()
@pytest.mark.parametrize("key_heads", [4, 2])
def test_model_against_full_matrices_in_a_padded_batch(key_heads):
    model = llava(key_heads=key_heads)
    images = [[picture()], [picture(40, 90), picture(90, 40)]]
    inputs, layouts = model.prepare(llava_processor(), images, ["what is left ?", "where is the circle ?"])
    assert layouts[0].start > 0
    with AttentionTrace(model) as trace:
        model.generate(**inputs, max_new_tokens=4, do_sample=False)
    for layout in layouts:
        rows = range(layout.start, trace.length)
        full = torch.stack([trace.weights(i, rows, samples=[layout.sample])[0] for i in range(trace.layers)])
        expected = literal(full[..., layout.start :], range(trace.prompt_length - 1 - layout.start, len(rows)))
        result = rollout(trace, layout)
        assert (result.relevance[:, layout.start :] - expected).abs().max() <= rounding(full)
        assert result.relevance[:, : layout.start].abs().sum() == 0
        assert result.per_token.shape == (4, 4, 4)
        for image, positions in enumerate(layout.images):
            assert torch.equal(
                torch.from_numpy(result.maps(image).per_token).flatten(1), result.relevance[:, positions]
            )
        torch.testing.assert_close(rollout(trace, layout, tokens=2).relevance, result.relevance[:2])
        share = image_share(trace, layout)
        by_hand = full[:, :, -4:][..., layout.image_positions].sum(-1).mean(1)
        assert abs(torch.from_numpy(share) - by_hand).max() <= rounding(full)


def test_rows_that_see_only_the_first_token_stay():
    """[1, 0, 0] has nothing left when its first entry is dropped; the row is kept, and no NaN appears."""
    attention = torch.zeros(1, 1, 3, 3)
    attention[0, 0] = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [1, 0, 0]])
    result = rollout(PlantedTrace(attention, 3), planted_layout(3, [1]), RolloutSettings(drop_first=True))
    assert result.relevance.tolist() == [[0.5, 0, 0.5]]


def test_layout_of_another_prompt_is_refused():
    trace = PlantedTrace(torch.eye(3).expand(1, 1, 3, 3), 3)
    with refused("trace-and-layout-differ"):
        rollout(trace, planted_layout(2, [0]))


def test_bad_settings_are_explained():
    trace, layout = PlantedTrace(torch.eye(3).expand(1, 1, 3, 3), 3), planted_layout(3, [0])
    with refused("unknown-rows"):
        rollout(trace, layout, RolloutSettings(rows="both"))
    with refused("out-of-range"):
        RolloutSettings(residual=1.0)
    with refused("out-of-range"):
        RolloutSettings(lowest=1.0)
    with pytest.raises(SampleError, match="no generated token has a row under the convention 'query': 1 token") as met:
        rollout(trace, layout, RolloutSettings(rows="query"))
    assert met.value.reason == "no query row"
