"""Layouts of question records: options in prompts, columns and lists, images and their markers, tables of questions."""

import base64
import csv
import json
import sys

import pytest
from PIL import Image
from pyarrow import Table, parquet

import evaluate
from data.errors import SampleError
from data.options import locate, names_others, parse
from data.spatial_qa import Question, read
from data.spatial_qa_records import understand
from tests.errors import refused
from tests.evaluation import RUNNER, rows, summary
from tests.settings import configure
from tests.test_spatial_qa import blink, encoded, picture, plain_json

PROMPTS = {
    "where ?\nA.top left\nB.bottom right\nAnswer with the letter.": ("top left", "bottom right"),
    "where ? A) top left B) bottom right C) up": ("top left", "bottom right", "up"),
    "where ?\n(a) top left\n(b) bottom right": ("top left", "bottom right"),
    "where ? (a) left (b) right": ("left", "right"),
    "where ?\na. left\nb. right": ("left", "right"),
    "where ?\nA. top left\nB bottom right\nC. up": ("top left", "bottom right", "up"),
    "where ?\nA left\nB right\nC up": ("left", "right", "up"),
    "where ?\nOptions:\nA left\nB right": ("left", "right"),
    "在哪里？\nA、左上\nB、右下": ("左上", "右下"),
    "在哪里？A、左上B、右下": ("左上", "右下"),
    "在哪里？\nA．左上\nB．右下": ("左上", "右下"),
    "在哪里？\nＡ．左上\nＢ．右下": ("左上", "右下"),
    "在哪里？（Ａ）左上（Ｂ）右下": ("左上", "右下"),
    "where ?\n[A] left\n[B] right": ("left", "right"),
    "where ?\n<A> left\n<B> right": ("left", "right"),
    "where ?\nA: left\nB: right": ("left", "right"),
    "where ?\nA.) left\nB.) right": ("left", "right"),
    "where ? Options: A. left, B. right": ("left", "right"),
    "where ? Options: A: It is left. It sits., B: It is right.": ("It is left. It sits.", "It is right."),
    "where ?\nChoices:\n(A) left\n(B) right": ("left", "right"),
    "where ? Choices: A) left, B) right, or C) behind": ("left", "right", "behind"),
    "where ?\n- **A.** left\n- **B.** right": ("left", "right"),
    "where ?\nOption A: left\nOption B: right": ("left", "right"),
    "where ? A. left B. right\nC. up D. down": ("left", "right", "up", "down"),
    "where ? (A) left (B) right. Answer with the option's letter from the given choices directly.": ("left", "right"),
    "how much ?\nA.3.5\nB.4.5": ("3.5", "4.5"),
    "A dog is on the left. Where is the cat ?": (),
    "A dog is here.\nB is a letter.\nwhat ?": (),
    "Look. (a) shows a dog and (b) shows a cat. Which is bigger ?": (),
    "(a) is a dog, (b) is a cat. Which is bigger ?": (),
    "Who painted this, A. Smith or B. Jones ?": (),
    "Find the points A、B、C.": (),
    "Which vitamin is it, A or B ?": (),
    "Is it (A) left or (B) right ?": (),
    "Was it made in the U.S.A. B. Franklin ?": (),
    "where ?\n(A) left\n(B) right\n(D) up": ("left", "right"),
    "where ? (A) left (B) right (D) up": (),
}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_options_that_a_prompt_shows(prompt):
    options = PROMPTS[prompt]
    assert parse(prompt) == options
    if options:
        assert [prompt[start:end] for start, end in locate(prompt, options)] == list(options)


def test_more_letters_than_the_alphabet_has():
    lines = [f"{'ABCDEFGHIJKLMNOPQRSTUVWXYZA'[i]}. text {i}" for i in range(27)]
    assert len(parse("\n".join(lines[:26]))) == 26
    assert len(parse(" ".join(lines))) in (0, 26) and len(parse("\n".join(lines))) == 26


