"""Every loss against third-party values and gradients, and what a reader can verify by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alloop.composition import LOSSES
from alloop.losses.batch_calibration import dca, mmce
from alloop.losses.entropy_penalty import entropy_of
from alloop.losses.focal import focal
from alloop.losses.logit_norm import normalize_logits
from alloop.losses.named import find_loss

GOLDEN = np.load(Path(__file__).parents[2] / "assets" / "golden" / "losses.npz")
LABELS = torch.from_numpy(GOLDEN["labels"])
SOFT = torch.from_numpy(GOLDEN["soft_labels"])
NAMES = sorted(LOSSES)
OF_LOGITS = {
    "ce": find_loss("cross-entropy").value,
    "ce_ls005": find_loss("label-smoothing").value,
    "focal_g3": find_loss("focal").value,
    "focal_g1": find_loss("focal", {"gamma": 1}).value,
    "logitnorm_t004": find_loss("logit-norm").value,
    "logitnorm_t1": find_loss("logit-norm", {"tau": 1}).value,
    "mmce_weighted_sqrt": lambda z, y: mmce(z.log_softmax(-1), y),
    "dca_term": lambda z, y: dca(z.log_softmax(-1), y),
    "mean_entropy": lambda z, _: entropy_of(z.log_softmax(-1)).mean(),
}
TOLERANCES = {"dca_term": 1e-7, "logitnorm_t004": 1e-6, "logitnorm_t1": 1e-6}


def _logits() -> torch.Tensor:
    return torch.from_numpy(GOLDEN["logits"]).clone().requires_grad_()


def _random(n: int, k: int, scale: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, k, generator=generator, dtype=torch.float64) * scale
    return logits, torch.randint(k, (n,), generator=generator)


@pytest.mark.parametrize("name", sorted(OF_LOGITS))
def test_value_and_gradient_agree_with_other_libraries(name):
    logits = _logits()

    loss = OF_LOGITS[name](logits, LABELS)
    (gradient,) = torch.autograd.grad(loss, logits)

    tolerance = TOLERANCES.get(name, 1e-9)
    assert loss.item() == pytest.approx(float(GOLDEN[name]), abs=tolerance)
    np.testing.assert_allclose(gradient.numpy(), GOLDEN[f"{name}_grad"], atol=tolerance)


@pytest.mark.parametrize(
    ("name", "factor", "term"),
    [("entropy", -0.1, "mean_entropy"), ("mmce", 2, "mmce_weighted_sqrt"), ("dca", 5, "dca_term")],
)
def test_a_penalty_is_added_to_cross_entropy_with_its_sign_and_default_factor(name, factor, term):
    logits = _logits()

    loss = find_loss(name).value(logits, LABELS)
    (gradient,) = torch.autograd.grad(loss, logits)

    assert loss.item() == pytest.approx(float(GOLDEN["ce"] + factor * GOLDEN[term]), abs=1e-6)
    np.testing.assert_allclose(gradient.numpy(), GOLDEN["ce_grad"] + factor * GOLDEN[f"{term}_grad"], atol=1e-6)


def test_alpha_of_dca_scales_cross_entropy_alone():
    loss = find_loss("dca", {"alpha": 3, "beta": 1}).value(_logits(), LABELS)

    assert loss.item() == pytest.approx(float(3 * GOLDEN["ce"] + GOLDEN["dca_term"]), abs=1e-6)


def test_margin_smoothing_penalizes_only_what_exceeds_the_margin():
    logits = torch.tensor([[12.0, 0.0, 3.0]], dtype=torch.float64, requires_grad=True)

    loss = find_loss("mbls", {"margin": 10, "alpha": 0.3}).value(logits, torch.tensor([0]))
    (gradient,) = torch.autograd.grad(loss, logits)

    # Distances to the top are 0, 12 and 9: only one exceeds 10, by 2; the mean over 3 classes is 2/3.
    plain = -torch.log_softmax(logits.detach(), -1)[0, 0].item()
    assert loss.item() == pytest.approx(plain + 0.3 * 2 / 3)
    expected = logits.detach().softmax(-1) - torch.tensor([[1.0, 0, 0]]) + torch.tensor([[0.1, -0.1, 0]])
    torch.testing.assert_close(gradient, expected)


def test_margin_smoothing_averages_over_images_and_classes():
    logits, labels = _random(5, 4, scale=20)

    loss = find_loss("mbls").value(logits, labels)

    by_hand = sum(max(0.0, max(row) - z - 10) for row in logits.tolist() for z in row) / 20
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item() + 0.1 * by_hand)


def test_a_margin_tie_moves_one_logit_down_not_all():
    logits = torch.tensor([[20.0, 20.0, 0.0]], requires_grad=True)

    find_loss("mbls", {"alpha": 3}).value(logits, torch.tensor([[0.5, 0.5, 0.0]])).backward()

    assert sorted(logits.grad[0].tolist()) == pytest.approx([-1.0, 0.0, 1.0], abs=1e-6)


def test_focal_53_is_steep_below_a_fifth_and_flat_above():
    log_probs = torch.tensor([[0.1, 0.9], [0.6, 0.4]], dtype=torch.float64).log()

    each = find_loss("flsd-53").value(log_probs, torch.tensor([0, 0]), reduction="none")

    assert each.tolist() == pytest.approx([-(0.9**5) * math.log(0.1), -(0.4**3) * math.log(0.6)])


def test_focal_53_has_no_gradient_through_the_choice_of_gamma():
    logits = torch.tensor([[0.0, 2.0]], dtype=torch.float64, requires_grad=True)  # p = 0.119

    (chosen,) = torch.autograd.grad(find_loss("flsd-53").value(logits, torch.tensor([0])), logits)
    (fixed,) = torch.autograd.grad(find_loss("focal", {"gamma": 5}).value(logits, torch.tensor([0])), logits)

    torch.testing.assert_close(chosen, fixed)


@given(seed=st.integers(0, 50), gamma=st.sampled_from([0.0, 1.0, 2.0, 3.0]))
@settings(max_examples=30, deadline=None)
def test_focal_loss_is_at_least_cross_entropy_minus_gamma_entropies(seed, gamma):
    logits, labels = _random(6, 5, scale=3, seed=seed)
    log_probs = logits.log_softmax(-1)

    each = focal(log_probs, labels, gamma, reduction="none")

    bound = -log_probs[torch.arange(6), labels] - gamma * entropy_of(log_probs)
    assert (each >= bound - 1e-12).all()


def test_focal_of_soft_targets_sums_each_class_by_its_share():
    log_probs = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log()

    loss = focal(log_probs, torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64), gamma=2.0)

    assert loss.item() == pytest.approx(-0.5 * 0.3**2 * math.log(0.7) - 0.5 * 0.8**2 * math.log(0.2))


@pytest.mark.parametrize("gamma", [0.5, 0.99, -1.0, math.nan])
def test_a_gamma_with_an_infinite_slope_is_refused(gamma):
    with pytest.raises(ValueError, match="gamma"):
        focal(torch.zeros(1, 2), torch.tensor([0]), gamma)
    with pytest.raises(ValueError, match="gamma"):
        find_loss("focal", {"gamma": gamma})


def test_the_hinge_rewards_entropy_only_below_its_threshold():
    even, sure = torch.tensor([[0.0, 0.0]]), torch.tensor([[100.0, 0.0]])
    loss = find_loss("entropy-hinge", {"beta": 2, "threshold": 0.5})

    assert loss.value(even, torch.tensor([0])).item() == pytest.approx(math.log(2))
    assert loss.value(sure, torch.tensor([0])).item() == pytest.approx(2 * 0.5)


def test_mmce_by_hand_with_two_right_and_two_wrong():
    probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.3, 0.7]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 0])  # right at 0.9 and 0.6, wrong at 0.8 and 0.7
    right, wrong = [0.9, 0.6], [0.8, 0.7]

    def kernel(a, b):
        return math.exp(-abs(a - b) / 0.4)

    square = sum((1 - a) * (1 - b) * kernel(a, b) for a in right for b in right) / 4
    square += sum(a * b * kernel(a, b) for a in wrong for b in wrong) / 4
    square -= 2 * sum((1 - a) * b * kernel(a, b) for a in right for b in wrong) / 4

    assert mmce(probs.log(), labels).item() == pytest.approx(math.sqrt(square), rel=1e-9)


def test_mmce_in_blocks_of_rows_is_mmce_at_once(monkeypatch):
    logits, labels = _random(50, 3)
    logits.requires_grad_()
    whole = mmce(logits.log_softmax(-1), labels)
    (gradient,) = torch.autograd.grad(whole, logits)

    monkeypatch.setattr("alloop.losses.batch_calibration._ROWS", 7)
    blocks = mmce(logits.log_softmax(-1), labels)
    (gradient_of_blocks,) = torch.autograd.grad(blocks, logits)

    torch.testing.assert_close(blocks, whole)
    torch.testing.assert_close(gradient_of_blocks, gradient)


@pytest.mark.parametrize("name", ["mmce", "dca"])
@pytest.mark.parametrize("right", [True, False])
def test_a_batch_of_sure_predictions_has_a_finite_gradient(name, right):
    logits = torch.tensor([[1e6, 0.0]] * 20, requires_grad=True)
    labels = torch.full((20,), 0 if right else 1)

    loss = find_loss(name).value(logits, labels)
    loss.backward()

    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_dca_where_confidence_and_accuracy_agree_moves_nothing():
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]], requires_grad=True)  # confidence 1/2, one of two right

    dca(logits.log_softmax(-1), torch.tensor([0, 1])).backward()

    assert logits.grad.abs().max() == 0


def test_dca_lets_over_and_under_confidence_cancel():
    probs = torch.tensor([[0.9, 0.1], [0.6, 0.4]], dtype=torch.float64)

    assert dca(probs.log(), torch.tensor([0, 1])).item() == pytest.approx(0.75 - 0.5)


def test_small_batches_of_mmce_are_said_to_be_noise(caplog):
    logits, labels = _random(11, 3)

    mmce(logits.log_softmax(-1), labels)

    assert "batch of 11 images" in caplog.text


def test_normalized_logits_have_length_one_over_tau_at_every_scale():
    logits, _ = _random(8, 5)

    for scale in (1e-2, 1.0, 1e6):
        norm = torch.linalg.vector_norm(normalize_logits(logits * scale, tau=0.5), dim=-1)
        torch.testing.assert_close(norm, torch.full((8,), 2.0, dtype=torch.float64), rtol=1e-4, atol=0)


def test_logits_of_zero_are_an_even_prediction_with_a_finite_gradient():
    logits = torch.zeros(3, 4, requires_grad=True)
    loss = find_loss("logit-norm", {"tau": 1})

    value = loss.value(logits, torch.tensor([0, 1, 2]))
    value.backward()

    assert value.item() == pytest.approx(math.log(4))
    assert logits.grad.abs().max() <= 1e4  # 1e-4 is the shortest norm


def test_logit_norm_cannot_get_below_its_floor():
    best = (
        torch.tensor([[3.0, -1.0, -1.0, -1.0]], dtype=torch.float64) * 1e3
    )  # the direction that g = sqrt(K/(K-1)) needs

    loss = find_loss("logit-norm", {"tau": 1}).value(best, torch.tensor([0]))

    assert loss.item() == pytest.approx(math.log(1 + 3 * math.exp(-math.sqrt(4 / 3))), abs=1e-9)


def test_logit_norm_predicts_from_normalized_logits_and_the_others_from_raw_ones():
    logits, _ = _random(4, 3, scale=30)

    torch.testing.assert_close(
        find_loss("logit-norm").log_probs(logits), normalize_logits(logits, 0.04).log_softmax(-1)
    )
    for name in set(NAMES) - {"logit-norm"}:
        torch.testing.assert_close(find_loss(name).log_probs(logits), logits.log_softmax(-1))


@pytest.mark.parametrize("name", NAMES)
def test_the_three_reductions_agree(name):
    logits, labels = _random(20, 4, scale=3)
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    loss = find_loss(name)

    each = loss.value(logits, labels, weights, reduction="none")

    assert each.shape == (20,)
    torch.testing.assert_close(loss.value(logits, labels, weights), each.mean())
    torch.testing.assert_close(loss.value(logits, labels, weights, reduction="sum"), each.sum())


@pytest.mark.parametrize("name", NAMES)
def test_one_hot_rows_count_as_their_class_or_are_refused(name):
    logits, labels = _random(20, 4, scale=3)
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    one_hot = torch.nn.functional.one_hot(labels, 4).double()
    loss = find_loss(name)

    if not loss.rule.takes_soft_targets:
        with pytest.raises(ValueError, match="soft targets"):
            loss.value(logits, one_hot)
        return
    torch.testing.assert_close(loss.value(logits, one_hot, weights), loss.value(logits, labels, weights))


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 1000), size=st.sampled_from([1e-3, 1.0, 1e3, 1e6]), shift=st.floats(-1e6, 1e6))
@settings(max_examples=10, deadline=None)
def test_extreme_logits_have_finite_values_and_gradients(name, seed, size, shift):
    logits, labels = _random(17, 4, seed=seed)
    logits = (logits * size + shift).float().requires_grad_()

    loss = find_loss(name).value(logits, labels)
    (gradient,) = torch.autograd.grad(loss, logits)

    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_names_of_classes_and_order_of_images_do_not_matter(name, seed):
    logits, labels = _random(18, 5, scale=4, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    classes, images = torch.randperm(5, generator=generator), torch.randperm(18, generator=generator)
    loss = find_loss(name)

    renamed = loss.value(logits[:, classes][images], classes.argsort()[labels][images])

    torch.testing.assert_close(renamed, loss.value(logits, labels))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_first(name, dtype):
    logits, labels = _random(20, 4, scale=200)
    halved = logits.to(dtype)

    loss = find_loss(name).value(halved, labels)

    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, find_loss(name).value(halved.float(), labels))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_is_named(name, bad):
    logits, labels = _random(20, 4)
    logits[7, 2] = bad

    with pytest.raises(ValueError, match="row 7"):
        find_loss(name).value(logits, labels)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"mmce"}))
def test_a_single_row_has_a_loss(name):
    logits, labels = _random(1, 3)

    assert torch.isfinite(find_loss(name).value(logits, labels))


def test_weights_apply_to_the_smoothed_share_too():
    log_probs = torch.tensor([[0.25, 0.75]], dtype=torch.float64).log()
    weights = torch.tensor([2.0, 4.0], dtype=torch.float64)

    loss = find_loss("label-smoothing", {"epsilon": 0.2}).value(log_probs, torch.tensor([0]), weights)

    assert loss.item() == pytest.approx(-0.9 * 2 * math.log(0.25) - 0.1 * 4 * math.log(0.75))
