"""Sentences and their counterfactuals: the definition under planted attention, and the two scripts on real models."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

import text_only_llm_analysis_llava as llava_script
import text_only_llm_analysis_qwen2 as qwen_script
from analysis.statistics import benjamini_hochberg
from analysis.text_symmetry import (
    COLUMNS,
    IDEAL,
    SENTENCES,
    WORDS,
    Asymmetries,
    along,
    asymmetry,
    head_figure,
    heads_that_lean,
    lean,
    others_of,
    pair_of,
    relation_attention,
    sample_row,
    spread,
    summarise,
)
from data import twoshapes
from data.errors import MissingFileError, SampleError
from data.spatial_samples import OPPOSITE, Captions, counterfactuals, gather_captions
from models.text import load
from tests import tolerance
from tests.errors import refused
from tests.runs import table
from tests.settings import configure
from tests.test_text import causal, save

REAL = Path(__file__).resolve().parents[2] / "shared/data"
CAPTION = (
    "there are two shapes a red circle and a blue cross . what is the spatial relationship from the first shape to the"
    " second shape ? the spatial relation is left ."
)


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory):
    """A working folder without published data, whatever lies in the checkout's data/."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        yield


@pytest.fixture(scope="module")
def captions(elsewhere):
    return gather_captions(Captions(limit=40))[0]


def test_counterfactuals_by_hand():
    found = counterfactuals(CAPTION)
    assert tuple(found) == SENTENCES and found["caption"].text == CAPTION
    swapped = CAPTION.replace("red circle", "X").replace("blue cross", "red circle").replace("X", "blue cross")
    assert found["swapped"].text == swapped and found["flipped"].text == CAPTION.replace("left", "right")
    assert found["both"].text == swapped.replace("left", "right")
    assert found["swapped"][1:] == ("blue cross", "red circle", "left")
    with refused("not-a-caption"):
        counterfactuals("a red circle is left of a blue cross")


def test_counterfactuals_of_counterfactuals(captions):
    """Each undoes itself, and "both" is what the generator itself says of the pair the other way round."""
    for index, caption in enumerate(captions):
        for kind in IDEAL:
            assert counterfactuals(caption.sentences[kind].text)[kind].text == caption.sentences["caption"].text
        pair = twoshapes.sample_pair(np.random.default_rng([0, index]))
        texts = {twoshapes.caption_of(*pair), twoshapes.caption_of(*pair[::-1])}
        assert texts == {caption.sentences["caption"].text, caption.sentences["both"].text}


def test_flags():
    synthetic = gather_captions(Captions())[0]
    assert len(synthetic) == 100 and gather_captions(Captions(limit=3))[0] == synthetic[:3]
    assert gather_captions(Captions(limit=3, seed=1))[0] != synthetic[:3]
    with refused("below-minimum"):
        Captions(limit=-1)
    with refused("no-data", MissingFileError):
        gather_captions(Captions(data_root="nowhere"))


@pytest.mark.skipif(not REAL.is_dir(), reason="the published samples are not beside the repository (../shared/data)")
def test_all_published_captions_yield_pairs():
    found, skipped, _ = gather_captions(Captions(data_root=str(REAL)))
    assert len(found) == 300 and not skipped
    for caption in found:
        caption, swapped, flipped, both = (caption.sentences[name] for name in SENTENCES)
        assert (swapped.first, swapped.second) == (caption.second, caption.first) == (both.first, both.second)
        assert flipped.relation == both.relation == OPPOSITE[caption.relation] == OPPOSITE[swapped.relation]
        assert len({caption.text, swapped.text, flipped.text, both.text}) == 4


class PlantedTrace:
    """Attention of one row, and of all others none at all: keys as given, the same in 2 layers of 3 heads."""

    layers, heads = 2, 3

    def __init__(self, rows):
        self.rows = rows  # row -> [key]

    def weights(self, layer, queries, samples):
        assert samples == [0]
        rows = torch.tensor([self.rows[int(query)] for query in queries])
        return rows[None, None].expand(1, self.heads, *rows.shape).clone()


