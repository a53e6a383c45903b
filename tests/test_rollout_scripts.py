"""The rollout scripts of every family, as a person runs them, on a portrait, a landscape and a square photograph."""

import importlib
import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

import models
from analysis.runs import flat_flags
from tests.families import FAMILIES
from tests.runs import table
from tests.settings import configure
from tests.shell import run
from tests.unpatched import UNPATCHED, save

ROOT = Path(__file__).parent.parent
SCRIPTS = {
    "llava": "attention_rollout_llava",
    "qwen2_vl": "attention_rollout_qwen2",
    "qwen2_5_vl": "attention_rollout_qwen2",
    "qwen3_vl": "attention_rollout_qwen2",
    "fuyu": "attention_rollout_fuyu",
}
SHARED = "qwen2_vl"  # goes through every script; every other family goes through one
CROPS = {"portrait": (90, 0, 430, 600), "landscape": (0, 30, 512, 330), "square": (60, 0, 460, 400)}
QWEN = {  # at most 32 cells: the side lengths are divided by sqrt(width * height / (32 * 28 * 28)), then by 28
    "portrait": ((7, 4), (0, 0, 340 / 4, 600 / 7)),
    "landscape": ((4, 7), (0, 0, 512 / 7, 300 / 4)),
    "square": ((5, 5), (0, 0, 80, 80)),
}
EXPECTED = {
    "llava": {  # the shortest edge becomes 56, the other is truncated to 98 and 95; 21 and 19 are cut at the front
        "portrait": ((4, 4), (0, 21 * 600 / 98, 85, 35 * 600 / 98)),
        "landscape": ((4, 4), (19 * 512 / 95, 0, 33 * 512 / 95, 75)),
        "square": ((4, 4), (0, 0, 100, 100)),
    },
    "qwen2_vl": QWEN,
    "qwen2_5_vl": QWEN,
    "qwen3_vl": QWEN,  # cells of 32 pixels, and at most 32 of them: the same side lengths in cells
    "fuyu": {  # shrunk into 180 x 120: to 68 x 120, 180 x 105 and 120 x 120, cut into patches of 30
        "portrait": ((4, 3), (0, 0, 150, 150)),
        "landscape": ((4, 6), (0, 0, 30 * 512 / 180, 30 * 300 / 105)),
        "square": ((4, 4), (0, 0, 100, 100)),
    },
}
"""Rows and columns of the maps, and the first cell in pixels of the photograph, worked by hand."""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    with Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg") as photograph:
        for name, box in CROPS.items():
            photograph.convert("RGB").crop(box).save(folder / f"{name}.png")
    return [str(folder / f"{name}.png") for name in CROPS]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, (model, processor) in FAMILIES.items():
        model().save_pretrained(folder / name)
        processor().save_pretrained(folder / name)
    return folder


SLOW = ("qwen2_vl", "qwen3_vl")  # as qwen2_5_vl


