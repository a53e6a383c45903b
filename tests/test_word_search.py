"""Words in texts: whole words, in any Unicode normal form, and in scripts without blanks."""

import unicodedata

import pytest

from models.layout import find_words


@pytest.mark.parametrize(
    ("text", "phrase", "matches"),
    [
        ("is red , bored , RED or red_ ?", "red", ["red", "RED"]),
        ("the red  circle", "red circle", ["red  circle"]),
        ("xa a a", "a a", ["a a"]),
        ("un café noir", "cafe\u0301", ["café"]),
        ("un cafe\u0301 noir", "café", ["cafe\u0301"]),
        ("un cafe\u0301 noir", "cafe", []),
        ("the ｒｅｄ circle", "red", ["ｒｅｄ"]),
        ("a straße", "STRASSE", ["straße"]),
        ("q\u0323\u0307 end", "q\u0307\u0323", ["q\u0323\u0307"]),
        ("红色的圆在蓝色方块的左边吗？", "蓝色方块", ["蓝色方块"]),
        ("红色的圆和red圆", "red", ["red"]),
        ("が か", "か", ["か"]),
        ("ｶﾞラス", "ガ", ["ｶﾞ"]),
        ("ลูกบอลสีแดงอยู่ไหน", "สีแดง", ["สีแดง"]),
        ("लाल गेंद", "लाल", ["लाल"]),
        ("लालटेन", "लाल", []),
        ("हिन्दी", "हिन", []),
        ("red", "", []),
    ],
)
def test_whole_words(text, phrase, matches):
    assert [text[slice(*span)] for span in find_words(text, phrase)] == matches


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_normal_forms_agree(form):
    """The same sentence in each form: the word of one is found in the other, at its own characters."""
    sentence = "Où est le carré bleuté, à côté de l'étoile ？"
    for word in ("carré", "bleuté", "étoile", "à côté"):
        (span,) = find_words(sentence, unicodedata.normalize(form, word))
        assert sentence[slice(*span)] == word
        other = unicodedata.normalize(form, sentence)
        (span,) = find_words(other, word)
        assert unicodedata.normalize("NFC", other[slice(*span)]) == word


def test_plurals():
    assert find_words("boxes , box , boxen , reds", "box", plural=True) == [(0, 5), (8, 11)]
    assert find_words("boxes", "box") == []
