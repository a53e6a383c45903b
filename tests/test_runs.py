"""The result folder: nothing is overwritten, nothing half-written looks finished, and errors read as one sentence."""

import csv
import errno
import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from analysis.files import OutputError, check_place, read_table, save_maps, write_json, write_table, write_whole
from analysis.runs import default_out_dir, provenance, refuse_existing
from data.geometry import ImageGrid
from tests.errors import refused
from tests.runs import make_run

COLUMNS = ("answer", "share")


def rows(run):
    with open(run.folder / "samples.csv", newline="", encoding="utf-8") as table:
        return list(csv.reader(table))


def test_rows_skips_and_summary(tmp_path):
    run = make_run(tmp_path / "run", columns=COLUMNS)
    run.add("shard0/1", answer='left, "or"\nright', share=np.float32(0.5))
    run.skip("shard0/2", "image missing")
    run.skip("shard0/3", "image missing")
    run.add("shard0/4", share=1)
    assert not (run.folder / "summary.json").exists()
    run.finish({"share": np.float64(0.75), "interval": (0.5, float("nan"))})
    assert rows(run) == [
        ["sample", "answer", "share", "skipped"],
        ["shard0/1", 'left, "or"\nright', "0.5", ""],
        ["shard0/2", "", "", "image missing"],
        ["shard0/3", "", "", "image missing"],
        ["shard0/4", "", "1", ""],
    ]
    assert json.loads((run.folder / "summary.json").read_text()) == {
        "n": 2, "skipped": {"image missing": 2}, "share": 0.75, "interval": [0.5, None],
    }  # fmt: skip


def test_settings_state_command_time_and_versions():
    about = provenance()
    assert about["command"] == sys.argv and about["versions"]["numpy"] == np.__version__
    assert about["versions"]["python"] == sys.version.split()[0]
    assert {"torch", "transformers", "code"} <= set(about["versions"])


TEXTS = [
    "=1+1", '=HYPERLINK("http://x","y")', "+cmd|' /C calc'!A0", "-2+3", "- left of it", "@SUM(A1)", "\t=1", "\r=1",
    "\n=1", "＝1+1", "'=1", "''=1", "'", "'quoted'", "-", "-0.5.1", "−3", "left", "", "a=b", " =1", "1e5x", "-inf",
]  # fmt: skip
NUMERALS = ["-0.5", "+3", "-1e-07", ".5", "-7.", "12"]


def test_a_spreadsheet_runs_no_text_and_every_text_is_read_back(tmp_path):
    run = make_run(tmp_path / "run", columns=COLUMNS)
    for text in [*TEXTS, *NUMERALS]:
        run.add(text, answer=text, share=-0.5)
    run.add("numbers", answer=np.float32(-0.25), share=-3)
    run.finish({})
    path = write_table(tmp_path / "table.csv", [{"=a": text, "b": text} for text in [*TEXTS, *NUMERALS]])
    with path.open(newline="", encoding="utf-8") as file:
        tables = {"run": rows(run)[1:-1], "table": list(csv.reader(file))}
    for name, table in tables.items():
        written = [cells[0] for cells in table]
        assert not any(re.match(r"[=+\-@\t\r\n＝＋－＠]", text) for text in written if text not in NUMERALS), name
        assert set(NUMERALS) <= set(written)
    assert rows(run)[1][2] == "-0.5" and rows(run)[-1][1:3] == ["-0.25", "-3"]
    assert [row["sample"] for row in read_table(run.folder / "samples.csv")] == [*TEXTS, *NUMERALS, "numbers"]
    assert [row["=a"] for row in read_table(path)] == [row["b"] for row in read_table(path)] == [*TEXTS, *NUMERALS]


@settings(deadline=None, max_examples=50)  # the machine may be busy
@given(st.lists(st.text("'=+-@\t\r\n\"a1.,＝", max_size=6), min_size=1, max_size=5))
def test_any_text_is_read_back(tmp_path_factory, texts):
    path = write_table(tmp_path_factory.mktemp("table") / "table.csv", [{"a": text, "b": 0} for text in texts])
    assert [row["a"] for row in read_table(path)] == texts


def test_every_table_is_written_in_one_place():
    """A csv.writer elsewhere would write cells that a spreadsheet runs."""
    root = Path(__file__).parents[1]
    sources = [*root.glob("*.py"), *(path for room in ("analysis", "benchmarks", "data", "docs", "models")
                                     for path in (root / room).rglob("*.py"))]  # fmt: skip
    users = {path.name for path in sources if re.search(r"csv\.(writer|DictWriter)", path.read_text())}
    assert users == {"files.py"}


def test_a_column_that_does_not_exist_is_an_error(tmp_path):
    run = make_run(tmp_path / "run", columns=COLUMNS)
    run.add("a", anwser="left")
    with pytest.raises(ValueError, match=r"unknown columns \['anwser'\]; samples.csv has sample, answer,"):
        run.finish({})
    assert not (run.folder / "summary.json").exists()


def test_two_runs_share_no_state(tmp_path):
    first, second = (make_run(tmp_path / name) for name in "ab")
    first.skip("x", "image missing")
    first.sample_folder("x")
    assert second.skipped == {} and not list(second.folder.glob("x"))


def test_a_folder_that_holds_anything_is_refused(tmp_path):
    (tmp_path / "old.csv").write_text("precious")
    with pytest.raises(FileExistsError, match="exists and is not empty, and nothing is ever overwritten: pass another"):
        refuse_existing(tmp_path)
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        refuse_existing(tmp_path / "old.csv")
    assert os.listdir(tmp_path) == ["old.csv"] and (tmp_path / "old.csv").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    assert refuse_existing(tmp_path / "empty") == tmp_path / "empty"


