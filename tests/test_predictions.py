"""The folder of an evaluation: torn lines, parts, refusals; what killed writers leave is what they wrote, whole."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest

import evaluate
from analysis.evaluation_table import figures_line, summarise_run
from analysis.predictions import PARTS, PREDICTIONS, SETTINGS, SUMMARY, Predictions, digest, encode, in_order, parse
from analysis.processes import Team, own_device, team
from analysis.results import OutputError

SETTINGS_A = {"--temperature": 0.0, "--model": "a", "--layers": (1, 2)}
MODEL = {"name": "a", "revision": None, "dtype": "float32", "family": "llava", "devices": ["cpu"]}


def line(number, **values):
    asked = {"id": f"q{number}", "task": "t", "prompt": "what ?", "gold": "yes", "options": [], "rotation": 0}
    verdict = {"value": "yes", "parsed": True, "correct": True, "failed": None}
    return asked | {"prediction": f"yes {number}"} | verdict | values


def opened(folder, settings=SETTINGS_A):
    """A folder that has begun."""
    predictions = Predictions(folder, settings)
    predictions.start({"limit": 3, "judge": "choice"}, MODEL)
    (folder / PARTS).mkdir()
    return predictions


def write(predictions, rank, records):
    part = predictions.part(rank)
    try:
        part.append(records)
    finally:
        part.close()


def test_what_is_written_is_read_again(tmp_path):
    predictions = opened(tmp_path / "new" / "run")
    assert predictions.answered() == {}
    odd = line(2, prediction='blå "or"\nright\u2028\x85 \udcff \x00')
    write(predictions, 0, [line(1), odd])
    write(predictions, 1, [line(1, rotation=1)])
    again = Predictions(tmp_path / "new" / "run", SETTINGS_A)
    assert again.answered() == {("q1", 0): line(1), ("q2", 0): odd, ("q1", 1): line(1, rotation=1)}
    settings = json.loads((predictions.folder / SETTINGS).read_text())
    assert settings["flags"] == {"limit": 3, "judge": "choice"} and settings["model"] == MODEL
    assert settings["deciding"] == {"--temperature": 0.0, "--model": "a", "--layers": [1, 2]}
    assert settings["settings_hash"] == digest(SETTINGS_A) == digest(dict(reversed(SETTINGS_A.items())))
    assert digest(SETTINGS_A) != digest(SETTINGS_A | {"--temperature": 0.1})
    assert {"python", "torch", "transformers"} <= set(settings["versions"])


def test_a_torn_last_line_is_dropped_at_every_length(tmp_path):
    """Also where it is cut inside a character, or lacks nothing but its end."""
    predictions = opened(tmp_path / "run")
    whole, torn = encode(line(1)), encode(line(2, prediction="blå"))
    path = tmp_path / "run" / PARTS / "part-00000.jsonl"
    for length in range(len(torn)):
        path.write_bytes(whole + torn[:length])
        assert set(predictions.answered()) == {("q1", 0)}
        write(predictions, 0, [line(3)])
        assert path.read_bytes() == whole + encode(line(3))


def test_lines_that_are_none_are_asked_again(tmp_path):
    predictions = opened(tmp_path / "run")
    broken = [b"\n", b"\0\0\0\n", b"{\n", b"[1, 2]\n", b'{"id": "q9"}\n', b"\xff\n", b"[" * 5000 + b"\n", b"null\n"]
    broken.append(b'{"id": "q9", "rotation": 0, "failed": null}\n')
    broken += [encode(line(9) | {"id": ["q9"]}), encode(line(9) | {"rotation": "0"})]
    (tmp_path / "run" / PARTS / "part-00007.jsonl").write_bytes(b"".join(broken) + encode(line(1)))
    assert set(predictions.answered()) == {("q1", 0)} and all(parse(each) is None for each in broken)


def test_a_record_that_stands_twice_counts_once(tmp_path):
    """The first that has not failed, in whatever order."""
    predictions = opened(tmp_path / "run")
    write(predictions, 0, [line(1, failed="image missing", prediction=None), line(2)])
    write(predictions, 1, [line(1), line(2, failed="image missing", prediction=None), line(1, prediction="later")])
    assert predictions.answered() == {("q1", 0): line(1), ("q2", 0): line(2)}


def test_merged_in_the_order_asked_for(tmp_path):
    predictions = opened(tmp_path / "run")
    write(predictions, 1, [line(2, touched={"pairs": 3}), line(1)])
    rows = [predictions.answered()[key] for key in (("q1", 0), ("q2", 0))]
    predictions.merge(in_order(rows), {"n": 2})
    path, summary = predictions.folder / PREDICTIONS, predictions.folder / SUMMARY
    assert [json.loads(each) for each in path.read_text().splitlines()] == [line(1), line(2)]
    assert json.loads(summary.read_text()) == {"n": 2}
    before = (path.stat().st_mtime_ns, summary.stat().st_mtime_ns)
    predictions.merge(in_order(rows), {"n": 2})
    assert (path.stat().st_mtime_ns, summary.stat().st_mtime_ns) == before  # nothing to write
    predictions.merge(in_order(rows[:1]), {"n": 1})
    assert path.read_bytes() == encode(line(1)) and json.loads(summary.read_text()) == {"n": 1}
    summary.write_text('{"n": ')
    assert predictions.merge(in_order(rows[:1]), {"n": 1}) and json.loads(summary.read_text()) == {"n": 1}


def test_other_settings_are_refused(tmp_path):
    write(opened(tmp_path / "run"), 0, [line(1)])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json*")}
    with pytest.raises(
        ValueError, match=r"run holds answers under other settings \(--temperature was 0.0 and is 0.7 now\)"
    ):
        Predictions(tmp_path / "run", SETTINGS_A | {"--temperature": 0.7})
    with pytest.raises(ValueError, match=r"\(--layers was \[1, 2\] and is None now, --seed was None and is 3 now\)"):
        Predictions(tmp_path / "run", {"--temperature": 0.0, "--model": "a", "--seed": 3})
    again = Predictions(tmp_path / "run", SETTINGS_A)
    again.check_model(MODEL | {"devices": ["cuda:0"]})
    for name, value in (("revision", "abc"), ("dtype", "bfloat16")):
        with pytest.raises(
            ValueError, match=f"answers of a model whose {name} was {MODEL[name]!r}, and now it is '{value}'"
        ):
            again.check_model(MODEL | {name: value})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json*")} == before


def test_every_deciding_flag_decides(tmp_path):
    config = evaluate.Config()
    files = {name: str(tmp_path / name) for name in ("scanpaths", "sink_file")}
    for path in files.values():
        Path(path).write_text("{}")
    others = {"model": "tiny-llava", "method": "var", "judge": "exact", "dtype": "float16"} | files
    others |= {"target_layer": (3,), "var_dimensions": (3,), "var_threshold": 3.0}
    deciding = Predictions(tmp_path / "run", config.deciding())
    deciding.start({}, {})
    same = {"device": "cuda", "limit": 3, "batch_size": 2, "retry_failed": True, "out_dir": "elsewhere"}
    Predictions(tmp_path / "run", replace(config, **same).deciding())
    for field in fields(config):
        if field.name not in same:
            value = getattr(config, field.name)
            other = not value if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else "other"
            changed = replace(config, **{field.name: others.get(field.name, other)})
            with pytest.raises(ValueError, match=f"settings .*--{field.name.replace('_', '-')} was"):
                Predictions(tmp_path / "run", changed.deciding())


def test_folders_of_something_else_are_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="exists and is not empty, and nothing is ever overwritten"):
        Predictions(tmp_path, SETTINGS_A)
    (tmp_path / SETTINGS).write_text('{"flags": {}}')
    with pytest.raises(ValueError, match="settings.json is not of this script; pass another --out-dir"):
        Predictions(tmp_path, SETTINGS_A)
    (tmp_path / "started").mkdir()
    (tmp_path / "started" / f"partial-{SETTINGS}").write_text("{")  # as a process killed at its start leaves it
    assert opened(tmp_path / "started").answered() == {}


def test_one_writer_at_a_time(tmp_path):
    predictions = opened(tmp_path / "run")
    part = predictions.part(0)
    with pytest.raises(
        ValueError, match="another run is writing to .*run; wait until it ends, or pass another --out-dir"
    ):
        predictions.part(0)
    predictions.part(1).close()
    part.close()
    write(predictions, 0, [line(1)])
    assert len(predictions.answered()) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence(tmp_path):
    predictions = opened(tmp_path / "run")
    part = predictions.part(0)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, part._file)  # every write to it fails as on a full disk
    with pytest.raises(OutputError, match="could not write .*part-00000.jsonl: no space left on device; free space or"):
        part.append([line(1)])
    part.close()
    os.close(full)
    assert predictions.answered() == {}


WRITER = """
import sys
from analysis.predictions import FIELDS, Predictions
predictions = Predictions(sys.argv[1], {})
done = len(predictions.answered())
predictions.start({}, {})
part = predictions.part(0)
print("started", flush=True)
for number in range(done, 100000):
    known = {"id": f"q{number}", "rotation": 0, "failed": None, "text": "x" * (number % 5000)}
    part.append([dict.fromkeys(FIELDS) | known])
