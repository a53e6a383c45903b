"""Every script as a person runs it, on two samples, and the sentence and exit status of each mistake."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import attention_rollout_llava as script
from analysis.resume import Parts
from data.twoshapes import LAYOUT, generate
from tests import shell
from tests.models import llava, llava_processor
from tests.runs import table
from tests.settings import configure

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    generate(folder, 2, seed=3)
    return folder


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    llava().save_pretrained(folder)
    llava_processor().save_pretrained(folder)
    return str(folder)


def run(*arguments, **options):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, **options)


def test_rollout_of_two_shapes(data_root, tmp_path):
    out = tmp_path / "out"
    done = shell.run("attention_rollout_llava.py", "--data_root", data_root, "--limit", 2, "--out-dir", out)
    assert done.returncode == 0, done.stderr
    assert f"2 of 2 samples done; results in {out}" in done.stdout
    rows = table(out)
    assert [row["sample"] for row in rows] == ["shard0/0", "shard0/1"]
    for row in rows:
        assert row["answer"] and row["gold"] in ("left", "right", "above", "below") and not row["skipped"]
        folder = out / row["folder"]
        with np.load(folder / "maps.npz") as maps:
            count = int(row["tokens"])
            grid = maps["mean"].shape
            assert maps["per_token"].shape == (count, *grid) and maps["per_token"].dtype == np.float32
            assert len(maps["tokens"]) == count and maps["rows"] == "predicting" and maps["cells"].shape == (*grid, 4)
            assert maps["cells"][0, 0].tolist() == pytest.approx([0, 0, 100 / grid[1], 100 / grid[0]], abs=1e-4)
            np.testing.assert_allclose(maps["mean"], maps["per_token"].mean(0), atol=1e-7)
        for name in ("overlay_mean.png", "overlay_max.png", "overlay_tokens.png", "image_share.png"):
            with Image.open(folder / name) as picture:
                assert min(picture.size) >= 200
    summary = json.loads((out / "summary.json").read_text())
    shares = [float(row["image_share"]) for row in rows]
    assert summary["n"] == 2 and summary["skipped"] == {} and summary["image_share"]["n"] == 2
    assert summary["image_share"]["mean"] == pytest.approx(np.mean(shares))
    settings = json.loads((out / "settings.json").read_text())
    assert settings["flags"]["model"] == "tiny-llava" and settings["model"]["family"] == "llava"
    assert {"torch", "transformers"} <= set(settings["versions"])


def test_bad_samples_are_counted_and_the_run_goes_on(random_model, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (60, 40), "red").save(folder / "good.png")
    (folder / "empty.png").touch()
    (folder / "half.png").write_bytes((folder / "good.png").read_bytes()[:60])
    Image.new("RGB", (1, 400)).save(folder / "thin.png")
    Image.new("RGB", (500, 2)).save(folder / "flat.png")
    Image.new("RGB", (1, 1), "red").save(folder / "dot.png")
    Image.new("CMYK", (30, 20)).save(folder / "print.jpg")
    Image.fromarray(np.full((20, 30), 40000, np.uint16)).save(folder / "deep.png")
    Image.new("P", (30, 20)).save(folder / "palette.gif", save_all=True, append_images=[Image.new("P", (30, 20), 1)])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(folder / "turned.jpg", exif=exif)
    out = tmp_path / "out"
    config = configure(script,
        model=random_model, data_root=str(folder), prompt="what is red ?", max_new_tokens=3, out_dir=str(out), limit=0
    )
    assert script.main(config) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["n"] == 6
    assert summary["skipped"] == {"image empty": 1, "image truncated": 1, "image too elongated": 2}
    bad = {"empty", "flat", "half", "thin"}
    assert {row["sample"]: bool(row["skipped"]) for row in table(out)} == {
        name: name in bad for name in ("dot", "good", "print", "deep", "palette", "turned", *bad)
    }
    with np.load(out / "turned" / "maps.npz") as maps:
        assert maps["image_size"].tolist() == [20, 30]  # upright: the grid belongs to the turned picture


def test_files_of_one_stem_keep_their_own_folders(random_model, tmp_path):
    for name, size in (("a/x.png", (60, 40)), ("b/x.png", (40, 60)), ("b/x.jpg", (50, 50)), ("b/y.png", (30, 30))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", size, "red").save(tmp_path / name)
    out = tmp_path / "out"
    images = tuple(str(tmp_path / name) for name in ("a/x.png", "b/x.png", "b/x.jpg", "b/y.png"))
    config = configure(script, model=random_model, image=images, prompt="what ?", max_new_tokens=2, out_dir=str(out))
    assert script.main(config) == 0
    sizes = {}
    for row in table(out):
        with np.load(out / row["folder"] / "maps.npz") as maps:
            sizes[row["sample"]] = maps["image_size"].tolist()
    assert sizes == {"a/x": [60, 40], "b/x.png": [40, 60], "b/x.jpg": [50, 50], "y": [30, 30]}


def test_flags_reach_what_they_are_for(random_model, tmp_path):
    """Each flag changes the maps or the picture that it says it changes, against the same run without it."""
    Image.new("RGB", (60, 40), "red").save(tmp_path / "p.png")

    def results(**flags):
        out = tmp_path / "_".join(["out", *flags])
        config = configure(script,
            model=random_model, image=(str(tmp_path / "p.png"),), prompt="what ?", max_new_tokens=2, out_dir=str(out),
            **flags,
        )  # fmt: skip
        assert script.main(config) == 0
        with np.load(out / "p" / "maps.npz") as maps, Image.open(out / "p" / "overlay_mean.png") as picture:
            return maps["mean"], np.asarray(picture)

    maps, picture = results()
    for name, value in {"residual": 0.9, "drop_first": True}.items():
        assert not np.allclose(results(**{name: value})[0], maps, atol=1e-4), name
    for name, value in {"alpha": 0.3, "power": 3.0, "blur": 0.0, "colourmap": "jet"}.items():
        same, other = results(**{name: value})
        assert np.array_equal(same, maps) and not np.array_equal(other, picture), name
    assert np.array_equal(results(offload=True)[0], maps)
    plain = np.asarray(Image.new("RGB", (picture.shape[1], picture.shape[0]), "red"))
    assert not np.array_equal(picture, plain)


def test_nothing_usable_is_status_1(random_model, tmp_path, capsys):
    (tmp_path / "empty.png").touch()
    config = configure(script,
        model=random_model, image=(str(tmp_path / "empty.png"), str(tmp_path / "none.png")), prompt="what ?",
        out_dir=str(tmp_path / "out"),
    )  # fmt: skip
    assert script.main(config) == 1
    assert "0 of 2 samples done" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["image_share"]["mean"] is None


def test_query_rows_have_one_map_less(random_model, data_root, tmp_path):
    shapes = []
    for rows in ("predicting", "query"):
        out = tmp_path / rows
        config = configure(script,
            model=random_model, data_root=str(data_root), limit=1, max_new_tokens=4, rows=rows, out_dir=str(out),
            prompt="describe the image .",
        )  # fmt: skip
        assert script.main(config) == 0
        with np.load(out / "shard0-0" / "maps.npz") as maps:
            shapes.append(len(maps["tokens"]))
            assert str(maps["rows"]) == rows
    assert shapes[0] == shapes[1] + 1 == int(table(tmp_path / "query")[0]["tokens"])


KEPT = ("tests/kept.txt",)
MISTAKES = {
    "no folder": ({"data_root": ""}, "--data-root is empty"),
    "both inputs": ({"image": ("a.png",), "data_root": "x"}, "give either --image"),
    "no prompt": ({"image": KEPT}, "images need a --prompt"),
    "no prompt for a folder": ({"data_root": "."}, "holds no image"),
    "no such picture": ({"image": ("a.png",), "prompt": "?"}, "none of the images exists: a.png"),
    "limit": ({"data_root": "x", "limit": -1}, "--limit -1 must be at least 0"),
    "empty prompt": ({"image": ("a.png",), "prompt": " "}, "--prompt is empty"),
    "residual": ({"data_root": "x", "residual": 1.5}, "--residual 1.5 is out of range"),
    "colours": ({"data_root": "x", "colourmap": "rainbows"}, "--colourmap 'rainbows' is unknown"),
    "tokens": ({"data_root": "x", "max_new_tokens": 0}, "--max-new-tokens 0 must be at least 1"),
    "data": ({"data_root": "nowhere"}, "looked for spatial_twoshapes/agreement/relational"),
    "model": ({"image": KEPT, "prompt": "?", "model": "tiny-lava"}, "model 'tiny-lava' is neither a folder"),
    "quantised": ({"image": KEPT, "prompt": "?", "load_8bit": True}, "load_8bit needs the package bitsandbytes"),
    "out dir below a file": (
        {"image": KEPT, "prompt": "?", "out_dir": "tests/kept.txt/x"},
        "no folder that you may write",
    ),
    "out dir": ({"image": KEPT, "prompt": "?", "out_dir": "tests"}, "exists and is not empty"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_wrong_use_is_one_sentence_and_status_2(name, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "kept.txt").touch()
    flags, sentence = MISTAKES[name]
    with pytest.raises(SystemExit) as stopped:
        script.main(configure(script, **flags))
    output = capsys.readouterr().err
    assert stopped.value.code == 2 and sentence in output and output.startswith("error: ")
    assert output.count("\n") == 1 and "Traceback" not in output
    assert [path.name for path in tmp_path.rglob("*")] == ["tests", "kept.txt"]


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"model_type": "bert"}, "is of the family 'bert', which is not a model of images and text; supported"),
    ],
)
def test_models_that_cannot_be_used_are_status_2(random_model, tmp_path, capsys, changes, sentence):
    config = json.loads((Path(random_model) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    Image.new("RGB", (20, 20)).save(tmp_path / "p.png")
    flags = {"model": str(tmp_path), "image": (str(tmp_path / "p.png"),), "prompt": "?", "out_dir": str(tmp_path / "o")}
    with pytest.raises(SystemExit) as stopped:
        script.main(configure(script, **flags))
    output = capsys.readouterr().err
    assert stopped.value.code == 2 and sentence in output and output.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_flags_are_checked_by_the_shell_too():
    done = shell.run("attention_rollout_llava.py", "--rows", "both")
    assert done.returncode == 2 and "predicting" in done.stderr
    done = shell.run("attention_rollout_llava.py", "--help")
    assert done.returncode == 0 and "--max-new-tokens" in done.stdout and "Weight w of the identity" in done.stdout


@pytest.mark.slow
def test_interrupting_leaves_whole_rows(random_model, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(200):
        Image.new("RGB", (60, 40), "red").save(folder / f"{index:03}.png")
    out = tmp_path / "out"
    flags = ["--model", random_model, "--data-root", folder, "--prompt", "what ?", "--limit", "0", "--out-dir", out]
    process = subprocess.Popen(
        [sys.executable, "attention_rollout_llava.py", *map(str, flags)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        # Started in the background of a shell, the tests themselves are deaf to SIGINT, and so would their children be.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and len(list(out.glob("parts/*.npz"))) < 2:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, output = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "error: interrupted; start the same command again to go on" in output
    rows = [part.row for part in Parts(out / "parts")]
    assert len(rows) >= 2 and all((out / row["folder"] / "maps.npz").is_file() for row in rows)
    assert not (out / "summary.json").exists()


def test_a_full_disk_is_one_sentence_and_the_run_goes_on(random_model, data_root, tmp_path, capsys, monkeypatch):
    """The disk is full while the second sample's results are written; with space again, the same command finishes."""
    from analysis import command, files

    out, replace = tmp_path / "out", os.replace

    def full(partial, path):
        if Path(path).name == "000001.npz":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(partial, path)

    flags = ["--model", random_model, "--data-root", str(data_root), "--max-new-tokens", "2", "--out-dir", str(out)]
    monkeypatch.setattr(sys, "argv", ["attention_rollout_llava.py", *flags])
    monkeypatch.setattr(files.os, "replace", full)
    for status in (1, 0):
        with pytest.raises(SystemExit) as stopped:
            command.run(script.main, script.Config, "")
        assert stopped.value.code == status
        output = capsys.readouterr().err
        assert ("error: could not write" in output and "no space left on device" in output) == bool(status)
        monkeypatch.setattr(files.os, "replace", replace)
    assert (out / "summary.json").is_file()


def test_data_generator(tmp_path):
    done = run("-m", "data.twoshapes", "--out-dir", tmp_path / "set", "--count", 2, "--seed", 1)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "set" / LAYOUT / "shard0").glob("world-*.png"))) == 2
    assert run("-m", "data.twoshapes", "--out-dir", tmp_path / "set", "--count", 2).returncode == 2


def test_importing_costs_nothing():
    """Importing a script loads no model, parses no flags and makes no folder."""
    before = set(ROOT.iterdir())
    scripts = ", ".join(sorted(path.stem for path in ROOT.glob("*.py")))
    done = run("-c", f"import sys; sys.argv = ['x', '--no-such-flag']; import {scripts}")
    assert done.returncode == 0 and done.stdout == "" and set(ROOT.iterdir()) - before <= {ROOT / "__pycache__"}
