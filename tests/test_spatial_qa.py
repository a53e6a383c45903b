"""Spatial questions: the same from every kind of file, bad records named by reason, options found and rotated."""

import base64
import io
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import Table, parquet

from data.errors import SampleError
from data.folders import LINKED, following_links
from data.options import append, locate, parse, rewrite
from data.spatial_qa import Question, read
from data.spatial_qa_files import read_hub
from data.spatial_qa_records import meant
from data.twoshapes_qa import LAYOUTS, generate
from tests.errors import refused


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A generated data root of 50 questions in each layout."""
    root = tmp_path_factory.mktemp("made") / "data"
    generate(root, 50, seed=0)
    return root


def encoded(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def picture(seed: int = 0) -> dict:
    return {"bytes": encoded(seed), "path": None}


def blink(number: int, **changes) -> dict:
    """A record with the fields of the hub's BLINK."""
    return {
        "idx": f"val_Relation_{number}",
        "question": "where is it ?",
        "prompt": "Look. where is it ?\nSelect from the following choices.\n(A) left\n(B) right",
        "choices": ["left", "right"],
        "answer": "(B)",
        "sub_task": "Relation",
        "image_1": picture(number),
        "image_2": picture(number + 1),
        "image_3": None,
        "image_4": None,
    } | changes  # fmt: skip


def sat(number: int, **changes) -> dict:
    """A record with the fields of the hub's SAT."""
    return {
        "image_bytes": [picture(number), picture(number + 1)],
        "question": "where did it go ?",
        "answers": ["to the left", "to the right", "nowhere"],
        "correct_answer": "to the right",
        "question_type": "movement",
    } | changes


def published(number: int, **changes) -> dict:
    """A record as the published SAT-2 file has them."""
    asked = "<image>\nQuestion: Was it moved?\nAnswer Choices:\nA. did not move\nB. moved left\nAnswer with the text."
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": "moved left"}]
    return {"id": number, "image": f"images/{number}.png", "conversations": turns, "source": "SAT2"} | changes


