"""POPE and CHAIR: the published layouts, the generated sets, every figure by hand, and runs over both."""

import json
import sys

import pytest

import compare_runs
import evaluate
from analysis import chair, yes_no
from analysis.judges import JUDGES, Verdict, check_golds
from data import pope, spatial_qa, twoshapes_pope
from tests.errors import refused
from tests.evaluation import run, summary
from tests.models import picture
from tests.runs import summary_of
from tests.settings import configure

# POPE's layout


def line(number, image="a.jpg", text="Is there a dog in the image?", label="yes"):
    return json.dumps({"question_id": number, "image": image, "text": text, "label": label}) + "\n"


@pytest.fixture
def published(tmp_path):
    """Two splits of one source, as published: JSON lines named .json, images in val2014."""
    folder = tmp_path / "pope" / "coco"
    folder.mkdir(parents=True)
    (tmp_path / "pope" / "val2014").mkdir()
    picture().save(tmp_path / "pope" / "val2014" / "a.jpg")
    (folder / "coco_pope_random.json").write_text(line(1) + line(2, label="no"))
    broken = line(1, label="No ") + "{" + "\n" + line(3, image="gone.jpg") + line(4, image="../../a.jpg")
    (folder / "coco_pope_adversarial.json").write_text(broken)
    return tmp_path


def test_published_files_are_read_split_by_split(published):
    questions, skipped = spatial_qa.read("pope", published)
    assert [(each.id, each.task, each.answer) for each in questions] == [
        ("random/1", "random", "yes"), ("random/2", "random", "no"), ("adversarial/1", "adversarial", "no"),
    ]  # fmt: skip
    assert questions[0].prompt == "Is there a dog in the image?" and questions[0].options == ()
    assert questions[0].images == ((published / "pope" / "val2014" / "a.jpg").resolve(),)
    assert [skip.reason for skip in skipped] == [
        "line is not valid JSON", "image missing", "image path leaves the data root",
    ]  # fmt: skip
    source = spatial_qa.source_of("pope", str(published), 2, 0, limit=2)
    assert str(source) == f"data: {published / 'pope'}, 2 of 6 samples (--limit 2)"


def test_sources_are_told_apart_and_doubles_refused(published):
    other = published / "pope" / "gqa"
    other.mkdir()
    (other / "gqa_pope_random.json").write_text(f"[{line(1)}]")
    assert list(pope.find(published)) == ["coco random", "coco adversarial", "gqa random"]
    assert {each.task for each in spatial_qa.read("pope", published)[0]} == set(pope.find(published))
    (other / "coco_pope_random.json").write_text(line(1))
    with refused("split-twice"):
        pope.find(published)


def test_without_files_one_sentence(tmp_path):
    with refused("no-pope"):
        spatial_qa.read("pope", tmp_path)
    with refused("data-root-needed"):
        spatial_qa.read("pope")


# Figures by hand


def record(gold, correct, parsed=True, task="random"):
    return {"gold": gold, "correct": correct, "parsed": parsed, "task": task, "options": [], "failed": None}


ROWS = [
    *[record("yes", True)] * 3, record("yes", False), record("yes", False, parsed=False),
    *[record("no", True)] * 4, record("no", False, task="popular"), record("no", False, parsed=False),
]  # fmt: skip


def test_precision_recall_f1_and_yes_ratio_by_hand():
    """Three hits, two misses (one unparsed), one false alarm, of 11 records."""
    scores = yes_no.score(ROWS)
    assert {name: figure["rate"] for name, figure in scores.items()} == pytest.approx(
        {"accuracy": 7 / 11, "precision": 3 / 4, "recall": 3 / 5, "f1": 2 / 3, "yes_ratio": 4 / 11}
    )
    assert [scores[name]["n"] for name in scores] == [11, 4, 5, 6, 11]
    z = 1.959963984540054
    centre, half = 3 / 6 + z**2 / 12, z * (0.25 / 6 + z**2 / 144) ** 0.5  # Wilson of 3 of 6
    low, high = ((centre + sign * half) / (1 + z**2 / 6) for sign in (-1, 1))
    assert (scores["f1"]["low"], scores["f1"]["high"]) == pytest.approx((2 * low / (1 + low), 2 * high / (1 + high)))


