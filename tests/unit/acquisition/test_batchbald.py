"""BatchBALD: against joint entropies by enumeration, and samples against all configurations."""

import itertools

import numpy as np
import pytest
import torch
from choices import choose

from alloop.acquisition import batchbald as module
from alloop.acquisition.batchbald import _Joint, batchbald
from alloop.acquisition.strategy import Candidates


def _members(n_members=5, n=12, n_classes=3, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_members, n, n_classes, generator=generator).mul(2).log_softmax(dim=-1)


def _candidates(members: torch.Tensor) -> Candidates:
    return Candidates(np.arange(members.shape[1], dtype=np.uint64), member_log_probs=members)


def _mutual_information(probs: np.ndarray, batch: list[int]) -> float:
    """H[y_B] - E_m H[y_B | m], by every configuration of answers."""
    n_members, _, n_classes = probs.shape
    joint = 0.0
    for answers in itertools.product(range(n_classes), repeat=len(batch)):
        q = np.mean([np.prod([probs[m, i, y] for i, y in zip(batch, answers, strict=True)]) for m in range(n_members)])
        joint -= q * np.log(q)
    return joint - float(np.mean([-(probs[:, i] * np.log(probs[:, i])).sum(axis=1) for i in batch], axis=1).sum())


def test_each_pick_adds_most_to_what_the_batch_tells():
    members = _members()
    probs = members.double().exp().numpy()

    choice = batchbald(_candidates(members), 4, 0)

    picked: list[int] = []
    for position, score in zip(choice.positions.tolist(), choice.scores.tolist(), strict=True):
        told = _mutual_information(probs, picked) if picked else 0.0
        gains = [_mutual_information(probs, [*picked, i]) - told if i not in picked else -1.0 for i in range(12)]
        assert position == int(np.argmax(gains))
        assert score == pytest.approx(max(gains), abs=1e-6)
        picked.append(position)


def test_the_first_is_balds():
    for seed in range(10):
        candidates = _candidates(_members(n=40, seed=seed))

        assert batchbald(candidates, 1, 0).positions.tolist() == choose("bald", candidates, 1, 0).positions.tolist()


def test_of_copies_only_one_is_asked():
    members = _members(n=4)
    copies = torch.cat([members, members, members], dim=1)

    picked = batchbald(_candidates(copies), 4, 0).positions
    balds = choose("bald", _candidates(copies), 3, 0).positions

    # BALD takes all three copies of the best first.
    assert len(set(balds % 4)) == 1
    assert len(set(picked[:2] % 4)) == 2


def test_samples_agree_with_all_configurations(monkeypatch):
    log_probs = _members(n=30).double()
    exact = sampled = _Joint.of(log_probs, 0)
    for position in range(5):
        monkeypatch.setattr(module, "CONFIGURATIONS", 10_000)
        exact = exact.with_image(position)
        # 9 configurations of two answers are all there, then 20,000 samples
        monkeypatch.setattr(module, "CONFIGURATIONS", 9 if position < 2 else 20_000)
        sampled = sampled.with_image(position) if position != 2 else _sampled(sampled, position)
    rest = np.arange(5, 30)

    assert not exact.sampled and len(exact.shares) == 3**5
    assert sampled.sampled and len(sampled.shares) == 20_000
    np.testing.assert_allclose(sampled.gains(rest), exact.gains(rest), atol=0.01)


def _sampled(joint: _Joint, position: int) -> _Joint:
    """The step at which samples begin."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CONFIGURATIONS", 20)
        few = joint.with_image(position)
        assert few.sampled
        many = [joint.with_image(position) for _ in range(1000)]
    return _Joint(
        joint.probs,
        joint.left_open,
        torch.cat([part.weights for part in many]),
        torch.full((20_000,), 1 / 20_000, dtype=torch.float64),
        joint.generator,
        sampled=True,
    )


def test_nothing_underflows_over_a_hundred_picks(monkeypatch):
    monkeypatch.setattr(module, "CONFIGURATIONS", 1000)

    choice = batchbald(_candidates(_members(n=150, n_classes=10)), 100, 0)

    assert (choice.scores >= 0).all()
    assert len(set(choice.positions.tolist())) == 100
    # Five members cannot be told apart by more than ln 5; the rest is noise of the samples.
    assert choice.scores.sum() <= np.log(5) + 0.2
    assert choice.notes[0].startswith("Beyond about 20 images")


def test_a_single_member_is_refused():
    with pytest.raises(ValueError, match="at least 2 members"):
        batchbald(_candidates(_members(n_members=1)), 2, 0)
