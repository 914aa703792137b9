"""Findings of the recorded rounds: progress of the model, effect of active learning, expected gain of a round.

They are computed from rows and small files of the models. No model is trained and no image is read.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from alloop.composition import CALIBRATORS
from alloop.config.schema import Config
from alloop.evaluation.curve import Curve, covariance_of, fit_curve
from alloop.evaluation.measures import TASKS
from alloop.evaluation.paired import PairedComparison, Verdict, compare_paired
from alloop.evaluation.unbiased import SMALLEST, Risk, lure_risk
from alloop.loop.measuring.holdout_file import HoldoutPredictions, read_holdout
from alloop.loop.measuring.pool_brings import PoolBrings, find_pool_brings
from alloop.loop.stopping import Rule, StopEvidence, bought, list_rules, percent, points
from alloop.names import count
from alloop.project import Project
from alloop.records import Agreement, CurvePoint, Ending, Interval, QueryStatus, Reason, RoundState, Split
from alloop.seeds import derive_seed
from alloop.store.annotations import count_disputed, find_classes, list_lead_times
from alloop.store.images import PoolCounts, count_pool, find_splits
from alloop.store.queries import QueryRecord, count_rounds_asked, list_queries
from alloop.store.rounds import (
    ModelRecord,
    RoundRecord,
    find_last_model,
    find_round_number,
    list_agreements,
    list_all_metrics,
    list_metrics,
    list_models,
    list_rounds,
)

GROWN = "grown"  # split name of the holdout images that later rounds drew
FEWEST_UNLEARNED = CALIBRATORS["temperature"].smallest  # training labels, for out-of-fold predictions of them


@dataclasses.dataclass(frozen=True)
class Better:
    """Comparison of the newest model with that of the round before, on the holdout images of both."""

    round_number: int
    before: int
    verdict: Verdict
    comparison: PairedComparison | None
    says: str


@dataclasses.dataclass(frozen=True)
class Unbiased:
    """Accuracy on the images that a round drew from, by its own answers. `accuracy` is None with too few answers."""

    round_number: int
    accuracy: Interval | None
    effective: float
    drawn: int
    answered: int
    pool: int
    says: str


@dataclasses.dataclass(frozen=True)
class Outlook:
    """Expected gain of one more round, and of doubling the training labels.

    Attributes:
        gain: Expected gain in accuracy from one more batch; None before three measured rounds.
        doubling: The same for twice the training labels.
        hours: Annotators' time for one batch; None if the back end does not report times.
        seconds: Median time of one label.
    """

    gain: Interval | None
    doubling: Interval | None
    hours: float | None
    seconds: float | None
    says: str


@dataclasses.dataclass(frozen=True)
class Findings:
    """All findings. A part is None without enough data.

    Attributes:
        grown: Accuracy on the holdout images that later rounds drew.
        pool_brings: What features that the unlabeled pool teaches bring to the newest model.
        disputed: Number of holdout labels with disagreement, and of those that several people gave.
        on_test: True if the measurements are on a test set, not on a sample of the pool.
    """

    better: Better | None
    matched: Mapping[str, Any] | None
    unbiased: Unbiased | None
    grown: Interval | None
    pool_brings: PoolBrings | None
    outlook: Outlook | None
    rules: tuple[Rule, ...]
    disputed: tuple[int, int]
    on_test: bool


@dataclasses.dataclass(frozen=True)
class _Measured:
    """Round with a measured model."""

    row: RoundRecord
    model: ModelRecord
    accuracy: Interval


def gather_findings(session: Session, project: Project, pool: PoolCounts) -> Findings:
    """Read and compute all findings. This takes at most about a second."""
    rounds = _measured(session, project)
    outlook = _outlook(session, project, rounds)
    doubling = outlook.doubling if outlook else None
    evidence = _evidence(session, project, rounds, pool, _n_left(session, pool), doubling, list_agreements(session))
    grown = list_metrics(session, rounds[-1].model.id, GROWN) if rounds else {}
    return Findings(
        better=_better(project, rounds),
        matched=_last_matched(session),
        unbiased=_unbiased(session),
        grown=grown.get(TASKS[project.config.project.task].primary),
        pool_brings=find_pool_brings(session),
        outlook=outlook,
        rules=tuple(list_rules(project.config.loop, evidence)),
        disputed=count_disputed(session, Split.HOLDOUT),
        on_test=project.config.evaluation.test is not None,
    )


def gather_evidence(session: Session, project: Project, n_askable: int) -> StopEvidence:
    """Gather the evidence of the configured stop rules only, because every round needs it."""
    settings = project.config.loop
    needs_curve = settings.stop_when_flat
    rounds = _measured(session, project) if needs_curve or settings.target_accuracy is not None else []
    fitted = _curve(project, rounds) if needs_curve else None
    doubling = None if fitted is None else fitted.gain(rounds[-1].model.n_labels, 2 * rounds[-1].model.n_labels)
    agreements = list_agreements(session) if settings.stop_when_stable else ()
    return _evidence(session, project, rounds, count_pool(session), n_askable, doubling, agreements)


def read_last_holdout(session: Session, project: Project) -> HoldoutPredictions | None:
    """Return the predictions of the newest measured model for the holdout."""
    rounds = _measured(session, project)
    return None if not rounds else _predictions(project, rounds[-1], whole=True)


def read_out_of_fold(session: Session, project: Project) -> tuple[HoldoutPredictions | None, str]:
    """Return the newest model's out-of-fold predictions for its training images, or the reason why there are none."""
    model = find_last_model(session)
    if model is None:
        return None, "there is no model yet"
    number = find_round_number(session, model.round_id)
    assert number is not None
    found = read_holdout(project.paths.out_of_fold(number), model.sha256, whole=True)
    if found is not None:
        return found, ""
    if model.config["model"]["mode"] == "finetune":
        return None, "a network that is fine-tuned learns all labels"
    if model.n_labels < FEWEST_UNLEARNED:
        return None, f"there are fewer than {FEWEST_UNLEARNED} of them"
    return None, (
        "the predictions for them are missing or damaged, or an older alloop trained the newest model; the next "
        "training writes them"
    )


