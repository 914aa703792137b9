"""Heads, losses, mixing and dropout give the same on a GPU as on the CPU."""

from pathlib import Path

import pytest
import torch
from gpu_toys import CLASSES, CPU, Sizes, Toys, relative
from torch import Tensor

from alloop.composition import LOSSES
from alloop.engine.build import HEAD_DECAY, HEAD_PRIOR, HeadRecipe
from alloop.engine.features import run_features
from alloop.engine.fit_heads import fit_heads
from alloop.engine.objective import Objective, balanced_weights
from alloop.engine.score import run_score
from alloop.engine.score_file import read_log_probs
from alloop.engine.train import run_train
from alloop.losses.mixing import Mixing, mix
from alloop.losses.multi_head import assign_specialties, class_weights
from alloop.losses.named import find_loss
from alloop.models.dropout import HeadDropout
from alloop.models.heads import MultiHead
from alloop.predictive import mean_log_probs

NLL = 1e-3  # nats
K = len(CLASSES)


@pytest.fixture(scope="module")
def both(toys: Toys, device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> list[Tensor]:
    """Return the features of the toys by the device and by the CPU."""
    config = toys.config("own_trunk")
    jobs = [toys.feature_job(config, where, tmp_path_factory.mktemp("cache")) for where in (device, CPU)]
    return [torch.from_numpy(run_features(job).features) for job in jobs]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _head_weights(n_heads: int) -> Tensor | None:
    return class_weights(assign_specialties(K, n_heads, _generator()), K) if n_heads > 1 else None


def _fitted_nll(
    features: Tensor, targets: Tensor, objective: Objective, n_heads: int, recipe: HeadRecipe, networks: int = 1
) -> float:
    rows = []
    for number in range(networks):
        heads, _ = fit_heads(features[:60], targets[:60], K, n_heads, objective, recipe, _generator(number))
        rows.append(objective.loss.log_probs(heads(features[60:])))
    log_probs = mean_log_probs(torch.cat(rows))
    return torch.nn.functional.nll_loss(log_probs, targets[60:]).item()


@pytest.mark.parametrize("n_heads", [1, 4])
@pytest.mark.parametrize("name", LOSSES)
def test_heads_on_features_of_the_device_predict_as_well_as_those_of_the_cpu(
    both, toys: Toys, sizes: Sizes, measured, name: str, n_heads: int
):
    targets = torch.tensor(toys.targets)
    objective = Objective(find_loss(name), _head_weights(n_heads), None, "mean")
    recipe = HeadRecipe(sizes.steps, HEAD_DECAY, HEAD_PRIOR, "mean", updates=sizes.steps)

    there, here = (_fitted_nll(features, targets, objective, n_heads, recipe) for features in both)

    measured("difference of NLL", abs(there - here), NLL)


@pytest.mark.parametrize("kind", ["ensemble", "mixup", "dropout", "balanced"])
def test_so_do_ensembles_mixed_features_dropout_and_class_weights(both, toys: Toys, sizes: Sizes, measured, kind: str):
    targets = torch.tensor(toys.targets)
    weights = balanced_weights(targets[:60], K) if kind == "balanced" else None
    objective = Objective(find_loss(), None, weights, "mean")
    mixing = Mixing("mixup") if kind == "mixup" else Mixing()
    dropout = HeadDropout() if kind == "dropout" else None
    recipe = HeadRecipe(sizes.steps, HEAD_DECAY, HEAD_PRIOR, "mean", sizes.steps, mixing, dropout)

    there, here = (
        _fitted_nll(features, targets, objective, 1, recipe, 3 if kind == "ensemble" else 1) for features in both
    )

    measured("difference of NLL", abs(there - here), NLL)


@pytest.mark.parametrize("n_heads", [1, 4])
@pytest.mark.parametrize("name", ["cross-entropy", "logit-norm"])  # one for L-BFGS, one for mini-batches
def test_heads_that_are_fitted_on_the_device_predict_as_well(
    both, toys: Toys, sizes: Sizes, device: torch.device, measured, name: str, n_heads: int
):
    targets = torch.tensor(toys.targets)
    objective = Objective(find_loss(name), _head_weights(n_heads), None, "mean")
    recipe = HeadRecipe(sizes.steps, HEAD_DECAY, HEAD_PRIOR, "mean", updates=sizes.steps)

    there, here = (
        _fitted_nll(both[1].to(where), targets.to(where), objective, n_heads, recipe) for where in (device, CPU)
    )

    measured("difference of NLL", abs(there - here), NLL)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_and_its_gradient_are_the_cpus(device: torch.device, measured, name: str, soft: bool):
    if soft and not LOSSES[name].takes_soft_targets:
        pytest.skip(f"{name} has no meaning for mixed labels")
    logits = 3 * torch.randn(4, 48, K, generator=_generator(1))
    targets = torch.randint(K, (48,), generator=_generator(2))
    rows = torch.softmax(torch.randn(48, K, generator=_generator(3)), dim=1) if soft else targets
    objective = Objective(find_loss(name), _head_weights(4), balanced_weights(targets, K), "mean")

    found = []
    for where in (device, CPU):
        leaf = logits.to(where).requires_grad_()
        value = objective.to(where)(leaf, rows.to(where))
        (gradient,) = torch.autograd.grad(value, leaf)
        found.append((value.item(), gradient))

    (there, slope), (here, reference) = found
    measured("relative difference of the loss", abs(there - here) / abs(here), 1e-5)
    measured("relative difference of its gradient", relative(slope.flatten()[None], reference.flatten()[None]), 1e-4)


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "either"])
def test_batches_are_mixed_alike(device: torch.device, measured, kind: str):
    images, targets = torch.rand(12, 3, 16, 16, generator=_generator(1)), torch.arange(12) % K
    mixing = Mixing(kind, probability=1.0)

    for draw in range(4):
        mixed, labels = mix(images.to(device), targets.to(device), K, mixing, _generator(draw))
        expected, wanted = mix(images, targets, K, mixing, _generator(draw))
        measured(f"largest difference of a pixel, draw {draw}", float((mixed.cpu() - expected).abs().max()), 1e-6)
        measured(f"largest difference of a label, draw {draw}", float((labels.cpu() - wanted).abs().max()), 1e-6)


