"""The loop of `alloop simulate` in one process, in seconds a run: for experiments with strategies and models.

    python benchmarks/label_efficiency/fast.py --work FOLDER --sets digits cifar10:cat+dog trashnet:cut4 --arms margin

It uses alloop's own heads, calibrators and strategies, and derives every seed as the loop does. With `--calibrate
labels`, its picks are those of `alloop simulate --features … --test …`. With `--calibrate holdout`, the default here, a
random holdout is taken from the pool as in a workspace; this is several times faster. FOLDER keeps one file per run.

Besides the sets of sets.py there are sets whose classes are not clusters: `SET:a+b` has two classes of a set, and
`SET:cutN` splits the images of a set at the median of principal component N of the features (from 1). `SET:cut3+6` has
four classes.
"""

import argparse
import dataclasses
import functools
import io
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from peers import run_peer
from sets import BATCHES, OWN_TEST, ROUNDS, Head, Task, load_task
from tables import Run, read_csv, write_csv
from torch import Tensor

from alloop.acquisition.batch import compose_batch
from alloop.acquisition.registry import choose
from alloop.acquisition.scores import SCORES, choose_by_score
from alloop.acquisition.strategy import Candidates, Choice
from alloop.acquisition.uncertainty import predictive_entropy
from alloop.config.schema import EvaluationConfig
from alloop.engine.build import HEAD_DECAY, HEAD_PRIOR, HEAD_STEPS, SMOOTHED_DECAY, HeadRecipe
from alloop.engine.calibrate import apply_calibration, calibrate
from alloop.engine.cross_validate import calibrate_apart, out_of_fold
from alloop.engine.fit_heads import HeadFits
from alloop.engine.objective import Objective
from alloop.files import write_bytes, write_json
from alloop.losses.multi_head import Specialties, assign_specialties, class_weights
from alloop.losses.named import find_loss
from alloop.models.ensemble import pool_members
from alloop.models.heads import MultiHead
from alloop.pool.given import given_files
from alloop.seeds import derive_seed, tie_keys
from alloop.smoothing.smoothing import fit_smoothing

N_HEADS = 4
RANDOM_FRACTION = 0.0  # as in `alloop simulate`
NAMES = {  # of the classes that a pair may name
    "cifar10": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    "fashion-mnist": [str(digit) for digit in range(10)],
    "trashnet": ["cardboard", "glass", "metal", "paper", "plastic", "trash"],
}
LARGEST = 3_000  # images of the pool of a derived set, and images measured on
DERIVED_BATCH = 25

