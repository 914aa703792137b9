"""The default: herding by predictive entropy, against the plain loop, and at both ends of what a model can know."""

import dataclasses
import math
import re
from typing import ClassVar

import numpy as np
import pytest
import torch
from choices import choose
from hypothesis import given, settings
from hypothesis import strategies as st

from alloop.acquisition import spread
from alloop.acquisition.registry import estimate
from alloop.acquisition.rows import OneRow
from alloop.acquisition.strategy import Candidates, Size


def _candidates(log_probs: torch.Tensor, seed: int = 0, n_labeled: int = 3) -> Candidates:
    generator = torch.Generator().manual_seed(seed)
    n = len(log_probs)
    return Candidates(
        np.arange(n, dtype=np.uint64),
        calibrated_log_probs=log_probs,
        features=torch.randn(n, 4, generator=generator) + 1,
        labeled=torch.randn(n_labeled, 4, generator=generator) + 1,
        labels=torch.arange(n_labeled) % 2,
    )


def _random(n: int, seed: int) -> torch.Tensor:
    return (torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)) * 2).log_softmax(dim=1)


def _entropies(probs: np.ndarray) -> np.ndarray:
    return -(probs * np.log(probs)).sum(axis=1) / math.log(probs.shape[1])


def _plain(candidates: Candidates, k: int) -> tuple[list[int], list[float]]:
    """The formula of the docstring in numpy, word for word."""
    x, labeled = candidates.features.double().numpy(), candidates.labeled.double().numpy()
    mean = np.concatenate([x, labeled]).mean(axis=0)
    z, known = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x - mean, labeled - mean))
    distances = np.linalg.norm(z[:, None] - known[None], axis=2).min(axis=1)
    sigma = 0.85 * np.sort(distances)[(len(distances) - 1) // 2]  # torch's median: the lower of the middle two

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(axis=2) / sigma**2)

    probs = candidates.calibrated_log_probs.double().exp().numpy()
    sureness = 1 - _entropies(probs).mean()
    sharpened = probs ** (1 + sureness)
    u = _entropies(sharpened / sharpened.sum(axis=1, keepdims=True))
    counts = np.bincount(candidates.labels.numpy(), minlength=probs.shape[1])
    share = (probs.sum(axis=0) + counts) / (len(probs) + counts.sum())
    needed = (probs * share / ((counts + 1) / (counts + 1).sum())).sum(axis=1)
    covered = (1 - sureness) * kernel(known, z).max(axis=0)
    similar = kernel(z, z)
    picked, scores = [], []
    for _ in range(k):
        gain = u**sureness * needed ** (2 * sureness**2) * (u**0.5 * np.maximum(similar - covered, 0)).mean(axis=1)
        gain[picked] = -1
        picked.append(int(gain.argmax()))
        scores.append(gain[picked[-1]])
        covered = np.maximum(covered, similar[picked[-1]])
    return picked, scores


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000))
def test_it_chooses_what_the_formula_says(seed):
    candidates = _candidates(_random(40, seed), seed)

    choice = choose("entropy-spread", candidates, 8, 0)

    picked, scores = _plain(candidates, 8)
    np.testing.assert_allclose(choice.scores, scores, atol=2e-6)
    assert choice.positions.tolist() == picked


def test_labels_of_all_classes_beside_every_image_leave_sharpened_entropy_the_highest_first():
    # Every prediction comes in three turns, so that the pool promises all classes alike, and the labels are alike.
    turns = torch.cat([_random(17, 1).roll(turn, dims=1) for turn in range(3)])
    candidates = _candidates(turns)
    beside = Candidates(
        candidates.keys,
        candidates.calibrated_log_probs,
        features=candidates.features,
        labeled=candidates.features * 1.0001,
        labels=torch.arange(51) % 3,
    )

    chosen = choose("entropy-spread", beside, 20, 0)

    probs = turns.double().exp().numpy()
    sharpened = probs ** (2 - _entropies(probs).mean())
    entropies = _entropies(sharpened / sharpened.sum(axis=1, keepdims=True))
    assert entropies[chosen.positions] == pytest.approx(np.sort(entropies)[::-1][:20])


def test_a_sure_model_asks_where_two_classes_are_equally_probable():
    # Image 0 is split between two classes: entropy ln 2 = 0.693. Image 1 is 60 % one class and 4 % each of ten others:
    # 1.594, but only 0.274 once its probabilities are squared (0.957 and ten times 0.0043). All others are nearly sure.
    n, n_classes = 60, 11
    probs = torch.full((n, n_classes), 1e-5)
    probs[torch.arange(n), torch.arange(n) % n_classes] = 1
    probs[0] = torch.tensor([0.5, 0.5] + [1e-5] * 9)
    probs[1] = torch.tensor([0.04, 0.6] + [0.04] * 9)
    features = torch.randn(n, 30, generator=torch.Generator().manual_seed(0))
    candidates = Candidates(
        np.arange(n, dtype=np.uint64),
        (probs / probs.sum(dim=1, keepdim=True)).log(),
        features=features,
        labeled=torch.randn(n_classes, 30, generator=torch.Generator().manual_seed(1)),
        labels=torch.arange(n_classes),
    )

    chosen, highest = (choose(name, candidates, 1, 0) for name in ("entropy-spread", "entropy"))

    assert chosen.positions.tolist() == [0]
    assert highest.positions.tolist() == [1]
    assert "mostly takes images that the model is unsure of" in chosen.notes[0]


