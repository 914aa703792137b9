"""Audit of automatic labels: people label a random sample of them, without seeing the automatic label."""

import dataclasses

import numpy as np
from sqlalchemy.orm import Session

from alloop.errors import LabelError
from alloop.evaluation.autolabel import clopper_pearson
from alloop.loop.intake.near_copies import keep_largest, list_groups, read_sizes
from alloop.loop.workbench import Workbench
from alloop.records import Interval, Query, QueryStatus, Reason
from alloop.seeds import derive_seed, tie_keys
from alloop.store.auto_labels import LookRecord, count_auto_classes, find_look_in_use, list_audited, list_auto_labels
from alloop.store.images import find_refs
from alloop.store.queries import add_queries, list_open_images, list_queries
from alloop.store.rounds import find_round
from alloop.store.session import transaction
from alloop.store.workspace import add_event, new_key_prefix


@dataclasses.dataclass(frozen=True, slots=True)
class AutoReport:
    """Automatic labels of a workspace, and the audit of the look that they come from.

    Attributes:
        labels: Number of active automatic labels.
        classes: Class → number of them.
        look, model, max_error, confidence, is_classwise: The look, its model and its promise.
        audited: Number of audited images with an answer.
        waiting: Number of audited images without an answer.
        errors: Number of answers that differ from the automatic label, or name no class of the project.
        error: Share of errors with its exact interval; None without an answer.
        says: The same in sentences.
    """

    labels: int
    classes: dict[str, int]
    look: int
    model: str
    max_error: float
    confidence: float
    is_classwise: bool
    audited: int
    waiting: int
    errors: int
    error: Interval | None
    says: str


@dataclasses.dataclass(frozen=True, slots=True)
class Drawn:
    """Drawn audit: `n` images of `of` different ones that could be drawn; they are asked about in a round's batch."""

    round_number: int
    n: int
    of: int


def draw_audit(bench: Workbench, n: int) -> Drawn:
    """Draw images with an automatic label uniformly, one of each group of near copies, and record their queries.

    The queries belong to the newest round that has asked anything. They show no guess of the model.

    Raises:
        LabelError: There is no automatic label to draw, or no round that has asked anything.
    """
    seed = bench.project.config.project.seed
    with transaction(bench.project.database) as session:
        queries = list_queries(session)
        if not queries:
            raise LabelError(
                "No round has asked people anything yet.", "`alloop run` starts a round; draw the audit after that."
            )
        current = find_round(session, max(query.round_number for query in queries))
        asked = list_open_images(session) | {q.image_id for q in queries if q.round_number == current.number}
        labeled = [label.image_id for label in list_auto_labels(session) if label.image_id not in asked]
        refs = sorted(find_refs(session, labeled).values(), key=lambda ref: ref.image_id)
        groups = list_groups(session)
        refs = keep_largest(refs, groups, read_sizes(session, refs, groups))
        if not refs:
            raise LabelError(
                "There is no automatic label that people could be asked about.",
                "`alloop autolabel --max-error 0.01` makes automatic labels.",
            )
        earlier = sum(query.reason is Reason.AUDIT for query in queries)
        keys = tie_keys([ref.sha256 for ref in refs], derive_seed(seed, "audit", earlier))
        drawn = [refs[int(position)] for position in np.argsort(keys, kind="stable")[:n]]
        first = 1 + max((query.rank for query in queries if query.round_number == current.number), default=0)
        chance = len(drawn) / len(refs)
        picks = [
            Query(ref.image_id, Reason.AUDIT, "random", rank, probability=chance)
            for rank, ref in enumerate(drawn, start=first)
        ]
        add_queries(session, current.id, picks, new_key_prefix(session, current.number), bench.now())
        counts = {"images": len(drawn), "of": len(refs)}
        add_event(session, bench.user, "audit drawn", bench.now(), current.number, **counts)
    return Drawn(current.number, len(drawn), len(refs))


def report_auto_labels(session: Session) -> AutoReport | None:
    """Report the automatic labels and their audit; None if no look has labeled anything."""
    look = find_look_in_use(session)
    if look is None:
        return None
    audited = list_audited(session, look.id)
    answers = [one for one in audited if one.truth is not None or one.status is not QueryStatus.OPEN]
    errors = sum(one.truth != one.class_name for one in answers)
    error = None
    if answers:
        low, high = clopper_pearson(errors, len(answers), look.confidence)
        method = f"clopper-pearson {look.confidence:.0%}"
        error = Interval(errors / len(answers), low, high, len(answers), method)
    classes = count_auto_classes(session)
    n = sum(classes.values())
    return AutoReport(
        labels=n,
        classes=classes,
        look=look.number,
        model=look.model,
        max_error=look.max_error,
        confidence=look.confidence,
        is_classwise=look.is_classwise,
        audited=len(answers),
        waiting=len(audited) - len(answers),
        errors=errors,
        error=error,
        says=" ".join(_words(look, n, errors, error, len(audited) - len(answers))),
    )


def _words(look: LookRecord, n: int, errors: int, error: Interval | None, waiting: int) -> list[str]:
    of_each = " of each predicted class" if look.is_classwise else ""
    words = [
        f"{n} images have an automatic label, which no person gave: by {look.model}, look {look.number}, at most "
        f"{100 * look.max_error:g} % errors{of_each} with {100 * look.confidence:g} % confidence."
    ]
    if error is not None:
        words.append(
            f"Audit: {errors} of {error.n} answers differ, {100 * error.value:.1f} % [{100 * error.low:.1f}, "
            f"{100 * error.high:.1f}]."
        )
        if error.low > look.max_error:
            words.append("That breaks the promise: `alloop autolabel --undo` withdraws the automatic labels.")
    if waiting:
        words.append(f"{waiting} audited images wait for an answer.")
    return words
