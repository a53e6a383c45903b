"""Scanpaths: three file formats, and the way to a model's cells."""

import json
import math
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import MissingFileError, SampleError
from data.folders import LINKED
from data.geometry import ImageGrid
from data.scanpaths import Fixation, Scanpath, from_display, line, read, to_cells
from tests.errors import refused

# 80 x 40 pixels, doubled, of which the middle square of 4 x 4 cells is seen: x from 20 to 60, cells of 10 pixels
CROPPED = ImageGrid(rows=4, cols=4, width=80, height=40, cell=20, resized=(160, 80), offset=(40, 0))
# 30 x 20 pixels, untouched, on 3 x 2 cells and padded on the right
PADDED = ImageGrid(rows=2, cols=4, width=30, height=20, cell=10, resized=(30, 20))
GRIDS = [CROPPED, PADDED]


def write(folder, name, content):
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def record(image="a.png", fixations=((1, 2),), **more):
    return {"image": image, "units": "pixels", "fixations": [list(f) for f in fixations]} | more


def path_of(units, *fixations):
    """A scanpath of (x, y) or (x, y, duration)."""
    return Scanpath(
        "a.png", units, tuple(Fixation(i, *f[:2], f[2] if f[2:] else None, None) for i, f in enumerate(fixations))
    )


def reasons(cells):
    return Counter(skip.reason for skip in cells.dropped)


# Files


def test_three_formats_say_the_same(tmp_path):
    fixations = [{"x": 3.5, "y": 4, "duration": 200, "time": 0}, {"x": 1, "y": 2, "duration": 90.5, "time": 230}]
    other = [{"x": 9, "y": 9, "duration": 1, "time": 2}]
    records = [{"image": "a.png", "fixations": fixations}, {"image": "cats/b.png", "fixations": other}]
    stated = [{**r, "units": "fractions"} for r in records]
    files = [
        write(tmp_path, "file.json", {"units": "fractions", "scanpaths": records}),
        write(tmp_path, "list.json", stated),
        write(tmp_path, "lines.jsonl", "\n".join(map(json.dumps, stated)) + "\n\n"),
        write(tmp_path, "table.csv", "image,x,y,duration,time,units\na.png,3.5,4,200,0,fractions\n"
              "cats/b.png,9,9,1,2,fractions\n\na.png, 1,2 ,90.5,230,fractions\n"),
        write(tmp_path, "marked.csv", "time,image,y,x,duration,units\r\n0,a.png,4,3.5,200,fractions\r\n"
              "230,a.png,2,1,90.5,fractions\r\n2,cats/b.png,9,9,1,fractions\r\n".encode("utf-8-sig")),
    ]  # fmt: skip
    first, *rest = (read(path) for path in files)
    assert first.by_image == {
        "a.png": Scanpath("a.png", "fractions", (Fixation(0, 3.5, 4, 200, 0), Fixation(1, 1, 2, 90.5, 230))),
        "cats/b.png": Scanpath("cats/b.png", "fractions", (Fixation(0, 9, 9, 1, 2),)),
    }
    assert all(other == first for other in rest) and first.skipped == []


def test_fixations_may_be_lists(tmp_path):
    path = write(tmp_path, "a.json", [record(fixations=[(1, 2), (3, 4, 50), (5, 6, None)])])
    assert [f[1:4] for f in read(path).by_image["a.png"].fixations] == [(1, 2, None), (3, 4, 50), (5, 6, None)]


def test_time_sorts(tmp_path):
    fixations = [(1, 1, 9, 300), (2, 2, 9, 100), (3, 3, 9), (4, 4, 9, 200), (5, 5, 9, 100)]
    scanpath = read(write(tmp_path, "a.json", [record(fixations=fixations)])).by_image["a.png"]
    assert [f.x for f in scanpath.fixations] == [2, 5, 4, 1, 3]
    assert [f.number for f in scanpath.fixations] == [1, 4, 3, 0, 2]
    assert [f.fault for f in scanpath.fixations] == [""] * 4 + ["no time, though others have one"]


@pytest.mark.parametrize(
    "stated, asked, expected",
    [("pixels", None, "pixels"), (None, "patches", "patches"), ("fractions", "fractions", "fractions")],
)
def test_units_from_file_or_flag(tmp_path, stated, asked, expected):
    for name, content in (
        ("a.jsonl", json.dumps(record(units=stated))),
        ("a.json", {"units": stated, "scanpaths": [record(units=None)]}),
        ("a.csv", f"image,x,y,units\na.png,1,2,{stated or ''}\n"),
    ):
        assert read(write(tmp_path, name, content), units=asked).by_image["a.png"].units == expected


