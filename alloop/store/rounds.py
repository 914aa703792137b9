"""Rounds, their model versions, and the metrics of these."""

import dataclasses
import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session, aliased

from alloop.errors import AlloopError, DatabaseError
from alloop.records import Agreement, Calibration, Ending, Interval, ModelFiles, RoundState
from alloop.store.tables import Metric, ModelVersionRow, Round, RoundAgreement


@dataclasses.dataclass(frozen=True, slots=True)
class RoundRecord:
    """A round as stored.

    Attributes:
        config: Exact JSON of the config it was started with.
        closed_because: Reason for closing it, as a sentence.
        ending: The same reason, for the program.
        matched: Comparison of acquired with random labels, as `compare_arms` gives it; None if there was none.
    """

    id: int
    number: int
    state: RoundState
    config: Mapping[str, Any]
    seed: int
    scores_path: str | None
    scores_sha256: str | None
    created_at: dt.datetime
    closed_at: dt.datetime | None
    closed_because: str | None
    ending: Ending | None
    matched: Mapping[str, Any] | None


@dataclasses.dataclass(frozen=True, slots=True)
class ModelRecord:
    """Stored model version. `path` is relative to the workspace."""

    id: int
    round_id: int
    name: str
    path: str
    sha256: str
    classes: tuple[str, ...]
    head_classes: tuple[tuple[str, ...], ...]
    label_digest: str
    n_labels: int
    n_holdout: int
    seed: int
    config: Mapping[str, Any]
    library_versions: Mapping[str, Any]
    calibration: Calibration
    history: Mapping[str, Any]
    created_at: dt.datetime

    def files(self, workspace: Path) -> ModelFiles:
        """Return the files of the model."""
        return ModelFiles(workspace / self.path, self.sha256)


def add_round(session: Session, number: int, config: Mapping[str, Any], seed: int, now: dt.datetime) -> RoundRecord:
    """Start a round with its settings."""
    row = Round(number=number, state=RoundState.CREATED.value, config=dict(config), seed=seed, created_at=now)
    session.add(row)
    session.flush()
    return _round(row)


def find_round(session: Session, number: int) -> RoundRecord:
    """Find a round by its number.

    Raises:
        AlloopError: No round has this number.
    """
    row = session.scalar(select(Round).where(Round.number == number))
    if row is None:
        raise AlloopError(f"There is no round {number}.", "`alloop round list` lists the rounds.")
    return _round(row)


def find_round_in(session: Session, number: int, *states: RoundState) -> RoundRecord:
    """Find a round that must be in one of these states.

    Raises:
        AlloopError: No round has this number, or it is in another state.
    """
    current = find_round(session, number)
    if current.state not in states:
        wanted = " or ".join(f"'{state}'" for state in states)
        raise AlloopError(
            f"Round {number} is '{current.state}', but this step needs it to be {wanted}.",
            "Run `alloop run`, which takes the next step.",
        )
    return current


def find_round_number(session: Session, round_id: int) -> int:
    """Find the number of an existing round."""
    return session.execute(select(Round.number).where(Round.id == round_id)).scalar_one()


def find_last_round(session: Session) -> RoundRecord | None:
    """Find the newest round; None before the first."""
    row = session.scalar(select(Round).order_by(Round.number.desc()).limit(1))
    return None if row is None else _round(row)


def list_rounds(session: Session) -> list[RoundRecord]:
    """List all rounds, oldest first."""
    return [_round(row) for row in session.scalars(select(Round).order_by(Round.number))]


def set_state(session: Session, round_id: int, old: RoundState, new: RoundState) -> None:
    """Move a round to its next state.

    Raises:
        DatabaseError: The round was in another state, because another process moved it.
    """
    moved = session.execute(update(Round).where(Round.id == round_id, Round.state == old.value).values(state=new.value))
    if moved.rowcount != 1:  # type: ignore[attr-defined]
        raise DatabaseError(f"The round is no longer '{old}'.", "Another alloop moved it on; run the command again.")


def set_config(session: Session, round_id: int, config: Mapping[str, Any], seed: int) -> None:
    """Replace the settings of a round, and the seed that follows from them."""
    session.execute(update(Round).where(Round.id == round_id).values(config=dict(config), seed=seed))


def set_scores(session: Session, round_id: int, path: str | None, sha256: str | None) -> None:
    """Set the score file of a round; None removes it."""
    session.execute(update(Round).where(Round.id == round_id).values(scores_path=path, scores_sha256=sha256))


def set_closed(session: Session, round_id: int, ending: Ending, because: str, now: dt.datetime) -> None:
    """Record when and why a round ended: the reason, and a sentence about it."""
    values = {"closed_at": now, "ending": ending.value, "closed_because": because}
    session.execute(update(Round).where(Round.id == round_id).values(**values))


def set_matched(session: Session, round_id: int, matched: Mapping[str, Any] | None) -> None:
    """Record the comparison of acquired with random labels of a round, or that there is none."""
    values = {"matched": None if matched is None else dict(matched)}
    session.execute(update(Round).where(Round.id == round_id).values(**values))


def set_agreement(session: Session, round_id: int, same: Agreement | None) -> None:
    """Replace the agreement of a round's predictions with those of an earlier round; None if they share no image."""
    session.execute(delete(RoundAgreement).where(RoundAgreement.round_id == round_id))
    if same is not None:
        before_id = find_round(session, same.before).id
        session.add(RoundAgreement(round_id=round_id, before_id=before_id, share=same.share, n=same.n))
        session.flush()


