"""Automatic labels with a promise: a look at the holdout labels, then labels for the images above a threshold."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from alloop.errors import LabelError
from alloop.evaluation.autolabel import FEWEST, Walk, labels_missing, level_of_look, walk
from alloop.loop.automatic.sample import Predicted, Sample, predict, read_sample
from alloop.loop.intake.ingest import mark_unusable
from alloop.loop.intake.near_copies import keep_largest, read_sizes
from alloop.loop.intake.reach import require_reachable
from alloop.loop.workbench import Workbench
from alloop.records import ImageRef, Split
from alloop.store.auto_labels import (
    LookRecord,
    add_auto_labels,
    add_look,
    count_auto_labels,
    count_looks,
    list_auto_labels,
    list_looks,
    withdraw_auto_labels,
)
from alloop.store.images import list_refs
from alloop.store.session import reading, transaction
from alloop.store.workspace import add_event


@dataclasses.dataclass(frozen=True, slots=True)
class Promise:
    """Largest share of errors among automatic labels, in (0, 1), and the confidence of all looks together, in (0, 1).

    Attributes:
        is_classwise: True if the promise holds for each predicted class, and not only for all labels together.
    """

    max_error: float
    confidence: float = 0.95
    is_classwise: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Chain:
    """Thresholds tested for one predicted class, or for all classes together.

    Attributes:
        class_name: Predicted class; None for all together.
        above: Score that accepted images exceed: log of the probability of the predicted class before calibration.
            None if all images are accepted.
        is_accepted: True if a threshold passed.
        n, errors: Holdout images above the threshold and errors among them; of the first test if none passed, 0 if
            nothing could be tested.
        missing: About how many more holdout labels could let a threshold pass; None if one passed, or if even many
            labels could not.
    """

    class_name: str | None
    above: float | None
    is_accepted: bool
    n: int
    errors: int
    missing: int | None

    def accepts(self, class_name: str, score: float) -> bool:
        """Return whether an image gets a label by this chain."""
        is_mine = self.class_name is None or self.class_name == class_name
        return self.is_accepted and is_mine and (self.above is None or score > self.above)

    @property
    def probability(self) -> float:
        """Probability that accepted images exceed; 0 if all are accepted."""
        return 0.0 if self.above is None else math.exp(self.above)


@dataclasses.dataclass(frozen=True, slots=True)
class Labeled:
    """Result of a look.

    Attributes:
        look: Number of the look.
        is_new: False if the same holdout labels, model and promise were looked at before, which costs nothing.
        level: Part of 1 - confidence that the look spends.
        n_rest: Number of images that could get a label.
        n_accepted: Number of images above a threshold.
        n_labeled: Number of images with an automatic label now.
        notes: Sentences about what the promise covers.
    """

    look: int
    is_new: bool
    is_dry_run: bool
    model: str
    promise: Promise
    level: float
    n_holdout: int
    chains: tuple[Chain, ...]
    n_rest: int
    n_accepted: int
    n_labeled: int
    notes: tuple[str, ...]


def label_automatically(
    bench: Workbench, promise: Promise, *, is_dry_run: bool = False, device: str | None = None
) -> Labeled:
    """Look at the holdout labels, and label the images that can be labeled with the promise.

    Labels of earlier looks are replaced if a threshold passes. If none passes, they stay: their promise still holds.
    A dry run is a look, too, because it tells the same about the holdout labels; it only leaves the labels out.

    Raises:
        ConfigError, ModelError, LabelError: As in `read_sample`; or there is nothing left to label.
        SourceUnreachable: A large part of the pool is missing.
    """
    require_reachable(bench.project)
    with reading(bench.project.database) as session:
        sample = read_sample(session, bench.project)
        if not sample.rest:
            raise LabelError(
                "There is no unlabeled image that could get an automatic label.",
                "`alloop status` counts labeled images and those being asked about.",
            )
        once = keep_largest(sample.rest, sample.groups, read_sizes(session, sample.rest, sample.groups))
        known, number = _find_look(session, sample, promise), count_looks(session) + 1
    predicted = predict(bench, sample, device)
    if known is None:
        chains = _test(sample, once, predicted, promise, level_of_look(number, promise.confidence))
    else:
        chains = tuple(Chain(**chain) for chain in known.outcome["chains"])
        number = known.number
    accepted = _accepted(sample.rest, predicted, chains)
    with transaction(bench.project.database) as session:
        look = known or add_look(session, _row(sample, promise, chains, is_dry_run=is_dry_run), bench.now())
        mark_unusable(session, bench, predicted.failed)
        if accepted and not is_dry_run:
            _replace(session, bench, look, accepted)
        n_labeled = count_auto_labels(session)
        counts = {"look": look.number, "accepted": len(accepted), "labels": n_labeled, "dry_run": is_dry_run}
        add_event(session, bench.user, "automatic labels", bench.now(), **counts)
    return Labeled(
        look=number,
        is_new=known is None,
        is_dry_run=is_dry_run,
        model=sample.model.name,
        promise=promise,
        level=level_of_look(number, promise.confidence),
        n_holdout=len(sample.holdout),
        chains=chains,
        n_rest=len(sample.rest),
        n_accepted=len(accepted),
        n_labeled=n_labeled,
        notes=_notes(sample, promise),
    )


def undo(bench: Workbench) -> int:
    """Withdraw all automatic labels; return their number. Nothing else changes, and looks stay spent."""
    with transaction(bench.project.database) as session:
        n = withdraw_auto_labels(session, bench.now())
        if n:
            add_event(session, bench.user, "automatic labels withdrawn", bench.now(), labels=n)
    return n


def _find_look(session: Session, sample: Sample, promise: Promise) -> LookRecord | None:
    """Return the earlier look at the same labels with the same model and promise."""
    wanted = (sample.model.sha256, sample.digest(), promise.max_error, promise.confidence, promise.is_classwise)
    for look in list_looks(session):
        if (look.model_sha256, look.holdout_digest, look.max_error, look.confidence, look.is_classwise) == wanted:
            return look
    return None


def _test(
    sample: Sample, once: Sequence[ImageRef], predicted: Predicted, promise: Promise, level: float
) -> tuple[Chain, ...]:
    """Test the thresholds of each chain. Each class has an equal part of the level (Bonferroni)."""
    pairs = [pair for pair in zip(sample.holdout, sample.truths, strict=True) if pair[0].image_id in predicted.scores]
    if len(pairs) < FEWEST:
        raise LabelError(
            f"Only {len(pairs)} of {len(sample.holdout)} answered holdout images can be read, and automatic labels "
            f"need {FEWEST}.",
            "`alloop pool check` says why.",
        )
    rest = [ref for ref in once if ref.image_id in predicted.scores]
    names: Sequence[str | None] = sample.model.classes if promise.is_classwise else (None,)
    chains = []
    for name in names:
        held = [(ref, truth) for ref, truth in pairs if name in (None, predicted.classes[ref.image_id])]
        scores = predicted.scores_of([ref for ref, _ in held])
        errors = np.array([predicted.classes[ref.image_id] != truth for ref, truth in held], dtype=bool)
        others = predicted.scores_of([ref for ref in rest if name in (None, predicted.classes[ref.image_id])])
        own = level / len(names)
        found = walk(scores, errors, others, promise.max_error, own)
        # The next look has a smaller part of the confidence.
        missing = None if found.accepted else labels_missing(scores, errors, promise.max_error, own / 3)
        # Labels of a class come only as fast as those of all classes.
        missing = None if missing is None else math.ceil(missing * len(pairs) / max(1, len(held)))
        chains.append(_chain(name, found, missing))
    return tuple(chains)


def _chain(name: str | None, found: Walk, missing: int | None) -> Chain:
    shown = found.accepted or (found.steps[0] if found.steps else None)
    n, errors = (0, 0) if shown is None else (shown.n, shown.errors)
    above = found.accepted.threshold if found.accepted else -math.inf
    return Chain(name, None if above == -math.inf else above, found.accepted is not None, n, errors, missing)


def _accepted(rest: Sequence[ImageRef], predicted: Predicted, chains: Sequence[Chain]) -> dict[int, dict[str, Any]]:
    """Return image → its automatic label."""
    found: dict[int, dict[str, Any]] = {}
    for ref in rest:
        score = predicted.scores.get(ref.image_id)
        if score is None:  # unreadable
            continue
        name = predicted.classes[ref.image_id]
        for chain in chains:
            if chain.accepts(name, score):
                values = {"class_name": name, "probability": math.exp(score), "threshold": chain.probability}
                found[ref.image_id] = {"image_id": ref.image_id, **values}
    return found


def _replace(session: Session, bench: Workbench, look: LookRecord, accepted: Mapping[int, dict[str, Any]]) -> None:
    """Make these the active automatic labels. Rows that stay the same are kept; people's labels are never touched."""
    unlabeled = {ref.image_id for ref in list_refs(session, Split.TRAIN, labeled=False)}
    wanted = {image_id: label for image_id, label in accepted.items() if image_id in unlabeled}
    active = {label.image_id: label for label in list_auto_labels(session)}
    same = {
        image_id
        for image_id, label in active.items()
        if label.look == look.number and wanted.get(image_id, {}).get("class_name") == label.class_name
    }
    withdraw_auto_labels(session, bench.now(), [image_id for image_id in active if image_id not in same])
    add_auto_labels(
        session, look.id, [label for image_id, label in wanted.items() if image_id not in same], bench.now()
    )


