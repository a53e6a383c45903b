"""The two-shape reader on the published data and on generated ones, and what it does with broken samples."""

import filecmp
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import chisquare, ks_2samp

from data.folders import LINKED, following_links
from data.shapes import COLOURS, SHAPES, Shape, mask, to_pixels
from data.twoshapes import LAYOUT, generate, read, relation
from data.twoshapes_statistics import statistics, table
from tests.errors import refused

REPOSITORY = Path(__file__).parents[1]
REAL = REPOSITORY.parent / "shared" / "data"
SECOND = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}  # where the first lies from the second


@pytest.fixture(scope="module")
def real():
    if not (REAL / LAYOUT).is_dir():
        pytest.skip(f"the published samples are not at {REAL}")
    return read(REAL)


@pytest.fixture(scope="module")
def made_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("made") / "data"
    generate(root, 300, seed=0)
    return root


@pytest.fixture(scope="module")
def made(made_root):
    return read(made_root)


@pytest.fixture
def root(made_root, tmp_path):
    """A copy of two shards that a test may break."""
    shutil.copytree(made_root, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / LAYOUT / "shard2")
    return tmp_path / "data"


def worlds_of(root):
    return [world for i in range(3) for world in json.loads((root / LAYOUT / f"shard{i}/world_model.json").read_text())]


def shapes_of(world):
    """The entities of a world model as shapes to draw, read here on their own."""
    return [
        Shape(
            entity["color"]["name"], entity["shape"]["name"], entity["center"]["x"], entity["center"]["y"],
            entity["shape"]["size"]["x"], entity["shape"]["size"]["y"], entity["rotation"], entity["color"]["shade"],
        )
        for entity in world["entities"]
    ]  # fmt: skip


def check(samples, skipped):
    """What must hold of every good data set of 300."""
    assert skipped == [] and len(samples) == 300
    assert [sample.id for sample in samples] == [f"shard{i}/{j}" for i in range(3) for j in range(100)]
    for sample in samples:
        x, y = np.subtract(sample.first.centre, sample.second.centre)
        along, sideways = (x, y) if SECOND[sample.relation][0] else (y, x)
        assert along * sum(SECOND[sample.relation]) > 0, sample.id
        assert abs(along) > 2 * abs(sideways), sample.id
        words = f"a {sample.first.colour} {sample.first.shape} and a {sample.second.colour} {sample.second.shape} ."
        assert sample.question.startswith(f"there are two shapes {words} ")
        assert sample.question.endswith(" the spatial relation is")
        assert sample.caption == f"{sample.question} {sample.relation} ."


def test_the_published_samples_all_parse_and_their_relations_are_true(real):
    check(*real)


def test_the_published_captions_name_the_shapes_in_reverse_in_149_of_300(real):
    assert sum(sample.reversed for sample in real[0]) == 149


def test_entity_order_would_give_the_wrong_relation(real):
    """Why shapes are found by colour and shape: by order, 149 of the 300 relations would be false."""
    wrong = 0
    for sample, world in zip(real[0], worlds_of(REAL), strict=True):
        wrong += relation(*shapes_of(world)) != sample.relation
    assert wrong == 149


@pytest.mark.parametrize("source", ["real", "made"])
def test_boxes_and_centres_are_where_the_picture_shows_the_shapes(source, request):
    """Each edge of a box within 1.7 pixels of the outermost pixel that is at least half as bright as the shape."""
    compared = 0
    for sample in request.getfixturevalue(source)[0]:
        with Image.open(sample.image_path) as image:
            assert (image.mode, image.size) == ("RGB", (100, 100))
            brightness = np.asarray(image).max(axis=2)
        boxes = np.array([sample.first.box, sample.second.box])
        if (boxes[:, :2].max(axis=0) - boxes[:, 2:].min(axis=0)).max() < 6:
            continue  # the two shapes cannot be told apart by boxes alone
        for entity in (sample.first, sample.second):
            left, top, right, bottom = entity.box
            assert left < entity.centre[0] < right and top < entity.centre[1] < bottom
            low, high = np.maximum(np.round((left - 3, top - 3)).astype(int), 0), np.round((right + 3, bottom + 3))
            window = brightness[low[1] : int(high[1]), low[0] : int(high[0])]
            rows, columns = np.nonzero(window >= 0.5 * window.max())
            shown = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) + np.tile(low, 2)
            assert np.abs(shown - entity.box).max() < 1.7, (sample.id, shown, entity)
            compared += 1
    assert compared > 350


