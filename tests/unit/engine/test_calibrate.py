"""Whatever calibrator is asked for: fitted on the holdout, stored as plain JSON, applied in scoring."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from alloop.config.schema import CalibrationConfig
from alloop.engine.calibrate import apply_calibration, calibrate
from alloop.engine.model_files import load_model
from alloop.engine.score import run_score
from alloop.engine.score_file import read_log_probs
from alloop.engine.train import run_train
from alloop.records import Calibration


def _overconfident(n: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes: predictions say 0.96 to 0.99, and are right in 7 of 10 cases."""
    targets = torch.arange(n) % 3
    wrong = torch.arange(n) % 10 >= 7
    said = torch.where(wrong, (targets + 1) % 3, targets)
    sure = 0.96 + 0.03 * torch.rand(n, 1, generator=torch.Generator().manual_seed(0))
    rest = (1 - sure).expand(n, 3) / 2
    return rest.scatter(1, said.unsqueeze(1), sure).log(), targets


def _config(toys, method: str):
    return toys.config().model_copy(update={"calibration": CalibrationConfig(method=method)})


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic", "histogram-width", "histogram-mass", "auto"])
def test_each_calibrator_brings_confidence_to_accuracy_out_of_sample(method):
    log_probs, targets = _overconfident()

    calibrated, calibration = calibrate(method, log_probs, targets, seed=0)

    confidence = calibrated.exp().amax(1).mean().item()
    assert confidence == pytest.approx(0.7, abs=0.1)  # from 0.975; smoothed bins of 20 images stay below 0.7
    assert calibration.n == 300
    assert calibration.nll_after < calibration.nll_before
    assert calibration.method != "none"
    torch.testing.assert_close(calibrated.exp().sum(1), torch.ones(300))


def test_no_calibrator_leaves_predictions_as_they_are():
    log_probs, targets = _overconfident()

    calibrated, calibration = calibrate("none", log_probs, targets, seed=0)

    torch.testing.assert_close(calibrated, log_probs.log_softmax(1), atol=1e-6, rtol=0)
    assert (calibration.method, calibration.temperature, calibration.note) == ("none", 1.0, "")


def test_auto_says_why_and_stores_what_it_chose():
    _, calibration = calibrate("auto", *_overconfident(), seed=0)

    assert "by 5-fold NLL on 300 images" in calibration.note
    assert calibration.method in calibration.note


@pytest.mark.parametrize(("method", "n"), [("platt", 49), ("isotonic", 199), ("auto", 49)])
def test_too_few_labels_leave_predictions_as_they_are_and_say_so(method, n):
    log_probs, targets = _overconfident(n)

    calibrated, calibration = calibrate(method, log_probs, targets, seed=0)

    torch.testing.assert_close(calibrated, log_probs.log_softmax(1), atol=1e-6, rtol=0)
    assert calibration.method == "none"
    assert f"{n} holdout labels are too few" in calibration.note


def test_too_few_labels_leave_the_temperature_at_one():
    log_probs, targets = _overconfident(49)

    calibrated, calibration = calibrate("temperature", log_probs, targets, seed=0)

    torch.testing.assert_close(calibrated, log_probs.log_softmax(1), atol=1e-6, rtol=0)
    assert (calibration.method, calibration.temperature, calibration.fitted) == ("temperature", 1.0, None)
    assert calibration.note == "49 holdout labels are too few to fit a temperature (fewer than 50); T = 1."


@pytest.mark.parametrize("method", ["platt", "isotonic", "histogram-mass"])
def test_a_calibrator_comes_back_from_json_as_it_was(method):
    log_probs, targets = _overconfident()
    _, calibration = calibrate(method, log_probs, targets, seed=0)
    stored = Calibration(**json.loads(json.dumps(dataclasses.asdict(calibration))))

    torch.testing.assert_close(apply_calibration(stored, log_probs), apply_calibration(calibration, log_probs))
    assert apply_calibration(stored, log_probs).exp().amax(1).mean().item() == pytest.approx(0.7, abs=0.05)


@pytest.mark.parametrize("method", ["none", "platt", "histogram-width"])
def test_scoring_applies_the_calibrator_of_the_version_or_none_when_asked(toys, method):
    config = _config(toys, method)
    result = run_train(toys.train_job(config))
    images = toys.images[15:75]

    scored = run_score(toys.score_job(result.files, config, images=images))
    plain = run_score(toys.score_job(result.files, config, images=images, is_calibrated=False, out=toys.root / "raw"))

    stored = load_model(result.files).calibration
    assert stored.method == method.split("-")[0]
    raw = torch.cat([rows for _, rows in read_log_probs(plain.path)])
    np.testing.assert_allclose(raw, result.holdout_pooled_log_probs, atol=1e-4)
    calibrated = torch.cat([rows for _, rows in read_log_probs(scored.path)])
    torch.testing.assert_close(calibrated, apply_calibration(stored, raw), atol=1e-4, rtol=1e-4)
    assert torch.allclose(raw, calibrated, atol=1e-4) == (method == "none")


def test_a_version_of_before_there_were_calibrators_has_a_temperature():
    log_probs = torch.tensor([[0.9, 0.1]]).log()
    old = Calibration(temperature=2.0, n=60, nll_before=0.5, nll_after=0.4)

    # softmax(log p / 2) is p to the power 1/2, normalized: 3 to 1
    torch.testing.assert_close(apply_calibration(old, log_probs).exp(), torch.tensor([[0.75, 0.25]]))
