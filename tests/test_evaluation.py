"""The folder of an evaluation: torn lines, parts, refusals; what killed writers leave is what they wrote, whole."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import evaluate
from analysis.evaluation import (
    FIELDS,
    FORMAT,
    PARTS,
    PREDICTIONS,
    SETTINGS,
    SUMMARY,
    Predictions,
    digest,
    encode,
    figures_line,
    in_order,
    parse,
    summarise_run,
)
from analysis.files import OutputError
from analysis.processes import Team, own_device, team
from analysis.runs import flat_flags
from models.methods import METHODS
from tests.errors import refused
from tests.settings import changed, configure

SETTINGS_A = {"--temperature": 0.0, "--model": "a", "--layers": (1, 2)}
MODEL = {"name": "a", "revision": None, "dtype": "float32", "family": "llava", "devices": ["cpu"]}


def line(number, **values):
    asked = {"id": f"q{number}", "task": "t", "prompt": "what ?", "gold": "yes", "options": [], "rotation": 0}
    verdict = {"value": "yes", "parsed": True, "correct": True, "failed": None}
    known = {"cut": False, "image_hashes": ["0123456789abcdef"], "touched": {}}
    return asked | {"prediction": f"yes {number}"} | verdict | known | values


def merged(*records):
    """The same as predictions.jsonl holds it."""
    return [{name: value for name, value in record.items() if name != "touched"} for record in records]


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
    counts = Counter()
    assert set(predictions.answered(broken=counts)) == {("q1", 0)} and all(parse(each) is None for each in broken)
    assert counts == {"part-00007.jsonl": len(broken)}


WRONG = {
    "id": 3, "task": None, "prompt": None, "gold": ["yes"], "options": "yes", "rotation": True, "prediction": 3.0,
    "value": None, "parsed": 1, "correct": "true", "failed": False, "cut": 0, "image_hashes": [None], "touched": None,
}  # fmt: skip


@pytest.mark.parametrize("field", WRONG)
def test_a_line_needs_every_field_with_its_type(field):
    """Above all those copied from predictions.jsonl, which lack `touched`."""
    assert parse(encode(line(1))) == line(1) and set(line(1)) == set(WRONG) == {*FIELDS, "touched"}
    assert parse(encode(line(1) | {field: WRONG[field]})) is None
    assert parse(encode({name: value for name, value in line(1).items() if name != field})) is None


def test_a_line_is_an_answer_or_a_failure():
    rows = [{"layer": 2, "heads": 1}]
    for touched in ({}, {"pairs": 3, "steered": 1.0}, {"layers": rows}, {"no gaze: 2 images": 1, "layers": []}):
        assert parse(encode(line(1, touched=touched)))
    for touched in ([], {"pairs": "3"}, {"layers": {}}, {"layers": [{"heads": 1}]}, {"layers": [{"layer": None}]}):
        assert parse(encode(line(1, touched=touched))) is None
    assert parse(encode(line(1, failed="image missing", prediction=None, cut=None)))
    assert parse(encode(line(1, failed="image missing"))) is None and parse(encode(line(1, prediction=None))) is None


def test_parts_of_random_damage_are_read(tmp_path):
    """Truncated, duplicated, reordered, foreign and bent lines, 300 parts of them: what is read is what was written."""
    rng, predictions = random.Random(0), opened(tmp_path / "run")
    path = tmp_path / "run" / PARTS / "part-00000.jsonl"
    foreign = [[], {}, 3, "q1", None, {"id": ["q1"]}, {"id": {"q": 1}, "rotation": 0}, {"a": {"b": [1, 2]}}]
    records = [line(number) for number in range(6)]
    written = [encode(record) for record in records]
    for _ in range(300):
        lines = [*written, *rng.choices(written, k=rng.randrange(3))]
        for place in rng.sample(range(len(lines)), rng.randrange(4)):
            bent = encode(line(1) | {rng.choice(list(WRONG)): rng.choice(foreign)})
            torn = lines[place][: rng.randrange(len(lines[place]) - 1)] + b"\n"
            lines[place] = rng.choice([torn, bent, encode(rng.choice(foreign)), b"\xff" + lines[place]])
        rng.shuffle(lines)
        path.write_bytes(b"".join(lines))
        bent = [each for each in lines if each not in written and parse(each)]  # "id": "q1" is a name like any other
        broken = Counter()
        answers = predictions.answered(broken=broken)
        assert {encode(answer) for answer in answers.values()} <= {*written, *bent}
        assert {json.loads(each)["id"] for each in lines if each in written} <= {name for name, _ in answers}
        assert broken.total() == sum(each not in written for each in lines) - len(bent)


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
    assert [json.loads(each) for each in path.read_text().splitlines()] == merged(line(1), line(2))
    assert json.loads(summary.read_text()) == {"n": 2}
    before = (path.stat().st_mtime_ns, summary.stat().st_mtime_ns)
    predictions.merge(in_order(rows), {"n": 2})
    assert (path.stat().st_mtime_ns, summary.stat().st_mtime_ns) == before  # nothing to write
    predictions.merge(in_order(rows[:1]), {"n": 1})
    assert path.read_bytes() == encode(*merged(line(1))) and json.loads(summary.read_text()) == {"n": 1}
    summary.write_text('{"n": ')
    assert predictions.merge(in_order(rows[:1]), {"n": 1}) and json.loads(summary.read_text()) == {"n": 1}


def test_other_settings_are_refused(tmp_path):
    write(opened(tmp_path / "run"), 0, [line(1)])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json*")}
    with pytest.raises(
        ValueError, match=r"run holds answers under other settings \(--temperature was 0.0 and is 0.7 now\)"
    ):
        Predictions(tmp_path / "run", SETTINGS_A | {"--temperature": 0.7})
    with refused("other-settings"):
        Predictions(tmp_path / "run", {"--temperature": 0.0, "--model": "a", "--seed": 3})
    again = Predictions(tmp_path / "run", SETTINGS_A)
    again.check_model(MODEL | {"devices": ["cuda:0"]})
    for name, value in (("revision", "abc"), ("dtype", "bfloat16")):
        with refused("other-model"):
            again.check_model(MODEL | {name: value})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json*")} == before


def test_every_deciding_flag_decides(tmp_path, monkeypatch):
    config = configure(evaluate)
    for settings in (config, *vars(config).values()):  # flags are changed one at a time, also those that need another
        if hasattr(settings, "__post_init__"):
            monkeypatch.setattr(type(settings), "__post_init__", lambda self: None)
    files = {name: str(tmp_path / name) for name in ("scanpaths", "sink_file")}
    for path in files.values():
        Path(path).write_text("{}")
    others = {"model": "tiny-llava", "method": "var", "judge": "exact", "dtype": "float16"} | files
    others |= {"target_layer": (3,), "var_dimensions": (3,), "var_threshold": 3.0, "runner": "python:sys:exit"}
    flags = flat_flags(config)
    same = {name: flags[name] for name in evaluate.DECIDE_NOTHING}
    same |= {"device": "cuda", "limit": 3, "batch_size": 2, "retry_failed": True, "out_dir": "elsewhere"}
    for name, value in flags.items():
        readers = [method for method in METHODS if METHODS[method].reads(name)]
        base = changed(config, method=readers[0] if readers else "default")
        folder = tmp_path / base.steering.method
        if not folder.exists():
            Predictions(folder, base.deciding()).start({}, {})
            Predictions(folder, changed(base, **same).deciding())
        if name not in same:
            other = not value if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else "other"
            with refused("other-settings"):
                Predictions(folder, changed(base, **{name: others.get(name, other)}).deciding())
        if readers:  # with another method it decides nothing
            assert name not in {flag[2:].replace("-", "_") for flag in config.deciding()}


def test_flags_of_earlier_runs_decide_the_same(tmp_path):
    """The hash of the default flags, of a model without files, since folders of earlier runs must go on."""
    config = configure(evaluate, dataset="blink")
    flags = {name: value for name, value in config.deciding().items() if not name.startswith("content")}
    assert digest(flags) == "80b1c0249fd7b145"


def test_folders_of_something_else_are_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError):
        Predictions(tmp_path, SETTINGS_A)
    (tmp_path / SETTINGS).write_text('{"flags": {}}')
    with refused("foreign-folder"):
        Predictions(tmp_path, SETTINGS_A)
    (tmp_path / "started").mkdir()
    (tmp_path / "started" / ".lock").touch()
    (tmp_path / "started" / f"partial-{SETTINGS}").write_text("{")  # as a process killed at its start leaves it
    assert opened(tmp_path / "started").answered() == {}


def test_a_folder_of_another_version_is_refused(tmp_path):
    """Its lines do not tell of which images they are, so a change would pass unseen."""
    write(opened(tmp_path / "run"), 0, [line(1)])
    settings = json.loads((tmp_path / "run" / SETTINGS).read_text())
    assert settings.pop("format") == FORMAT
    for other in ({}, {"format": FORMAT + 1}):
        (tmp_path / "run" / SETTINGS).write_text(json.dumps(settings | other))
        with refused("other-version"):
            Predictions(tmp_path / "run", SETTINGS_A)


def test_other_libraries_are_named(tmp_path):
    opened(tmp_path / "run")
    path = tmp_path / "run" / SETTINGS
    settings = json.loads(path.read_text())
    assert Predictions(tmp_path / "run", SETTINGS_A).other_versions() == ""
    now, settings["versions"]["torch"] = settings["versions"]["torch"], "1.0"
    path.write_text(json.dumps(settings))
    assert Predictions(tmp_path / "run", SETTINGS_A).other_versions() == f"torch 1.0, now {now}"


def test_files_that_changed_are_named(tmp_path):
    content = {"content of --model": {"config.json": "1", "chat_template.jinja": "2", "old.json": "3"}}
    opened(tmp_path / "run", content)
    now = {"content of --model": {"config.json": "1", "chat_template.jinja": "9", "merges.txt": "4"}}
    with refused("other-settings"):
        Predictions(tmp_path / "run", now)


def test_one_writer_at_a_time(tmp_path):
    predictions = opened(tmp_path / "run")
    part = predictions.part(0)
    with refused("folder-locked"):
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
import json, sys
from analysis.evaluation import Predictions
predictions, line = Predictions(sys.argv[1], {}), json.loads(sys.argv[2])
done = len(predictions.answered())
predictions.start({}, {})
part = predictions.part(0)
print("started", flush=True)
for number in range(done, 100000):
    part.append([line | {"id": f"q{number}", "text": "x" * (number % 5000)}])
"""


