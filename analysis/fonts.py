"""Figures whose text is drawn with whatever installed font has its characters.

Matplotlib draws a box for each character that its default font, DejaVu Sans, lacks, such as all Chinese, Japanese and
Korean ones. `Figure` draws them with the first installed font of FAMILIES that has them; matplotlib's settings stay.
"""

from __future__ import annotations

import logging
import sys
import unicodedata
import warnings
from collections.abc import Collection
from functools import cache

import matplotlib.figure
from matplotlib.font_manager import FontProperties, findSystemFonts, fontManager, get_font
from matplotlib.text import Text
from tqdm import tqdm

FAMILIES = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "Noto Sans JP", "Noto Sans KR",
    "Source Han Sans SC", "Source Han Sans CN", "Source Han Sans JP", "Source Han Sans KR", "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei", "PingFang SC", "Hiragino Sans GB", "Hiragino Sans", "Apple SD Gothic Neo",
    "Arial Unicode MS", "Microsoft YaHei", "SimHei", "Yu Gothic", "Meiryo", "Malgun Gothic", "Noto Sans",
    "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil",
    "Noto Sans Telugu", "Noto Sans Thai", "Nirmala UI", "Segoe UI", "Noto Sans Symbols", "Noto Sans Symbols2",
    "Noto Emoji", "Segoe UI Symbol", "Segoe UI Emoji",
)  # fmt: skip
"""Asked in this order for characters that a text's own font lacks; those that are not installed are left out."""
REMEDY = (
    "install one, for Chinese, Japanese and Korean Noto Sans CJK (apt-get install fonts-noto-cjk), for other scripts"
    " Noto Sans (fonts-noto-core)"
)

_reported = False  # whether this run has printed its sentence


class Figure(matplotlib.figure.Figure):
    """A matplotlib figure whose texts fall back on the installed fonts of FAMILIES.

    Characters that none of them has are drawn as boxes; one sentence on stderr names the first of them, once per run.
    """

    def draw(self, renderer) -> None:
        lacking = "".join(_extend_fonts(text) for text in self.findobj(Text))
        if lacking:
            _report(lacking)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Glyph \d+ ", UserWarning)  # the sentence stands for them
            super().draw(renderer)


def _extend_fonts(text: Text) -> str:
    """Append to a text's families the installed ones that its characters need; return what none of them has."""
    lacking = _lacking(text.get_text(), text.get_fontfamily())
    if not lacking:
        return ""
    for known in (installed, _installed_anew):
        families = [*text.get_fontfamily(), *known()]
        lacking = _lacking(lacking, families)
        if not lacking:
            break
    text.set_fontfamily(families)
    return lacking


def _lacking(characters: str, families: Collection[str]) -> str:
    """The characters that no font of these families has; control characters and the like need none."""
    unusual = {char for char in characters if ord(char) > 126 and not unicodedata.category(char).startswith("C")}
    for path in {_path(family) for family in families} if unusual else ():
        font = get_font(path)
        unusual = {char for char in unusual if not font.get_char_index(ord(char))}
    return "".join(sorted(unusual))


def _path(family: str):
    return fontManager.findfont(FontProperties(family=[family]))


def installed() -> list[str]:
    """The families of FAMILIES that matplotlib knows of."""
    names = {entry.name for entry in fontManager.ttflist}
    return [family for family in FAMILIES if family in names]


@cache
def _installed_anew() -> list[str]:
    """The same after a search for fonts that were installed since matplotlib wrote its list of fonts."""
    listed = {str(entry.fname) for entry in fontManager.ttflist}
    for path in set(findSystemFonts()) - listed:
        try:
            fontManager.addfont(path)
        except Exception as error:  # bitmap and damaged fonts raise errors of many classes; matplotlib skips them, too
            logging.getLogger(__name__).info("font %s cannot be read: %s", path, error)
    return installed()


def _report(lacking: str) -> None:
    global _reported
    if not _reported:
        _reported = True
        shown = ", ".join(list(dict.fromkeys(lacking))[:5])
        sentence = f"note: figures show boxes for characters that no installed font has ({shown}): {REMEDY}"
        tqdm.write(sentence, file=sys.stderr)
