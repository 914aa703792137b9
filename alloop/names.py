"""Names as people type them: which spellings mean the same class, and which file a table means."""

import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path

_JOINERS = "\u200c\u200d"  # Persian and Indic words and emoji need them; between ASCII letters nothing does
# Signs that show nothing although Unicode does not list them as format signs: fillers, joiners, variation selectors.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0\u180b\u180c\u180d\u180f")
_NOT_ASKED = frozenset({"", "-1", "-1.0", "nan"})
_SELECTORS = frozenset(chr(code) for code in range(0xFE00, 0xFE10))  # a heart in color is still a heart


def clean(text: str) -> str:
    """A cell or an answer without what nobody sees: composed letters (NFC), no hidden signs, no blanks around."""
    if text.isascii():
        return text.strip()
    shown = "".join(sign for at, sign in enumerate(text) if not _is_hidden(text, at))
    return unicodedata.normalize("NFC", shown).strip()


def look(text: str) -> str:
    """A text by which two names that look alike are equal."""
    if text.isascii():
        return " ".join(text.split())
    visible = "".join(sign for sign in clean(text) if sign not in _JOINERS and sign not in _SELECTORS)
    return " ".join(visible.split())


def as_class(text: str, classes: Collection[str]) -> str:
    """The class that looks like this text, as it is spelled in `classes`; the cleaned text where none does."""
    if text in classes:
        return text
    wanted = look(text)
    return next((name for name in classes if look(name) == wanted), clean(text))


def as_answer(text: str, classes: Collection[str]) -> str | None:
    """One person's answer in a table; None where the person was not asked: an empty cell, -1 or NaN, unless a class."""
    answer = as_class(text, classes)
    return None if answer.lower() in _NOT_ASKED and answer not in classes else answer


def hidden_signs(text: str) -> list[str]:
    """Code points, with their names, of the signs in a text that nobody sees."""
    signs = dict.fromkeys(sign for at, sign in enumerate(text) if _is_hidden(text, at))
    return [f"U+{ord(sign):04X} {unicodedata.name(sign, '')}".rstrip() for sign in signs]


def file_spellings(name: str) -> list[str]:
    """What a file name in a table may mean, as written first: blanks around it dropped, Windows' backslashes turned."""
    turned = name.replace("\\", "/")
    return list(dict.fromkeys((name, name.strip(), turned, turned.strip())))


def find_file(folder: Path, name: str) -> Path | None:
    """The file that a table in a folder means by a name; None where there is none, or more than one.

    A file whose name is spelled as in the table comes first; else the only one whose letters are composed differently.
    """
    for spelled in file_spellings(name):
        if spelled and (folder / spelled).is_file():
            return folder / spelled
    if name.isascii():
        return None
    found = [path for spelled in file_spellings(name) for path in _composed_alike(folder, Path(spelled).parts)]
    files = [path for path in dict.fromkeys(found) if path.is_file()]
    return files[0] if len(files) == 1 else None


def composed(path: str) -> str:
    """A path with composed letters (NFC): equal for the two ways in which systems write `é`."""
    return path if path.isascii() else unicodedata.normalize("NFC", path)


def _is_hidden(text: str, at: int) -> bool:
    sign = text[at]
    if sign.isascii():
        return False
    if sign in _JOINERS:
        return not (0 < at < len(text) - 1) or text[at - 1].isascii() or text[at + 1].isascii()
    return sign in _BLANK or unicodedata.category(sign) == "Cf"


def _composed_alike(folder: Path, parts: Sequence[str]) -> list[Path]:
    """Paths below a folder whose parts are the same letters, however composed."""
    places = [folder]
    for part in parts:
        places = [entry for place in places for entry in _entries(place, part)]
    return places


def _entries(place: Path, part: str) -> list[Path]:
    if part.isascii():
        return [place / part]
    try:
        return [entry for entry in place.iterdir() if composed(entry.name) == composed(part)]
    except OSError:
        return []
