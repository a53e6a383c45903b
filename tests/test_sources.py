"""The data that every script reads without --data-root, and what it states of them."""

import importlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from analysis.report import write_report
from data import counterfactual_pairs, scanpaths, twoshapes, twoshapes_qa
from data.errors import MissingFileError
from data.folders import MARKER, Source, is_synthetic, published
from data.spatial_qa import published_set
from tests import shell
from tests.errors import refused
from tests.runs import summary_of, table
from tests.settings import configure

ROOT = Path(__file__).parent.parent
REAL = ROOT.parent / "shared" / "data" / "spatial_twoshapes"
ROLLOUT = ("attention_rollout_llava", "attention_rollout_qwen2", "attention_rollout_fuyu")
SPATIAL = ("vlm_atten_analysis_llava", "vlm_atten_analysis_qwen2")
TEXT = ("text_only_llm_analysis_llava", "text_only_llm_analysis_qwen2")
GAZE = ("gaze_generation_llava", "gaze_head_similarity_llava")
MADE = "data: synthetic (made here: data/generated"
TWO = {"limit": 2}, "2 of 3 samples (--limit 2)"
SCRIPTS = {  # flags; count of published samples; line where none are published
    **dict.fromkeys((*ROLLOUT, *SPATIAL, "attention_knockout_llava"), (*TWO, f"{MADE}/twoshapes-2-seed-0), 2 samples")),
    **dict.fromkeys(TEXT, (*TWO, "data: synthetic (made here: captions of random shapes, seed 0), 2 samples")),
    "find_sink_dimensions_simple": (
        {"num_samples": 2}, "2 of 3 samples (--num-samples 2)", f"{MADE}/twoshapes-2-seed-0), 2 samples",
    ),
    "validate_sink_dimensions": (
        {"num_samples": 0, "dimensions": (1,)}, "3 samples", f"{MADE}/twoshapes-100-seed-0), 100 samples",
    ),
    **dict.fromkeys(GAZE, (*TWO, f"{MADE}/gaze-2-seed-0), 2 samples")),
    "head_attention_stats_qwen2": (
        {"max_pairs": 2}, "2 of 3 samples (--max-pairs 2)",
        f"{MADE}/dataset_sample), 2 of 40 samples (--max-pairs 2)",
    ),
    "evaluate": (
        {"limit": 2}, "2 of 5 samples (--limit 2)",
        f"{MADE}/spatial-500-seed-0), 2 of 20 samples (--limit 2)",
    ),
}  # fmt: skip
PLACES = {"head_attention_stats_qwen2": "data/dataset_sample"} | {
    "evaluate": "data/spatial_reasoning/blink/blink_validation.jsonl"
}


@pytest.fixture(scope="module")
def published_data(tmp_path_factory):
    """A data/ as the published instructions fill it, of generated sets without their markers."""
    folder = tmp_path_factory.mktemp("published") / "data"
    twoshapes.generate(folder / "one", 3, seed=7)
    (folder / "one" / "spatial_twoshapes").rename(folder / "spatial_twoshapes")
    twoshapes_qa.generate(folder / "two", 5, seed=7)
    (folder / "two" / "spatial_reasoning").rename(folder / "spatial_reasoning")
    counterfactual_pairs.generate(folder / "dataset_sample", "topleft", 3, seed=7)
    lines = folder / "dataset_sample" / "metadata.jsonl"
    lines.write_text(lines.read_text().replace(counterfactual_pairs.NOTE, "rendered"))
    for marker in folder.rglob(MARKER):
        marker.unlink()
    for empty in ("one", "two"):
        (folder / empty).rmdir()
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def printed(script, capsys, **flags):
    """Lines that a script prints before it refuses its model; the run ends there."""
    module = importlib.import_module(script)
    with pytest.raises(SystemExit) as stopped:
        module.main(configure(module, model="no-such-model", out_dir="out", **flags))
    output = capsys.readouterr()
    assert stopped.value.code == 2 and "no-such-model" in output.err.splitlines()[-1], output.err
    return output.out.splitlines()


