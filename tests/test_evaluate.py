"""evaluate.py as a person runs it: what it leaves, in any batch and method; bad records and settings."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch

import evaluate
from benchmarks import evaluation
from data import twoshapes_qa
from data.errors import MissingFileError
from tests.errors import refused
from tests.evaluation import COUNT, RUNNER, generated, lines_of_parts, predictions, rows, run, settings, summary
from tests.settings import changed

FEW = 10
FIELDS = [
    "id", "task", "prompt", "gold", "options", "rotation", "prediction", "value", "parsed", "correct", "failed", "cut",
    "image_hashes",
]  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return settings(generated(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def reference(config, tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    run(config, folder)
    return folder


def sentence_of(config, capsys):
    """The sentence with which a run ends that is wrongly asked for."""
    with pytest.raises(SystemExit) as ended:
        evaluate.main(config)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_what_a_run_leaves_behind(reference, config, capsys):
    found = rows(reference)
    assert [row["id"] for row in found] == [f"blink-{number}" for number in range(COUNT)]
    assert all(list(row) == FIELDS for row in found)
    assert {row["task"] for row in found} == set(twoshapes_qa.TASKS)
    assert all(row["failed"] is None and isinstance(row["prediction"], str) for row in found)
    easy = [row for row in found if row["task"] in ("relation", "yes_no", "corner")]
    assert sum(row["correct"] for row in easy) >= 8  # of 9: the embedded model knows these
    figures = summary(reference)
    assert figures["records"] == figures["answers"] == figures["overall"]["n"] == COUNT
    assert figures["overall"]["correct"] == sum(row["correct"] for row in found)
    assert figures["tasks"]["relation"]["n"] == 3
    assert figures["failed"] == figures["skipped"] == figures["touched"] == {} and figures["skipped_records"] == []
    about = json.loads((reference / "settings.json").read_text())
    assert about["flags"]["judge"] == "choice" and about["model"]["family"] == "qwen2_5_vl"


def test_a_finished_run_does_nothing_again(reference, config, capsys, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("*")}
    monkeypatch.setattr("models.load", None)  # not called
    assert evaluate.main(changed(config, out_dir=str(reference), batch_size=2, limit=COUNT)) == 0
    assert {path: path.stat().st_mtime_ns for path in reference.rglob("*")} == before
    output = capsys.readouterr().out
    assert f"n = {COUNT}" in output and "relation: accuracy" in output and f"results in {reference}" in output
    assert "steered" not in output


METHODS = {
    "greedy": {},
    "sampled": {"temperature": 5.0, "top_p": 0.95},
    "var": {
        "method": "var",
        "var_dimensions": (3, 14),
        "var_threshold": 1.0,
        "var_attn_p": 0.0,
        "var_head": 1.0,
    },
    "adapt-vis": {"method": "adapt-vis", "adapt_threshold": 0.95},
    "knockout": {"method": "knockout", "knockout_rows": ("last", "generated"), "knockout_layers": (3, 4)},
    "pai": {"method": "pai", "pai_alpha": 2.0, "pai_gamma": 2.0},
    "vaf": {"method": "vaf", "vaf_enhance": 2.0},
}


@pytest.mark.parametrize("method", METHODS)
def test_no_batch_decides_an_answer(config, reference, tmp_path, method):
    given = changed(config, limit=FEW, **METHODS[method])
    whole = run(changed(given, batch_size=1), tmp_path / "1")
    for size in (3, 8) if method == "greedy" else (3,):
        run(changed(given, batch_size=size), tmp_path / f"{size}")
        assert predictions(tmp_path / f"{size}") == predictions(tmp_path / "1")
        assert summary(tmp_path / f"{size}") == summary(tmp_path / "1")
    assert (whole == rows(reference)[:FEW]) == (method == "greedy")
    touched = summary(tmp_path / "1")["touched"]
    assert len(whole) == FEW and bool(touched) == (method not in ("greedy", "sampled"))
    if method == "adapt-vis":
        assert touched["weight1"] + touched["weight2"] == FEW and min(touched["weight1"], touched["weight2"]) > 0
        assert touched["steered"] == FEW
    if method == "var":
        layers = summary(tmp_path / "1")["layers"]
        assert [row["layer"] for row in layers] == [2, 3] and touched["steered"] > 0
        for row in layers:
            assert row["pairs"] >= row["rows"] > 0 and row["heads"] > 0 and row["visual_sinks"] + row["text_sinks"] > 0
            assert 0 < row["samples"] <= FEW
    if method == "knockout":
        layers = summary(tmp_path / "1")["layers"]
        assert touched["steered"] == FEW and [row["layer"] for row in layers] == [3, 4]
        assert all(row["knockout_rows"] == FEW and row["knockout_keys"] > FEW for row in layers)
    if method in ("pai", "vaf"):
        layers = summary(tmp_path / "1")["layers"]
        assert touched["steered"] == FEW and [row["layer"] for row in layers] == ([2, 3, 4] if method == "pai" else [1])
    if method == "sampled":
        run(changed(given, seed=1), tmp_path / "seed")
        assert predictions(tmp_path / "seed") != predictions(tmp_path / "1")


def test_a_model_of_ones_own(config, tmp_path, capsys, monkeypatch):
    """From the current folder; what it is told; what fails of it is written down and counted."""
    code = """
