"""Gaze made over the shapes of a two-shapes set lies where it should."""

import filecmp
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data.scanpaths import read
from data.shapes import Shape, mask
from data.twoshapes import LAYOUT
from data.twoshapes import generate as generate_twoshapes
from data.twoshapes import read as read_twoshapes
from data.twoshapes_scanpaths import TARGETS, generate
from tests.errors import refused

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def twoshapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("made") / "data"
    generate_twoshapes(root, 120, seed=3)
    return root


@pytest.fixture
def root(twoshapes, tmp_path):
    """A root with the same pictures, to write scanpaths into."""
    (tmp_path / "root").mkdir()
    for path in twoshapes.rglob("*.*"):
        copy = tmp_path / "root" / path.relative_to(twoshapes)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.hardlink_to(path)
    return tmp_path / "root"


def covered(root, sample):
    """Pixels [row, col] of a sample's first and second shape, drawn anew from the world's own numbers."""
    shard, number = sample.id.split("/")
    world = json.loads((root / LAYOUT / shard / "world_model.json").read_text())[int(number)]
    shapes = [
        Shape(
            e["color"]["name"], e["shape"]["name"], *e["center"].values(), *e["shape"]["size"].values(), e["rotation"]
        )
        for e in world["entities"]
    ]
    shapes = shapes[::-1] if sample.reversed else shapes
    assert (shapes[0].colour, shapes[0].shape) == (sample.first.colour, sample.first.shape)
    return [mask(shape, 100) for shape in shapes]


def test_generated_gaze_lies_where_it_should(root):
    files, skipped = generate(root, count=6, seed=1)
    assert list(files) == list(TARGETS) and skipped == []
    found = {target: read(path, root) for target, path in files.items()}
    samples, _ = read_twoshapes(root)
    assert all(len(f.by_image) == len(samples) == 120 and not f.skipped for f in found.values())
    assert all(scanpath.synthetic for f in found.values() for scanpath in f.by_image.values())
    lines = [line for path in files.values() for line in path.read_text().splitlines()]
    assert all(json.loads(line)["synthetic"] is True for line in lines)
    for sample in samples:
        shapes = dict(zip(TARGETS, covered(root, sample), strict=False))
        for target in TARGETS:
            scanpath = found[target].of(sample.image_path)
            points = np.array([(f.x, f.y) for f in scanpath.fixations])
            assert len(points) == 6 and all(150 <= f.duration <= 400 for f in scanpath.fixations)
            times = [f.time for f in scanpath.fixations]
            assert times == sorted(set(times)) and times[0] == 0
            if target in shapes:
                assert all(shapes[target][int(y), int(x)] for x, y in points), (sample.id, target)
                assert not any(shapes[other][int(y), int(x)] for other in shapes if other != target for x, y in points)
            else:
                for left, top, right, bottom in (sample.first.box, sample.second.box):
                    x, y = points.T
                    assert ((x <= left - 9) | (x >= right + 9) | (y <= top - 9) | (y >= bottom + 9)).all(), sample.id


def test_jitter_is_the_spread(root):
    """In units of half the shorter side of the box; cut at the shape's edge, so less than asked for."""
    spreads = {}
    for jitter in (0.05, 0.3):
        files, _ = generate(root, count=10, seed=1, jitter=jitter)
        found = read(files["first"], root)
        offsets = []
        for sample in read_twoshapes(root)[0]:
            left, top, right, bottom = sample.first.box
            half = min(right - left, bottom - top) / 2
            offsets += [
                (np.array((f.x, f.y)) - sample.first.centre) / half for f in found.of(sample.image_path).fixations
            ]
        spreads[jitter] = np.std(offsets)
        for path in files.values():
            path.unlink()
    assert spreads[0.05] < 0.15 and 0.2 < spreads[0.3] < 0.35  # a pixel itself is about a tenth of a half


def test_same_seed_same_bytes_and_samples_stand_alone(root, tmp_path):
    files, _ = generate(root, count=3, seed=5)
    kept = {target: path.replace(tmp_path / path.name) for target, path in files.items()}
    again, _ = generate(root, count=3, seed=5)
    assert all(filecmp.cmp(again[target], kept[target], shallow=False) for target in TARGETS)
    assert len({path.read_bytes() for path in kept.values()}) == 3
    for path in again.values():
        path.unlink()
    (root / LAYOUT / "shard0" / "world-0.png").unlink()
    fewer, skipped = generate(root, count=3, seed=5)
    assert [skip.id for skip in skipped] == ["shard0/0"]
    assert fewer["first"].read_text().splitlines() == kept["first"].read_text().splitlines()[1:]
    for path in fewer.values():
        path.unlink()
    other, _ = generate(root, count=3, seed=6)
    assert not set(other["first"].read_text().splitlines()) & set(kept["first"].read_text().splitlines())
    paths = [path for file in kept.values() for path in read(file, root).by_image.values()]
    assert len({tuple(f.duration for f in path.fixations) for path in paths}) == len(paths) == 360


def test_no_room_is_named(root):
    files, skipped = generate(root, clearance=0.9)
    assert Counter(skip.reason for skip in skipped) == {"no room for gaze on the background": 120}
    assert files["background"].read_text() == "" and len(read(files["first"], root).by_image) == 120


@pytest.mark.parametrize(
    "settings, reason",
    [({"count": 0}, "below-minimum"), ({"jitter": 0}, "jitter"), ({"clearance": -1}, "clearance")],
)
def test_bad_settings_get_a_clear_sentence(root, settings, reason):
    with refused(reason):
        generate(root, **settings)
    assert list(root.glob("*.jsonl")) == []


def test_command(root):
    def run():
        command = [sys.executable, "-m", "data.scanpaths", "--data-root", root, "--count", "2"]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)

    done = run()
    assert done.returncode == 0, done.stderr
    written = [root / f"scanpaths-{target}.jsonl" for target in TARGETS]
    assert done.stdout.split() == list(map(str, written)) and all(path.is_file() for path in written)
    assert sorted(path.name for path in root.iterdir()) == [*sorted(p.name for p in written), "spatial_twoshapes"]
    again = run()
    assert again.returncode == 2 and "exists; move or remove it first" in again.stderr
