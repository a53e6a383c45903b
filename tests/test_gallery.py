"""What an answer leaves behind: several pictures of one prompt, a grid that nobody knows; and the loop over samples."""

import csv
import gc
import json
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from analysis.gallery import COLUMNS, report_answer, save_answer
from analysis.maps import MAPS, MapSettings, needs
from analysis.overlay import OverlayStyle, comparison
from analysis.resume import attempt
from analysis.rollout import Rollout, rollout
from data.errors import SampleError
from data.geometry import ImageGrid
from models.generation import answer
from tests.families import qwen, qwen_processor
from tests.models import picture
from tests.runs import make_run, run_samples

OVERLAYS = ["overlay_max.png", "overlay_mean.png", "overlay_tokens.png"]


def test_without_a_grid_there_are_maps_and_shares_but_no_overlays(tmp_path):
    relevance = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.3, 0.1, 0.1]])
    layout = SimpleNamespace(images=(torch.tensor([0, 1, 2]),), grids=(None,))
    run = make_run(tmp_path / "run")
    maps = {"rollout": Rollout(relevance, "predicting", layout)}
    folder = save_answer(run, "a", [picture()], ["red", "circle"], maps, [0.6, 0.9], OverlayStyle())
    assert sorted(path.name for path in folder.iterdir()) == ["image_share.png", "maps.npz"]
    with np.load(folder / "maps.npz") as maps:
        np.testing.assert_array_equal(maps["per_token"], np.float32([[[0.1, 0.2, 0.3]], [[0.5, 0.3, 0.1]]]))
        np.testing.assert_array_equal(maps["max"], np.float32([[0.5, 0.3, 0.3]]))
        assert maps["cells"].shape == (1, 3, 4) and maps["image_size"].shape == maps["offset"].shape == (2,)
        for name in ("cells", "image_size", "resized", "offset", "cell"):
            assert np.isnan(maps[name]).all(), name


def test_a_known_and_an_unknown_grid_in_one_prompt(tmp_path):
    """The first picture has a grid and is drawn; the second has none; neither spoils the other."""
    grid = ImageGrid(rows=1, cols=2, width=20, height=10, cell=10, resized=(20, 10))
    layout = SimpleNamespace(images=(torch.tensor([0, 1]), torch.tensor([2, 3, 4])), grids=(grid, None))
    rolled = Rollout(torch.full((1, 5), 0.2), "query", layout)
    run = make_run(tmp_path / "run")
    images = [picture(20, 10), picture(8, 8)]
    folder = save_answer(run, "a", images, ["red"], {"rollout": rolled}, [1.0], OverlayStyle())
    assert sorted(path.name for path in folder.iterdir()) == ["image_share.png", "maps-1.npz", "maps.npz", *OVERLAYS]


def test_two_pictures_in_one_prompt_of_qwen(tmp_path):
    """Each gets its own grid and files; the shares of both together are the one share of the row."""
    model, processor = qwen(), qwen_processor()
    pictures = [picture(140, 56), picture(56, 168)]
    output = answer(model, processor, pictures, "what is left ?", max_new_tokens=3)
    maps = {"rollout": rollout(output.trace, output.layout, tokens=3)}
    run = make_run(tmp_path / "run", columns=COLUMNS)
    sample = SimpleNamespace(name="a", path="a.png", prompt="what is left ?", gold="")
    row = report_answer(run, sample, pictures, output, maps, OverlayStyle()).row
    assert set(row) == set(COLUMNS) and row["tokens"] == 3 and 0 < row["image_share"] < 1
    for suffix, shape, size in (("", (2, 5), (560, 224)), ("-1", (6, 2), (168, 504))):
        with np.load(run.folder / "a" / f"maps{suffix}.npz") as maps:
            assert maps["per_token"].shape == (3, *shape)
        with Image.open(run.folder / "a" / f"overlay_mean{suffix}.png") as drawn:
            assert drawn.size == size  # 4 and 3 times the pictures: the longer side has at least 480 pixels