def answer(prompt, images, settings):
    with open("asked.txt", "a") as asked:
        print(prompt, file=asked)
    if "corner" in prompt and not os.path.exists("corners.txt"):
        raise KeyError("no corners here")
    if prompt.startswith("where"):
        return None
    return f"{len(images)} {images[0].mode} {sorted(settings)} {settings['seed']} {settings['max_new_tokens']}"

def make():
    return Runner(answer)

def nothing():
    return 3
"""
    (tmp_path / "own_model.py").write_text(RUNNER + code)
    monkeypatch.chdir(tmp_path)
    given = changed(config, runner="python:own_model:make", out_dir="run", batch_size=4)
    assert evaluate.main(given) == 0
    found = rows("run")
    assert Path("asked.txt").read_text().splitlines() == [line for row in found for line in row["prompt"].splitlines()]
    assert summary("run")["failed"] == {"runner raised KeyError": 3, "runner returned no text": 3}
    failed = next(row for row in found if row["failed"] == "runner raised KeyError")
    assert list(failed) == FIELDS and failed["prediction"] is None and not failed["correct"] and not failed["parsed"]
    assert "failed blink-2: the runner failed: KeyError: 'no corners here'" in capsys.readouterr().err
    output = [row["prediction"].split() for row in found if row["failed"] is None]
    assert {row[0] for row in output} == {"1", "2"} and {row[1] for row in output} == {"RGB"}
    names = "['max_new_tokens', 'repetition_penalty', 'seed', 'system_prompt', 'temperature', 'top_p']"
    assert all(names in row["prediction"] for row in found if row["failed"] is None)
    assert len({row[-2] for row in output}) == len(output) and {row[-1] for row in output} == {"6"}

    before = predictions("run")
    Path("corners.txt").touch()
    assert evaluate.main(given) == 0 and predictions("run") == before  # what failed stays, unless asked for again
    assert evaluate.main(changed(given, retry_failed=True)) == 0
    assert summary("run")["failed"] == {"runner returned no text": 3}
    assert len(lines_of_parts(Path("run"))) == COUNT + 6  # those that had failed, and no other
    assert {row["cut"] for row in rows("run")} == {None} and summary("run")["overall"]["cut"] is None

    for name, sentence in (("nothing", "made int, which has no method generate"), ("gone", "has no attribute 'gone'")):
        assert sentence in sentence_of(changed(given, runner=f"python:own_model:{name}", out_dir="other"), capsys)
    (tmp_path / "own_model.py").write_text(RUNNER + "def make():\n    return Runner(None)\n")
    sys.modules.pop("own_model")
    assert evaluate.main(changed(given, out_dir="all-failed")) == 1


@pytest.fixture
def own(config, tmp_path, monkeypatch):
    """A run over one image of one's own, by a runner in two files; it answers "yes"."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (60, 60), "red").save("p.png")
    record = {"image": "p.png", "question": "is it red ?", "answer": "yes"}
    Path("set.jsonl").write_text("".join(json.dumps({"id": f"r{number}"} | record) + "\n" for number in range(3)))
    Path("one_runner.py").write_text(RUNNER + "import one_word\nmake = lambda: Runner(lambda *asked: one_word.WORD)\n")
    Path("one_word.py").write_text('WORD = "yes"\n')
    where = {"dataset": "set.jsonl", "data_root": None, "runner": "python:one_runner:make", "out_dir": "run"}
    yield changed(config, **where)
    for name in ("one_runner", "one_word"):
        sys.modules.pop(name, None)


