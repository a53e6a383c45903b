"""head_attention_stats_qwen2.py: its files, bad input, interrupted runs, and a model with a planted cause."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import head_attention_stats_qwen2 as script
import models
from analysis import head_responses
from analysis.head_responses import choose
from analysis.processes import lock
from data.counterfactual_pairs import generate, open_pair, question, read
from models.generation import answer
from models.loading import locate
from tests import shell, tolerance
from tests.runs import summary_of, table
from tests.settings import configure

COUNT = 10
PLANTED = (2, 1)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "set"
    generate(folder, "bottomright", COUNT, seed=0)
    return folder


def run(out, **flags):
    """Status of a run, in this process."""
    return script.main(configure(script, **{"out_dir": str(out), **flags}))


@pytest.fixture(scope="module")
def finished(pairs, tmp_path_factory):
    """The results of one run of the embedded Qwen2-VL."""
    out = tmp_path_factory.mktemp("finished") / "out"
    assert run(out, dataset=str(pairs), ablate=6, save_diffs=True, batch_size=4, topk=1) == 0
    return out


@pytest.mark.numerical
def test_responses_are_those_of_each_picture_asked_alone(finished, pairs):
    """Of one pair, from the attention rows of two runs of their own; batches change nothing."""
    model, processor = models.load("tiny-qwen2-vl")
    found, place = head_responses.read(finished), 5
    pair = read(pairs)[0][place]
    alone = []
    for image in open_pair(pair):
        answered = answer(model, processor, [image], question("bottomright"), max_new_tokens=1)
        rows = range(answered.layout.length - 1, answered.layout.length - 1 + len(answered.tokens))
        weights = [answered.trace.weights(layer, rows)[0][..., answered.layout.images[0]] for layer in range(5)]
        alone.append(torch.stack(weights).sum(-1).mean(-1).numpy())
    assert found.pairs[place] == pair.name and found.layers == (0, 1, 2, 3, 4)
    rounding = tolerance.two_runs(tolerance.score_size(answered.trace))
    assert np.abs(found.signed[..., place] - (alone[0] - alone[1])).max() <= rounding
    with np.load(finished / "attention.npz") as saved:
        assert np.abs(saved["full"][..., place] - alone[0]).max() <= rounding
        assert np.array_equal(saved["full"] - saved["control"], found.signed)
        assert saved["layers"].tolist() == list(found.layers) and saved["pairs"].tolist() == list(found.pairs)


def test_defaults():
    """Attention of the first token only: the rows after "yes" and "no" differ by the word. 19 random sets: p = 0.05."""
    config = configure(script)
    assert config.responses.max_new_tokens == 1 and config.ablation.draws == 19


def test_files_of_a_run(finished):
    names = {path.name for path in finished.iterdir()}
    layers = {f"layer_{layer}_top1_counts.{kind}" for layer in range(5) for kind in ("npy", "png")}
    arrays = {"count_LHN.npy", "count_LH.npy", "signed_LHN.npy", "attention.npz"}
    others = {"settings.json", "samples.csv", "summary.json", "heads.csv", "heads.png", "ablation.csv", "ablation.png"}
    assert names >= layers | arrays | others
    for name in ("heads.png", "ablation.png", "layer_2_top1_counts.png"):
        with Image.open(finished / name) as picture:
            assert picture.width > 500
    rows = table(finished)
    assert [row["answer_full"] for row in rows] == ["yes"] * COUNT and {row["answer_control"] for row in rows} == {"no"}
    found = summary_of(finished)
    assert found["n"] == COUNT and found["topk"] == 1 and found["corner"] is None and found["model"] == "tiny-qwen2-vl"
    assert found["prompt"] == question("bottomright") and found["answers"]["control"]["says_yes"]["count"] == 0
    margins = [float(row["margin_full"]) for row in rows]
    assert found["answers"]["full"]["margin"]["mean"] == pytest.approx(np.mean(margins)) and min(margins) > 0
    assert json.loads((finished / "settings.json").read_text())["layers"] == [0, 1, 2, 3, 4]


def test_a_finished_run_is_kept(finished, pairs, tmp_path, capsys):
    """The same settings are status 0, with the page if it is missing; other settings or pairs are refused."""
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "report.html").unlink()
    before = {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()}
    flags = {"dataset": str(pairs), "ablate": 6, "save_diffs": True, "batch_size": 2, "topk": 1}
    assert run(copy, **flags) == 0
    after = {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()}
    assert b"<html" in after.pop("report.html") and after == before
    other = tmp_path / "set"
    generate(other, "bottomright", COUNT, seed=1)
    for change, name in (({"topk": 2}, "topk"), ({"dataset": str(other)}, "dataset")):
        assert name in refused(copy, capsys, **{**flags, **change})


def test_an_unfinished_run_goes_on(pairs, tmp_path):
    """Files of a run that was killed before its summary are replaced, and partial ones removed."""
    flags = {"dataset": str(pairs), "max_pairs": 2, "layers": "last_1"}
    assert run(tmp_path / "out", **flags) == 0
    samples = (tmp_path / "out" / "samples.csv").read_bytes()
    (tmp_path / "out" / "summary.json").unlink()
    (tmp_path / "out" / "partial-heads.csv").write_text("half")
    assert run(tmp_path / "out", **flags) == 0
    assert (tmp_path / "out" / "samples.csv").read_bytes() == samples and summary_of(tmp_path / "out")["n"] == 2
    assert not (tmp_path / "out" / "partial-heads.csv").exists()


def test_a_second_run_into_the_folder_is_refused(pairs, tmp_path, capsys):
    with lock(tmp_path / "out"):
        assert "another run" in refused(tmp_path / "out", capsys, dataset=str(pairs))
    assert not (tmp_path / "out").exists()


def refused(out, capsys, **flags):
    """The sentence of a usage error, with status 2."""
    with pytest.raises(SystemExit) as stopped:
        run(out, **flags)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    return error


def test_ablation_is_measured_on_the_pairs_it_was_not_chosen_on(finished):
    """The table holds the other half alone, the summary follows from it, and unablated margins are the answers'."""
    found = summary_of(finished)["ablation"]
    rows = table(finished, "ablation.csv")
    samples = {row["sample"]: row for row in table(finished)}
    measured = {row["sample"] for row in rows}
    assert len(measured) == COUNT - found["chosen_on"] == COUNT // 2
    signed, names = head_responses.read(finished).signed, head_responses.read(finished).pairs
    chosen_on = [place for place, name in enumerate(names) if name not in measured]
    chosen = [tuple(head) for head in found["sets"]["chosen"]]
    assert tuple(chosen) == choose(signed[..., chosen_on], 6)
    by_set = {name: np.array([[float(row["full"]), float(row["control"])] for row in rows if row["set"] == name])
              for name in found["sets"]}  # fmt: skip
    for row in (row for row in rows if row["set"] == "none"):
        for picture in ("full", "control"):
            alone = float(samples[row["sample"]][f"margin_{picture}"])
            assert float(row[picture]) == pytest.approx(alone, abs=1e-3)
    change = by_set["chosen"] - by_set["none"]
    assert found["full"]["chosen"]["mean"] == pytest.approx(change[:, 0].mean())
    assert found["full_minus_control"]["chosen"]["mean"] == pytest.approx((change[:, 0] - change[:, 1]).mean())
    assert found["full_minus_control"]["chosen_minus_random"]["high"] < 0  # the embedded model does depend on them
    assert found["full_minus_control"]["rank"] == 1 and found["full_minus_control"]["p_rank"] == 1 / (len(by_set) - 1)
    held = summary_of(finished)["held_out"]
    assert [(row["layer"], row["head"]) for row in held] == chosen
    for row in held:
        others = [place for place, name in enumerate(names) if name in measured]
        assert row["other_half"]["mean"] == pytest.approx(signed[row["layer"], row["head"], others].mean(), abs=1e-6)


