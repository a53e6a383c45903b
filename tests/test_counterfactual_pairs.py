"""Pairs with and without an object in a corner: where it lies, what the control keeps, and what broken lines do."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.counterfactual_pairs import CORNERS, NOTE, Config, gather, generate, main, open_pair, question, read
from data.errors import SampleError
from data.folders import LINKED, following_links
from tests.errors import refused

ROOT = Path(__file__).parent.parent
COUNT = 12


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of pairs for each corner."""
    root = tmp_path_factory.mktemp("pairs")
    for corner in CORNERS:
        generate(root / corner, corner, COUNT, seed=3)
    return root


@pytest.fixture
def folder(made, tmp_path):
    """A copy that a test may break."""
    return Path(shutil.copytree(made / "topleft", tmp_path / "set"))


def lines(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def rewrite(folder, records):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize("size", [32, 96, 200])
@pytest.mark.parametrize("corner", CORNERS)
def test_the_subject_lies_in_its_cell_and_alone_is_missing_from_the_control(made, tmp_path, corner, size):
    """The pictures differ within the subject's box (a pixel of fading around it), and the box within its third."""
    generate(tmp_path / "set", corner, 4, seed=3, size=size)
    pairs, skipped = read(tmp_path / "set")
    assert len(pairs) == 4 and not skipped
    down, right = "bottom" in corner, "right" in corner
    for pair in pairs:
        full, control = (np.asarray(picture).astype(int) for picture in open_pair(pair))
        assert full.shape == control.shape == (size, size, 3) and pair.corner == corner
        rows, cols = np.nonzero(np.abs(full - control).max(-1))
        left, top, far, bottom = pair.subject_box
        assert left - 1.5 <= cols.min() <= left + 1 and far - 2 <= cols.max() <= far + 0.5
        assert top - 1.5 <= rows.min() <= top + 1 and bottom - 2 <= rows.max() <= bottom + 0.5
        for low, high, last in ((left, far, right), (top, bottom, down)):
            assert size * 2 / 3 * last <= low < high <= size / 3 + size * 2 / 3 * last
        for low, high, last in zip(pair.object_box[:2], pair.object_box[2:], (right, down), strict=True):
            assert size * 2 / 3 * (not last) <= low < high <= size / 3 + size * 2 / 3 * (not last)
        ground = np.median(control.reshape(-1, 3), axis=0)
        rows, cols = np.nonzero(np.abs(control - ground).max(-1) > 60)
        left, top, far, bottom = pair.object_box  # all that the control shows
        assert left - 1.5 <= cols.min() <= cols.max() <= far + 1 and top - 1.5 <= rows.min() <= rows.max() <= bottom + 1


def test_a_seed_means_the_same_pictures_and_the_same_shapes_in_every_corner(made, tmp_path):
    generate(tmp_path / "fewer", "topleft", 3, seed=3)
    generate(tmp_path / "other", "topleft", 3, seed=4)
    for path in sorted((tmp_path / "fewer" / "images").iterdir()):
        assert path.read_bytes() == (made / "topleft" / "images" / path.name).read_bytes()
        assert path.read_bytes() != (tmp_path / "other" / "images" / path.name).read_bytes()
    assert lines(tmp_path / "fewer") == lines(made / "topleft")[:3]
    names = [f"{which}_{of}" for which in ("subject", "object") for of in ("shape", "colour")]
    shapes = [[[record[name] for name in names] for record in lines(made / corner)] for corner in CORNERS]
    assert all(each == shapes[0] for each in shapes) and len({str(pair) for pair in shapes[0]}) > COUNT / 2
    shifts = [
        np.subtract(a.subject_box, b.subject_box)
        for a, b in zip(read(made / "topright")[0], read(made / "topleft")[0], strict=True)
    ]
    assert np.ptp(shifts, axis=0).max() < 0.05 and shifts[0][0] == pytest.approx(shifts[0][2], abs=0.05)


def test_what_a_line_says(made):
    record, pair = lines(made / "bottomleft")[0], read(made / "bottomleft")[0][0]
    assert record["caption"] == (
        f"is the {record['subject_colour']} {pair.subject} below and to the left of the {record['object_colour']} "
        f"{pair.object} ?"
    )
    assert pair.name == "pair_00000" and pair.full.name == "pair_00000_full.png" and pair.note == record["note"]
    assert pair.relation == "lower_left_of" and question("topright") == "is there anything in the top right corner ?"


def test_lines_as_published_are_read(folder):
    """Paths of another machine, whole-number boxes, no colours; a relation without a corner names none."""
    record = lines(folder)[0]
    published = {
        "id": "pair_00000", "caption": "Is the star to the left of the circle?", "relation": "left_of",
        "subject_shape": "star", "object_shape": "circle", "full_image": "elsewhere/images/pair_00000_full.png",
        "control_image": "elsewhere/images/pair_00000_control.png",
        "bounding_boxes": {"subject": [5, 7, 19, 21], "object": [45, 44, 58, 57]}, "note": "",
    }  # fmt: skip
    bare = {name: record[name] for name in record if "image" not in name and name != "note"} | {"id": "pair_00001"}
    rewrite(folder, [published, bare])
    pairs, skipped = read(folder)
    assert not skipped and [pair.corner for pair in pairs] == [None, "topleft"]
    assert pairs[0].full == folder.resolve() / "images" / "pair_00000_full.png"
    assert pairs[0].subject_box == (5, 7, 19, 21) and pairs[1].control.name == "pair_00001_control.png"


BROKEN = {
    "metadata lacks caption": lambda record: record.pop("caption"),
    "metadata lacks bounding_boxes": lambda record: record.pop("bounding_boxes"),
    "relation is no text": lambda record: record.update(relation=3),
    "subject_shape is no text": lambda record: record.update(subject_shape=" "),
    "control image missing": lambda record: record.update(control_image="images/none.png"),
    "full image missing": lambda record: record.update(full_image=7),
    "bounding box of the subject is not four numbers": lambda record: record["bounding_boxes"].update(subject=[1, 2]),
    "bounding box of the object is not four numbers": lambda record: record["bounding_boxes"].pop("object"),
    "bounding box of the object is not left, top, right, bottom": (
        lambda record: record["bounding_boxes"].update(object=[9, 2, 3, 4])
    ),
    "id was there before": lambda record: record.update(id="pair_00000"),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_a_broken_line_is_left_out_by_its_reason(folder, reason):
    records = lines(folder)
    BROKEN[reason](records[2])
    rewrite(folder, records)
    pairs, skipped = read(folder)
    assert len(pairs) == COUNT - 1 and [skip.reason for skip in skipped] == [reason]
    assert skipped[0].id == ("pair_00000" if "id" in reason.split() else "pair_00002")


def test_lines_that_are_no_records(folder):
    text = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text("{\n\n[1]\n" + text)
    pairs, skipped = read(folder)
    assert len(pairs) == COUNT
    assert skipped == [("line 1", "line is not valid JSON"), ("line 3", "line is not an object")]


def test_a_link_out_of_the_set_is_not_followed(folder, tmp_path):
    (tmp_path / "secret.png").write_bytes((folder / "images" / "pair_00001_full.png").read_bytes())
    (folder / "images" / "pair_00001_full.png").unlink()
    (folder / "images" / "pair_00001_full.png").symlink_to(tmp_path / "secret.png")
    assert read(folder)[1] == [("pair_00001", LINKED)]
    with following_links():
        assert not read(folder)[1]


def test_pictures_that_cannot_be_a_pair(folder):
    first, second, *_ = read(folder)[0]
    Image.new("RGB", (20, 30)).save(first.control)
    with refused("sizes differ", SampleError):
        open_pair(first)
    second.full.write_bytes(b"")
    with refused("image empty", SampleError):
        open_pair(second)


def test_the_example_set_is_made_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs, unusable, source = gather(None, 4)
    made = Path("data/generated/dataset_sample")
    before = (made / "metadata.jsonl").stat().st_mtime_ns
    assert len(pairs) == 4 and not unusable and len(gather(None, 0)[0]) == len(read(made)[0]) == 40
    assert (made / "metadata.jsonl").stat().st_mtime_ns == before and list(Path("data/generated").iterdir()) == [made]
    assert str(source) == f"data: synthetic (made here: {made}), 4 of 40 samples (--max-pairs 4)"


def test_published_pairs_are_used_where_they_lie(tmp_path, monkeypatch):
    """A set of an earlier version, without the marker, is known as synthetic by the notes of its lines."""
    monkeypatch.chdir(tmp_path)
    generate("data/dataset_sample", "topright", 3, seed=0)
    (tmp_path / "data/dataset_sample/images/pair_00002_full.png").unlink()
    pairs, unusable, source = gather(None, 0)
    assert [pair.corner for pair in pairs] == ["topright"] * 2 and len(unusable) == 1
    assert str(source) == "data: data/dataset_sample (synthetic), 2 of 3 samples (1 unusable)"
    (tmp_path / "data/dataset_sample/SYNTHETIC.txt").unlink()
    assert gather(None, 0)[2].synthetic and not (tmp_path / "data/generated").exists()
    table = tmp_path / "data/dataset_sample/metadata.jsonl"
    table.write_text(table.read_text().replace(NOTE, "rendered by others"))
    assert str(gather(None, 1)[2]) == "data: data/dataset_sample, 1 of 3 samples (--max-pairs 1, 1 unusable)"


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ({"corner": "middle"}, "corner 'middle' is unknown; choose topleft, topright, bottomleft, bottomright"),
        ({"count": 0}, "count is 0"),
        ({"seed": -1}, "seed -1"),
        ({"size": 20}, "size is 20 pixels; give at least 32"),
        ({"out_dir": ROOT / "tests"}, "exists and is not empty"),
    ],
)
def test_wrong_use_is_one_sentence_and_status_2(tmp_path, monkeypatch, capsys, flags, sentence):
    monkeypatch.chdir(tmp_path)
    assert main(Config(**flags)) == 2
    output = capsys.readouterr().err
    assert sentence in output and output.startswith("nothing written: ") and output.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_pairs_that_are_there_are_kept(tmp_path):
    """The same pairs, or the first of them, are status 0; others, more, or a set with an image missing are refused."""
    folder = tmp_path / "set"
    same = {"corner": "topright", "count": 3, "out_dir": folder}
    assert main(Config(**same)) == 0
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main(Config(**same)) == main(Config(**{**same, "count": 2})) == 0
    for change in ({"count": 4}, {"seed": 1}, {"corner": "topleft"}, {"size": 64}):
        assert main(Config(**{**same, **change})) == 2
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    (folder / "images" / "pair_00001_control.png").unlink()
    assert main(Config(**same)) == 2


def test_no_set_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="metadata.jsonl; make some with `python -m data.counterfactual_pairs"):
        read(tmp_path / "nowhere")


def test_as_a_command(tmp_path):
    command = [sys.executable, "-m", "data.counterfactual_pairs", "--count", "2", "--corner"]
    arguments = {"cwd": ROOT, "capture_output": True, "text": True}
    done = subprocess.run([*command, "topright", "--out_dir", str(tmp_path / "set"), "--size", "64"], **arguments)
    assert done.returncode == 0 and done.stdout == f"2 pairs in {tmp_path / 'set'}\n", done.stderr
    assert read(tmp_path / "set")[0][0].corner == "topright"
    assert subprocess.run([*command, "middle"], **arguments).returncode == 2
