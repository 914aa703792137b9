"""The multi-head loss against third-party values, and the properties its paper proves."""

import collections
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alloop.losses.composed import composed_loss
from alloop.losses.multi_head import assign_specialties, class_weights, multi_head_loss, multi_head_slopes
from alloop.losses.named import find_loss

GOLDEN = np.load(Path(__file__).parents[2] / "assets" / "golden" / "losses.npz")
LABELS = torch.from_numpy(GOLDEN["labels"])


def _heads() -> torch.Tensor:
    return torch.from_numpy(GOLDEN["heads_logits"]).transpose(0, 1).contiguous()  # stored [B, M, K]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _random_weights() -> torch.Tensor:
    return torch.rand(4, 7, generator=_generator(), dtype=torch.float64) + 0.1


def test_its_first_term_and_gradient_agree_with_a_mixture_distributions():
    logits = _heads().requires_grad_()
    no_weights = torch.zeros(4, 7, dtype=torch.float64)  # leaves the first term alone

    loss = multi_head_loss(logits, LABELS, no_weights, loss_scale="sum")
    (gradient,) = torch.autograd.grad(loss, logits)

    assert loss.item() == pytest.approx(float(GOLDEN["heads_mixture_ce"]), abs=1e-9)
    np.testing.assert_allclose(gradient.transpose(0, 1).numpy(), GOLDEN["heads_mixture_ce_grad"], atol=1e-9)


def test_average_of_logits_is_available_to_reproduce_the_published_code():
    no_weights = torch.zeros(4, 7, dtype=torch.float64)

    loss = multi_head_loss(_heads(), LABELS, no_weights, average="logit", loss_scale="sum")

    assert loss.item() == pytest.approx(float(GOLDEN["heads_mean_logit_ce"]), abs=1e-9)


def test_gradient_of_every_head_is_its_share_plus_its_weight_times_its_own_error():
    logits, weights = _heads().requires_grad_(), _random_weights()

    loss = multi_head_loss(logits, LABELS, weights, loss_scale="sum", reduction="sum")
    (gradient,) = torch.autograd.grad(loss, logits)

    probs = logits.detach().softmax(-1)
    at_label = probs[:, torch.arange(len(LABELS)), LABELS]  # [M, B]
    share = at_label / at_label.sum(0)
    error = probs - torch.nn.functional.one_hot(LABELS, 7)
    expected = (share + weights[:, LABELS]).unsqueeze(-1) * error
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=0)


def test_heads_that_agree_get_equal_gradients_under_equal_weights_and_different_ones_under_different():
    logits = _heads()[:1].repeat(2, 1, 1).requires_grad_()

    (equal,) = torch.autograd.grad(multi_head_loss(logits, LABELS), logits)
    (different,) = torch.autograd.grad(multi_head_loss(logits, LABELS, _random_weights()[:2]), logits)

    torch.testing.assert_close(equal[0], equal[1])
    assert not torch.allclose(different[0], different[1])


def test_the_mean_scale_divides_by_heads_plus_one():
    weights = _random_weights()

    total = multi_head_loss(_heads(), LABELS, weights, loss_scale="sum")

    torch.testing.assert_close(multi_head_loss(_heads(), LABELS, weights), total / 5)


@pytest.mark.parametrize("scale", ["mean", "sum"])
def test_a_single_head_is_plain_cross_entropy(scale):
    logits = torch.from_numpy(GOLDEN["logits"]).unsqueeze(0)
    weights = class_weights(assign_specialties(7, 1, _generator()), 7)

    assert multi_head_loss(logits, LABELS, weights, loss_scale=scale).item() == pytest.approx(
        float(GOLDEN["ce"]), abs=1e-9
    )


def test_class_positions_and_one_hot_rows_give_the_same_loss():
    one_hot = torch.nn.functional.one_hot(LABELS, 7).double()
    weights = _random_weights()

    torch.testing.assert_close(multi_head_loss(_heads(), LABELS, weights), multi_head_loss(_heads(), one_hot, weights))


@given(shift=st.floats(-1e4, 1e4), size=st.floats(1, 1e4))
@settings(max_examples=40, deadline=None)
def test_extreme_logits_give_finite_losses_and_gradients(shift, size):
    logits = (torch.randn(3, 5, 4, generator=_generator()) * size + shift).requires_grad_()
    weights = class_weights(assign_specialties(4, 3, _generator()), 4)

    loss = multi_head_loss(logits, torch.tensor([0, 1, 2, 3, 0]), weights)
    (gradient,) = torch.autograd.grad(loss, logits)

    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_half_precision_logits_are_widened_before_anything_is_computed():
    logits = torch.tensor([[[30.0, 0.0]], [[0.0, 30.0]]])
    targets = torch.tensor([0])

    loss = multi_head_loss(logits.bfloat16(), targets)

    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, multi_head_loss(logits, targets))