BAD_LINES = {
    '{"image": "b.png", "fixations": [': "line is not valid JSON",
    "[" * 100_000: "line is not valid JSON",
    "17": "record is not an object",
    json.dumps({"units": "pixels", "fixations": []}): "no image name",
    json.dumps(record("  ")): "no image name",
    json.dumps(record(17)): "no image name",
    json.dumps({"image": "b.png", "units": "pixels"}): "no list of fixations",
    json.dumps(record("b.png", fixations=[])): "no fixation",
    json.dumps(record("b.png", fixations=[("left", 1), (2, None)])): "x is not a number",
    json.dumps(record("b.png") | {"fixations": {"x": 1}}): "no list of fixations",
    json.dumps(record("b.png", units=None)): "units are not stated",
    json.dumps(record("b.png", units="px")): "unknown units",
    json.dumps(record("b.png", units=["pixels"])): "unknown units",
    json.dumps(record("./a.png")): "image has a scanpath already",
    json.dumps(record("../b.png")): "path leaves the data root",
    json.dumps(record("/etc/passwd")): "path leaves the data root",
    json.dumps(record("linked/b.png")): LINKED,
    json.dumps(record(".")): "image name is no path",
    json.dumps(record("b\0.png")): "image name is no path",
    json.dumps(record("b\udc80.png")): "image name is no path",
}


def root_with_link(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "elsewhere")
    return tmp_path / "root"


@pytest.mark.parametrize("bad, reason", BAD_LINES.items(), ids=range(len(BAD_LINES)))
def test_bad_line_is_named_and_stops_nothing(tmp_path, bad, reason):
    path = write(root_with_link(tmp_path), "a.jsonl", f"{json.dumps(record())}\n{bad}\n{json.dumps(record('c.png'))}\n")
    found = read(path)
    assert list(found.by_image) == ["a.png", "c.png"]
    assert [skip.reason for skip in found.skipped] == [reason]
    assert found.skipped[0].id.startswith("line 2") and found.skipped[0].id.isprintable()


def test_skips_name_the_image(tmp_path):
    path = write(tmp_path, "a.json", {"scanpaths": [record(), record("b.png", units="feet")]})
    assert read(path).skipped == [("record 1 ('b.png')", "unknown units")]


def test_line_that_is_not_text(tmp_path):
    good = json.dumps(record()).encode()
    found = read(write(tmp_path, "a.jsonl", good.replace(b"a.png", b"\xff.png") + b"\n" + good))
    assert found.skipped == [("line 1", "line is not valid JSON")] and list(found.by_image) == ["a.png"]


def test_a_record_of_no_use_does_not_take_the_place_of_a_later_one(tmp_path):
    records = [record(fixations=[]), record(fixations=[(None, 1)]), record(fixations=[(3, 4)]), record()]
    found = read(write(tmp_path, "a.json", records))
    assert [f[1:3] for f in found.by_image["a.png"].fixations] == [(3, 4)]
    assert [skip.reason for skip in found.skipped] == ["no fixation", "no x or no y", "image has a scanpath already"]


def test_units_other_than_the_ones_asked_for(tmp_path):
    path = write(tmp_path, "a.jsonl", f"{json.dumps(record())}\n{json.dumps(record('b.png', units='patches'))}\n")
    found = read(path, units="patches")
    assert list(found.by_image) == ["b.png"]
    assert found.skipped == [("line 1 ('a.png')", "units are not the ones asked for")]


