"""Spellings that mean the same name."""

import pytest

from alloop.names import as_answer, as_class, clean, hidden_signs, look

NFC, NFD = "caf\u00e9", "cafe\u0301"
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
PERSIAN = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"


@pytest.mark.parametrize("sign", ["\u200b", "\ufeff", "\u00ad", "\u200e", "\u202e", "\u2066", "\u2060", "\u200d"])
def test_hidden_signs_are_named_and_dropped(sign: str):
    assert hidden_signs(f"c{sign}at") == [name for name in hidden_signs(f"c{sign}at") if f"U+{ord(sign):04X}" in name]
    assert hidden_signs(f"cat{sign}")
    assert clean(f" c{sign}at{sign}") == "cat"


@pytest.mark.parametrize("name", [FAMILY, PERSIAN, NFC, "naïve", "犬", "Ärger 2"])
def test_joiners_that_words_and_emoji_need_are_kept(name: str):
    assert hidden_signs(name) == []
    assert clean(name) == name


def test_names_that_look_alike_have_the_same_look():
    assert look(NFC) == look(NFD) == look(f"\u00a0{NFD} \u200b")
    assert look("new york") == look("new\u00a0 york")
    assert look("\u2764\ufe0f") == look("\u2764")
    assert look("Cat") != look("cat")


def test_an_answer_is_spelled_like_the_class_it_looks_like():
    assert as_class(NFC, ("dog", NFD)) == NFD
    assert as_class("c\u00adat ", ("cat", "dog")) == "cat"
    assert as_class(f" {NFD}", ("dog",)) == NFC


@pytest.mark.parametrize("nothing", ["", " ", "-1", "-1.0", "nan", "NaN"])
def test_nobody_asked_is_no_answer_unless_a_class_is_called_so(nothing: str):
    assert as_answer(nothing, ("cat", "dog")) is None
    assert as_answer("-1", ("-1", "1")) == "-1"