def test_the_weights_of_the_papers_example():
    weights = class_weights(((0, 2), (1, 3)), n_classes=4)

    assert weights.tolist() == [[2, 0.5, 2, 0.5], [0.5, 2, 0.5, 2]]


@given(n_classes=st.integers(2, 40), n_heads=st.integers(1, 12), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_specialties_are_spread_evenly(n_classes, n_heads, seed):
    parts = assign_specialties(n_classes, n_heads, _generator(seed))

    heads_of_class = collections.Counter(position for part in parts for position in part)
    sizes = {len(part) for part in parts}
    if n_heads <= n_classes:
        assert heads_of_class == dict.fromkeys(range(n_classes), 1)
        assert sizes <= {n_classes // n_heads, -(-n_classes // n_heads)}
    else:
        assert sizes == {1}
        counts = {heads_of_class[position] for position in range(n_classes)}
        assert counts <= {n_heads // n_classes, -(-n_heads // n_classes)}


def test_the_classes_left_over_go_to_random_heads():
    larger = collections.Counter(
        head
        for seed in range(200)
        for head, part in enumerate(assign_specialties(5, 4, _generator(seed)))
        if len(part) == 2
    )

    assert set(larger) == {0, 1, 2, 3}


def test_more_heads_than_classes_are_possible_and_said_so(caplog):
    with caplog.at_level(logging.INFO):
        parts = assign_specialties(2, 5, _generator())

    assert [len(part) for part in parts] == [1] * 5
    assert "5 heads for 2 classes" in caplog.text


def test_a_new_class_goes_to_the_head_with_fewest_and_the_others_stay():
    parts = assign_specialties(6, 3, _generator(), known=[(0, 3), (1, 2), (4,)])

    assert parts == ((0, 3), (1, 2), (4, 5))


def test_two_new_classes_are_dealt_to_two_heads():
    parts = assign_specialties(4, 2, _generator(), known=[(0,), (1,)])

    assert [len(part) for part in parts] == [2, 2]
    assert 0 in parts[0]
    assert 1 in parts[1]


def test_specialties_depend_on_the_seed_only():
    assert assign_specialties(9, 4, _generator(3)) == assign_specialties(9, 4, _generator(3))
    assert len({assign_specialties(9, 4, _generator(seed)) for seed in range(20)}) > 1


@pytest.mark.parametrize(("n_classes", "n_heads"), [(1, 2), (3, 0)])
def test_fewer_than_two_classes_or_no_head_is_refused(n_classes, n_heads):
    with pytest.raises(ValueError, match="at least 2 classes and 1 head"):
        assign_specialties(n_classes, n_heads, _generator())


def test_known_parts_of_other_heads_are_refused():
    with pytest.raises(ValueError, match="do not fit 3 heads"):
        assign_specialties(4, 3, _generator(), known=[(0,), (1,)])


@pytest.mark.parametrize("scale", ["mean", "sum"])
@pytest.mark.parametrize("is_balanced", [False, True])
@pytest.mark.parametrize("is_soft", [False, True])
@pytest.mark.parametrize("n_heads", [1, 4])
def test_slopes_that_are_written_out_are_those_of_autograd(n_heads, is_soft, is_balanced, scale):
    logits = 3 * torch.randn(n_heads, 9, 7, generator=_generator(), dtype=torch.float64).requires_grad_()
    targets = (
        torch.rand(9, 7, generator=_generator(1), dtype=torch.float64).softmax(1) if is_soft else torch.arange(9) % 7
    )
    omega = _random_weights() if n_heads > 1 else None
    weights = torch.rand(7, generator=_generator(2), dtype=torch.float64) + 0.1 if is_balanced else None

    value, slopes = multi_head_slopes(logits.detach(), targets, omega, weights, loss_scale=scale)

    expected = composed_loss(find_loss(), logits, targets, omega, weights, loss_scale=scale)
    (gradient,) = torch.autograd.grad(expected, logits)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(slopes, gradient, rtol=1e-10, atol=1e-14)


def test_slopes_are_finite_where_no_head_leaves_a_class_any_probability():
    logits = torch.tensor([[[0.0, 2000.0]], [[0.0, 3000.0]]], dtype=torch.float64)

    value, slopes = multi_head_slopes(logits, torch.tensor([0]))

    assert torch.isfinite(value)
    assert torch.isfinite(slopes).all()
