"""Repetition of a round's choice from stored data, to check that it gives the same images."""

import dataclasses
from collections.abc import Mapping

from sqlalchemy.orm import Session

from alloop.config.load import set_values, validate_config
from alloop.engine.model_files import library_versions
from alloop.errors import AlloopError
from alloop.loop.choosing.evidence import Unreadable
from alloop.loop.choosing.inputs_file import read_inputs
from alloop.loop.choosing.pool_scores import load_scores
from alloop.loop.choosing.selection import Situation, choose_batch
from alloop.loop.workbench import Tools
from alloop.project import Project
from alloop.records import Query, Reason
from alloop.store.images import find_all_refs
from alloop.store.queries import QueryRecord, list_queries
from alloop.store.rounds import RoundRecord, find_model, find_round
from alloop.store.selections import SelectionRecord, find_selection
from alloop.store.session import reading

NO_LIMIT = 1e6  # GiB; a replay has no memory limit


@dataclasses.dataclass(frozen=True)
class Replay:
    """Result of a replay.

    Attributes:
        n: Number of images that the round chose, without the holdout.
        n_same: Number of images chosen again at the same rank, for the same reason, with the same numbers.
        changes: Changes since then, a sentence each; possible even if the same images were chosen.
    """

    round_number: int
    strategy: str
    n: int
    n_same: int
    is_equal: bool
    changes: tuple[str, ...]


def replay(tools: Tools, number: int, device: str | None = None) -> Replay:
    """Choose a round's images again from its candidates, model, scores, settings and seed. Nothing is recorded.

    Raises:
        AlloopError: The round chose nothing yet, or chose before its candidates were kept in a file.
        ModelError: Its candidates, scores or model are missing or damaged.
    """
    project = tools.project
    with reading(project.database) as session:
        current = find_round(session, number)
        chosen = _selection(session, current)
        situation = _situation(session, project, current, chosen)
        others = (Reason.HOLDOUT, Reason.AUDIT, Reason.MANUAL)  # no part of the choice
        recorded = [q for q in list_queries(session, current.id) if q.reason not in others]
    changes = _versions(chosen.library_versions or {})
    scores = load_scores(project, current, situation.config.acquisition)
    try:
        selected = choose_batch(tools, situation, scores, device)
    except Unreadable as error:
        lost = f"{len(error.failed)} candidates cannot be read any more: {error.failed[0][1]}."
        return Replay(number, chosen.strategy, len(recorded), 0, False, (*changes, lost))
    first = min((query.rank for query in recorded), default=1) - 1
    n_same = sum(
        _numbers(one) == _numbers(dataclasses.replace(other, rank=other.rank + first))
        for one, other in zip(recorded, selected.queries, strict=False)
    )
    is_equal = n_same == len(recorded) == len(selected.queries)
    return Replay(number, chosen.strategy, len(recorded), n_same, is_equal, tuple(changes))


def _selection(session: Session, current: RoundRecord) -> SelectionRecord:
    chosen = find_selection(session, current.id)
    if chosen is None:
        raise AlloopError(f"Round {current.number} has not chosen any images.", "`alloop round list` shows the rounds.")
    if chosen.path is None:
        raise AlloopError(
            f"Round {current.number} cannot be replayed: an earlier alloop chose its images and did not store the "
            "candidates in a file.",
            "Later rounds can be replayed.",
        )
    return chosen


def _situation(session: Session, project: Project, current: RoundRecord, chosen: SelectionRecord) -> Situation:
    """Read the inputs of the round's choice, without the holdout."""
    candidates, known = read_inputs(
        project.folder / str(chosen.path), str(chosen.sha256), lambda ids: find_all_refs(session, ids)
    )
    model = find_model(session, current.id)
    return Situation(
        current=current,
        config=set_values(
            validate_config(current.config, f"the config of round {current.number}"),
            acquisition={**(chosen.settings or {}), "max_ram": NO_LIMIT},
        ),
        candidates=candidates,
        known=known,
        model=None if model is None else model.files(project.folder),
        n=chosen.n or 0,
    )


def _versions(then: Mapping[str, str]) -> list[str]:
    now = library_versions()
    return [
        f"{name} was {version} and is {now.get(name, 'gone')}: its numbers may differ."
        for name, version in then.items()
        if now.get(name) != version
    ]


def _numbers(query: Query | QueryRecord) -> tuple[object, ...]:
    return (
        query.image_id,
        query.rank,
        query.reason,
        query.strategy,
        query.score,
        query.probability,
        query.draw_number,
        query.draw_pool,
        query.predicted,
    )