@pytest.mark.parametrize(
    "row, reason",
    [
        (b"a.png,1", "row does not have one cell per column"),
        (b"a.png,1,2,pixels,5", "row does not have one cell per column"),
        (b",1,2,pixels", "no image name"),
        (b"a.png,1,2,patches", "units change within an image"),
        (b'"a.png"x,1,2,pixels', "line is not valid CSV"),
        (b"a.png,1,\xff,pixels", "line is not UTF-8 text"),
    ],
)
def test_bad_row_is_named_and_stops_nothing(tmp_path, row, reason):
    path = write(tmp_path, "a.csv", b"image,x,y,units\na.png,1,2,pixels\n" + row + b"\na.png,3,4,pixels\n")
    found = read(path)
    assert [f.x for f in found.by_image["a.png"].fixations] == [1, 3]
    assert found.skipped == [("line 3", reason)]


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("a.json", "{", "not-json"),
        ("a.json", "[" * 100_000, "not-json"),
        ("a.json", "{}", "no-records"),
        ("a.json", "7", "no-records"),
        ("a.csv", "", "missing-columns"),
        ("a.csv", "image,x\n", "missing-columns"),
        ("a.csv", "image,x,y,x\n", "missing-columns"),
        ("a.csv", "image;x;y\n", "missing-columns"),
        ("a.txt", "", "unknown-format"),
    ],
)
def test_file_that_is_broken_as_a_whole(tmp_path, name, content, reason):
    with refused(reason):
        read(write(tmp_path, name, content))


def test_missing_file_and_unknown_units(tmp_path):
    with refused("no-such-file", MissingFileError):
        read(tmp_path / "gone.csv")
    with refused("unknown-units"):
        read(tmp_path / "gone.csv", units="feet")


def test_empty_files_hold_nothing(tmp_path):
    for name, content in (("a.json", "[]"), ("a.jsonl", ""), ("a.csv", "image,x,y\n")):
        found = read(write(tmp_path, name, content))
        assert found.by_image == {} and found.skipped == []


def test_scanpath_of_a_picture(tmp_path, monkeypatch):
    found = read(write(tmp_path, "a.jsonl", json.dumps(record("cats/a.png"))))
    assert found.of(tmp_path / "cats" / "a.png").image == "cats/a.png"
    monkeypatch.chdir(tmp_path / "..")
    assert found.of(f"{tmp_path.name}/cats/../cats/a.png").image == "cats/a.png"
    for missing in (tmp_path / "b.png", "/etc/passwd"):
        with pytest.raises(SampleError, match=r"no scanpath for .*; the file has 1, such as: cats/a.png") as error:
            found.of(missing)
        assert error.value.reason == "no scanpath"


def test_root_apart_from_the_file(tmp_path):
    path = write(tmp_path, "a.jsonl", json.dumps(record("a.png")))
    assert read(path, tmp_path / "pictures").of(tmp_path / "pictures" / "a.png").image == "a.png"


# Cells


def test_pixels_by_hand():
    cells = to_cells(path_of("pixels", (20, 0), (29.9, 9.9), (30, 10), (59, 39), (19.9, 0), (60, 0), (80, 0)), CROPPED)
    assert cells.points == [(0, 0), (0, 0), (1, 1), (3, 3)]
    assert reasons(cells) == {"cropped away": 2, "outside the image": 1}
    assert cells.dropped[0] == ("a.png fixation 4", "cropped away")


def test_fractions_by_hand():
    """The right and lower edge of the picture, 1, belong to its last pixels; those on the right are cropped away."""
    fractions = [(0.25, 0), (0.5, 0.5), (0.74, 0.99), (0.5, 1), (0.1, 0.5), (1, 0.5), (1.001, 0.5), (0, -0.1)]
    cells = to_cells(path_of("fractions", *fractions), CROPPED)
    assert cells.points == [(0, 0), (2, 2), (3, 3), (2, 3)]
    assert reasons(cells) == {"cropped away": 2, "outside the image": 2}
    assert to_cells(path_of("fractions", (1, 1), (1.0, 0)), PADDED).points == [(2, 1), (2, 0)]


def test_patches_by_hand():
    cells = to_cells(path_of("patches", (0, 0), (3, 1), (2.9, 0.5), (4, 0), (0, 2), (-0.1, 0)), PADDED)
    assert cells.points == [(0, 0), (3, 1), (2, 0)]
    assert reasons(cells) == {"outside the grid": 3}


