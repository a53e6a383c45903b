"""The two scripts of spatial attention as a person runs them; their summaries say what their tables say."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import models
import vlm_atten_analysis_llava as llava
import vlm_atten_analysis_qwen2 as qwen2
from analysis.runs import flat_flags
from analysis.spatial import CONTROLS, METRICS, QUERIES, SEEDS, WORDS
from data import twoshapes
from data.images import median_colour, read_image
from data.spatial_samples import SpatialSamples, gather
from models.generation import generate_answer, log_probabilities
from tests import shell
from tests.runs import summary_of, table
from tests.settings import configure

ROOT = Path(__file__).parent.parent
REAL = ROOT.parent / "shared" / "data"
PLURAL = "where are the {first}s in relation to the {second}s ? {relation} ?"


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """Five pictures of two shapes, one of which is damaged."""
    folder = tmp_path_factory.mktemp("data") / "set"
    twoshapes.generate(folder, 5, seed=2)
    (folder / twoshapes.LAYOUT / "shard0" / "world-3.png").write_bytes(b"no picture")
    return folder


def quick(script, out, **flags):
    """A run in this process, without the slow figures."""
    plain = {"out_dir": str(out), "faithfulness": 0, "pictures": 0, "figures": False, "limit": 3, "device": "cpu"}
    return script.main(configure(script, **plain | flags))


@pytest.fixture(scope="module")
def whole(data_root, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    flags = ("--faithfulness", 2, "--pictures", 1, "--no-figures", "--out-dir", out)
    done = shell.run("vlm_atten_analysis_llava.py", "--data_root", data_root, *flags)
    assert done.returncode == 0, done.stderr
    assert f"4 of 5 samples done; results in {out}" in done.stdout
    assert "first shape's words: " in done.stdout and "(n = 2)" in done.stdout
    return out


def measured(rows, query, metric):
    """{condition: float64 [sample]} of the rows of measures.csv."""
    mine = [row for row in rows if (row["query"], row["metric"]) == (query, metric)]
    conditions = dict.fromkeys(row["condition"] for row in mine)
    return {name: np.array([float(row["value"]) for row in mine if row["condition"] == name]) for name in conditions}


def test_summary_holds_every_metric_with_n_interval_and_controls(whole):
    summary, rows = summary_of(whole), table(whole, "measures.csv")
    assert summary["n"] == 4 and summary["skipped"] == {"image cannot be decoded": 1}
    assert set(summary["queries"]) == set(QUERIES)
    for query in QUERIES:
        expected = set(METRICS) - ({"wasserstein_relation"} if query != "relation" else set())
        assert set(summary["queries"][query]) == expected
        for metric, figure in summary["queries"][query].items():
            values = measured(rows, query, metric)
            own = values["own"]
            known = np.isfinite(own)
            assert len(own) == 4 and figure["n"] == known.sum() and figure["skipped"] == 4 - figure["n"]
            assert figure["mean"] == pytest.approx(own[known].mean())
            assert figure["low"] <= figure["mean"] <= figure["high"]
            assert {"own", *figure["controls"]} == set(values) and "shuffled" in values
            for name, control in figure["controls"].items():
                difference = own - values[name]
                difference = difference[np.isfinite(difference)]
                assert control["difference"]["n"] == len(difference)
                assert control["difference"]["mean"] == pytest.approx(difference.mean(), abs=1e-9)
                assert control["difference"]["p"] is not None
            left_out = set(CONTROLS) - set(figure["controls"])
            if metric not in ("image_attention", "dispersion", "entropy"):
                assert left_out == ({"other"} if query in ("relation", "seed_background") else set())


def test_heads_are_in_their_table_and_add_up(whole):
    """The mean over the chosen heads' image attention is that of the averaged map, since sums are linear."""
    summary, heads = summary_of(whole), table(whole, "heads.csv")
    settings = json.loads((whole / "settings.json").read_text())
    assert settings["layers"]["first"] == [1, 2] and settings["layers"]["seed_first"] == [0, 1, 2, 3]
    assert summary["seeds_in"] == "tower" and summary["rows"] == "predicting"
    for query in QUERIES:
        mine = [row for row in heads if (row["query"], row["metric"]) == (query, "image_attention")]
        assert len(mine) == 4 * (4 if query in WORDS else len(settings["layers"][query]))
        chosen = [float(row["own"]) for row in mine if int(row["layer"]) in settings["layers"][query]]
        assert np.mean(chosen) == pytest.approx(summary["queries"][query]["image_attention"]["mean"], rel=1e-4)
        assert summary["heads"][query]["image_attention"]["heads"] == len(mine)


