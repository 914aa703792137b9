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
    """The rows that the tests of part A write, in the form of the other parts."""
    return [
        {
            "part": "A",
            "item": row["test"],
            "measure": row["quantity"],
            "value": row["measured"],
            "unit": "",
            "note": f"allowed: {row['bound']}" if row["bound"] else "",
        }
        for row in read(path)
    ]


def read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