def test_every_kind_has_its_files_and_its_place_on_the_page(tmp_path):
    """Files of the first kind have no suffix; single heads of attention and gradient are saved and packed."""
    model, processor = qwen(), qwen_processor()
    kinds, settings = ("gradient", "rollout"), MapSettings()
    options = needs(kinds, settings) | {"max_new_tokens": 2}
    output = answer(model, processor, [picture(140, 56)], "what is left ?", **options)
    maps = {kind: MAPS[kind].draw(output, settings) for kind in kinds}
    run = make_run(tmp_path / "run")
    sample = SimpleNamespace(name="a", path="a.png", prompt="what is left ?", gold="")
    control = {"gradient": maps["gradient"], "rollout": maps["gradient"]}
    result = report_answer(run, sample, [picture(140, 56)], output, maps, OverlayStyle(), 5.0, "scores", control)
    names = {path.name for path in (run.folder / "a").iterdir()}
    assert {"maps.npz", "maps-rollout.npz", "maps.png", "overlay_mean.png", "overlay_mean-rollout.png"} <= names
    assert result.row["sanity_gradient"] == pytest.approx(1) and result.row["sanity_rollout"] < 0.999
    with np.load(run.folder / "a" / "maps.npz") as saved, np.load(run.folder / "a" / "maps-rollout.npz") as rolled:
        assert [str(file["kind"]) for file in (saved, rolled)] == ["gradient", "rollout"]
        assert str(saved["score"]) == "log-odds"
        layers, heads = maps["gradient"].heads.shape[1:3]
        assert saved["heads"].shape == (layers, heads, 2, 2, 5) and saved["layers"].tolist() == list(range(layers))
        expected = saved["heads"].mean((0, 1))  # of the positive parts, as the map
        np.testing.assert_allclose(saved["per_token"], expected, atol=1e-6 * saved["per_token"].max())
    condition = result.view["conditions"]["answer"]
    assert list(condition["kinds"]) == ["gradient"] and len(condition["kinds"]["gradient"]["head"]) == layers


def test_a_comparison_has_a_row_for_each_kind():
    images = [picture(20, 10)] * 3
    figure = comparison({"rollout": images, "gradient": images}, ["mean", "max", "red"])
    assert [axes.get_title() for axes in figure.axes[:3]] == ["mean", "max", "red"] and len(figure.axes) == 6
    assert [figure.axes[0].get_ylabel(), figure.axes[3].get_ylabel()] == ["rollout", "gradient"]
    with pytest.raises(ValueError):
        comparison({"rollout": images}, ["mean"])


def test_each_sample_is_measured_or_counted_by_its_reason(tmp_path, capsys):
    samples = [SimpleNamespace(name=name) for name in "abcd"]

    def measure(batch):
        [sample] = batch
        if sample.name == "b":
            raise SampleError("image empty", "image b is empty")
        if sample.name == "c":
            raise SampleError("no query row", "no generated token has a row")
        return [{"share": ord(sample.name)}]

    run = run_samples(tmp_path / "run", samples, measure, ("share",), unusable=[("z", "no caption")])
    assert [part.row for part in run.results()] == [{"share": 97}, {"share": 100}]
    assert json.loads((run.folder / "summary.json").read_text()) == {
        "n": 2, "skipped": {"no caption": 1, "image empty": 1, "no query row": 1},
    }  # fmt: skip
    with open(run.folder / "samples.csv", newline="") as file:
        assert [(row["sample"], row["share"], row["skipped"]) for row in csv.DictReader(file)] == [
            ("z", "", "no caption"), ("a", "97", ""), ("b", "", "image empty"), ("c", "", "no query row"),
            ("d", "100", ""),
        ]  # fmt: skip
    output = capsys.readouterr().err
    assert "skipped b: image b is empty" in output and "skipped c: no generated token has a row" in output


def test_memory_that_runs_out_is_counted(tmp_path):
    """A batch too large is measured one by one, and what is too large alone is skipped; the run goes on."""
    tried = []

    def measure(batch):
        tried.append("".join(sample.name for sample in batch))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if batch[0].name == "b":
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")
        return [{"size": 1}]

    samples = [SimpleNamespace(name=name) for name in "abcd"]
    run = run_samples(tmp_path / "run", samples, measure, ("size",), size=2)
    assert [part.row for part in run.results()] == [{"size": 1}] * 3
    assert tried == ["ab", "a", "b", "cd", "c", "d"]
    assert run.skipped == {"out of memory": 1}


@pytest.mark.parametrize("error", [SampleError("empty"), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_failed_sample_holds_no_memory(error):
    """What was recorded for it is gone at once, without waiting for the collector of cycles."""
    held = []

    def measure(batch):
        trace = torch.zeros(1)
        held.append(weakref.ref(trace))
        raise type(error)(str(error))

    gc.disable()
    try:
        found = attempt(measure, [SimpleNamespace(name="a")])
        assert len(found) == 1 and held[0]() is None
    finally:
        gc.enable()


def test_an_error_that_is_not_of_the_sample_ends_the_run(tmp_path):
    def measure(batch):
        raise ValueError("a fault of the program")

    with pytest.raises(ValueError, match="a fault of the program"):
        run_samples(tmp_path / "run", [SimpleNamespace(name="a")], measure)
    assert not (tmp_path / "run" / "summary.json").exists()