def test_the_rule_of_the_task_sharpens_by_how_sure_the_model_is():
    class Recorded(OneRow):
        powers: ClassVar[list[float]] = []

        def sharpen(self, calibrated_log_probs: torch.Tensor, power: float) -> torch.Tensor:
            self.powers.append(power)
            return super().sharpen(calibrated_log_probs, power)

    candidates = _candidates(_random(40, 5))

    choose("entropy-spread", dataclasses.replace(candidates, rule=Recorded()), 3, 0)

    probs = candidates.calibrated_log_probs.double().exp().numpy()
    assert Recorded.powers == [pytest.approx(2 - _entropies(probs).mean(), abs=1e-6)]


def test_of_equally_unsure_images_those_of_the_class_without_labels_come_first():
    # Two classes; half of the images lean to either, and all labels so far are of the first.
    probs = torch.tensor([[0.7, 0.3], [0.3, 0.7]]).repeat(10, 1)
    labeled = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    candidates = Candidates(
        np.arange(20, dtype=np.uint64),
        probs.log(),
        features=torch.eye(20)[:, :6] + torch.randn(20, 6, generator=torch.Generator().manual_seed(1)),
        labeled=labeled,
        labels=torch.zeros(8, dtype=torch.int64),
    )

    assert spread._needed(candidates, 2) == pytest.approx(
        # Predicted shares (10 + 8)/28 and 10/28 over label shares 9/10 and 1/10: 5/7 and 25/7.
        [0.7 * 5 / 7 + 0.3 * 25 / 7, 0.3 * 5 / 7 + 0.7 * 25 / 7] * 10
    )


def test_a_model_that_knows_nothing_leaves_coverage_alone():
    n = 40
    candidates = _candidates(torch.full((n, 3), 1 / 3).log())

    choice = choose("entropy-spread", candidates, 6, 0)

    assert choice.notes[0].startswith("On average, the model is 0 % sure of an image")
    assert "mostly takes typical images" in choice.notes[0]
    assert "probabilities to the power 1.00:" in choice.notes[0]
    assert choice.positions.tolist() == _plain(candidates, 6)[0]


def test_copies_of_one_confusion_are_asked_once():
    # Eight copies of the most uncertain image, and four others that are nearly as uncertain.
    probs = torch.tensor([[0.5, 0.5]] * 8 + [[0.55, 0.45]] * 4)
    features = torch.cat([torch.eye(5)[:1].expand(8, 5), torch.eye(5)[1:]])
    candidates = Candidates(np.arange(12, dtype=np.uint64), probs.log(), features=features, labeled=torch.ones(1, 5))

    chosen = choose("entropy-spread", candidates, 5, 0).positions

    assert sum(chosen < 8) == 1
    assert sum(choose("entropy", candidates, 5, 0).positions < 8) == 5


def test_the_kernel_is_narrower_where_labels_are_near():
    candidates = _candidates(_random(60, 2))
    near = Candidates(
        candidates.keys,
        candidates.calibrated_log_probs,
        features=candidates.features,
        labeled=candidates.features[:30],
        labels=torch.zeros(30, dtype=torch.int64),
    )

    notes = [choose("entropy-spread", one, 5, 0).notes[0] for one in (candidates, near)]

    widths = [float(re.findall(r"distance of about ([0-9.]+) between", note)[0]) for note in notes]
    assert widths[0] > widths[1] > 0


def test_big_pools_are_sampled_and_the_cost_says_so(monkeypatch):
    monkeypatch.setattr(spread, "TARGETS", 30)
    monkeypatch.setattr(spread, "SOURCES", 20)
    candidates = _candidates(_random(200, 3))

    choice = choose("entropy-spread", candidates, 10, 0)

    assert len(set(choice.positions.tolist())) == 10
    million = estimate("entropy-spread", Size(1_000_000, 1_000, 100, 10, 1, 512))
    assert million.n_bytes < 3 * 4 * 512 * 1_000_000
    assert estimate("entropy-spread", Size(10_000, 1_000, 100, 10, 1, 512)).operations < million.operations * 2


def test_without_labels_a_random_batch_stands_for_them():
    candidates = _candidates(_random(30, 4))
    unlabeled = Candidates(candidates.keys, candidates.calibrated_log_probs, features=candidates.features)

    first, again = (choose("entropy-spread", unlabeled, 5, 7) for _ in range(2))

    assert first.positions.tolist() == again.positions.tolist()
    assert np.isfinite(first.scores).all()
    assert first.scores[0] == pytest.approx(max(first.scores))
