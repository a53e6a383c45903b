"""What a page is made of: packed maps, layers that fit, figures found in a summary, and text that stays text."""

import base64
import csv
import json
import zlib
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, features

import models
from analysis import gallery, report
from analysis.rollout import Rollout, rollout
from analysis.runs import RunFolder
from data.errors import MissingFileError
from data.geometry import ImageGrid
from models.generation import answer
from tests import tolerance
from tests.errors import refused
from tests.models import picture

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(2)</script>",
    "{{ 7 * 7 }}",
)


def unpack(packed):
    """The literal reading of a packed array."""
    scale = np.frombuffer(base64.b64decode(packed["scale"]), "<f4")
    levels = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), np.uint8)
    return (levels.reshape(len(scale), -1) / 255 * scale[:, None]).reshape(packed["shape"])


@pytest.fixture(scope="module")
def tiny():
    return models.load("tiny-llava")


@pytest.fixture(scope="module")
def output(tiny):
    return answer(*tiny, [picture(96, 96)], "describe the image .", max_new_tokens=3)


def test_packing_keeps_255th_parts_of_each_map():
    values = np.random.default_rng(0).exponential(size=(2, 3, 7)).astype(np.float32)
    values[0, 1] = 0
    packed = gallery.pack(values)
    error = np.abs(unpack(packed) - values)
    assert (error <= values.max(-1, keepdims=True) / 255 / 2 + 1e-7).all() and error.max() > 0
    np.testing.assert_allclose(unpack(gallery.pack([[0.2, 0.6]], top=1)), [[51 / 255, 153 / 255]], atol=1e-7)


def test_layers_that_fit():
    assert gallery.thinned([10] * 8, 80) == tuple(range(8))
    assert gallery.thinned([10] * 8, 79) == (1, 3, 5, 7)
    assert gallery.thinned([10] * 8, 39) == (3, 7)
    assert gallery.thinned([10] * 8, 10) == (7,)
    assert gallery.thinned([10] * 8, 9.9) == ()
    assert gallery.thinned([1, 1, 9, 1, 1], 8) == (0, 4)  # every second would hold the large one


@pytest.mark.numerical
def test_a_way_holds_what_the_trace_says(output):
    """Every map of the view against the weights that the trace gives one by one."""
    rolled = rollout(output.trace, output.layout, tokens=len(output.tokens))
    made = gallery.condition_view(output, rolled, budget=5)
    image, grid = output.layout.images[0], output.layout.grids[0]
    assert made.layers == tuple(range(output.trace.layers))
    first = output.layout.length - 1
    rounding = tolerance.same_states(tolerance.score_size(output.trace))
    for layer, head, token in ((0, 0, 0), (1, 3, 1), (3, 2, 2)):
        row = output.trace.weights(layer, [first + token])[0, head, 0]
        cells = row[image].numpy()
        np.testing.assert_allclose(made.heads[layer, head, token], cells.reshape(grid.rows, grid.cols), atol=rounding)
        kept = unpack(made.data["head"][str(layer)]["cells"])[head, token]
        np.testing.assert_allclose(kept, cells, atol=cells.max() / 500)
        earlier = row[output.layout.length :].sum().item()
        expected = [cells.sum(), 1 - cells.sum() - earlier, earlier]
        np.testing.assert_allclose(unpack(made.data["shares"])[layer, head, token], expected, atol=1 / 500)
        mean = output.trace.weights(layer, [first + token])[0, :, 0][:, image].mean(0).numpy()
        np.testing.assert_allclose(unpack(made.data["mean"]["cells"])[layer, token], mean, atol=mean.max() / 500)
    np.testing.assert_allclose(
        unpack(made.data["rollout"]["cells"]), rolled.per_token.reshape(3, -1), atol=rolled.per_token.max() / 500
    )
    assert [token["text"] for token in made.data["tokens"]] == output.tokens
    assert "".join(made.data["prompt"]).replace(" ", "") == output.layout.text.replace("<image>", "").replace(" ", "")


def test_a_budget_of_nothing_leaves_the_means(output):
    rolled = rollout(output.trace, output.layout, tokens=len(output.tokens))
    made = gallery.condition_view(output, rolled, budget=0)
    assert made.layers == () and made.data["head"] == {} and unpack(made.data["mean"]["cells"]).shape[0] == 4


def test_a_hundred_tokens_of_a_large_model_fit_in_five_megabytes():
    """32 layers of 32 heads, a hundred tokens, 24 x 24 cells: each row a softmax of normal scores."""
    generator = torch.Generator().manual_seed(0)

    class Trace:
        layers, length, prompt_length, start = 32, 699, 600, np.zeros(1)

        def weights(self, layer, positions, samples):
            return torch.randn(1, 32, len(positions), 699, generator=generator).mul(3).softmax(-1)

    grid, cells = ImageGrid(24, 24, 336, 336, 14, (336, 336)), torch.arange(10, 586)
    layout = SimpleNamespace(
        sample=0, start=0, length=600, grids=(grid,), images=(cells,), image_positions=cells,
        text="a" * 600, offsets=[(place, place + 1) for place in range(600)],
    )  # fmt: skip
    output = SimpleNamespace(
        trace=Trace(), layout=layout, text="a", tokens=["a"] * 100, probabilities=[0.5] * 100,
        alternatives=[[("a", 0.5)] * 5] * 100,
    )  # fmt: skip
    made = gallery.condition_view(output, Rollout(torch.full((100, 699), 1 / 699), "predicting", layout), budget=5)
    content = gallery.view("a", "b", Image.new("RGB", (336, 336)), grid, {"answer": made})
    assert len(report.in_script(content)) < 5 * 2**20
    assert 0 < len(made.layers) < 32


