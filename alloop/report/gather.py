"""Numbers about a project from its database, for `alloop status` and reports. Nothing here formats or draws."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from alloop.errors import AlloopError
from alloop.labeling.backend import Answering
from alloop.labeling.build import find_page, find_sheets
from alloop.loop.automatic.audit import AutoReport, report_auto_labels
from alloop.loop.intake.judge import judge_of
from alloop.loop.measuring.findings import GROWN, Findings, gather_findings
from alloop.loop.rounds.attention import list_warnings
from alloop.loop.stopping import percent
from alloop.names import count
from alloop.project import Project
from alloop.records import Calibration, CurvePoint, Interval, LocationStatus, QueryStatus, Reason, Split
from alloop.report.shown import TASKS, Shown
from alloop.store.annotations import list_annotator_counts, list_class_counts, list_values
from alloop.store.images import PoolCounts, count_pool, list_locations
from alloop.store.queries import (
    QueryRecord,
    count_all_by_status,
    count_by_hand,
    list_confidences,
    list_queries,
    list_suspects,
)
from alloop.store.rounds import ModelRecord, RoundRecord, list_all_metrics, list_models, list_rounds
from alloop.store.selections import SelectionRecord, list_selections
from alloop.store.session import reading
from alloop.store.workspace import Sync, find_sync


@dataclasses.dataclass(frozen=True)
class RoundReport:
    """Report of a round. Metrics are those of its model on the first holdout, drawn before any model.

    Attributes:
        entropy_acquired, entropy_random: Mean entropies of its batch when it was chosen, in nats.
        strategy: Strategy that really chose its batch; None before the choice.
        notes: Automatic decisions during the choice of the batch, with reasons.
        n_labels: Number of training labels of its model; None without a model.
        calibration: Calibrator of its model, in words.
        n_calibration: Number of holdout labels that the calibrator was fitted to.
        metrics_grown: Metrics on the holdout images that later rounds drew.
        queries: Status → number of its queries.
        over_random: Accuracy of a model of acquired labels minus that of one of equally many random labels; None if the
            round did not compare them.
        random_arm: Number of labels and accuracy of that model of random labels; None in rounds before it was recorded.
    """

    number: int
    state: str
    model: str | None
    n_labels: int | None
    temperature: float | None
    calibration_note: str
    calibration: str
    n_calibration: int | None
    metrics: dict[str, Interval]
    metrics_grown: dict[str, Interval]
    queries: dict[str, int]
    entropy_acquired: float | None
    entropy_random: float | None
    strategy: str | None
    notes: tuple[str, ...]
    created_at: str
    closed_because: str | None
    over_random: Interval | None = None
    random_arm: CurvePoint | None = None


@dataclasses.dataclass(frozen=True)
class StatusReport:
    """Content of `alloop status`. Images are named by their hashes; `suspects` are those being asked about.

    Attributes:
        auto: Automatic labels, which count nowhere else; None without any.
        by_hand: Number of labels to train on whose image was asked for by hand.
        orphaned: Number of tasks that this workspace made but its database does not know, at the last pull.
        foreign: Number of tasks of other workspaces in the same project.
        attention: Sentences about problems that a person should look at.
        label_at: Address of the page where people label; None if there is none, or it is not known.
        sheets: Folder of the files that people fill in, as alloop.toml writes it; None if there is none.
    """

    name: str
    classes: tuple[str, ...]
    pool: PoolCounts
    class_counts: dict[str, int]
    class_counts_holdout: dict[str, int]
    annotators: dict[str, dict[str, int]]
    unknown_values: dict[str, int]
    skipped: tuple[str, ...]
    empty: tuple[str, ...]
    missing: tuple[str, ...]
    suspects: tuple[str, ...]
    attention: tuple[str, ...]
    rounds: tuple[RoundReport, ...]
    findings: Findings
    auto: AutoReport | None
    by_hand: int
    project_ref: str | None
    pulled_at: str | None
    orphaned: int
    foreign: int
    label_at: str | None = None
    sheets: str | None = None


def gather_status(project: Project) -> StatusReport:
    """Read all numbers from one consistent view."""
    settings = project.config.project
    classes, judge, shown = settings.classes, judge_of(settings), TASKS[settings.task]
    with reading(project.database) as session:
        pool = count_pool(session)
        sync = find_sync(session, project.config.labeling.backend)
        asked, models, metrics = _read_asked(session), list_models(session), list_all_metrics(session)
        return StatusReport(
            name=project.config.project.name,
            classes=classes,
            pool=pool,
            class_counts=list_class_counts(session, Split.TRAIN),
            class_counts_holdout=list_class_counts(session, Split.HOLDOUT),
            annotators=list_annotator_counts(session),
            unknown_values={value: n for value, n in list_values(session).items() if not judge.is_known(value)},
            skipped=_hashes(list_queries(session, status=QueryStatus.SKIPPED)),
            empty=_hashes(list_queries(session, status=QueryStatus.EMPTY)),
            missing=tuple(place.path for place in list_locations(session, LocationStatus.MISSING)),
            suspects=_hashes(list_suspects(session)),
            attention=tuple(list_warnings(session, project.config)),
            rounds=tuple(_round(row, models.get(row.id), metrics, asked, shown) for row in list_rounds(session)),
            findings=gather_findings(session, project, pool),
            auto=report_auto_labels(session),
            by_hand=count_by_hand(session),
            project_ref=_project_ref(sync),
            pulled_at=sync.pulled_at.isoformat() if sync is not None and sync.pulled_at is not None else None,
            orphaned=0 if sync is None else sync.n_orphaned,
            foreign=0 if sync is None else sync.n_foreign,
            label_at=_label_at(project, sync),
            sheets=_sheets(project),
        )


def find_label_place(project: Project, task_id: str | None = None) -> str | None:
    """Return the address of the page where people label, or of one task; None if there is none, or it is not known."""
    with reading(project.database) as session:
        return _label_at(project, find_sync(session, project.config.labeling.backend), task_id)


def describe_calibration(calibration: Calibration) -> str:
    """Describe the calibrator in a few words."""
    if calibration.method == "temperature" and calibration.weights is None:
        return f"temperature T = {calibration.temperature:.3f}"
    words = "no calibrator" if calibration.method == "none" else calibration.method
    if calibration.weights is None:
        return words
    weights = "weights {:.2f} (raw heads) and {:.2f} (smoothed heads)".format(*calibration.weights)
    return weights if calibration.method == "weights" else f"{weights}, then {words}"


def describe_measured(findings: Findings) -> str:
    """Describe the images that metrics are measured on."""
    if findings.on_test:
        return "on the images of the test set, to which nothing was fitted"
    return "on the labeled images of the holdout, which was drawn before any model; each is calibrated by the others"


def describe_people(findings: Findings) -> str:
    """Describe the meaning of an accuracy that is measured against people's answers."""
    if findings.on_test:
        return "Accuracy is agreement with the labels of the test set, so mistakes in these labels lower it."
    words = "Accuracy is agreement with people's answers, so disagreement among people lowers it"
    disputed, several = findings.disputed
    if not several:
        return f"{words}."
    return f"{words} ({disputed} of {several} holdout labels given by several people are disputed)."


