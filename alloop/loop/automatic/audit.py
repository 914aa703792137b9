"""Audit of automatic labels: people label a random sample of them, without seeing the automatic label."""

import dataclasses

from sqlalchemy.orm import Session

from alloop.names import count
from alloop.records import Interval, QueryStatus
from alloop.store.auto_labels import LookRecord, count_auto_classes, find_look_in_use, list_audited


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
        from alloop.evaluation.autolabel import clopper_pearson  # SciPy loads here, not for every status

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
        f"{count(n, 'image')} {'has' if n == 1 else 'have'} an automatic label, which no person gave: by {look.model}, "
        f"look {look.number}, at most {100 * look.max_error:g} % errors{of_each} with "
        f"{100 * look.confidence:g} % confidence."
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