def planted(caption, look):
    """Attention [word, layer, head] of each sentence where the relation word looks at every token as `look` says.

    look(sentence, place, entity) is the weight of each token of an entity, or (entity None) of the article before it.
    """
    found = {}
    for name, sentence in caption.sentences.items():
        words = sentence.text.split()
        places = [[5, 6], [9, 10], [4], [8]]
        entities = (sentence.first, sentence.second, None, None)
        assert [" ".join(words[at] for at in place) for place in places] == [*entities[:2], "a", "a"]
        row = [0.001] * len(words)
        for number, (place, entity) in enumerate(zip(places, entities, strict=True)):
            for at in place:
                row[at] = look(sentence, number % 2, entity)
        relation = len(words) - 2
        assert words[relation] == sentence.relation
        trace = PlantedTrace({relation: row})
        found[name] = relation_attention(trace, 0, torch.tensor([relation]), [torch.tensor(p) for p in places])
    return found


def weight_of(entity):
    """A weight of its own for every entity."""
    return 0.01 + (sum(map(ord, entity)) % 17) / 100


def outermost(sentence, place, entity):
    """0.2 for the entity that the sentence puts to the left or above, 0.05 for the other."""
    return 0.2 if (place == 0) == (sentence.relation in ("left", "above")) else 0.05


MODELS = {
    "uniform": lambda sentence, place, entity: 0.05,
    "entities": lambda sentence, place, entity: weight_of(entity) if entity else 0.02,
    "first": lambda sentence, place, entity: (0.2, 0.05)[place],
    "second": lambda sentence, place, entity: (0.05, 0.2)[place],
    "relation": outermost,
}


@pytest.mark.parametrize(
    ("model", "scores", "leans"),
    [
        ("uniform", (0, 0, 0), (0, 0, 0)),
        ("entities", (0, 0, 0), (0, 0, 0)),
        ("first", (0.6, 0, 0.6), (0.6, 0, 0.6)),
        ("second", (0.6, 0, 0.6), (-0.6, 0, -0.6)),
        ("relation", (0.6, 0.6, 0), (None, None, 0)),
    ],
)
def test_planted_models(captions, model, scores, leans):
    """(.2 - .05) / (.2 + .05) = .6: who looks at a place breaks the symmetry of the swap by that much, who looks at the
    entities does not, and who looks where the relation points breaks that of the flip."""
    attention = np.stack([np.stack(list(planted(each, MODELS[model]).values())) for each in captions])
    found = Asymmetries(attention, (0, 1))
    summary = summarise(found)["pairs"]
    for kind, score, towards in zip(IDEAL, scores, leans, strict=True):
        entities = summary[kind]["entities"]
        assert entities["score"]["mean"] == pytest.approx(score, abs=1e-9) and entities["score"]["n"] == 40
        if towards is not None:
            assert entities["lean"]["mean"] == pytest.approx(towards, abs=1e-9)
            assert entities["lean"]["q"] >= entities["lean"]["p"]
            assert (entities["lean"]["p"] < 0.001) == (towards != 0)
    swapped = summary["swapped"]
    if model == "entities":  # 0 because they are followed, not because nothing is looked at
        assert swapped["entities"]["along"]["mean"] > 0.2
        assert swapped["against_shuffled"]["mean"] < -0.1 and swapped["against_shuffled"]["p"] < 0.001
        assert heads_that_lean(found, "swapped")["entities"]["q"].min() == 1
    elif model == "first":
        assert swapped["against_shuffled"]["mean"] == pytest.approx(0, abs=1e-9)
        assert swapped["against_articles"]["mean"] == pytest.approx(0, abs=1e-9)
        assert heads_that_lean(found, "swapped")["entities"]["q"].max() < 0.001
    elif model == "uniform":
        assert swapped["entities"]["along"]["mean"] == pytest.approx(0, abs=1e-9)


