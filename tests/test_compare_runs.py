"""Two runs side by side: pairing, refusals, figures by hand, and the script on runs whose every answer is known."""

import csv
import json
from math import comb

import pytest
from PIL import Image

import compare_runs
from analysis import run_comparison
from analysis.run_comparison import COLUMNS, compare, pair, read_run, run_names, table_row
from compare_runs import main, sentence, warn_cut
from tests import shell
from tests.errors import refused
from tests.settings import configure


def line(name, correct, task="relation", **other):
    return {
        "id": name, "task": task, "prompt": f"where is {name} ?", "gold": "A", "options": ["left", "right"],
        "rotation": 0, "prediction": "A" if correct else "B", "value": "A" if correct else "B", "parsed": True,
        "correct": correct, "failed": None, **other,
    }  # fmt: skip


def failed(name, reason="image missing", **other):
    gone = {"prediction": None, "value": None, "parsed": False, "failed": reason}
    return line(name, False, **{**gone, **other})


def write_run(folder, lines, **flags):
    folder.mkdir(parents=True)
    flags = {"dataset": "set.jsonl", "data_root": None, "judge": "choice", "method": folder.name, "model": "m"} | flags
    (folder / "settings.json").write_text(json.dumps({"flags": flags}))
    (folder / "predictions.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in lines))
    return folder


def paired(tmp_path, a, b, intersect=False, **flags):
    a = write_run(tmp_path / "plain", a)
    return pair(read_run(a), read_run(write_run(tmp_path / "var", b, **flags)), intersect)


def test_figures_by_hand(tmp_path):
    """Task x: 6 records, of which B loses 1 and gains 4; task y: 3, of which it gains 1. One more fails in each run."""
    right_a, right_b = [1, 1, 0, 0, 0, 0], [1, 0, 1, 1, 1, 1]
    a = [line(f"x{i}", bool(each), "x") for i, each in enumerate(right_a)]
    b = [line(f"x{i}", bool(each), "x", parsed=bool(each)) for i, each in enumerate(right_b)]
    a += [line("y0", True, "y"), line("y1", False, "y"), line("y2", False, "y"), failed("y3", task="y")]
    b += [line("y0", True, "y"), line("y1", True, "y"), line("y2", False, "y"), line("y3", True, "y")]
    a, b = [*a, line("y4", True, "y"), failed("z")], [*b, failed("y4", task="y"), failed("z")]
    pairs, different = paired(tmp_path, a, b[::-1])
    assert different == {"only_in_a": 0, "only_in_b": 0} and [each.a.id for each in pairs] == [each["id"] for each in a]
    assert [each.failed for each in pairs[-3:]] == ["failed in A", "failed in B", "failed in A and B"]
    found = compare(pairs)
    assert set(found["tasks"]) == {"x", "y"}  # z never gave an answer to compare
    overall, x, y = found["overall"], found["tasks"]["x"], found["tasks"]["y"]
    assert (overall["a"]["count"], overall["b"]["count"], overall["a"]["n"]) == (3, 7, 9)
    assert overall["difference"]["mean"] == pytest.approx(4 / 9) and overall["difference"]["n"] == 9
    assert overall["difference"]["low"] < 4 / 9 < overall["difference"]["high"]
    assert (overall["gained"], overall["lost"], overall["unparsed_a"], overall["unparsed_b"]) == (5, 1, 0, 1)
    assert overall["p"] == pytest.approx(2 * (1 + 6) / 2**6)
    assert x["p"] == pytest.approx(2 * (comb(5, 0) + comb(5, 1)) / 2**5) and y["p"] == 1
    assert x["p_holm"] == pytest.approx(2 * x["p"]) and y["p_holm"] == 1


def test_difference_is_paired(tmp_path):
    """Both right on half of the records: on the same half there is nothing between them, however wide each interval."""
    a = [line(str(i), i % 2 == 0) for i in range(40)]
    found = compare(paired(tmp_path, a, a)[0])["overall"]
    end = 1.959964**2 / (40 + 1.959964**2)  # Wilson's of no flip in 40, each way
    assert found["difference"]["low"] == pytest.approx(-end) and found["difference"]["high"] == pytest.approx(end)
    assert (found["difference"]["mean"], found["difference"]["interval"]) == (0, "score")
    assert found["p"] == 1 and found["smallest_p"] == 1
    assert "difference +0.000 [-0.088, +0.088], no record flipped, n = 40" in sentence(found, ("A", "B"))
    figure = run_comparison.accuracy_figure({"all": found}, ("A", "B"))
    assert "no record flipped" in [text.get_text() for text in figure.axes[1].texts]
    assert found["a"]["high"] - found["a"]["low"] > 0.25


def test_rotated_records_are_right_only_as_a_whole(tmp_path):
    def circular(name, *verdicts, **last):
        lines = [line(name, verdict, rotation=turn, gold="AB"[turn]) for turn, verdict in enumerate(verdicts)]
        return [*lines[:-1], {**lines[-1], **last}]

    a = circular("one", True, True) + circular("two", True, False) + circular("three", True, True)
    b = circular("one", True, True) + circular("two", True, True) + circular("three", True, True, failed="too long")
    pairs, _ = paired(tmp_path, a, b)
    assert [(each.flip, each.failed) for each in pairs[:2]] == [("", None), ("gained", None)]
    assert pairs[2].failed == "failed in B"
    with refused("rotations-differ"):
        paired(tmp_path / "again", a[:2], [b[0]])


def test_runs_that_cannot_be_compared(tmp_path):
    a = [line("1", True), line("2", True)]
    b = [line("2", False), line("3", True)]
    with pytest.raises(ValueError, match="1 are only in A, 1 only in B .such as '1'.; pass --intersect"):
        paired(tmp_path / "records", a, b)
    pairs, different = paired(tmp_path / "intersect", a, b, intersect=True)
    assert [each.a.id for each in pairs] == ["2"] and different == {"only_in_a": 1, "only_in_b": 1}
    with refused("no-common-record"):
        paired(tmp_path / "none", a, b[1:], intersect=True)
    with refused("judges-differ"):
        paired(tmp_path / "judge", a, a, judge="exact")
    with refused("golds-differ"):
        paired(tmp_path / "gold", a, [a[0], {**a[1], "gold": "B"}])
    with refused("questions-differ"):
        paired(tmp_path / "prompt", a, [a[0], {**a[1], "prompt": "what is 2 ?"}])
    with refused("golds-differ"):
        paired(tmp_path / "options", a, [a[0], {**a[1], "options": ["right", "left"]}])


def test_cut_answers_are_counted_where_a_run_says(tmp_path, capsys):
    """Older runs do not say; a record is cut in any of its rotations."""
    a = [line("1", True, cut=True), line("2", True, cut=False), failed("3", cut=None)]
    b = [line("1", True), line("2", False), line("3", True)]
    pairs, _ = paired(tmp_path / "old", a, b)
    found = compare(pairs)["overall"]
    assert (found["cut_a"], found["cut_b"]) == (1, None)
    row = table_row(pairs[0], None)
    assert (row["cut_a"], row["cut_b"]) == (1, "") and set(row) == set(COLUMNS)
    turned = [line("1", True, cut=False), line("1", True, cut=True, rotation=1)]
    found = compare(paired(tmp_path / "turned", turned, turned)[0])["overall"]
    assert (found["cut_a"], found["cut_b"]) == (1, 1)
    warn_cut(found)
    assert capsys.readouterr().err == "warning: --max-new-tokens cut answers of 1 in A and 1 in B, of 1\n"


def test_other_images_of_a_record_are_other_data(tmp_path):
    a = [line("1", True, image_hashes=["0a"]), line("2", True, image_hashes=["0b"])]
    with refused("images-differ"):
        paired(tmp_path / "other", a, [a[0], line("2", True, image_hashes=["0c"])])
    assert paired(tmp_path / "old", a, [a[0], line("2", True)])
    assert paired(tmp_path / "failed", a, [a[0], failed("2", image_hashes=[""])])


@pytest.mark.parametrize(
    ("name", "text", "error", "reason"),
    [
        ("settings.json", None, FileNotFoundError, "run-not-finished"),
        ("predictions.jsonl", None, FileNotFoundError, "run-not-finished"),
        ("settings.json", "{", ValueError, "no-flags"),
        ("settings.json", '{"flags": {}}', ValueError, "no-flags"),
        ("predictions.jsonl", "", ValueError, "no-predictions"),
        ("predictions.jsonl", '{"id": "1", "tas', ValueError, "line-not-json"),
        ("predictions.jsonl", "[]", ValueError, "no-prediction"),
        (
            "predictions.jsonl",
            json.dumps(line("1", True)) + "\n" + json.dumps({"id": "2"}),
            ValueError,
            "no-prediction",
        ),
        ("predictions.jsonl", (json.dumps(line("1", True)) + "\n") * 2, ValueError, "record-repeated"),
    ],
)
def test_folders_that_are_no_run(tmp_path, name, text, error, reason):
    folder = write_run(tmp_path / "run", [line("1", True)])
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    with refused(reason, error):
        read_run(folder)


def test_names_say_what_differs(tmp_path):
    plain, var = (read_run(write_run(tmp_path / name, [line("1", True)])) for name in ("plain", "var"))
    again = read_run(write_run(tmp_path / "again", [line("1", True)], method="plain"))
    other = read_run(write_run(tmp_path / "other", [line("1", True)], model="models/qwen", method="plain"))
    assert run_names(plain, var) == ("A: plain", "B: var")
    assert run_names(plain, again) == ("A: plain", "B: again")
    runner = write_run(tmp_path / "runner", [line("1", True)], runner="python:mine:make", method="plain")
    assert run_names(other, read_run(runner)) == ("A: qwen", "B: python:mine:make")
    assert run_names(plain, other) == ("A: m", "B: qwen") and run_names(var, other) == ("A: m, var", "B: qwen, plain")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Twelve records in two tasks; B loses the first and gains the next four, one of whose pictures is broken."""
    root = tmp_path_factory.mktemp("compared")
    records, a, b = [], [], []
    for number in range(12):
        name, task = f"r{number}", "relation" if number % 2 else "corner"
        question = f"Is the shape in picture {number} on the left?\n(A) yes\n(B) no"
        pictures = [f"{name}-{place}.png" for place in range(1 + number % 2)]
        for place, picture in enumerate(pictures):
            Image.new("RGB", (80 + 40 * place, 80), (20 * number, 80, 160)).save(root / picture)
        talk = [{"from": "human", "value": question}, {"from": "gpt", "value": "A"}]
        records.append({"id": name, "sub_task": task, "image": pictures, "conversations": talk})
        a.append(line(name, number == 0 or number > 7, task, prompt=question, prediction="(A) yes"))
        b.append(line(name, 0 < number < 5 or number > 7, task, prompt=question, prediction="(B) no $x$ <b>"))
    a[7] = failed("r7", task="relation", prompt=a[7]["prompt"])
    (root / "r2-0.png").write_bytes(b"")
    (root / "set.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    where = {"dataset": str(root / "set.jsonl"), "data_root": str(root)}
    return write_run(root / "plain", a, **where), write_run(root / "var", b, **where)


def flags_of(a, b, **flags):
    return configure(compare_runs, run_a=str(a), run_b=str(b), **flags)


def test_script(runs, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(flags_of(*runs, out_dir=str(out), pictures=3)) == 0
    printed = capsys.readouterr()
    assert "11 of 12 samples done" in printed.out and "4 gained, 1 lost" in printed.out
    assert "flags that differ: --method 'plain' in A, 'var' in B\n" in printed.out
    assert "no image of r2" in printed.err
    summary = json.loads((out / "summary.json").read_text())
    assert summary["n"] == 11 and summary["skipped"] == {"failed in A": 1}
    assert summary["overall"]["difference"]["mean"] == pytest.approx(3 / 11) and summary["overall"]["gained"] == 4
    assert set(summary["tasks"]) == {"corner", "relation"} and summary["flags_that_differ"] == {
        "method": ["plain", "var"]
    }
    assert summary["pictures"]["records_drawn"] == {"gained": 3, "lost": 1}
    assert list(summary["pictures"]["missing"]) == ["r2"]
    with open(out / "flips.csv", newline="") as file:
        flips = [(row["sample"], row["flip"], row["correct_a"], row["correct_b"]) for row in csv.DictReader(file)]
    assert flips == [("r0", "lost", "1", "0"), *((f"r{i}", "gained", "0", "1") for i in (1, 2, 3, 4))]
    with open(out / "samples.csv", newline="") as file:
        rows = {row["sample"]: row for row in csv.DictReader(file)}
    assert len(rows) == 12 and rows["r7"]["skipped"] == "failed in A" and rows["r3"]["prediction_b"] == "(B) no $x$ <b>"
    assert {path.name for path in out.glob("*.png")} == {"accuracy.png", "gained-1.png", "lost-1.png"}


def test_script_without_pictures_or_records(runs, tmp_path, capsys):
    gone = write_run(tmp_path / "gone", [line("1", True), line("2", False)], dataset=str(tmp_path / "gone.jsonl"))
    other = write_run(tmp_path / "other", [line("1", True), line("2", True)])
    for a, b, reason in ((*runs, "the data do not hold this record"), (gone, other, "the data cannot be read: ")):
        out = tmp_path / f"out-{a.name}"
        assert main(flags_of(a, b, out_dir=str(out), data_root=str(tmp_path / "elsewhere"))) == 0
        missing = json.loads((out / "summary.json").read_text())["pictures"]["missing"]
        assert len(missing) == (1 if a == gone else 5) and all(each.startswith(reason) for each in missing.values())
        assert (out / "gained-1.png").is_file()
    a = write_run(tmp_path / "a", [line("1", True)])
    b = write_run(tmp_path / "b", [failed("1")])
    assert main(flags_of(a, b, out_dir=str(tmp_path / "none"))) == 1
    for flags in ({"pictures": -1}, {"out_dir": str(out)}):
        with pytest.raises(SystemExit) as stopped:
            main(flags_of(a, b, **flags))
        assert stopped.value.code == 2
    assert "holds a run with other settings" in capsys.readouterr().err


def test_from_a_shell(runs, tmp_path):
    other = write_run(tmp_path / "other", [line("r1", True), line("r99", True)])
    refused = shell.run("compare_runs.py", runs[0], other, "--data_root", tmp_path, cwd=tmp_path)
    assert refused.returncode == 2 and "11 are only in A, 1 only in B" in refused.stderr
    assert list(tmp_path.iterdir()) == [other]  # a refusal leaves nothing behind


def test_every_flip_has_its_card(runs):
    pairs, _ = pair(*map(read_run, runs))
    pages = run_comparison.flip_pages(pairs[:8], [Image.new("RGB", (40, 20))] * 7 + ["gone"], "flips")
    shown = [[axes for axes in page.axes if axes.get_xlabel()] for page in pages]
    assert list(map(len, shown)) == [6, 2] and [len(axes.images) for axes in shown[1]] == [1, 0]
    assert [text.get_text() for text in shown[1][1].texts] == ["gone"]
    assert "right answer: A\nA (right): (A) yes\nB (wrong): (B) no $x$ <b>" in shown[0][0].get_xlabel()


def test_pictures_of_one_question_stand_side_by_side():
    red, blue = Image.new("RGB", (30, 60), (255, 0, 0)), Image.new("RGB", (50, 25), (0, 0, 255))
    row = run_comparison.side_by_side([red, blue])
    assert row.size == (150 + 12 + 600, 300)
    assert [row.getpixel((x, 150)) for x in (10, 156, 700)] == [(255, 0, 0), (255, 255, 255), (0, 0, 255)]
