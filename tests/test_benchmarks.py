"""The benchmark of cost: its ways agree with each other and with eager attention, and its figures are what they say."""

import csv
import json
import os

import pytest
import torch

import models.trace
from benchmarks import attention_cost, budget, decoders, exactness, largest_prompt
from benchmarks.budget import MEGABYTE, free_memory, matrix_memory, peak_memory
from benchmarks.decoders import METHODS, ROLLOUTS, VARIANTS, build, generate
from benchmarks.maps import KINDS, literal_product
from docs import figures
from models.trace import AttentionTrace
from tests import tolerance

SHAPES = ("llava", "qwen", "fuyu")


def decoder(shape, layers=5):
    return build(shape, 256, layers, "cpu", "float32")


@pytest.mark.slow
def test_measures_what_it_says(tmp_path, capsys):
    out, compared = tmp_path / "cost", ["plain", "rollout", "eager"]
    small = {"lengths": (64,), "layers": 4, "width": 128, "rounds": 1, "new_tokens": 3, "threads": 1}
    assert attention_cost.main(attention_cost.Config(**small, ways=tuple(compared), out_dir=str(out))) == 0
    gap = float(capsys.readouterr().out.split("between 2 rollouts ")[1].split()[0])
    assert gap <= tolerance.two_runs()
    with open(out / "cost.csv", newline="") as file:
        rows = {row["way"]: row for row in csv.DictReader(file)}
    assert list(rows) == compared
    assert all(float(row["seconds"]) > 0 and float(row["peak_MB"]) > 50 for row in rows.values())
    for way, base in (("rollout", "eager"), ("eager", "eager"), ("rollout", "plain")):
        ratio = float(rows[way]["seconds"]) / float(rows[base]["seconds"])
        assert float(rows[way][f"time_to_{base}"]) == pytest.approx(ratio)
    assert float(rows["eager"]["matrices_MB"]) == 4 * 2 * 64**2 * 4 / 2**20 and rows["rollout"]["matrices_MB"] == ""
    assert (out / "cost.png").stat().st_size > 5000
    again = attention_cost.read(out / "cost.csv")
    assert [(row["way"], row["T"], row["seconds"]) for row in again] == [
        (way, 64, float(rows[way]["seconds"])) for way in compared
    ]
    figures.cost([out / "cost.csv", out / "cost.csv"], tmp_path / "again.png")
    assert (tmp_path / "again.png").stat().st_size > 5000


def test_figures_are_medians_of_what_is_complete():
    assert attention_cost.median([3.0, 1.0, 2.0]) == 2.0
    assert attention_cost.median([3.0, None]) is None and attention_cost.median([]) is None


@pytest.mark.slow
def test_a_way_that_does_not_fit_is_not_run(tmp_path, monkeypatch):
    """A machine with next to no memory left: the eager way has only the figure of what it would need."""
    monkeypatch.setattr(attention_cost, "free_memory", lambda device: 1e-3)
    small = {"lengths": (64,), "layers": 4, "width": 128, "rounds": 1, "new_tokens": 2, "threads": 1}
    config = attention_cost.Config(**small, ways=("eager",))
    plain, eager = attention_cost.measure(attention_cost.build(config, "llava"), "llava", 64, config)
    assert plain["seconds"] > 0 and eager["matrices_MB"] == 0.125
    assert [eager[name] for name in ("seconds", "peak_MB", "above_model_MB", "time_to_plain")] == [None] * 4


@pytest.mark.numerical
@pytest.mark.parametrize("shape", SHAPES)
def test_ways_agree_on_every_shape(shape, capsys):
    """All four rollouts and both forms of every intervention; or the run refuses: without sinks VAR changes nothing."""
    config = attention_cost.Config(layers=5, width=256, new_tokens=3, threads=1)
    model = decoder(shape)
    attention_cost.check_agreement(model, list(VARIANTS), 100, config)
    first, *lines = capsys.readouterr().out.splitlines()
    assert float(first.split("between 4 rollouts ")[1]) <= tolerance.two_runs()
    assert len(lines) == len(METHODS) and all("; 2 ways, gap " in line for line in lines)
    for line in lines:
        moved = float(line.split(" by ")[1].split()[0])
        gap = float(line.split(", gap ")[1])
        assert moved > 1e-3 and gap <= tolerance.two_runs()
    assert generate(model, "plain", 100, 3)[0].shape == (1, 103)
    model.get_input_embeddings().weight.data[:, 3] = 0
    with pytest.raises(RuntimeError, match="implementations of var differ"):
        attention_cost.check_agreement(model, ["plain", "var", "eager-var"], 100, config)


