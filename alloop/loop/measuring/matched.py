"""Effect of active learning: comparison of models of equally many random and acquired labels."""

import dataclasses
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alloop.engine.jobs import TrainJob, TrainResult
from alloop.engine.targets import TASKS as CODINGS
from alloop.errors import LabelError
from alloop.evaluation.matched import FEWEST, GROUPS, Matched, match
from alloop.evaluation.measures import TASKS as MEASURES
from alloop.loop.stopping import points
from alloop.loop.workbench import Tools
from alloop.names import count
from alloop.records import Reason
from alloop.seeds import derive_seed

KINDS = (Reason.RANDOM, Reason.ACQUIRED)


@dataclasses.dataclass(frozen=True, slots=True)
class Arms:
    """Positions among a job's training images, in the order asked.

    Attributes:
        shared: Images of both arms: the seed batch, imported labels, and images asked for by hand.
        random: Images drawn at random, as many as `acquired`.
        acquired: Images chosen by the strategy.
    """

    shared: tuple[int, ...]
    random: tuple[int, ...]
    acquired: tuple[int, ...]

    @property
    def own(self) -> int:
        """Number of labels of each arm that are not in the other arm."""
        return len(self.random)


def find_arms(image_ids: Sequence[int], reasons: Mapping[int, Reason]) -> Arms:
    """Find arms of equally many labels among these images.

    Args:
        image_ids: Ids of the training images, in the job's order.
        reasons: Image → reason of its first question, in the order asked.
    """
    position = {image_id: at for at, image_id in enumerate(image_ids)}
    asked = [(position[image_id], reason) for image_id, reason in reasons.items() if image_id in position]
    by = {wanted: [at for at, reason in asked if reason is wanted] for wanted in KINDS}
    n = min(len(part) for part in by.values())
    others = {at for part in by.values() for at in part}
    shared = tuple(at for at in range(len(image_ids)) if at not in others)
    return Arms(shared, tuple(by[Reason.RANDOM][:n]), tuple(by[Reason.ACQUIRED][:n]))


def compare_arms(tools: Tools, job: TrainJob, result: TrainResult, reasons: Mapping[int, Reason]) -> dict[str, Any]:
    """Train both arms completely, and without each fifth of their own labels; compare them on the holdout.

    Args:
        tools: Tools with the executor of the jobs and the progress.
        job: Job of the round; the arms differ from it only in their labels.
        result: Result of that job; heads keep their specialties.
        reasons: Image → reason of its first question, in the order asked.

    Returns:
        JSON-able result, with a sentence `says`; `skipped` instead of numbers if nothing can be compared.
    """
    why = _why_not(job)
    if why:
        return {"skipped": True, "says": f"Did active learning help here? Not compared: {why}."}
    arms = find_arms([ref.image_id for ref in job.images], reasons)
    if arms.own < FEWEST:
        n_random, n_acquired = (sum(reason is kind for reason in reasons.values()) for kind in KINDS)
        why = (
            f"{count(n_random, 'random label')} and {count(n_acquired, 'acquired one')} so far; {FEWEST} of each are "
            "needed ([acquisition] random_fraction draws them)"
        )
        return {"skipped": True, "says": f"Did active learning help here? Not compared: {why}."}
    started = time.perf_counter()
    try:
        found = _train_arms(tools, job, result, arms)
    except LabelError as error:
        return {"skipped": True, "says": f"Did active learning help here? Not compared: {error.message}"}
    return {
        "skipped": False,
        "verdict": found.verdict,
        **dataclasses.asdict(found),
        "seconds": time.perf_counter() - started,
        "says": describe(found),
    }


def without(job: TrainJob, image_ids: Collection[int]) -> TrainJob:
    """Return the job with a holdout without these images."""
    kept = [pair for pair in zip(job.holdout, job.holdout_targets, strict=True) if pair[0].image_id not in image_ids]
    holdout, targets = tuple(ref for ref, _ in kept), tuple(target for _, target in kept)
    return dataclasses.replace(job, holdout=holdout, holdout_targets=targets)


def describe(found: Matched) -> str:
    """Describe the result in a sentence."""
    gain = f"{points(found.gain)} over random at {found.labels:,} labels"
    if found.verdict == "active":
        return f"Active learning helped here: {gain}."
    if found.verdict == "random":
        return f'Random is doing better here: {gain}; consider strategy = "random".'
    more = f"{found.more:,} more random labels would show a difference of {100 * found.target:.1f} pp"
    return f"No evidence yet that active learning helps here: {gain}; {more}."


def _why_not(job: TrainJob) -> str:
    if job.settings.model.mode == "finetune":
        return "fine-tuning twelve more networks would take twelve times as long as the round"
    return "" if len(job.holdout) >= 2 else "no holdout image has a label yet"


def _train_arms(tools: Tools, job: TrainJob, result: TrainResult, arms: Arms) -> Matched:
    generator = np.random.default_rng(derive_seed(job.seed, "matched arms"))
    groups = np.array_split(generator.permutation(arms.own), GROUPS)
    # The top class needs no calibrator, and a calibrator must not be fitted to a test set.
    settings = dataclasses.replace(job.settings, calibration="none")
    job = dataclasses.replace(job, settings=settings, head_classes=result.head_classes, is_test=False, is_kept=False)
    parts: dict[Reason, list[npt.NDArray[np.bool_]]] = {}
    with tempfile.TemporaryDirectory(prefix="alloop-") as folder:
        for kind, own in ((Reason.ACQUIRED, arms.acquired), (Reason.RANDOM, arms.random)):
            sets = [own, *(tuple(np.delete(own, group).tolist()) for group in groups)]
            parts[kind] = []
            for labels in sets:
                parts[kind].append(_correct(tools, job, (*arms.shared, *labels), Path(folder) / "arm"))
                done = len(parts[kind]) + (kind is Reason.RANDOM) * (GROUPS + 1)
                tools.progress("did it help", done, 2 * (GROUPS + 1))
    (active, *active_without), (random, *random_without) = parts[Reason.ACQUIRED], parts[Reason.RANDOM]
    n_labels = len(arms.shared) + arms.own
    return match(active, random, active_without, random_without, labels=n_labels, own=arms.own)


def _correct(tools: Tools, job: TrainJob, labels: Sequence[int], out: Path) -> npt.NDArray[np.bool_]:
    """Return whether a model of these labels is right about each readable holdout image."""
    arm = dataclasses.replace(
        job,
        images=tuple(job.images[at] for at in labels),
        targets=tuple(job.targets[at] for at in labels),
        out=out,
    )
    result = tools.executor.submit(arm)
    failed = {image_id for image_id, _ in result.failed}
    pairs = zip(job.holdout, job.holdout_targets, strict=True)
    task = job.settings.task
    targets = CODINGS[task](job.classes).array([target for ref, target in pairs if ref.image_id not in failed])
    return MEASURES[task].correct(result.holdout_calibrated_log_probs, targets)
