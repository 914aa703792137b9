"""Unpack TrashNet beside this file: `images/`, and `truth.csv`, which answers instead of people."""

import argparse
import csv
import zipfile
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path, help="trashnet.zip with labels.csv (file,label) and the photos")
    archive = parser.parse_args().archive
    with zipfile.ZipFile(archive) as packed:
        rows = list(csv.DictReader(packed.read("labels.csv").decode().splitlines()))
        for row in rows:
            packed.extract(row["file"], HERE)
    with (HERE / "truth.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label"])
        writer.writerows([row["file"], row["label"]] for row in rows)
    print(f"{len(rows)} photos in {HERE / 'images'}")


if __name__ == "__main__":
    main()
