"""Unpack a random sample of TrashNet's photos into `photos/`, with their classes in `labels.csv`."""

import argparse
import csv
import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np


def main() -> None:
    """Write the photos and the table beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of trashnet.zip")
    parser.add_argument("-n", type=int, default=1000)
    arguments = parser.parse_args()
    here = Path(__file__).parent
    with zipfile.ZipFile(arguments.data / "trashnet.zip") as packed:
        by_content = {}  # some photos are there twice
        for row in csv.DictReader(io.TextIOWrapper(packed.open("labels.csv"))):
            by_content.setdefault(hashlib.sha256(packed.read(row["file"])).hexdigest(), row)
        rows = list(by_content.values())
        picked = [rows[position] for position in np.random.default_rng(0).permutation(len(rows))[: arguments.n]]
        for row in picked:
            path = here / "photos" / row["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(packed.read(row["file"]))
    with (here / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label"])
        writer.writerows([f"photos/{row['file']}", row["label"]] for row in picked)


if __name__ == "__main__":
    main()
