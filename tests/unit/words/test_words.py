"""Docstrings name the thing they describe, and the documents they cite exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CLAUSES = ("What", "Which", "How", "Whether", "Where", "When", "That", "Of")
ENTRY = re.compile(r"^(?P<indent> +)[\w*]+(?:, [\w*]+)*: Of ")
CITATION = re.compile(r"(docs/\w+\.md)(?:\s+sections?\s+(\d+(?:\.\d+)?)(?:[^.;\n]*? and (\d+(?:\.\d+)?))?)?")


def test_a_docstring_begins_with_a_verb_or_a_noun():
    found = [f"{place}: {text.splitlines()[0]}" for place, text in docstrings() if text.split(maxsplit=1)[0] in CLAUSES]

    assert not found, "\n".join(found)


def test_an_argument_is_described_by_a_noun():
    found = [
        f"{place}: {line.strip()}" for place, text in docstrings() for line in text.splitlines() if ENTRY.match(line)
    ]

    assert not found, "\n".join(found)


def test_every_cited_document_and_section_exists():
    missing = [f"{path.relative_to(ROOT)}: {citation}" for path in modules() for citation in missing_citations(path)]

    assert not missing, "\n".join(missing)


def test_documents_outside_of_the_repository_are_not_cited():
    cited = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in modules()
        for name in re.findall(r"(?<![\w/.-])[\w-]+\.md\b", path.read_text("utf-8"))
        if name not in ("README.md", "model-card.md")  # an exported folder gets the second one
    ]

    assert not cited, "\n".join(cited)


def test_every_file_in_the_picture_of_the_architecture_exists():
    named = re.findall(r"`([\w/]+(?:\.py|/))`", (ROOT / "docs" / "architecture.md").read_text("utf-8"))

    missing = [name for name in named if not (ROOT / name).exists() and not (ROOT / "alloop" / name).exists()]

    assert named
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize(
    ("docstring", "is_fine"),
    [
        ("Return the images.\n\n    Args:\n        n: Number of images.", True),
        ("Return the images.\n\n    Args:\n        n: Of images.", False),
    ],
)
def test_entries_are_recognized(docstring: str, *, is_fine: bool):
    assert any(ENTRY.match(line) for line in docstring.splitlines()) is not is_fine


def modules() -> list[Path]:
    return sorted((ROOT / "alloop").rglob("*.py"))


def docstrings() -> Iterator[tuple[str, str]]:
    for path in modules():
        name = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node, clean=False)
                if text and text.strip():
                    yield f"{name}:{getattr(node, 'lineno', 1)}", text


def missing_citations(path: Path) -> Iterator[str]:
    for document, *sections in CITATION.findall(path.read_text("utf-8")):
        file = ROOT / document
        if not file.is_file():
            yield document
            continue
        headings = re.findall(r"^#+ (\d+(?:\.\d+)?)\.? ", file.read_text("utf-8"), re.MULTILINE)
        yield from (f"{document} section {number}" for number in sections if number and number not in headings)
