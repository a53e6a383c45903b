"""attention_knockout_llava.py: windows, cells of a box, rates by hand, and the known answer of the embedded model."""

import json
from types import SimpleNamespace

import pytest
import torch

import attention_knockout_llava as script
from analysis import knockout
from analysis.knockout import Condition, box_cells, summarise, windows_of
from data import colour_questions, twoshapes
from data.errors import SampleError
from data.geometry import ImageGrid
from data.twoshapes import Entity
from tests.errors import refused
from tests.runs import table
from tests.settings import configure


def test_windows_of_every_width_and_box():
    found = [condition.name for condition in windows_of(3, (2, 1, 2))]
    assert found == [f"{box}_{first}-{last}" for first, last in ((0, 0), (1, 1), (2, 2), (0, 1), (1, 2))
                     for box in ("asked", "other")]  # fmt: skip
    with refused("window-width"):
        windows_of(3, (1, 4))


def layout():
    """Four by four cells of ten pixels, tokens 5 to 20."""
    grid = ImageGrid(4, 4, 40, 40, 10, (40, 40))
    return SimpleNamespace(images=(torch.arange(5, 21),), grids=(grid,))


def test_cells_that_a_box_overlaps():
    assert box_cells((9, 10, 21, 20), layout()) == [9, 10, 11]  # second row, first three columns
    assert box_cells((10, 10, 20, 20), layout()) == [10]
    with pytest.raises(SampleError, match="no image token covers the shape"):
        box_cells((45, 0, 50, 10), layout())


def test_rates_by_hand():
    """Four images: the answer changes to the other colour in two, to a third in one."""
    conditions = [Condition("asked", 1, 2), Condition("other", 1, 2)]
    answers = [("red", "blue ."), ("red", "Blue"), ("red .", "green"), ("red", "red .")]
    rows = [
        {"colour": "red", "other_colour": "blue", "answer_plain": plain, "answer_asked_1-2": asked,
         "answer_other_1-2": plain} for plain, asked in answers
    ]  # fmt: skip
    summary = summarise(rows, conditions)
    asked, other = summary["windows"]
    assert summary["plain"]["rate"] == other["right"]["rate"] == 1 and other["difference"]["mean"] == 0
    assert (asked["right"]["rate"], asked["other"]["rate"], asked["difference"]["mean"]) == (0.25, 0.5, -0.75)
    said = knockout.sentence(summary)
    assert said.startswith("right answers: 1.000 [") and "layers 1 to 2: 0.250 [" in said and said.endswith("(n = 4)")


def test_only_clear_questions_are_asked():
    def pair(first, second):
        entities = [Entity(*each, (0, 0, 1, 1), (0, 0)) for each in (first, second)]
        return SimpleNamespace(first=entities[0], second=entities[1])

    assert colour_questions.ambiguity(pair(("red", "cross"), ("blue", "circle"))) == ""
    assert colour_questions.ambiguity(pair(("red", "cross"), ("red", "circle"))) == "two shapes of one colour"
    assert colour_questions.ambiguity(pair(("red", "cross"), ("blue", "cross"))) == "two shapes of one kind"


def test_the_asked_shapes_cells_are_needed_and_the_others_are_not(tmp_path):
    """The embedded model: planted by the question, since the colour is in the asked shape's box alone."""
    twoshapes.generate(tmp_path / "data", 24, seed=5)
    flags = {"data_root": str(tmp_path / "data"), "limit": 24, "widths": (2,), "out_dir": str(tmp_path / "run")}
    assert script.main(configure(script, model="tiny-llava", **flags)) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["n"] == len(table(tmp_path / "run")) - sum(summary["skipped"].values()) >= 12
    rates = {(each["box"], each["first"]): each["right"]["rate"] for each in summary["windows"]}
    assert summary["plain"]["rate"] > 0.95 and rates["asked", 1] < 0.3 and rates["asked", 2] > 0.8
    assert min(rates["other", first] for first in range(3)) > 0.9
    assert (tmp_path / "run" / "knockout.png").is_file()


def test_widths_must_fit(tmp_path, capsys):
    twoshapes.generate(tmp_path / "data", 2, seed=5)
    flags = {"data_root": str(tmp_path / "data"), "widths": (9,), "out_dir": str(tmp_path / "run")}
    with pytest.raises(SystemExit):
        script.main(configure(script, model="tiny-llava", **flags))
    assert "--widths 9: the model has 4 layers; give 1 to 4" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit):
        configure(script, widths=(0,))
    assert "--widths must hold numbers of layers of at least 1" in capsys.readouterr().err