@pytest.mark.numerical
@pytest.mark.parametrize("shape", SHAPES)
def test_maps_agree_on_every_shape(shape, capsys, monkeypatch):
    """Every map kind and its eager implementation; a map that is wrong by a thousandth is refused."""
    config = attention_cost.Config(layers=4, width=256, new_tokens=3, threads=1)
    model, variants = decoder(shape, layers=4), list(attention_cost.MAP_PANEL)
    attention_cost.check_agreement(model, variants, 60, config)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1].split(" maps")[0] for line in lines] == list(KINDS)
    monkeypatch.setattr("benchmarks.maps.literal_product", lambda pairs, row: 1.001 * literal_product(pairs, row))
    with pytest.raises(RuntimeError, match="the relevance maps differ by 1.0e-03, more than 0.0001"):
        attention_cost.check_agreement(model, ["plain", "relevance", "eager-relevance"], 60, config)


def test_a_rollout_of_another_kind_is_refused(monkeypatch):
    config = attention_cost.Config(layers=4, width=128, new_tokens=2, threads=1)
    monkeypatch.setattr(decoders, "stored_rows", lambda steps, length: decoders.full_product(steps, length) + 1e-4)
    with pytest.raises(RuntimeError, match="the rollouts differ by 1.0e-04, more than 1e-05"):
        attention_cost.check_agreement(attention_cost.build(config, "llava"), ["plain", *ROLLOUTS], 50, config)


@pytest.mark.numerical
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_maps_of_words_are_the_eager_rows(shape):
    model = decoder(shape)
    tokens, maps = generate(model, "words", 60, 3)
    model.set_attn_implementation("eager")
    attentions = model(tokens[:, :-1], output_attentions=True).attentions
    expected = torch.stack([weights[0].mean(0)[56:60] for weights in attentions])
    torch.testing.assert_close(maps, expected, atol=tolerance.two_runs(), rtol=0)


@pytest.mark.slow
def test_memory_of_a_call():
    """100 MB that a call touches, beside what it was given; and a machine's free memory is more than that."""
    peak, above = peak_memory(small_model, hundred_megabytes)
    assert 95 <= above <= 125 and peak > above + 50
    assert "MALLOC_MMAP_THRESHOLD_" not in os.environ
    assert free_memory("cpu") > 100
    assert matrix_memory("eager", 1024, 8, 8, "float32") == 8 * 8 * 1024**2 * 4 / MEGABYTE == 256
    assert matrix_memory("eager-rows", 1024, 8, 8, "bfloat16") == 128
    assert matrix_memory("eager-var", 1024, 8, 8, "bfloat16") == 96
    assert matrix_memory("eager-value", 1024, 8, 8, "bfloat16") == 128
    assert matrix_memory("eager-relevance", 1024, 8, 8, "bfloat16") == 256
    assert matrix_memory("rollout", 1024, 8, 8, "float32") is None


def small_model():
    return build("llava", 64, 1, "cpu", "float32")


def hundred_megabytes(model):
    torch.ones(100 * MEGABYTE // 4)


@pytest.mark.parametrize("power", [1, 2])
def test_longest_prompt_is_found(power):
    """Planted growth: 100 MB and so much a token; the search ends below the limit and within 5 % of it."""
    calls = []

    def need(length):
        calls.append(length)
        return 100 + 0.1 * (length / 1024) ** (power - 1) * length

    found = largest_prompt.largest(need, 4096)
    assert 0.95 * 4096 <= need(found) <= 4096 and len(calls) <= 8
    assert largest_prompt.largest(lambda length: 5000.0 + length, 4096) is None
    walled = largest_prompt.largest(lambda length: None if length > 3000 else 1000 + length / 1e3, 4096)
    assert 2048 <= walled <= 3000
    assert 1024 <= largest_prompt.largest(lambda length: 100.0 if length < 1500 else None, 4096) < 1500


@pytest.mark.slow
def test_longest_prompt_is_written(tmp_path, capsys):
    small = {"layers": 4, "width": 64, "new_tokens": 2, "threads": 1, "limit_mb": 400.0}
    config = largest_prompt.Config(**small, ways=("eager",), out_dir=str(tmp_path / "out"))
    assert largest_prompt.main(config) == 0
    written = json.loads((tmp_path / "out" / "largest.json").read_text())
    [fits] = [probe["above_model_MB"] for probe in written["probes"] if probe["T"] == written["longest"]["eager"]]
    assert 200 <= fits <= 400 and "longest prompt within 400 MB" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ({"lengths": (0,)}, "must be at least 1"),
        ({"rounds": 0}, "must be at least 1"),
        ({"shapes": ()}, "--shapes names none"),
        ({"width": 100}, "--width 100 is not a multiple of the head width 64"),
        ({"width": 384, "shapes": ("qwen",)}, "--width 384 makes 6 heads; qwen needs a multiple of 4"),
        ({"layers": 3}, "--layers 3 leaves none for VAR; give 4 or more"),
        ({"lengths": (7,), "ways": ("gaussian",)}, "--lengths 7 has no room for an image"),
    ],
)
def test_refuses_what_it_cannot_measure(flags, sentence, capsys):
    with pytest.raises(SystemExit) as stopped:
        attention_cost.main(attention_cost.Config(**flags))
    assert stopped.value.code == 2 and sentence in capsys.readouterr().err


