"""Print everything that a run measured as one table, in Markdown; also written to table.md.

    python benchmarks/gpu/table.py FOLDER

FOLDER holds rows.csv (parts M, B, C, D) and right.csv (part A).
"""

import csv
import sys
from pathlib import Path

PARTS = {
    "M": "the machine",
    "A": "right: the same as on the CPU",
    "B": "whole: a project with the oracle",
    "C": "fast: achieved and ceiling",
    "D": "paper: CIFAR-10 from scratch",
    "R": "the run",
}
PASSED = "passed, seconds"  # the tests' name for the row of a test that passed


def main(folder: Path) -> None:
    lines = []
    rows = [*read(folder / "rows.csv"), *right(folder / "right.csv")]
    for part, title in PARTS.items():
        mine = [row for row in rows if row["part"] == part]
        if not mine:
            continue
        lines += ["", f"**{part}. {title}**", "", "| item | measure | value | note |", "|---|---|---|---|"]
        for row in mine:
            cells = (row["item"], row["measure"], f"{row['value']} {row['unit']}".strip(), row["note"])
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    text = "\n".join(lines).strip() + "\n"
    (folder / "table.md").write_text(text, encoding="utf-8")
    print(text)


def right(path: Path) -> list[dict[str, str]]:
    """Return the rows of part A in the form of the other parts: number of passed tests, failures, figures."""
    found = read(path)
    passed = [row for row in found if row["quantity"] == PASSED]
    failed = [row for row in found if row["quantity"].startswith("failed")]
    skipped = [row for row in found if row["quantity"] == "skipped"]
    if not found:
        return []
    counts = f"{len(passed)} passed, {len(failed)} failed, {len(skipped)} skipped"
    seconds = sum(float(row["measured"]) for row in passed)
    rows = [make_row("all tests", "ended", counts, f"{seconds:.0f} s")]
    rows += [make_row(row["test"], row["quantity"], row["measured"], "") for row in failed]
    for row in found:
        if row not in failed and row not in passed:
            bound = f"allowed: {row['bound']}" if row["bound"] else ""
            rows.append(make_row(row["test"], row["quantity"], row["measured"], bound))
    return rows


def make_row(item: str, measure: str, value: str, note: str) -> dict[str, str]:
    return {"part": "A", "item": item, "measure": measure, "value": value, "unit": "", "note": note}


def read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