@pytest.mark.parametrize("family", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in FAMILIES])
def test_photographs_of_every_shape(family, checkpoints, photographs, tmp_path):
    """Where the map is highest, the overlay is painted with the top colour, in that cell of the photograph alone."""
    out = tmp_path / "out"
    done = run(
        f"{SCRIPTS[family]}.py", "--model", checkpoints / family, "--image", *photographs, "--prompt", "what is left ?",
        "--max-new-tokens", 3, "--alpha", 1, "--power", 1, "--blur", 0, "--out-dir", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"3 of 3 samples done; results in {out}" in done.stdout
    assert json.loads((out / "settings.json").read_text())["model"]["family"] == family
    top = np.array(matplotlib.colormaps["turbo"](0.84, bytes=True)[:3])
    for name, (left, upper, right, lower) in CROPS.items():
        width, height = right - left, lower - upper
        shape, first_cell = EXPECTED[family][name]
        with np.load(out / name / "maps.npz") as maps:
            assert maps["lowest"] == (0.5 if family == "fuyu" else 0) and maps["residual"] == 0.5
            assert maps["per_token"].shape == (3, *shape) and maps["image_size"].tolist() == [width, height]
            np.testing.assert_allclose(maps["cells"][0, 0], first_cell, atol=1e-3)
            box = maps["cells"].reshape(-1, 4)[maps["mean"].argmax()]
        with Image.open(out / name / "overlay_mean.png") as picture:
            painted = (np.asarray(picture) == top).all(-1)
        scale = 2 if name == "square" else 1  # below 480 pixels a picture is enlarged by a whole number
        assert painted.shape == (scale * height, scale * width)
        x, y = (np.arange(scale * side) / scale + 0.5 / scale for side in (width, height))

        def within(slack, box=box, x=x, y=y):
            return np.logical_and.outer(
                (y > box[1] - slack) & (y < box[3] + slack), (x > box[0] - slack) & (x < box[2] + slack)
            )

        assert painted[within(-1)].all() and not painted[~within(1)].any()


@pytest.mark.parametrize(
    "script, family",
    [(script, SHARED) for script in sorted(set(SCRIPTS.values()))]
    + [("attention_rollout_llava", family) for family in FAMILIES if family != SHARED],
)
def test_any_family_through_any_script_and_bad_samples_are_counted(script, family, checkpoints, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (60, 40), "red").save(folder / "good.png")
    Image.new("RGB", (1, 1), "red").save(folder / "dot.png")
    Image.new("RGB", (1, 400)).save(folder / "thin.png")
    (folder / "empty.png").touch()
    module = importlib.import_module(script)
    out = tmp_path / "out"
    config = configure(module,
        model=str(checkpoints / family), data_root=str(folder), prompt="what ?", max_new_tokens=2, out_dir=str(out)
    )
    assert module.main(config) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["n"] == summary["image_share"]["n"] == 2
    assert summary["skipped"] == {"image empty": 1, "image too elongated": 1}
    rows = {row["sample"]: row for row in table(out)}
    assert all((out / rows[name]["folder"] / "overlay_tokens.png").is_file() for name in ("good", "dot"))


def test_a_family_whose_grid_is_unknown_gets_maps_and_no_overlays(photographs, tmp_path):
    save(tmp_path / "model", UNPATCHED["llava_next"])
    out = tmp_path / "out"
    done = run(
        "attention_rollout_llava.py", "--model", tmp_path / "model", "--image", *photographs,
        "--prompt", "what is left ?", "--max-new-tokens", 2, "--out-dir", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "grid" in done.stderr and "warning" in done.stderr
    for name in CROPS:
        names = sorted(path.name for path in (out / name).iterdir())
        assert names == ["image_share.png", "maps-gradient.npz", "maps.npz"]
        with np.load(out / name / "maps.npz") as maps:
            count = maps["mean"].shape[1]
            assert maps["per_token"].shape == (2, 1, count) and count > 16
            assert maps["cells"].shape == (1, count, 4) and np.isnan(maps["cells"]).all()


@pytest.mark.parametrize("script", ["attention_rollout_qwen2", "attention_rollout_fuyu"])
def test_wrong_use_of_the_other_scripts(script, photographs, tmp_path):
    settings = ("--image", photographs[0], "--prompt", "?")
    done = run(f"{script}.py", *settings, "--residual", 2, "--out-dir", tmp_path / "out")
    assert done.returncode == 2 and done.stderr == "error: --residual 2.0 is out of range; give 0 <= w < 1\n"
    assert not (tmp_path / "out").exists()


def test_twins_share_main_and_differ_in_what_the_family_decides():
    scripts = {name: importlib.import_module(name) for name in SCRIPTS.values()}
    assert len({script.main for script in scripts.values()}) == 1
    flags = {name: flat_flags(configure(script)) for name, script in scripts.items()}
    decided = {name: tuple(each.pop(flag) for flag in ("model", "blur", "lowest")) for name, each in flags.items()}
    assert decided == {
        "attention_rollout_llava": ("tiny-llava", 0.5, 0.0),
        "attention_rollout_qwen2": ("tiny-qwen2.5-vl", 0.5, 0.0),
        "attention_rollout_fuyu": ("tiny-fuyu", 0.3, 0.5),
    }
    assert flags["attention_rollout_llava"] == flags["attention_rollout_qwen2"]
    assert flags["attention_rollout_llava"] == flags["attention_rollout_fuyu"] | {"through_tower": False}


def test_results_lie_under_the_name_of_the_script_that_runs(photographs, tmp_path):
    settings = ("--image", photographs[2], "--prompt", "?", "--max-new-tokens", 1)
    done = run("attention_rollout_fuyu.py", *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "results" / "attention_rollout_fuyu").glob("tiny-fuyu-*/samples.csv"))) == 1


@pytest.mark.parametrize(
    "script, name",
    [
        ("attention_rollout_llava", "tiny-llava"),
        pytest.param("attention_rollout_qwen2", "tiny-qwen2-vl", marks=pytest.mark.slow),
        pytest.param("attention_rollout_qwen2", "tiny-qwen2.5-vl", marks=pytest.mark.slow),
        pytest.param("attention_rollout_fuyu", "tiny-fuyu", marks=pytest.mark.slow),
    ],
)
def test_embedded_models_on_photographs(script, name, photographs, tmp_path):
    if name not in models.embedded():
        pytest.skip(f"{name} is not embedded")
    default = configure(importlib.import_module(script)).load.model == name
    out = tmp_path / "out"
    named = [] if default else ["--model", name]
    done = run(f"{script}.py", *named, "--image", *photographs, "--prompt", "describe the image .", "--out-dir", out)
    assert done.returncode == 0, done.stderr
    rows = table(out)
    assert len(rows) == 3 and all(row["answer"] and not row["skipped"] for row in rows)
    for row, (left, upper, right, lower) in zip(rows, CROPS.values(), strict=True):
        with Image.open(out / row["folder"] / "overlay_max.png") as picture:
            assert picture.width / picture.height == (right - left) / (lower - upper)