def test_dropout_masks_are_drawn_on_the_cpu_and_the_same_on_both_devices(device: torch.device, measured):
    dropout, features = HeadDropout(0.4, passes=3), torch.randn(9, 70, generator=_generator(1))
    there, here = (dropout.masks(features.to(where), _generator(4)) for where in (device, CPU))

    measured("masks that differ", float((there.cpu() != here).sum()), 0.0)

    heads = MultiHead(70, 2, K, _generator(2))
    heads.standardize_by(features)
    logits = []
    for where in (device, CPU):
        part = MultiHead(70, 2, K)
        part.load_state_dict(heads.state_dict())
        part.to(where)
        logits.append(
            torch.cat(
                [
                    dropout.train_step(part, features.to(where), _generator(4)),
                    dropout.logits(part, features.to(where), seed=5),
                ]
            )
        )
    difference = (logits[0].detach().cpu() - logits[1].detach()).abs().max()
    measured("difference of logits under dropout", float(difference), 1e-5)


def test_an_images_dropout_passes_do_not_depend_on_the_device_or_the_batch(
    toys: Toys, device: torch.device, tmp_path: Path, measured
):
    """Masks of a pass belong to an image: its hash and the model's seed."""
    config = toys.config("own_trunk", {"epochs": 2}, mode="finetune", uncertainty="mc-dropout", members=4)
    files = run_train(toys.train_job(config, CPU, tmp_path / "cache", tmp_path / "model")).files
    rows = []
    for number, (where, size) in enumerate([(device, 7), (device, 32), (CPU, 32)]):
        train = config.train.model_copy(update={"batch_size": size})
        other = config.model_copy(update={"train": train})
        job = toys.score_job(other, files, where, tmp_path / f"cache {number}", tmp_path / f"{number}.parquet")
        rows.append(torch.cat([part for _, part in read_log_probs(run_score(job).path)]))

    measured("difference of log p, batches of 7 and 32", float((rows[0] - rows[1]).abs().max()), NLL)
    measured("difference of log p from the CPU's", float((rows[1] - rows[2]).abs().max()), NLL)
