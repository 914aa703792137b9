"""Measure what out-of-fold predictions for second looks cost, and whether they find planted wrong labels.

python benchmarks/second_looks/run.py [digits] [large]
"""

import sys
import time

import numpy as np
import torch
from sklearn.datasets import load_digits

from alloop.engine.build import HEAD_DECAY, HEAD_PRIOR, HEAD_STEPS, HeadRecipe
from alloop.engine.cross_validate import predict_unlearned
from alloop.engine.fit_heads import HeadFits
from alloop.engine.objective import Objective
from alloop.losses.multi_head import assign_specialties, class_weights
from alloop.losses.named import find_loss

N_HEADS, SHARE = 4, 0.05  # heads of the model; share of labels that are planted wrong
RECIPE = HeadRecipe(HEAD_STEPS, HEAD_DECAY, HEAD_PRIOR, "mean")


def digits(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return gray values [n, 64] and classes [n] of digits."""
    found = load_digits()
    rows = np.random.default_rng(seed).permutation(len(found.target))[:n]
    return torch.from_numpy(found.data[rows]).float(), torch.from_numpy(found.target[rows]).long()


def large(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features [n, 1280] of ten overlapping clusters, whose variance falls along the axes, and classes [n]."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(0, -1.5, 1280)
    centers = 0.3 * torch.randn(10, 1280, generator=generator) * spread
    truth = torch.randint(0, 10, (n,), generator=generator)
    return centers[truth] + torch.randn(n, 1280, generator=generator) * spread, truth


def measure(name: str, features: torch.Tensor, truth: torch.Tensor, seed: int) -> str:
    """Return a row of the table."""
    generator = torch.Generator().manual_seed(seed)
    n, n_classes = len(truth), 10
    wrong = torch.randperm(n, generator=generator)[: round(SHARE * n)]
    labels = truth.clone()
    labels[wrong] = (labels[wrong] + torch.randint(1, n_classes, (len(wrong),), generator=generator)) % n_classes
    specialties = assign_specialties(n_classes, N_HEADS, generator, ())
    objective = Objective(find_loss(), class_weights(specialties, n_classes), None, "mean")
    fits = HeadFits(features, labels, n_classes)
    started = time.process_time()
    heads, _ = fits.fit(N_HEADS, objective, RECIPE, generator)
    trained = time.process_time()
    log_probs = predict_unlearned(fits, heads, HEAD_DECAY, seed)
    done = time.process_time()
    assert log_probs is not None
    worst = log_probs[torch.arange(n), labels].argsort()[: len(wrong)]
    hit = np.isin(worst.numpy(), wrong.numpy()).mean()
    fit, more = trained - started, done - trained
    return f"| {name}, {n:,} x {features.shape[1]:,} | {fit:.2f} | {more:.2f} | {more / fit:.0%} | {hit:.0%} |"


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    wanted = sys.argv[1:] or ["digits", "large"]
    print("| features | fit of 4 heads, CPU s | out-of-fold, CPU s | share | planted among the first |")
    print("|---|---|---|---|---|")
    for name in wanted:
        for n in {"digits": (100, 400, 1500), "large": (500, 5000)}[name]:
            for seed in range(2):
                print(measure(name, *{"digits": digits, "large": large}[name](n, seed), seed))


if __name__ == "__main__":
    main()