def list_agreements(session: Session) -> list[Agreement]:
    """Agreements of rounds with earlier ones, the oldest first."""
    before = aliased(Round)
    query = (
        select(Round.number, before.number, RoundAgreement.share, RoundAgreement.n)
        .join(Round, Round.id == RoundAgreement.round_id)
        .join(before, before.id == RoundAgreement.before_id)
        .order_by(Round.number)
    )
    return [Agreement(*row) for row in session.execute(query)]


def add_model(session: Session, values: Mapping[str, Any], calibration: Calibration, now: dt.datetime) -> int:
    """Record the model version of a round; it replaces an earlier one of the same round.

    Args:
        session: Database session to write to.
        values: The fields of ModelRecord without id, calibration and time.
        calibration: Calibrator fitted on the holdout.
        now: Time of recording.
    """
    drop_model(session, values["round_id"])
    row = ModelVersionRow(**values, calibration=dataclasses.asdict(calibration), created_at=now)
    session.add(row)
    session.flush()
    return row.id


def drop_model(session: Session, round_id: int) -> None:
    """Delete the model version of a round and its metrics."""
    earlier = select(ModelVersionRow.id).where(ModelVersionRow.round_id == round_id)
    session.execute(delete(Metric).where(Metric.model_version_id.in_(earlier)))
    session.execute(delete(ModelVersionRow).where(ModelVersionRow.round_id == round_id))


def find_model(session: Session, round_id: int) -> ModelRecord | None:
    """Find the model version of a round; None if the round had too few labels."""
    row = session.scalar(select(ModelVersionRow).where(ModelVersionRow.round_id == round_id))
    return None if row is None else _model(row)


def list_models(session: Session) -> dict[int, ModelRecord]:
    """List all model versions: round id → model."""
    return {row.round_id: _model(row) for row in session.scalars(select(ModelVersionRow))}


def find_last_model(session: Session, up_to: int | None = None) -> ModelRecord | None:
    """Find the newest model version, of all rounds or of rounds up to a number."""
    query = select(ModelVersionRow).order_by(ModelVersionRow.id.desc()).limit(1)
    if up_to is not None:
        query = query.join(Round, Round.id == ModelVersionRow.round_id).where(Round.number <= up_to)
    row = session.scalar(query)
    return None if row is None else _model(row)


def set_metrics(session: Session, model_id: int, split: str, metrics: Mapping[str, Interval], now: dt.datetime) -> None:
    """Replace the metrics of a model on a split."""
    session.execute(delete(Metric).where(Metric.model_version_id == model_id, Metric.split == split))
    for name, interval in metrics.items():
        session.add(
            Metric(
                model_version_id=model_id,
                split=split,
                name=name,
                value=_finite(interval.value),
                low=_finite(interval.low),
                high=_finite(interval.high),
                n=interval.n,
                method=interval.method,
                computed_at=now,
            )
        )
    session.flush()


def list_metrics(session: Session, model_id: int, split: str) -> dict[str, Interval]:
    """List the metrics of a model on a split. An infinite value is returned as infinity."""
    rows = session.scalars(select(Metric).where(Metric.model_version_id == model_id, Metric.split == split))
    return {row.name: _interval(row) for row in rows}


def list_all_metrics(session: Session) -> dict[tuple[int, str], dict[str, Interval]]:
    """List the metrics of all models: (model id, split) → metrics, as `list_metrics` gives them."""
    found: dict[tuple[int, str], dict[str, Interval]] = {}
    for row in session.scalars(select(Metric).order_by(Metric.id)):
        found.setdefault((row.model_version_id, row.split), {})[row.name] = _interval(row)
    return found


def _interval(row: Metric) -> Interval:
    return Interval(_or_inf(row.value), _or_inf(row.low), _or_inf(row.high), row.n, row.method)


def _finite(value: float) -> float | None:
    # PostgreSQL and SQLite disagree about infinity; the only non-finite metric is an NLL of +inf.
    return value if value not in (float("inf"), float("-inf")) else None


def _or_inf(value: float | None) -> float:
    return float("inf") if value is None else value


def _round(row: Round) -> RoundRecord:
    return RoundRecord(
        id=row.id,
        number=row.number,
        state=RoundState(row.state),
        config=row.config,
        seed=row.seed,
        scores_path=row.scores_path,
        scores_sha256=row.scores_sha256,
        created_at=row.created_at,
        closed_at=row.closed_at,
        closed_because=row.closed_because,
        ending=None if row.ending is None else Ending(row.ending),
        matched=row.matched,
    )


def _model(row: ModelVersionRow) -> ModelRecord:
    return ModelRecord(
        id=row.id,
        round_id=row.round_id,
        name=row.name,
        path=row.path,
        sha256=row.sha256,
        classes=tuple(row.classes),
        head_classes=tuple(tuple(names) for names in row.head_classes),
        label_digest=row.label_digest,
        n_labels=row.n_labels,
        n_holdout=row.n_holdout,
        seed=row.seed,
        config=row.config,
        library_versions=row.library_versions,
        calibration=Calibration(**row.calibration),
        history=row.history,
        created_at=row.created_at,
    )