@pytest.mark.parametrize(
    "fixation, reason",
    [
        ([math.nan, 1], "x is not finite"),
        ([1, math.inf], "y is not finite"),
        ([1, 10**400], "y is not finite"),
        ([None, 1], "no x or no y"),
        ({"x": 1}, "no x or no y"),
        (["left", 1], "x is not a number"),
        ([True, 1], "x is not a number"),
        ([[1], 1], "x is not a number"),
        ([1, 1, 5, "noon"], "time is not a number"),
        ([1], "not a fixation"),
        ([1, 2, 3, 4, 5], "not a fixation"),
        ("1,2", "not a fixation"),
    ],
)
def test_bad_fixations_are_dropped_by_reason(tmp_path, fixation, reason):
    raw = record() | {"fixations": [[1, 1], fixation, [11, 1]]}
    scanpath = read(write(tmp_path, "a.jsonl", json.dumps(raw))).by_image["a.png"]
    assert to_cells(scanpath, PADDED) == ([(0, 0), (1, 0)], [("a.png fixation 1", reason)])


def test_bad_cells_of_a_table(tmp_path):
    path = write(tmp_path, "a.csv", "image,x,y,duration\na.png,nan,1,2\na.png,,1,2\na.png,1,1,-2\na.png,1,1,\n")
    cells = to_cells(read(path, units="pixels").by_image["a.png"], PADDED)
    assert cells.points == [(0, 0), (0, 0)]
    assert [s.reason for s in cells.dropped] == ["x is not finite", "no x or no y"]


def test_a_bad_duration_matters_where_durations_count(tmp_path):
    fixations = [(1, 1, -5), (11, 1, math.nan), (21, 1, "long"), (1, 11, 9), (11, 11, None), (21, 11, 0), ("x", 1, -5)]
    scanpath = read(write(tmp_path, "a.json", [record(fixations=fixations)])).by_image["a.png"]
    plain = to_cells(scanpath, PADDED)
    assert plain.points == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
    assert [s.reason for s in plain.dropped] == ["x is not a number"]
    weighed = to_cells(scanpath, PADDED, by_duration=True)
    assert weighed.points == [(0, 1, 9)]
    assert [s.reason for s in weighed.dropped] == [
        "duration is negative", "duration is not finite", "duration is not a number", "no duration", "no duration",
        "x is not a number",
    ]  # fmt: skip


numbers = st.floats(-20, 100) | st.integers(-5, 85)


@given(st.lists(st.tuples(numbers, numbers)), st.sampled_from(GRIDS), st.booleans())
def test_counts_add_up_and_cells_are_the_grids(points, grid, trajectory):
    cells = to_cells(path_of("pixels", *points), grid)
    assert len(cells.points) + len(cells.dropped) == len(points)
    seen = [grid.cell_at(x, y) for x, y in points]
    assert cells.points == [(cell[1], cell[0]) for cell in seen if cell]
    assert all(isinstance(number, int) for point in cells.points for number in point)
    outside = sum(not (0 <= x < grid.width and 0 <= y < grid.height) for x, y in points)
    assert reasons(cells)["outside the image"] == outside
    assert reasons(cells)["cropped away"] == seen.count(None) - outside


@given(st.lists(st.tuples(st.integers(-8, 72), st.integers(-8, 72))), st.sampled_from([16, 64]))
def test_fractions_are_pixels(points, side):
    """But for 1, which is an outer edge and lies in the last pixel."""
    grid = ImageGrid(rows=4, cols=4, width=side, height=side, cell=4, resized=(16, 24), offset=(0, 4))
    fractions = path_of("fractions", *((x / side, y / side) for x, y in points))
    within = [[at - (at == side) for at in point] for point in points]
    assert to_cells(fractions, grid) == to_cells(path_of("pixels", *within), grid)


# Viewers, tasks, displays

SUBJECTS = "image,subject,x,y,duration,time,units\n" + "".join(
    f"a.png,{viewer},{x},{y},200,{time},pixels\n"
    for viewer, x, y, time in [("s01", 8, 8, 0), ("s02", 88, 88, 100), ("s01", 8, 88, 250), ("s02", 88, 8, 350)]
)
SQUARE = ImageGrid(12, 12, 96, 96, 8, (96, 96))


