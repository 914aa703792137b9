"""Losses on several heads: which term goes where, with which weights."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from alloop.composition import LOSSES
from alloop.losses.composed import composed_loss
from alloop.losses.cross_entropy import cross_entropy
from alloop.losses.multi_head import multi_head_loss
from alloop.losses.named import find_loss
from alloop.predictive import mean_log_probs

GOLDEN = np.load(Path(__file__).parents[2] / "assets" / "golden" / "losses.npz")
LABELS = torch.from_numpy(GOLDEN["labels"])
SOFT = torch.from_numpy(GOLDEN["soft_labels"])
IMBALANCE = torch.from_numpy(GOLDEN["class_weights"])
OMEGA = torch.rand(4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
EVERYWHERE = ["cross-entropy", "label-smoothing", "focal", "flsd-53", "entropy", "entropy-hinge"]


def _heads() -> torch.Tensor:
    return torch.from_numpy(GOLDEN["heads_logits"]).transpose(0, 1).contiguous()


@pytest.mark.parametrize("average", ["prob", "logit"])
@pytest.mark.parametrize("targets", [LABELS, SOFT], ids=["labels", "soft"])
def test_cross_entropy_composed_is_the_multi_head_loss(average, targets):
    composed = composed_loss(find_loss(), _heads(), targets, OMEGA, average=average)

    torch.testing.assert_close(composed, multi_head_loss(_heads(), targets, OMEGA, average=average))


@pytest.mark.parametrize("name", EVERYWHERE)
def test_losses_of_probabilities_act_on_every_head_and_on_the_average(name):
    loss, logits = find_loss(name), _heads()

    total = composed_loss(loss, logits, LABELS, OMEGA, IMBALANCE, loss_scale="sum")

    heads = sum(loss.value(logits[m], LABELS, OMEGA[m] * IMBALANCE) for m in range(4))
    pooled = loss.value(mean_log_probs(logits.log_softmax(-1)), LABELS, IMBALANCE)  # log-probs are their own logits
    torch.testing.assert_close(total, heads + pooled)


def test_margin_smoothing_acts_on_heads_and_leaves_the_average_plain():
    loss, logits = find_loss("mbls", {"margin": 1}), _heads()

    total = composed_loss(loss, logits, LABELS, OMEGA, IMBALANCE, loss_scale="sum")

    heads = sum(loss.value(logits[m], LABELS, OMEGA[m] * IMBALANCE) for m in range(4))
    pooled = cross_entropy(mean_log_probs(logits.log_softmax(-1)), LABELS, IMBALANCE)
    torch.testing.assert_close(total, heads + pooled)


def test_logit_norm_normalizes_each_head_by_itself_and_pools_what_it_normalized():
    loss, logits = find_loss("logit-norm", {"tau": 0.5}), _heads()

    total = composed_loss(loss, logits, LABELS, OMEGA, loss_scale="sum")

    normalized = logits / (0.5 * logits.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(total, multi_head_loss(normalized, LABELS, OMEGA, loss_scale="sum"), rtol=1e-6, atol=0)


def test_making_one_head_longer_changes_nothing_under_logit_norm():
    logits = _heads()
    longer = logits * torch.tensor([100.0, 1.0, 1.0, 1.0]).reshape(4, 1, 1)
    loss = find_loss("logit-norm")

    torch.testing.assert_close(
        composed_loss(loss, longer, LABELS), composed_loss(loss, logits, LABELS), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("name", ["mmce", "dca"])
def test_batch_penalties_act_on_the_average_once(name):
    loss, logits = find_loss(name), _heads()
    pooled = mean_log_probs(logits.log_softmax(-1))
    penalty = loss.value(pooled, LABELS) - cross_entropy(pooled, LABELS)

    extra = composed_loss(loss, logits, LABELS, OMEGA, loss_scale="sum") - multi_head_loss(
        logits, LABELS, OMEGA, loss_scale="sum"
    )

    assert penalty.item() > 0.01
    torch.testing.assert_close(extra, penalty)


@pytest.mark.parametrize("name", ["mmce", "dca"])
def test_batch_penalties_refuse_soft_targets_with_heads_too(name):
    with pytest.raises(ValueError, match="soft targets"):
        composed_loss(find_loss(name), _heads(), SOFT)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_the_mean_scale_divides_everything_by_heads_plus_one(name):
    loss = find_loss(name)

    total = composed_loss(loss, _heads(), LABELS, OMEGA, IMBALANCE, loss_scale="sum")

    torch.testing.assert_close(composed_loss(loss, _heads(), LABELS, OMEGA, IMBALANCE), total / 5)


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("scale", ["mean", "sum"])
def test_a_single_head_is_the_plain_loss(name, scale):
    loss, logits = find_loss(name), _heads()[:1]

    value = composed_loss(loss, logits, LABELS, OMEGA[:1], IMBALANCE, loss_scale=scale)

    torch.testing.assert_close(value, loss.value(logits[0], LABELS, IMBALANCE))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_order_of_heads_does_not_matter(name):
    order = [2, 0, 3, 1]
    loss = find_loss(name)

    torch.testing.assert_close(
        composed_loss(loss, _heads()[order], LABELS, OMEGA[order]), composed_loss(loss, _heads(), LABELS, OMEGA)
    )


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_extreme_heads_have_finite_gradients(name):
    logits = (_heads() * 1e6).float().requires_grad_()

    loss = composed_loss(find_loss(name), logits, LABELS, OMEGA.float())
    (gradient,) = torch.autograd.grad(loss, logits)

    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_a_head_that_diverged_is_an_error_that_names_the_row():
    logits = _heads()
    logits[3, 5, 0] = math.nan

    with pytest.raises(ValueError, match="row 5"):
        composed_loss(find_loss(), logits, LABELS)
