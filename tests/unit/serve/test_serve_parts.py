"""Numbers of the pages People, Mistakes and Model, and the cache of thumbnails."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alloop.errors import PoolError
from alloop.loop.measuring.holdout_file import HoldoutPredictions
from alloop.records import ImageRef
from alloop.serve.mistakes import gather_mistakes
from alloop.serve.people import agreements
from alloop.serve.thumbnails import Thumbnails, clean


def test_agreement_counts_pairs_with_other_people():
    labels = [
        (1, "ann", "cat"),
        (1, "ben", "cat"),
        (1, "eve", "dog"),
        (2, "ann", "dog"),
        (3, "ann", "cat"),
        (3, "ann", "dog"),
    ]

    assert agreements(labels) == {"ann": (1, 2), "ben": (1, 2), "eve": (0, 2)}


def test_the_matrix_counts_true_classes_in_rows():
    holdout = HoldoutPredictions(
        sha256s=("a", "b", "c", "d", "e"),
        targets=("cat", "cat", "cat", "dog", "dog"),
        predicted=("cat", "dog", "dog", "dog", "cat"),
        grown=np.zeros(5, dtype=bool),
        classes=("cat", "dog"),
        calibrated_log_probs=np.log(np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7], [0.7, 0.3]], np.float32)),
    )

    found = gather_mistakes(holdout)

    assert [[cell.n for cell in row.cells] for row in found.matrix] == [[1, 2], [1, 1]]
    assert found.head.says == "cat is taken for dog more often than anything else is confused."
    assert "2 of the 3 holdout images of cat" in found.head.rests_on
    assert found.sure == ("c", "e", "b")
    assert [(row.name, row.n) for row in found.worst] == [("cat", 3), ("dog", 2)]
    assert found.matrix[0].cells[1].address == "?state=holdout&predicted=dog&label=cat"


def test_a_thumbnail_is_made_once_and_belongs_to_the_content(tmp_path: Path):
    path = tmp_path / "a.png"
    Image.new("RGB", (800, 400), "red").save(path)
    image = ImageRef(1, sha_of(path), str(path))
    thumbnails = Thumbnails(tmp_path / "cache", workers=1)

    first = thumbnails.jpeg(image, 160)
    path.unlink()

    assert thumbnails.jpeg(image, 160) == first
    with Image.open(next((tmp_path / "cache").glob("*/*.jpg"))) as small:
        assert small.size == (160, 80)
    with pytest.raises(PoolError):
        thumbnails.jpeg(image, 320)  # not made before, and the file is gone


def test_a_picture_that_cannot_be_kept_is_still_shown(tmp_path: Path):
    path = tmp_path / "a.png"
    Image.new("L", (10, 10)).save(path)
    (tmp_path / "cache").write_text("a file where the folder would be")

    assert Thumbnails(tmp_path / "cache", workers=1).jpeg(ImageRef(1, sha_of(path), str(path)), 160)[:2] == b"\xff\xd8"


def test_the_oldest_pictures_go_when_the_folder_is_too_large(tmp_path: Path):
    (tmp_path / "aa").mkdir()
    for number in range(10):
        path = tmp_path / "aa" / f"{number}.jpg"
        path.write_bytes(b"x" * 100)
        os.utime(path, (number, number))

    clean(tmp_path, 1000)
    assert len(list(tmp_path.glob("*/*.jpg"))) == 10
    clean(tmp_path, 999)
    assert sorted(path.stem for path in tmp_path.glob("*/*.jpg")) == [str(number) for number in range(3, 10)]


def sha_of(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()
