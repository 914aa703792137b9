"""Names as people type and read them: the class for a spelling, spellings of file names, and nouns with a number."""

import collections
import re
import unicodedata
from collections.abc import Collection, Sequence

from alloop.errors import LabelError

_JOINERS = "\u200c\u200d"  # needed in Persian and Indic words and in emoji, but never beside ASCII letters
# Invisible characters that Unicode does not list as format characters: fillers, joiners, variation selectors.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0\u180b\u180c\u180d\u180f")
_NOT_ASKED = frozenset({"", "-1", "-1.0", "nan"})
_SELECTORS = frozenset(chr(code) for code in range(0xFE00, 0xFE10))  # choose the color or text form of a character

_NOT_IN_FOLDERS = re.compile(r'^\.|[%<>:"/\\|?*\x00-\x1f\x7f]|[. ]$')  # what Windows refuses, hidden names, and our %
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)  # reserved by Windows
LONGEST = 255  # bytes of a file name


def count(n: int, name: str) -> str:
    """Return "1 image" or "2,287 images"."""
    return f"{n:,} {name}{'' if n == 1 else 's'}"


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


def folder_names(classes: Sequence[str]) -> dict[str, str]:
    """Return class → name of its folder, which differs from all others on every system, also where case does not count.

    Signs that a folder name cannot hold are written as `%` and two hex digits a byte, as in URLs, so that
    `urllib.parse.unquote` gives the class again. Most classes stay as they are.

    Raises:
        LabelError: A name would have more than 255 bytes.
    """
    names = {name: _as_folder(name) for name in classes}
    alike = collections.Counter(folder.casefold() for folder in names.values())
    for name, folder in names.items():
        if alike[folder.casefold()] > 1:  # Cat beside cat
            names[name] = _as_folder(name, small=True)
    for name, folder in names.items():
        if len(folder.encode()) > LONGEST:
            raise LabelError(
                f"The class {name[:40]}… cannot be the name of a folder: it would have {len(folder.encode())} bytes, "
                f"and {LONGEST} are allowed.",
                "Choose a format without a folder per class, such as csv, parquet or coco.",
            )
    return names


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


def _as_folder(name: str, *, small: bool = False) -> str:
    """Escape what folder names cannot hold; with `small`, also all signs that differ between small and capital."""
    first = 0 if _DEVICES.fullmatch(name) else -1
    bad = {found.start() for found in _NOT_IN_FOLDERS.finditer(name)} | {first}
    return "".join(
        _percent(sign) if at in bad or (small and sign != sign.casefold()) else sign for at, sign in enumerate(name)
    )


def _percent(sign: str) -> str:
    return "".join(f"%{byte:02X}" for byte in sign.encode())