def describe_findings(findings: Findings) -> list[str]:
    """Return sentences about findings that are not in the table of rounds; empty without any."""
    said = [part.says for part in (findings.better, findings.unbiased) if part is not None]
    if findings.grown is not None:
        said.append(
            f"Accuracy on the {findings.grown.n} holdout images drawn later, from those unlabeled then: "
            f"{percent(findings.grown)}. They are not in the table."
        )
    return said if findings.pool_brings is None else [*said, findings.pool_brings.says]


def describe_by_hand(report: StatusReport) -> list[str]:
    """Describe the labels that people asked for by hand, and the images marked as junk; empty without any."""
    junk = report.pool.junk
    lines = {
        f"{report.by_hand} of the labels to train on were asked for by hand. They are no random draw: no accuracy is "
        "measured on them, and they count neither for nor against the strategy.": report.by_hand,
        f"{count(junk, 'image')} {'is' if junk == 1 else 'are'} marked as junk: nobody is asked about such images, "
        "and no model is trained on them.": junk,
    }
    return [line for line, n in lines.items() if n]


def to_json(report: StatusReport) -> dict[str, Any]:
    """Convert the report to plain data."""
    return dataclasses.asdict(report)


@dataclasses.dataclass(frozen=True, slots=True)
class _Asked:
    """Questions of rounds: round id → numbers of queries, confidences; round number → choice of its batch."""

    statuses: Mapping[int, Mapping[QueryStatus, int]]
    acquired: Mapping[int, Sequence[float]]
    random: Mapping[int, Sequence[float]]
    choices: Mapping[int, SelectionRecord]


