"""k-center: against the plain loop, and where it starts and ends."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alloop.acquisition import kcenter
from alloop.acquisition.kcenter import k_center
from alloop.acquisition.strategy import Candidates


def _candidates(features: torch.Tensor, labeled: torch.Tensor | None = None) -> Candidates:
    return Candidates(np.arange(len(features), dtype=np.uint64), features=features, labeled=labeled)


def _plain(features: torch.Tensor, labeled: torch.Tensor, k: int) -> tuple[list[int], list[float]]:
    z, centers = torch.nn.functional.normalize(features).double(), torch.nn.functional.normalize(labeled).double()
    picked, radii = [], []
    for _ in range(k):
        distances = torch.cdist(z, centers).amin(dim=1)
        distances[picked] = -1
        picked.append(int(distances.argmax()))
        radii.append(float(distances.max()))
        centers = torch.cat([centers, z[picked[-1:]]])
    return picked, radii


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 5), st.integers(2, 40))
def test_old_distances_lead_to_the_same_images_as_the_plain_loop(seed, n_labeled, refreshed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(60, 3, generator=generator)
    labeled = torch.randn(n_labeled, 3, generator=generator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kcenter, "REFRESHED", refreshed)
        choice = k_center(_candidates(features, labeled), 12, 0)

    picked, radii = _plain(features, labeled, 12)
    np.testing.assert_allclose(choice.scores, radii, atol=1e-3)
    assert choice.positions.tolist() == picked


def test_without_labels_it_starts_next_to_the_mean():
    degrees = torch.tensor([0.0, 40, 90, 10, 70]).deg2rad()  # on average at about 42

    choice = k_center(_candidates(torch.stack([degrees.cos(), degrees.sin()], dim=1)), 3, 0)

    assert choice.positions.tolist() == [1, 2, 0]
    # chords of 50 and 40 degrees
    assert choice.scores == pytest.approx([0.8452, 0.8452, 0.6840], abs=1e-3)


def test_copies_come_last_by_key():
    candidates = Candidates(
        np.array([5, 4, 3, 2, 1], dtype=np.uint64),
        features=torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 3.0], [1.0, 0.0]]),
        labeled=torch.tensor([[1.0, 0.0]]),
    )

    choice = k_center(candidates, 4, 0)

    assert choice.positions.tolist() == [3, 4, 2, 1]
    assert choice.scores == pytest.approx([2**0.5, 0, 0, 0])


def test_length_does_not_count():
    features = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    longer = features * torch.linspace(0.01, 1000, 20).unsqueeze(1)

    assert (
        k_center(_candidates(features), 8, 0).positions.tolist()
        == k_center(_candidates(longer), 8, 0).positions.tolist()
    )
