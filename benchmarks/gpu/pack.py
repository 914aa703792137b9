"""Pack the pictures of the GPU benchmark: a part of TrashNet and of CIFAR-10, each file as it is.

    python benchmarks/gpu/pack.py --data FOLDER --out .gpu/data

Reads `trashnet.zip` and `cifar10.zip` of FOLDER (pictures and a CSV with the columns `file` and `label`) and writes zip
files of the same names and form. Needs the standard library only.
"""

import argparse
import collections
import csv
import io
import sys
import zipfile
from pathlib import Path

Rows = list[dict[str, str]]

TRASHNET_A_CLASS = 100
CIFAR_TRAIN, CIFAR_TEST = 8_000, 2_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    missing = [name for name in ("trashnet.zip", "cifar10.zip") if not (options.data / name).is_file()]
    if missing:
        sys.exit(
            f"Error: {options.data} has no {' and no '.join(missing)}. Set ALLOOP_DATA to the folder that has them."
        )
    options.out.mkdir(parents=True, exist_ok=True)
    for name, tables in (
        ("trashnet.zip", {"labels.csv": first_of_each_class}),
        ("cifar10.zip", {"train.csv": spread(CIFAR_TRAIN), "test.csv": spread(CIFAR_TEST)}),
    ):
        n = pack(options.data / name, options.out / name, tables)
        print(f"{name}: {n} pictures, {(options.out / name).stat().st_size / 2**20:.1f} MiB")


def pack(source: Path, target: Path, tables) -> int:
    """Copy the files that each table's rule picks, and their rows of the table. Return the number of files."""
    n = 0
    unfinished = target.with_suffix(".part")
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as packed:
        for table, choose in tables.items():
            rows = choose(list(csv.DictReader(io.TextIOWrapper(archive.open(table), encoding="utf-8"))))
            for row in rows:
                packed.writestr(row["file"], archive.read(row["file"]))
            text = io.StringIO()
            writer = csv.DictWriter(text, ["file", "label"], extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            packed.writestr(table, text.getvalue())
            n += len(rows)
    unfinished.replace(target)
    return n


def first_of_each_class(rows: Rows) -> Rows:
    """The first pictures of each class, in the table's order."""
    seen: collections.Counter[str] = collections.Counter()
    kept = []
    for row in rows:
        seen[row["label"]] += 1
        if seen[row["label"]] <= TRASHNET_A_CLASS:
            kept.append(row)
    return kept


def spread(n: int):
    """Rule that takes n rows at equal distances, because CIFAR-10's test pictures are sorted by class."""

    def choose(rows: Rows) -> Rows:
        return [rows[place * len(rows) // n] for place in range(min(n, len(rows)))]

    return choose


if __name__ == "__main__":
    main()