@torch.no_grad()
def test_budget_is_what_is_kept(capsys):
    """Bytes of weights, cache, queries and eager matrices, against the real tensors of the benchmark's decoder."""
    model = build("llava", 512, 8, "cpu", "float32")
    part = budget.parts(budget.DECODERS["benchmark"], 50, "cpu")
    assert sum(p.numel() * 4 for p in model.parameters()) == pytest.approx(part["weights"], rel=0.01)
    prompt = torch.arange(50)[None]
    with AttentionTrace(model) as trace:
        cache = model(prompt, use_cache=True).past_key_values
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kept == part["keys and values"]
    assert sum(trace._recorded[layer].prompt.nbytes for layer in range(8)) == part["recorded queries"]
    model.set_attn_implementation("eager")
    attentions = model(prompt, output_attentions=True).attentions
    assert sum(weights.nbytes for weights in attentions) == part["eager matrices"]

    assert budget.main(budget.Config(model="qwen2.5-vl-7b", tokens=(16384,), card_gb=20.0)) == 0
    lines = capsys.readouterr().out.splitlines()
    output = {line[4:38].strip(): line.split("   ")[-1].strip() for line in lines if line.startswith("  = ")}
    assert output["recording and rollout"] == "does not fit in 20 GB"
    assert output["the same with --load-4bit"] == "fits in 20 GB"
    with pytest.raises(SystemExit) as stopped:
        budget.main(budget.Config(tokens=(0,)))
    assert stopped.value.code == 2 and "--tokens must be at least 1" in capsys.readouterr().err


def test_ratios_are_of_the_same_round():
    """Rounds 2 / 1 and 9 / 3, while the machine slows down: the ratio is between 2 and 3, not that of the medians."""
    times = {"plain": [1.0, 3.0], "rollout": [2.0, 9.0], "eager": [4.0, None]}
    row = {"way": "rollout", "peak_MB": 300.0, "above_model_MB": 90.0}
    plain = {"way": "plain", "peak_MB": 200.0, "above_model_MB": None}
    assert attention_cost.compare(row, plain, "plain", times) == {
        "time_to_plain": 2.5, "lowest_to_plain": 2.0, "highest_to_plain": 3.0, "memory_to_plain": 1.5,
        "above_to_plain": None,
    }  # fmt: skip
    eager = {"way": "eager", "peak_MB": None, "above_model_MB": None}
    assert set(attention_cost.compare(row, eager, "eager", times).values()) == {None}
    assert set(attention_cost.compare(row, {}, "eager", times).values()) == {None}


@pytest.mark.numerical
def test_exactness_is_that_of_the_recomputation(tmp_path, monkeypatch):
    """Against float64 and against eager; a scaling that is wrong by a hundredth shows in both."""
    flags = {"models": ("tiny-llava",), "dtypes": ("float32",), "seeds": 1}
    assert exactness.main(exactness.Config(**flags, out_dir=str(tmp_path / "right"))) == 0
    plain = models.trace.softmax_rows
    scaled = lambda query, *rest, **options: plain(1.01 * query, *rest, **options)  # noqa: E731
    monkeypatch.setattr(models.trace, "softmax_rows", scaled)
    assert exactness.main(exactness.Config(**flags, out_dir=str(tmp_path / "wrong"))) == 0
    files = [(tmp_path / name / "exactness.csv").read_text() for name in ("right", "wrong")]
    right, wrong = (list(csv.DictReader(file.splitlines())) for file in files)
    assert [row["image"] for row in right] == ["shapes", "noise 0"]
    for row, other in zip(right, wrong, strict=True):
        size = float(row["scores"])
        same, runs = tolerance.same_states(size), tolerance.two_runs(size)
        assert float(row["recomputed"]) <= same < 1e-3 < float(other["recomputed"])
        assert float(row["eager"]) <= runs < 1e-3 < float(other["eager"])