def calls(**changes):
    """What is understood of a record with one encoded picture."""
    fields = {"question": "where is it ?", "image": {"bytes": b"1", "path": None}, **changes}
    return understand({name: value for name, value in fields.items() if value is not ...}, None, None)


NAMES = {
    "mmbench": ("A", "B", "C"),
    "seed-bench": ("choice_a", "choice_b", "choice_c"),
    "choice_A": ("choice_A", "choice_B", "choice_C"),
    "choiceA": ("choiceA", "choiceB", "choiceC"),
    "option_a": ("option_a", "option_b", "option_c"),
    "option A": ("option A", "option B", "option C"),
    "option1": ("option1", "option2", "option3"),
    "option_0": ("option_0", "option_1", "option_2"),
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_a_column_for_each_option(names):
    found = calls(**dict(zip(names, ("left", "right", "up"), strict=True)), answer="B")
    assert (found.options, found.answer) == (("left", "right", "up"), "B")
    assert found.prompt == "where is it ?\n(A) left\n(B) right\n(C) up"
    for empty in (None, float("nan"), "nan", " "):
        found = calls(**dict(zip(names, ("left", "right", empty), strict=True)), answer="right")
        assert (found.options, found.answer) == (("left", "right"), "B")
        with refused("an option is empty", SampleError):
            calls(**dict(zip(names, ("left", empty, "up"), strict=True)), answer="A")
    with refused("gold is a letter and no options are known", SampleError):
        calls(**dict.fromkeys(names), answer="B")


def test_columns_that_are_no_options():
    assert calls(X=3, Y=4, answer="a cat").options == ()
    assert calls(A="left", B="right", X=3, answer="A").options == ("left", "right")
    letters = "ABCDEFGHIJKL"
    assert calls(**{letter: f"text {letter}" for letter in letters}, answer="L").options[-1] == "text L"
    with refused("options are stated twice and differ", SampleError):
        calls(A="left", B="right", choices=["up", "down"], answer="A")
    assert calls(A="left", B="right", choices=["left", "right"], answer="A").options == ("left", "right")


@pytest.mark.parametrize(
    "stated",
    [
        "['left', 'it\\'s right']",
        '["left", "it\'s right"]',
        "('left', \"it's right\")",
        {"A": "left", "B": "it's right", "C": None},
        '{"A": "left", "B": "it\'s right"}',
        "A. left\nB. it's right",
        ["A. left", "B. it's right"],
    ],
)
def test_lists_of_options_as_data_sets_write_them(stated):
    found = calls(options=stated, answer="B")
    assert (found.options, found.answer) == (("left", "it's right"), "B")


@pytest.mark.parametrize("stated", ["left, right", "[left, right", "__import__('os').getcwd()", "[" * 9999, 7])
def test_texts_that_are_no_list_of_options(stated):
    with refused("options are no list", SampleError):
        calls(options=stated, answer="A")


GOLDS = {
    "gold is a letter and no options are known": ("A", "(B)", "C.", "d", "A, C"),
    "no answer": (None, float("nan"), "nan", "NaN", ""),
}


@pytest.mark.parametrize(("reason", "gold"), [(reason, gold) for reason in GOLDS for gold in GOLDS[reason]])
def test_golds_that_cannot_be_compared(reason, gold):
    with refused(reason, SampleError):
        calls(answer=gold)


def test_golds_that_count():
    with refused("gold is an index and no options are known", SampleError):
        calls(correct_answer_idx=1)
    with refused("gold is the number of a line and no lettered options are known", SampleError):
        calls(question="where ?\n1. left\n2. right", answer="2")
    with refused("gold is a number that is no option's text", SampleError):
        calls(choices=["left", "right"], answer=1)
    with refused("gold is a number that may be a text or an index", SampleError):
        calls(choices=["1", "2", "3"], answer=1)
    assert calls(choices=["1", "2", "3"], answer="1").answer == "A"
    assert calls(choices=["left", "right"], correct_choice_idx=1).answer == "B"
    assert calls(choices=["left", "right"], correct_answer_idx="1").answer == "B"
    assert calls(choices=["3", "1"], answer=1).answer == "B"
    assert calls(question="how many ?", answer=3).answer == "3" and calls(answer="left").answer == "left"


def test_a_hint_is_part_of_the_prompt():
    assert calls(hint="It was moved.", answer="left").prompt == "It was moved.\nwhere is it ?"
    assert calls(hint=float("nan"), context="nan", answer="left").prompt == "where is it ?"
    assert calls(context="where is", answer="left").prompt == "where is it ?"


def test_messages_with_roles_and_parts():
    parts = [
        {"type": "text", "text": "the first"},
        {"type": "image", "text": None},
        {"type": "text", "text": "or the second"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,Mg=="}},
    ]
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "the first"}]},
        {"role": "user", "content": "why ?"},
    ]
    parts[1]["image"] = {"bytes": b"1", "path": None}
    found = calls(question=..., image=..., messages=turns)
    assert found.prompt == "the first <image 1> or the second <image 2>" and found.images == (b"1", b"2")
    assert found.answer == "the first"
    assert found.notes == ("system turn is not shown", "later turns are not asked")
    del parts[1]["image"], parts[3]["image_url"]
    found = calls(question=..., image=..., conversations=turns, images=[{"bytes": b"3"}, {"bytes": b"4"}])
    assert found.prompt == "the first <image 1> or the second <image 2>" and found.images == (b"3", b"4")
    plain = [{"role": "user", "content": "<image>\nwhere ?"}, {"role": "assistant", "content": "left"}]
    assert calls(question=..., conversations=json.dumps(plain)).prompt == "where ?"
    assert calls(question=..., messages=plain[:1], answer="up").answer == "up"
    with refused("a turn holds something else than text and images", SampleError):
        calls(question=..., messages=[{"role": "user", "content": [{"type": "video"}]}], answer="up")


