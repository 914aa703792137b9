"""Detection of texts that an SQL condition compares with numbers.

SQLite does this without an error: it converts the number to text, or ranks every text above every number. Only
conditions that SQLite has accepted are read here. Expressions whose type is not clear from the condition are skipped.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

_TOKEN = re.compile(
    r"""
    (?P<skip>\s+|--[^\n]*|/\*.*?(?:\*/|\Z))
    |(?P<text>[xX]?'(?:[^']|'')*')
    |(?P<number>0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    |(?P<name>"(?:[^"]|"")*"|\[[^\]]*\]|`[^`]*`|[^\W\d][\w$]*)
    |(?P<sign>\|\||[<>=!]=|<>|<<|>>|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
_LOGIC = {"and", "or"}
_CASE = {"case", "when", "then", "else", "end"}
_COMPARES = {"=", "==", "!=", "<>", "<", "<=", ">", ">=", "is", "in", "between"}
_MATCHES = {"like", "glob", "escape", "collate"}  # their operands are texts in any case
_CALCULATES = {"+", "-", "*", "/", "%", "&", "|", "~", "<<", ">>"}
_GIVE_TEXT = {"lower", "upper", "trim", "ltrim", "rtrim", "replace", "substr", "substring", "typeof"}
_GIVE_NUMBER = {"length", "instr", "like", "glob"}
_TAKE_NUMBER = {"abs", "round"}


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """Operand of a comparison.

    Attributes:
        kind: Type of the value. "digits" is a text that looks like a number: SQLite converts it only if it is compared
            with a column of numbers.
        words: The text in the condition.
        column: Name of the column in lower case; None if the operand is not a column.
    """

    kind: Literal["text", "number", "digits"]
    words: str
    column: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    words: str

    @property
    def name(self) -> str:
        """Token in lower case and without quotes; empty unless it is a name or a sign."""
        if self.kind == "name" and self.words[0] in '"[`':
            return self.words[1:-1].lower()
        return self.words.lower() if self.kind in ("name", "sign") else ""


_Items: TypeAlias = "list[_Token | _Items]"  # a pair of parentheses becomes a nested list


def is_number(value: str) -> bool:
    """Return whether a cell is a plain number that SQLite stores exactly: no leading zeros, finite, at most 64 bits."""
    if not _NUMBER.fullmatch(value):
        return False
    digits = value.lstrip("+-")
    return -(2**63) <= int(value) < 2**63 if digits.isdigit() else math.isfinite(float(value))


def find_text_as_number(condition: str, is_text: Mapping[str, bool]) -> Value | None:
    """Return the first text that the condition compares or calculates with as if it were a number.

    Args:
        condition: SQL that SQLite has accepted.
        is_text: Column name in lower case → True if the column holds texts.
    """
    walk = _Walk(is_text)
    walk.values(_nested(_tokens(condition)), is_condition=True)
    return walk.found[0] if walk.found else None


def _tokens(condition: str) -> Iterator[_Token]:
    for match in _TOKEN.finditer(condition):
        # NOT does not change the compared values.
        if match.lastgroup != "skip" and match[0].lower() != "not":
            yield _Token(str(match.lastgroup), match[0])


def _nested(tokens: Iterator[_Token]) -> _Items:
    items: _Items = []
    for token in tokens:
        if token.words == ")":
            break
        items.append(_nested(tokens) if token.words == "(" else token)
    return items


class _Walk:
    """Walk through a condition that collects the texts used as numbers."""

    def __init__(self, is_text: Mapping[str, bool]) -> None:
        self._is_text = is_text
        self.found: list[Value] = []

    def values(self, items: _Items, *, is_condition: bool = False) -> list[Value]:
        """Return the possible values of an expression; empty for a comparison and for an unknown type."""
        if any(_name(item) in _CASE for item in items):
            for part in _split(items, _CASE):
                self.values(part)
            return []
        parts = list(_split(_with_ranges(items), _LOGIC))
        results = [self._comparison(part, is_condition=is_condition or len(parts) > 1) for part in parts]
        return results[0] if len(results) == 1 else []

    def _comparison(self, items: _Items, *, is_condition: bool) -> list[Value]:
        operands = list(_split(items, _COMPARES))
        if len(operands) == 1:
            values = self._operand(operands[0], is_condition=is_condition)
            if is_condition:
                self._number(values)
            return values
        self._meet([value for operand in operands for value in self._operand(operand, is_condition=False)])
        return []

    def _operand(self, items: _Items, *, is_condition: bool) -> list[Value]:
        if any(_name(item) in _MATCHES for item in items):
            for part in _split(items, _MATCHES):
                self._operand(part, is_condition=False)
            return []
        if any(_name(item) in _CALCULATES for item in items):
            for part in _split(items, _CALCULATES):
                self._number(self._operand(part, is_condition=False))
            return [Value("number", _words(items))]
        if any(_name(item) == "||" for item in items):
            return [Value("text", _words(items))]
        return self._atom(items, is_condition=is_condition)

    def _atom(self, items: _Items, *, is_condition: bool) -> list[Value]:
        """Read a value, a column, a call, or an expression in parentheses."""
        if not items:
            return []
        *before, last = items
        if isinstance(last, list):
            if before:
                return self._call(_name(before[-1]), last)
            values = [self.values(part, is_condition=is_condition) for part in _split(last, {","})]
            return list(itertools.chain(*values))
        if last.kind == "text":
            return [Value("digits" if is_number(last.words.strip("' ")) else "text", last.words)]
        if last.kind == "number" or last.name in ("true", "false"):
            return [Value("number", last.words)]
        if last.name not in self._is_text:
            return []
        return [Value("text" if self._is_text[last.name] else "number", last.words, last.name)]

    def _call(self, function: str, arguments: _Items) -> list[Value]:
        words = f"{function}({_words(arguments)})"
        if function == "cast":
            return [Value("text" if _name(arguments[-1]) == "text" else "number", words)]
        parts = [self.values(part) for part in _split(arguments, {","})]
        if function in _TAKE_NUMBER:
            self._number(parts[0])
            return [Value("number", words)]
        if function in _GIVE_TEXT or function in _GIVE_NUMBER:
            return [Value("text" if function in _GIVE_TEXT else "number", words)]
        return list(itertools.chain(*parts))

    def _meet(self, values: Sequence[Value]) -> None:
        numbers = [value for value in values if value.kind == "number"]
        if numbers:
            self._number(values)
            if not any(number.column for number in numbers):
                self.found += [value for value in values if value.kind == "digits"]

    def _number(self, values: Sequence[Value]) -> None:
        # Columns come first: the error can name the cell.
        self.found += sorted((value for value in values if value.kind == "text"), key=lambda value: not value.column)


def _name(item: "_Token | _Items") -> str:
    return "" if isinstance(item, list) else item.name


def _words(items: _Items) -> str:
    return " ".join(f"({_words(item)})" if isinstance(item, list) else item.words for item in items)


def _split(items: _Items, at: set[str]) -> Iterator[_Items]:
    """Yield the pieces between the given names and signs. Empty pieces are left out."""
    for is_mark, piece in itertools.groupby(items, key=lambda item: _name(item) in at):
        if not is_mark:
            yield list(piece)


def _with_ranges(items: _Items) -> _Items:
    """Return the items with the AND of each BETWEEN replaced by a comparison sign."""
    result: _Items = []
    is_range = False
    for item in items:
        if is_range and _name(item) == "and":
            result.append(_Token("sign", "="))
            is_range = False
            continue
        is_range = is_range or _name(item) == "between"
        result.append(item)
    return result