def plain_json(value):
    """The same with bytes as base64, which JSON can hold."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, list):
        return [plain_json(item) for item in value]
    return {name: plain_json(item) for name, item in value.items()} if isinstance(value, dict) else value


def write(folder: Path, records: list[dict]) -> list[Path]:
    """The records as JSON, JSONL and parquet."""
    paths = [folder / f"set{suffix}" for suffix in (".json", ".jsonl", ".parquet")]
    paths[0].write_text(json.dumps(plain_json(records)))
    paths[1].write_text("\n".join(json.dumps(plain_json(record)) for record in records))
    parquet.write_table(Table.from_pylist(records), paths[2])
    return paths


def same_everywhere(paths: list[Path], root: Path | None) -> list[Question]:
    """The questions of several files, which must be the same, pictures included."""
    first, *others = [read(str(path), root) for path in paths]
    assert first[0] and first[1] == []
    for other in others:
        assert other == first
        for one, another in zip(first[0], other[0], strict=True):
            for left, right in zip(one.load_images(), another.load_images(), strict=True):
                assert np.array_equal(left, right)
    return first[0]


@pytest.mark.parametrize("record", [blink, sat], ids=["blink", "sat"])
def test_json_jsonl_and_parquet_with_pictures_inside(record, tmp_path):
    questions = same_everywhere(write(tmp_path, [record(number) for number in range(5)]), None)
    assert [len(question.images) for question in questions] == [2] * 5
    assert np.array_equal(questions[3].load_images()[1], Image.open(io.BytesIO(encoded(4))))


@pytest.mark.parametrize("name", LAYOUTS)
def test_json_jsonl_and_parquet_with_paths(name, made, tmp_path):
    records = [json.loads(line) for line in (made / LAYOUTS[name].file).read_text().splitlines()]
    questions = same_everywhere(write(tmp_path, records), made)
    assert questions == read(name, made)[0] and len(questions) == 50


@pytest.mark.parametrize("number", [0, 2], ids=["json", "parquet"])
def test_the_published_file_in_another_format(number, made, tmp_path):
    records = [json.loads(line) for line in (made / LAYOUTS["blink"].file).read_text().splitlines()]
    root = tmp_path / "root"
    shutil.copytree(made, root)
    other = write(tmp_path, records)[number]
    (root / LAYOUTS["blink"].file).unlink()
    other.rename((root / LAYOUTS["blink"].file).with_suffix(other.suffix))
    (found, skipped), (expected, _) = read("blink", root), read("blink", made)
    assert not skipped and [question.images[0].relative_to(root.resolve()) for question in found] == [
        question.images[0].relative_to(made.resolve()) for question in expected
    ]


def one(record: dict, folder: Path, root: Path | None = None) -> Question:
    path = folder / "one.json"
    path.write_text(json.dumps(plain_json([record])))
    [question], skipped = read(str(path), root)
    assert skipped == []
    return question


def test_blink_as_published_on_the_hub(tmp_path):
    assert one(blink(7), tmp_path) == Question(
        id="val_Relation_7",
        task="Relation",
        prompt="Look. where is it ?\nSelect from the following choices.\n(A) left\n(B) right",
        options=("left", "right"),
        answer="B",
        images=(encoded(7), encoded(8)),
    )
    bare = one(blink(7, prompt=None), tmp_path)
    assert bare.prompt == "where is it ?\n(A) left\n(B) right"


def test_sat_as_published_on_the_hub(tmp_path):
    found = one(sat(0), tmp_path)
    assert found.prompt == "where did it go ?\n(A) to the left\n(B) to the right\n(C) nowhere"
    assert (found.id, found.task, found.answer) == ("0", "movement", "B")
    by_index = one(sat(0, correct_answer=None, correct_answer_idx=2), tmp_path)
    assert by_index.answer == "C"
    assert one(sat(0, correct_answer_idx=1), tmp_path).answer == "B"


def test_conversations_as_published(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "3.png").write_bytes(encoded(0))
    found = one(published(3), tmp_path)
    assert found == Question(
        id="3",
        task="SAT2",
        prompt="Question: Was it moved?\nAnswer Choices:\nA. did not move\nB. moved left\nAnswer with the text.",
        options=("did not move", "moved left"),
        answer="B",
        images=(tmp_path.resolve() / "images" / "3.png",),
    )
    several = one(published(3, image=["images/3.png", "images/3.png"]), tmp_path)
    assert len(several.images) == 2
    turns = [{"from": "human", "value": "<image>\nwhat is it ?"}, {"from": "gpt", "value": "a cat"}]
    opened = one(published(3, conversations=turns), tmp_path)
    assert (opened.prompt, opened.options, opened.answer) == ("what is it ?", (), "a cat")


def test_pictures_below_spatial_reasoning_and_beside_the_file(tmp_path):
    for place in ("spatial_reasoning/images", "deep/down/images"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "spatial_reasoning/images/1.png").write_bytes(encoded(1))
    (tmp_path / "deep/down/images/2.png").write_bytes(encoded(2))
    path = tmp_path / "deep/down/set.json"
    path.write_text(json.dumps([published(1), published(2)]))
    found, skipped = read("deep/down/set.json", tmp_path)
    assert not skipped and [image.parent.parent.name for question in found for image in question.images] == [
        "spatial_reasoning", "down",
    ]  # fmt: skip


def test_data_urls(tmp_path):
    url = "data:image/png;base64," + base64.b64encode(encoded(5)).decode()
    assert one(published(1, image=url), tmp_path).images == (encoded(5),)


@pytest.mark.parametrize(
    ("gold", "options", "indices"),
    [
        ("(B)", ("left", "right"), {1}),
        ("B", ("left", "right"), {1}),
        ("b", ("left", "right"), {1}),
        ("right", ("left", "right"), {1}),
        ("Right.", ("left", "right"), {1}),
        ("B. right", ("left", "right"), {1}),
        ("(B) right", ("left", "right"), {1}),
        ("(B) left", ("left", "right"), set()),
        ("C", ("left", "right"), set()),
        ("hidden", ("left", "right"), set()),
        ("left", ("left", "left"), {0, 1}),
        ("(A)", ("B", "A"), {0}),
        ("A", ("B", "A"), {0, 1}),
        ("a", ("the", "a", "an"), {0, 1}),
    ],
)
def test_gold(gold, options, indices):
    assert meant(gold, options) == indices


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("where ? (A) left (B) right (C) up", ("left", "right", "up")),
        ("where ?\n(A) left\n(B) right", ("left", "right")),
        ("where ?\nA. left\nB. right\nAnswer with the text.", ("left", "right")),
        ("A. left\nB. right\nwhere ?", ("left", "right")),
        ("where ?\nA) left\nB) right", ("left", "right")),
        ("which ? (A) A is closer, (B) B is closer", ("A is closer", "B is closer")),
        ("Is point (A) above, or is point (B)?", ()),
        ("Is point (A) above (B)? (A) yes (B) no", ("yes", "no")),
        ("is it ?\n(A) yes\n(B) no\nIf so, where ?\n(A) left\n(B) right", ("left", "right")),
        ("where ?\n(A) left\n(C) right", ()),
        ("where ?\n(A) left", ()),
        ("where ?\n(A)\n(B)", ()),
        ("A red circle. B is blue.", ()),
        ("what is it ?", ()),
    ],
)
def test_options_in_a_prompt(prompt, options):
    assert parse(prompt) == options
    if options:
        assert [prompt[start:end] for start, end in locate(prompt, options)] == list(options)


def test_rewriting_options_touches_nothing_else():
    prompt = "is left right ?\n(A) left\n(B) right (very)\nleft, I say"
    swapped = rewrite(prompt, ("left", "right (very)"), ("right (very)", "left"))
    assert swapped == "is left right ?\n(A) right (very)\n(B) left\nleft, I say"
    assert append("q ?", ("x", "y")) == "q ?\n(A) x\n(B) y"
    with refused("options-not-in-prompt"):
        rewrite("where ?", ("left", "right"), ("right", "left"))


def test_rotations(tmp_path):
    question = one(sat(0), tmp_path)
    turned = [question.rotated(shift) for shift in range(3)]
    assert [each.answer for each in turned] == ["B", "A", "C"]
    assert turned[1].prompt == "where did it go ?\n(A) to the right\n(B) nowhere\n(C) to the left"
    assert {each.options["ABC".index(each.answer)] for each in turned} == {"to the right"}
    assert question.rotated(3) == question and question.rotated(4) == turned[1]
    assert turned[1].rotated(2) == question
    opened = Question("1", "", "what ?", (), "a cat", ())
    assert opened.rotated(1) is opened


BAD = {
    "record is not an object": ["a", "list"],
    "no question": blink(0, prompt=None, question=None),
    "no answer": blink(0, answer=None),
    "no image": blink(0, image_1=None, image_2=None),
    "a field is not text": blink(0, prompt=["where"]),
    "text is not valid Unicode": blink(0, prompt="half \ud800 of a pair"),
    "conversations are no list of turns": published(0, conversations="where ?"),
    "options are no list": blink(0, choices="left, right"),
    "an option is empty": blink(0, choices=["left", " "]),
    "only one option": blink(0, choices=["left"], answer="left"),
    "more than 26 options": blink(0, choices=[str(number) for number in range(27)]),
    "gold is no option": blink(0, answer="(C)"),
    "gold is more than one option": blink(0, choices=["left", "left"], answer="left"),
    "gold and its index disagree": sat(0, correct_answer_idx=0),
    "index of the gold is no option": sat(0, correct_answer=None, correct_answer_idx=3),
    "an image is neither path nor bytes": blink(0, image_1=7),
    "an image is not base64": sat(0, image_bytes=["not base64 at all"]),
    "image missing": published(0, image="nowhere.png"),
    "image path is no path": published(0, image="null\0byte.png"),
    "image path leaves the data root": published(0, image="../outside.png"),
}


def test_every_bad_record_has_its_reason_and_stops_nothing(tmp_path):
    lines = [json.dumps(plain_json(blink(100)))]
    lines += [json.dumps(plain_json(record)) for record in BAD.values()]
    lines += ["{broken", "", json.dumps(plain_json(blink(100, answer="(A)"))), "[" * 100_000, "\udcff"]
    lines += [json.dumps(plain_json(blink(101)))]
    (tmp_path / "set.jsonl").write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    questions, skipped = read(str(tmp_path / "set.jsonl"))
    assert [(question.id, question.answer) for question in questions] == [
        ("val_Relation_100", "B"), ("val_Relation_101", "B"),
    ]  # fmt: skip
    reasons = Counter(skip.reason for skip in skipped)
    assert reasons == {**dict.fromkeys(BAD, 1), "line is not valid JSON": 3, "duplicate id": 1}
    assert skipped[1].id == "line 3 ('val_Relation_0')" and skipped[-1].id == "line 26"


@pytest.mark.parametrize("escape", ["../outside.png", "sub/../../outside.png", "absolute", "link.png", "linked/x.png"])
def test_pictures_outside_the_root_are_refused(escape, tmp_path):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for path in (tmp_path / "outside.png", tmp_path / "elsewhere" / "x.png", root / "fine.png"):
        path.write_bytes(encoded(0))
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    name = str(root / "fine.png") if escape == "absolute" else escape
    (root / "set.json").write_text(json.dumps([published(0, image=name), published(1, image="fine.png")]))
    questions, skipped = read(str(root / "set.json"))
    assert [question.id for question in questions] == ["1"]
    by_link = escape.startswith("link")
    assert [skip.reason for skip in skipped] == [f"image {LINKED if by_link else 'path leaves the data root'}"]
    with following_links():
        assert [question.id for question in read(str(root / "set.json"))[0]] == (["0", "1"] if by_link else ["1"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "image empty"), (b"no picture", "not an image"), (encoded(0)[:60], "image truncated")],
)
def test_pictures_that_do_not_decode(content, reason):
    with pytest.raises(SampleError) as raised:
        Question("1", "", "what ?", (), "a cat", (content,)).load_images()
    assert raised.value.reason == reason and "inside a record" in str(raised.value)


def test_limit_and_root(tmp_path):
    records = [blink(0, answer="(Z)"), *(blink(number) for number in range(1, 9))]
    path = write(tmp_path, records)[1]
    questions, skipped = read(str(path), limit=3)
    assert [question.id[-1] for question in questions] == ["1", "2", "3"] and len(skipped) == 1
    assert len(read(str(path))[0]) == 8
    with refused("negative-limit"):
        read(str(path), limit=-1)
    with refused("data-root-needed"):
        read("sat2")


def test_a_folder_of_files(tmp_path):
    (tmp_path / "one").mkdir()
    for place, name in (("one", "part"), (".", "other")):
        parquet.write_table(Table.from_pylist([sat(0), sat(1)]), tmp_path / place / f"{name}.parquet")
    (tmp_path / "info.json").write_text('{"rows": 4}')
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    questions, skipped = read(str(tmp_path))
    assert [question.id for question in questions] == ["one/part/0", "one/part/1", "other/0", "other/1"]
    assert sorted(skipped) == [("info", "file is no list of records"), ("torn", "file is no list of records")]


@pytest.mark.parametrize(
    ("dataset", "sentence"),
    [
        ("nothing", "neither blink nor sat2, no file, no folder, and no hub id"),
        ("nothing.jsonl", "the file of questions nothing.jsonl does not exist"),
        ("broken.json", "is not valid JSON"),
        ("object.json", "holds no list of records"),
        ("torn.parquet", "is not a parquet file"),
        ("notes.txt", "is of no known kind; questions come as .jsonl, .json, .parquet"),
        ("empty", "holds no file of records"),
        ("blink", "make a set in this layout with `python -m data.twoshapes_qa"),
    ],
)
def test_data_sets_that_cannot_be_read(dataset, sentence, tmp_path):
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "object.json").write_text("{}")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        read(dataset, tmp_path)
    assert sentence in str(raised.value) and "\n" not in str(raised.value)


def test_wrapped_json(tmp_path):
    (tmp_path / "set.json").write_text(json.dumps({"data": [plain_json(sat(0))]}))
    assert len(read(str(tmp_path / "set.json"))[0]) == 1


@pytest.mark.slow
def test_hub_sets(tmp_path, monkeypatch):
    """`datasets` takes a folder for a hub id; offline, an unknown id gives one sentence."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    parquet.write_table(Table.from_pylist([sat(0), sat(1)]), tmp_path / "owner" / "name" / "test.parquet")
    monkeypatch.chdir(tmp_path)
    assert [record.id for record in read_hub("owner/name")] == ["default/0", "default/1"]
    with pytest.raises(ValueError, match="it has no split 'val', only test"):
        list(read_hub("owner/name:val"))
    with pytest.raises(ValueError, match="the data set no/such cannot be loaded from the hub"):
        read("no/such")