def test_yes_no_summaries_are_of_yes_no_sets_alone():
    assert list(yes_no.summarise(ROWS)["yes_no"]["tasks"]) == ["popular", "random"]
    assert yes_no.summarise([*ROWS, {**ROWS[0], "gold": "left"}]) == {}
    assert (
        yes_no.summarise(ROWS[:5]) == {} and yes_no.summarise([{**row, "options": ["yes", "no"]} for row in ROWS]) == {}
    )
    nobody = yes_no.score([record("yes", False), record("no", True)])
    assert nobody["precision"]["rate"] is None and nobody["recall"]["rate"] == 0
    assert "precision undefined" in yes_no.lines({"overall": nobody, "tasks": {}})[0]


def test_paired_differences_by_hand():
    """B finds one more object and raises one more false alarm."""
    b = [*ROWS[:3], record("yes", True), *ROWS[4:8], record("no", False), *ROWS[9:]]
    found = yes_no.compare(ROWS, b)
    changes = {name: (each["mean"], each["n"]) for name, each in found["difference"].items()}
    assert changes["recall"] == pytest.approx((1 / 5, 5)) and changes["yes_ratio"] == pytest.approx((2 / 11, 11))
    assert changes["false_positive_rate"] == pytest.approx((1 / 6, 6))
    assert found["b"]["recall"]["rate"] == pytest.approx(4 / 5)


@pytest.mark.parametrize(
    ("answer", "value"),
    [("Yes.", "yes"), ("No, there is not.", "no"), ("there is not a dog", "no"), ("A dog. No cat.", "yes"),
     ("nothing", "yes"), ("NO", "yes"), ("", "yes")],
)  # fmt: skip
def test_the_published_rule_of_pope(answer, value):
    assert JUDGES["pope"](answer, "yes") == Verdict(value == "yes", True, value)


# CHAIR


def test_objects_of_a_caption():
    """Once each, in order; the longest name wins; plural; no part of a word."""
    vocabulary = {"dog": ("puppy",), "hot dog": (), "cat": (), "bus": ()}
    found = chair.named_objects("Two cats and a Puppy, with hot dogs near buses; a category, and a dog.", vocabulary)
    assert found == ["cat", "dog", "hot dog", "bus"]
    assert chair.named_objects("a hot dog", vocabulary) == ["hot dog"] and chair.named_objects("", vocabulary) == []


def test_chair_by_hand():
    """Four captions: both right; one of two absent; nothing named; two absent."""
    captions = [
        (["a", "b"], ["a", "b"]), (["a", "c"], ["a", "b"]), ([], ["a"]), (["c", "d"], ["a"]),
    ]  # fmt: skip
    scores = chair.score(captions)
    assert scores["sentences"]["rate"] == 2 / 4 and scores["objects"]["rate"] == 3 / 6 and scores["objects"]["n"] == 6
    assert scores["recall"]["mean"] == pytest.approx((1 + 0.5 + 0 + 0) / 4)
    assert scores["objects"]["low"] < 1 / 3 and scores["objects"]["high"] > 2 / 3  # 1.5 of 3 captions, outwards
    empty = chair.score([([], ["a"])])
    assert empty["objects"]["rate"] is None and "(CHAIR_i, n = 0): undefined" in " ".join(chair.lines(empty))


def test_the_judge_of_captions():
    judge = JUDGES["chair"]
    assert judge("a red circle and a blue cross .", "blue cross, red circle") == Verdict(
        True, True, "red circle, blue cross"
    )
    assert judge("a red cross .", "blue cross, red circle") == Verdict(False, True, "red cross (absent)")
    assert judge("nothing .", "blue cross") == Verdict(False, False, "")
    with refused("judge-golds"):
        check_golds("chair", ["red circle", "left"])
    with refused("judge-golds"):
        check_golds("pope", ["yes", "A"])
    check_golds("choice", ["left"])


def test_published_captions_instances_and_synonyms(tmp_path, capsys):
    """Image 1 shows a dog and a cat, of which the caption names the dog and a car; image 9 is not listed."""
    instances = {
        "images": [{"id": 1}, {"id": 2}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}, {"id": 5, "name": "bus"}],
        "annotations": [{"image_id": 1, "category_id": 18}, {"image_id": 1, "category_id": 17}],
    }
    captions = [(1, "A puppy by a car."), (2, "Nothing at all"), (9, "a dog")]
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    (tmp_path / "synonyms.txt").write_text("dog, puppy\ncat\ncar, automobile\n\n")
    lines = [json.dumps({"image_id": image, "caption": text}) for image, text in captions]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines) + "\n")
    files = [tmp_path / name for name in ("captions.jsonl", "instances.json", "synonyms.txt")]
    assert chair.main(chair.Config(*files)) == 0
    said = capsys.readouterr().out
    assert "left out: 1 captions of images" in said and "absent object (CHAIR_s, n = 2): 0.500 [" in said
    assert "named objects (CHAIR_i, n = 2): 0.500 [" in said and "those present (n = 1): 0.500" in said
    for place, name in enumerate(("no file of captions", "no COCO instances", "holds no object")):
        wrong = list(files)
        wrong[place] = tmp_path / "wrong"
        wrong[place].write_text("" if place == 2 else '["a"]')
        assert chair.main(chair.Config(*wrong)) == 2 and name in capsys.readouterr().err
    assert chair.main(chair.Config(tmp_path / "none", *files[1:])) == 2