"""


def test_killed_writers_leave_whole_lines_and_go_on(tmp_path):
    """Real processes, kill -9 after a random while: every line that is there is right, none is there twice."""
    rng, seen = random.Random(0), 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "run")], cwd=Path(__file__).parents[1], stdout=subprocess.PIPE
        )
        assert process.stdout.readline() == b"started\n"
        time.sleep(rng.uniform(0.05, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        answered = Predictions(tmp_path / "run", {}).answered()
        assert list(answered) == [(f"q{number}", 0) for number in range(len(answered))] and len(answered) > seen
        assert all(len(record["text"]) == int(name[1:]) % 5000 for (name, _), record in answered.items())
        seen = len(answered)


def test_alone_without_a_process_group():
    import torch.distributed

    with team() as alone:
        assert alone == Team(0, 1, 0) and alone.leads and not torch.distributed.is_initialized()
        alone.wait()
    assert list(alone.share(range(5))) == [0, 1, 2, 3, 4]
    shares = [Team(rank, 3, 0).share(range(8)) for rank in range(3)]
    assert sorted(n for share in shares for n in share) == list(range(8)) and [len(s) for s in shares] == [3, 3, 2]


def test_devices_of_several_processes():
    assert [own_device(device, Team()) for device in ("auto", "cpu", "cuda:3")] == ["auto", "cpu", "cuda:3"]
    assert own_device("cpu", Team(1, 2, 1)) == "cpu"
    for device in ("auto", "cuda:0"):
        with pytest.raises(ValueError, match=f"--device {device} makes no sense with 2 processes: give --device cuda"):
            own_device(device, Team(0, 2, 0))
    with pytest.raises(ValueError, match="process 99 of this machine has no GPU of its own: there are"):
        own_device("cuda", Team(99, 100, 99))


def test_the_summary_counts_records_failures_and_what_was_touched():
    def row(name, correct, rotation=0, failed=None, **touched):
        answer = {"prediction": None if failed else "A", "value": "A", "parsed": not failed, "correct": correct}
        return {"id": name, "task": "t", "rotation": rotation, "failed": failed, "touched": touched, **answer}

    rows = [
        row("a", True, 0, pairs=3, steered=1), row("a", True, 1), row("b", True, 0, pairs=2), row("b", False, 1),
        row("c", False, failed="image missing"), row("d", True),
    ]  # fmt: skip
    skipped = [("line 2", "no question"), ("line 3", "no question"), ("line 1", "broken line")]
    summary = summarise_run(rows, skipped)
    assert summary["skipped_records"] == list(map(list, skipped))
    assert summary["records"] == 4 and summary["answers"] == 6
    assert summary["failed"] == {"image missing": 1} and summary["skipped"] == {"broken line": 1, "no question": 2}
    assert summary["touched"] == {"pairs": 5, "steered": 1}
    assert summary["overall"]["n"] == 3 and summary["overall"]["accuracy"] == pytest.approx(2 / 3)
    assert figures_line("all", summary["overall"]).startswith("all: accuracy 0.667 [0.")
    assert figures_line("all", summary["overall"]).endswith("], n = 3, 1 failed")
