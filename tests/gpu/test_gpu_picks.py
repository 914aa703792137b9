"""Strategies pick the same images on a GPU as on the CPU, and the same images are out of distribution."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from choices import choose
from gpu_toys import CLASSES, CPU, Sizes, Toys, drawn, on, own_trunk, relative, run
from torch import Tensor

from alloop.acquisition.strategy import Candidates
from alloop.composition import STRATEGIES
from alloop.engine.build import HEAD_DECAY, HEAD_PRIOR, HeadRecipe
from alloop.engine.fit_heads import fit_heads
from alloop.engine.objective import Objective
from alloop.engine.score import run_score
from alloop.engine.score_file import read_log_probs
from alloop.engine.train import run_train
from alloop.evaluation import ood
from alloop.losses.named import find_loss
from alloop.models.heads import MultiHead
from alloop.predictive import mean_log_probs
from alloop.seeds import mixed

LABELED, PICKS = 80, 20


def _candidates(features: Tensor, targets: Tensor, steps: int) -> Candidates:
    """Return all but the first images as a strategy sees them; two heads are fitted to the first ones."""
    objective, recipe = Objective(find_loss(), None, None, "mean"), HeadRecipe(steps, HEAD_DECAY, HEAD_PRIOR, "mean")
    known, rest = features[:LABELED], features[LABELED:]
    halves = slice(LABELED // 2), slice(LABELED // 2, LABELED)  # other labels for each head, so that they disagree
    parts = [
        fit_heads(features[half], targets[half], len(CLASSES), 1, objective, recipe, torch.Generator())[0]
        for half in halves
    ]

    def members(rows: Tensor) -> Tensor:
        return torch.cat([heads(rows) for heads in parts]).log_softmax(dim=-1)

    return Candidates(
        keys=mixed(np.arange(len(rest), dtype=np.uint64)),
        calibrated_log_probs=mean_log_probs(members(rest)),
        member_log_probs=members(rest),
        features=rest,
        labeled=known,
        labels=targets[:LABELED],
        head=lambda rows: mean_log_probs(members(rows)),
    )


@dataclasses.dataclass(frozen=True)
class Both:
    """Candidates by the device, by the CPU, and by the CPU with features that have errors of the same size."""

    device: Candidates
    cpu: Candidates
    shaken: list[Candidates]
    difference: float


@pytest.fixture(scope="module")
def both(device: torch.device, sizes: Sizes) -> Both:
    backbone = own_trunk()
    images, targets = drawn(LABELED + sizes.pool, noise=90)
    there, here = (run_trunk_in_batches(backbone, images, where) for where in (device, CPU))
    difference = max(relative(there, here), 1e-7)
    size = difference * here.norm(dim=1, keepdim=True) / here.shape[1] ** 0.5
    draws = [torch.randn(here.shape, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    return Both(
        *(_candidates(features, targets, sizes.steps) for features in (there, here)),
        [_candidates(here + size * draw, targets, sizes.steps) for draw in draws],
        difference,
    )


def run_trunk_in_batches(backbone, images: Tensor, where: torch.device) -> Tensor:
    size = 256 if where.type == "cuda" else 32  # as alloop uses them
    return torch.cat([run(backbone, part, where).cpu() for part in images.split(size)])


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "random"])
def test_every_strategy_picks_what_it_picks_on_the_cpu(both: Both, measured, name: str):
    """Rounding changes the picks of some strategies, because clusters and joint draws depend on the last digits.

    Such a strategy picks other images on the CPU, too, if its features get errors as large as the device's. It is only
    reported; every other strategy must pick the same images.
    """
    here, there = (set(_picks(name, candidates)) for candidates in (both.cpu, both.device))
    on_its_own = max(len(set(_picks(name, candidates)) - here) for candidates in both.shaken)

    measured("relative difference of features", both.difference)
    measured(f"of {PICKS} picks, not the CPU's under as much noise on the CPU", on_its_own)
    measured(f"of {PICKS} picks, not the CPU's", len(there - here), None if on_its_own else 0.0)


def _picks(name: str, candidates: Candidates) -> list[int]:
    return choose(name, candidates, PICKS, seed=3).positions.tolist()


def test_the_gradient_that_odin_follows_is_the_cpus(device: torch.device, sizes: Sizes, measured):
    backbone = own_trunk()
    images, _ = drawn(16, noise=60)
    heads = MultiHead(backbone.n_features, 1, len(CLASSES), torch.Generator().manual_seed(0))
    slopes, scores = [], []
    for where in (device, CPU):
        trunk = on(backbone.module, where)
        inputs = backbone.normalize(images.to(where))
        leaf = inputs.clone().requires_grad_()

        def network(pixels: Tensor, trunk: torch.nn.Module = trunk) -> Tensor:
            return heads(trunk(pixels).float().cpu())

        loss = -(network(leaf) / 1000).log_softmax(dim=-1).amax(dim=-1).sum()
        slopes.append(torch.autograd.grad(loss, leaf)[0].cpu())
        scores.append(ood.odin(network, inputs, std=torch.tensor(backbone.std)).cpu())

    measured("relative difference of an image's gradient", relative(*slopes), 1e-3)
    signs = (slopes[0].sign() != slopes[1].sign()).double().mean()
    measured("share of pixels that move the other way", float(signs), 1e-2)
    spread = float(scores[1].std())
    measured(
        "difference of scores, in their standard deviations", float((scores[0] - scores[1]).abs().max()) / spread, 0.1
    )


def test_odins_score_of_a_pool_is_the_cpus(toys: Toys, device: torch.device, tmp_path, measured):
    config = toys.config("own_trunk", uncertainty="multi-head", members=2)
    wanted = config.model_copy(update={"acquisition": config.acquisition.model_copy(update={"ood_score": "odin"})})
    files = run_train(toys.train_job(config, CPU, tmp_path / "cache", tmp_path / "model")).files
    scores = []
    for number, where in enumerate((device, CPU)):
        job = toys.score_job(wanted, files, where, tmp_path / f"cache {number}", tmp_path / f"{number}.parquet")
        scores.append(pq.read_table(run_score(job).path)["ood"].to_numpy())

    spread = float(np.std(scores[1]))
    measured("difference, in their standard deviations", float(np.abs(scores[0] - scores[1]).max()) / spread, 0.1)


@pytest.mark.parametrize("mode", ["frozen", "finetune"])
@pytest.mark.parametrize("trained_on", ["device", "cpu"])
def test_a_model_saved_on_one_device_opens_on_the_other(
    toys: Toys, device: torch.device, tmp_path, measured, mode: str, trained_on: str
):
    config = toys.config("dropping_trunk", {"epochs": 2, "learning_rate": 0.01}, mode=mode)
    first = device if trained_on == "device" else CPU
    files = run_train(toys.train_job(config, first, tmp_path / "cache", tmp_path / "model")).files

    rows = []
    for number, where in enumerate((device, CPU)):
        job = toys.score_job(config, files, where, tmp_path / f"cache {number}", tmp_path / f"{number}.parquet")
        rows.append(torch.cat([part for _, part in read_log_probs(run_score(job).path)]))

    measured("difference of log p", float((rows[0] - rows[1]).abs().max()), 1e-3)
    measured("images predicted otherwise", float((rows[0].argmax(1) != rows[1].argmax(1)).sum()), 0.0)