@pytest.mark.parametrize("script", SCRIPTS)
def test_published_data_are_read_where_they_lie(script, published_data, here, capsys):
    """`data/` also holds a generated set, which stays unread."""
    shutil.copytree(published_data, here / "data")
    twoshapes.generate(here / "data" / "generated" / "twoshapes-2-seed-0", 2, seed=0)
    flags, count, _ = SCRIPTS[script]
    first, *others = printed(script, capsys, **flags)
    assert first == f"data: {PLACES.get(script, 'data/spatial_twoshapes')}, {count}"
    assert all(line.startswith("gaze: simulated (made here: ") and "data/generated/gaze-" in line for line in others)
    assert len(others) == script.startswith("gaze_")


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_published_data_a_script_makes_its_own(script, here, capsys, monkeypatch):
    monkeypatch.setattr("evaluate.EXAMPLE_COUNT", 20)  # of 500, which take long to draw
    flags, _, line = SCRIPTS[script]
    first, *others = printed(script, capsys, **flags)
    assert first == line and len(others) == script.startswith("gaze_")
    again = printed(script, capsys, **flags)
    assert again[0] == line


def test_every_script_that_reads_samples_is_listed():
    """Those without data of their own read runs."""
    scripts = {path.stem for path in ROOT.glob("*.py")}
    assert scripts - set(SCRIPTS) == {"compare_corner_heads", "compare_runs"}


@pytest.mark.parametrize("dataset", ["blink", "sat2"])
def test_named_sets_need_no_data_root(dataset, published_data, here, capsys):
    shutil.copytree(published_data, here / "data")
    for script, flags in (("evaluate", {"limit": 0}), ("find_sink_dimensions_simple", {"num_samples": 0})):
        [line] = printed(script, capsys, dataset=dataset, **flags)
        assert line.startswith(f"data: data/spatial_reasoning/{dataset}") and line.endswith(", 5 samples")


def test_the_set_that_is_there_is_asked(published_data, here):
    """BLINK's where both are there, else SAT-2's; a folder with neither is an error, no reason for a generated set."""
    assert published_set() is None
    shutil.copytree(published_data / "spatial_reasoning", here / "data" / "spatial_reasoning")
    assert published_set() == ("blink", "data")
    shutil.rmtree(here / "data" / "spatial_reasoning" / "blink")
    assert published_set() == ("sat2", "data")
    shutil.rmtree(here / "data" / "spatial_reasoning" / "sat2_test")
    with refused("no-data", MissingFileError):
        published_set()


def test_a_link_to_the_published_folder_is_followed(published_data, here, capsys):
    """To a folder of the same name; what lies outside the data root otherwise stays refused."""
    (here / "data").mkdir()
    (here / "data" / "spatial_twoshapes").symlink_to(published_data / "spatial_twoshapes")
    assert published("spatial_twoshapes") == published_data / "spatial_twoshapes"
    for script in ("text_only_llm_analysis_llava", "gaze_generation_llava"):
        assert printed(script, capsys)[0] == "data: data/spatial_twoshapes, 3 samples"


def test_broken_published_data_are_an_error(here, capsys):
    (here / "data" / "spatial_twoshapes").mkdir(parents=True)
    module = importlib.import_module("text_only_llm_analysis_llava")
    with pytest.raises(SystemExit) as stopped:
        module.main(configure(module))
    output = capsys.readouterr()
    assert stopped.value.code == 2 and output.err.startswith("error: no data in data: looked for") and not output.out


