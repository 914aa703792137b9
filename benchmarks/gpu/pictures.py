"""Pictures of the GPU benchmark: packed ones (pack.py), made-up ones for a tiny run, large ones made on the spot."""

import csv
import dataclasses
import hashlib
import io
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from rows import Options

from alloop.records import ImageRef

DATA = Path(__file__).parents[2] / ".gpu" / "data"
TABLES = {"trashnet": ("labels.csv",), "cifar10": ("train.csv", "test.csv")}
TINY = {"trashnet": (8, 64), "cifar10": (6, 32)}  # of each class and table, and pixels a side


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Labeled files in a folder; `tables` names the CSV that each file comes from."""

    folder: Path
    refs: tuple[ImageRef, ...]
    labels: tuple[str, ...]
    tables: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.labels)))


def load(name: str, options: Options) -> Pictures:
    """Unpack a set into the work folder. A tiny run makes its pictures up."""
    packed = DATA / f"{name}.zip"
    if options.tiny:
        packed = options.work / f"{name}.zip"
        make_up(packed, name)
    elif not packed.is_file():
        raise SystemExit(f"Error: {packed} is not there. Run benchmarks/gpu/prepare.sh first.")
    folder = options.work / name
    seen: dict[str, tuple[ImageRef, str, str]] = {}
    with zipfile.ZipFile(packed) as archive:
        for table in TABLES[name]:
            for row in csv.DictReader(io.TextIOWrapper(archive.open(table), encoding="utf-8")):
                data = archive.read(row["file"])
                path = folder / row["file"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                sha256 = hashlib.sha256(data).hexdigest()
                seen.setdefault(sha256, (ImageRef(len(seen) + 1, sha256, str(path.absolute())), row["label"], table))
    refs, labels, tables = zip(*seen.values(), strict=True)
    return Pictures(folder, refs, labels, tables)


def make_up(target: Path, name: str) -> None:
    """Write a small set in the packed form: noise whose mean color shows the class."""
    n, side = TINY[name]
    generator = np.random.default_rng(0)
    labels = [f"class-{number}" for number in range(6 if name == "trashnet" else 10)]
    colors = generator.integers(60, 196, (len(labels), 3))
    with zipfile.ZipFile(target, "w") as packed:
        for table in TABLES[name]:
            lines = ["file,label"]
            for number, label in enumerate(labels):
                for place in range(n):
                    noise = generator.normal(colors[number], 30, (side, side, 3))
                    file = f"{table.removesuffix('.csv')}/{label}-{place}.jpg"
                    packed.writestr(file, jpeg(noise.clip(0, 255).astype(np.uint8)))
                    lines.append(f"{file},{label}")
            packed.writestr(table, "\n".join(lines) + "\n")


def make_large(folder: Path, n: int, width: int, height: int) -> tuple[ImageRef, ...]:
    """Write n JPEG files of noise on gradients, as large as a camera's."""
    folder.mkdir(parents=True, exist_ok=True)

    def make(number: int) -> ImageRef:
        generator = np.random.default_rng(number)
        across, down = np.linspace(0, 160, width), np.linspace(0, 60, height)[:, None]
        gradient = np.stack([across + down, across[::-1] + down, np.broadcast_to(down * 2, (height, width))], axis=-1)
        # One noise value for 4 × 4 pixels: finer noise would make larger files than cameras do.
        noise = generator.integers(0, 36, (-(-height // 4), -(-width // 4), 3)).repeat(4, axis=0).repeat(4, axis=1)
        data = jpeg((gradient + noise[:height, :width]).clip(0, 255).astype(np.uint8))
        path = folder / f"{number:03d}.jpg"
        path.write_bytes(data)
        return ImageRef(number + 1, hashlib.sha256(data).hexdigest(), str(path.absolute()))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return tuple(pool.map(make, range(n)))


def jpeg(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=90)
    return file.getvalue()