def test_default_out_dir_names_script_model_and_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = default_out_dir("/somewhere/attention_rollout_llava.py", "llava-hf/llava-1.5-7b-hf")
    assert first.parent == Path("results/attention_rollout_llava")
    assert first.name.startswith("llava-1.5-7b-hf-2")
    first.mkdir(parents=True)
    assert default_out_dir("attention_rollout_llava", "llava-hf/llava-1.5-7b-hf") != first
    assert default_out_dir("x", "./checkpoints/mine/").name.startswith("mine-")
    assert default_out_dir("x", ".").name.startswith(tmp_path.name[:4])


def test_sample_folders_stay_inside_and_apart(tmp_path):
    run = make_run(tmp_path / "run")
    names = ["shard0/1", "shard0-1", "../../evil", "..", "/etc", "", "a b", "é", "samples.csv", "x" * 300, "x" * 301]
    folders = [run.sample_folder(name) for name in names]
    assert len(set(folders)) == len(names)
    assert all(folder.is_dir() and folder.parent == run.folder for folder in folders)
    assert run.sample_folder("shard0/1") == folders[0] == run.folder / "shard0-1"


def test_pictures_and_figures_are_saved_whole(tmp_path):
    run = make_run(tmp_path / "run")
    picture = Image.new("RGB", (5, 4), "red")
    path = run.save(picture, "shard0-1", "overlay.png")
    assert path == run.folder / "shard0-1" / "overlay.png"
    with Image.open(path) as saved:
        assert saved.size == (5, 4) and saved.getpixel((0, 0)) == (255, 0, 0)
    figure = Figure()
    figure.subplots().plot([0, 1])
    with Image.open(run.save(figure, "plot.png")) as saved:
        assert saved.format == "PNG"
    assert sorted(os.listdir(run.folder)) == ["plot.png", "settings.json", "shard0-1"]


def test_what_fails_half_way_leaves_neither_the_file_nor_a_part_of_it(tmp_path):
    (tmp_path / "summary.json").write_text("old")

    def write(path):
        path.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OutputError, match="could not write .*summary.json: no space left on device; free"):
        write_whole(tmp_path / "summary.json", write)
    assert os.listdir(tmp_path) == ["summary.json"] and (tmp_path / "summary.json").read_text() == "old"

    def interrupted(path):
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "maps.npz", interrupted)
    assert os.listdir(tmp_path) == ["summary.json"]


def test_a_place_that_cannot_be_written_is_refused_or_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file/run cannot be made: .*file is no folder that you may write to"):
        refuse_existing(tmp_path / "file" / "run")
    with pytest.raises(ValueError, match="/proc/run cannot be made: /proc is no folder that you may write to"):
        refuse_existing("/proc/run")  # whatever its permissions say
    check_place(tmp_path / "new" / "file.json", "the file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(OutputError, match="could not write .*file/x.json: .*exists"):
        write_json(tmp_path / "file" / "x.json", {})


def maps(tokens, grid):
    per_token = np.random.default_rng(0).random((tokens, grid.rows, grid.cols))
    return SimpleNamespace(per_token=per_token, mean=per_token.mean(0), max=per_token.max(0))


def test_maps_come_back_without_pickle(tmp_path):
    grid = ImageGrid(rows=2, cols=3, width=60, height=20, cell=14, resized=(84, 28), offset=(21, 0))
    tokens = ["a", "▁blå", "$\n", ""]
    made = maps(4, grid)
    path = save_maps(tmp_path / "sample", made, tokens, "predicting", grid)
    assert path == tmp_path / "sample" / "maps.npz"
    with np.load(path, allow_pickle=False) as saved:
        assert saved["per_token"].dtype == saved["mean"].dtype == saved["max"].dtype == np.float32
        np.testing.assert_array_equal(saved["per_token"], made.per_token.astype(np.float32))
        np.testing.assert_array_equal(saved["max"], made.max.astype(np.float32))
        assert saved["tokens"].tolist() == tokens and str(saved["rows"]) == "predicting"
        # 84 resized pixels are 60 original ones; the input starts 21 in = 15 original; a cell is 10 wide
        np.testing.assert_allclose(saved["cells"][0, 0], (15, 0, 25, 10))
        np.testing.assert_allclose(saved["cells"][1, 2], (35, 10, 45, 20))
        assert saved["image_size"].tolist() == [60, 20] and saved["resized"].tolist() == [84, 28]
        assert saved["offset"].tolist() == [21, 0] and saved["cell"] == 14


def test_maps_that_do_not_fit_are_refused(tmp_path):
    grid = ImageGrid(rows=2, cols=3, width=60, height=20, cell=14, resized=(84, 28))
    with refused("map-size"):
        save_maps(tmp_path, maps(4, grid), ["a", "b", "c"], "query", grid)
    assert os.listdir(tmp_path) == []


def test_json_is_strict_and_keeps_every_character(tmp_path):
    values = {"a": np.arange(2), "b": float("inf"), "c": Path("x/y"), 3: np.bool_(True), "d": "blå \udcff"}
    write_json(tmp_path / "x.json", values)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert "blå" in text and json.loads(text.replace("\\udcff", "?")) == {
        "a": [0, 1], "b": None, "c": "x/y", "3": True, "d": "blå ?",
    }  # fmt: skip
