"""Errors of near-duplicate grouping: unrelated images in one group, and altered copies that are not recognized.

    python benchmarks/near_duplicates/run.py                    prints the tables of README.md
    git show 04dca76:alloop/pool/hashing.py > old_hashing.py
    python benchmarks/near_duplicates/run.py --old old_hashing.py   compares with fingerprints of an older rule

Reads trashnet.zip and cifar10.zip from the folder named by ALLOOP_DATA; the digits come with scikit-learn.
"""

import argparse
import functools
import importlib.util
import io
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance
from sklearn.datasets import load_digits

from alloop.pool.hashing import fingerprint, parse
from alloop.pool.near_duplicates import NearDuplicateIndex

DATA = Path(os.environ.get("ALLOOP_DATA", Path(__file__).parents[3] / "shared" / "data"))
DISTANCES = (0, 3, 6, 10)


def from_zip(name: str, folder: str, limit: int | None = None) -> Iterator[Image.Image]:
    with zipfile.ZipFile(DATA / name) as archive:
        names = sorted(n for n in archive.namelist() if n.startswith(folder) and n.endswith(".jpg"))
        for member in names[:limit]:
            with Image.open(io.BytesIO(archive.read(member))) as image:
                yield image.convert("RGB")


def digits(size: int) -> Iterator[Image.Image]:
    for gray in load_digits().images:
        image = Image.fromarray((gray * 255 / 16).round().astype(np.uint8))
        yield image.resize((size, size), Image.Resampling.NEAREST).convert("RGB")


def jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    return Image.open(buffer).convert("RGB")


def half(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG q=60": jpeg,
    "half size": half,
    "brightness x1.15": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "brightness x0.87": lambda image: ImageEnhance.Brightness(image).enhance(0.87),
    "contrast x1.15": lambda image: ImageEnhance.Contrast(image).enhance(1.15),
}
SETS = {
    "TrashNet (2,527)": functools.partial(from_zip, "trashnet.zip", "images/"),
    "CIFAR-10 (first 5,000)": functools.partial(from_zip, "cifar10.zip", "train/", 5000),
    "digits 8 x 8 (1,797)": functools.partial(digits, 8),
    "digits 64 x 64 (1,797)": functools.partial(digits, 64),
}


def n_joined(phashes: list[str], distance: int) -> tuple[int, int]:
    """Return the number of images that join another's group, and of those with exactly the leader's fingerprint."""
    found = NearDuplicateIndex(distance).group(dict(enumerate(phashes)))
    joined = {position: leader for position, (leader, _) in found.items() if leader != position}
    return len(joined), sum(phashes[leader] == phashes[position] for position, leader in joined.items())


def n_joined_by_phash_alone(phashes: list[str], distance: int) -> int:
    values = np.array([int(phash[:16], 16) for phash in phashes], dtype=np.uint64)
    leaders: list[int] = []
    for position, value in enumerate(values):
        bits = np.unpackbits((values[leaders] ^ value).view(np.uint8)).reshape(-1, 64).sum(axis=1)
        if not (bits <= distance).any():
            leaders.append(position)
    return len(values) - len(leaders)


def recognized(originals: list[str], copies: list[str], distance: int) -> float:
    """Return the share of altered copies that find their own original, each tested alone."""
    hits = 0
    for original, copy in zip(originals, copies, strict=True):
        hits += NearDuplicateIndex(distance).group({0: original, 1: copy})[1][0] == 0
    return hits / len(originals)


def joined(phashes: list[str], distance: int) -> dict[int, int]:
    found = NearDuplicateIndex(distance).group(dict(enumerate(phashes)))
    return {position: leader for position, (leader, _) in found.items()}


def compare_with(place: Path) -> None:
    """Print how fingerprints differ from those of an older hashing.py, and whether its rows still find their copies."""
    spec = importlib.util.spec_from_file_location("old_hashing", place)
    assert spec is not None and spec.loader is not None
    older = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(older)
    print("| images | bits, mean | bits, largest | more than 6 bits | same groups at d = 0, 3, 6, 10 |")
    print("|---|---|---|---|---|")
    rows = []
    for name, images in SETS.items():
        before, now = [], []
        copies: dict[str, tuple[list[str], list[str]]] = {change: ([], []) for change in CHANGES}
        for image in images():
            before.append(older.fingerprint(image))
            now.append(fingerprint(image))
            for change, alter in CHANGES.items():
                altered = alter(image)
                copies[change][0].append(older.fingerprint(altered))
                copies[change][1].append(fingerprint(altered))
        differing = np.bitwise_xor(parse(before)[0], parse(now)[0])
        bits = np.array([int(value).bit_count() for value in differing])
        same = ", ".join("yes" if joined(before, d) == joined(now, d) else "no" for d in DISTANCES)
        print(f"| {name} | {bits.mean():.2f} | {bits.max()} | {np.mean(bits > 6):.2%} | {same} |", flush=True)
        for change, (old, new) in copies.items():
            ways = [(before, old), (now, new), (before, new)]
            shares = [f"{recognized(*way, d):.2%}" for d in (3, 6) for way in ways]
            rows.append(f"| {name}, {change} | " + " | ".join(shares) + " |")
    kinds = [f"d = {d}, {way}" for d in (3, 6) for way in ("old rule", "new rule", "old row, new copy")]
    print("\n| images, change | " + " | ".join(kinds) + " |" + "\n" + "|---" * 7 + "|")
    print("\n".join(rows))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--old", type=Path, help="hashing.py of an older version")
    given = parser.parse_args()
    if given.old:
        compare_with(given.old)
        return
    print("| images | " + " | ".join(f"d = {d}" for d in DISTANCES) + " |\n" + "|---" * (len(DISTANCES) + 1) + "|")
    originals = {name: [fingerprint(image) for image in images()] for name, images in SETS.items()}
    for name, phashes in originals.items():
        cells = []
        for d in DISTANCES:
            joined, equal = n_joined(phashes, d)
            cells.append(f"{joined} ({equal} equal); pHash alone {n_joined_by_phash_alone(phashes, d)}")
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("\n| images, change | " + " | ".join(f"d = {d}" for d in DISTANCES) + " |")
    print("|---" * (len(DISTANCES) + 1) + "|")
    for name, images in SETS.items():
        for change, alter in CHANGES.items():
            copies = [fingerprint(alter(image)) for image in images()]
            shares = [f"{recognized(originals[name], copies, d):.2%}" for d in DISTANCES]
            print(f"| {name}, {change} | " + " | ".join(shares) + " |")


if __name__ == "__main__":
    main()
