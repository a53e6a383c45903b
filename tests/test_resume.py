"""Runs that continue: results are stored one by one, and the files equal those of an uninterrupted run."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from analysis.processes import lock
from analysis.resume import Output, Parts, Result, Run, SampleOutput, input_hashes, named_files
from data.errors import SampleError
from data.folders import Source


class Sample(NamedTuple):
    name: str
    path: Path


class Pair(NamedTuple):
    low: np.ndarray
    label: str


@dataclass(frozen=True)
class Values:
    pairs: dict[str, Pair]
    share: float


@dataclass(frozen=True)
class Config:
    output: SampleOutput = SampleOutput()
    factor: float = 2.0
    scanpaths: str = ""


class Stopped(Exception):
    """Stands for a killed process."""


@pytest.fixture
def samples(tmp_path):
    """Five samples whose files hold their values; the fourth cannot be measured."""
    made = [Sample(f"s{number}", tmp_path / f"{number}.txt") for number in range(5)]
    for number, sample in enumerate(made):
        sample.path.write_text("bad" if number == 3 else str(number / 3))
    return made


def value_of(sample, factor):
    text = sample.path.read_text()
    if text == "bad":
        raise SampleError("no number", f"{sample.path} holds no number")
    return np.float64(text) * factor


def run(folder, samples, stop_at=None, size=1, **settings):
    """A script in small: stores a value per sample and reports the mean. Returns (samples that were measured, finished
    before)."""
    output = SampleOutput(out_dir=str(folder), retry_failed=settings.pop("retry_failed", False))
    config, measured = Config(output, **settings), []

    def measure(batch):
        measured.extend(sample.name for sample in batch)
        if any(sample.name == stop_at for sample in batch):
            raise Stopped
        values = [value_of(sample, config.factor) for sample in batch]
        return [Result({"value": value, "path": sample.path}, Values({"a": Pair(np.array([value, 1]), "x")}, value))
                for value, sample in zip(values, batch, strict=True)]  # fmt: skip

    with Run.of(config) as run:
        if run.claim("tiny", samples, data=Source("here", 5, 5).facts()):
            return measured, True
        run.start(("value", "path"), model={"revision": None, "dtype": "float32", "family": "x"})
        run.measure_batches(samples, measure, size, [("u", "no image")])
        values = [part.values["share"] for part in run.results()]
        run.finish({"mean": float(np.mean(values)) if values else None})
    return measured, False


def files(folder):
    """Contents of all files but settings.json, which has dates."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != "settings.json"}  # fmt: skip


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("stop_at", ["s0", "s2", "s4"])
def test_a_continued_run_measures_the_rest_and_equals_an_uninterrupted_one(tmp_path, samples, stop_at, size):
    assert run(tmp_path / "whole", samples, size=size)[1] is False
    with pytest.raises(Stopped):
        run(tmp_path / "cut", samples, stop_at, size)
    assert not (tmp_path / "cut" / "summary.json").exists()
    first = int(stop_at[1]) // size * size
    measured, _ = run(tmp_path / "cut", samples, size=size)
    assert set(measured) == {sample.name for sample in samples[first:]}
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert run(tmp_path / "cut", samples, size=size) == ([], True)


def test_the_table_holds_every_sample_in_order(tmp_path, samples):
    run(tmp_path / "run", samples)
    assert (tmp_path / "run" / "samples.csv").read_text().splitlines() == [
        "sample,value,path,skipped", "u,,,no image", f"s0,0.0,{samples[0].path},",
        f"s1,{2 / 3},{samples[1].path},", f"s2,{4 / 3},{samples[2].path},", "s3,,,no number",
        f"s4,{8 / 3},{samples[4].path},",
    ]  # fmt: skip
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["n"] == 4 and summary["skipped"] == {"no image": 1, "no number": 1}
    assert summary["mean"] == np.mean([0, 2 / 3, 4 / 3, 8 / 3])


