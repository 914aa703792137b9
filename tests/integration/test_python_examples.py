"""The examples of docs/python.md and the notebook, run as they are written."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
from command_line import alloop
from factories import make_project, tools_of

from alloop.loop.rounds.runner import RunOptions, run

ROOT = Path(__file__).parents[2]


def run_cells(cells: list[str], where: str) -> tuple[str, dict[str, object]]:
    """Run pieces of code in one namespace, as a notebook does; return what they print, and the names."""
    names: dict[str, object] = {"__name__": "__main__"}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for number, cell in enumerate(cells, start=1):
            exec(compile(cell, f"{where}, example {number}", "exec"), names)
    return printed.getvalue(), names


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    project = make_project(tmp_path, n=40)
    run(tools_of(project), RunOptions(rounds=2))
    assert alloop("export-model", tmp_path / "exported", "-C", project.folder).code == 0
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)

    printed, _ = run_cells(examples, "docs/python.md")

    assert len(examples) == 7
    assert "of 40 images are labeled." in printed
    assert len(re.findall(r"^(cat|dog) [01]\.\d{3} \d\.\d{3} nats$", printed, flags=re.MULTILINE)) == 3
    assert "could not be read" not in printed
    assert "exported: {'cat': 0." in printed
    assert re.search(r"^None None \(\(1, '.+'\),\)$", printed, flags=re.MULTILINE)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    book = json.loads((ROOT / "examples" / "python" / "digits.ipynb").read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    code = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]

    printed, names = run_cells(code, "digits.ipynb")

    assert book["nbformat"] == 4
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in book["cells"] if "outputs" in cell)
    assert "advanced 3 " in printed
    assert names["accuracy"] > 0.8