def plant(folder):
    """Write an embedded model in which one head determines the answer: all others attend uniformly, and their outputs
    are 0."""
    shutil.copytree(locate("tiny-llava"), folder)
    model, _ = models.load("tiny-llava")
    decoder = model.get_decoder()
    width = decoder.layers[0].self_attn.head_dim
    with torch.no_grad():
        for number, layer in enumerate(decoder.layers):
            for head in range(decoder.config.num_attention_heads):
                own = slice(head * width, (head + 1) * width)
                planted = (number, head) == PLANTED
                layer.self_attn.q_proj.weight[own] *= 0.05 if planted else 0  # less sharp, to attend to the image
                layer.self_attn.o_proj.weight[:, own] *= planted
    model.generation_config.eos_token_id = model.generation_config.pad_token_id  # nonsense may begin with the end
    model.save_pretrained(folder)
    return folder


@pytest.mark.numerical
def test_a_planted_head_is_found_and_is_the_cause(pairs, tmp_path):
    """Only that head responds, so it is chosen. Its ablation removes the effect of the object on the answer; ablation
    of random heads of its layer changes nothing."""
    planted = plant(tmp_path / "planted")
    assert run(tmp_path / "out", dataset=str(pairs), model=str(planted), ablate=1, draws=9) == 0
    responses = head_responses.read(tmp_path / "out")
    others = np.delete(responses.signed.reshape(16, -1), PLANTED[0] * 4 + PLANTED[1], 0)
    assert np.abs(others).max() < 1e-6 < np.abs(responses.signed[PLANTED]).min()
    found = summary_of(tmp_path / "out")["ablation"]
    assert found["sets"]["chosen"] == [list(PLANTED)]
    assert sorted(heads for name, heads in found["sets"].items() if name.startswith("random")) == [
        [[2, head]] for head in (0, 2, 3)
    ]
    margins = {name: [] for name in found["sets"]}
    for row in table(tmp_path / "out", "ablation.csv"):
        margins[row["set"]].append(float(row["full"]) - float(row["control"]))
    assert np.abs(margins["none"]).min() > 1e-3 and np.abs(margins["chosen"]).max() < 1e-4
    for name in ("random 0", "random 1", "random 2"):
        assert margins[name] == pytest.approx(margins["none"], abs=1e-4)
    whole = found["full_minus_control"]
    assert whole["chosen"]["mean"] == pytest.approx(-whole["margin"]["mean"], abs=1e-4)
    assert all(abs(change) < 1e-4 for change in whole["draws"])


