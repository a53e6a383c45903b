"""Scores of map kinds on cases worked by hand, the controls of random weights, and the command on a few images."""

import csv
import json

import numpy as np
import pytest
import torch

import models
from analysis import truth, truth_report
from analysis.maps import MapSettings
from analysis.resume import SampleOutput
from analysis.rollout import RolloutSettings
from analysis.runs import flat_flags
from analysis.sanity import correlation
from analysis.truth import Config, TruthSettings, Word, WordScore, favours, measures, word_map, words_of
from data.geometry import ImageGrid
from data.twoshapes import Entity
from models.generation import ForcedAnswer
from models.randomised import randomised
from tests.runs import make_run

GRID = ImageGrid(rows=2, cols=2, width=20, height=20, cell=10, resized=(20, 20))
RED = Entity("red", "circle", (0.0, 0.0, 10.0, 10.0), (5.0, 5.0))
BLUE = Entity("blue", "square", (10.0, 10.0, 20.0, 20.0), (15.0, 15.0))
WORD = Word("red", (1,), np.array([[1.0, 0], [0, 0]]), np.array([[0, 0], [0, 1.0]]))


def spoken(*words):
    """An answer with one token per word."""
    sizes = np.array([len(word) for word in words])
    ends = np.cumsum(sizes + 1) - 1
    return ForcedAnswer(" ".join(words), tuple(range(len(words))), tuple(zip(ends - sizes, ends, strict=True)))


def test_words_have_the_box_of_the_shape_that_they_name():
    found = words_of(spoken("a", "red", "circle", "and", "a", "square"), (RED, BLUE), GRID)
    assert [(word.text, word.tokens) for word in found] == [("circle", (2,)), ("red", (1,)), ("square", (5,))]
    assert found[0].own.tolist() == [[1, 0], [0, 0]] and found[2].own.tolist() == [[0, 0], [0, 1]]
    same = words_of(spoken("a", "red", "circle"), (RED, BLUE._replace(colour="red")), GRID)
    assert [word.text for word in same] == ["circle"]  # "red" may mean either shape
    gone = BLUE._replace(box=(30.0, 30.0, 40.0, 40.0))
    assert words_of(spoken("red"), (RED, gone), GRID) == []


def test_measures_by_hand():
    cells = np.array([[0.6, 0.1], [0.1, 0.2]])
    assert [float(value) for value in measures(cells, WORD)] == pytest.approx([1, 0.6, 0.2])
    assert (
        favours(cells, WORD) == 1 and favours(cells.T[::-1, ::-1], WORD) == 0 and favours(np.ones((2, 2)), WORD) == 0.5
    )
    assert correlation(cells, 3 * cells + 1) == pytest.approx(1) and np.isnan(correlation(cells, np.ones((2, 2))))
    maps = np.stack([np.zeros((2, 2)), cells])
    assert np.array_equal(word_map(maps, WORD), cells) and not word_map(maps[:1], WORD).any()


def test_random_weights_are_the_same_numbers_elsewhere():
    model, _ = models.load("tiny-llava")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    decoder, encoder = (randomised(model, f"shuffled-{part}", 3) for part in ("decoder", "encoder"))
    for changed, part in ((decoder, "language_model"), (encoder, "vision_tower")):
        for name, value in changed.state_dict().items():
            inside = part in name or (part == "language_model" and name == "lm_head.weight")  # tied to the embeddings
            assert torch.equal(value.flatten().sort().values, before[name].flatten().sort().values), name
            assert torch.equal(value, before[name]) or inside, name
    assert not torch.equal(
        decoder.get_decoder().layers[0].mlp.up_proj.weight, model.get_decoder().layers[0].mlp.up_proj.weight
    )
    new, again = randomised(model, "untrained", 1), randomised(model, "untrained", 1)
    assert all(torch.equal(a, b) for a, b in zip(new.parameters(), again.parameters(), strict=True))
    assert not torch.equal(new.lm_head.weight, model.lm_head.weight) and not new.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="the control 'none' is unknown; choose shuffled-decoder"):
        randomised(model, "none")


