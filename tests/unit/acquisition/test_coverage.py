"""Coverage by kernels: against all gains computed again for each pick, and against each other."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alloop.acquisition import coverage
from alloop.acquisition.coverage import ball, gaussian, herd, max_herding, probcover, pure_radius, uherding
from alloop.acquisition.strategy import Candidates


def _candidates(n=60, n_features=3, n_labeled=3, seed=0) -> Candidates:
    generator = torch.Generator().manual_seed(seed)
    return Candidates(
        np.arange(n, dtype=np.uint64),
        calibrated_log_probs=torch.randn(n, 4, generator=generator).log_softmax(dim=1),
        features=torch.randn(n, n_features, generator=generator),
        labeled=torch.randn(n_labeled, n_features, generator=generator) if n_labeled else None,
        labels=torch.arange(n_labeled) % 2 if n_labeled else None,
    )


def _squared(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    a, b = (torch.nn.functional.normalize(rows.double(), dim=1).numpy() for rows in (a, b))
    return ((a[:, None] - b[None]) ** 2).sum(axis=2)


def _plain(candidates: Candidates, k: int, kernel, weights: np.ndarray) -> tuple[list[int], list[float]]:
    """Greedy, word for word."""
    similar = kernel(_squared(candidates.features, candidates.features))
    covered = np.zeros(len(candidates))
    if candidates.labeled is not None:
        covered = kernel(_squared(candidates.labeled, candidates.features)).max(axis=0)
    picked, gains = [], []
    for _ in range(k):
        gain = (weights * np.maximum(similar - covered, 0)).mean(axis=1)
        picked.append(int(np.argmax(np.round(gain, 7))))
        gains.append(float(gain[picked[-1]]))
        covered = np.maximum(covered, similar[picked[-1]])
    return picked, gains


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 3), st.integers(2, 40), st.floats(0.2, 2))
def test_old_gains_lead_to_the_same_images_as_trying_all(seed, n_labeled, refreshed, sigma):
    candidates = _candidates(n_labeled=n_labeled, seed=seed)
    weights = np.random.default_rng(seed).random(60)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coverage, "REFRESHED", refreshed)
        copy = dataclasses.replace(candidates, features=candidates.features.clone())
        choice = herd(copy, 8, 0, gaussian(sigma), weights)

    picked, gains = _plain(candidates, 8, lambda squared: np.exp(-squared / sigma**2), weights)
    np.testing.assert_allclose(choice.scores, gains, atol=1e-5)
    assert choice.positions.tolist() == picked


def test_the_kernel_has_no_2_in_it():
    assert gaussian(0.5)(torch.tensor([0.25])).item() == pytest.approx(math.exp(-1))


def test_herding_by_a_ball_is_probcover():
    candidates = _candidates(n_labeled=4)
    radius = pure_radius(torch.nn.functional.normalize(candidates.features), 2, 7)

    herded = herd(dataclasses.replace(candidates, features=candidates.features.clone()), 10, 7, ball(radius))
    covered = probcover(candidates, 10, 7)

    assert covered.positions.tolist() == herded.positions.tolist()
    picked, gains = _plain(candidates, 3, lambda squared: (squared < radius**2).astype(float), np.ones(60))
    assert covered.positions[:3].tolist() == picked
    np.testing.assert_allclose(covered.scores[:3], gains)


@pytest.mark.parametrize("n_labeled", [0, 1])
def test_without_a_model_that_knows_more_uherding_is_max_herding(n_labeled):
    candidates = dataclasses.replace(
        _candidates(n_labeled=n_labeled), calibrated_log_probs=torch.full((60, 4), 0.25).log()
    )

    assert uherding(candidates, 10, 3).positions.tolist() == max_herding(candidates, 10, 3).positions.tolist()


def test_the_kernel_is_as_wide_as_the_nearest_two_labeled_images_that_are_no_copies():
    degrees = torch.tensor([0.0, 0.0, 60.0, 180.0]).deg2rad()
    candidates = _candidates(n_features=2, n_labeled=0)
    labeled = torch.stack([degrees.cos(), degrees.sin()], dim=1) * torch.tensor([[1.0], [3.0], [1.0], [1.0]])

    choice = uherding(dataclasses.replace(candidates, labeled=labeled), 5, 0)

    # a chord of 60 degrees
    assert choice.notes == ("The kernel is 1.000 wide, the smallest distance between two labeled images.",)
    weights = 1 - np.diff(np.sort(candidates.calibrated_log_probs.exp().numpy(), axis=1))[:, -1]
    expected, _ = _plain(dataclasses.replace(candidates, labeled=labeled), 5, lambda squared: np.exp(-squared), weights)
    assert choice.positions.tolist() == expected


def test_many_labels_make_uherding_the_margin():
    candidates = _candidates(n_features=8, n_labeled=0)
    labeled = torch.eye(8)[:2] + torch.tensor([[0.0] * 7 + [0.005], [1.0] + [0.0] * 7])  # 0.3 degrees apart at best
    labeled = torch.cat([labeled, torch.eye(8)[:1]])

    choice = uherding(dataclasses.replace(candidates, labeled=labeled), 10, 0)

    gaps = np.diff(np.sort(candidates.calibrated_log_probs.exp().numpy(), axis=1))[:, -1]
    assert choice.positions.tolist() == np.argsort(gaps, kind="stable")[:10].tolist()


def test_when_all_is_covered_the_rest_is_said_to_be_by_key():
    # Labeled images sit on all candidates.
    candidates = _candidates(n=6, n_labeled=0)
    candidates = dataclasses.replace(candidates, labeled=candidates.features.clone())

    choice = max_herding(candidates, 3, 0)

    assert choice.positions.tolist() == [0, 1, 2]
    assert choice.scores.tolist() == [0, 0, 0]
    assert choice.notes == ("0 images cover the whole pool; the rest is chosen by key.",)


def test_the_radius_ends_where_the_first_twentieth_of_the_balls_meet_another_cluster():
    # 38 images at 0 and 100 degrees, two more at 40: those and their like are one cluster with either.
    degrees = torch.tensor([0.0] * 20 + [100.0] * 20).deg2rad()
    z = torch.stack([degrees.cos(), degrees.sin()], dim=1)

    assert pure_radius(z, 2, 0) == pytest.approx(2 * math.sin(math.radians(50)), rel=1e-4)
    assert pure_radius(z, 1, 0) == pytest.approx(2, rel=1e-4)


def test_large_pools_are_covered_by_samples_and_half_of_the_sources_weigh_most():
    weights = np.arange(60.0)

    sources = coverage._sources(60, 20, weights, np.random.default_rng(0))

    assert len(set(sources.tolist())) == 20
    assert set(range(50, 60)) <= set(sources.tolist())
    assert sources.min() < 40


@pytest.mark.parametrize("strategy", [max_herding, uherding, probcover])
def test_samples_cover_nearly_as_well_as_everything(strategy, monkeypatch):
    candidates = _candidates(n=600, n_features=4, n_labeled=5, seed=1)
    similar = np.exp(-_squared(candidates.features, candidates.features))

    whole = similar[strategy(candidates, 20, 0).positions].max(axis=0).mean()
    monkeypatch.setattr(coverage, "TARGETS", 200)
    monkeypatch.setattr(coverage, "SOURCES", 300)
    sampled = similar[strategy(candidates, 20, 0).positions].max(axis=0).mean()

    assert sampled > 0.97 * whole