def numbered(*numbers, form="image_{}"):
    return {form.format(number): {"bytes": str(number).encode(), "path": None} for number in numbers}


def shown(question, answer="a cat", **fields):
    found = calls(question=question, image=..., answer=answer, **fields)
    return found.prompt, [image.decode() for image in found.images]


def test_any_number_of_images_in_the_order_of_their_numbers():
    numbers = [10, 2, 1, 7, 5, 3]
    assert shown("which ?", **numbered(*numbers)) == ("which ?", ["1", "2", "3", "5", "7", "10"])
    assert shown("which ?", **numbered(5)) == ("which ?", ["5"])
    assert shown("which ?", **numbered(1, 0, form="image{}")) == ("which ?", ["0", "1"])
    empty = {"image_3": None, "image_4": float("nan"), "image_5": {"bytes": None, "path": None}}
    assert shown("which ?", **numbered(1, 2), **empty) == ("which ?", ["1", "2"])
    with refused("two image fields have the same number", SampleError):
        shown("which ?", **numbered(1), **numbered(1, form="image{}"))


@pytest.mark.parametrize("form", ["<image {}>", "<image_{}>", "<image{}>", "<img{}>", "<|image_{}|>", "<IMAGE {}>"])
def test_images_in_the_order_of_their_markers(form):
    two, one = form.format(2), form.format(1)
    assert shown(f"is {two} left of {one} ?", **numbered(1, 2)) == ("is <image 1> left of <image 2> ?", ["2", "1"])
    assert shown(f"{one}\n{two}\nwhere ?", **numbered(1, 2)) == ("where ?", ["1", "2"])
    assert shown(f"{two}{one} where ?", **numbered(1, 2)) == ("where ?", ["2", "1"])