def test_summary_of_planted_scores():
    """Gradient has twice rollout's mass on every image, and the values of an image are means over its words."""
    found = [
        {
            "name": str(i), "choice": {"rollout": 0.0, "gradient": 1.0}, "controls": {},
            "words": [
                WordScore("red", {"rollout": (0, 0.1 + i / 100, 0, 1), "gradient": (1, 0.2 + i / 50, 0, 2)}),
                WordScore("circle", {"rollout": (1, 0.3 + i / 100, 0, 1), "gradient": (1, 0.6 + i / 50, 0, 2)}),
            ],
        }
        for i in range(8)
    ]  # fmt: skip
    kinds = ["rollout", "gradient"]
    table = {name: truth_report.of_measure(found, name, [*kinds, "uniform"]) for name in truth_report.MEASURES}
    summary, tests = truth_report.summarise(table, kinds, seed=0)
    assert summary["own"]["rollout"]["mean"] == pytest.approx(0.2 + 0.035)
    assert summary["own"]["gradient"]["difference"]["mean"] == pytest.approx(0.2 + 0.035)
    assert summary["pointing"]["rollout"]["mean"] == 0.5 and summary["choice"]["gradient"]["difference"]["mean"] == 1
    assert "uniform" not in summary["own"] and len(tests) == 5 and summary["own"]["gradient"]["n"] == 8
    assert "0.470 [" in truth_report.text_table(summary)


def test_a_caption_states_scores_of_the_same_checkpoint_and_settings_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(truth_report, "SCORES", tmp_path / "scores.json")
    run = make_run(tmp_path / "run", {"flags": {"model": "tiny-llava", **flat_flags(MapSettings(general="x"))}})
    own = {"rollout": {"mean": 0.25, "n": 9}, "gradient": {"mean": 0.5, "n": 9}, "uniform": {"mean": 0.03, "n": 9}}
    run.finish({"measures": {"own": own}})
    truth_report.store_scores([run.folder])
    kinds = ("rollout", "gradient")
    caption = truth_report.truth_caption("tiny-llava", kinds, MapSettings())
    assert caption.endswith("9 synthetic images of two shapes: rollout 0.25, gradient 0.50, uniform 0.03")
    upper = MapSettings(rollout=RolloutSettings(lowest=0.5))
    for model, settings, asked in (("tiny-llava", upper, kinds), ("tiny-fuyu", MapSettings(), kinds),
                                   ("tiny-llava", MapSettings(), ("value",))):  # fmt: skip
        assert truth_report.truth_caption(model, asked, settings).endswith(f"python -m analysis.truth --model {model}")


@pytest.mark.slow
def test_command(tmp_path, capsys):
    settings = TruthSettings(maps=("rollout", "gradient"), limit=4, controls=2)
    config = Config(truth=settings, output=SampleOutput(str(tmp_path / "out")))
    assert truth.main(config) == 0
    assert "kind" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    own = summary["measures"]["own"]
    assert own["gradient"]["mean"] > 1.5 * own["rollout"]["mean"] > 3 * own["uniform"]["mean"]
    assert set(summary["measures"]) == {*truth_report.MEASURES, *truth_report.CORRELATIONS}
    assert summary["measures"]["untrained"]["rollout"]["n"] == 2
    with open(tmp_path / "out" / "words.csv", newline="") as file:
        assert {row["kind"] for row in csv.DictReader(file)} == {"rollout", "gradient", "uniform", "random"}
    assert (tmp_path / "out" / "truth.png").stat().st_size > 5000


def test_refusals():
    for wrong, sentence in (
        (lambda: TruthSettings(hidden=0), "--hidden 0 is out of range"),
        (lambda: TruthSettings(maps=()), "--maps names none"),
        (lambda: Config(truth=TruthSettings(maps=("x",))), "the map kind 'x' is unknown"),
        (lambda: Config(settings=MapSettings(rollout=RolloutSettings(rows="query"))), "has no query rows"),
    ):
        with pytest.raises(ValueError, match=sentence):
            wrong()
