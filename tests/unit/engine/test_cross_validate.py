"""Calibrating without a holdout."""

import math

import pytest
import torch
from torch import Tensor

from alloop.config.schema import CalibrationConfig, Config
from alloop.engine.cross_validate import N_FOLDS, calibrate_apart, out_of_fold
from alloop.engine.jobs import TrainJob
from alloop.engine.train import run_train


def test_every_image_is_predicted_once_by_a_model_that_did_not_see_it():
    targets = torch.arange(60) % 3
    seen: list[tuple[set[int], set[int]]] = []

    def predict(rest: Tensor, fold: Tensor) -> Tensor:
        seen.append((set(rest.tolist()), set(fold.tolist())))
        return torch.full((len(fold), 3), -math.log(3)) + 0.1 * len(seen)

    rows = out_of_fold(targets, 0, predict)

    assert len(seen) == N_FOLDS
    assert all(rest.isdisjoint(fold) and rest | fold == set(range(60)) for rest, fold in seen)
    assert sorted(image for _, fold in seen for image in fold) == list(range(60))
    assert torch.isfinite(rows).all()


def _job(toys, config: Config | None = None, shift: int = 0) -> TrainJob:
    """60 images to train on, and a test set of 15 whose labels may be wrong."""
    wrong = tuple((target + shift) % 3 for target in toys.targets[60:75])
    images = {"images": toys.images[:60], "targets": toys.targets[:60], "holdout": toys.images[60:75]}
    return toys.train_job(config, **images, holdout_targets=wrong, is_test=True)


def test_a_test_set_moves_no_temperature(toys):
    one, other = run_train(_job(toys)), run_train(_job(toys, shift=1))

    assert one.calibration == other.calibration
    assert one.calibration.n == 60
    assert "5-fold cross-validation on 60 training labels" in one.calibration.note
    assert (one.holdout_calibrated_log_probs == other.holdout_calibrated_log_probs).all()


def test_overconfident_folds_raise_the_temperature():
    # Sure of the right class in 3 of 4 images: calibrated confidence is 3/4, and of two classes logit = ln 3.
    targets = torch.zeros(80, dtype=torch.long)
    targets[::4] = 1
    log_probs = torch.tensor([[10.0, 0.0]]).repeat(80, 1).log_softmax(dim=-1).double()

    fitted = calibrate_apart("temperature", 80, 0, lambda: (log_probs, targets), torch.empty(0, 2))

    assert fitted.temperature == pytest.approx(10 / math.log(3), rel=1e-4)


def test_few_labels_leave_the_temperature_at_one():
    fitted = calibrate_apart("temperature", 49, 0, lambda: pytest.fail("nothing to cross-validate"), torch.empty(0, 2))

    assert (fitted.temperature, fitted.n) == (1.0, 0)
    assert "49 training labels are too few" in fitted.note


def test_a_fine_tuned_network_is_not_calibrated_and_says_so(toys):
    config = toys.config(toys.trunk, weights="none", mode="finetune", uncertainty="single")
    config = config.model_copy(update={"train": config.train.model_copy(update={"epochs": 1})})

    result = run_train(_job(toys, config))

    assert (result.calibration.temperature, result.calibration.method) == (1.0, "none")
    assert "fine-tuning" in result.calibration.note


def test_no_calibrator_needs_no_folds(toys):
    config: Config = toys.config().model_copy(update={"calibration": CalibrationConfig(method="none")})

    result = run_train(_job(toys, config))

    assert (result.calibration.method, result.calibration.note) == ("none", "")