@pytest.mark.parametrize(
    "source, line",
    [
        (Source("data/x", 9, 8, limit=8), "data: data/x, 8 of 9 samples (--limit 8)"),
        (Source("data/x", 9, 9), "data: data/x, 9 samples"),
        (Source("data/x", 9, 9, limit=9), "data: data/x, 9 samples"),
        (Source("data/x", 9, 7, unusable=2), "data: data/x, 7 of 9 samples (2 unusable)"),
        (Source("data/x", 9, 4, unusable=2, limit=4), "data: data/x, 4 of 9 samples (--limit 4, 2 unusable)"),
        (Source("data/x", 9, 7, unusable=2, limit=8), "data: data/x, 7 of 9 samples (2 unusable)"),
        (Source("owner/set", None, 4, limit=4), "data: owner/set, 4 samples"),
        (Source("a.txt", 1, 1), "data: a.txt, 1 sample"),
        (Source("g", 2, 2, synthetic=True), "data: g (synthetic), 2 samples"),
        (Source("g", 2, 2, synthetic=True, made_here=True), "data: synthetic (made here: g), 2 samples"),
    ],
)
def test_lines(source, line):
    assert str(source) == source.facts()["line"] == line
    assert source.facts()["label"] == ("synthetic data" if source.synthetic else "")


def test_generated_data_stay_known_as_synthetic(here, capsys):
    """Under another name, and copied to the place of published data; in data/generated also without the marker."""
    twoshapes.generate("set", 2, seed=0)
    [line] = printed("text_only_llm_analysis_llava", capsys, data_root="set")
    assert line == "data: set (synthetic), 2 samples"
    shutil.copytree("set/spatial_twoshapes", "data/spatial_twoshapes")
    assert printed("text_only_llm_analysis_llava", capsys) == ["data: data/spatial_twoshapes (synthetic), 2 samples"]
    twoshapes_qa.generate("questions", 5, seed=0)
    [line] = printed("evaluate", capsys, dataset="sat2", data_root="questions")
    assert line.endswith("sat2_test.jsonl (synthetic), 5 samples")
    Path("data/generated/old").mkdir(parents=True)
    assert is_synthetic("data/generated/old") and not is_synthetic("data")


