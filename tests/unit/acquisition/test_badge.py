"""BADGE against gradients that are really formed, and the slips that others have made."""

import collections

import numpy as np
import pytest
import torch

from alloop.acquisition.badge import badge, output_gradients
from alloop.acquisition.strategy import Candidates
from alloop.seeds import derive_seed


def _keys(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.uint64)


def _random(n=30, n_members=2, n_classes=3, n_features=4, seed=0) -> Candidates:
    generator = torch.Generator().manual_seed(seed)
    members = torch.randn(n_members, n, n_classes, generator=generator).log_softmax(dim=-1)
    return Candidates(_keys(n), member_log_probs=members, features=torch.randn(n, n_features, generator=generator))


def _gradients(candidates: Candidates) -> np.ndarray:
    """By autograd: of every head's cross-entropy at the pooled label, with respect to its weights and bias."""
    rows = []
    for n in range(len(candidates)):
        log_probs, h = candidates.member_log_probs[:, n].double(), candidates.features[n].double()
        weight = torch.zeros(*log_probs.shape, len(h) + 1, dtype=torch.float64, requires_grad=True)
        logits = log_probs + weight @ torch.cat([h, torch.ones(1)]).double()
        label = log_probs.exp().mean(dim=0).argmax()
        loss = -logits.log_softmax(dim=-1)[:, label].sum()
        rows.append(torch.autograd.grad(loss, weight)[0].flatten())
    return torch.stack(rows).numpy()


def _naive(gradients: np.ndarray, k: int, seed: int) -> list[int]:
    """k-means++ seeding, word for word."""
    generator = np.random.default_rng(derive_seed(seed, "badge"))
    weights = (gradients**2).sum(axis=1)
    picked: list[int] = []
    for _ in range(k):
        chance = np.cumsum(weights) / weights.sum()
        picked.append(int((chance <= generator.random()).sum()))
        weights = ((gradients[:, None] - gradients[None, picked]) ** 2).sum(axis=2).min(axis=1)
        weights[picked] = 0
    return picked


@pytest.mark.parametrize("n_members", [1, 3])
def test_the_same_images_as_with_gradients_by_autograd(n_members):
    candidates = _random(n_members=n_members)
    gradients = _gradients(candidates)

    for seed in range(20):
        assert badge(candidates, 10, seed).positions.tolist() == _naive(gradients, 10, seed)


def test_scores_are_squared_distances():
    candidates = _random()
    gradients = _gradients(candidates)

    choice = badge(candidates, 3, 0)

    first, second, third = gradients[choice.positions]
    expected = [first @ first, np.sum((second - first) ** 2)]
    expected.append(min(np.sum((third - first) ** 2), np.sum((third - second) ** 2)))
    np.testing.assert_allclose(choice.scores, expected, rtol=1e-4)


def test_heads_share_the_label_of_their_mean():
    members = torch.tensor([[[0.6, 0.4]], [[0.1, 0.9]]]).log()  # mean 0.35, 0.65

    torch.testing.assert_close(output_gradients(members), torch.tensor([[0.6, -0.6, 0.1, -0.1]]))


def test_the_first_is_drawn_by_its_squared_length():
    # a = (-0.5, 0.5) for all: squared lengths 0.5 * (1, 4, 0) + 0.5, a share of 2, 5 and 1 of 8.
    candidates = Candidates(
        _keys(3), member_log_probs=torch.full((1, 3, 2), 0.5).log(), features=torch.tensor([[1.0], [2.0], [0.0]])
    )

    first = collections.Counter(int(badge(candidates, 1, seed).positions[0]) for seed in range(2000))

    assert [first[position] / 2000 for position in range(3)] == pytest.approx([2 / 8, 5 / 8, 1 / 8], abs=0.04)


def test_the_origin_is_nobodys_center():
    # Two sure images with gradients of 0, and copies of one undecided one: the second is a sure one, always.
    members = torch.tensor([[[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [1.0, 0.0], [0.0, 1.0]]]).log()
    candidates = Candidates(_keys(5), member_log_probs=members, features=torch.ones(5, 2))

    batches = [badge(candidates, 2, seed).positions.tolist() for seed in range(50)]

    assert {first for first, _ in batches} == {0, 1, 2}
    assert {second for _, second in batches} == {3, 4}


def test_copies_are_drawn_evenly_once_nothing_else_is_left():
    members = torch.tensor([[[0.5, 0.5]] * 4]).log()
    candidates = Candidates(_keys(4), member_log_probs=members, features=torch.full((4, 3), 0.1))

    orders = collections.Counter(tuple(badge(candidates, 4, seed).positions.tolist()) for seed in range(2400))

    assert len(orders) == 24
    assert max(orders.values()) < 150


def test_sure_predictions_only_are_drawn_evenly():
    members = torch.tensor([[[1.0, 0.0]] * 4]).log()
    candidates = Candidates(_keys(4), member_log_probs=members, features=torch.randn(4, 3))

    firsts = collections.Counter(int(badge(candidates, 1, seed).positions[0]) for seed in range(400))

    assert set(firsts) == {0, 1, 2, 3}