Choose = Callable[[Candidates, int, int], Choice]


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Predictions of a round's model.

    Attributes:
        members: Uncalibrated log-probabilities of the pool [M, N, K].
        pool: Calibrated log p̄ of the pool [N, K].
        test: Calibrated log p̄ of the measured images [T, K].
        facts: Numbers about the fit, for the file of the run.
    """

    members: Tensor
    pool: Tensor
    test: Tensor
    facts: dict[str, float]


class Heads:
    """alloop's model: four heads on raw features and, with smoothed features, four others on these.

    The seeds of the fits are those of the loop. With a holdout, weights and calibrator are fitted to it; without one,
    to the labels by cross-validation, as in a workspace with a test set.

    Args:
        task: Features and labels.
        holdout: Rows of the pool.
        smoothed: Smoothed features of the pool and of the measured images; None: raw heads only.
    """

    def __init__(self, task: Task, holdout: np.ndarray, smoothed: tuple[np.ndarray, np.ndarray] | None = None) -> None:
        self.holdout = torch.from_numpy(holdout)
        self._y = torch.from_numpy(task.y)
        self._n_classes = int(max(task.y.max(), task.y_test.max())) + 1
        self._kinds = [(task.F, task.F_test, HEAD_DECAY, "heads")]
        if smoothed is not None:
            self._kinds.append((*smoothed, SMOOTHED_DECAY, "smoothed heads"))
        self._specialties: Specialties | None = None

    def fit(self, rows: np.ndarray, seed: int) -> Fitted:
        """Fit to labeled rows of the pool, ordered by content. `seed` is that of the training job."""
        if self._specialties is None:
            generator = torch.Generator().manual_seed(derive_seed(seed, "specialties"))
            self._specialties = assign_specialties(self._n_classes, N_HEADS, generator)
        targets = self._y[torch.from_numpy(rows)]
        kinds, members, tested = [], [], []
        for pool, test, decay, name in self._kinds:
            kind = Kind(HeadFits(torch.from_numpy(pool[rows]), targets, self._n_classes), self._specialties, decay)
            heads = kind.fit(derive_seed(seed, name))
            kinds.append((kind, heads))
            members.append(_log_probs(heads, torch.from_numpy(pool)))
            tested.append(pool_members(_log_probs(heads, torch.from_numpy(test))))
        pooled = _joined([pool_members(one) for one in members])
        folds = derive_seed(seed, "calibration")
        if len(self.holdout):
            _, found = calibrate("temperature", pooled[self.holdout], self._y[self.holdout], folds)
        else:
            again = functools.partial(_out_of_fold, kinds, targets, folds)
            found = calibrate_apart("temperature", len(rows), folds, again, pooled[:0])
        a, b = found.weights or (0.0, 1.0)
        return Fitted(
            members[0] if len(members) == 1 else ((a * members[0] + b * members[1]) / (a + b)).log_softmax(dim=-1),
            apply_calibration(found, pooled),
            apply_calibration(found, _joined(tested)),
            {"T": found.temperature, "a": a, "b": b},
        )


@dataclasses.dataclass(frozen=True)
class Kind:
    """Fits of heads to raw or to smoothed features of the labeled images."""

    fits: HeadFits
    specialties: Specialties
    decay: float

    def fit(self, seed: int, part: Tensor | None = None, start: MultiHead | None = None) -> MultiHead:
        """Fit to all labeled images, or to a part of them."""
        weights = class_weights(self.specialties, self.fits.n_classes)
        objective = Objective(find_loss("cross-entropy", {}), weights, None, "mean")
        recipe = HeadRecipe(HEAD_STEPS, self.decay, HEAD_PRIOR, "mean")
        return self.fits.fit(N_HEADS, objective, recipe, torch.Generator().manual_seed(seed), part, start)[0]


def _out_of_fold(kinds: Sequence[tuple[Kind, MultiHead]], targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return predictions of labeled images by heads that did not see them; these start from the heads of all images."""

    def predict(rest: Tensor, fold: Tensor) -> Tensor:
        both = []
        for kind, start in kinds:
            heads = kind.fit(derive_seed(seed, "fold", 0), rest, start)
            both.append(pool_members(_log_probs(heads, kind.fits.features[fold])))
        return _joined(both)

    return out_of_fold(targets, seed, predict), targets


def _log_probs(heads: MultiHead, features: Tensor) -> Tensor:
    with torch.inference_mode():
        return heads(features).log_softmax(dim=-1)


def _joined(kinds: Sequence[Tensor]) -> Tensor:
    """Return predictions [N, K] of one kind of heads, or [N, 2, K] of two."""
    return kinds[0] if len(kinds) == 1 else torch.stack(list(kinds), dim=1)


