"""Time and memory of one selection on random features; also of peers if they are installed.

    OMP_NUM_THREADS=1 python benchmarks/selection_time/measure.py --strategies k-center badge typiclust
    OMP_NUM_THREADS=1 python benchmarks/selection_time/measure.py --peer --strategies k-center badge typiclust

Times are processor times, so that other programs have little effect. Measure memory with one strategy at a time,
because a later strategy may use memory that an earlier one gave back.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from alloop.acquisition.registry import OPERATIONS_PER_SECOND, estimate, find_strategy
from alloop.acquisition.strategy import Candidates, Size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", nargs="+", default=["k-center", "badge", "typiclust"])
    parser.add_argument("--peer", action="store_true", help="scikit-activeml instead")
    for name, default in {"n": 20_000, "features": 1280, "classes": 10, "k": 100, "labeled": 100, "members": 4}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    features, classes = _features(args.n + args.labeled, args.features, args.classes)
    for strategy in args.strategies:
        before, started = _reset_peak(), time.process_time()
        if args.peer:
            estimated = ""
            started = _peer(strategy, features, classes, args)
        else:
            candidates = _candidates(features, classes, args)
            before, started = _reset_peak(), time.process_time()
            find_strategy(strategy)(candidates, args.k, 0)
            size = Size(args.n, args.labeled, args.k, args.classes, args.members, args.features)
            cost = estimate(strategy, size)
            seconds = cost.operations / OPERATIONS_PER_SECOND
            estimated = f"  estimated {seconds:7.2f} s, {cost.n_bytes / 1e6:5.0f} MB"
        taken = time.process_time() - started
        print(f"{strategy:20}{taken:8.2f} s, {(_memory('VmHWM') - before) / 1e6:5.0f} MB{estimated}", flush=True)


def _features(n: int, n_features: int, n_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(n_classes, n_features, generator=generator)
    classes = torch.randint(n_classes, (n,), generator=generator)
    return (0.7 * centers[classes] + torch.randn(n, n_features, generator=generator)).relu(), classes


def _candidates(features: torch.Tensor, classes: torch.Tensor, args: argparse.Namespace) -> Candidates:
    generator = torch.Generator().manual_seed(1)
    weights = 0.03 * torch.randn(args.members, args.features, args.classes, generator=generator)
    members = torch.stack([(features[: args.n] @ weight).log_softmax(dim=1) for weight in weights])
    return Candidates(
        np.random.default_rng(0).permutation(args.n).astype(np.uint64),
        calibrated_log_probs=members.exp().mean(dim=0).log(),
        member_log_probs=members,
        features=features[: args.n],
        labeled=features[args.n :],
        labels=classes[args.n :],
        head=lambda rows: (rows @ weights[0]).log_softmax(dim=1),
    )


def _peer(strategy: str, features: torch.Tensor, classes: torch.Tensor, args: argparse.Namespace) -> float:
    """Run scikit-activeml's strategy. Return the time of its start; its model is fitted before."""
    from skactiveml import pool
    from skactiveml.classifier import SklearnClassifier
    from sklearn.linear_model import LogisticRegression

    X = features.numpy()
    y = np.full(len(X), np.nan)
    y[args.n :] = classes[args.n :].numpy()
    if strategy == "badge":
        model = SklearnClassifier(LogisticRegression(C=0.01, max_iter=50), classes=range(args.classes)).fit(X, y)
        started = time.process_time()
        pool.Badge(random_state=0).query(X, y, model, fit_clf=False, batch_size=args.k)
        return started
    started = time.process_time()
    {"k-center": pool.CoreSet, "typiclust": pool.TypiClust}[strategy](random_state=0).query(X, y, batch_size=args.k)
    return started


def _reset_peak() -> int:
    """Reset the highest memory so far (Linux). Return the memory in use, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(what: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
