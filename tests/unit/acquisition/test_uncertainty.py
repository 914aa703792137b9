"""Uncertainty scores against third-party values, on random, one-hot, uniform and enormous predictions."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alloop.acquisition import uncertainty
from alloop.predictive import mean_log_probs, mean_probs

GOLDEN = np.load(Path(__file__).parents[2] / "assets" / "golden" / "uncertainty.npz")
SCORES = ["predictive_entropy", "expected_entropy", "mutual_information", "variation_ratio"]
ALL = [*SCORES, "least_confidence", "margin"]


def _log_probs(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(GOLDEN["probs"]).log().to(dtype)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_scores_agree_with_scipys(name, dtype, tolerance):
    scores = getattr(uncertainty, name)(_log_probs(dtype))

    np.testing.assert_allclose(scores.double().numpy(), GOLDEN[name], atol=tolerance)


def test_margin_is_the_negated_gap_of_the_two_best_classes():
    np.testing.assert_allclose(uncertainty.margin(_log_probs()).numpy(), -GOLDEN["margin"], atol=1e-12)


def test_least_confidence_is_what_the_top_class_lacks():
    expected = 1 - GOLDEN["mean_probs"].max(axis=1)

    np.testing.assert_allclose(uncertainty.least_confidence(_log_probs()).numpy(), expected, atol=1e-12)


def test_the_mean_prediction_agrees_with_scipys():
    np.testing.assert_allclose(mean_probs(_log_probs()).numpy(), GOLDEN["mean_probs"], atol=1e-12)


@pytest.mark.parametrize("name", ["predictive_entropy", "expected_entropy", "mutual_information"])
def test_logits_up_to_a_million_are_no_obstacle(name):
    log_probs = torch.from_numpy(GOLDEN["big_logits"]).log_softmax(-1)

    scores = getattr(uncertainty, name)(log_probs)

    np.testing.assert_allclose(mean_log_probs(log_probs).numpy(), GOLDEN["big_log_mean_probs"], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(scores.numpy(), GOLDEN[f"big_{name}"], atol=1e-12)


def test_members_that_disagree_confidently_are_as_uncertain_as_a_coin():
    heads, tails = [50.0, -50.0], [-50.0, 50.0]
    log_probs = torch.tensor([[heads], [tails]]).log_softmax(dim=-1)

    assert uncertainty.predictive_entropy(log_probs).item() == pytest.approx(math.log(2))
    assert uncertainty.expected_entropy(log_probs).item() == pytest.approx(0, abs=1e-12)
    assert uncertainty.mutual_information(log_probs).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_prediction_that_is_not_finite_is_named_by_its_position(name, value):
    log_probs = torch.full((2, 5, 3), 1 / 3).log()
    log_probs[1, 3, 0] = value

    with pytest.raises(ValueError, match="position 3 is not finite"):
        getattr(uncertainty, name)(log_probs)


@pytest.mark.parametrize("name", ALL)
def test_a_row_without_any_probability_is_an_error(name):
    log_probs = torch.full((2, 2, 3), 1 / 3).log()
    log_probs[:, 1] = -math.inf

    with pytest.raises(ValueError, match="position 1 is not finite"):
        getattr(uncertainty, name)(log_probs)


@pytest.mark.parametrize("name", ["mutual_information", "variation_ratio"])
def test_a_single_member_cannot_disagree_with_itself(name):
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        getattr(uncertainty, name)(_log_probs()[:1])


@pytest.mark.parametrize("name", ALL)
def test_one_hot_and_uniform_predictions_give_the_ends_of_the_range(name):
    sure = torch.tensor([0.0, -math.inf, -math.inf])
    unsure = torch.full((3,), 1 / 3).log()

    scores = getattr(uncertainty, name)(torch.stack([sure, unsure]).expand(4, 2, 3))

    assert torch.isfinite(scores).all()
    assert scores[1] >= scores[0]


@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 1e4), n_classes=st.integers(2, 12))
@settings(max_examples=40, deadline=None)
def test_scores_move_with_their_rows_stay_in_range_and_leave_the_input_alone(seed, scale, n_classes):
    generator = torch.Generator().manual_seed(seed)
    log_probs = (torch.randn(3, 9, n_classes, generator=generator) * scale).log_softmax(-1)
    before, order = log_probs.clone(), torch.randperm(9, generator=generator)

    for name in ALL:
        scores = getattr(uncertainty, name)(log_probs)
        assert torch.equal(getattr(uncertainty, name)(log_probs[:, order]), scores[order])
    entropy = uncertainty.predictive_entropy(log_probs)
    assert (entropy >= 0).all()
    assert (entropy <= math.log(n_classes) + 1e-5).all()
    assert (uncertainty.mutual_information(log_probs) <= min(math.log(3), math.log(n_classes)) + 1e-5).all()
    assert torch.equal(log_probs, before)
