"""What the pages say is there: links, files, tests, names in the code, flags of commands; and their sums are right."""

import ast
import functools
import importlib
import json
import re
import shlex
import sys

import numpy as np
import pytest

from analysis.command import parse
from data import spatial_qa
from data.twoshapes import generate
from docs import draw_ideas, run_commands
from tests.test_tree import ROOT

PAGES = [ROOT / name for name in run_commands.PAGES]
SCRIPTS = sorted([*ROOT.glob("*.py"), ROOT / "docs" / "draw_ideas.py", ROOT / "docs" / "figures.py"])
LINK = re.compile(r"\]\(([^)\s]+)\)")
QUOTED = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
TEST = re.compile(r"(tests/test_\w+\.py)?(?:::(\w+))?")
FILE = re.compile(r"[\w./-]+\.(?:py|sh|bash|md|txt|toml)")
SHELL_WORDS = {"corner": "topleft"}  # values of variables that commands on the pages use
ELSEWHERE = {"run.sh", "SYNTHETIC.txt", "image_boost.py", "corner_metric.py"}  # of others


def named(page):
    return str(page.relative_to(ROOT))


each_page = pytest.mark.parametrize("page", PAGES, ids=named)


@functools.cache
def functions(path):
    """Names of the test functions of a file of tests."""
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@each_page
def test_links_lead_somewhere(page):
    text = page.read_text()
    headings = {
        re.sub(r"[^\w\- ]", "", head).lower().replace(" ", "-") for head in re.findall(r"^#+ (.*)$", text, re.M)
    }
    for target in LINK.findall(text):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif "://" not in target:
            assert (page.parent / target.split("#")[0]).exists(), target


@each_page
def test_named_files_are_there(page):
    for quoted in QUOTED.findall(FENCE.sub("", page.read_text())):
        if FILE.fullmatch(quoted) and quoted not in ELSEWHERE:
            assert (ROOT / quoted).exists() or (page.parent / quoted).exists(), quoted


@each_page
def test_named_tests_are_there(page):
    """`tests/test_x.py::test_y`, and `::test_z` for another one of the file named before it."""
    path = None
    for quoted in QUOTED.findall(page.read_text()):
        found = TEST.fullmatch(quoted)
        if found is None:
            continue
        path = found[1] or path
        assert (ROOT / path).is_file(), quoted
        assert found[2] is None or found[2] in functions(path), quoted


def test_named_parts_of_the_code_are_there():
    """In how-it-works.md a cell that names files names what is defined in them, or their methods."""
    cells = re.findall(r"\| (`(?:models|analysis)/[^|]*) \|", (ROOT / "docs" / "how-it-works.md").read_text())
    assert cells
    for cell in cells:
        quoted = QUOTED.findall(cell)
        text = "\n".join((ROOT / name).read_text() for name in quoted if FILE.fullmatch(name))
        for name in (name for name in quoted if not FILE.fullmatch(name)):
            for part in name.split("(")[0].split("."):
                assert re.search(rf"^\s*(?:def|class) {part}\b", text, re.M), name


def commands(text):
    """Shell commands of a page or a docstring; those that an `&&` or `;` joins, apart."""
    for line in run_commands.printed(text):
        line = re.sub(r"\$\{?(\w+)\}?", lambda name: SHELL_WORDS.get(name[1], name[1]), line)
        for part in re.split(r"&&|;", line):
            yield part.strip().removeprefix("do ")


def arguments(command):
    """(module, its flags) of a command that runs one of ours; None for others, and for one that is no whole command."""
    words = shlex.split(command, comments=True)
    for place, word in enumerate(words):
        if re.fullmatch(r"\w+\.py", word) and (ROOT / word).exists():
            return word.removesuffix(".py"), words[place + 1 :]
        if word == "-m" and re.match(r"(?:data|models|benchmarks)\.", words[place + 1]):
            return words[place + 1], words[place + 2 :]
    return None


def readable(module, flags):
    """Whether a module's settings take these flags; the benchmarks and docs have none of the kind."""
    config = getattr(importlib.import_module(module), "Config", None)
    if config is None:
        return True
    try:
        parse(config, args=flags)
    except SystemExit:
        return False
    return True


@pytest.mark.parametrize("source", [*PAGES, *SCRIPTS], ids=named)
def test_commands_have_flags_that_exist(source):
    text = source.read_text()
    if source.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    for command in commands(text):
        called = arguments(command)
        if called and called[1]:
            assert readable(*called), command


