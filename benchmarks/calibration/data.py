"""The image sets of these benchmarks, unpacked once into a folder of files, as `alloop` reads them."""

import csv
import dataclasses
import gzip
import hashlib
import io
import os
import struct
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from alloop.config.schema import Config
from alloop.engine.build import build_backbone, build_hardware
from alloop.engine.features import ensure_features
from alloop.engine.settings import EngineSettings
from alloop.records import ImageRef

DATA = Path(os.environ.get("ALLOOP_DATA", "../shared/data"))
FASHION = Path(os.environ.get("ALLOOP_FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "trashnet"))

Sources = Iterator[tuple[str, bytes, str]]  # file name, its bytes, class


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Labeled images on disk; `part` names the part that each image belongs to, such as "train" and "test"."""

    images: tuple[ImageRef, ...]
    labels: tuple[str, ...]
    parts: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.labels)))

    def positions(self, part: str) -> np.ndarray:
        return np.flatnonzero(np.array(self.parts) == part)


def read_zip(name: str, table: str, limit: int | None = None, *, is_spread: bool = False) -> Sources:
    """Yield the first `limit` files of a table, or as many spread over it (for tables in class order)."""
    with zipfile.ZipFile(DATA / name) as archive:
        rows = list(csv.DictReader(io.TextIOWrapper(archive.open(table))))
        n = min(limit or len(rows), len(rows))
        places = np.linspace(0, len(rows), n, endpoint=False).astype(int).tolist() if is_spread else range(n)
        for row in (rows[place] for place in places):
            yield row["file"], archive.read(row["file"]), row["label"]


def read_cells(margin: int = 4) -> Sources:
    """Yield BCCD's blood cells, cut out with a few pixels around them; boxes that are too small are left out."""
    with zipfile.ZipFile(DATA / "bccd.zip") as archive:
        rows = csv.DictReader(io.TextIOWrapper(archive.open("boxes.csv")))
        opened: tuple[str, Image.Image] | None = None
        for number, row in enumerate(rows):
            if opened is None or opened[0] != row["file"]:
                opened = row["file"], Image.open(io.BytesIO(archive.read(row["file"]))).convert("RGB")
            whole = opened[1]
            left, top = (max(0, int(row[key]) - margin) for key in ("xmin", "ymin"))
            right, bottom = min(whole.width, int(row["xmax"]) + margin), min(whole.height, int(row["ymax"]) + margin)
            if min(right - left, bottom - top) >= 4 * margin:
                yield f"{number:05d}.png", _png(np.asarray(whole.crop((left, top, right, bottom)))), row["label"]


def has_fashion() -> bool:
    return any(FASHION.glob("t10k-images*"))


def read_fashion(part: str, limit: int | None = None) -> Sources:
    for number, (image, label) in enumerate(zip(*fashion_pixels(part, limit), strict=True)):
        yield f"{part}/{number:05d}.png", _png(image), str(label)


def fashion_pixels(part: str, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Fashion-MNIST, uint8 [N, 28, 28] and [N], in the IDX format of the Debian package dataset-fashion-mnist."""
    stem = {"train": "train", "test": "t10k"}[part]
    pixels, labels = _idx(FASHION / f"{stem}-images-idx3-ubyte"), _idx(FASHION / f"{stem}-labels-idx1-ubyte")
    return pixels[:limit], labels[:limit]


def read_digits() -> Sources:
    """scikit-learn's 8 x 8 digits, enlarged so that every trunk can take them."""
    digits = load_digits()
    for number, (image, target) in enumerate(zip(digits.images, digits.target, strict=True)):
        large = np.kron((image * 255 / 16).round().astype(np.uint8), np.ones((4, 4), np.uint8))
        yield f"{number:04d}.png", _png(large), str(target)


def unpack(sources: dict[str, Sources], folder: Path, first_id: int = 1) -> ImageSet:
    """Write the files that do not exist yet; further copies of an image are left out.

    Args:
        sources: Files of each part, by its name.
        folder: Folder to write them to.
        first_id: Number of the first image.
    """
    images, labels, parts = [], [], []
    seen: set[str] = set()
    for part, files in sources.items():
        for name, data, label in files:
            sha256 = hashlib.sha256(data).hexdigest()
            if sha256 in seen:
                continue
            seen.add(sha256)
            path = folder / name
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            images.append(ImageRef(first_id + len(images), sha256, str(path.absolute())))
            labels.append(label)
            parts.append(part)
    return ImageSet(tuple(images), tuple(labels), tuple(parts))


def load(name: str, folder: Path, n_test: int | None = None, n_train: int = 20_000) -> ImageSet:
    """A set by name: at most `n_train` of the training images, and `n_test` of the test images."""
    sources: dict[str, dict[str, Sources]] = {
        "trashnet": {"all": read_zip("trashnet.zip", "labels.csv")},
        "cifar10": {
            "train": read_zip("cifar10.zip", "train.csv", n_train),
            "test": read_zip("cifar10.zip", "test.csv", n_test, is_spread=True),
        },
        "digits": {"all": read_digits()},
        "bccd": {"all": read_cells()},
        "fashion-mnist": {"train": read_fashion("train", n_train), "test": read_fashion("test", n_test)},
    }  # fmt: skip
    return unpack(sources[name], folder / name)


def warm(images: tuple[ImageRef, ...], config: Config, cache: Path) -> None:
    """Compute the features that the cache lacks."""
    _, failed = ensure_features(
        images, build_backbone(EngineSettings.of(config)), cache, build_hardware(EngineSettings.of(config), None), _say
    )
    assert not failed, failed[:3]


def _say(label: str, done: int, total: int) -> None:
    if done % 1024 < 32 or done == total:
        print(f"{label}: {done}/{total}", file=sys.stderr, flush=True)


def _idx(path: Path) -> np.ndarray:
    compressed = path.with_name(path.name + ".gz")
    data = gzip.decompress(compressed.read_bytes()) if compressed.exists() else path.read_bytes()
    n_axes = data[3]
    shape = struct.unpack(f">{n_axes}I", data[4 : 4 + 4 * n_axes])
    return np.frombuffer(data, np.uint8, offset=4 + 4 * n_axes).reshape(shape)


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()
