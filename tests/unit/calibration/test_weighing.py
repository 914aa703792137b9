"""Weights of raw and smoothed heads: against another solver, by hand, and inside every calibrator."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from alloop.calibration.calibrator import Unchanged, plain, prepare
from alloop.calibration.choose import cross_fit, fit_calibrator, from_json, to_json
from alloop.calibration.folds import draw_folds
from alloop.calibration.temperature import Temperature
from alloop.calibration.weighing import CAUTIOUS, STRENGTH, Weighed, fit_weights, weigh
from alloop.engine.calibrate import apply_calibration, as_record


def _two(n: int, raw: float, smoothed: float, k: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions [N, 2, K] by heads whose logits hold this much of the truth, and labels."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(n, k, generator=generator, dtype=torch.float64) * 1.5
    labels = torch.multinomial(truth.softmax(-1), 1, generator=generator).squeeze(1)
    noise = torch.randn(2, n, k, generator=generator, dtype=torch.float64)
    kinds = [share * truth + (1 - share) * noise[place] for place, share in enumerate((raw, smoothed))]
    return torch.stack(kinds, dim=1).log_softmax(-1), labels


def test_the_weights_agree_with_a_general_solver_on_the_written_sum():
    both, labels = _two(300, 0.78, 0.8)
    rows = both.numpy()

    def objective(weights: np.ndarray) -> float:
        scores = weights[0] * rows[:, 0] + weights[1] * rows[:, 1]
        chosen = scores[np.arange(300), labels.numpy()]
        nll = np.mean([math.log(np.exp(row).sum()) for row in scores] - chosen)
        return nll + STRENGTH * (weights[0] ** 2 + (weights[1] - 1) ** 2)

    found = minimize(objective, [0.5, 0.5], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14})

    assert fit_weights(both, labels) == pytest.approx(tuple(found.x), abs=1e-5)
    assert min(found.x) > 0.05  # both kinds count here, so a swapped axis would show


def test_heads_that_know_nothing_get_no_weight():
    both, labels = _two(2000, 0.0, 1.0)
    raw, smoothed = fit_weights(both, labels)
    assert raw < 0.05
    assert smoothed == pytest.approx(1, abs=0.1)

    raw, smoothed = fit_weights(both.flip(1), labels)
    assert smoothed < 0.05
    assert raw == pytest.approx(1, abs=0.1)


def test_weights_that_would_be_negative_are_zero():
    both, labels = _two(500, 0.0, 1.0)
    both[:, 0] = -both[:, 1]  # raw heads that say the opposite
    assert fit_weights(both, labels)[0] == 0


def test_weighing_by_hand():
    raw, smoothed = torch.tensor([0.5, 0.5]), torch.tensor([0.8, 0.2])
    both = torch.stack([raw, smoothed]).log().unsqueeze(0)

    # 0.5 weighs both classes alike; 0.8² : 0.2² = 16 : 1.
    torch.testing.assert_close(weigh(both, 3.0, 2.0).exp(), torch.tensor([[16 / 17, 1 / 17]], dtype=torch.float64))


@pytest.mark.parametrize("name", ["temperature", "platt", "isotonic", "histogram-mass", "histogram-width", "auto"])
def test_every_calibrator_follows_the_weights_and_survives_json(name):
    both, labels = _two(400, 0.6, 0.8)

    fitted = fit_calibrator(name, both, labels)
    again = from_json(json.loads(json.dumps(to_json(fitted))))

    assert isinstance(fitted.calibrator, Weighed)
    assert (fitted.calibrator.raw, fitted.calibrator.smoothed) == pytest.approx(fit_weights(both, labels))
    assert again == fitted
    weighed = weigh(both, fitted.calibrator.raw, fitted.calibrator.smoothed)
    torch.testing.assert_close(fitted.calibrator.apply(both), fitted.calibrator.then.apply(weighed))
    assert fitted.nll_before == pytest.approx(float(torch.nn.functional.nll_loss(both[:, 1], labels)))
    assert fitted.nll_after < fitted.nll_before


def test_no_image_weighs_itself():
    both, labels = _two(120, 0.5, 0.8)
    calibrated, _ = cross_fit("temperature", both, labels, seed=3)

    rest, fold = next(iter(draw_folds(labels.numpy(), 3, 5)))
    expected = weigh(both[fold], *fit_weights(both[rest], labels[rest]))
    torch.testing.assert_close(calibrated[fold], expected.float())


@pytest.mark.parametrize("name", ["temperature", "platt", "isotonic", "auto"])
@pytest.mark.parametrize("n", [0, 1, 49])
def test_a_small_holdout_takes_the_smoothed_heads_at_a_cautious_temperature(name, n):
    both, labels = _two(n, 0.6, 0.8)

    calibrated, fitted = cross_fit(name, both, labels, seed=0)

    assert fitted.calibrator == Weighed(0.0, 1 / CAUTIOUS, Unchanged())
    assert f"{n} holdout labels are too few" in fitted.note
    assert f"smoothed heads alone, T = {CAUTIOUS:g}." in fitted.note
    torch.testing.assert_close(calibrated, (both[:, 1] / CAUTIOUS).log_softmax(-1).float())


def test_a_holdout_too_small_for_the_named_calibrator_still_fits_weights():
    both, labels = _two(100, 0.6, 0.8)

    fitted = fit_calibrator("isotonic", both, labels)

    assert fitted.calibrator == Weighed(*fit_weights(both, labels), Unchanged())
    assert "only the weights of the heads are fitted" in fitted.note


def test_without_calibration_the_smoothed_heads_speak():
    both, labels = _two(100, 0.6, 0.8)
    calibrated, fitted = cross_fit("none", both, labels, seed=0)
    torch.testing.assert_close(calibrated, prepare(both)[:, 1].float())
    assert fitted.calibrator == Weighed(0.0, 1.0, Unchanged())


def test_a_stored_calibrator_says_the_same_as_the_fitted_one():
    both, labels = _two(200, 0.6, 0.8)
    fitted = fit_calibrator("temperature", both, labels)

    record = as_record(fitted)

    assert record.weights == (fitted.calibrator.raw, fitted.calibrator.smoothed)
    assert (record.method, record.temperature) == ("weights", 1.0)
    torch.testing.assert_close(apply_calibration(record, both), fitted.calibrator.apply(both).float())


def test_one_kind_of_heads_is_as_before():
    both, labels = _two(100, 0.6, 0.8)
    one = both[:, 0]
    assert plain(one) is one
    assert isinstance(fit_calibrator("temperature", one, labels).calibrator, Temperature)