def test_markers_without_numbers_and_of_lists():
    images = [{"bytes": b"1"}, {"bytes": b"2"}]
    assert shown("one: <image> two: <image> ?", images=images) == ("one: <image 1> two: <image 2> ?", ["1", "2"])
    assert shown("<image>\nwhere ?", images=images) == ("where ?", ["1", "2"])
    assert shown("first <image 0>, then <image 1>", images=images)[0] == "first <image 1>, then <image 2>"
    assert shown("first <image 2>, then <image 5>", **numbered(2, 5))[0] == "first <image 1>, then <image 2>"
    # Named twice, or not at all: the images keep the order of the record, and the numbers follow it.
    assert shown("<image 2> or <image 1> like <image 2> ?", images=images) == (
        "<image 2> or <image 1> like <image 2> ?", ["1", "2"],
    )  # fmt: skip
    assert shown("what is <image 5> ?", **numbered(2, 5)) == ("what is <image 2> ?", ["2", "5"])


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("is <image 3> left of <image 1> ?", "an image marker names no image"),
        ("<image> <image> <image> ?", "an image marker names no image"),
        ("<image 0> is <image 1> ?", "an image marker names no image"),
        ("<image> is <image 2> ?", "image markers with and without numbers"),
        ("<image 1> <image 2>", "no question"),
    ],
)
def test_markers_that_cannot_be_followed(question, reason):
    with refused(reason, SampleError):
        shown(question, **numbered(1, 2))


def test_markers_inside_options_turn_with_them():
    fields = numbered(1, 2) | {"choices": ["<image 2>", "<image 1>"]}
    found = calls(question="which is a cat ?", image=..., answer="<image 1>", **fields)
    assert found.prompt == "which is a cat ?\n(A) <image 1>\n(B) <image 2>" and found.images == (b"2", b"1")
    assert found.options == ("<image 1>", "<image 2>") and found.answer == "B"
    question = Question(**found._asdict())
    turned = question.rotated(1)
    assert turned.prompt == "which is a cat ?\n(A) <image 2>\n(B) <image 1>" and turned.images == question.images
    assert turned.answer == "A"


def test_pictures_that_are_not_shown_are_noted():
    path = {"bytes": b"9", "path": None}
    found = calls(question="where ?", image=path, answer="left", mask=path, **numbered(1))
    assert found.images == (b"1",)
    assert found.notes == ("image in field 'image' is not shown", "image in field 'mask' is not shown")
    assert calls(image="a" * 0, images=[path], other_image=path, answer="left").notes == ()  # the same picture
    assert calls(answer="left", image_path="a.png", width=3).notes == ()  # its name
    assert calls(answer="left", depth_image="d.png").notes == ("image in field 'depth_image' is not shown",)


TABLE = [
    {"index": 0, "question": "where ?", "hint": "", "A": "left", "B": "right", "C": "", "answer": "B", "category": "x"},
    {"index": 1, "question": 'is it "up",\tor down ?', "hint": "It moved.", "A": "up", "B": "down", "C": "both",
     "answer": "C", "category": "y"},
    {"index": 2, "question": "what ?", "hint": "nan", "A": "", "B": "", "C": "", "answer": "a cat", "category": "x"},
]  # fmt: skip


def write_table(path, records, encoding="utf-8"):
    with path.open("w", newline="", encoding=encoding) as file:
        table = csv.DictWriter(file, list(records[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        table.writeheader()
        table.writerows(records)
    return str(path)


def test_the_same_questions_from_every_kind_of_file(tmp_path):
    """As VLMEvalKit and MMBench write them: base64, a column per option; the second row shows the first's picture."""
    pixels = base64.b64encode(encoded(3) * 1000).decode()  # a cell longer than csv's own limit of 131,072
    assert len(pixels) > 2 * 131_072
    records = [row | {"image": image} for row, image in zip(TABLE, (pixels, "0", pixels), strict=True)]
    tables = [
        write_table(tmp_path / name, records, coding) for name, coding in (("t.tsv", "utf-8-sig"), ("t.csv", "utf-8"))
    ]
    whole = [row | {"image": pixels} for row in TABLE]
    (tmp_path / "t.json").write_text(json.dumps(whole))
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, whole)))
    parquet.write_table(Table.from_pylist(whole), tmp_path / "t.parquet")
    found = [read(name) for name in (*tables, *(str(tmp_path / f"t.{kind}") for kind in ("json", "jsonl", "parquet")))]
    assert all(each == found[0] for each in found)
    questions, skipped = found[0]
    assert skipped == [] and [(each.id, each.task, each.answer) for each in questions] == [
        ("0", "x", "B"), ("1", "y", "C"), ("2", "x", "a cat"),
    ]  # fmt: skip
    assert questions[1].prompt == 'It moved.\nis it "up",\tor down ?\n(A) up\n(B) down\n(C) both'
    assert {each.images for each in questions} == {(encoded(3) * 1000,)} and questions[2].options == ()