def _read_asked(session: Session) -> _Asked:
    return _Asked(
        statuses=count_all_by_status(session),
        acquired=list_confidences(session, Reason.ACQUIRED),
        random=list_confidences(session, Reason.RANDOM),
        choices=list_selections(session),
    )


def _round(
    row: RoundRecord,
    model: ModelRecord | None,
    metrics: Mapping[tuple[int, str], dict[str, Interval]],
    asked: _Asked,
    shown: Shown,
) -> RoundReport:
    chosen = asked.choices.get(row.number)
    n_classes = len(model.classes) if model is not None else 2
    return RoundReport(
        number=row.number,
        state=row.state.value,
        model=None if model is None else model.name,
        n_labels=None if model is None else model.n_labels,
        temperature=None if model is None else model.calibration.temperature,
        calibration_note="" if model is None else model.calibration.note,
        calibration="" if model is None else describe_calibration(model.calibration),
        n_calibration=None if model is None else model.calibration.n,
        metrics={} if model is None else metrics.get((model.id, Split.HOLDOUT.value), {}),
        metrics_grown={} if model is None else metrics.get((model.id, GROWN), {}),
        queries={status.value: n for status, n in asked.statuses.get(row.id, {}).items()},
        entropy_acquired=_mean_entropy(asked.acquired.get(row.id, ()), n_classes, shown),
        entropy_random=_mean_entropy(asked.random.get(row.id, ()), n_classes, shown),
        strategy=None if chosen is None else chosen.strategy,
        notes=() if chosen is None else chosen.notes,
        created_at=row.created_at.isoformat(),
        closed_because=row.closed_because,
        over_random=_over_random(row),
        random_arm=_random_arm(row),
    )


def _over_random(row: RoundRecord) -> Interval | None:
    return None if row.matched is None or row.matched["skipped"] else Interval(**row.matched["gain"])


def random_arms(rounds: Sequence[RoundReport]) -> list[CurvePoint]:
    """Return the random arms of rounds as points of a learning curve. Rounds before this was recorded have none."""
    return [row.random_arm for row in rounds if row.random_arm is not None]


def _random_arm(row: RoundRecord) -> CurvePoint | None:
    if row.matched is None or "random" not in row.matched:
        return None
    return CurvePoint(row.matched["labels"], Interval(**row.matched["random"]))


def _mean_entropy(confidences: Sequence[float], n_classes: int, shown: Shown) -> float | None:
    if not confidences:
        return None
    return statistics.fmean(shown.entropy(confidence, n_classes) for confidence in confidences)


def _hashes(queries: Sequence[QueryRecord]) -> tuple[str, ...]:
    return tuple(query.sha256 for query in queries)


def _label_at(project: Project, sync: Sync | None, task_id: str | None = None) -> str | None:
    if sync is None:
        return None
    try:
        return find_page(Answering(project.config, project.folder, project.environ, sync.project_ref, task_id))
    except AlloopError:  # `alloop run` says what is wrong with the back end
        return None


def _sheets(project: Project) -> str | None:
    try:
        return find_sheets(project.config)
    except AlloopError:  # as above
        return None


def _project_ref(sync: Sync | None) -> str | None:
    return None if sync is None else sync.project_ref
