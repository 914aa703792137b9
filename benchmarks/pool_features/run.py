"""Raw heads, smoothed heads, and both weighed, on the same labels of many pools.

    ALLOOP_DATA=... python benchmarks/pool_features/run.py --work FOLDER
    python benchmarks/pool_features/run.py --work FOLDER --tables     # tables of the finished cells; computes nothing

FOLDER keeps features and finished cells; it may be that of benchmarks/label_efficiency, which has the same features.
The same command continues after a stop.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path

import numpy as np
import torch
from scenes import SCENES, Scene
from torch import Tensor

from alloop.acquisition.registry import choose
from alloop.acquisition.strategy import Candidates
from alloop.calibration.temperature import Temperature, fit_temperature
from alloop.calibration.weighing import fit_weights, weigh
from alloop.engine.build import HEAD_DECAY, HEAD_PRIOR, HEAD_STEPS, SMOOTHED_DECAY, HeadRecipe
from alloop.engine.fit_heads import fit_heads
from alloop.engine.objective import Objective
from alloop.evaluation.metrics import confidence_bins
from alloop.files import write_bytes
from alloop.losses.multi_head import assign_specialties, class_weights
from alloop.losses.named import find_loss
from alloop.predictive import mean_log_probs
from alloop.seeds import derive_seed
from alloop.smoothing.smoothing import Smoothing, fit_smoothing

BUDGETS = (10, 20, 40, 80, 160, 320)
ASKED = (10, 20, 40, 60, 80, 120, 160, 240, 320)  # numbers of labels after which raw heads choose the next batch
N_HOLDOUT, N_HEADS, SEEDS = 200, 4, 5
FIXED = (1.0, 1.1, 1.2, 1.35, 1.5)  # temperatures of smoothed heads without a holdout
STRATEGY = "entropy-spread"
OWN = f"{STRATEGY}, own"
ORDERS = ("random", STRATEGY, OWN)  # raw heads ask, or weighed heads ask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--scenes", nargs="+", default=list(SCENES), choices=list(SCENES))
    parser.add_argument("--orders", nargs="+", default=list(ORDERS[:2]), choices=ORDERS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.csv"))
    options = parser.parse_args()
    if not options.tables:
        for seed in range(options.seeds):
            for name in options.scenes:
                run_cell(name, seed, options.orders, options.work)
    else:
        from gains import print_tables

        print_tables(options.work / "pool-features", options.out)


def run_cell(name: str, seed: int, orders: list[str], work: Path) -> None:
    """Measure a pool with one seed, once."""
    paths = {order: work / "pool-features" / name / f"{seed}-{order}.json" for order in orders}
    missing = {order: path for order, path in paths.items() if not path.exists()}
    if not missing:
        return
    started = time.process_time()
    cell = Cell(SCENES[name](seed, work), seed)
    for order, path in missing.items():
        lines = cell.measure(order)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, json.dumps(lines).encode())
    print(f"{name} {seed}: {time.process_time() - started:.0f} s", flush=True)


class Cell:
    """One pool with its holdout, and features of both kinds."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self.scene, self.seed = scene, seed
        order = np.random.default_rng([seed, 0]).permutation(len(scene.y))
        self.holdout, self.rest = order[:N_HOLDOUT], order[N_HOLDOUT:]
        pool, test = torch.from_numpy(scene.F).float(), torch.from_numpy(scene.F_test).float()
        self.raw, self.raw_test = pool, test
        self.smoothed, self.smoothed_test = _smoothed(pool, test)
        self.y, self.y_test = torch.from_numpy(scene.y), torch.from_numpy(scene.y_test)

    def measure(self, order: str) -> list[dict[str, object]]:
        lines = []
        for rows in self._random() if order == "random" else self._asked(is_own=order == OWN):
            if len(rows) in BUDGETS:
                lines += [{"order": order, "labels": len(rows), **line} for line in self._compare(rows)]
        return lines

    def _random(self) -> list[np.ndarray]:
        return [self.rest[:n] for n in BUDGETS if n <= len(self.rest)]

    def _asked(self, *, is_own: bool) -> list[np.ndarray]:
        """Return the labels after each batch. The first is random; raw or weighed heads ask for the rest."""
        picked = [self.rest[: ASKED[0]]]
        for number, n in enumerate(ASKED[1:]):
            rows = picked[-1]
            if n > len(self.rest):
                break
            left = np.sort(np.setdiff1d(self.rest, rows))
            candidates = Candidates(
                left.astype(np.uint64),
                calibrated_log_probs=(self._weighed(rows, left) if is_own else self._warmed(rows, left)).float(),
                features=self.raw[left],
                labeled=self.raw[rows],
                labels=self.y[rows],
            )
            choice = choose(STRATEGY, candidates, n - len(rows), derive_seed(self.seed, "batch", number))
            picked.append(np.concatenate([rows, left[choice.positions]]))
        return picked

    def _warmed(self, rows: np.ndarray, left: np.ndarray) -> Tensor:
        """Return log p of raw heads with a temperature."""
        log_probs = self._heads(self.raw, rows, HEAD_DECAY)
        temperature, _ = fit_temperature(log_probs(self.raw[self.holdout]), self.y[self.holdout])
        return temperature.apply(log_probs(self.raw[left]))

    def _weighed(self, rows: np.ndarray, left: np.ndarray) -> Tensor:
        """Return log p of weighed heads."""
        raw, smoothed = self._heads(self.raw, rows, HEAD_DECAY), self._heads(self.smoothed, rows, SMOOTHED_DECAY)
        held, pool = (
            torch.stack([raw(self.raw[at]), smoothed(self.smoothed[at])], dim=1) for at in (self.holdout, left)
        )
        return weigh(pool, *fit_weights(held, self.y[self.holdout]))

    def _compare(self, rows: np.ndarray) -> list[dict[str, object]]:
        raw, smoothed = self._heads(self.raw, rows, HEAD_DECAY), self._heads(self.smoothed, rows, SMOOTHED_DECAY)
        held = torch.stack([raw(self.raw[self.holdout]), smoothed(self.smoothed[self.holdout])], dim=1)
        test = torch.stack([raw(self.raw_test), smoothed(self.smoothed_test)], dim=1)
        targets = self.y[self.holdout]
        a, b = fit_weights(held, targets)
        predictions = {"weighed": weigh(test, a, b)}
        for place, model in enumerate(("raw", "smoothed")):
            temperature, _ = fit_temperature(held[:, place], targets)
            predictions[model] = temperature.apply(test[:, place])
        for kind, place, fixed in (("raw", 0, (1.0,)), ("smoothed", 1, FIXED)):
            for t in fixed:
                predictions[f"{kind}, T = {t}"] = Temperature(t).apply(test[:, place])
        return [{"model": model, "a": a, "b": b, **self._metrics(rows)} for model, rows in predictions.items()]

    def _metrics(self, log_probs: Tensor) -> dict[str, float]:
        right = log_probs.argmax(dim=1) == self.y_test
        recalls = [float(right[self.y_test == k].double().mean()) for k in self.y_test.unique().tolist()]
        bins = confidence_bins(log_probs.exp().numpy(), self.y_test.numpy())
        gaps = bins.count * np.abs(np.nan_to_num(bins.accuracy - bins.confidence))
        return {
            "accuracy": float(right.double().mean()),
            "balanced": float(np.mean(recalls)),
            "nll": float(-log_probs.gather(1, self.y_test.unsqueeze(1)).mean()),
            "ece": float(gaps.sum() / bins.count.sum()),
        }

    def _heads(self, features: Tensor, rows: np.ndarray, decay: float) -> "Predict":
        return fit(features[rows], self.y[rows], self.scene.n_classes, decay, self.seed)


