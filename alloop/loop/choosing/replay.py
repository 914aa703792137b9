"""A round's choice made again from what is stored, to show that it can be; or what has changed since."""

import dataclasses
import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from alloop.config.load import set_values, validate_config
from alloop.config.schema import Config
from alloop.engine.model_files import library_versions
from alloop.errors import AlloopError
from alloop.loop.choosing.askable import leave_known, still_declined
from alloop.loop.choosing.evidence import Known, Unreadable
from alloop.loop.choosing.filter import find_matching
from alloop.loop.choosing.pool_scores import load_scores
from alloop.loop.choosing.selection import Situation, choose_batch, encode_labels
from alloop.loop.intake.labels import agree, judge_of
from alloop.loop.intake.near_copies import list_groups, read_sizes
from alloop.loop.workbench import Tools
from alloop.project import Project
from alloop.records import ImageRef, Query, QueryStatus, Reason, Split
from alloop.store.annotations import list_current
from alloop.store.images import list_refs_then
from alloop.store.queries import QueryRecord, list_queries
from alloop.store.rounds import RoundRecord, find_model, find_round
from alloop.store.session import reading
from alloop.store.workspace import list_events

NO_LIMIT = 1e6  # GiB; what fitted then is not refused now
GROWN = "holdout grown"  # the event of images that went from the pool to the holdout


@dataclasses.dataclass(frozen=True)
class Replay:
    """Whether the same images came out.

    Attributes:
        n: Images that the round chose, the holdout not counted.
        n_same: How many of them were chosen again at the same rank, for the same reason, with the same numbers.
        changes: What is not as it was, a sentence each; may be there although the same images were chosen.
    """

    round_number: int
    strategy: str
    n: int
    n_same: int
    is_equal: bool
    changes: tuple[str, ...]


def replay(tools: Tools, number: int, device: str | None = None) -> Replay:
    """Choose a round's images again from its model, scores and seeds, with labels, queries and pool as they were then.

    Nothing is recorded.

    Raises:
        AlloopError: The round chose nothing yet, or was chosen by an alloop that did not record what this needs.
        ModelError: Its scores or its model are missing or damaged.
    """
    project = tools.project
    with reading(project.database) as session:
        current = find_round(session, number)
        event = _event(session, number)
        said = event["data"]
        config = set_values(
            validate_config(current.config, f"the config of round {number}"),
            acquisition={**said["settings"], "max_ram": NO_LIMIT},
        )
        then = dt.datetime.fromisoformat(event["at"])
        situation = _situation(session, project, config, current, then, said["given"]["n"])
        recorded = [q for q in list_queries(session, current.id) if q.reason is not Reason.HOLDOUT]
    changes = _versions(said["versions"])
    scores = load_scores(project, current, config.acquisition)
    try:
        selected = choose_batch(tools, situation, scores, device)
    except Unreadable as error:
        lost = f"{len(error.failed)} candidates cannot be read any more: {error.failed[0][1]}."
        return Replay(number, said["strategy"], len(recorded), 0, False, (*changes, lost))
    changes += _differences(said["given"], selected.given)
    again = [query for query in selected.queries if query.reason is not Reason.HOLDOUT]
    first = min((query.rank for query in recorded), default=1) - 1
    n_same = sum(
        _numbers(one) == _numbers(dataclasses.replace(other, rank=other.rank + first))
        for one, other in zip(recorded, again, strict=False)
    )
    is_equal = n_same == len(recorded) == len(again)
    return Replay(number, said["strategy"], len(recorded), n_same, is_equal, tuple(changes))


def _event(session: Session, number: int) -> Mapping[str, Any]:
    events = [event for event in list_events(session, "selected", limit=100_000) if event["round"] == number]
    if not events:
        raise AlloopError(f"Round {number} has not chosen any images.", "`alloop round list` shows the rounds.")
    if "given" not in events[0]["data"]:
        raise AlloopError(f"Round {number} was chosen by an alloop that did not record what a replay needs.")
    return events[0]


def _situation(
    session: Session, project: Project, config: Config, current: RoundRecord, then: dt.datetime, n: int
) -> Situation:
    """What `selection.read_situation` read then: rows that came later do not count."""
    found = agree(list_current(session, then=then), judge_of(config.project))
    agreed = {image_id: each.value for image_id, each in found.items() if each is not None}
    groups = list_groups(session, agreed)
    pool = _pool(session, groups, current.number, then)
    refs = {ref.image_id: ref for ref in pool}
    labels = encode_labels(config, agreed)
    queries = [query for query in list_queries(session) if query.round_number < current.number]
    open_ = {query.image_id for query in queries if query.settled_at is None or query.settled_at > then}
    unlabeled = [ref for ref in pool if ref.image_id not in labels]
    settled = [query for query in queries if query.settled_at is not None and query.settled_at <= then]
    askable = leave_known(
        unlabeled,
        groups,
        {*(image_id for image_id in labels if image_id in refs), *open_},
        _declined(settled, config, current.number),
    )
    if config.acquisition.only is not None:
        matching = find_matching(session, config.acquisition.only)
        askable = [ref for ref in askable if ref.image_id in matching]
    given = {**dict.fromkeys(open_, -1), **labels}
    known = sorted((refs[image_id] for image_id in given if image_id in refs), key=lambda ref: ref.sha256)
    model = find_model(session, current.id)
    return Situation(
        current=current,
        config=config,
        refs=tuple(askable),
        groups=groups,
        sizes=read_sizes(session, askable, groups),
        known=Known(tuple(known), np.array([given[ref.image_id] for ref in known], dtype=np.int64)),
        model=None if model is None else model.files(project.folder),
        n=n,
    )


def _pool(session: Session, groups: Mapping[int, int], number: int, then: dt.datetime) -> list[ImageRef]:
    """Return the train split as it was then: without near copies of the holdout as it was then."""
    later = {
        image_id
        for event in list_events(session, GROWN, limit=100_000)
        if event["round"] is not None and event["round"] > number
        for image_id in event["data"]["images"]
    }
    refs = list_refs_then(session, then)
    held = {groups[ref.image_id] for ref, split in refs if split is Split.HOLDOUT and ref.image_id not in later}
    return [ref for ref, _ in refs if groups[ref.image_id] not in held]


def _declined(settled: Sequence[QueryRecord], config: Config, number: int) -> set[int]:
    skipped = {query.image_id: query.round_number for query in settled if query.status is QueryStatus.SKIPPED}
    unknown = {query.image_id for query in settled if query.status is QueryStatus.UNKNOWN}
    return still_declined(skipped, config.acquisition.ask_skipped_after, number) | unknown


def _versions(then: Mapping[str, str]) -> list[str]:
    now = library_versions()
    return [
        f"{name} was {version} and is {now.get(name, 'gone')}: its numbers may differ."
        for name, version in then.items()
        if now.get(name) != version
    ]


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Which of the inputs are not what they were."""
    changes = []
    if then["candidates"] != now["candidates"]:
        changes.append(
            f"The candidates are others: {then['n_candidates']} then, {now['n_candidates']} now. Images went missing, "
            "near copies, splits or attributes changed, or queries were settled otherwise since."
        )
        if then.get("near_copies") != now["near_copies"]:
            changes.append(
                "An earlier alloop took the most uncertain image of each group of near copies as a candidate; this one "
                f"takes the {now['near_copies']}."
            )
    if then["known"] != now["known"]:
        changes.append(
            f"What was labeled or being asked about is not the same: {then['n_known']} images then, {now['n_known']} "
            "now."
        )
    return changes


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