def test_a_change_of_images_or_code_is_refused(own, tmp_path, capsys):
    """Also of a finished run, and of a module behind the runner; what was refused changed nothing."""
    from PIL import Image

    assert evaluate.main(own) == 0 and summary("run")["overall"]["accuracy"] == 1
    assert evaluate.main(own) == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    capsys.readouterr()
    image, changed = Path("p.png").read_bytes(), "record 'r0' of the set has changed since it was answered"
    Image.new("RGB", (60, 60), "blue").save("p.png")
    assert f"error: {changed} (images); pass another --out-dir\n" == sentence_of(own, capsys)
    Path("p.png").write_bytes(image[:-1])
    assert f"{changed} (images)" in sentence_of(own, capsys)
    Path("p.png").write_bytes(image)
    records = Path("set.jsonl").read_text()
    Path("set.jsonl").write_text(records.replace('"question"', '"sub_task": "colour", "question"'))
    assert f"{changed} (task)" in sentence_of(own, capsys)
    Path("set.jsonl").write_text(records)
    Path("one_word.py").write_text('WORD = "no"\n')
    assert "holds answers under other settings (code of --runner has changed: one_word)," in sentence_of(own, capsys)
    Path("one_word.py").write_text('WORD = "yes"\n')
    assert evaluate.main(own) == 0 and before == {path: path.read_bytes() for path in before}


def test_a_failed_record_has_no_image_to_compare(own, capsys):
    """It is asked again once its image is there."""
    image = Path("p.png").read_bytes()
    Path("p.png").write_bytes(b"")
    assert evaluate.main(own) == 1 and summary("run")["failed"] == {"image empty": 3}
    Path("p.png").write_bytes(image)
    assert evaluate.main(own) == 1 and evaluate.main(changed(own, retry_failed=True)) == 0
    assert summary("run")["failed"] == {} and all(row["image_hashes"] for row in rows("run"))


def test_lines_that_are_no_answers_are_told_and_asked_again(own, capsys):
    """Those copied from predictions.jsonl lack what steering did; one that is torn at its end is a killed run's."""
    assert evaluate.main(own) == 0
    part, before = Path("run/parts/part-00000.jsonl"), predictions("run")
    part.write_bytes(before + b'{"id": "r')
    capsys.readouterr()
    assert evaluate.main(own) == 0 and predictions("run") == before
    assert "warning: 3 lines that are no answers were left out: part-00000.jsonl (3)\n" in capsys.readouterr().err
    assert all("touched" in json.loads(line) for line in part.read_bytes().splitlines()[3:])


def test_a_runner_that_exits_is_a_fault_of_its_own(own, capsys):
    output = sentence_of(changed(own, runner="python:sys:exit"), capsys)
    assert output == "error: --runner 'python:sys:exit' could not be made: SystemExit\n" and not Path("run").exists()
    Path("one_word.py").write_text("import sys\ndef __getattr__(name): sys.exit(0)\n")
    Path("one_runner.py").write_text(RUNNER + "import one_word\nmake = lambda: Runner(lambda *asked: one_word.OTHER)\n")
    assert evaluate.main(own) == 1 and summary("run")["failed"] == {"runner raised SystemExit": 3}


def test_a_checkpoint_whose_template_changed_is_refused(config, tmp_path, capsys, monkeypatch):
    """Any file that transformers reads; before the model loads."""
    folder = tmp_path / "checkpoint"
    shutil.copytree("models/tiny/tiny-llava", folder)
    given = changed(config, model=str(folder), limit=1, out_dir=str(tmp_path / "run"))
    assert evaluate.main(given) == 0
    monkeypatch.setattr("models.load", None)  # not called
    template = folder / "chat_template.jinja"
    before = template.read_text()
    template.write_text(before + "now")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_text("a")
    assert (
        "(content of --model has changed: chat_template.jinja, additional_chat_templates/tool.jinja), and"
        in sentence_of(given, capsys)
    )
    template.write_text(before)
    shutil.rmtree(folder / "additional_chat_templates")
    assert evaluate.main(given) == 0