class Predict:
    """Log p̄ of fitted heads."""

    def __init__(self, heads: torch.nn.Module) -> None:
        self._heads = heads

    def __call__(self, features: Tensor) -> Tensor:
        return mean_log_probs(self._heads(features).log_softmax(dim=-1))


def fit(features: Tensor, targets: Tensor, n_classes: int, decay: float, seed: int) -> Predict:
    """Fit alloop's four heads."""
    specialties = assign_specialties(n_classes, N_HEADS, _generator(seed, "specialties"))
    objective = Objective(find_loss(), class_weights(specialties, n_classes), None, "mean")
    recipe = HeadRecipe(HEAD_STEPS, decay, HEAD_PRIOR, "mean")
    return Predict(fit_heads(features, targets, n_classes, N_HEADS, objective, recipe, _generator(seed, "heads"))[0])


def smooth(pool: Tensor) -> tuple[Smoothing, list[str]]:
    """Return the graph of a pool, and the keys of its rows."""
    keys = [hashlib.sha256(f"{row}".encode()).hexdigest() for row in range(len(pool))]
    return fit_smoothing(keys, pool), keys


_LAST: list[Tensor] = []  # pool, measured images, and the smoothed features of both


def _smoothed(pool: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Return smoothed features of pool and measured images; the same for all seeds of a set with its own split."""
    if not (_LAST and torch.equal(_LAST[0], pool) and torch.equal(_LAST[1], test)):
        smoothing, keys = smooth(pool)
        _LAST[:] = [pool, test, smoothing.transform(keys, pool), smoothing.place(test)]
    return _LAST[2], _LAST[3]


def _generator(seed: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, purpose))


if __name__ == "__main__":
    import logging

    logging.disable(logging.WARNING)  # four heads share the specialties of two classes
    torch.set_num_threads(1)
    main()
