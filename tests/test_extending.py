"""The code of docs/extending.md, run as it is printed."""

import importlib.util
import json
import shutil
import sys

import numpy as np
import pytest
import torch

import evaluate
import models
from analysis.command import parse
from analysis.metrics import METRICS
from analysis.runs import flat_flags
from models import methods
from models.trace import AttentionTrace
from tests import tolerance
from tests.evaluation import generated, rows, run, settings, summary
from tests.models import picture
from tests.runs import table
from tests.settings import changed, configure
from tests.test_docs import FENCE
from tests.test_tree import ROOT

PAGE = ROOT / "docs" / "extending.md"
BLOCKS = [code for language, code in FENCE.findall(PAGE.read_text()) if language == "python"]
INTERVENTION, USE, FLAGS, ENTRY, METRIC = BLOCKS
OWN = "python:image_boost:ImageBoost"
FEW = 3


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return changed(settings(generated(tmp_path_factory.mktemp("data"))), limit=FEW)


@pytest.fixture
def image_boost(tmp_path, monkeypatch):
    """The module of the page, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "image_boost.py").write_text(INTERVENTION)
    yield importlib.import_module("image_boost")
    sys.modules.pop("image_boost")


@torch.no_grad()
def test_an_intervention_multiplies_the_weights_of_the_image(image_boost):
    picture().save("photo.jpg")
    scope = {}
    exec(compile(USE, "extending.md", "exec"), scope)
    model, inputs, [image] = scope["model"], scope["inputs"], scope["layout"].images
    assert scope["output"].shape[1] > inputs["input_ids"].shape[1]
    with AttentionTrace(model) as plain:
        model.generate(**inputs, max_new_tokens=1)
    with AttentionTrace(model) as trace:
        model.generate(**inputs, max_new_tokens=1, steering=image_boost.ImageBoost(4.0))
    expected = plain.weights(0, -1)
    expected[..., image] *= 4
    expected /= expected.sum(-1, keepdim=True)
    assert (trace.weights(0, -1) - expected).abs().max() <= tolerance.two_runs()


def test_an_intervention_is_a_method_of_evaluate(image_boost, config, tmp_path, capsys):
    """Counted as steered; settings.json names it; other code of the same name is refused."""
    found = run(changed(config, method=OWN), "run")
    assert len(found) == FEW and summary(tmp_path / "run")["touched"] == {"steered": FEW}
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["flags"]["method"] == OWN
    (tmp_path / "image_boost.py").write_text(INTERVENTION.replace("2.0", "3.0"))
    with pytest.raises(SystemExit) as ended:
        evaluate.main(changed(config, method=OWN, out_dir="run"))
    assert ended.value.code == 2 and "code of --method has changed: image_boost" in capsys.readouterr().err


@pytest.fixture
def extended(image_boost, tmp_path, monkeypatch):
    """evaluate.py over models/methods.py with the flags and the entry of the page."""
    source = (ROOT / "models" / "methods.py").read_text()
    table = "METHODS = {\n"
    assert source.count(table) == 1
    (tmp_path / "methods.py").write_text(source.replace(table, f"{FLAGS}\n\n{table}{ENTRY}"))
    shutil.copy(ROOT / "evaluate.py", tmp_path / "evaluate.py")
    monkeypatch.setitem(sys.modules, "models.image_boost", image_boost)
    monkeypatch.setattr(models, "methods", methods)
    return [load(monkeypatch, name, tmp_path) for name in ("models.methods", "evaluate")]


def load(monkeypatch, name, folder):
    path = folder / f"{name.rpartition('.')[2]}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_a_method_is_one_entry(extended, config, tmp_path, capsys):
    """Choices, help, settings.json, answers, and the refusal of its flag under another method."""
    patched, own = extended
    assert set(patched.METHODS) == {*methods.METHODS, "image-boost"}
    given = flat_flags(config)
    chosen = configure(own, **given | {"method": "image-boost", "boost_factor": 3.0, "out_dir": "own"})
    assert own.main(chosen) == 0 and summary("own")["touched"] == {"steered": FEW}
    about = json.loads((tmp_path / "own" / "settings.json").read_text())["flags"]
    assert about["method"] == "image-boost" and about["boost_factor"] == 3.0
    assert own.main(configure(own, **given | {"out_dir": "plain"})) == 0
    assert [row["prompt"] for row in rows("own")] == [row["prompt"] for row in rows("plain")]
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        own.main(configure(own, **given | {"boost_factor": 3.0, "out_dir": "refused"}))
    refusal = capsys.readouterr().err
    assert ended.value.code == 2 and "--boost-factor belongs to --method image-boost" in refusal
    read = parse(own.Config, args=["--method", "image-boost", "--boost-factor", "3"])
    assert read.steering.method == "image-boost" and read.steering.boost_factor == 3
    with pytest.raises(SystemExit):
        parse(own.Config, args=["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert all(each in text for each in ("image-boost: weights of image tokens multiplied;", "image-boost: factor on"))


def test_a_metric_is_in_every_table(tmp_path, monkeypatch):
    """The mean over heads of an average map; the share of a uniform map is .25."""
    for name in METRICS.keys() - {"mass", "pointing", "distance"}:  # each further metric costs seconds of drawing
        monkeypatch.delitem(METRICS, name)
    monkeypatch.setitem(METRICS, "top_left", None)
    exec(compile(METRIC, "corner_metric.py", "exec"), scope := {"__name__": "corner_metric"})
    script, out = scope["script"], tmp_path / "out"
    config = configure(script, limit=2, faithfulness=0, pictures=1, out_dir=str(out))
    assert script.main(config) == 0
    found = json.loads((out / "summary.json").read_text())
    assert found["metrics"]["top_left"]["label"] == "mass in the top left quarter"
    for query, metrics in found["queries"].items():
        assert set(metrics["top_left"]["controls"]) == {"shuffled", "centre"}, query
    assert found["heads"]["first"]["top_left"]["heads"] > 0
    for name in ("measures.csv", "heads.csv"):
        assert any(row["metric"] == "top_left" for row in table(out, name))
    assert (out / "heads" / "words-top_left.png").is_file()
    assert METRICS["top_left"].measure(np.ones((2, 8, 8)), None).tolist() == [0.25, 0.25]
