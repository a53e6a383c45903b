"""Heads that answer to an object: attention by hand, planted heads found, chance found rarely, halves kept apart."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from analysis import head_responses
from analysis.head_responses import (
    attention_to,
    choose,
    column,
    corner_cells,
    head_table,
    held_out,
    margin_rows,
    most_changed,
    random_sets,
    summarise,
)
from analysis.response_report import (
    ablation_figure,
    ablation_finding,
    answer_rates,
    count_bars,
    findings,
    responding_heads,
    response_maps,
)
from analysis.statistics import REAL, mean_interval, rate_interval
from data.errors import MissingFileError, SampleError
from tests.errors import refused

LAYERS, HEADS, PAIRS = 4, 5, 20
PLANTED = {(1, 3): 0.3, (3, 0): -0.2}
CORNERS = {
    "topleft": [0, 1, 5, 6],
    "topright": [3, 4, 8, 9],
    "bottomleft": [10, 11, 15, 16],
    "bottomright": [13, 14, 18, 19],
}


@pytest.mark.parametrize("corner", CORNERS)
def test_cells_of_a_corner(corner):
    """A grid of 4 rows and 5 columns."""
    assert corner_cells(4, 5, corner, 2).tolist() == CORNERS[corner]
    assert len(corner_cells(4, 5, corner)) == 1 and len(corner_cells(12, 12, corner)) == 16
    assert corner_cells(2, 2, corner, 2).tolist() == [0, 1, 2, 3] and len(corner_cells(1, 1, corner)) == 1


@pytest.mark.parametrize("side", [0, -1, 5])
def test_a_corner_beyond_the_grid(side):
    with refused("patch size beyond the grid", SampleError):
        corner_cells(4, 6, "topleft", side)


class Trace:
    """A trace whose attention is given: `matrices` [layer, sample, head, query, key]."""

    def __init__(self, matrices, prompt_length, start):
        self.matrices, self.prompt_length, self.start = matrices, prompt_length, torch.tensor(start)
        self.layers, self.heads, self.length = len(matrices), matrices.shape[2], matrices.shape[3]

    def weights(self, layer, queries, samples):
        return self.matrices[layer][samples][:, :, list(queries)]


def test_attention_of_two_answers_by_hand():
    """A prompt of 4 tokens with the image at 0, 1 in the first sample, and at 1, 2 behind padding in the second.

    The first answer has two tokens, predicted by rows 3 and 4; the second has one, and what row 4 says does not count.
    """
    rows = torch.zeros(2, 2, 1, 5, 5)
    rows[1, 0, 0, 3] = torch.tensor([0.1, 0.3, 0.4, 0.2, 0])
    rows[1, 0, 0, 4] = torch.tensor([0.5, 0.3, 0.1, 0.1, 0])
    rows[1, 1, 0, 3] = torch.tensor([0, 0.2, 0.5, 0.3, 0])
    rows[1, 1, 0, 4] = torch.tensor([0, 0.5, 0.5, 0, 0])
    layouts = [SimpleNamespace(sample=sample, start=start, length=4) for sample, start in enumerate((0, 1))]
    keys = [torch.tensor([0, 1]), torch.tensor([1, 2])]
    found = attention_to(Trace(rows, 4, [0, 1]), layouts, keys, [2, 1], layers=[1])
    assert found.shape == (2, 1, 1) and found.ravel() == pytest.approx([(0.4 + 0.8) / 2, 0.7])
    with refused("trace-and-layout-differ"):
        attention_to(Trace(rows, 4, [0, 0]), layouts, keys, [2, 1], layers=[1])


def test_counts_by_hand():
    """Signs do not matter; of equal responses the lower head comes first; no response is none, however few others."""
    signed = np.array([[[0.1, 0.0], [-0.3, 0.2], [0.2, 0.0], [0.1, 0.0]]], np.float32)  # [layer, head, pair]
    assert most_changed(signed, 3)[0].tolist() == [[1, 0], [1, 1], [1, 0], [0, 0]]
    assert most_changed(signed, 1)[0].tolist() == [[0, 0], [1, 1], [0, 0], [0, 0]]
    assert not most_changed(np.zeros((2, 3, 4)), 2).any()


def attention(rng, planted=PLANTED, pairs=PAIRS):
    """Attention [layer, head, pair] to full and control: noise, and planted responses."""
    control = rng.uniform(0.3, 0.6, (LAYERS, HEADS, pairs))
    full = control + rng.normal(0, 0.03, control.shape)
    for at, response in planted.items():
        full[*at] += response
    return full, control


def test_planted_heads_are_found():
    full, control = attention(np.random.default_rng(0))
    table = head_table(full, control, 1, layers=(0, 2, 5, 9))
    q, effect = column(table, "q", HEADS), column(table, "effect", HEADS)
    assert set(zip(*np.nonzero(q <= 0.05), strict=True)) == set(PLANTED)
    counts = column(table, "count", HEADS)
    for (layer, head), response in PLANTED.items():
        assert effect[layer, head] == np.sign(response) and counts[layer, head] == PAIRS
        row = table[layer * HEADS + head]
        assert row["layer"] == (0, 2, 5, 9)[layer] and row["head"] == head and row["n"] == PAIRS
        assert row["difference"] == pytest.approx(response, abs=0.03) and row["low"] <= row["difference"] <= row["high"]
        assert row["full"] - row["control"] == pytest.approx(row["difference"])
        by_scipy = stats.wilcoxon((full - control)[layer, head]).pvalue
        assert row["p"] == pytest.approx(by_scipy) and row["q"] >= row["p"]
    assert [(row["layer"], row["head"]) for row in responding_heads(table)] == [(2, 3), (9, 0)]
    assert set(responding_heads(table)[0]) == {"layer", "head", "q"}  # an effect of a selected head needs other pairs
    assert "2 of 20 heads attend differently" in findings(table, ()) and "layer" not in findings(table, ())
    assert {row["family_of_q"] for row in table} == {"20 heads: every measured layer x head"}
    assert counts.sum(1).tolist() == [PAIRS] * LAYERS


def test_noise_is_found_no_more_often_than_the_rate_allows():
    """Nothing is planted: each of 60 sets holds a finding with a chance of at most 5 %. Then two heads are, and of all
    that is found at most 5 % is false; both up to three standard deviations of the count."""
    rng = np.random.default_rng(1)
    sets, anything = 60, 0
    for _ in range(sets):
        full, control = attention(rng, planted={})
        anything += any(row["q"] <= 0.05 for row in head_table(full, control, 1, range(LAYERS)))
    assert anything <= 0.05 * sets + 3 * (0.05 * 0.95 * sets) ** 0.5
    shares = []
    for _ in range(30):
        table = head_table(*attention(rng), 1, range(LAYERS))
        found = {(row["layer"], row["head"]) for row in table if row["q"] <= 0.05}
        assert found >= set(PLANTED)
        shares.append(len(found - set(PLANTED)) / len(found))
    assert np.mean(shares) <= 0.05 + 3 * np.std(shares) / 30**0.5


def test_heads_are_chosen_by_their_response_and_leave_as_many_others():
    signed = np.zeros((2, 4, 3))
    signed[0] = [[0.1], [-0.9], [0.5], [0.4]]
    signed[1, 3] = 0.2
    assert choose(signed, 1) == ((0, 1),) and choose(signed, 3) == ((0, 1), (0, 2), (1, 3))
    assert choose(signed, 4) == ((0, 1), (0, 2), (1, 3))  # what does not respond is not chosen
    assert choose(signed, 0) == ()
    with pytest.raises(ValueError, match="5 heads are more than half of those of the 2 layers with 4 heads each"):
        choose(signed, 5)


def test_random_heads_are_others_of_the_same_layers():
    chosen = ((0, 1), (2, 3), (0, 4))
    sets = random_sets(chosen, HEADS, 4, np.random.default_rng(0))
    assert len(set(sets)) == 4 and sets == random_sets(chosen, HEADS, 4, np.random.default_rng(0))
    for heads in sets:
        assert sorted(layer for layer, _ in heads) == [0, 0, 2] and len(set(heads)) == 3
        assert not set(heads) & set(chosen)
    assert len(random_sets(chosen, HEADS, 1000, np.random.default_rng(0))) == 3 * 4
    assert random_sets(((0, 0), (0, 1)), 4, 5, np.random.default_rng(0)) == [((0, 2), (0, 3))]
    assert random_sets((), 4, 5, np.random.default_rng(0)) == []


def test_what_is_chosen_on_one_half_is_measured_on_the_other():
    """A head that responds on the first half alone is chosen, and found out."""
    full, control = attention(np.random.default_rng(2), planted={(1, 3): 0.3})
    first, second = np.arange(0, PAIRS, 2), np.arange(1, PAIRS, 2)
    signed = full - control
    signed[2, 2, first] += 0.4
    chosen = choose(signed[..., first], 2)
    fluke, real = held_out(signed, chosen, first, second, seed=0)
    assert [(row["layer"], row["head"]) for row in (fluke, real)] == [(2, 2), (1, 3)]
    assert fluke["q"] <= 0.05 and fluke["mean"] == pytest.approx(0.4, abs=0.05) and fluke["n"] == len(first)
    assert fluke["other_half"]["p_holm"] > 0.05 and abs(fluke["other_half"]["mean"]) < 0.05
    assert real["other_half"]["p_holm"] <= 0.05 and real["other_half"]["low"] > 0.2
    assert real["other_half"]["n"] == len(second)
    lines = findings(head_table(full, control, 1, range(LAYERS)), [fluke, real]).splitlines()
    assert f"on the other {len(second)} pairs" in lines[1] and lines[2].startswith("  layer 2 head 2: ")
    assert f"{fluke['other_half']['mean']:+.4f}" in lines[2]  # the chosen head's response where it was not chosen


def test_ablation_by_hand():
    """Two pairs whose object moves the margin by 4 and 6; the chosen heads take 2 of that, two random sets 0 and 1."""
    margins = {
        "none": np.array([[3.0, -1.0], [4.0, -2.0]]),
        "chosen": np.array([[1.0, -1.0], [-1.0, -5.0]]),
        "random 0": np.array([[3.0, -1.0], [4.0, -2.0]]),
        "random 1": np.array([[2.0, -1.0], [3.0, -2.0]]),
    }
    found = summarise(margins, seed=0)
    assert found["full"]["chosen"]["mean"] == -3.5 and found["control"]["chosen"]["mean"] == -1.5
    whole = found["full_minus_control"]
    assert whole["margin"]["mean"] == 5 and whole["chosen"]["mean"] == -2 and whole["chosen"]["n"] == 2
    assert whole["random"]["mean"] == -0.5 and whole["draws"] == [0, -1]
    assert whole["chosen_minus_random"]["mean"] == -1.5
    says = found["says_yes"]["full"]
    assert (says["none"]["rate"], says["chosen"]["rate"], says["random"]["mean"]) == (1, 0.5, 1)
    line = ablation_finding(found, "1.3")
    assert "changes by -2.00 (none: no spread)" in line
    assert "2 random sets: the smallest possible p is 0.33" in line and "p = " not in line
    assert (whole["rank"], whole["p_rank"], whole["smallest_p_rank"], whole["q_rank"]) == (1, 1 / 3, 1 / 3, 1 / 3)
    assert found["family_of_q"].startswith("9 tests: ")
    equal = summarise({**margins, "random 2": np.array([[5.0, -1.0], [4.0, -4.0]])}, seed=0)["full_minus_control"]
    assert equal["draws"] == [0, -1, 2] and (equal["rank"], equal["p_rank"]) == (2, 0.5)  # as much, the other way
    rows = margin_rows(["a", "b"], margins, {name: name for name in margins})
    assert len(rows) == 8 and rows[5] == {"sample": "b", "set": "chosen", "heads": "chosen", "full": -1, "control": -5}


def test_answers_have_intervals():
    margins = np.random.default_rng(0).normal(size=(2, 20))
    rows = [{"margin_full": full, "margin_control": control} for full, control in margins.T]
    found = answer_rates(rows)["full"]
    assert found["margin"] == mean_interval(margins[0], REAL) and found["says_yes"] == rate_interval(margins[0] > 0)


def test_margins_without_any_change_have_no_interval(tmp_path):
    """Heads that change nothing: no spread and no range, so no interval, in the sentence and in the figure."""
    plain = np.array([[3.0, -1.0], [4.0, -2.0], [2.0, 0.0]])
    found = summarise({"none": plain, "chosen": plain, **{f"random {i}": plain for i in range(19)}}, seed=0)
    assert found["full"]["chosen"]["low"] is None and "+0.00 (none: no spread)" in ablation_finding(found, "0.1")
    assert "rank 20 of 20 sets (p = 1, smallest possible 0.05;" in ablation_finding(found, "0.1")
    figure = ablation_figure(found, "0.1")
    figure.savefig(tmp_path / "ablation.png")
    assert "smallest possible" not in figure.axes[0].get_title(loc="left")
    one = summarise({"none": plain, "chosen": plain - 1, "random 0": plain}, seed=0)
    title = ablation_figure(one, "0.1").axes[0].get_title(loc="left")
    assert "the smallest possible p of a rank is 0.5" in title
    assert "1 random set: the smallest possible p is 0.5" in ablation_finding(one, "0.1")


@pytest.fixture
def folder(tmp_path):
    """The arrays and tables of a run, with the least that its summary must hold."""
    full, control = (values.astype(np.float32) for values in attention(np.random.default_rng(0)))
    head_responses.save(tmp_path, full, control, 2, (0, 2, 5, 9))
    summary = {"layers": [0, 2, 5, 9], "pairs": [f"pair_{place}" for place in range(PAIRS)], "topk": 2}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    return tmp_path


def test_files_are_what_the_docstring_says(folder):
    found = head_responses.read(folder)
    assert found.counts.dtype == np.uint8 and found.signed.dtype == np.float32
    assert found.counts.shape == found.signed.shape == (LAYERS, HEADS, PAIRS)
    assert found.layers == (0, 2, 5, 9) and found.pairs[3] == "pair_3" and found.summary["topk"] == 2
    assert np.array_equal(found.counts, most_changed(found.signed, 2))
    counts = np.load(folder / "count_LH.npy")
    assert counts.dtype == np.int64 and np.array_equal(counts, found.counts.sum(-1))
    for place, layer in enumerate(found.layers):
        assert np.array_equal(np.load(folder / f"layer_{layer}_top2_counts.npy"), counts[place])
    with open(folder / "heads.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    heads = [(layer, head) for layer in found.layers for head in range(HEADS)]
    assert [(int(row["layer"]), int(row["head"])) for row in rows] == heads
    assert [int(row["count"]) for row in rows] == counts.ravel().tolist()
    assert column(rows, "difference", HEADS) == pytest.approx(found.signed.mean(-1), abs=1e-7)


@pytest.mark.parametrize("name", ["summary.json", "count_LHN.npy", "signed_LHN.npy"])
def test_a_run_that_did_not_finish_is_not_read(folder, name):
    (folder / name).unlink()
    with refused("run-not-finished", MissingFileError):
        head_responses.read(folder)


def test_files_that_do_not_fit_each_other(folder):
    summary = (folder / "summary.json").read_text()
    (folder / "summary.json").write_text(summary.replace('"pair_3", ', ""))
    with refused("results-do-not-fit"):
        head_responses.read(folder)
    for broken in ("{", "[]", "{}"):
        (folder / "summary.json").write_text(broken)
        with refused("results-unreadable"):
            head_responses.read(folder)
    (folder / "summary.json").write_text(summary)
    (folder / "signed_LHN.npy").write_bytes(b"")
    with refused("results-unreadable"):
        head_responses.read(folder)


def test_figures_can_be_drawn_of_one_pair_and_one_head(tmp_path):
    table = head_table(np.full((1, 1, 1), 0.5), np.full((1, 1, 1), 0.25), 1, (3,))
    figures = [count_bars(np.array([1]), 1, 1, 3), response_maps(table, 1, 1)]
    margins = {name: np.array([[1.0, 0.0], [2.0, 0.5]]) for name in ("none", "chosen", "random 0")}
    figures.append(ablation_figure(summarise(margins, 0), "3.0"))
    for place, figure in enumerate(figures):
        path = tmp_path / f"{place}.png"
        figure.savefig(path)
        with Image.open(path) as drawn:
            assert len(drawn.convert("L").getcolors(256)) > 10, "nothing is drawn"