def test_viewers_of_a_table_are_those_of_records(tmp_path):
    """Two people's fixations take turns in time. One scanpath of theirs would cross the picture three times."""
    first, second = [(8, 8, 200, 0), (8, 88, 200, 250)], [(88, 88, 200, 100), (88, 8, 200, 350)]
    lines = [json.dumps(record(fixations=f, subject=s)) for s, f in (("s01", first), ("s02", second))]
    files = [write(tmp_path, "a.csv", SUBJECTS), write(tmp_path, "a.jsonl", "\n".join(lines))]
    for path in files:
        found = read(path)
        assert [f[1:5] for f in found.by_image["a.png"].fixations] == first
        assert [skip.reason for skip in found.skipped] == ["image has a scanpath already"]
        assert found.names["viewer"] == ("s01", "s02") and found.unread == ()
        assert len(to_cells(found.by_image["a.png"], SQUARE, trajectory=True).points) == 11
        other = read(path, viewer="s02")
        assert [f[1:5] for f in other.by_image["a.png"].fixations] == second
        assert [skip.reason for skip in other.skipped] == ["not the viewer asked for"]
    assert read(files[0]).by_image == read(files[1]).by_image


@pytest.mark.parametrize("column", ["viewer", "Subject", "participant_id", "observer", "subjectnum", "user id"])
def test_names_of_a_viewers_column(tmp_path, column):
    found = read(write(tmp_path, "a.csv", SUBJECTS.replace("subject", column)))
    assert found.names["viewer"] == ("s01", "s02") and len(found.by_image["a.png"].fixations) == 2


def test_tasks_conditions_and_trials_are_kept_apart(tmp_path):
    """A picture searched twice by one viewer: for a cup, then for a fork."""
    table = "image,subject,task,x,y,units\na.png,1,cup,1,1,pixels\na.png,1,fork,2,2,pixels\na.png,1,cup,3,3,pixels\n"
    path = write(tmp_path, "a.csv", table)
    assert [f.x for f in read(path).by_image["a.png"].fixations] == [1, 3]
    assert [f.x for f in read(path, task="fork").by_image["a.png"].fixations] == [2]
    assert read(path).names == {"viewer": ("1",), "task": ("cup", "fork"), "condition": ()}
    for column in ("condition", "trial", "TRIAL_INDEX", "session"):
        again = read(write(tmp_path, "b.csv", table.replace("task", column)))
        assert [f.x for f in again.by_image["a.png"].fixations] == [1, 3], column
    lines = [json.dumps(record(fixations=[(x, x)], task=t, condition=c)) for x, t, c in [(1, "cup", 0), (2, "fork", 1)]]
    path = write(tmp_path, "a.jsonl", "\n".join(lines))
    assert read(path, task="fork", condition="1").by_image["a.png"].fixations[0].x == 2
    assert Counter(skip.reason for skip in read(path, task="cup", condition="1").skipped) == {
        "not the task asked for": 1, "not the condition asked for": 1,
    }  # fmt: skip
    with refused("unknown-selection"):
        read(path, mood="good")


def test_fields_that_are_not_read_are_named(tmp_path):
    table = write(tmp_path, "a.csv", "image,x,y,units,pupil,viewer,\na.png,1,2,pixels,3,s,\n")
    assert read(table).unread == ("pupil",)
    lines = [json.dumps(record(fixations=[], RT=5)), json.dumps(record() | {"fixations": [{"x": 1, "y": 2, "dur": 3}]})]
    assert read(write(tmp_path, "a.jsonl", "\n".join(lines))).unread == ("RT", "dur")


def search(**more):
    """A record as COCO-Search18 has it."""
    arrays = {"X": [840.0, 1200.5, 100.0], "Y": [525.0, 300.0, 60.0], "T": [233, 180, 250], "length": 3}
    return {"name": "a.png", "subject": 1, "task": "chair", "condition": "present", "split": "train", **arrays, **more}


def test_letterboxed_display_by_hand(tmp_path):
    """On 1680 x 1050, a picture of 96 x 96 is 1050 x 1050 with bars of 315 to the left and right: a pixel is 10.9375.

    (840, 525) is the middle, pixel (48, 48), cell (6, 6); (1200.5, 300) is ((1200.5 - 315) / 10.9375, 27.43) =
    (80.96, 27.43), cell (10, 3); (100, 60) is on the left bar. A picture of 80 x 40 is 1680 x 840 with bars of 105
    above and below: a pixel is 21, the points are (40, 20), (57.17, 9.29) and (4.76, -2.14).
    """
    found = read(write(tmp_path, "a.json", [search()]), display=(1680, 1050))
    scanpath = found.by_image["a.png"]
    assert found.skipped == [] and found.unread == () and scanpath.units == "display"
    assert [f.duration for f in scanpath.fixations] == [233, 180, 250] and scanpath.fixations[0].time is None
    cells = to_cells(scanpath, SQUARE)
    assert cells.points == [(6, 6), (10, 3)]
    assert cells.dropped == [("a.png fixation 2", "beside the image on the display")]
    assert to_cells(scanpath, SQUARE, by_duration=True).points == [(6, 6, 233), (10, 3, 180)]
    wide = to_cells(scanpath, CROPPED)
    assert wide.points == [(2, 2), (3, 0)] and reasons(wide) == {"beside the image on the display": 1}
    assert from_display(1200.5, 300, (1680, 1050), (80, 40)) == pytest.approx((1200.5 / 21, 195 / 21))