def test_printed_commands_are_run(tmp_path, capsys):
    """In a page's order and with its variables, each once; what cannot run is named, and a failure is counted."""
    (tmp_path / "logs").mkdir()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)
    program = "import sys\nopen('said', 'a').write(sys.argv[1] + ' ')\nsys.exit(sys.argv[1] == 'c')\n"
    (tmp_path / "say.py").write_text(program)
    page = """Say `python say.py a`, or `say.py`.

    WORD=b
    python say.py $WORD        # a remark
    softmax(z)

```bash
.venv/bin/python say.py a
python say.py \\
    c
python evaluate.py --model Qwen/Qwen2-VL-7B-Instruct
python say.py long
```
"""
    (tmp_path / "page.md").write_text(page)
    assert run_commands.run_pages(tmp_path, run_commands.Config(pages=("page.md",), without=("long",))) == 1
    assert (tmp_path / "said").read_text() == "a b c "
    output = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in output] == ["0", "0", "1", "-", "-"]
    assert output[3].endswith("[a checkpoint or data of the hub]") and output[4].endswith("[left out]")


def test_a_wrong_flag_would_be_seen():
    text = "    python evaluate.py --method vra --limit 3\n\n`python compare_runs.py A B --pictures many`"
    assert [readable(*arguments(command)) for command in commands(text)] == [False, False]


def test_whatsup_becomes_questions(tmp_path, monkeypatch):
    """The conversion on the page, on two records in the layout of AdaptVis's repository."""
    text = (ROOT / "docs" / "reproducing.md").read_text()
    [program] = [body for language, body in FENCE.findall(text) if language == "python" and "whatsup" in body]
    generate(tmp_path / "set", 2, seed=0)
    pictures = sorted((tmp_path / "set").rglob("world-*.png"))
    images = [str(picture.relative_to(tmp_path)) for picture in pictures]
    asked = (
        "<image>\nUSER: Where is the mug in relation to the table? Answer with left, right, on or under.\nASSISTANT:"
    )
    (tmp_path / "prompts").mkdir()
    (tmp_path / "data").mkdir()
    lines = [json.dumps({"id": number, "question": asked, "answer": ["On"]}) for number in range(2)]
    (tmp_path / "prompts" / "Controlled_Images_A_with_answer_four_options.jsonl").write_text("\n".join(lines))
    shown = [{"image_path": image, "caption_options": []} for image in images]
    (tmp_path / "data" / "controlled_images_dataset.json").write_text(json.dumps(shown))
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "reproducing.md", "exec"), {})
    questions, skipped = spatial_qa.read(str(tmp_path / "whatsup-a.jsonl"), tmp_path)
    assert skipped == [] and [question.images for question in questions] == [(picture,) for picture in pictures]
    assert {(question.prompt, question.answer) for question in questions} == {
        ("Where is the mug in relation to the table? Answer with left, right, on or under.", "On")
    }


def test_arithmetic_of_the_figure():
    """Qwen2.5-VL-7B at T = 4096: 28 layers x 28 heads x T^2 matrices of 2 bytes, 128 numbers a query, 4 key heads."""
    matrices, queries, cache = draw_ideas.memory(np.array([4096])).values()
    assert (matrices[0], queries[0], cache[0]) == (26_306_674_688, 822_083_584, 234_881_024)


def test_arithmetic_of_the_estimates():
    """Each row of the table follows from its own shapes by the formulas above it."""
    rows = re.findall(r"^\| `[^`]+/[^`]+` \| (.*) \|$", (ROOT / "docs" / "reproducing.md").read_text(), re.M)
    before = None
    assert len(rows) == 5
    for row in rows:
        cells = row.split(" | ")
        shapes = cells[1] if cells[1] != "the same" else before[1]
        length = cells[2] if cells[2] != "the same" else before[2]
        before = [cells[0], shapes, length]
        layers, heads, key_heads, width = map(int, shapes.split(", "))
        parameters, tokens = float(cells[0]), int(re.findall(r"[\d,]+", length)[-1].replace(",", ""))
        weights, cache = 2 * parameters, layers * (2 * key_heads + heads) * width * 2 * tokens
        assert cells[3] == f"{weights / 1e9:.1f} GB" and cells[4] == f"{cache / 1e9:.1f} GB"
        assert cells[5] == f"{(weights + cache) / 1e9:.1f} GB"
        assert cells[6] == f"{2 * parameters * tokens / 312e12 * 1e3:.0f} ms"
        assert cells[7] == f"{weights / 2.04e12 * 1e3:.0f} ms"


@pytest.mark.slow
def test_the_figures_can_be_drawn_again(tmp_path):
    generate(tmp_path / "set", 8, seed=7)
    draw_ideas.main(tmp_path / "set", tmp_path)
    drawn = sorted(tmp_path.glob("idea-*.png"))
    assert [path.name for path in drawn] == ["idea-edits.png", "idea-queries.png", "idea-rollout.png"]
    assert all((ROOT / "docs" / "pictures" / path.name).exists() for path in drawn)