def _row(sample: Sample, promise: Promise, chains: Sequence[Chain], *, is_dry_run: bool) -> dict[str, Any]:
    return {
        "model": sample.model.name,
        "model_sha256": sample.model.sha256,
        "holdout_digest": sample.digest(),
        "max_error": promise.max_error,
        "confidence": promise.confidence,
        "is_classwise": promise.is_classwise,
        "n_holdout": len(sample.holdout),
        "outcome": {"chains": [dataclasses.asdict(chain) for chain in chains], "dry_run": is_dry_run},
    }


def _notes(sample: Sample, promise: Promise) -> tuple[str, ...]:
    """Return sentences about what the promise covers and what it does not."""
    notes = ["An error is a label that differs from people's answer, right or wrong. Near copies count once."]
    if not promise.is_classwise:
        notes.append("The promise holds for all classes together; a rare class may have more errors (--classwise).")
    declined = sum(truth is None for truth in sample.truths)
    if declined:
        notes.append(
            f"{declined} holdout images that people skipped or gave no known class count as errors where they are "
            "above a threshold."
        )
    if sample.waiting:
        notes.append(
            f"{sample.waiting} holdout images have no answer yet. The promise assumes that the model is no worse on "
            "them than on the others."
        )
    if sample.added_later:
        notes.append(
            f"{sample.added_later} images were added after the holdout was drawn. It says nothing about them, so they "
            "get no automatic label."
        )
    if sample.declined:
        notes.append(f"{sample.declined} images that people declined get no automatic label.")
    return tuple(notes)