@pytest.mark.parametrize("model", ["tiny-llava", "tiny-qwen2.5-vl", "tiny-fuyu"])
def test_other_families(model, pairs, tmp_path):
    """The corner's cells only; each of these models sees the object."""
    flags = {"model": model, "max_pairs": 4, "corner": "bottomright", "patch_size": 4, "layers": "last_2"}
    flags |= {"ablate": 1, "draws": 2}
    assert run(tmp_path / "out", dataset=str(pairs), **flags) == 0
    found = summary_of(tmp_path / "out")
    assert found["n"] == 4 and found["patch_size"] == 4 and found["answers"]["full"]["says_yes"]["rate"] == 1
    assert found["answers"]["control"]["says_yes"]["rate"] == 0
    assert len(found["layers"]) == 2 and min(found["layers"]) > 1
    sets = found["ablation"]["sets"]
    named = [layer for heads in sets.values() for layer, _ in heads] + [row["layer"] for row in found["held_out"]]
    assert len(sets) == 4 and set(named) <= set(found["layers"])


def test_a_corner_is_part_of_the_image_and_layers_are_named(finished, pairs, tmp_path):
    """All cells from one corner on are the image; of some layers, the rows are those that were asked for."""
    flags = {"dataset": str(pairs), "max_pairs": 3, "layers": "4,2", "topk": 2}
    assert run(tmp_path / "whole", corner="topleft", patch_size=12, **flags) == 0
    assert run(tmp_path / "corner", corner="topleft", **flags) == 0
    whole, corner = (head_responses.read(tmp_path / name) for name in ("whole", "corner"))
    assert whole.layers == (2, 4) and not (tmp_path / "whole" / "layer_0_top2_counts.npy").exists()
    expected = head_responses.read(finished).signed[[2, 4], :, :3]
    assert whole.signed == pytest.approx(expected, abs=tolerance.two_runs(tolerance.EMBEDDED))
    assert np.abs(corner.signed - whole.signed).max() > 0.1  # the object is in another corner
    assert "ablation" not in summary_of(tmp_path / "corner") and "held_out" not in summary_of(tmp_path / "corner")
    assert summary_of(tmp_path / "corner")["layers"] == [2, 4]