def test_looks_and_uses_are_columns_of_one_table(whole):
    rows, per_sample = table(whole, "looks_and_uses.csv"), table(whole, "faithfulness.csv")
    assert [row["order"] for row in rows] == ["first", "relation", "second", "boxes"]
    summary = summary_of(whole)["faithfulness"]
    assert summary["n"] == 2
    for row in rows:
        mine = [each for each in per_sample if each["order"] == row["order"]]
        looks = np.mean([float(each["mass"]) - float(each["mass_even"]) for each in mine])
        assert float(row["looks_mean"]) == pytest.approx(looks) and row["looks_n"] == "2"
        for baseline, key in (("shifted", "insertion_gain"), ("random", "insertion_gain_random")):
            gain = np.mean([float(each["insertion"]) - float(each[f"insertion_{baseline}"]) for each in mine])
            assert float(row[f"{key}_mean"]) == pytest.approx(gain)
        deletion = summary["orders"][row["order"]]["deletion_gain"]["mean"]
        assert deletion == pytest.approx(float(row["deletion_gain_mean"]))
    with np.load(whole / "curves.npz") as curves:
        assert curves["first_insertion"].shape == (2, 11)
        np.testing.assert_allclose(curves["first_insertion"][:, 0], curves["boxes_deletion"][:, -1])  # all hidden
        np.testing.assert_allclose(curves["first_insertion"][:, -1], curves["random_deletion"][:, 0])  # all shown


def test_a_map_is_held_against_the_box_of_its_own_word(whole):
    samples = {row["sample"]: row for row in table(whole, "samples.csv")}
    for row in table(whole, "faithfulness.csv"):
        if row["order"] in ("first", "second"):
            assert float(row["mass"]) == pytest.approx(float(samples[row["sample"]][f"mass_{row['order']}"]))


def test_shuffled_control_sees_another_picture(whole):
    for query in QUERIES:
        values = measured(table(whole, "measures.csv"), query, "mass")
        assert len(values["own"]) == 4 and (values["own"] != values["shuffled"]).all()


def test_insertion_begins_with_everything_hidden(whole, data_root):
    """The first answer, given a picture of nothing but the ground's colour, scored here by itself."""
    model, processor = models.load("tiny-llava")
    sample = gather(SpatialSamples(data_root=str(data_root)))[0][0]
    picture = read_image(sample.pair.image_path)
    spoken = generate_answer(model, processor, picture, sample.prompt, 16)
    shown = [Image.new("RGB", picture.size, median_colour(picture)), picture]
    hidden, seen = log_probabilities(model, processor, shown, sample.prompt, spoken, 2).tolist()
    with np.load(whole / "curves.npz") as curves:
        assert curves["samples"][0] == sample.name and seen - hidden > 0.1
        assert curves["first_insertion"][0, 0] == pytest.approx(hidden, abs=1e-3)
        assert curves["first_deletion"][0, 0] == pytest.approx(seen, abs=0.05)  # resized here, by the model's own there


def test_pictures_and_maps(whole):
    row = table(whole, "samples.csv")[1]
    assert row["first"] in row["prompt"] and row["relation"] in row["answer"] and row["answered_right"] == "1"
    with np.load(whole / row["folder"] / "maps.npz") as maps:
        assert maps["queries"].tolist() == list(QUERIES) and maps["own"].shape == (6, 12, 12)
        spread = maps["own"][0] / maps["own"][0].sum()
        assert (spread * maps["first"]).sum() == pytest.approx(float(row["mass_first"]), rel=1e-4)
    for name in ("looks_and_uses.png", "curves.png", f"{row['folder']}/looks.png"):
        with Image.open(whole / name) as picture:
            assert min(picture.size) > 300
    assert not (whole / "heads").exists() and not list(whole.glob("controls-*.png"))


@pytest.mark.parametrize(
    ("script", "flags", "layers"),
    [
        (qwen2, {}, 4),
        (qwen2, {"model": "tiny-qwen2-vl", "seeds_in": "decoder", "prompt": "{caption}", "rows": "query"}, None),
        (llava, {"model": "tiny-fuyu", "layers": "last_2"}, None),
        (qwen2, {"model": "tiny-llava", "seeds_in": "tower", "tower_layers": "0", "prompt": PLURAL}, 1),
    ],
    ids=["qwen2.5", "qwen2 decoder, caption", "fuyu", "llava by the other script, plural"],
)
def test_every_family_through_either_script(script, flags, layers, data_root, tmp_path):
    assert quick(script, tmp_path / "out", data_root=str(data_root), **flags) == 0
    summary = summary_of(tmp_path / "out")
    assert summary["n"] == 3 and "faithfulness" not in summary
    assert summary["seeds_in"] == ("decoder" if layers is None else "tower")
    assert layers is None or len(summary["layers"]["seed_first"]) == layers
    for word in ("first", "second"):  # a trained model looks at what it reads of
        mass = summary["queries"][word]["mass"]
        assert mass["mean"] > 2 * mass["controls"]["uniform"]["mean"]
    row = table(tmp_path / "out", "samples.csv")[0]
    assert row["prompt"].endswith("the spatial relation is") == ("prompt" not in flags)