def test_cells_of_a_table(tmp_path):
    """Lists as text, several pictures, paths, an index."""
    for name in ("one.png", "two.png"):
        (tmp_path / name).write_bytes(encoded(1))
    records = [
        {
            "question": "which ?",
            "image_path": "['two.png', 'one.png']",
            "choices": "['x', 'y']",
            "correct_answer_idx": "1",
        },
        {"question": "what ?", "image_path": "one.png", "choices": "nan", "correct_answer_idx": ""},
    ]
    [question], skipped = read(write_table(tmp_path / "t.csv", records))
    assert [image.name for image in question.images] == ["two.png", "one.png"]
    assert (question.options, question.answer, question.id) == (("x", "y"), "B", "0")
    assert skipped == [("line 3", "no answer")]


def test_broken_rows_of_a_table(tmp_path):
    path = tmp_path / "t.csv"
    lines = [b"question,answer,image", b"q ?,left,p.png", b"q ?,left", b'"q" ?,left,p.png', b"", b"\xff ?,left,p.png"]
    path.write_bytes(b"\n".join([*lines, b"r ?,up,p.png", b'"s ?,up', b",", b""]))
    (tmp_path / "p.png").write_bytes(encoded(1))
    questions, skipped = read(str(path))
    assert [(question.id, question.prompt) for question in questions] == [("0", "q ?"), ("4", "r ?")]
    assert skipped == [
        ("line 3", "row does not have one cell per column"), ("line 4", "row is not valid CSV"),
        ("line 6", "text is not valid Unicode"), ("lines 8 to 9", "row is not valid CSV"),
    ]  # fmt: skip
    for header in ("image,x,y\n", "", "question,question\n"):
        path.write_text(header)
        with refused("no-question-column"):
            read(str(path))


OTHERS = (
    "both A and B", "A or C", "neither A nor B", "A, B and C", "A & B", "(A) and (B)", "Both A and C are correct",
    "only A", "A only", "same as B", "option A is right", "A和B", "选项A", "All of the above", "None of the above.",
    "none of the above options", "all above", "all of the above are true", "以上都不是", "上述皆是",
)  # fmt: skip
OWN = (
    "above the table", "A is closer", "B", "point A", "none of these", "both", "one above the other", "vitamin A and E",
    "only A few", "3米以上", "all the dogs are above the cat", "the dog and the cat",
)  # fmt: skip


@pytest.mark.parametrize("text", (*OTHERS, *OWN))
def test_options_that_name_others(text):
    options = ("a dog", "a cat", text)
    assert names_others(options) == names_others((text, "a dog", "a cat")) == (text in OTHERS)
    prompt = "Which?\n" + "\n".join(f"({letter}) {option}" for letter, option in zip("ABC", options, strict=True))
    question = Question("1", "", prompt, options, "C", (b"",))
    assert question.can_rotate == (text in OWN)
    assert (question.rotated(1) == question) == (text in OTHERS)
    if text in OWN:
        assert question.rotated(1).answer == "B" and question.rotated(1).options[1] == text


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """Runs evaluate over records with a runner that answers the letter A; gives the rows, the summary and what it was
    asked."""
    monkeypatch.chdir(tmp_path)
    code = """
asked = []

def answer(prompt, images, settings):
    asked.append((prompt, len(images)))
    return "A"

def make():
    return Runner(answer)
"""
    (tmp_path / "runner_of_letters.py").write_text(RUNNER + code)

    def run(records, **flags):
        (tmp_path / "set.json").write_text(json.dumps(plain_json(records)))
        sys.modules.pop("runner_of_letters", None)
        config = configure(evaluate, dataset="set.json", runner="python:runner_of_letters:make", out_dir="run", **flags)
        assert evaluate.main(config) == 0
        return rows("run"), summary("run"), sys.modules["runner_of_letters"].asked

    yield run
    sys.modules.pop("runner_of_letters", None)


