"""Matched arms: the parts of the variance by hand, the verdicts, how many labels would tell."""

import math

import numpy as np
import pytest
from scipy import stats

from alloop.evaluation.matched import match


def right(n: int, of: int = 100) -> np.ndarray:
    return np.arange(of) < n


def test_the_variance_has_a_part_for_the_holdout_and_one_for_the_labels():
    found = match(right(80), right(70), [right(k) for k in (78, 79, 80, 81, 82)], [right(70)] * 5, labels=150, own=50)

    # Ten of 100 images differ, all one way: (0.1 - 0.01) / 100. Jackknife: 4/5 * (4 + 1 + 0 + 1 + 4) / 100².
    assert found.gain.value == pytest.approx(0.1)
    assert found.variance_holdout == pytest.approx(0.0009)
    assert found.variance_labels == pytest.approx(0.0008)
    # Satterthwaite: 0.0017² / (0.0009² / 99 + 0.0008² / 4) = 17.2 degrees of freedom.
    half = stats.t.ppf(0.975, 0.0017**2 / (0.0009**2 / 99 + 0.0008**2 / 4)) * math.sqrt(0.0017)
    assert (found.gain.low, found.gain.high) == pytest.approx((0.1 - half, 0.1 + half), abs=1e-12)
    assert found.verdict == "active"
    assert found.more == 0
    # Wilson: (0.7 + z²/200 ± z √(0.21/100 + z²/40000)) / (1 + z²/100) with z = 1.96.
    assert (found.random.value, found.random.n) == (0.7, 100)
    assert (found.random.low, found.random.high) == pytest.approx((0.6042, 0.7811), abs=1e-4)


def test_random_can_win():
    found = match(right(70), right(90), [right(70)] * 5, [right(90)] * 5, labels=150, own=50)

    assert found.verdict == "random"


def test_what_cannot_be_told_says_how_many_labels_would_tell():
    found = match(right(72), right(70), [right(72)] * 5, [right(70)] * 5, labels=150, own=50)

    # Two images of 100: variance (0.02 - 0.0004) / 100. Telling 0.02 with power 0.8 wants (0.02 / 2.801585)².
    factor = 0.000196 / (0.02 / 2.801585) ** 2
    assert found.verdict == "cannot tell"
    assert found.target == pytest.approx(0.02)
    assert found.more == pytest.approx((factor - 1) * 150, abs=1)


def test_arms_that_never_differ_leave_the_doubt_of_one_image():
    found = match(right(70), right(70), [right(70)] * 5, [right(70)] * 5, labels=150, own=50)

    assert found.verdict == "cannot tell"
    assert found.gain.high == pytest.approx(stats.t.ppf(0.975, 99) / 100)


def test_arms_of_the_same_kind_are_told_apart_no_more_often_than_five_percent():
    """300 pairs of nearest-mean models, drawn alike; at 5 % more than 25 false verdicts have chance 0.5 %."""
    generator = np.random.default_rng(0)
    false_verdicts = 0
    for _ in range(300):
        images, classes = _blobs(400, generator)
        arms = []
        for _ in range(2):
            x, y = _blobs(40, generator)
            groups = np.array_split(generator.permutation(40), 5)
            whole = _nearest_mean(x, y, images) == classes
            parts = [_nearest_mean(np.delete(x, g, 0), np.delete(y, g), images) == classes for g in groups]
            arms.append((whole, parts))
        (active, active_parts), (random, random_parts) = arms
        found = match(active, random, active_parts, random_parts, labels=40, own=40)
        false_verdicts += found.verdict != "cannot tell"

    assert false_verdicts <= 25


def _blobs(n: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    y = generator.integers(2, size=n)
    x = generator.normal(size=(n, 8))
    x[:, 0] += 2.0 * y
    return x, y


def _nearest_mean(x: np.ndarray, y: np.ndarray, images: np.ndarray) -> np.ndarray:
    means = np.stack([x[y == k].mean(axis=0) if (y == k).any() else np.full(8, 99.0) for k in (0, 1)])
    return ((images[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
