"""Temperature scaling against third-party optima, and where it must not be fitted."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alloop.calibration.calibrator import describe
from alloop.calibration.choose import cross_fit
from alloop.calibration.temperature import Temperature, apply_temperature, fit_temperature, solve_temperature

GOLDEN = np.load(Path(__file__).parents[2] / "assets" / "golden" / "temperature.npz")
CASES = ["over", "under", "binary", "tiny"]


def _tensor(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name])


def _predictions(n: int, n_classes: int = 3, scale: float = 4.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, n_classes, generator=generator)
    targets = torch.multinomial(logits.softmax(-1), 1, generator=generator).flatten()
    return (scale * logits).log_softmax(-1), targets


@pytest.mark.parametrize("case", CASES)
def test_temperature_and_losses_agree_with_scipys(case):
    log_probs, labels = _tensor(f"{case}_logits_fit").log_softmax(-1), _tensor(f"{case}_labels_fit")

    scaling, note = fit_temperature(log_probs, labels)
    fitted = describe(scaling, log_probs, labels, note)

    assert scaling.temperature == pytest.approx(float(GOLDEN[f"{case}_T"]), rel=1e-6)
    assert note == ""
    assert fitted.nll_before == pytest.approx(float(GOLDEN[f"{case}_nll_before"]), abs=1e-10)
    assert fitted.nll_after == pytest.approx(float(GOLDEN[f"{case}_nll_after"]), abs=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_scaled_probabilities_agree_with_scipys(case):
    scaled = apply_temperature(_tensor(f"{case}_logits_eval"), float(GOLDEN[f"{case}_T"])).exp()

    np.testing.assert_allclose(scaled.numpy(), GOLDEN[f"{case}_probs_eval"], atol=1e-7)


def test_soft_targets_that_are_one_class_give_the_same_temperature():
    log_probs, targets = _predictions(200)
    one_hot = torch.nn.functional.one_hot(targets, 3).double()

    assert solve_temperature(log_probs, one_hot) == pytest.approx(solve_temperature(log_probs, targets), rel=1e-9)


@given(scale=st.floats(0.3, 5), seed=st.integers(0, 50))
@settings(max_examples=25, deadline=None)
def test_no_other_temperature_has_a_smaller_loss(scale, seed):
    log_probs, targets = _predictions(120, scale=scale, seed=seed)

    best = solve_temperature(log_probs, targets)

    def loss(temperature: float) -> float:
        return torch.nn.functional.nll_loss(apply_temperature(log_probs.double(), temperature), targets).item()

    assert loss(best) <= min(loss(max(best * factor, 0.05)) for factor in (0.9, 0.99, 1.01, 1.1)) + 1e-12


def test_predictions_that_are_never_wrong_have_no_best_temperature_and_keep_one():
    log_probs = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log().repeat(40, 1)
    targets = torch.tensor([0, 1]).repeat(40)

    calibrated, fitted = cross_fit("temperature", log_probs, targets, seed=0)

    assert solve_temperature(log_probs, targets) == pytest.approx(0.05)
    assert fitted.calibrator == Temperature(1.0)
    assert "Too few of the 80 holdout predictions are wrong" in fitted.note
    torch.testing.assert_close(calibrated, log_probs)


def test_predictions_that_are_always_wrong_end_at_the_upper_bound():
    log_probs = torch.tensor([[0.9, 0.1]]).log().repeat(60, 1)

    scaling, note = fit_temperature(log_probs, torch.ones(60, dtype=torch.long))

    assert scaling.temperature == pytest.approx(20)
    assert "no better than chance" in note


def test_predictions_that_say_nothing_leave_the_temperature_at_one():
    log_probs = torch.full((60, 4), 0.25).log()

    assert fit_temperature(log_probs, torch.arange(60) % 4) == (Temperature(1.0), "")


def test_fewer_than_fifty_labels_leave_it_at_one_with_a_note():
    log_probs, targets = _predictions(49)

    calibrated, fitted = cross_fit("temperature", log_probs, targets, seed=0)

    assert fitted.calibrator == Temperature(1.0)
    assert fitted.n == 49
    assert fitted.note == "49 holdout labels are too few to fit a temperature (fewer than 50); T = 1."
    torch.testing.assert_close(calibrated, log_probs)


def test_an_empty_holdout_is_not_an_error():
    calibrated, fitted = cross_fit("temperature", torch.empty(0, 3), torch.empty(0, dtype=torch.long), seed=0)

    assert (fitted.calibrator, fitted.n, fitted.nll_before, fitted.nll_after) == (Temperature(1.0), 0, None, None)
    assert calibrated.shape == (0, 3)


def test_a_single_class_is_refused():
    with pytest.raises(ValueError, match="at least 2 classes"):
        cross_fit("temperature", torch.zeros(60, 1), torch.zeros(60, dtype=torch.long), seed=0)


def test_a_class_with_probability_zero_does_not_spoil_the_fit():
    log_probs, targets = _predictions(100)
    impossible = torch.cat([log_probs, torch.full((100, 1), -math.inf)], dim=1)

    assert solve_temperature(impossible, targets) == pytest.approx(solve_temperature(log_probs, targets), rel=1e-6)


def test_no_image_is_calibrated_by_itself_but_by_the_other_folds():
    log_probs, targets = _predictions(100)

    calibrated, _ = cross_fit("temperature", log_probs, targets, seed=1)

    # T of a row is the ratio of its log-odds before and after.
    odds = lambda rows: rows[:, 0] - rows[:, 1]  # noqa: E731
    temperatures = (odds(log_probs) / odds(calibrated)).double()
    folds = [torch.where((temperatures - value).abs() < 1e-3)[0] for value in _distinct(temperatures)]
    assert sum(len(fold) for fold in folds) == 100
    for fold in folds:
        rest = torch.tensor([row for row in range(100) if row not in set(fold.tolist())])
        expected = solve_temperature(log_probs[rest], targets[rest])
        assert temperatures[fold].mean().item() == pytest.approx(expected, rel=1e-3)


def _distinct(values: torch.Tensor) -> list[float]:
    found: list[float] = []
    for value in values.tolist():
        if all(abs(value - other) > 1e-3 for other in found):
            found.append(value)
    return found


def test_folds_are_drawn_from_the_seed_alone():
    log_probs, targets = _predictions(80)

    first, second = (cross_fit("temperature", log_probs, targets, seed=5)[0] for _ in range(2))
    other, _ = cross_fit("temperature", log_probs, targets, seed=6)

    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_classes_with_a_single_holdout_image_are_no_obstacle():
    log_probs, _ = _predictions(60, n_classes=6)
    targets = torch.tensor([0] * 30 + [1] * 27 + [2, 3, 4])

    calibrated, fitted = cross_fit("temperature", log_probs, targets, seed=0)

    assert torch.isfinite(calibrated).all()
    assert fitted.n == 60


@given(temperature=st.floats(0.05, 20), seed=st.integers(0, 20))
@settings(max_examples=25, deadline=None)
def test_scaling_never_changes_the_top_class(temperature, seed):
    log_probs, _ = _predictions(30, seed=seed)

    assert torch.equal(apply_temperature(log_probs, temperature).argmax(-1), log_probs.argmax(-1))