def test_bad_pairs_are_counted_and_the_run_goes_on(pairs, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(pairs, folder)
    (folder / "images" / "pair_00001_control.png").unlink()
    (folder / "images" / "pair_00003_full.png").write_bytes(b"no picture")
    Image.new("RGB", (50, 60)).save(folder / "images" / "pair_00004_control.png")
    (folder / "metadata.jsonl").write_text((folder / "metadata.jsonl").read_text() + '{"id": "last"}\n')
    assert run(tmp_path / "out", dataset=str(folder)) == 0
    found = summary_of(tmp_path / "out")
    reasons = ("control image missing", "metadata lacks caption", "not an image", "sizes differ")
    assert found["n"] == COUNT - 3 and found["skipped"] == dict.fromkeys(reasons, 1)
    assert head_responses.read(tmp_path / "out").pairs[:3] == ("pair_00000", "pair_00002", "pair_00005")


def test_nothing_usable_is_status_1(pairs, tmp_path, capsys):
    folder = tmp_path / "set"
    shutil.copytree(pairs, folder)
    for path in (folder / "images").glob("*_control.png"):
        path.unlink()
    assert run(tmp_path / "out", dataset=str(folder), corner="topleft") == 1
    assert summary_of(tmp_path / "out")["skipped"] == {"control image missing": COUNT}
    assert f"0 of {COUNT} samples done" in capsys.readouterr().out


BEFORE_LOADING = {
    "layers": ({"layers": "middle"}, "layers 'middle' is unknown"),
    "corner": ({"corner": "middle"}, "--corner 'middle' is unknown; choose topleft"),
    "patch without corner": ({"patch_size": 3}, "--patch-size is the size of a --corner"),
    "topk": ({"topk": 0}, "--topk 0 must be at least 1"),
    "tokens": ({"max_new_tokens": 0}, "--max-new-tokens 0 must be at least 1"),
    "ablate": ({"ablate": -1}, "--ablate -1 must be at least 0"),
    "too few pairs": ({"ablate": 1, "max_pairs": 3}, "--ablate needs at least 4 pairs"),
    "empty prompt": ({"prompt": " "}, "--prompt is empty"),
    "no data": ({"dataset": "nowhere"}, "make some with `python -m data.counterfactual_pairs"),
    "no such model": ({}, "model 'x' is neither"),
}
OF_THE_MODEL = {
    "patch beyond the grid": ({"corner": "topleft", "patch_size": 13}, "13 x 13 cells does not fit the grid of 12 r"),
    "layer": ({"layers": "7"}, "layer 7 does not exist; the model has 5"),
    "topk": ({"topk": 5}, "--topk 5 is more than the 4 heads of a layer"),
    "ablate": ({"ablate": 11}, "11 heads are more than half"),
}


@pytest.mark.parametrize("name", [*BEFORE_LOADING, *(f"{name}, known to the model" for name in OF_THE_MODEL)])
def test_usage_errors(name, pairs, tmp_path, capsys):
    flags, sentence = BEFORE_LOADING.get(name) or OF_THE_MODEL[name.removesuffix(", known to the model")]
    model = "x" if name in BEFORE_LOADING else "tiny-qwen2-vl"
    assert sentence in refused(tmp_path / "out", capsys, **{"dataset": str(pairs), "model": model, **flags})
    assert not (tmp_path / "out").exists()


def test_as_a_command(tmp_path):
    """From nothing, in a folder of its own: it makes its data."""
    flags = ("--max_pairs", 4, "--layers", "last_2", "--out-dir", "out")
    done = shell.run("head_attention_stats_qwen2.py", *flags, cwd=tmp_path)
    assert done.returncode == 0 and "heads attend differently" in done.stdout, done.stderr
    made = "data/generated/dataset_sample"
    assert len(read(tmp_path / made)[0]) == 40 and summary_of(tmp_path / "out")["layers"] == [3, 4]
    assert f"data: synthetic (made here: {made}), 4 of 40 samples (--max-pairs 4)" in done.stdout
    assert summary_of(tmp_path / "out")["dataset"] == made
