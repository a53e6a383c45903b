"""The two gaze scripts as a person runs them, and every figure of their summaries out of their tables."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

import gaze_generation_llava as generation
import gaze_head_similarity_llava as similarity
from analysis.command import parse
from analysis.gaze import names, summarise_colours
from analysis.gaze_heads import Settings
from analysis.statistics import SHARE, mean_interval
from data import scanpaths, twoshapes
from models.gaze import SalientHead
from models.generation import answers, word_probability
from tests import tolerance
from tests.families import FAMILIES
from tests.models import word_tokenizer
from tests.runs import table
from tests.settings import configure
from tests.shell import run

ROOT = Path(__file__).parent.parent
WAYS = ("plain", "gaussian", "non-gaussian", "salient-head")
LOST = "spatial_twoshapes/agreement/relational/shard0/world-2.png"


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """Four pictures of two shapes of different colour with scanpaths, one of which is missing."""
    folder = tmp_path_factory.mktemp("data") / "set"
    twoshapes.generate(folder, 4, seed=5, same_colour=0.0)
    files, _ = scanpaths.generate(folder, seed=5)
    lines = files["second"].read_text().splitlines(keepends=True)
    files["second"].write_text("".join(line for line in lines if LOST not in line))
    files["background"].unlink()
    return folder


def column(rows, name):
    return np.array([float(row[name]) for row in rows])


@pytest.fixture(scope="module")
def generated(data_root, tmp_path_factory):
    out = tmp_path_factory.mktemp("generated") / "out"
    done = run(
        "gaze_generation_llava.py", "--data_root", data_root, "--batch-size", 3, "--pictures", 1, "--out-dir", out,
        cwd=out.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"7 of 8 samples done; results in {out}" in done.stdout
    assert "\nskipped: no scanpath (1)\n" in done.stdout and "left out" not in done.stdout
    return out


def test_answers_side_by_side(generated):
    rows = table(generated)
    skipped = {row["sample"]: row["skipped"] for row in rows if row["skipped"]}
    assert skipped == {"shard0/2 second": "no scanpath"}
    for row in (row for row in rows if not row["skipped"]):
        assert row["gaze"] in row["sample"] and row["prompt"] == "what colour is the shape ?"
        for way in WAYS:
            tokens = [pair.rsplit(" ", 1) for pair in row[f"token_probabilities_{way}"].split(" | ")]
            assert [token for token, _ in tokens] == row[f"answer_{way}"].split()
            assert np.mean([float(p) for _, p in tokens]) == pytest.approx(float(row[f"probability_{way}"]), abs=1e-3)
            named = [shape for shape in ("first", "second") if row[f"answer_{way}"] == row[f"{shape}_colour"]]
            for shape in named:  # the answer is the most probable first token
                assert float(row[f"p_{shape}_{way}"]) == pytest.approx(float(tokens[0][1]), abs=1e-3)
        assert float(row["inside_non-gaussian"]) == pytest.approx(1, abs=tolerance.sums(100))
    measured = [row for row in rows if not row["skipped"]]
    assert column(measured, "inside_gaussian").mean() > column(measured, "inside_plain").mean()


def test_summary_is_what_the_table_says(generated):
    rows = [row for row in table(generated) if not row["skipped"]]
    summary = json.loads((generated / "summary.json").read_text())
    assert summary["n"] == 7 and summary["skipped"] == {"no scanpath": 1}
    for gaze, n in (("first", 4), ("second", 3)):
        mine = [row for row in rows if row["gaze"] == gaze]
        for way in WAYS:
            found = summary["gaze"][gaze][way]
            for measure in ("inside", "image_attention", "probability"):
                after, before = column(mine, f"{measure}_{way}"), column(mine, f"{measure}_plain")
                assert found[measure]["mean"] == pytest.approx(after.mean()) and found[measure]["n"] == n
                if way != "plain":
                    difference = found[f"{measure}_difference"]
                    assert difference["mean"] == pytest.approx((after - before).mean(), abs=1e-9)
                    assert difference["low"] <= difference["mean"] <= difference["high"] and difference["n"] == n
            if way != "plain":
                changed = sum(row[f"answer_{way}"] != row["answer_plain"] for row in mine)
                assert found["answer_changed"]["count"] == changed and found["answer_changed"]["n"] == n
    plain = {row["image"]: (row["answer_plain"], row["first_colour"]) for row in rows}
    without = summary["colours"]["without_gaze"]["first"]
    count = sum(answer == colour for answer, colour in plain.values())
    interval = stats.binomtest(count, 4).proportion_ci(method="wilson")
    assert (without["count"], without["n"]) == (count, 4)
    assert (without["low"], without["high"]) == pytest.approx((interval.low, interval.high))
    for way in WAYS[1:]:
        for gaze in ("first", "second"):
            mine = [row for row in rows if row["gaze"] == gaze]
            for shape in ("first", "second"):
                found = summary["colours"][way][f"gaze_on_{gaze}"]
                named = [row[f"answer_{way}"] == row[f"{shape}_colour"] for row in mine]
                before = [row["answer_plain"] == row[f"{shape}_colour"] for row in mine]
                assert found[shape]["rate"] == np.mean(named)
                assert found[f"{shape}_difference"]["mean"] == pytest.approx(np.mean(named) - np.mean(before))
                moved = column(mine, f"p_{shape}_{way}") - column(mine, f"p_{shape}_plain")
                assert found[f"p_{shape}_difference"]["mean"] == pytest.approx(moved.mean(), abs=1e-9)


def test_pictures_and_maps_of_the_first_sample(generated):
    folders = [row["folder"] for row in table(generated) if row["folder"]]
    assert folders == ["shard0-0-first"]
    folder = generated / folders[0]
    files = {"comparison.png", "masks.npz", *(f"maps-{way}.npz" for way in WAYS)}
    assert {path.name for path in folder.iterdir()} == files
    with Image.open(folder / "comparison.png") as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(10**7)) > 500
    with Image.open(generated / "colours.png") as picture:
        assert picture.width > 600
    with np.load(folder / "masks.npz") as masks, np.load(folder / "maps-plain.npz") as maps:
        assert set(masks) == {"points", *WAYS[1:]}
        windows = np.zeros_like(masks["gaussian"])
        for x, y in masks["points"].astype(int):
            windows[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = 1
        assert np.array_equal(masks["non-gaussian"], windows)
        assert maps["mean"].shape == windows.shape and masks["gaussian"].max() == 1
        with np.load(folder / "maps-non-gaussian.npz") as steered:
            assert not np.allclose(steered["mean"], maps["mean"], atol=1e-3)


def test_batches_do_not_change_the_answers(generated, data_root, tmp_path):
    config = configure(generation, data_root=str(data_root), batch_size=1, pictures=0, out_dir=str(tmp_path / "out"))
    assert generation.main(config) == 0
    rounding = tolerance.two_runs(tolerance.EMBEDDED)
    for one, three in zip(table(tmp_path / "out"), table(generated), strict=True):
        assert one["sample"] == three["sample"] and one["skipped"] == three["skipped"]
        for way in WAYS if not one["skipped"] else ():
            assert one[f"answer_{way}"] == three[f"answer_{way}"]
            for measure in ("inside", "p_first", "p_second", "image_attention"):
                assert float(one[f"{measure}_{way}"]) == pytest.approx(float(three[f"{measure}_{way}"]), abs=rounding)


def test_scanpaths_on_one_picture_share_its_plain_answer(data_root, tmp_path, monkeypatch):
    """Of two pictures, each with two scanpaths, in batches of three: what is asked, and that rows say the same."""
    asked = []

    def counting(model, processor, images, prompts, **options):
        asked.append((options.get("scanpaths") is None, len(prompts)))
        return answers(model, processor, images, prompts, **options)

    monkeypatch.setattr(generation, "answers", counting)
    flags = {"data_root": str(data_root), "limit": 2, "pictures": 0, "mask_types": ("gaussian",), "batch_size": 3}
    assert generation.main(configure(generation, **flags, out_dir=str(tmp_path / "out"))) == 0
    assert asked == [(True, 2), (False, 3), (True, 1), (False, 1)]
    rows = table(tmp_path / "out")
    assert [row["gaze"] for row in rows] == ["first", "second"] * 2
    for measure in ("token_probabilities", "image_attention", "p_first"):
        assert rows[0][f"{measure}_plain"] == rows[1][f"{measure}_plain"] != rows[2][f"{measure}_plain"]
        assert rows[0][f"{measure}_gaussian"] != rows[1][f"{measure}_gaussian"]
    assert rows[0]["inside_plain"] != rows[1]["inside_plain"]


def test_settings_of_the_masks_reach_the_model(data_root, tmp_path):
    flags = {"data_root": str(data_root), "pictures": 0, "limit": 2, "mask_types": ("salient-head", "gaussian")}

    def inside(name, **more):
        assert generation.main(configure(generation, **flags, **more, out_dir=str(tmp_path / name))) == 0
        rows = table(tmp_path / name)
        return {way: column(rows, f"inside_{way}") for way in ("plain", "salient-head", "gaussian")}

    plain = inside("neutral", tau=1.0, target_layer=(3,))
    assert np.array_equal(plain["salient-head"], plain["plain"])
    many = inside("many", tau=0.0, salient_heads=4, target_layer=(0, 1, 2, 3))
    assert many["salient-head"].mean() > many["plain"].mean() + 0.1
    assert not np.allclose(many["gaussian"], plain["gaussian"], atol=1e-3)
    assert configure(generation, sigma=0.5).masks.masks(1, 4, 4)["salient-head"].sigma == 0.5
    assert configure(generation).masks.masks(1, 4, 4)["salient-head"].sigma == SalientHead.sigma
    wide = inside("wide", margin=3)
    assert (wide["plain"] > plain["plain"]).all()


# The script on the other families is slow; test_gaze.py checks the masks of every family.
FAST = ("qwen2_5_vl",)


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in FAMILIES]
)
def test_any_family_on_photographs_with_gaze_in_fractions(family, tmp_path):
    """Random models; one picture is broken, one has its gaze outside of it."""
    model, processor = FAMILIES[family]
    model().save_pretrained(tmp_path / "model")
    processor().save_pretrained(tmp_path / "model")
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, size in (("a", (90, 60)), ("b", (60, 90)), ("c", (64, 64)), ("d", (60, 60))):
        Image.effect_noise(size, 90).convert("RGB").save(folder / f"{name}.png")
    (folder / "e.png").touch()
    lines = ["image,x,y", *(f"{name}.png,0.5,{y}" for name in "ace" for y in (0.4, 0.6)), "b.png,0.5,0.5", "d.png,2,2"]
    lines += ["a.png,3,3", "a.png,0.5"]
    (folder / "gaze.csv").write_text("\n".join(lines))
    flags = [
        "--model",
        tmp_path / "model",
        "--data-root",
        folder,
        "--scanpaths",
        folder / "gaze.csv",
        "--max-new-tokens",
    ]
    flags += [3, "--units", "fractions", "--prompt", "where is the red circle ?", "--out-dir", tmp_path / "out"]
    done = run("gaze_generation_llava.py", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lost = "left out of records: row does not have one cell per column (1); of fixations: outside the image (1)"
    assert f"\n{lost}\n" in f"\n{done.stdout}"
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["n"] == 3 and summary["colours"] == {}
    assert summary["skipped"] == {"image empty": 1, "no fixation that the model can see": 1}
    assert summary["gaze"]["gaze"]["non-gaussian"]["inside"]["mean"] == pytest.approx(1, abs=1e-5)
    assert {row["folder"] for row in table(tmp_path / "out") if row["folder"]} == {"a", "b", "c"}
    heads = configure(similarity,
        model=str(tmp_path / "model"), data_root=str(folder), scanpaths=str(folder / "gaze.csv"), units="fractions",
        prompt="what is left ?", max_new_tokens=2, out_dir=str(tmp_path / "heads"),
    )  # fmt: skip
    assert similarity.main(heads) == 0
    assert len(table(tmp_path / "heads", "heads.csv")) == 3 * 4


def test_heads_of_the_table_are_those_of_every_image(data_root, tmp_path):
    done = run("gaze_head_similarity_llava.py", "--data-root", data_root, "--out-dir", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 samples done" in done.stdout and "too few images: settings are chosen on one half" in done.stdout
    with np.load(tmp_path / "out" / "similarity.npz") as arrays:
        own, shuffled, seen = arrays["own"], arrays["shuffled"], arrays["seen"]
        assert arrays["samples"].tolist() == [row["sample"] for row in table(tmp_path / "out")]
    known = np.isfinite(own)  # a head without attention to the image has no similarity
    assert own.shape == (4, 4, 4) and known.mean() > 0.9 and own[known].min() >= 0 and own[known].max() <= 1
    assert not np.allclose(own[known], shuffled[known])
    for row in table(tmp_path / "out", "heads.csv"):
        at = int(row["layer"]), int(row["head"])
        mine = own[:, at[0], at[1]][known[:, at[0], at[1]]]
        assert int(row["n"]) == len(mine)
        if len(mine) < 2:
            continue
        assert (float(row["similarity"]), float(row["deviation"])) == pytest.approx((mine.mean(), mine.std(ddof=1)))
        alone = mean_interval(mine, SHARE)
        assert (float(row["low"]), float(row["high"])) == pytest.approx((alone["low"], alone["high"]))
        assert float(row["relative"]) == pytest.approx(mine.mean() / np.nanmean(own, 0)[at[0]].max())
        lift = np.nanmean(own[:, at[0], at[1]] - shuffled[:, at[0], at[1]])
        assert float(row["lift"]) == pytest.approx(lift, abs=1e-12)
        assert float(row["image_attention"]) == pytest.approx(seen[:, at[0], at[1]].mean())
    for row in table(tmp_path / "out"):
        assert row["prompt"].startswith("where is the ") and "{" not in row["prompt"] and row["fixations"] == "8"
    for name in ("heads.png", "ranked.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert min(picture.size) > 300
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["proposal"]["settings"] is None


def test_heads_of_the_embedded_model_follow_the_shape_that_is_asked_for(tmp_path, monkeypatch, capsys):
    """Without data: on made pictures, settings chosen on one half hold on the other; a single image has no control."""
    monkeypatch.chdir(tmp_path)
    assert similarity.main(configure(similarity, limit=40, out_dir="out")) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    settings, other = summary["proposal"]["settings"], summary["other_half"]
    assert set(settings["layers"]) <= {1, 2, 3} and 0 < settings["tau"] < 1 and 1 <= settings["heads"] <= 4
    [printed] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("as flags of gaze_gen")]
    read = parse(generation.Config, args=printed.split(": ")[1].split())
    expected = SalientHead(tuple(settings["layers"]), settings["heads"], read.masks.tau)
    assert read.masks.masks(1, 4, 4) == {"salient-head": expected} and read.masks.tau == pytest.approx(settings["tau"])
    assert other["gaze"]["lift"]["low"] > 0.1 and other["gaze"]["lift"]["n"] == 20
    assert other["followers"]["both"] >= 0.5 * other["followers"]["first_half"]
    assert other["rank_correlation"]["low"] > 0.3 and summary["published"]["settings"]["layers"] == [2]
    assert similarity.main(configure(similarity, limit=1, out_dir="one")) == 0
    assert table(tmp_path / "one")[0]["best_shuffled"] == ""
    assert {row["shuffled"] for row in table(tmp_path / "one", "heads.csv")} == {"nan"}


def test_flags_of_a_proposal_keep_the_mask_that_it_was_measured_with():
    found = similarity.flags(Settings((1, 3), 0.25, 2), configure(similarity, margin=2, sigma=0.75))
    assert found[-4:] == ["--margin", "2", "--sigma", "0.75"]
    read = parse(generation.Config, args=found)
    expected = SalientHead((1, 3), heads=2, tau=0.25, margin=2, sigma=0.75)
    assert read.masks.masks(read.reading.margin, 4, 4)["salient-head"] == expected


def test_gaze_moves_the_answers_of_the_embedded_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = {"mask_types": ("gaussian", "non-gaussian"), "limit": 40, "pictures": 0, "batch_size": 20}
    assert generation.main(configure(generation, **flags, out_dir="out")) == 0
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["colours"]
    for way in flags["mask_types"]:
        assert found[way]["first_against_second"]["low"] > 0
        for shape, other in (("first", "second"), ("second", "first")):
            assert found[way][f"gaze_on_{shape}"][f"p_{shape}_difference"]["low"] > 0
            assert found[way][f"gaze_on_{shape}"][f"p_{other}_difference"]["high"] < 0
    assert found["non-gaussian"]["gaze_on_first"]["first"]["low"] > found["without_gaze"]["first"]["rate"]


def test_an_answer_that_goes_along_is_one_and_one_that_stays_is_none():
    """Of three pictures, the first follows the gaze, the second never changes, the third goes the other way."""
    answers = [("red", "blue"), ("red", "red"), ("blue", "red")]
    rows = [
        {"image": str(number), "gaze": gaze, "first_colour": "red", "second_colour": "blue", "answer_plain": "green",
         "answer_x": output, "p_first_plain": None, "p_first_x": 0.5, "p_second_plain": 0.25, "p_second_x": 0.5}
        for number, pair in enumerate(answers) for gaze, output in zip(("first", "second"), pair, strict=True)
    ]  # fmt: skip
    found = summarise_colours([*rows, dict(rows[0], first_colour="", second_colour="")], ["plain", "x"])
    assert found["x"]["first_against_second"]["mean"] == 0 and found["x"]["first_against_second"]["n"] == 3
    assert found["x"]["gaze_on_first"]["first"]["count"] == 2 and found["without_gaze"]["first"]["n"] == 3
    assert found["x"]["gaze_on_first"]["p_first_difference"]["n"] == 0
    assert found["x"]["gaze_on_first"]["p_second_difference"]["mean"] == 0.25
    assert summarise_colours(rows[:2], ["plain", "x"])["x"]["first_against_second"]["mean"] == 1
    assert names("It is Red.", "red") and not names("a reddish one", "red")


def test_probability_of_a_word_is_that_of_all_its_spellings():
    tokenizer = word_tokenizer()
    chances = torch.arange(len(tokenizer)) / 100
    expected = tokenizer.convert_tokens_to_ids("red") / 100
    assert word_probability(chances, tokenizer, "Red") == pytest.approx(expected)
    assert word_probability(chances, tokenizer, "mauve") is None


MISTAKES = {
    "margin": ({"margin": -1}, "--margin -1 must be at least 0"),
    "limit": ({"limit": -1}, "--limit -1 must be at least 0"),
    "tokens": ({"max_new_tokens": 0}, "--max-new-tokens 0 must be at least 1"),
    "seed": ({"seed": -1}, "--seed -1 must be at least 0"),
    "both inputs": ({"image": ("a.png",), "data_root": "x"}, "give either --image"),
    "empty prompt": ({"prompt": " ", "data_root": "nowhere"}, "--prompt is empty"),
    "data": ({"data_root": "nowhere"}, "looked for spatial_twoshapes"),
    "pictures without gaze": ({"image": ("kept.png",), "prompt": "?"}, "images need --scanpaths"),
    "no such model": ({"image": ("kept.png",), "scanpaths": "gaze.csv", "units": "pixels"}, "model 'x' is neither"),
    "no such scanpaths": ({"image": ("kept.png",), "scanpaths": "g.csv"}, "scanpath file g.csv does not exist"),
    "no units": (
        {"image": ("kept.png",), "scanpaths": "gaze.csv"},
        "gaze.csv holds no scanpath that can be used, 1 of 1 because: units are not stated; --units says",
    ),
    "empty scanpaths": ({"image": ("kept.png",), "scanpaths": "none.csv"}, "none.csv holds no scanpath"),
    "other pictures": (
        {"image": ("kept.png",), "scanpaths": "other.csv", "units": "pixels"},
        "no scanpath for kept.png; the file has 1, such as: other.png (names are paths below ",
    ),
    "scanpaths of no kind": ({"image": ("kept.png",), "scanpaths": "kept.png"}, "is of no known kind"),
}
OF_GENERATION = {
    "tau": ({"tau": -0.5}, "tau is -0.5"),
    "heads": ({"salient_heads": -1}, "heads is -1"),
    "sigma": ({"sigma": 0.0}, "sigma is 0.0"),
    "batch": ({"batch_size": 0}, "--batch-size 0 must be at least 1"),
    "layer": ({"target_layer": (2, -1)}, "--target-layer -1 does not exist"),
    "no mask": ({"mask_types": ()}, "--mask-types is empty"),
    "residual": ({"residual": 1.5}, "--residual 1.5 is out of range"),
    "no layer": (
        {
            "image": ("kept.png",),
            "scanpaths": ("gaze.csv",),
            "units": "pixels",
            "model": "tiny-llava",
            "target_layer": (4,),
        },
        "target-layer 4 does not exist; the model has layers 0 to 3",
    ),
}


@pytest.mark.parametrize(
    "script, name",
    [(similarity, "sigma"), *((script, name) for script in (similarity, generation) for name in MISTAKES)]
    + [(generation, name) for name in OF_GENERATION],
)
def test_wrong_use_is_one_sentence_and_status_2(script, name, tmp_path, monkeypatch, capsys):
    """Before the model loads: but for two of them, the model that is asked for does not exist."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (30, 30)).save("kept.png")
    Path("gaze.csv").write_text("image,x,y\nkept.png,3,3\n")
    Path("other.csv").write_text("image,x,y\nother.png,3,3\n")
    Path("none.csv").write_text("image,x,y\n")
    known = {**MISTAKES, **OF_GENERATION, "sigma": ({"sigma": 0.0}, "sigma is 0.0")}
    flags, sentence = known[name]
    if script is generation and isinstance(flags.get("scanpaths"), str):
        flags = flags | {"scanpaths": (flags["scanpaths"],)}
    with pytest.raises(SystemExit) as stopped:
        script.main(configure(script, **{"model": "x", "out_dir": "out", **flags}))
    output = capsys.readouterr().err
    assert stopped.value.code == 2 and sentence in output and output.startswith("error: ") and output.count("\n") == 1
    assert not Path("out").exists() and not Path("data").exists()


def test_nothing_usable_is_status_1(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (30, 30)).save("kept.png")
    Path("gaze.csv").write_text("image,x,y\nkept.png,99,3\n")
    flags = {"image": ("kept.png",), "units": "pixels", "prompt": "what ?"}
    assert similarity.main(configure(similarity, **flags, scanpaths="gaze.csv", out_dir="heads")) == 1
    assert generation.main(configure(generation, **flags, scanpaths=("gaze.csv",), out_dir="answers")) == 1
    output = capsys.readouterr().out
    assert output.count("0 of 1 samples done") == output.count("skipped: no fixation that the model can see (1)") == 2
    for out in ("heads", "answers"):
        assert json.loads(Path(out, "summary.json").read_text())["skipped"] == {"no fixation that the model can see": 1}


def test_flags_are_checked_by_the_shell_too():
    done = run("gaze_head_similarity_llava.py", "--help", cwd=ROOT)
    assert done.returncode == 0 and "--margin" in done.stdout and "--by-duration" in done.stdout
    done = run("gaze_generation_llava.py", "--mask-types", "blurred", cwd=ROOT)
    assert done.returncode == 2 and "salient-head" in done.stderr
