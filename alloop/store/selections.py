"""Selections of rounds: settings and strategy of each choice, and the file of its candidates."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from alloop.store.tables import Round, Selection


@dataclasses.dataclass(frozen=True, slots=True)
class SelectionRecord:
    """Selection of a round: settings and strategy of its choice.

    Attributes:
        round_number: Number of the round.
        strategy: Name of the strategy that chose, which is not always the configured one.
        notes: Decisions that were taken on the way, and why; a sentence each.
        n: Number of images to choose, the holdout not counted; None if not recorded.
        settings: Table [acquisition] with the flags of the command; None if not recorded.
        library_versions: Library → version; None if not recorded.
        path: File of the candidates, relative to the workspace; None for a round that chose before there was one.
        sha256: Checksum of that file.
    """

    round_number: int
    strategy: str
    notes: tuple[str, ...]
    n: int | None
    settings: Mapping[str, Any] | None
    library_versions: Mapping[str, Any] | None
    path: str | None
    sha256: str | None


def add_selection(session: Session, round_id: int, values: Mapping[str, Any]) -> None:
    """Record the selection of a round. `values` are the fields of SelectionRecord without the round number."""
    session.add(Selection(round_id=round_id, **{**values, "notes": list(values["notes"])}))
    session.flush()


def find_selection(session: Session, round_id: int) -> SelectionRecord | None:
    """Find the selection of a round; None if the round has not chosen yet."""
    query = select(Selection, Round.number).join(Round, Round.id == Selection.round_id)
    found = session.execute(query.where(Selection.round_id == round_id)).one_or_none()
    return None if found is None else _record(*found)


def list_selections(session: Session) -> dict[int, SelectionRecord]:
    """List the selections by the number of the round."""
    query = select(Selection, Round.number).join(Round, Round.id == Selection.round_id).order_by(Round.number)
    return {number: _record(row, number) for row, number in session.execute(query)}


def _record(row: Selection, number: int) -> SelectionRecord:
    return SelectionRecord(
        round_number=number,
        strategy=row.strategy,
        notes=tuple(row.notes),
        n=row.n,
        settings=row.settings,
        library_versions=row.library_versions,
        path=row.path,
        sha256=row.sha256,
    )