def test_killed_writers_leave_whole_lines_and_go_on(tmp_path):
    """Real processes, kill -9 after a random while: every line that is there is right, none is there twice."""
    rng, seen = random.Random(0), 0
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, tmp_path / "run", json.dumps(line(0))]
        process = subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE)
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
        with refused("device-of-several-processes"):
            own_device(device, Team(0, 2, 0))
    with refused("process-without-gpu"):
        own_device("cuda", Team(99, 100, 99))


def test_the_summary_counts_records_failures_and_what_was_touched():
    def row(name, correct, rotation=0, failed=None, cut=False, **touched):
        answer = {"prediction": None if failed else "A", "value": "A", "parsed": not failed, "correct": correct}
        answer["cut"] = None if failed else cut
        return {"id": name, "task": "t", "rotation": rotation, "failed": failed, "touched": touched, **answer}

    rows = [
        row("a", True, 0, pairs=3, steered=1), row("a", True, 1), row("b", True, 0, pairs=2),
        row("b", False, 1, cut=True),
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
    assert figures_line("all", summary["overall"]).endswith("], n = 3, 1 cut, 1 failed")


def test_the_summary_counts_cut_answers():
    """Per record, over its rotations; not those that failed; unknown where no answer says."""

    def row(name, cut, rotation=0, task="t", failed=None):
        return line(name, rotation=rotation, task=task, cut=cut, failed=failed) | {"id": name}

    rows = [row("a", True, 0), row("a", True, 1), row("b", False, 0), row("b", True, 1), row("c", False)]
    rows += [row("d", True, 0), row("d", None, 1, failed="image missing"), row("e", None), row("f", None, task="u")]
    summary = summarise_run(rows, [])
    assert summary["overall"]["cut"] == summary["tasks"]["t"]["cut"] == 2 and summary["tasks"]["u"]["cut"] is None
    assert ", 2 cut, 1 failed" in figures_line("all", summary["overall"])
    assert "cut" not in figures_line("u", summary["tasks"]["u"])
