"""Calibrating without a holdout."""

import math

import pytest
import torch
from torch import Tensor

from alloop.calibration.weighing import fit_weights
from alloop.config.schema import CalibrationConfig, Config
from alloop.engine.build import HeadRecipe
from alloop.engine.cross_validate import N_FOLDS, calibrate_apart, out_of_fold, predict_unlearned
from alloop.engine.fit_heads import HeadFits
from alloop.engine.jobs import TrainJob
from alloop.engine.objective import Objective
from alloop.engine.train import run_train
from alloop.losses.named import find_loss

RECIPE = HeadRecipe(steps=200, weight_decay=1e-4, prior=0.0, loss_scale="mean")


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


def _job(toys, config: Config | None = None, shift: int = 0, **changes: object) -> TrainJob:
    """60 images to train on, and a test set of 15 whose labels may be wrong."""
    wrong = tuple((target + shift) % 3 for target in toys.targets[60:75])
    images = {"images": toys.images[:60], "targets": toys.targets[:60], "holdout": toys.images[60:75]}
    return toys.train_job(config, **{**images, "holdout_targets": wrong, "is_test": True, **changes})


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


def test_with_a_test_set_the_labels_weigh_both_kinds_of_heads():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(3, (200,), generator=generator)
    both = torch.randn(200, 2, 3, generator=generator, dtype=torch.float64)
    both[torch.arange(200), :, targets] += torch.tensor([1.0, 2.0], dtype=torch.float64)
    both = both.log_softmax(dim=-1)

    fitted = calibrate_apart("temperature", 200, 0, lambda: (both, targets), torch.empty(0, 2, 3))

    assert fitted.weights == fit_weights(both, targets)
    assert min(fitted.weights) > 0


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


@pytest.mark.parametrize("n_pool", [0, 90], ids=["raw features", "smoothed features"])
def test_planted_wrong_labels_are_the_least_probable_without_their_fold(toys, n_pool: int):
    planted = (7, 20, 33)
    targets = tuple((target + (at in planted)) % 3 for at, target in enumerate(toys.targets))
    trained = run_train(_job(toys, targets=targets[:60], pool=toys.images[:n_pool]))

    found = trained.out_of_fold
    place = {image.image_id: at for at, image in enumerate(toys.images)}
    at = [place[image_id] for image_id in found.image_ids]
    of_label = found.log_probs[range(60), [targets[position] for position in at]]

    assert trained.history["pool_features"]["is_on"] == bool(n_pool)
    assert sorted(at) == list(range(60))
    assert {at[row] for row in of_label.argsort()[:3]} == set(planted)


def test_a_fold_forgets_wrong_labels_that_the_model_has_learned_by_heart():
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(60) % 3
    features = torch.nn.functional.one_hot(truth, 200) + 0.15 * torch.randn(60, 200, generator=generator)
    labels = truth.clone()
    labels[:3] = (truth[:3] + 1) % 3
    fits = HeadFits(features, labels, 3)
    heads, _ = fits.fit(2, Objective(find_loss(), None, None, "mean"), RECIPE, generator)

    unlearned = predict_unlearned(fits, heads, RECIPE.weight_decay, 0)

    learned = heads(features).softmax(dim=-1).mean(dim=0)
    assert (learned.argmax(dim=1) == labels).all()
    assert unlearned is not None
    assert (unlearned.argmax(dim=1) == truth).all()


def test_a_model_that_is_only_measured_is_the_same_and_predicts_no_folds(toys):
    kept, measured = run_train(_job(toys)), run_train(_job(toys, is_kept=False, out=toys.root / "measured"))

    assert kept.out_of_fold is not None and measured.out_of_fold is None
    assert kept.files.sha256 == measured.files.sha256


def test_fewer_than_50_labels_are_not_predicted_out_of_fold(toys):
    assert run_train(toys.train_job()).out_of_fold is None