def test_generated_samples_pass_the_same_checks(made):
    check(*made)


def test_generated_worlds_have_the_published_fields_and_vocabulary(made_root, real):
    def form(value):
        if isinstance(value, dict):
            return {key: form(item) for key, item in value.items()}
        return [form(item) for item in value] if isinstance(value, list) else type(value)

    ours, theirs = worlds_of(made_root), worlds_of(REAL)
    assert {str(form(world)) for world in ours} == {str(form(world)) for world in theirs}
    constant = ("meta", "size", "color")
    assert [ours[0][key] for key in constant] == [theirs[0][key] for key in constant]
    for key in ("colour", "shape"):
        names = [{getattr(shape, key) for world in worlds for shape in shapes_of(world)} for worlds in (ours, theirs)]
        assert names[0] == names[1] == set(COLOURS if key == "colour" else SHAPES)
    for name in ("caption.txt", "agreement.txt", "world_model.json"):
        lines = [(base / LAYOUT / "shard0" / name).read_bytes().count(b"\n") for base in (made_root, REAL)]
        assert lines[0] == lines[1]


def test_generated_pairs_are_distributed_like_the_published_ones(made, real):
    ours, theirs = statistics(made[0]), statistics(real[0])
    for name in ("distance of centres", "offset on the major axis", "offset on the minor axis", "gap between boxes"):
        assert ks_2samp(ours[name], theirs[name]).pvalue > 0.01, name
    assert abs(ours["both of one colour"] / 300 - 0.24) < 0.07 and ours["both of one kind"] == 0
    assert 120 <= ours["caption names the shapes in reverse"] <= 180
    assert ours["offset on the minor axis"].max() <= 0.05 and ours["offset on the major axis"].min() >= 0.1
    for name in ("relation", "colour"):
        assert chisquare(list(ours[name].values())).pvalue > 0.001, name
    assert table(ours).count("\n") == len(ours) - 1


def test_generated_shapes_lie_inside_and_apart(made_root):
    for world in worlds_of(made_root):
        first, second = shapes_of(world)
        assert not (mask(first, 100) & mask(second, 100)).any()
        for shape in (first, second):
            assert min(shape.box()) >= 0 and max(shape.box()) <= 1


def test_the_same_seed_writes_the_same_bytes_and_count_changes_nothing(made_root, tmp_path):
    for name, count, seed in (("again", 110, 0), ("other", 5, 1)):
        generate(tmp_path / name, count, seed)
    again, other = tmp_path / "again" / LAYOUT, tmp_path / "other" / LAYOUT
    names = sorted(path.relative_to(again) for path in again.glob("shard0/*"))
    assert len(names) == 103
    assert filecmp.cmpfiles(again, made_root / LAYOUT, names, shallow=False) == (list(names), [], [])
    assert len(list(again.glob("shard1/*.png"))) == 10
    assert (other / "shard0/world-0.png").read_bytes() != (again / "shard0/world-0.png").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["again", "other"]  # nothing unfinished stays behind


def test_larger_pictures_show_the_same_shapes(made, tmp_path):
    """The same captions, and boxes that hold what is drawn: pixels whose middles are at most the fade of one away."""
    generate(tmp_path / "large", 12, seed=0, size=448)
    large, skipped = read(tmp_path / "large")
    assert not skipped
    for ours, usual in zip(large, made[0], strict=False):
        assert (ours.id, ours.caption) == (usual.id, usual.caption)
        with Image.open(ours.image_path) as picture:
            drawn = np.asarray(picture).any(-1)
        assert drawn.shape == (448, 448)
        boxes = np.array([entity.box for entity in (ours.first, ours.second)])
        rows, columns = np.nonzero(drawn)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(found, [*boxes[:, :2].min(0), *boxes[:, 2:].max(0)], atol=1.6)
    with refused("below-minimum"):
        generate(tmp_path / "small", 1, seed=0, size=20)