def test_same_seed_same_figures_and_own_pictures(tmp_path, monkeypatch):
    """Without --data-root pictures are made, once; a sample's figures do not depend on how many there are."""
    monkeypatch.chdir(tmp_path)
    assert quick(llava, tmp_path / "one", limit=2, seed=4) == 0
    made = list((tmp_path / "data" / "generated").iterdir())
    assert [folder.name for folder in made] == ["twoshapes-2-seed-4"]
    assert quick(llava, tmp_path / "two", limit=1, seed=4, data_root=str(made[0])) == 0
    first = table(tmp_path / "one", "measures.csv")
    again = table(tmp_path / "two", "measures.csv")
    assert again == first[: len(again)]


def test_a_missing_word_is_left_out_and_counted_by_reason(data_root, tmp_path, capsys):
    """Asked for one shape, neither prompt nor answer holds the other; all else is measured, and drawn."""
    out, prompt = tmp_path / "out", "where is the {first} ? {relation}"
    plain = {"data_root": str(data_root), "prompt": prompt, "faithfulness": 1, "pictures": 1, "limit": 2}
    assert quick(llava, out, **plain) == 0
    summary = summary_of(out)
    assert summary["n"] == 2 and summary["skipped"] == {}
    assert summary["skipped_words"] == {"second shape is neither in prompt nor answer": 2}
    assert {query: summary["queries"][query]["mass"]["n"] for query in WORDS} == {
        "first": 2,
        "relation": 2,
        "second": 0,
    }
    assert summary["faithfulness"]["orders"]["second"]["deletion_gain"]["n"] == 0
    assert summary["faithfulness"]["orders"]["first"]["deletion_gain"]["n"] == 1
    assert "second shape is neither in prompt nor answer: left out of 2 samples" in capsys.readouterr().out


def test_without_any_word_a_sample_is_skipped(data_root, tmp_path, capsys):
    assert quick(llava, tmp_path / "out", data_root=str(data_root), prompt="is there a picture ?") == 1
    summary = summary_of(tmp_path / "out")
    assert summary["n"] == 0 and "queries" not in summary
    assert summary["skipped"] == {"no word is in prompt or answer": 3}
    assert "is in the prompt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"prompt": "where is {frist} ?"}, "holds {frist}, which stands for nothing"),
        ({"prompt": "{"}, "is no template"),
        ({"prompt": " "}, "--prompt is empty"),
        ({"limit": -1}, "--limit -1 must be"),
        ({"layers": "middle"}, "layers 'middle' is unknown"),
        ({"layers": "9"}, "layer 9 does not exist"),
        ({"tower_layers": "last_9"}, "more than the"),
        ({"faithfulness": -1}, "--faithfulness -1 must be"),
        ({"batch_size": 0}, "at least 1"),
        ({"data_root": "/nowhere"}, "no data in /nowhere"),
        ({"model": "tiny-fuyu", "seeds_in": "tower"}, "vision encoder"),
    ],
)
def test_wrong_settings_stop_with_one_sentence(flags, sentence, data_root, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        quick(llava, tmp_path / "out", **{"data_root": str(data_root)} | flags)
    assert stop.value.code == 2
    output = capsys.readouterr().err
    assert sentence in output and output.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_twins_share_main_and_differ_in_the_model():
    assert qwen2.main is llava.main
    defaults = [flat_flags(configure(script)) for script in (llava, qwen2)]
    assert {name for name in defaults[0] if defaults[0][name] != defaults[1][name]} == {"model"}


@pytest.mark.skipif(not REAL.is_dir(), reason="the published samples are not beside the repository (../shared/data)")
def test_published_samples_hold_all_words():
    samples, skipped, _ = gather(SpatialSamples(data_root=str(REAL), limit=0, prompt="{caption}"))
    assert len(samples) == 300 and not skipped
    assert {sample.pair.reversed for sample in samples} == {True, False}
    for sample in samples:
        assert all(sample.prompt.count(word) == 1 for word in sample.words.values())
        assert sample.prompt.index(sample.words["first"]) < sample.prompt.index(sample.words["second"])


@pytest.mark.skipif(not REAL.is_dir(), reason="the published samples are not beside the repository (../shared/data)")
def test_words_look_at_their_shapes_in_published_samples(tmp_path):
    """In both orders of the world; the published scripts had every second one the wrong way round."""
    assert quick(llava, tmp_path / "out", data_root=str(REAL), limit=16) == 0
    rows = table(tmp_path / "out", "measures.csv")
    reversed_ = {row["sample"]: row["reversed"] for row in table(tmp_path / "out", "samples.csv")}
    for order in ("0", "1"):
        mine = [row for row in rows if reversed_[row["sample"]] == order]
        by_query = [measured(mine, query, "mass") for query in ("first", "second")]
        own, other = (np.concatenate([values[name] for values in by_query]) for name in ("own", "other"))
        assert len(own) >= 10 and (own > other).mean() > 0.8
    assert set(SEEDS) <= set(summary_of(tmp_path / "out")["queries"])