def test_questions_whose_options_name_others_are_asked_once(evaluated, capsys):
    others = ["left", "right", "both A and B"]
    records = [blink(0), blink(1, prompt=None, choices=others), blink(2, prompt=None, choices=others, answer="C")]
    found, figures, calls = evaluated(records, circular=True)
    assert [(row["id"][-1], row["rotation"]) for row in found] == [("0", 0), ("0", 1), ("1", 0), ("2", 0)]
    assert figures["asked_once"] == {"options name other options": 2} and figures["records"] == 3
    assert "asked once: 2 options name other options" in capsys.readouterr().err and len(calls) == 4


def test_a_set_whose_gold_is_always_the_same_letter_is_told(evaluated, capsys):
    records = [blink(number, answer="(A)") for number in range(3)]
    found, figures, _ = evaluated(records)
    [warning] = figures["warnings"]
    assert figures["overall"]["accuracy"] == 1.0 and warning in capsys.readouterr().err
    assert "the gold of all 3 multiple-choice questions is A, so a model that always answers A would score" in warning


@pytest.mark.parametrize(
    ("records", "flags"),
    [
        ([blink(0), blink(1, answer="(A)")], {}),
        ([blink(0)], {}),
        ([blink(0), blink(1)], {"circular": True}),
        ([blink(0, prompt="what ?", choices=None, answer=text) for text in ("a cat",)], {}),
    ],
    ids=["two letters", "one question", "rotated", "open"],
)
def test_other_sets_have_no_warning(records, flags, evaluated):
    _, figures, _ = evaluated(records, **flags)
    assert figures["warnings"] == [] and figures["notes"] == figures["asked_once"] == {}


def test_what_a_run_does_not_show_is_counted(evaluated, capsys):
    images = {"image_1": picture(1), "image_2": picture(2), "image_5": picture(5), "merged_image": picture(9)}
    records = [
        blink(0, prompt="<image 5> like <image 2> or <image 1> ?\n(A) left\n(B) right", **images),
        blink(1, prompt="<image 5> like <image 3> ?\n(A) left\n(B) right", **images),
    ]
    _, figures, calls = evaluated(records)
    assert figures["notes"] == {"image in field 'merged_image' is not shown": 1}
    assert "notes: 1 image in field 'merged_image' is not shown" in capsys.readouterr().err
    assert figures["skipped"] == {"an image marker names no image": 1}
    assert calls == [("image 1 like image 2 or image 3 ?\n(A) left\n(B) right", 3)]


def test_the_embedded_model_takes_images_in_place(tmp_path):
    """One colour and then the other between the words, through a whole run."""
    for colour in ("red", "blue"):
        Image.new("RGB", (96, 96), colour).save(tmp_path / f"{colour}.png")
    record = {
        "image_1": "red.png",
        "image_2": "blue.png",
        "question": "this <image 2> and this <image 1> ?",
        "answer": "x",
    }
    (tmp_path / "set.json").write_text(json.dumps([record]))
    config = configure(evaluate,
        dataset=str(tmp_path / "set.json"), device="cpu", max_new_tokens=2, out_dir=str(tmp_path / "r")
    )
    assert evaluate.main(config) == 0
    [row] = rows(tmp_path / "r")
    assert row["failed"] is None and row["prompt"] == "this <image 1> and this <image 2> ?"