def smooth(task: Task, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return smoothed features of the pool and of the measured images, kept in a file."""
    if not path.exists():
        keys = [file.sha256 for file in given_files(task.F)]
        fitted = fit_smoothing(keys, torch.from_numpy(task.F))
        pool, test = fitted.transform(keys, torch.from_numpy(task.F)), fitted.place(torch.from_numpy(task.F_test))
        path.parent.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        np.savez(file, pool=pool.numpy(), test=test.numpy())
        write_bytes(path, file.getvalue())
    with np.load(path) as arrays:
        return arrays["pool"], arrays["test"]


def run(
    task: Task,
    model: Heads,
    batch: int,
    seed: int,
    arm: Choose | None = None,
    picks: Sequence[Sequence[int]] | None = None,
) -> dict[str, object]:
    """Run the rounds of one strategy; the first batch is random.

    Args:
        task: Features and labels.
        model: Model of the rounds, new for every run.
        batch: Images per round.
        seed: `[project] seed`.
        arm: Strategy; gets all parts of the candidates except the head. None: all batches are drawn.
        picks: Picks of another run; nothing is chosen then.
    """
    hashes = [file.sha256 for file in given_files(task.F)]
    by_content = np.argsort(np.array(hashes), kind="stable")
    rank = np.empty(len(hashes), dtype=np.int64)
    rank[by_content] = np.arange(len(hashes))
    free = np.ones(len(hashes), dtype=bool)
    free[model.holdout.numpy()] = False
    chosen: list[list[int]] = []
    result: dict[str, list[object]] = {"accuracy": [], "nll": [], "select_seconds": [], "notes": [], "facts": []}
    fitted = None
    for number in range(ROUNDS + 1):
        current = derive_seed(seed, number)
        if chosen:
            known = np.concatenate([np.array(part) for part in chosen])
            known = known[np.argsort(rank[known])]
            if len(np.unique(task.y[known])) > 1:
                fitted = model.fit(known, derive_seed(current, "train"))
                result["accuracy"].append(float((fitted.test.argmax(dim=1).numpy() == task.y_test).mean()))
                at_target = fitted.test[torch.arange(len(fitted.test)), torch.from_numpy(task.y_test)]
                result["nll"].append(float(-at_target.mean()))
                result["facts"].append(fitted.facts)
        if number == ROUNDS:
            break
        started = time.process_time()
        if picks is not None:
            part = list(map(int, picks[number]))
        else:
            rows = by_content[free[by_content]]
            notes, part = _choose(task, arm, rows, hashes, chosen, fitted, batch, current)
            result["notes"].append(notes)
        result["select_seconds"].append(time.process_time() - started)
        free[part] = False
        chosen.append(part)
    return {"picks": chosen, **result}


def _choose(
    task: Task,
    arm: Choose | None,
    rows: np.ndarray,
    hashes: Sequence[str],
    chosen: Sequence[Sequence[int]],
    fitted: Fitted | None,
    batch: int,
    seed: int,
) -> tuple[list[str], list[int]]:
    keys = tie_keys([hashes[row] for row in rows], derive_seed(seed, "ties"))
    known = np.array(sorted((row for part in chosen for row in part), key=lambda row: hashes[row]), dtype=np.int64)

    def acquire(rest: np.ndarray, drawn: np.ndarray, k: int) -> Choice:
        assert fitted is not None and arm is not None
        places, asked = torch.from_numpy(rows[rest]), rows[drawn]
        candidates = Candidates(
            keys[rest],
            calibrated_log_probs=fitted.pool[places],
            member_log_probs=fitted.members[:, places],
            features=torch.from_numpy(task.F[rows[rest]]),
            labeled=torch.from_numpy(task.F[np.concatenate([known, asked])]),
            labels=torch.from_numpy(np.concatenate([task.y[known], np.full(len(asked), -1)])),
        )
        return arm(candidates, k, derive_seed(seed, "strategy"))

    share = 1.0 if arm is None or fitted is None else RANDOM_FRACTION
    generator = torch.Generator().manual_seed(derive_seed(seed, "random share"))
    taken, notes = compose_batch(keys, batch, share, generator, acquire)
    return list(notes), [int(rows[pick.position]) for pick in taken]


def strategy(name: str) -> Choose:
    """Return one of alloop's strategies as the loop calls it."""
    if name not in SCORES:
        return lambda candidates, k, seed: choose(name, candidates, k, seed)

    def by_score(candidates: Candidates, k: int, seed: int) -> Choice:
        assert candidates.calibrated_log_probs is not None
        log_probs = candidates.calibrated_log_probs.unsqueeze(0)
        scores, entropies = (
            function(log_probs).double().numpy() for function in (SCORES[name].function, predictive_entropy)
        )
        return choose_by_score(name, scores, entropies, candidates.keys, k, seed)

    return by_score


def load(name: str, seed: int, work: Path) -> Task:
    """Load a set by its name in the docstring of this module."""
    base, _, part = name.partition(":")
    task = load_task(base, seed, work)
    if not part:
        return task
    if part.startswith("cut"):
        task = _cut(task, list(map(int, part.removeprefix("cut").split("+"))))
    else:
        wanted = [NAMES[base].index(one) for one in part.split("+")]
        kept, measured = np.isin(task.y, wanted), np.isin(task.y_test, wanted)
        task = Task(
            task.F[kept],
            np.searchsorted(sorted(wanted), task.y[kept]),
            task.F_test[measured],
            np.searchsorted(sorted(wanted), task.y_test[measured]),
        )
    generator = np.random.default_rng(seed)
    if base in OWN_TEST:  # one split serves all seeds, so each seed draws its own part
        rows = np.sort(generator.permutation(len(task.F))[:LARGEST])
        task = dataclasses.replace(task, F=task.F[rows], y=task.y[rows])
    return task


def _cut(task: Task, components: Sequence[int]) -> Task:
    """Replace the classes by the side of the median that an image is on, along each of the principal components."""
    both = np.concatenate([task.F, task.F_test]).astype(np.float64)
    both -= both.mean(axis=0)
    _, directions = np.linalg.eigh(both.T @ both)
    along = both @ directions[:, [-number for number in components]]
    y = (along > np.median(along, axis=0)) @ (2 ** np.arange(len(components)))
    return dataclasses.replace(task, y=y[: len(task.F)], y_test=y[len(task.F) :])


def draw_holdout(task: Task, seed: int) -> np.ndarray:
    """Return the rows of a random holdout of the default size."""
    settings = EvaluationConfig()
    n = min(settings.holdout_size, round(settings.holdout_share * len(task.F)))
    return np.sort(np.random.default_rng(derive_seed(seed, "holdout")).permutation(len(task.F))[:n])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(BATCHES))
    parser.add_argument("--arms", nargs="+", default=["random", "entropy-spread", "margin"])
    parser.add_argument("--peers", nargs="*", default=[], help="peers whose picks the model is fitted to (peers.py)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--csv", type=Path, help="file to add the curves of all finished runs of these settings to")
    parser.add_argument("--calibrate", choices=["labels", "holdout"], default="holdout")
    parser.add_argument("--pool-features", choices=["auto", "off"], default="auto")
    options = parser.parse_args()
    torch.set_num_threads(1)
    work, kind = options.work, f"{options.calibrate}-{options.pool_features}"
    for seed in options.seeds:
        for name in options.sets:
            todo = [arm for arm in [*options.arms, *options.peers] if not _path(work, kind, name, arm, seed).exists()]
            if not todo:
                continue
            task = load(name, seed, work)
            holdout = draw_holdout(task, seed) if options.calibrate == "holdout" else np.empty(0, dtype=np.int64)
            smoothed = None
            if options.pool_features == "auto":
                kept = 0 if name in OWN_TEST else seed  # one split serves all seeds
                smoothed = smooth(task, work / "smoothed" / f"{name}-{kept}.npz")
            for arm in todo:
                model = Heads(task, holdout, smoothed)
                batch = BATCHES.get(name, DERIVED_BATCH)
                if arm in options.peers:
                    first = json.loads(_path(work, kind, name, "random", seed).read_text())["picks"][0]
                    theirs = run_peer(arm, Head(task), first, seed)
                    theirs |= {"strategy": arm.partition("-")[2]}
                    done = theirs | run(task, model, batch, seed, picks=theirs["picks"])
                else:
                    about = {"strategy": arm, "seed": seed, "version": "alloop", "settings": ""}
                    chooser = None if arm == "random" else strategy(arm)
                    done = about | run(task, model, batch, seed, chooser)
                path = _path(work, kind, name, arm, seed)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, done)
                print(f"{name} {arm} seed {seed}: area {np.mean(done['accuracy']):.4f}", flush=True)
    if options.csv is not None:
        _update(options.csv, _collect(work / "fast" / kind))


def _update(path: Path, runs: Sequence[Run]) -> None:
    """Write runs to a file of curves, beside those that it has of other runs. The order is fixed."""

    def about(run: Run) -> tuple[int, bool, str, str, int]:
        return list(BATCHES).index(run.set), run.by != "alloop", run.by, run.strategy, run.seed

    kept = {about(run): run for run in (read_csv(path) if path.exists() else [])}
    write_csv([run for _, run in sorted((kept | {about(run): run for run in runs}).items())], path)


def _collect(folder: Path) -> list[Run]:
    """Return all finished runs of the sets of sets.py."""
    runs = []
    for path in sorted(folder.glob("*/*.json")):
        data = json.loads(path.read_text())
        if path.parent.name in BATCHES and len(data["accuracy"]) == ROUNDS:
            curves = {"own": tuple(data["accuracy"])}
            seconds = float(np.mean(data["select_seconds"][1:]))
            runs.append(
                Run(
                    path.parent.name, data["version"], data["strategy"], data["seed"], curves, seconds, data["settings"]
                )
            )
    return runs


def _path(work: Path, kind: str, name: str, arm: str, seed: int) -> Path:
    return work / "fast" / kind / name / f"{arm}-{seed}.json"


if __name__ == "__main__":
    main()