def test_a_model_on_the_hub_is_known_by_its_commit(config, tmp_path, capsys, monkeypatch):
    """As the hub's own cache holds it, without a network; a new commit is refused."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    cache, commits = tmp_path / "cache" / "models--someone--model", ["0" * 39 + "1", "0" * 39 + "2"]
    for commit in commits:
        shutil.copytree("models/tiny/tiny-llava", cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    given = changed(config, model="someone/model", limit=1, out_dir=str(tmp_path / "run"))
    (cache / "refs" / "main").write_text(commits[0])
    assert evaluate.main(given) == 0 and evaluate.main(given) == 0
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["model"]["revision"] == commits[0]
    (cache / "refs" / "main").write_text(commits[1])
    sentence = f"(commit of --model was '{commits[0]}' and is '{commits[1]}' now)"
    assert sentence in sentence_of(given, capsys)


def test_an_answer_that_is_cut_says_so(config, tmp_path, capsys):
    """In its record, the summary, the page, and on stderr; at the default limit none is."""
    found = run(changed(config, limit=5, max_new_tokens=1), tmp_path / "cut")
    figures, output = summary(tmp_path / "cut"), capsys.readouterr()
    assert [row["cut"] for row in found] == [row["prediction"] != "" for row in found] == [True] * 4 + [False]
    assert figures["overall"]["cut"] == 4 and figures["tasks"]["corner"]["cut"] == 1
    assert figures["tasks"]["two_images"]["cut"] == 0  # whose answer is its end token
    assert (
        "warning: 4 of 5 records have an answer that --max-new-tokens 1 cut" in output.err and ", 4 cut\n" in output.out
    )
    page = (tmp_path / "cut" / "report.html").read_text()
    assert page.count(">cut</td>") == 4
    found = run(changed(config, limit=5, max_new_tokens=evaluate.Config.decoding.max_new_tokens), tmp_path / "whole")
    assert {row["cut"] for row in found} == {False} and summary(tmp_path / "whole")["overall"]["cut"] == 0
    output = capsys.readouterr()
    assert "warning" not in output.err and ">cut</td>" not in (tmp_path / "whole" / "report.html").read_text()


def test_a_limit_may_grow_and_settings_may_not_change(reference, config, tmp_path, capsys):
    out = tmp_path / "run"
    assert len(run(changed(config, limit=4), out)) == 4 and summary(out)["records"] == 4
    begun = (out / "parts" / "part-00000.jsonl").read_bytes()
    assert len(run(changed(config, limit=9, batch_size=2), out)) == 9
    assert (out / "parts" / "part-00000.jsonl").read_bytes().startswith(begun)
    run(config, out)
    assert predictions(out) == predictions(reference) and lines_of_parts(out) == lines_of_parts(reference)
    again = changed(config, out_dir=str(out))
    for flag, other in (
        ("--temperature was 0.0 and is 0.5", {"temperature": 0.5}),
        ("--max-new-tokens was 6 and is 7", {"max_new_tokens": 7}),
        ("--judge was 'choice' and is 'exact'", {"judge": "exact"}),
        ("--method was 'default' and is 'adapt-vis'", {"method": "adapt-vis"}),
        ("--model was 'tiny-qwen2.5-vl' and is 'tiny-llava'", {"model": "tiny-llava"}),
    ):
        output = sentence_of(changed(again, **other), capsys)
        assert f"holds answers under other settings ({flag}" in output and "pass another --out-dir" in output
    assert "holds answers to records that are not asked now, such as 'blink-4'" in sentence_of(
        changed(again, limit=4), capsys
    )
    with refused("record-changed"):
        found = evaluate.Predictions(out, again.deciding())
        questions, _ = evaluate.spatial_qa.read("blink", config.questions.data_root)
        given = {(each.id, 0): replace(each, prompt="what ?") for each in questions}
        evaluate.check_same(given, found.answered(), found)


def test_another_dtype_is_refused(config, tmp_path, capsys):
    """Also where "auto" makes it another, as on another device."""
    run(changed(config, limit=2), tmp_path / "run")
    settings = tmp_path / "run" / "settings.json"
    settings.write_text(settings.read_text().replace('"dtype": "float32"', '"dtype": "bfloat16"'))
    again = changed(config, limit=3, out_dir=str(tmp_path / "run"))
    assert "whose dtype was 'bfloat16', and now it is 'float32'" in sentence_of(again, capsys)
    assert "(--dtype was 'auto' and is 'bfloat16' now)" in sentence_of(changed(again, dtype="bfloat16"), capsys)


def test_the_folder_is_known_by_its_settings(config, tmp_path, monkeypatch, capsys):
    """Without --out-dir the same command goes on, and other settings have another folder."""
    monkeypatch.chdir(tmp_path)
    assert evaluate.main(changed(config, limit=2)) == evaluate.main(changed(config, limit=3, batch_size=1)) == 0
    [folder] = Path("results/evaluate").iterdir()
    assert folder.name.startswith("blink-default-tiny-qwen2.5-vl-") and len(rows(folder)) == 3
    assert evaluate.main(changed(config, limit=2, max_new_tokens=5)) == 0
    assert len(list(Path("results/evaluate").iterdir())) == 2


def test_bad_records_are_counted_and_the_run_goes_on(config, tmp_path, capsys):
    """Pictures that cannot be read or are all length fail, in the middle of a batch; others are answered."""
    from PIL import Image

    folder = tmp_path / "set"
    shutil.copytree(config.questions.data_root, folder)
    images = folder / "spatial_reasoning" / "blink" / "images"
    names = sorted(path.name for path in images.iterdir())
    (images / names[1]).write_bytes(b"")
    (images / names[2]).write_bytes((images / names[0]).read_bytes()[:60])
    Image.new("RGB", (500, 1)).save(images / names[3])
    with open(folder / "spatial_reasoning" / "blink" / "blink_validation.jsonl", "a") as lines:
        lines.write('{"id": "broken\n{"id": "no question"}\n')
    found = run(changed(config, data_root=str(folder)), tmp_path / "run")
    figures = summary(tmp_path / "run")
    assert figures["failed"] == {"image empty": 1, "image too elongated": 1, "image truncated": 1}
    assert sum(figures["skipped"].values()) == 2 and figures["records"] == COUNT
    assert figures["overall"]["failed"] == 3 and figures["overall"]["n"] == COUNT - 3
    assert [row["id"] for row in found if row["failed"]] == ["blink-1", "blink-2", "blink-3"]
    output = capsys.readouterr().err
    assert "failed blink-1: image " in output
    places = figures["skipped_records"]
    assert len(places) == 2 and "('no question')" in places[1][0]
    assert all(f"skipped {where}: {reason}\n" in output for where, reason in places)


def test_a_set_without_a_usable_record_is_status_1(config, tmp_path, capsys):
    (tmp_path / "set.jsonl").write_text('{"id": "a"}\n{"id": "b"}\n{"id": \n')
    given = changed(config, dataset=str(tmp_path / "set.jsonl"), data_root=None, out_dir=str(tmp_path / "run"))
    with pytest.raises(SystemExit) as ended:
        evaluate.main(given)
    output = capsys.readouterr().err
    assert ended.value.code == 1 and "error: no record can be used: " in output and output.count("skipped ") == 3
    assert not (tmp_path / "run").exists()


def test_each_rotation_of_the_options_is_asked(config, tmp_path):
    found = run(changed(config, circular=True), tmp_path / "run")
    choices = [row for row in found if row["options"]]
    by_record = {}
    for row in choices:
        by_record.setdefault(row["id"], []).append(row)
    assert by_record and all(len(each) == len(each[0]["options"]) > 1 for each in by_record.values())
    for each in by_record.values():
        assert [row["rotation"] for row in each] == list(range(len(each)))
        texts = {row["options"]["ABCDEFGH".index(row["gold"])] for row in each}
        assert len(texts) == 1 and len({row["prompt"] for row in each}) == len(each)
    figures = summary(tmp_path / "run")
    assert figures["records"] == COUNT and figures["answers"] == len(found) == COUNT - len(by_record) + len(choices)


def test_a_record_that_runs_out_of_memory_fails_alone(config, reference, tmp_path, monkeypatch, capsys):
    """In the middle of a batch, and asked singly; the run goes on."""
    answer_batch = evaluate.ModelBackend.answer

    def short_of_memory(self, keys, prompts, images):
        if ("blink-1", 0) in keys:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answer_batch(self, keys, prompts, images)

    monkeypatch.setattr(evaluate.ModelBackend, "answer", short_of_memory)
    for size in (1, 3):
        out = tmp_path / str(size)
        found = run(changed(config, limit=4, batch_size=size), out)
        assert summary(out)["failed"] == {"out of memory": 1} and found[1]["failed"] == "out of memory"
        assert [found[0], *found[2:]] == [row for row in rows(reference)[:4] if row["id"] != "blink-1"]
        assert "failed blink-1: out of memory" in capsys.readouterr().err


def test_gaze_by_record_and_by_picture(config, reference, tmp_path, capsys):
    """A record without gaze is asked as it is, and counted."""
    records = [
        {"image": "blink-0", "units": "fractions", "fixations": [[0.1, 0.1]]},
        {"image": "spatial_reasoning/blink/images/00001_1.png", "units": "fractions", "fixations": [[0.9, 0.9]]},
        {"image": "blink-2", "units": "fractions", "fixations": [[1.5, 0.5]]},
    ]
    path = tmp_path / "gaze.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in (*records, {"image": "blink-3"})))
    plain = rows(reference)
    for method in ("non-gaussian", "gaussian", "salient-head"):
        out = tmp_path / method
        found = run(changed(config, method=method, scanpaths=str(path)), out)
        touched = summary(out)["touched"]
        assert bool(summary(out)["layers"]) == (method == "salient-head")
        two = sum(row["task"] == "two_images" for row in plain)
        assert touched == {
            "steered": 2, "no gaze: no fixation that the model can see": 1, "no gaze: 2 images": two,
            "no gaze: no scanpath": COUNT - 3 - two,
        }  # fmt: skip
        output = capsys.readouterr().out
        assert f"steered 2 of {COUNT} answers" in output and "left out of scanpaths: " in output
        assert found[2:] == plain[2:]
    steered = rows(tmp_path / "non-gaussian")
    assert [row["prediction"] for row in steered[:2]] != [row["prediction"] for row in plain[:2]]


def test_a_method_that_steers_nothing_is_told(config, reference, tmp_path, capsys, monkeypatch):
    found = run(changed(config, limit=3, method="var", var_dimensions=(3,), var_threshold=11.0), tmp_path / "var")
    output = capsys.readouterr()
    assert found == rows(reference)[:3] and "steered 0 of 3 answers" in output.out
    assert "warning: the method changed nothing" in output.err
    path = tmp_path / "gaze.jsonl"
    given = changed(config, method="gaussian", scanpaths=str(path), out_dir=str(tmp_path / "run"))
    monkeypatch.setattr("models.load", None)  # not called
    for content, sentence in (
        ({"image": "blink-0"}, "holds no scanpath that can be used, 1 of 1 because: "),
        ({"image": "other", "units": "fractions", "fixations": [[0.1, 0.1]]}, "is of no use for any question (no scan"),
    ):
        path.write_text(json.dumps(content) + "\n")
        assert sentence in sentence_of(given, capsys)
    assert not (tmp_path / "run").exists()


def test_a_system_prompt_reaches_the_model_or_is_refused(config, reference, tmp_path, capsys):
    given = changed(config, system_prompt=" describe the image . ", limit=5)
    found = run(given, tmp_path / "run")
    assert [row["prompt"] for row in found] == [row["prompt"] for row in rows(reference)[:5]]
    output = sentence_of(changed(given, model="tiny-fuyu", out_dir=str(tmp_path / "fuyu")), capsys)
    assert "error: Fuyu has no chat template and so no system prompt; put its text into the prompts" in output
    assert not (tmp_path / "fuyu").exists()


def test_the_benchmark_answers_as_evaluate_does(reference, config):
    data_root = config.questions.data_root
    worker = evaluation.Worker(1, evaluation.Config(records=6, max_new_tokens=6, device="cpu"), data_root)
    seconds, output = worker.answer(slice(1, None, 2), 2)
    assert seconds > 0 and output == [row["prediction"] for row in rows(reference)[1:6:2]]
    with pytest.raises(ValueError, match="--batch-sizes, --records, --rounds, --threads and --max-new-tokens must be"):
        evaluation.check(evaluation.Config(rounds=0))
    with refused("unknown-model", MissingFileError):
        evaluation.check(evaluation.Config(model="nowhere"))


BAD = {
    "--limit -1 must be at least 0": {"limit": -1},
    "--batch-size 0 must be at least 1": {"batch_size": 0},
    "--temperature of 0 or more, and --top-p above 0": {"top_p": 0.0},
    "--temperature of 0 or more": {"temperature": float("nan")},
    "--system-prompt is empty": {"system_prompt": " "},
    "--var-dimensions belongs to --method var, and the method is default": {"var_dimensions": (1,)},
    "--var-threshold belongs to --method var": {"var_threshold": 20.0, "method": "adapt-vis"},
    "--sink-file belongs to --method var": {"sink_file": "sinks.json"},
    "--adapt-weight1 belongs to --method adapt-vis": {"adapt_weight1": 0.8, "method": "var"},
    "--scanpaths belongs to --method gaussian, non-gaussian, salient-head": {"scanpaths": "gaze.jsonl"},
    "--margin belongs to --method gaussian": {"margin": 3},
    "--method gaussian needs --scanpaths": {"method": "gaussian"},
    "p is 1.5; it is a share": {"method": "var", "var_attn_p": 1.5},
    "--var-dimensions and --sink-file were both given": {"method": "var", "var_dimensions": (1,), "sink_file": "x"},
    "threshold is 2.0; it is compared with a probability": {"method": "adapt-vis", "adapt_threshold": 2.0},
    "weight2 is -1.0; it multiplies": {"method": "adapt-vis", "adapt_weight2": -1.0},
    "--knockout-keys belongs to --method knockout": {"knockout_keys": ("text",), "method": "var"},
    "knockout rows: none; give one or more of image": {"knockout_rows": (), "method": "knockout"},
    "--knockout-layers 99 does not exist; the model has layers 0 to": {"knockout_layers": (99,), "method": "knockout"},
    "gamma is 0.5; give a finite number of 1": {"pai_gamma": 0.5, "method": "pai"},
    "first layer 99 does not exist; the model has layers 0 to": {"pai_first_layer": 99, "method": "pai"},
    "enhance is -1.0; it multiplies": {"vaf_enhance": -1.0, "method": "vaf"},
    "--vaf-layers 99 does not exist": {"vaf_layers": (99,), "method": "vaf"},
    "--method 'gausian' is unknown; choose default, var,": {"method": "gausian"},
    "--method 'python:a' is not of the form python:module:callable": {"method": "python:a"},
    "--runner 'mine.py' is not of the form python:module:callable": {"runner": "mine.py"},
    "--method adapt-vis cannot steer a --runner": {"runner": "python:a:b", "method": "adapt-vis"},
    "--runner and --model were both given": {"runner": "python:a:b", "model": "tiny-llava"},
    "--data-root needs --dataset": {"dataset": None},
    "nowhere": {"dataset": "nowhere.jsonl"},
    "--scanpaths nobody.jsonl does not exist": {"method": "gaussian", "scanpaths": "nobody.jsonl"},
    "--sink-file none.json does not exist": {"method": "var", "sink_file": "none.json"},
    "neither a folder, nor a hub id": {"model": "nothing-of-the-kind"},
}


@pytest.mark.parametrize("sentence", BAD)
def test_bad_settings_are_told_before_the_model_loads(config, sentence, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("models.load", None) if "hub id" not in sentence else None
    with pytest.raises(SystemExit) as ended:
        evaluate.main(changed(config, out_dir=str(tmp_path / "run"), **BAD[sentence]))
    output = capsys.readouterr().err
    assert ended.value.code == 2
    assert sentence in output and output.startswith("error: ") and output.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_settings_that_this_model_cannot_take(config, tmp_path, capsys, monkeypatch):
    """Its config tells, before its weights are read."""
    monkeypatch.setattr("models.load", None)  # not called
    given = changed(config, method="var", out_dir=str(tmp_path / "run"))
    assert "no sink dimensions are known for" in sentence_of(given, capsys)
    output = sentence_of(changed(given, var_dimensions=(3, 14)), capsys)
    assert "tau is 20, which no token can pass: |RMSNorm(x)| is at most 11.3 in a model 128 wide" in output
    assert "sink dimension 999 does not exist" in sentence_of(
        changed(given, var_dimensions=(999,), var_threshold=5.0), capsys
    )
    (tmp_path / "sinks.json").write_text("{}")
    output = sentence_of(changed(given, sink_file=str(tmp_path / "sinks.json")), capsys)
    assert "sinks.json is not a file of sink dimensions" in output
    gaze = {"image": "blink-0", "units": "fractions", "fixations": [[0.1, 0.1]]}
    (tmp_path / "gaze.jsonl").write_text(json.dumps(gaze))
    given = changed(given, method="gaussian", scanpaths=str(tmp_path / "gaze.jsonl"))
    assert "target-layer 99 does not exist; the model has layers 0 to" in sentence_of(
        changed(given, target_layer=(99,)), capsys
    )
    assert not (tmp_path / "run").exists()
