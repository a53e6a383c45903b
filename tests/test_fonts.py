"""Characters that the default font lacks are drawn with a font that has them, or one sentence says what to install."""

from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.font_manager import fontManager
from PIL import Image

from analysis import plots
from analysis.overlay import strip
from analysis.plots import share_plot

CJK = ["\u5de6", "\u3042", "\ud55c"]
LACKED = "\u2312"  # an arc: STIX has it, DejaVu Sans does not, and both come with matplotlib
STIX = Path(matplotlib.get_data_path(), "fonts", "ttf", "STIXGeneral.ttf")


@pytest.fixture
def dejavu_alone(monkeypatch):
    """A machine on which no font but DejaVu is installed, at the start of a run."""
    monkeypatch.setattr(fontManager, "ttflist", [entry for entry in fontManager.ttflist if "DejaVu" in entry.name])
    monkeypatch.setattr(plots, "findSystemFonts", list)
    monkeypatch.setattr(plots, "_reported", False)
    plots._installed_anew.cache_clear()
    yield
    plots._installed_anew.cache_clear()
    fontManager._findfont_cached.cache_clear()


def drawn(figure):
    """The pixels of a figure; it is also laid out as `RunFolder.save` does."""
    figure.savefig(BytesIO(), bbox_inches="tight")
    file = BytesIO()
    figure.savefig(file)
    return np.asarray(Image.open(file))


def label(text, family=None):
    figure = plots.Figure(figsize=(1, 1), dpi=100)
    figure.text(0.5, 0.5, text, fontsize=30, fontfamily=family)
    return figure


def test_one_sentence_a_run_where_no_font_has_a_character(dejavu_alone, capsys):
    for figure in (strip([Image.new("RGB", (96, 96))] * 3, CJK, title="\u95ee"), share_plot(CJK, [0.1, 0.2, 0.3])):
        drawn(figure)  # matplotlib's own warnings would be errors here
    output = capsys.readouterr().err
    assert output.count("\n") == 1 and output.startswith(
        "note: figures show boxes for characters that no installed font"
    )
    assert "fonts-noto-cjk" in output and "\u5de6" in output


def test_nothing_is_said_of_characters_that_need_no_font(dejavu_alone, capsys):
    drawn(label("left \u00e9 \u2423 \n \u200b \x07 \ue000"))
    assert capsys.readouterr().err == ""


def test_a_font_of_the_list_is_used_for_what_the_default_one_lacks(dejavu_alone, monkeypatch, capsys):
    monkeypatch.setattr(plots, "FAMILIES", ("Not Installed", "STIXGeneral"))
    fontManager.addfont(STIX)
    before = dict(matplotlib.rcParams)
    assert (drawn(label(LACKED)) == drawn(label(LACKED, ["STIXGeneral"]))).all()
    assert (drawn(label("left")) != drawn(label("left", ["STIXGeneral"]))).any()  # the default font stays first
    assert capsys.readouterr().err == "" and dict(matplotlib.rcParams) == before


def test_a_font_that_was_installed_after_matplotlib_listed_the_fonts(dejavu_alone, monkeypatch, tmp_path, capsys):
    damaged = tmp_path / "damaged.ttf"
    damaged.write_bytes(b"no font")
    monkeypatch.setattr(plots, "FAMILIES", ("STIXGeneral",))
    monkeypatch.setattr(plots, "findSystemFonts", lambda: [str(damaged), str(STIX)])
    drawn(label(LACKED))
    assert capsys.readouterr().err == ""


def test_chinese_japanese_and_korean(capsys):
    if not any("CJK" in family for family in plots._installed_anew()):
        pytest.skip("no CJK font is installed")
    box = drawn(label("\ue000"))
    assert all((drawn(label(char)) != box).any() for char in CJK)
    assert capsys.readouterr().err == ""


def test_every_figure_falls_back_on_these_fonts():
    root = Path(__file__).parents[1]
    sources = [path for room in ("analysis", "benchmarks", "docs") for path in (root / room).rglob("*.py")]
    users = {path.name for path in sources if "from matplotlib.figure import" in path.read_text()}
    assert users == {"files.py", "runs.py"}  # which save figures and make none
