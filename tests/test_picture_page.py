"""A page of pictures holds them itself, and no text on it can become anything but text."""

from PIL import Image

from analysis.report import PageFigure, Section, Table, as_markdown, as_page


def test_text_on_a_page_is_escaped(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    evil = '<script>alert("1")</script>'
    sections = [
        Section(evil, (evil,), (PageFigure(tmp_path / "a.png", evil, evil),), (Table((evil,), ((evil, "a|b"),)),))
    ]
    page = as_page(evil, sections)
    assert "<script" not in page and page.count("&lt;script&gt;") == 9
    assert "a\\|b" in as_markdown("title", sections)