def test_edges_of_a_display(tmp_path):
    """The picture's left edge is at 315 and its right one at 1365, which lies outside; the display ends at 1680."""
    points = {"X": [315, 314.9, 1364.9, 1365, 1680, -1, 315], "Y": [0, 0, 1049.9, 0, 0, 0, 1050]}
    scanpath = read(write(tmp_path, "a.json", [search(**points, T=None)]), display=(1680, 1050)).by_image["a.png"]
    cells = to_cells(scanpath, SQUARE)
    assert cells.points == [(0, 0), (11, 11)]
    assert reasons(cells) == {"beside the image on the display": 2, "outside the display": 3}


@pytest.mark.parametrize(
    "asked, more, outcome",
    [
        ({}, {}, "X and Y are pixels of a display of unknown size: give --display WIDTH HEIGHT (COCO-Search18: 1680"),
        ({"units": "pixels"}, {}, "X and Y are pixels of a display of unknown size"),
        ({"units": "fractions"}, {}, "fractions"),
        ({}, {"units": "pixels"}, "pixels"),
        ({}, {"units": "display"}, "the display's size is not stated"),
        ({}, {"display": [1680, 1050]}, "display"),
        ({"display": (1680, 1050)}, {"display": [800, 600]}, "display is not the one asked for"),
        ({"display": (1680, 1050)}, {"units": "pixels"}, "units are not the ones asked for"),
        ({}, {"display": [1680]}, "display is no width and height"),
        ({"display": (1680, 1050)}, {"X": [1]}, "X, Y and T differ in length"),
        ({"display": (1680, 1050)}, {"X": 7}, "X, Y or T is no list"),
        ({"display": (1680, 1050)}, {"Y": None}, "X, Y or T is no list"),
        ({"display": (1680, 1050)}, {"X": [], "Y": [], "T": []}, "no fixation"),
    ],
)
def test_units_of_arrays(tmp_path, asked, more, outcome):
    """Without the display's size its pixels are not taken for the picture's, even where --units says pixels."""
    found = read(write(tmp_path, "a.jsonl", json.dumps(search(**more))), **asked)
    if found.by_image:
        assert found.by_image["a.png"].units == outcome
    else:
        [skip] = found.skipped
        assert skip.reason.startswith(outcome) and skip.id == "line 1 ('a.png')"


def test_display_for_other_records_and_whole_files(tmp_path):
    own = [record(units=None, fixations=[(840, 525)])]
    for name, content, asked in (
        ("a.json", own, {"display": (1680, 1050)}), ("b.json", {"display": [1680, 1050], "scanpaths": own}, {}),
        ("c.csv", "image,x,y\na.png,840,525\n", {"display": (1680, 1050)}),
    ):  # fmt: skip
        assert to_cells(read(write(tmp_path, name, content), **asked).by_image["a.png"], SQUARE).points == [(6, 6)]
    path = write(tmp_path, "d.json", own)
    with refused("display-not-needed"):
        read(path, units="pixels", display=(1680, 1050))
    for size in ((0, 5), (5, math.inf), (-1, 1)):
        with refused("display-size"):
            read(path, display=size)


def test_a_picture_in_its_tasks_folder(tmp_path):
    """COCO-Search18 sorts its pictures by the category searched for; a picture beside the folders comes first."""
    path = write(tmp_path, "a.json", [search(), search(name="b.png")])
    (tmp_path / "chair").mkdir()
    for name in ("chair/a.png", "chair/b.png", "b.png"):
        (tmp_path / name).touch()
    assert list(read(path, display=(1680, 1050)).by_image) == ["chair/a.png", "b.png"]
    leaves = write(tmp_path, "b.json", [search(task="../..")])
    assert [skip.reason for skip in read(leaves, display=(1680, 1050)).skipped] == ["path leaves the data root"]


