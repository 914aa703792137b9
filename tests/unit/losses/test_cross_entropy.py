"""Cross-entropy against third-party values and gradients."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from alloop.losses.cross_entropy import cross_entropy

GOLDEN = np.load(Path(__file__).parents[2] / "assets" / "golden" / "losses.npz")


def _tensor(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name])


@pytest.mark.parametrize(
    ("name", "targets", "weighted"),
    [
        ("ce", "labels", False),
        ("ce_soft", "soft_labels", False),
        ("ce_weighted_plain_mean", "labels", True),
        ("ce_soft_weighted_torch_mean", "soft_labels", True),
    ],
)
def test_value_and_gradient_agree_with_pytorchs(name, targets, weighted):
    logits = _tensor("logits").requires_grad_()
    weights = _tensor("class_weights") if weighted else None

    loss = cross_entropy(logits.log_softmax(-1), _tensor(targets), weights)
    (gradient,) = torch.autograd.grad(loss, logits)

    assert loss.item() == pytest.approx(float(GOLDEN[name]), abs=1e-9)
    np.testing.assert_allclose(gradient.numpy(), GOLDEN[f"{name}_grad"], atol=1e-9)


def test_a_soft_target_that_is_one_class_counts_as_that_class():
    log_probs, labels = _tensor("logits").log_softmax(-1), _tensor("labels")
    one_hot = torch.nn.functional.one_hot(labels, 7).double()
    weights = _tensor("class_weights")

    soft = cross_entropy(log_probs, one_hot, weights, reduction="none")

    torch.testing.assert_close(soft, cross_entropy(log_probs, labels, weights, reduction="none"))


def test_weights_scale_the_loss_even_in_a_batch_of_one_class():
    log_probs = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()

    loss = cross_entropy(log_probs, torch.tensor([0, 0]), torch.tensor([3.0, 1.0]))

    assert loss.item() == pytest.approx(3 * math.log(2))


def test_reductions_are_mean_sum_and_one_value_per_image():
    log_probs = torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log()
    targets = torch.tensor([0, 0])

    each = cross_entropy(log_probs, targets, reduction="none")

    assert each.tolist() == pytest.approx([math.log(2), math.log(4)])
    assert cross_entropy(log_probs, targets, reduction="sum").item() == pytest.approx(math.log(8))
    assert cross_entropy(log_probs, targets).item() == pytest.approx(math.log(8) / 2)


def test_a_class_that_is_not_asked_for_may_have_probability_zero():
    log_probs = torch.tensor([[0.0, -math.inf]], requires_grad=True)

    loss = cross_entropy(log_probs, torch.tensor([[1.0, 0.0]]))
    loss.backward()

    assert loss.item() == 0
    assert torch.isfinite(log_probs.grad).all()
