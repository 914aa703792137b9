"""Pooling members one by one: the same as all at once, without ever hiding a broken one."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alloop.models.ensemble import MemberPool, pool_members
from alloop.predictive import mean_log_probs

GOLDEN = np.load(Path(__file__).parents[2] / "assets" / "golden" / "uncertainty.npz")
STACK = torch.from_numpy(GOLDEN["probs"]).log()
BIG = torch.from_numpy(GOLDEN["big_logits"]).log_softmax(-1)


def _pool(members: torch.Tensor) -> MemberPool:
    pool = MemberPool()
    for member in members:
        pool.add(member)
    return pool


def test_the_pooled_prediction_agrees_with_numpy_and_scipy():
    np.testing.assert_allclose(_pool(STACK).mean_log_probs().exp(), GOLDEN["mean_probs"], atol=1e-12)
    np.testing.assert_allclose(_pool(BIG).mean_log_probs(), GOLDEN["big_log_mean_probs"], rtol=1e-12)


def test_probabilities_are_averaged_not_logits():
    sure, unsure = torch.tensor([[0.99, 0.01]]), torch.tensor([[0.5, 0.5]])

    pooled = pool_members([sure.log(), unsure.log()])

    assert pooled.exp()[0].tolist() == pytest.approx([0.745, 0.255], abs=1e-6)


@given(seed=st.integers(0, 500), size=st.sampled_from([1.0, 1e3, 1e6]))
@settings(max_examples=30, deadline=None)
def test_order_of_members_does_not_matter_and_all_at_once_is_the_same(seed, size):
    generator = torch.Generator().manual_seed(seed)
    members = (torch.randn(4, 6, 3, generator=generator, dtype=torch.float64) * size).log_softmax(-1)
    order = torch.randperm(4, generator=generator)

    pooled = pool_members(members)

    assert torch.isfinite(pooled).all()
    torch.testing.assert_close(pool_members(members[order]), pooled)
    torch.testing.assert_close(pooled, mean_log_probs(members))


def test_members_are_made_one_at_a_time():
    alive = 0

    def members():
        nonlocal alive
        for _ in range(5):
            alive += 1
            assert alive == 1
            yield torch.tensor([[0.5, 0.5]]).log()
            alive -= 1

    pool_members(members())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_member_that_diverged_fails_the_ensemble_by_name(bad):
    pool = _pool(torch.full((2, 3, 2), math.log(0.5)))
    broken = torch.full((3, 2), math.log(0.5))
    broken[1] = bad

    with pytest.raises(ValueError, match="row 1 of member 2 is not finite"):
        pool.add(broken)


def test_logits_are_not_mistaken_for_log_probabilities():
    with pytest.raises(ValueError, match="row 0 of member 0 sums to another probability"):
        MemberPool().add(torch.tensor([[3.0, 1.0]]))


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match="member 1 predicts"):
        pool_members([torch.zeros(2, 1), torch.zeros(3, 1)])


def test_no_member_predicts_nothing():
    with pytest.raises(ValueError, match="no members"):
        pool_members([])


def test_sure_members_half_precision_and_empty_sets_are_fine():
    one_hot = torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]])
    half = torch.tensor([[0.3, 0.7]]).log().bfloat16()

    assert pool_members([one_hot, one_hot]).exp().tolist() == one_hot.exp().tolist()
    assert pool_members([half, half]).dtype == torch.float64
    assert pool_members([torch.zeros(0, 3)]).shape == (0, 3)


def test_pooling_does_not_change_the_members():
    first = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()

    pool_members([first, torch.tensor([[0.9, 0.1]], dtype=torch.float64).log()])

    assert first.exp().tolist() == [[0.5, 0.5]]