# Generated sets


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "set"
    twoshapes_pope.generate(folder, 4, seed=3)
    return folder


def test_generated_questions_are_true(made, tmp_path):
    """Against the captions' golds; adversarial objects bind a colour and a shape of the image, wrongly."""
    captions = [json.loads(each) for each in (made / "captions.jsonl").read_text().splitlines()]
    present = {each["image"].split("/")[-1]: set(each["answer"].split(", ")) for each in captions}
    questions, skipped = spatial_qa.read("pope", made)
    assert len(questions) == 3 * 4 * 4 and not skipped
    for question in questions:
        name = question.prompt.removeprefix("is there a ").removesuffix(" ?")
        objects = present[question.images[0].name]
        assert (name in objects) == (question.answer == "yes")
        if question.task == "adversarial" and question.answer == "no":
            colours, shapes = zip(*(each.split() for each in objects), strict=True)
            assert len(set(colours)) == 1 or (name.split()[0] in colours and name.split()[1] in shapes)
    popular = {each.prompt for each in questions if each.task == "popular" and each.answer == "no"}
    assert len(popular) <= 6  # the same few objects for most images
    twoshapes_pope.generate(tmp_path / "again", 4, seed=3)
    for path in sorted(made.rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(made)).read_bytes()
    with refused("count-or-seed"):
        twoshapes_pope.generate(tmp_path / "none", 0, seed=3)


def test_evaluation_and_comparison_of_pope(made, tmp_path, capsys):
    """The embedded model, and with the image hidden from all text, as pairs."""
    asked = configure(evaluate, dataset="pope", data_root=str(made), model="tiny-llava", max_new_tokens=4)
    plain = run(asked, tmp_path / "plain")
    assert len(plain) == 48
    scores = summary(tmp_path / "plain")["yes_no"]
    assert list(scores["tasks"]) == ["adversarial", "popular", "random"]
    assert scores["overall"]["accuracy"]["rate"] > 0.8 and scores["overall"]["recall"]["n"] == 24
    said = capsys.readouterr().out
    assert "adversarial: accuracy " in said and ", f1 " in said and ", yes ratio " in said
    blind = {"method": "knockout", "judge": "choice"}
    run(configure(evaluate, dataset="pope", data_root=str(made), model="tiny-llava", max_new_tokens=4, **blind),
        tmp_path / "blind")  # fmt: skip
    folders = str(tmp_path / "plain"), str(tmp_path / "blind")
    assert compare_runs.main(compare_runs.Config(*folders, output=compare_runs.Output(str(tmp_path / "both")))) == 0
    differences = summary_of(tmp_path / "both")["yes_no"]["difference"]
    assert differences["yes_ratio"]["n"] == 48 and "recall: difference " in capsys.readouterr().out


def test_evaluation_of_captions(made, tmp_path, capsys):
    asked = configure(
        evaluate, dataset=str(made / "captions.jsonl"), judge="chair", model="tiny-llava", max_new_tokens=16
    )
    found = run(asked, tmp_path / "run")
    scores = summary(tmp_path / "run")["chair"]["overall"]
    assert len(found) == 4 and scores["objects"]["n"] >= 7 and scores["recall"]["mean"] > 0.7
    assert "(CHAIR_s, n = 4)" in capsys.readouterr().out


def test_pope_runs_without_data(tmp_path, monkeypatch, capsys):
    """A fresh folder: the set is made once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "POPE_IMAGES", 2)
    asked = configure(evaluate, dataset="pope", limit=3, model="tiny-llava", max_new_tokens=4, out_dir="run")
    assert evaluate.main(asked) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"data: synthetic (made here: {evaluate.POPE_EXAMPLES}), 3 of 24 samples (--limit 3)"
    assert evaluate.main(asked) == 0 and sys.modules["evaluate"] is evaluate