def learning_curve(session: Session, project: Project) -> list[CurvePoint]:
    """Return all measured rounds."""
    return [CurvePoint(one.model.n_labels, one.accuracy) for one in _measured(session, project)]


def _measured(session: Session, project: Project) -> list[_Measured]:
    primary, found = TASKS[project.config.project.task].primary, []
    models, metrics = list_models(session), list_all_metrics(session)
    for row in list_rounds(session):
        model = models.get(row.id)
        accuracy = None if model is None else metrics.get((model.id, Split.HOLDOUT.value), {}).get(primary)
        if model is not None and accuracy is not None:
            found.append(_Measured(row, model, accuracy))
    return found


def _predictions(project: Project, one: _Measured, *, whole: bool = False) -> HoldoutPredictions | None:
    return read_holdout(project.paths.holdout(one.row.number), one.model.sha256, whole=whole)


def _better(project: Project, rounds: Sequence[_Measured]) -> Better | None:
    if len(rounds) < 2:
        return None
    old, new = rounds[-2:]
    numbers = (new.row.number, old.row.number)
    correct = _together([_predictions(project, old), _predictions(project, new)])
    if correct is None or correct.shape[1] == 0:
        why = "the rounds have no holdout predictions in common under runs/"
        return Better(*numbers, "cannot tell", None, f"Better than round {old.row.number}: cannot tell ({why}).")
    generator = np.random.default_rng(derive_seed(new.model.seed, "better"))
    found = compare_paired(correct[1], correct[0], generator)
    evidence = f"{points(found.gain)}, McNemar p = {found.p:.2g}, {found.gain.n} images"
    return Better(*numbers, found.verdict, found, f"Better than round {old.row.number}: {found.verdict} ({evidence}).")


def _together(predictions: Sequence[HoldoutPredictions | None]) -> npt.NDArray[np.bool_] | None:
    """Return whether each model is right [P, N] about the images that all models predicted, by their newest labels.

    Images that later rounds drew are left out, because they represent another population.
    """
    known = [one for one in predictions if one is not None]
    if not known or len(known) < len(predictions):
        return None
    said = [dict(zip(one.sha256s, one.predicted, strict=True)) for one in known]
    last = known[-1]
    truth = {
        sha256: target
        for sha256, target, grown in zip(last.sha256s, last.targets, last.grown, strict=True)
        if not grown
    }
    shared = [sha256 for sha256 in truth if all(sha256 in one for one in said)]
    return np.array([[one[sha256] == truth[sha256] for sha256 in shared] for one in said], dtype=bool)


def _unbiased(session: Session) -> Unbiased | None:
    """Estimate the accuracy from the newest closed round that had a model when it asked."""
    number, mine = _last_predicted(session)
    if not mine:
        return None
    classes = find_classes(session, [query.image_id for query in mine])
    splits = find_splits(session, classes)
    risk = drawn_risk(mine, {image: name for image, name in classes.items() if splits[image] is Split.TRAIN})
    if risk is None:
        says = f"Round {number}'s answers give no estimate for the pool: none was drawn with a known probability."
        return Unbiased(number, None, 0.0, 0, 0, 0, says)
    if risk.interval is None:
        worth = (
            f"its {risk.answered} of {risk.drawn} drawn answers have an effective sample size of {risk.effective:.1f}"
        )
        says = f"No accuracy from round {number}'s own answers: {worth}, and at least {SMALLEST} is needed."
        return Unbiased(number, None, risk.effective, risk.drawn, risk.answered, risk.pool, says)
    error = risk.interval
    accuracy = Interval(1 - error.value, 1 - error.high, 1 - error.low, error.n, error.method)
    missing = "" if risk.answered == risk.drawn else f", {risk.drawn - risk.answered} drawn without a label"
    says = (
        f"Accuracy of round {number}'s model on the {risk.pool} images it drew from: {percent(accuracy)} "
        f"(LURE, {risk.answered} answers, effective sample size {risk.effective:.0f}{missing})."
    )
    return Unbiased(number, accuracy, risk.effective, risk.drawn, risk.answered, risk.pool, says)