@pytest.mark.parametrize("mark, expected", [(True, True), ("true", True), (1, True), (False, False), (None, False)])
def test_synthetic_fixations_stay_marked(tmp_path, mark, expected):
    files = (
        ("a.jsonl", json.dumps(record(synthetic=mark))),
        ("a.json", {"synthetic": mark, "scanpaths": [record()]}),
        ("a.csv", f"image,x,y,units,synthetic\na.png,1,2,pixels,{'' if mark is None else mark}\n"),
    )
    for name, content in files:
        found = read(write(tmp_path, name, content))
        assert found.by_image["a.png"].synthetic is expected and found.unread == (), name
    old = read(write(tmp_path, "old.jsonl", json.dumps(record(on="first"))))
    assert old.by_image["a.png"].synthetic  # of an earlier version, which wrote no mark


# Trajectories and durations


def literal_line(start, end):
    """Cells whose open square the segment between two cell centres meets, by exact clipping, in order of entry."""
    found = []
    for x in range(min(start[0], end[0]), max(start[0], end[0]) + 1):
        for y in range(min(start[1], end[1]), max(start[1], end[1]) + 1):
            enter, leave, misses = Fraction(0), Fraction(1), False
            for cell, begin, stop in ((x, start[0], end[0]), (y, start[1], end[1])):
                step = stop - begin
                if step == 0:
                    misses |= cell != begin
                    continue
                times = sorted((Fraction(cell - begin) + half) / step for half in (Fraction(-1, 2), Fraction(1, 2)))
                enter, leave = max(enter, times[0]), min(leave, times[1])
            if not misses and enter < leave:
                found.append((enter, (x, y)))
    return [cell for _, cell in sorted(found)]


def test_line_by_hand():
    assert line((0, 0), (3, 1)) == [(1, 0), (2, 1)]  # through the corner between (1, 0) and (2, 1)
    assert line((0, 0), (2, 1)) == [(1, 0), (1, 1)]  # supercover: both cells of the middle column
    assert line((0, 0), (3, 3)) == [(1, 1), (2, 2)]
    assert line((2, 5), (2, 2)) == [(2, 4), (2, 3)]
    assert line((1, 1), (1, 1)) == line((1, 1), (2, 2)) == line((1, 1), (0, 1)) == []


@pytest.mark.parametrize("end", [(x, y) for x in range(-6, 7) for y in range(-5, 6) if (x, y) != (0, 0)])
def test_line_is_every_crossed_cell_once(end):
    cells = line((2, 3), (2 + end[0], 3 + end[1]))
    assert cells == literal_line((2, 3), (2 + end[0], 3 + end[1]))[1:-1]
    assert cells == line((2 + end[0], 3 + end[1]), (2, 3))[::-1]


def test_trajectory():
    scanpath = path_of("patches", (0, 0), (3, 1), (0, 1), (0, 1))
    cells = to_cells(scanpath, PADDED, trajectory=True)
    assert cells.points == [(0, 0), (1, 0), (2, 1), (3, 1), (2, 1), (1, 1), (0, 1), (0, 1)]


def test_dropped_fixation_interrupts_the_path():
    scanpath = path_of("patches", (0, 0), (9, 9), (3, 0), (1, 0))
    assert to_cells(scanpath, PADDED, trajectory=True).points == [(0, 0), (3, 0), (2, 0), (1, 0)]


def test_durations_become_weights():
    scanpath = path_of("patches", (0, 0, 200), (3, 0, 100), (1, 1), (1, 1, 0), (0, 1, 7))
    cells = to_cells(scanpath, PADDED, by_duration=True)
    assert cells.points == [(0, 0, 200), (3, 0, 100), (0, 1, 7)] and reasons(cells) == {"no duration": 2}
    between = to_cells(scanpath, PADDED, trajectory=True, by_duration=True)
    assert between.points == [(0, 0, 200), (1, 0, 100), (2, 0, 100), (3, 0, 100), (0, 1, 7)]
    assert to_cells(scanpath, PADDED).points == [(0, 0), (3, 0), (1, 1), (1, 1), (0, 1)]
    longer = to_cells(path_of("patches", (0, 0, 1), (2, 0, 5)), PADDED, trajectory=True, by_duration=True)
    assert longer.points == [(0, 0, 1), (1, 0, 1), (2, 0, 5)]