def test_places_and_entities_come_apart(captions):
    """Articles that go by place under entities that do not: the control has the score, the entities have none."""

    def look(sentence, place, entity):
        return weight_of(entity) if entity else (0.2, 0.05)[place]

    attention = np.stack([np.stack(list(planted(each, look).values())) for each in captions])
    swapped = summarise(Asymmetries(attention, (1,)))["pairs"]["swapped"]
    assert swapped["articles"]["score"]["mean"] == pytest.approx(0.6)
    assert swapped["entities"]["score"]["mean"] == pytest.approx(0, abs=1e-9)
    assert swapped["against_articles"]["mean"] == pytest.approx(-0.6) and swapped["against_articles"]["p"] < 0.001


def test_asymmetry_by_hand():
    assert asymmetry([0.3, 0.1, 0.0, 0.2], [0.1, 0.3, 0.5, 0.2]).tolist() == pytest.approx([0.5, -0.5, -1, 0])
    assert np.isnan(asymmetry([0.0], [0.0])).all()
    assert lean(0.5, -0.5, "swapped") == 0 and along(0.5, -0.5, "swapped") == 0.5
    assert lean(0.5, 0.5, "swapped") == 0.5 and lean(0.5, 0.5, "flipped") == 0 == lean(0.5, -0.5, "both")
    assert lean(-1.0, -1.0, "swapped") == -1 and lean(-1.0, 1.0, "flipped") == -1


def test_words_of_several_tokens():
    """Rows 6 and 7 stand for the relation: (.1 + .3) / 2 and (.2 + .0) / 2 over two tokens is .15; .4 and .2 is .3."""
    row, other = [0, 0.1, 0.3, 0, 0.4, 0, 0, 0], [0, 0.2, 0.0, 0, 0.2, 0, 0, 0]
    trace = PlantedTrace({6: row, 7: other})
    found = relation_attention(trace, 0, torch.tensor([6, 7]), [torch.tensor([1, 2]), torch.tensor([4])])
    assert found.shape == (2, 2, 3)
    np.testing.assert_allclose(found[0], 0.15, rtol=1e-6)
    np.testing.assert_allclose(found[1], 0.3, rtol=1e-6)
    with refused("relation before an entity", SampleError):
        relation_attention(trace, 0, torch.tensor([6, 7]), [torch.tensor([7]), torch.tensor([4])])


def test_layers_are_chosen_and_heads_averaged():
    """Layer 0 looks at the first with .3 + .1 over two heads against .1 + .1, layer 1 the other way round."""
    attention = np.zeros((1, 4, 4, 2, 2))
    attention[:, :, 0], attention[:, :, 1] = [[0.3, 0.1], [0.0, 0.2]], [[0.1, 0.1], [0.3, 0.1]]
    found = {layers: Asymmetries(attention, layers).overall["entities"][0, 0] for layers in ((0,), (1,), (0, 1))}
    assert found == {(0,): pytest.approx(1 / 3), (1,): pytest.approx(-1 / 3), (0, 1): pytest.approx(0)}
    by_head = Asymmetries(attention, (0,)).by_head
    assert by_head["entities"][0, 0].ravel().tolist() == pytest.approx([0.5, 0, -1, 1 / 3])
    assert np.isnan(by_head["articles"]).all()


def test_controls_are_of_other_samples():
    for seed in range(20):
        found = others_of(9, seed)
        assert sorted(found) == list(range(9)) and (found != np.arange(9)).all()
    assert others_of(1, 0).tolist() == [0] and spread(np.array([0.1, np.nan, 0.5, 0.3]), 3) == [2, 3, 0]
    assert spread(np.array([0.1, 0.5, 0.3]), 2) == [1, 0] and spread(np.array([0.1]), 4) == [0]


