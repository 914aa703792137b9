"""Does reduced decoding of large JPEG photos change the accuracy? A paired comparison on enlarged TrashNet photos.

    ALLOOP_DATA=FOLDER python benchmarks/speed/read_accuracy.py [--photos 600]

Each photo is enlarged to a shorter side of 2,048 pixels and saved as JPEG. EfficientNet-lite0 (examples/trashnet)
gives features of the whole photo, resized, and of the reduced one. Logistic regression is trained on four fifths and
tested on the rest, five times, so that each photo is tested once.
"""

import argparse
import csv
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from alloop.models.backbones import load_backbone
from alloop.pool import pixels

DATA = Path(os.environ.get("ALLOOP_DATA", Path(__file__).parents[3] / "shared" / "data"))
EXAMPLE = Path(__file__).parents[2] / "examples" / "trashnet"
SIDE = 2048


class Encoded:
    """A photo as a trunk asks for it, decoded in one of two ways."""

    def __init__(self, data: bytes, *, may_reduce: bool) -> None:
        self.data, self.may_reduce = data, may_reduce

    def enough(self, needed: pixels.Needed) -> tuple[Image.Image, pixels.Box]:
        found = pixels.decode_enough(self.data, needed if self.may_reduce else lambda width, height: (width, height))
        assert (found.scale > 1) == self.may_reduce
        return found.image, found.shown


def enlarged(data: bytes) -> bytes:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    factor = SIDE / min(image.size)
    large = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    large.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def read(n_photos: int) -> tuple[list[bytes], np.ndarray]:
    with zipfile.ZipFile(DATA / "trashnet.zip") as archive:
        rows = list(csv.DictReader(io.TextIOWrapper(archive.open("labels.csv"))))
        chosen = [rows[row] for row in np.random.default_rng(0).permutation(len(rows))[:n_photos]]
        names = {Path(name).name: name for name in archive.namelist()}
        photos = [archive.read(names[Path(row["file"]).name]) for row in chosen]
    return photos, np.unique([row["label"] for row in chosen], return_inverse=True)[1]


def correct(train: np.ndarray, test: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return for each photo whether it is recognized by a head that was trained on features of the others."""
    found = np.zeros(len(targets), dtype=bool)
    for seen, held in StratifiedKFold(5, shuffle=True, random_state=0).split(train, targets):
        scaler = StandardScaler().fit(train[seen])
        head = LogisticRegression(C=0.01, max_iter=2000).fit(scaler.transform(train[seen]), targets[seen])
        found[held] = head.predict(scaler.transform(test[held])) == targets[held]
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=int, default=600)
    photos, targets = read(parser.parse_args().photos)
    torch.set_num_threads(1)
    trunk = load_backbone("backbone:efficientnet_lite0", search_paths=[EXAMPLE])
    features: dict[bool, list[np.ndarray]] = {False: [], True: []}
    gaps = []
    for photo in map(enlarged, photos):
        views = [trunk.preprocess(Encoded(photo, may_reduce=may_reduce)) for may_reduce in (False, True)]
        gaps.append(float((views[0].int() - views[1].int()).abs().float().mean()))
        with torch.inference_mode():
            rows = trunk.module(trunk.normalize(torch.stack(views))).numpy()
        features[False].append(rows[0])
        features[True].append(rows[1])
    whole, reduced = (np.stack(features[may_reduce]) for may_reduce in (False, True))
    print(f"{len(photos)} photos; pixels differ by {np.mean(gaps):.2f} of 255 levels on average")
    print(
        "| head trained on | tested on | accuracy | difference to the whole photo, 95 % interval |\n|---|---|---|---|"
    )
    base = correct(whole, whole, targets)
    for name, (train, test) in {
        "whole | whole": (whole, whole), "whole | reduced": (whole, reduced), "reduced | reduced": (reduced, reduced),
    }.items():  # fmt: skip
        found = correct(train, test, targets)
        each = found.astype(float) - base
        mean, half = each.mean(), 1.96 * each.std(ddof=1) / np.sqrt(len(each))
        said = "–" if train is test is whole else f"{mean:+.2%} [{mean - half:+.2%}, {mean + half:+.2%}]"
        print(f"| {name} | {found.mean():.2%} | {said} |")


if __name__ == "__main__":
    main()