def _last_predicted(session: Session) -> tuple[int, list[QueryRecord]]:
    """Return the number of the newest closed round that asked with a model, and its predicted queries, else none."""
    for row in reversed(list_rounds(session)):
        if row.state is RoundState.CLOSED:
            mine = [query for query in list_queries(session, row.id) if query.predicted is not None]
            if mine:
                return row.number, mine
    return 0, []


def drawn_risk(queries: Sequence[QueryRecord], labels: Mapping[int, str]) -> Risk | None:
    """Estimate the error of a round's model on the images that the round drew from; None if a draw is unknown.

    Only answers to these questions count. If a drawn question was skipped and the image got its label in another way
    (asked for by hand, say), its label is missing here: that way chose which of the missing labels to bring.
    """
    drawn = sorted(
        (query for query in queries if query.draw_number is not None), key=lambda query: query.draw_number or 0
    )
    pools = {query.draw_pool for query in drawn}
    numbers = [query.draw_number for query in drawn]
    probs = [_next_probability(query) for query in drawn]
    if not drawn or numbers != list(range(1, len(drawn) + 1)) or len(pools) > 1 or None in (*probs, *pools):
        return None
    losses = [
        float(labels[query.image_id] != query.predicted)
        if query.status is QueryStatus.ANSWERED and query.image_id in labels
        else math.nan
        for query in drawn
    ]
    return lure_risk(np.array(probs, dtype=np.float64), np.array(losses), drawn[0].draw_pool or 0)


def _next_probability(query: QueryRecord) -> float | None:
    """Return q_m, the probability of this draw given earlier ones. Uniform draws store that of being in the sample."""
    if query.reason is Reason.ACQUIRED or query.draw_pool is None or query.draw_number is None:
        return query.probability
    return 1 / (query.draw_pool - query.draw_number + 1)


def _outlook(session: Session, project: Project, rounds: Sequence[_Measured]) -> Outlook | None:
    if not rounds:
        return None
    config, last = project.config, rounds[-1].model.n_labels
    fitted = _curve(project, rounds)
    gain = None if fitted is None else fitted.gain(last, last + config.loop.batch_size)
    doubling = None if fitted is None else fitted.gain(last, 2 * last)
    seconds = list_lead_times(session)
    median = statistics.median(seconds) if seconds else None
    answers = config.loop.batch_size * config.labeling.annotations_per_image
    hours = None if median is None else answers * median / 3600
    return Outlook(gain, doubling, hours, median, _outlook_words(config, gain, hours, median))


def _outlook_words(config: Config, gain: Interval | None, hours: float | None, median: float | None) -> str:
    size = f"One more round of {config.loop.batch_size}"
    brings = f"about {points(gain)}" if gain is not None else "its gain can be estimated after three measured rounds"
    if hours is None or median is None:
        return f"{size}: {brings}; the time that people need is not known yet."
    time = f"{hours:.1f} annotator hours" if hours >= 1 else count(round(60 * hours), "annotator minute")
    return f"{size}: {brings}, about {time} (median {median:.2g} s a label)."


def _curve(project: Project, rounds: Sequence[_Measured]) -> Curve | None:
    """Fit the learning curve of the rounds since the model's settings last changed."""
    if not rounds:
        return None
    same = [one for one in rounds if one.row.config.get("model") == rounds[-1].row.config.get("model")]
    curve = [CurvePoint(one.model.n_labels, one.accuracy) for one in same]
    correct = _together([_predictions(project, one) for one in same]) if len(same) >= 3 else None
    covariance = None
    if correct is not None and correct.shape[1] >= 0.8 * same[-1].accuracy.n:
        covariance = covariance_of(correct)
    generator = np.random.default_rng(derive_seed(rounds[-1].model.seed, "curve"))
    return fit_curve(curve, generator, covariance)


def _evidence(
    session: Session,
    project: Project,
    rounds: Sequence[_Measured],
    pool: PoolCounts,
    n_askable: int,
    doubling: Interval | None,
    agreements: Sequence[Agreement],
) -> StopEvidence:
    return StopEvidence(
        n_labels=bought(project.config, pool),
        n_open=pool.open,
        n_askable=n_askable,
        n_rounds=count_rounds_asked(session),
        accuracy=rounds[-1].accuracy if rounds else None,
        doubling=doubling,
        agreements=agreements,
    )


def _last_matched(session: Session) -> dict[str, Any] | None:
    """Return the comparison of acquired with random labels of the newest round that made one, with its number."""
    found = [row for row in list_rounds(session) if row.matched is not None]
    return {"round": found[-1].number, **(found[-1].matched or {})} if found else None


def _n_left(session: Session, pool: PoolCounts) -> int:
    """Count the images that are neither labeled nor being asked about: an upper bound of the askable ones."""
    rounds = list_rounds(session)
    if rounds and rounds[-1].ending is Ending.POOL_EXHAUSTED:
        return 0
    open_holdout = max(0, pool.holdout - pool.holdout_labeled)
    return max(0, pool.train - (pool.labeled - pool.holdout_labeled) - max(0, pool.open - open_holdout))