@pytest.mark.parametrize(
    ("first", "second", "word"),
    [((0.2, 0.5), (0.6, 0.52), "left"), ((0.6, 0.5), (0.2, 0.5), "right"), ((0.5, 0.1), (0.54, 0.3), "above"),
     ((0.5, 0.9), (0.5, 0.3), "below"), ((0.2, 0.5), (0.6, 0.56), None), ((0.5, 0.5), (0.58, 0.5), None)],
)  # fmt: skip
def test_relation_by_hand(first, second, word):
    shapes = [Shape("red", "circle", *centre, 0.1, 0.1) for centre in (first, second)]
    assert relation(*shapes) == word


def test_shards_and_worlds_are_in_numeric_order(tmp_path):
    generate(tmp_path / "data", 13, seed=3)
    folder = tmp_path / "data" / LAYOUT
    (folder / "shard0").rename(folder / "shard10")
    shutil.copytree(folder / "shard10", folder / "shard2")
    (folder / "shards.txt").write_text("not a shard")
    samples, skipped = read(tmp_path / "data")
    assert [sample.id for sample in samples] == [f"shard{i}/{j}" for i in (2, 10) for j in range(13)] and not skipped
    assert samples[10].image_path.name == "world-10.png"
    assert [sample.id for sample in read(tmp_path / "data", limit=2)[0]] == ["shard2/0", "shard2/1"]


def edit_line(path, index, line):
    lines = path.read_text().split("\n")
    lines[index] = line
    path.write_text("\n".join(lines))


def edit_world(shard, index, change):
    worlds = json.loads((shard / "world_model.json").read_text())
    change(worlds[index])
    (shard / "world_model.json").write_text(json.dumps(worlds))


def double(world):
    world["entities"].append(world["entities"][0])


def test_each_kind_of_broken_sample_is_skipped_by_its_reason(root):
    shard = root / LAYOUT / "shard0"
    (shard / "world-0.png").unlink()
    (shard / "world-1.png").write_bytes(b"")
    (shard / "world-2.png").write_bytes((shard / "world-2.png").read_bytes()[:200])
    edit_line(shard / "caption.txt", 3, "two shapes, somewhere")
    edit_line(shard / "caption.txt", 4, "")
    edit_line(shard / "agreement.txt", 5, "0.0")
    edit_world(shard, 6, lambda world: world["entities"].pop())
    edit_world(shard, 7, lambda world: world.pop("entities"))
    edit_world(shard, 8, lambda world: world["entities"][0]["center"].update(x=float("nan")))
    edit_world(shard, 9, double)
    (shard / "world-10.png").unlink()
    (shard / "world-10.png").symlink_to(root.parent / "secret.png")
    Image.new("RGB", (100, 100)).save(root.parent / "secret.png")
    Image.new("RGB", (100, 50)).save(shard / "world-11.png")
    (shard / "world-12.png").unlink()
    (shard / "world-12.png").mkdir()
    edit_world(shard, 13, lambda world: world["entities"][0]["center"].update(x="left"))
    samples, skipped = read(root)
    assert [(skip.id, skip.reason) for skip in skipped] == [
        ("shard0/0", "image missing"),
        ("shard0/1", "image cannot be decoded"),
        ("shard0/2", "image cannot be decoded"),
        ("shard0/3", "caption does not parse"),
        ("shard0/4", "caption does not parse"),
        ("shard0/5", "agreement is not 1.0"),
        ("shard0/6", "caption's shape is not in the world"),
        ("shard0/7", "world model lacks a field, or a number in it"),
        ("shard0/8", "world model holds numbers that are not finite"),
        ("shard0/9", "caption's shape is in the world twice"),
        ("shard0/10", LINKED),
        ("shard0/11", "image is not square"),
        ("shard0/12", "image missing"),
        ("shard0/13", "world model lacks a field, or a number in it"),
    ]
    assert len(samples) == 200 - len(skipped)
    assert samples[0].id == "shard0/14"


