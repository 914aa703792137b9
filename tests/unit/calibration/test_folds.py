"""Folds: those that scikit-learn draws, without its import."""

import numpy as np
import pytest
from sklearn.model_selection import KFold, StratifiedKFold

from alloop.calibration.folds import draw_folds


@pytest.mark.parametrize("sizes", [(40, 33, 27), (5, 5), (9, 9, 9, 7), (6, 1000, 8)])
@pytest.mark.parametrize("seed", [0, 3, 2**40 + 1])
def test_folds_are_those_of_a_stratified_draw(sizes: tuple[int, ...], seed: int):
    targets = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))

    folds = draw_folds(targets, seed, 5)

    known = StratifiedKFold(5, shuffle=True, random_state=seed % 2**32).split(targets, targets)
    for (rest, fold), (known_rest, known_fold) in zip(folds, known, strict=True):
        np.testing.assert_array_equal(rest.numpy(), known_rest)
        np.testing.assert_array_equal(fold.numpy(), known_fold)


@pytest.mark.parametrize("sizes", [(10, 3), (4, 17), (2, 2, 12)])
def test_a_few_images_of_rare_classes_are_drawn_without_regard_to_class(sizes: tuple[int, ...]):
    targets = np.repeat(np.arange(len(sizes)), sizes)

    folds = draw_folds(targets, 7, 5)

    for (rest, fold), (known_rest, known_fold) in zip(
        folds, KFold(5, shuffle=True, random_state=7).split(targets), strict=True
    ):
        np.testing.assert_array_equal(rest.numpy(), known_rest)
        np.testing.assert_array_equal(fold.numpy(), known_fold)


def test_rare_classes_with_enough_images_together_are_one_class():
    targets = np.array([0] * 10 + [1, 2, 3, 4, 5])

    folds = draw_folds(targets, 7, 5)

    assert [sorted(targets[fold] > 0) for _, fold in folds] == [[False, False, True]] * 5


def test_fewer_images_than_folds_are_refused():
    with pytest.raises(ValueError, match="4 images cannot be divided into 5 folds"):
        draw_folds(np.zeros(4, dtype=np.int64), 0, 5)
