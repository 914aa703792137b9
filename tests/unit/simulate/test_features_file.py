"""Arrays of features and labels: classes are the numbers that the file has, or it is refused."""

from pathlib import Path

import numpy as np
import pytest

from alloop.errors import PoolError
from alloop.simulate.features_file import read_features

F = np.arange(8, dtype=np.float32).reshape(4, 2)


def write(path: Path, **arrays: object) -> Path:
    np.savez(path, F=F, **arrays)
    return path


def test_classes_are_the_numbers_that_the_file_has(tmp_path: Path):
    y = np.array([2**63 - 1, 2**53, 2**53 + 1, 0], dtype=np.uint64)

    assert read_features(write(tmp_path / "a.npz", y=y)).classes == ("0", str(2**53), str(2**53 + 1), str(2**63 - 1))


def test_a_number_that_would_wrap_around_is_refused(tmp_path: Path):
    y = np.array([2**63, 1, 2, 3], dtype=np.uint64)

    with pytest.raises(PoolError, match=f"y has {2**63}, which is beyond {2**63 - 1}") as caught:
        read_features(write(tmp_path / "a.npz", y=y))
    assert "as text" in caught.value.hint


def test_an_answer_as_a_fraction_that_cannot_be_told_from_its_neighbor_is_refused(tmp_path: Path):
    y = np.array([2**53 + 1, 2**53 + 2, 0, 1])
    answers = np.array([[2.0**53 + 2], [2.0**53 + 2], [0.0], [np.nan]])

    with pytest.raises(PoolError, match=r"annotators has .* which is beyond"):
        read_features(write(tmp_path / "a.npz", y=y, annotators=answers))