def test_files_of_different_length_lose_only_their_tail(root):
    shard = root / LAYOUT / "shard0"
    for name, lines in (("caption.txt", 98), ("agreement.txt", 99)):
        text = (shard / name).read_text().split("\n")[:lines]
        (shard / name).write_text("\n".join(text) + "\n")
    with open(root / LAYOUT / "shard1" / "caption.txt", "a") as captions:
        captions.write("one caption too many\n")
    with open(root / LAYOUT / "shard1" / "agreement.txt", "a") as agreements:
        agreements.write("1.0\n")
    samples, skipped = read(root)
    assert skipped == [("shard0/98", "no caption"), ("shard0/99", "no caption"), ("shard1/100", "no world model")]
    assert len(samples) == 198


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("world_model.json", b'[{"entities": [', "world_model.json is not valid JSON"),
        ("world_model.json", b'{"entities": []}', "world_model.json is not a list of worlds"),
        ("caption.txt", None, "caption.txt cannot be read"),
        ("agreement.txt", None, "agreement.txt cannot be read"),
    ],
)
def test_a_broken_shard_is_skipped_as_one(root, name, content, reason):
    path = root / LAYOUT / "shard0" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    samples, skipped = read(root)
    assert skipped == [("shard0", reason)] and Counter(sample.id.split("/")[0] for sample in samples) == {"shard1": 100}


def test_a_shard_outside_the_data_root_is_not_followed(root, tmp_path):
    (root / LAYOUT / "shard1").rename(tmp_path / "elsewhere")
    (root / LAYOUT / "shard1").symlink_to(tmp_path / "elsewhere")
    samples, skipped = read(root)
    assert skipped == [("shard1", LINKED)] and len(samples) == 100
    with following_links():
        samples, skipped = read(root)
    assert not skipped and len(samples) == 200


def test_bytes_that_are_no_text_cost_one_sample(root):
    path = root / LAYOUT / "shard0" / "caption.txt"
    path.write_bytes(b"\xff\xfe" + path.read_bytes())
    assert read(root)[1] == [("shard0/0", "caption does not parse")]


def test_a_missing_layout_says_what_was_looked_for_and_how_to_make_one(tmp_path):
    for missing in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError) as caught:
            read(missing)
        assert str(caught.value) == (
            f"no data in {missing}: looked for spatial_twoshapes/agreement/relational/shard0, shard1, ... below it;"
            f" make some with `python -m data.twoshapes --out-dir {missing}`"
        )


def test_generating_never_touches_a_folder_that_holds_something(tmp_path):
    (tmp_path / "old.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="exists and is not empty; pass a new --out-dir or remove it"):
        generate(tmp_path, 1, seed=0)
    with refused("below-minimum"):
        generate(tmp_path / "new", 0, seed=0)
    assert os.listdir(tmp_path) == ["old.txt"]
    (tmp_path / "empty").mkdir()
    generate(tmp_path / "empty", 1, seed=0)
    assert len(read(tmp_path / "empty")[0]) == 1


def test_an_interrupted_generation_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def interrupt(points, side):
        calls.append(1)
        if len(calls) > 40:
            raise KeyboardInterrupt
        return to_pixels(points, side)

    monkeypatch.setattr("data.shapes.to_pixels", interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "data", 50, seed=0)
    assert len(calls) > 40 and os.listdir(tmp_path) == []


def run(module, *flags):
    command = [sys.executable, "-m", module, *map(str, flags)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def test_the_commands_make_and_describe_a_data_set(tmp_path):
    done = run("data.twoshapes", "--out-dir", tmp_path / "data", "--count", 3, "--seed", 7)
    assert done.returncode == 0 and done.stdout == f"3 samples in {tmp_path / 'data' / LAYOUT}\n"
    described = run("data.twoshapes_statistics", "--data_root", tmp_path / "data")
    assert described.returncode == 0 and described.stdout.startswith("samples                             3\n")

    again = run("data.twoshapes", "--out_dir", tmp_path / "data")
    assert (again.returncode, again.stdout) == (2, "")
    sentence = "exists and is not empty; pass a new --out-dir or remove it"
    assert again.stderr == f"nothing written: {tmp_path / 'data'} {sentence}\n"
    nothing = run("data.twoshapes_statistics", "--data-root", tmp_path)
    assert nothing.returncode == 2 and nothing.stderr.startswith(f"no data in {tmp_path}: looked for")