def test_values_are_read_back_with_their_types(tmp_path):
    values = {"list": [Values({"q": Pair(np.arange(6, dtype=np.float32).reshape(2, 3), "é")}, float("nan"))],
              "none": None, "number": np.float32(0.5), "empty": np.empty((0, 2))}  # fmt: skip
    parts = Parts(tmp_path)
    parts.write(7, "blå", Result({"a": np.float32(0.25), "b": Path("x"), "c": None}, values, {"view": [1]}))
    part = parts.read(7)
    assert (part.index, part.name, part.skipped, part.view) == (7, "blå", "", {"view": [1]})
    assert part.row == {"a": 0.25, "b": "x", "c": None}
    [stored] = part.values["list"]
    assert stored["pairs"]["q"]["low"].dtype == np.float32 and stored["pairs"]["q"]["label"] == "é"
    np.testing.assert_array_equal(stored["pairs"]["q"]["low"], values["list"][0].pairs["q"].low)
    assert np.isnan(stored["share"]) and part.values["none"] is None and part.values["number"] == 0.5
    assert part.values["empty"].shape == (0, 2)
    assert parts.read(8) is None
    with pytest.raises(TypeError, match="keys"):
        parts.write(1, "a", Result({}, {(1, 2): 3}))


def test_failed_samples_are_measured_again_on_request(tmp_path, samples):
    run(tmp_path / "run", samples)
    samples[3].path.write_text("9")  # the data has changed: refused without and with the flag
    for retry in (False, True):
        with pytest.raises(ValueError, match="inputs changed: s3"):
            run(tmp_path / "run", samples, retry_failed=retry)
    samples[3].path.write_text("bad")
    with pytest.raises(Stopped):
        run(tmp_path / "run", samples, "s3", retry_failed=True)
    assert not (tmp_path / "run" / "summary.json").exists()  # it is unfinished again
    assert run(tmp_path / "run", samples, retry_failed=True) == (["s3"], False)
    assert run(tmp_path / "run", samples) == ([], True)


def test_other_settings_inputs_and_files_are_refused(tmp_path, samples):
    gaze = tmp_path / "gaze.jsonl"
    gaze.write_text("a")
    with pytest.raises(Stopped):
        run(tmp_path / "run", samples, "s2", scanpaths=str(gaze))
    before = files(tmp_path / "run")
    with pytest.raises(ValueError, match="--factor was 2.0 and is 3.0 now"):
        run(tmp_path / "run", samples, factor=3.0, scanpaths=str(gaze))
    with pytest.raises(ValueError, match="inputs changed: s4"):
        run(tmp_path / "run", samples[:4], scanpaths=str(gaze))
    gaze.write_text("b")
    with pytest.raises(ValueError, match="files changed: .*gaze.jsonl"):
        run(tmp_path / "run", samples, scanpaths=str(gaze))
    assert files(tmp_path / "run") == before


def test_a_folder_of_other_files_or_of_another_run_is_refused(tmp_path, samples):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "old.csv").write_text("precious")
    with pytest.raises(FileExistsError):
        run(tmp_path / "mine", samples)
    with lock(tmp_path / "busy"), pytest.raises(ValueError, match="another run"):
        run(tmp_path / "busy", samples)


def test_files_of_a_killed_start_do_not_block_the_next_one(tmp_path, samples):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (".lock", "partial-settings.json", "fingerprints.json"):
        (folder / name).write_text("{")
    run(folder, samples)
    assert (folder / "summary.json").is_file()


def test_another_model_is_refused(tmp_path, samples):
    run(tmp_path / "run", samples)
    (tmp_path / "run" / "summary.json").unlink()
    with Run.of(Config(SampleOutput(str(tmp_path / "run")))) as again:
        again.claim("tiny", samples)
        with pytest.raises(ValueError, match="dtype was 'float32', and now it is 'bfloat16'"):
            again.start((), model={"revision": None, "dtype": "bfloat16", "family": "x"})


def test_the_default_folder_depends_on_settings_and_data(tmp_path, samples, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def folder(config, inputs):
        with Run.of(config) as run:
            run.claim("owner/llava", inputs)
            return run.folder

    first = folder(Config(), samples)
    assert first.parent == Path("results/test_resume") and first.name.startswith("llava-")
    assert folder(Config(SampleOutput(retry_failed=True)), samples) == first
    assert folder(Config(factor=3.0), samples) != first != folder(Config(), samples[:2])


def test_inputs_count_by_their_content(tmp_path, samples):
    hashes = input_hashes([*samples, samples[0], {"a": samples[0].path}, Output("x"), np.arange(3)])
    assert list(hashes) == ["s0", "s1", "s2", "s3", "s4", "s0'", "6", "7", "8"]
    samples[1].path.write_text("1/3")
    changed = input_hashes(samples)
    assert [name for name in changed if changed[name] != hashes[name]] == ["s1"]
    assert named_files({"a": str(samples[0].path), "b": 3, "c": ["missing", str(samples[2].path)]}).keys() == {
        str(samples[0].path), str(samples[2].path)
    }  # fmt: skip
