"""Pictures with scanpaths as the gaze scripts gather them: questions with places for shapes, cells, and the control."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import gaze_samples, scanpaths, twoshapes
from data.errors import SampleError
from data.gaze_samples import (
    GazeSample,
    check_images,
    example_set,
    find_files,
    left_out,
    locate,
    moved,
    read_all,
    shuffled,
)
from data.geometry import ImageGrid
from data.samples import Sample, Samples, collect
from tests.errors import refused
from tests.runs import run_samples


def grid_of(width, height):
    """4 x 4 cells over the middle of a landscape picture, as a centre crop to a square gives."""
    side = min(width, height)
    return ImageGrid(4, 4, width, height, side // 4, (width, height), ((width - side) // 2, (height - side) // 2))


@pytest.fixture
def pictures(tmp_path):
    for name, size in (("a", (80, 40)), ("b", (40, 40)), ("c", (40, 40))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").touch()
    return tmp_path


def write(path, **fixations):
    path.write_text("".join(json.dumps({"image": f"{n}.png", "fixations": f}) + "\n" for n, f in fixations.items()))
    return path


def test_shapes_take_their_places_in_the_question(tmp_path):
    twoshapes.generate(tmp_path / "set", 3, seed=0)
    worlds, _ = twoshapes.read(tmp_path / "set")
    prompt = "is the {first} left of the {second} or of the {first} ?"
    samples, *_ = collect(Samples(data_root=str(tmp_path / "set"), prompt=prompt, limit=0))
    for sample, world in zip(samples, worlds, strict=True):
        first, second = (f"{shape.colour} {shape.shape}" for shape in (world.first, world.second))
        assert sample.prompt == f"is the {first} left of the {second} or of the {first} ?" and sample.gold == ""
        assert sample.shapes == tuple((shape.colour, shape.shape) for shape in (world.first, world.second))
    own, *_ = collect(Samples(data_root=str(tmp_path / "set"), prompt=None, limit=0))
    assert [(s.prompt, s.gold) for s in own] == [(w.question, w.relation) for w in worlds]


def test_every_picture_meets_every_scanpath_and_what_fails_is_named(pictures):
    """In a, 80 x 40, the middle 40 x 40 pixels are cells of 10: (25, 5) lies in cell (0, 0), (5, 5) is cut away."""
    one = write(pictures / "scanpaths-one.jsonl", a=[[25, 5], [5, 5], [58, 38]], b=[[9.9, 30]], broken=[[1, 1]])
    two = write(pictures / "two.jsonl", a=[[5, 5]], c=[[0, 0], [99, 0]])
    samples = [Sample(name, pictures / f"{name}.png", "?") for name in ("a", "b", "broken", "c")]
    paths = read_all([one, two], None, "pixels")
    found, skipped = locate(samples, paths, grid_of)
    assert [(s.name, s.gaze, s.points) for s in found] == [
        ("a one", "one", [(0, 0), (3, 3)]), ("b one", "one", [(0, 3)]), ("c two", "two", [(0, 0)]),
    ]  # fmt: skip
    assert skipped == [
        ("a two", "no fixation that the model can see"), ("b two", "no scanpath"), ("broken", "image empty"),
        ("c one", "no scanpath"),
    ]  # fmt: skip
    assert left_out(paths, found) == {"records": {}, "fixations": {"cropped away": 1, "outside the image": 1}}
    alone, _ = locate(samples[:1], {"one": paths["one"]}, grid_of, by_duration=False, trajectory=True)
    assert alone[0].name == "a" and alone[0].points == [(0, 0), (3, 3)]  # a lost fixation interrupts the way


def test_errors_of_a_grid(pictures):
    paths = read_all([write(pictures / "s.jsonl", a=[[25, 5]])], None, "pixels")
    samples = [Sample("a", pictures / "a.png", "?")]
    with refused("unknown-grid"):
        locate(samples, paths, lambda width, height: None)

    def too_small(width, height):
        raise SampleError("too small", "this picture vanishes")

    assert locate(samples, paths, too_small) == ([], [("a", "too small")])


def looked(number, name):
    """A sample of a picture of that name with one point, which is its own."""
    return GazeSample(str(number), Sample(name, Path(name), "?"), "", [(number % 4, number // 4)], grid_of(40, 40), [])


def test_shuffled_scanpaths_are_those_of_others_each_once():
    samples = [looked(number, f"{number}.png") for number in range(9)]
    others = shuffled(samples, np.random.default_rng(0))
    assert sorted(points[0] for points in others) == sorted(sample.points[0] for sample in samples)
    assert all(points != sample.points for points, sample in zip(others, samples, strict=True))
    assert others != shuffled(samples, np.random.default_rng(1))
    assert shuffled(samples[:1], np.random.default_rng(0)) == [None] and shuffled([], np.random.default_rng(0)) == []


@pytest.mark.parametrize("pictures", ["aab", "aabb", "aabbc", "abcabcabc", "aaaabbcd", "aaaaabc", "aa"])
def test_no_scanpath_meets_its_own_picture_given_twice(pictures):
    """Names of one picture differ in how they are written. More than half of one picture leave some without any."""
    samples = [looked(i, f"./{name}.png" if i % 2 else f"{name}.png") for i, name in enumerate(pictures)]
    of = {sample.points[0]: name for sample, name in zip(samples, pictures, strict=True)}
    for seed in range(20):
        others = shuffled(samples, np.random.default_rng(seed))
        used = [points[0] for points in others if points]
        assert len(set(used)) == len(used) == len(pictures) - max(0, 2 * pictures.count("a") - len(pictures))
        assert all(of[points[0]] != name for points, name in zip(others, pictures, strict=True) if points)


def test_points_keep_their_place_on_another_grid():
    """On 4 x 2 cells, (0, 0), (3, 1) are centred at (1/8, 1/4), (7/8, 3/4) of the grid: (0, 1), (6, 4) of 7 x 6."""
    wide, other = ImageGrid(2, 4, 4, 2, 1, (4, 2)), ImageGrid(6, 7, 7, 6, 1, (7, 6))
    assert moved(GazeSample("", None, "", [(0, 0), (3, 1, 0.5)], wide, []), other) == [(0, 1), (6, 4, 0.5)]
    assert moved(GazeSample("", None, "", [(0, 0), (3, 1)], wide, []), wide) == [(0, 0), (3, 1)]


def test_example_set_is_made_once_with_two_colours_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = example_set(5, seed=1)
    assert [path.name for path in find_files(root, ())] == [f"scanpaths-{t}.jsonl" for t in gaze_samples.TARGETS]
    samples, *_ = collect(Samples(data_root=root, prompt="?", limit=0))
    assert len(samples) == 5 and all(len({colour for colour, _ in sample.shapes}) == 2 for sample in samples)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / root).rglob("*")}
    assert example_set(5, seed=1) == root
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / root).rglob("*")} == before
    for path in find_files(root, ()):
        path.unlink()
    example_set(5, seed=1)
    assert scanpaths.read(find_files(root, ())[0]).by_image  # a set that was interrupted is completed


def test_files_that_are_not_there_or_share_a_name(tmp_path):
    with refused("no-scanpaths"):
        find_files(str(tmp_path), ())
    with refused("scanpaths-needed"):
        find_files(None, ())
    with refused("names-not-unique"):
        read_all([tmp_path / "x.csv", tmp_path / "y" / "scanpaths-x.jsonl"], None, None)


@pytest.mark.parametrize(
    "content, sentence",
    [
        ("", "gaze.jsonl holds no scanpath that can be used; --units says"),
        (
            '{"image": "a.png", "fixations": [[1, 1]]}\n' * 2 + "{",
            "used, 2 of 3 because: units are not stated; --units",
        ),
        ('{"image": "a.png", "units": "pixels", "fixations": []}', "used, 1 of 1 because: no fixation; --units"),
    ],
)
def test_a_file_without_a_usable_scanpath_is_refused(tmp_path, content, sentence):
    (tmp_path / "gaze.jsonl").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        read_all([tmp_path / "gaze.jsonl"], None, None)


def test_files_that_name_other_pictures_are_refused(pictures):
    samples = [Sample(name, pictures / f"{name}.png", "?") for name in "abc"]
    other, own = write(pictures / "other.jsonl", x=[[1, 1]]), write(pictures / "own.jsonl", c=[[1, 1]])
    with pytest.raises(ValueError, match=f"no scanpath for a.png; .*such as: x.png .names are paths below {pictures}"):
        check_images(samples, read_all([other], None, "pixels"))
    check_images(samples, read_all([other, own], None, "pixels"))
    check_images([], read_all([other], None, "pixels"))


def test_a_bad_sample_does_not_take_its_batch_along(tmp_path, capsys):
    samples = [Sample(str(number), None, "?") for number in range(7)]
    asked = []

    def measure(batch):
        asked.append([sample.name for sample in batch])
        if any(sample.name == "4" for sample in batch):
            raise SampleError("four", "it is four")
        return [{"value": int(sample.name) ** 2} for sample in batch]

    run = run_samples(tmp_path / "run", samples, measure, ("value",), size=3, unusable=[("x", "gone")])
    assert [part.row["value"] for part in run.results()] == [0, 1, 4, 9, 25, 36]
    assert run.skipped == {"gone": 1, "four": 1}
    assert asked == [["0", "1", "2"], ["3", "4", "5"], ["3"], ["4"], ["5"], ["6"]]
    assert "skipped 4: it is four" in capsys.readouterr().err
