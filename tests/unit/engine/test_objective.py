"""Every loss, weighting and mixing can train heads; the usual recipe is what it was."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from alloop.composition import LOSSES
from alloop.config.schema import TrainConfig
from alloop.engine.build import HeadRecipe, build_mixing
from alloop.engine.fit_heads import fit_heads
from alloop.engine.objective import Objective, balanced_weights
from alloop.engine.score import run_score
from alloop.engine.score_file import read_log_probs
from alloop.engine.settings import EngineSettings
from alloop.engine.train import run_train
from alloop.losses.mixing import Mixing
from alloop.losses.multi_head import class_weights
from alloop.losses.named import find_loss


def _accuracy(toys, result) -> float:
    return float((result.holdout_calibrated_log_probs.argmax(1) == np.array(toys.targets[15:75])).mean())


@pytest.mark.parametrize("loss", LOSSES)
def test_heads_learn_with_every_loss(toys, loss):
    config = toys.config(train=TrainConfig(workers=0, epochs=150, loss=loss))

    result = run_train(toys.train_job(config))

    assert _accuracy(toys, result) > 0.9
    np.testing.assert_allclose(np.exp(result.holdout_calibrated_log_probs).sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("loss", ["dca", "logit-norm"])
def test_a_trunk_learns_with_losses_of_batches_and_of_logits(toys, loss):
    train = TrainConfig(workers=0, epochs=2, batch_size=16, learning_rate=0.01, loss=loss)
    config = toys.config(toys.trunk, train, mode="finetune", weights="none")

    result = run_train(toys.train_job(config))

    assert np.isfinite(result.holdout_calibrated_log_probs).all()
    assert len(result.history["epochs"]) == 2


def test_a_version_trained_with_logit_norm_predicts_from_normalized_logits(toys):
    config = toys.config(train=TrainConfig(workers=0, epochs=100, loss="logit-norm", loss_parameters={"tau": 1.0}))
    result = run_train(toys.train_job(config, holdout=(), holdout_targets=()))

    path = run_score(toys.score_job(result.files, config)).path

    probs = torch.cat([rows for _, rows in read_log_probs(path)]).exp()
    # Logits of norm 1 / tau = 1 and 3 classes: at most e^a / (e^a + 2 e^-a/2), a = sqrt(2/3).
    a = math.sqrt(2 / 3)
    assert probs.max() <= math.exp(a) / (math.exp(a) + 2 * math.exp(-a / 2)) + 1e-5


@pytest.mark.parametrize("mixing", ["mixup", "cutmix", "either"])
def test_mixed_images_train_a_trunk_and_the_same_job_gives_the_same_bytes(toys, mixing):
    train = TrainConfig(workers=0, epochs=2, batch_size=8, mixing=mixing, mixing_probability=1.0)
    config = toys.config(toys.trunk, train, mode="finetune", weights="none")

    first = run_train(toys.train_job(config))
    second = run_train(toys.train_job(config, out=toys.root / "again"))

    assert first.files.sha256 == second.files.sha256


def test_mixed_features_make_heads_less_sure(toys):
    plain = run_train(toys.train_job(toys.config(), holdout=(), holdout_targets=()))
    config = toys.config(train=TrainConfig(workers=0, epochs=300, mixing="mixup", mixing_alpha=1.0))
    mixed = run_train(toys.train_job(config, holdout=(), holdout_targets=(), out=toys.root / "mixed"))

    def confidence(files, config) -> float:
        path = run_score(toys.score_job(files, config)).path
        return float(torch.cat([rows for _, rows in read_log_probs(path)]).amax(1).exp().mean())

    assert confidence(mixed.files, config) < confidence(plain.files, toys.config())


def test_mini_batches_and_all_labels_at_once_find_the_same_heads():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 5, generator=generator)
    targets = (features[:, 0] > 0).long() + (features[:, 1] > 1).long()
    objective = Objective(find_loss(), class_weights(((0, 1), (2,)), 3), None, "mean")
    # mixing at probability 0 changes no batch, but asks for mini-batches
    recipes = [
        HeadRecipe(200, 1e-2, 3.0, "mean"),
        HeadRecipe(200, 1e-2, 3.0, "mean", 600, Mixing("mixup", probability=0.0)),
    ]

    losses = [
        fit_heads(features, targets, 3, 2, objective, recipe, torch.Generator().manual_seed(1))[1]["loss_after"]
        for recipe in recipes
    ]

    assert losses[1] == pytest.approx(losses[0], abs=1e-3)


def test_balanced_classes_count_alike_and_weigh_one_on_average():
    # 4 labels, 2 classes with any: 4 / (2 * 3) and 4 / (2 * 1); the class without labels keeps 1.
    weights = balanced_weights(torch.tensor([0, 0, 0, 2]), 3)

    torch.testing.assert_close(weights, torch.tensor([2 / 3, 1.0, 2.0]))


def test_balancing_lifts_the_class_with_few_labels(toys):
    rows = [row for row in range(15) if toys.targets[row] != 2 or row == 2]  # one image of the last class
    job = toys.train_job(
        images=tuple(toys.images[row] for row in rows), targets=tuple(toys.targets[row] for row in rows)
    )
    config = toys.config(train=TrainConfig(workers=0, class_weights="balanced", weight_decay=0.05))
    plain = toys.config(train=TrainConfig(workers=0, weight_decay=0.05))

    lifted = run_train(dataclasses.replace(job, settings=EngineSettings.of(config)))
    usual = run_train(dataclasses.replace(job, settings=EngineSettings.of(plain), out=toys.root / "plain"))

    assert lifted.holdout_calibrated_log_probs[:, 2].mean() > usual.holdout_calibrated_log_probs[:, 2].mean()


def test_heads_with_the_same_loss_differ_from_those_with_specialties(toys):
    multi = run_train(toys.train_job(toys.config(members=2)))
    same = run_train(toys.train_job(toys.config(members=2, head_weights="same"), out=toys.root / "same"))

    assert multi.files.sha256 != same.files.sha256
    assert _accuracy(toys, same) > 0.9


def test_cutmix_is_applied_to_half_of_the_batches_unless_said_otherwise(toys):
    config = toys.config(train=TrainConfig(mixing="cutmix"), mode="finetune")

    assert build_mixing(EngineSettings.of(config)) == Mixing("cutmix", 0.2, 1.0, 0.5)
    assert build_mixing(EngineSettings.of(toys.config(train=TrainConfig(mixing="mixup")))) == Mixing(
        "mixup", 0.2, 1.0, 1.0
    )
