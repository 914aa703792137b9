"""Names as people type them: finds the class for a spelling, and the spellings to try for a file name in a table."""

import unicodedata
from collections.abc import Collection

_JOINERS = "\u200c\u200d"  # needed in Persian and Indic words and in emoji, but never beside ASCII letters
# Invisible characters that Unicode does not list as format characters: fillers, joiners, variation selectors.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0\u180b\u180c\u180d\u180f")
_NOT_ASKED = frozenset({"", "-1", "-1.0", "nan"})
_SELECTORS = frozenset(chr(code) for code in range(0xFE00, 0xFE10))  # choose the color or text form of a character


def clean(text: str) -> str:
    """Return a text without invisible characters and blanks around it, with composed letters (NFC)."""
    if text.isascii():
        return text.strip()
    shown = "".join(sign for at, sign in enumerate(text) if not _is_hidden(text, at))
    return unicodedata.normalize("NFC", shown).strip()


def look(text: str) -> str:
    """Return a text that is equal for two names that look alike."""
    if text.isascii():
        return " ".join(text.split())
    visible = "".join(sign for sign in clean(text) if sign not in _JOINERS and sign not in _SELECTORS)
    return " ".join(visible.split())


def as_class(text: str, classes: Collection[str]) -> str:
    """Return the class that looks like this text, as spelled in `classes`; without such a class, the cleaned text."""
    if text in classes:
        return text
    wanted = look(text)
    return next((name for name in classes if look(name) == wanted), clean(text))


def as_answer(text: str, classes: Collection[str]) -> str | None:
    """Return a person's answer in a table; None for an empty cell, -1 or NaN (not asked), unless that is a class."""
    answer = as_class(text, classes)
    return None if answer.lower() in _NOT_ASKED and answer not in classes else answer


def hidden_signs(text: str) -> list[str]:
    """Return code points and names of the invisible characters in a text."""
    signs = dict.fromkeys(sign for at, sign in enumerate(text) if _is_hidden(text, at))
    return [f"U+{ord(sign):04X} {unicodedata.name(sign, '')}".rstrip() for sign in signs]


def file_spellings(name: str) -> list[str]:
    """Return the spellings to try for a file name in a table, as written first: without blanks, with / as separator."""
    turned = name.replace("\\", "/")
    return list(dict.fromkeys((name, name.strip(), turned, turned.strip(), clean(name), clean(turned))))


def composed(path: str) -> str:
    """Return a path with composed letters (NFC). It is equal for both ways in which systems write `é`."""
    return path if path.isascii() else unicodedata.normalize("NFC", path)


def _is_hidden(text: str, at: int) -> bool:
    sign = text[at]
    if sign.isascii():
        return False
    if sign in _JOINERS:
        return not (0 < at < len(text) - 1) or text[at - 1].isascii() or text[at + 1].isascii()
    return sign in _BLANK or unicodedata.category(sign) == "Cf"