def test_gaze_of_published_pictures(published_data, here, capsys):
    """Recorded scanpaths in data/ are read; else gaze is simulated, once, in data/generated. The set is unchanged."""
    shutil.copytree(published_data, here / "data")
    before = sorted(path for path in (here / "data").rglob("*"))
    made = printed("gaze_head_similarity_llava", capsys)[1]
    [folder] = (here / "data" / "generated").iterdir()
    file = f"data/generated/{folder.name}/scanpaths-first.jsonl"
    assert made == f"gaze: simulated (made here: {file}), 3 scanpaths"
    assert printed("gaze_head_similarity_llava", capsys)[1] == made
    assert sorted(path for path in (here / "data").rglob("*") if "generated" not in path.parts) == before
    assert printed("gaze_head_similarity_llava", capsys, scanpaths=file)[1] == f"gaze: simulated ({file}), 3 scanpaths"
    lines = [json.loads(line) for line in Path(file).read_text().splitlines()]
    own = [{name: line[name] for name in ("image", "units", "fixations")} for line in lines]
    Path("data/scanpaths-first.jsonl").write_text("".join(json.dumps(line) + "\n" for line in own))
    recorded = printed("gaze_head_similarity_llava", capsys)[1]
    assert recorded == "gaze: recorded (data/scanpaths-first.jsonl), 3 scanpaths"
    own[0]["synthetic"] = True
    Path("mixed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in own))
    mixed = printed("gaze_head_similarity_llava", capsys, scanpaths="mixed.jsonl")[1]
    assert mixed == "gaze: partly simulated (mixed.jsonl), 3 scanpaths"


def test_other_pictures_get_other_gaze(published_data, here, capsys):
    shutil.copytree(published_data / "spatial_twoshapes", here / "data" / "spatial_twoshapes")
    first = printed("gaze_head_similarity_llava", capsys)[1]
    shutil.rmtree(here / "data" / "spatial_twoshapes")
    twoshapes.generate("data/other", 3, seed=8)
    Path("data/other/spatial_twoshapes").rename("data/spatial_twoshapes")
    assert printed("gaze_head_similarity_llava", capsys)[1] != first


def test_missing_pictures_and_unread_fields_are_stated(here, capsys):
    """One picture is gone, one was never there; each scanpath is counted, and the run goes on."""
    twoshapes.generate("set", 3, seed=0, same_colour=0.0)
    files, _ = scanpaths.generate("set", seed=0)
    lines = files["first"].read_text().splitlines()
    lines.append(json.dumps({"image": "gone.png", "units": "pixels", "pupil": 3, "fixations": [[1, 1]]}))
    Path("gaze.jsonl").write_text("\n".join(lines))
    Path("set/spatial_twoshapes/agreement/relational/shard0/world-1.png").unlink()
    module = importlib.import_module("gaze_head_similarity_llava")
    assert module.main(configure(module, data_root="set", scanpaths="gaze.jsonl", out_dir="out")) == 0
    output = capsys.readouterr()
    assert "left out of records: image missing (2)" in output.out
    assert output.err.count("note: fields of gaze that are not read: pupil\n") == 1
    assert summary_of("out")["left_out"]["records"] == {"image missing": 2} and summary_of("out")["n"] == 2


@pytest.mark.skipif(not REAL.is_dir(), reason="the published samples are not beside the repository (../shared/data)")
def test_real_samples_are_used_and_named(here):
    """A whole run over ShapeWorld's samples, a copy of which lies under data/."""
    shard = Path("agreement", "relational", "shard0")
    shutil.copytree(REAL / shard, here / "data" / "spatial_twoshapes" / shard)
    done = shell.run("text_only_llm_analysis_llava.py", "--limit", 8, "--out-dir", "out", cwd=here)
    assert done.returncode == 0, done.stderr
    held = len((REAL / shard / "caption.txt").read_text().splitlines())
    assert f"data: data/spatial_twoshapes, 8 of {held} samples (--limit 8)\n" in done.stdout
    samples = [row["sample"] for row in table(here / "out")]
    assert samples == [f"shard0/{number}" for number in range(8)]
    settings = json.loads((here / "out" / "settings.json").read_text())
    assert settings["data"]["place"] == "data/spatial_twoshapes" and settings["data"]["label"] == ""
    assert "synthetic" not in (here / "out" / "report.html").read_text().partition("<main>")[0]


def test_a_whole_run_names_its_source(published_data, here):
    """On the terminal, in settings.json and summary.json, and at the top of the page."""
    shutil.copytree(published_data, here / "data")
    line = "data: data/spatial_twoshapes, 2 of 3 samples (--limit 2)"
    done = shell.run("attention_rollout_fuyu.py", "--limit", 2, "--max-new-tokens", 2, "--out-dir", "out", cwd=here)
    assert done.returncode == 0 and done.stdout.splitlines()[0] == line, done.stderr
    assert json.loads((here / "out" / "settings.json").read_text())["data"]["line"] == line
    assert summary_of(here / "out")["data"]["line"] == line
    head, _, _ = (here / "out" / "report.html").read_text().partition("<main>")
    assert f'<p class="source">{line}</p>' in head and "synthetic" not in head


def test_titles_call_synthetic_data_synthetic(here):
    """Also those of a page that is written again from its folder."""
    done = shell.run("gaze_head_similarity_llava.py", "--limit", 2, "--out-dir", "out", cwd=here)
    assert done.returncode == 0, done.stderr
    for _ in range(2):
        head, _, _ = (here / "out" / "report.html").read_text().partition("<main>")
        assert "<title>gaze_head_similarity_llava · tiny-llava · synthetic data · simulated gaze</title>" in head
        assert head.count('<p class="source">') == 2
        write_report(here / "out")


def test_generated_and_published_data_are_not_tracked(tmp_path):
    """Git ignores the folders that the instructions fill."""
    names = ("data/spatial_twoshapes/x.png", "data/spatial_reasoning/x", "data/dataset_sample/x", "data/generated/x")
    command = ["git", "check-ignore", *names, "data/spatial_qa.py", "data/scanpaths.py"]
    ignored = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if ignored.returncode == 128:
        pytest.skip("this is no clone")
    assert tuple(ignored.stdout.split()) == names