def test_attention_that_is_not_there_is_counted(captions):
    attention = []
    for number, caption in enumerate(captions[:5]):
        sentences = planted(caption, (MODELS["entities"], lambda *_: 0.0)[number == 2])
        attention.append(np.stack([sentences[name] for name in SENTENCES]))
        assert set(sample_row(caption, attention[-1], (0, 1))) == set(COLUMNS)
    score = summarise(Asymmetries(np.stack(attention), (0, 1)))["pairs"]["swapped"]["entities"]["score"]
    assert (score["n"], score["skipped"]) == (4, 1)


def test_every_panel_of_heads_has_its_own_dots(captions):
    """Heads of articles lean, those of entities do not, and what keeps the symmetry is not tested: no dots there."""

    def look(sentence, place, entity):
        return weight_of(entity) if entity else (0.2, 0.05)[place]

    attention = np.stack([np.stack(list(planted(each, look).values())) for each in captions])
    found = Asymmetries(attention, (0, 1))
    figure = head_figure(found, heads_that_lean(found, "swapped"), "swapped")
    panels = [axes for axes in figure.axes if axes.images and axes.get_xlabel() == "head"]
    assert [sum(len(line.get_xdata()) for line in axes.lines) for axes in panels] == [0, 6, 0]


@pytest.fixture(scope="module")
def ran(tmp_path_factory, elsewhere):
    out = tmp_path_factory.mktemp("text") / "out"
    assert llava_script.main(configure(llava_script, limit=6, layers="last_2", examples=2, out_dir=str(out))) == 0
    return out


@pytest.mark.numerical
def test_script_reads_what_the_model_attends(ran):
    """The first row again from full attention matrices under the eager implementation, words found by their tokens."""
    model, processor = load("tiny-llava")
    model.set_attn_implementation("eager")
    sentences = gather_captions(Captions(limit=1))[0][0].sentences
    found = []
    for name in ("caption", "swapped"):
        sentence = sentences[name]
        inputs, _ = model.prepare(processor, [], sentence.text)
        tokens = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
        with torch.no_grad():
            attentions = model(**inputs, output_attentions=True).attentions
        row = torch.stack(attentions)[2:, 0, :, max(i for i, t in enumerate(tokens) if t == sentence.relation)]
        begin = tokens.index("shapes") + 1
        assert tokens[begin : begin + 7] == f"a {sentence.first} and a {sentence.second}".split()
        first, second = (row[..., begin + at : begin + at + 2].mean() for at in (1, 5))
        found.append(float((first - second) / (first + second)))
        if name == "caption":
            before = asymmetry(row[..., begin].mean(), row[..., begin + 4].mean())
    row, rounding = table(ran)[0], tolerance.two_runs(tolerance.EMBEDDED)
    assert float(row["asymmetry_articles_caption"]) == pytest.approx(float(before), abs=rounding)
    output = [float(row[f"asymmetry_entities_{name}"]) for name in ("caption", "swapped")]
    assert output == pytest.approx(found, abs=rounding)
    assert float(row["score_entities_swapped"]) == pytest.approx(abs(sum(found)) / 2, abs=rounding)