def finished(folder, rows=(), summary=None, **settings):
    run = RunFolder.create(folder, {"flags": {}, **settings}, ("answer", "share"))
    for name, text, share in rows:
        run.add(name, answer=text, share=share)
    run.finish(summary or {})
    return run


def test_text_from_data_is_escaped(tmp_path):
    rows = [(text, text, 0.5) for text in HOSTILE]
    run = finished(tmp_path / "run", rows, {"skipped": {HOSTILE[0]: 2}}, note=HOSTILE[1])
    page = report.write_report(run.folder, []).read_text()
    for text in HOSTILE[:3]:
        assert text not in page
    assert page.count("<script") == 2 and "{{ 7 * 7 }}" in page
    held = report.in_script({"a": HOSTILE, "b": "\u2028"})
    assert "<" not in held and "\u2028" not in held and json.loads(held) == {"a": list(HOSTILE), "b": "\u2028"}


def test_the_policy_allows_no_other_script(tmp_path):
    page = report.write_report(finished(tmp_path / "run").folder).read_text()
    assert "default-src 'none'; img-src data:" in page and "unsafe" not in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page


def test_figures_of_a_summary():
    interval = {"mean": 0.5, "low": 0.4, "high": 0.7, "n": 9}
    summary = {"n": 9, "a": {"share": interval, "other": 3}, "b": {"share": {"rate": 1.0, "low": None, "high": None}}}
    figures = list(report.estimates_in(summary))
    assert figures == [(("a", "share"), 0.5, 0.4, 0.7, 9), (("b", "share"), 1.0, None, None, None)]
    [plot] = report.plots(figures)
    assert plot["name"] == "share" and [row["label"] for row in plot["rows"]] == ["a", "b"]
    assert plot["rows"][0]["text"] == "0.5 [0.4, 0.7], n = 9"
    left, middle, right = (plot["rows"][0][place] for place in ("left", "middle", "right"))
    assert left < middle < right and (middle - left) / (right - left) == pytest.approx(1 / 3, abs=0.01)
    assert plot["rows"][1]["left"] is None and plot["zero"] is None


def test_accuracies_stand_in_one_plot():
    summary = {"overall": {"accuracy": 0.5, "low": 0.4, "high": 0.7, "n": 9}, "tasks": {"a": {"accuracy": 1.0, "n": 3}}}
    [plot] = report.plots(list(report.estimates_in(summary)))
    assert plot["name"] == "accuracy" and [row["label"] for row in plot["rows"]] == ["overall", "tasks · a"]


def test_a_row_of_two_pictures_shows_the_first(tmp_path):
    run = finished(tmp_path / "run")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    rows = [{"sample": "a", "full_image": tmp_path / "red.png", "control_image": tmp_path / "none.png"}]
    columns, [row] = report.table(run.folder, rows, {})
    assert columns == ["sample", "full_image", "control_image"] and row["thumbnail"].startswith("data:image/png")
    assert [cell["text"] for cell in row["cells"]] == ["a", "red.png", "none.png"]


@pytest.mark.parametrize("content", ["damaged avif", "eps"])
def test_an_image_that_cannot_be_shown_costs_its_thumbnail_alone(tmp_path, content):
    """A decoder's RuntimeError does not end the page, and Ghostscript is not started for a file named .png."""
    path = tmp_path / "image.png"
    if content == "eps":
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")
    else:
        path.write_bytes(damaged_avif())
    _, [row] = report.table(tmp_path, [{"sample": "a", "image": str(path)}], {})
    assert row["thumbnail"] is None and [cell["text"] for cell in row["cells"]] == ["a", "image.png"]


def damaged_avif():
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    file = BytesIO()
    Image.new("RGB", (32, 24), "red").save(file, "AVIF")
    damaged = file.getvalue().replace(b"av01", b"av02")  # a coding that no decoder knows
    with pytest.raises(RuntimeError):
        Image.open(BytesIO(damaged)).load()
    return damaged


def test_a_folder_that_is_no_finished_run(tmp_path):
    with refused("run-not-finished", MissingFileError):
        report.write_report(tmp_path)


def test_rows_pictures_and_files(tmp_path):
    run = finished(tmp_path / "run", [("a", "yes", 0.123456789)])
    Image.new("RGB", (8, 8)).save(run.folder / "bars.png")
    (run.folder / "broken.png").write_bytes(b"")
    (run.folder / "sub folder").mkdir()
    (run.folder / "sub folder" / "x#y.npz").write_bytes(b"")
    page = report.write_report(run.folder).read_text()
    assert "0.1235" in page and 'title="0.123456789"' in page and 'alt="Figure: bars"' in page
    assert "Figure: broken" not in page and 'href="sub%20folder/x%23y.npz"' in page
    columns, rows = report.table(run.folder, report.read_rows(run.folder), {"a": 0})
    assert columns == ["sample", "answer", "share"] and rows[0]["view"] == 0 and len(rows) == 1


def test_a_large_page_is_written_and_said_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "LIMIT_MB", 0.001)
    run = finished(tmp_path / "run")
    assert report.write_report(run.folder).is_file()
    assert "more than 0.001" in capsys.readouterr().err


def test_many_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MOST_ROWS", 3)
    run = finished(tmp_path / "run", [(str(number), "x", 1) for number in range(5)])
    page = report.write_report(run.folder).read_text()
    assert "The first 3 of 5 rows" in page
    with open(run.folder / "samples.csv") as file:
        assert len(list(csv.reader(file))) == 6