def test_files_agree(ran):
    rows, summary = table(ran), json.loads((ran / "summary.json").read_text())
    assert summary["n"] == 6 and summary["layers"] == [2, 3] and summary["skipped"] == {}
    with np.load(ran / "symmetry.npz") as arrays:
        assert arrays["attention"].shape == (6, 4, 4, 4, 4) and tuple(arrays["words"]) == WORDS
        found = Asymmetries(arrays["attention"], (2, 3))
        assert arrays["samples"].tolist() == [row["sample"] for row in rows]
    for kind in IDEAL:
        for measured in ("entities", "articles"):
            scores = [float(row[f"score_{measured}_{kind}"]) for row in rows]
            output = summary["pairs"][kind][measured]["score"]
            assert output["mean"] == pytest.approx(np.mean(scores)) and output["n"] == 6
            assert output["low"] <= output["mean"] <= output["high"]
            assert scores == pytest.approx(np.abs(lean(*pair_of(found.overall[measured], kind), kind)), abs=1e-4)
    tests = [summary["asymmetry"]["difference"]]
    for pair in summary["pairs"].values():
        tests += [pair[measured]["lean"] for measured in ("entities", "articles")]
        tests += [pair["against_articles"], pair["against_shuffled"]]
    assert summary["family_of_q"].startswith("13 tests: ")
    assert [test["q"] for test in tests] == pytest.approx(benjamini_hochberg([test["p"] for test in tests]).tolist())
    heads = table(ran, "heads.csv")
    assert len(heads) == 3 * 16 and {head["kind"] for head in heads} == set(IDEAL)
    assert {head["family_of_q"] for head in heads} == {"16 heads, lean of entities, one kind of pair"}
    assert summary["heads"]["swapped"]["entities"]["smallest_p"] == 2 / 2**6
    assert {path.name for path in ran.glob("*.png")} == {
        "pairs.png", "layers.png", "examples.png", "heads-swapped.png", "heads-flipped.png", "heads-both.png",
    }  # fmt: skip


def test_other_language_models(tmp_path):
    """Qwen's, on data of which a sample is broken; and a plain one whose tokenizer does not know the words."""
    root = tmp_path / "set"
    twoshapes.generate(root, 2, seed=3)
    (root / twoshapes.LAYOUT / "shard0/world-1.png").write_bytes(b"")
    out = tmp_path / "qwen"
    assert qwen_script.main(configure(qwen_script, data_root=str(root), examples=0, out_dir=str(out))) == 0
    assert [row["skipped"] for row in table(out)] == ["image cannot be decoded", ""]
    folder = save(tmp_path / "unknown", causal())
    assert llava_script.main(configure(llava_script, model=folder, limit=2, out_dir=str(tmp_path / "none"))) == 1
    assert json.loads((tmp_path / "none/summary.json").read_text())["skipped"] == {"word unknown to the tokenizer": 2}


@pytest.mark.numerical
def test_a_plain_causal_model_is_read_alike(ran, tmp_path):
    """The language model of tiny-llava as a folder of its own, under the same template, gives the same rows."""
    model, processor = load("tiny-llava")
    alone = LlamaForCausalLM(model.config.text_config)
    alone.model.load_state_dict(model.model.language_model.state_dict())
    processor.tokenizer.chat_template = "{{ bos_token }}" + processor.chat_template  # it writes special tokens itself
    folder, out = save(tmp_path / "model", alone, processor.tokenizer), tmp_path / "out"
    config = configure(qwen_script, model=folder, limit=2, layers="last_2", examples=0, out_dir=str(out))
    assert qwen_script.main(config) == 0
    rounding = tolerance.two_runs(tolerance.EMBEDDED)
    for ours, theirs in zip(table(out), table(ran), strict=False):
        for name in COLUMNS[3:]:
            assert float(ours[name]) == pytest.approx(float(theirs[name]), abs=rounding), name


@pytest.mark.parametrize("script", [llava_script, qwen_script])
def test_bad_settings_stop_the_run(script, tmp_path, capsys):
    for flags, sentence in (
        ({"layers": "middle"}, "layers 'middle' is unknown"),
        ({"layers": "99"}, "layer 99 does not exist; the model has"),
        ({"examples": -1}, "--examples -1 must be at least 0"),
        ({"limit": -2}, "--limit -2 must be at least 0"),
        ({"seed": -1}, "--seed -1 must be at least 0"),
        ({"seed": -1, "data_root": "nowhere"}, "--seed -1 must be at least 0"),
        ({"model": "tiny-nothing"}, "tiny-nothing"),
    ):
        with pytest.raises(SystemExit) as stopped:
            script.main(configure(script, out_dir=str(tmp_path / "out"), **flags))
        assert stopped.value.code == 2 and sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
