"""Questions that a person asked for by hand, whatever the strategy thinks of the images.

Such an image is not a random draw: it is never counted as holdout, nor for or against the strategy.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy.orm import Session

from alloop.errors import LabelError
from alloop.loop.workbench import Workbench
from alloop.records import Query, QueryStatus, Reason, Split
from alloop.store.annotations import find_classes
from alloop.store.images import find_refs, find_splits
from alloop.store.queries import QueryRecord, add_queries, list_open_images, list_queries, list_unsent, set_status
from alloop.store.rounds import find_round
from alloop.store.session import transaction
from alloop.store.workspace import add_event, new_key_prefix

ASKED, TAKEN_BACK = "asked by hand", "asked by hand, taken back"  # kinds of events
STRATEGY = "manual"  # in place of the name of a strategy
_SPLITS = {
    Split.HOLDOUT: "in the holdout or the test set, which no one chooses from",
    Split.EXCLUDED: "near copies of holdout images, which no model is trained on",
    Split.JUNK: "marked as junk (remove the mark first)",
}


@dataclasses.dataclass(frozen=True, slots=True)
class ByHand:
    """Result of asking by hand.

    Attributes:
        round_number: Round whose batch the questions belong to.
        asked: Images that are being asked about now, in the order given.
        left_out: Reason → images that are not asked about.
    """

    round_number: int
    asked: tuple[int, ...]
    left_out: Mapping[str, tuple[int, ...]]

    def describe(self) -> list[str]:
        """Return sentences about the images that were left out."""
        return describe_left_out(self.left_out)


def ask_by_hand(bench: Workbench, image_ids: Sequence[int]) -> ByHand:
    """Record questions about these images; the next push sends them.

    They belong to the newest round that has asked anything, so a round that has not chosen its images yet chooses as
    before, but not these images again. They show no guess of the model.

    Raises:
        LabelError: No round has asked anything yet.
    """
    wanted = list(dict.fromkeys(image_ids))
    with transaction(bench.project.database) as session:
        queries = list_queries(session)
        if not queries:
            raise LabelError(
                "No round has asked people anything yet. Nothing was recorded.",
                "`alloop run` takes the first step, which also draws the holdout; ask for images after that.",
            )
        current = find_round(session, max(query.round_number for query in queries))
        mine = [query for query in queries if query.round_number == current.number]
        again = {query.image_id: query for query in mine if _may_reopen(query)}
        left_out = _left_out(session, wanted, {query.image_id for query in mine} - again.keys(), current.number)
        asked = [image_id for image_id in wanted if image_id not in left_out]
        for query in (again[image_id] for image_id in asked if image_id in again):
            set_status(session, query.id, QueryStatus.OPEN, bench.now())
        first = 1 + max(query.rank for query in mine)
        fresh = [image_id for image_id in asked if image_id not in again]
        picks = [Query(image_id, Reason.MANUAL, STRATEGY, rank) for rank, image_id in enumerate(fresh, start=first)]
        add_queries(session, current.id, picks, new_key_prefix(session, current.number), bench.now())
        if asked:
            add_event(session, bench.user, ASKED, bench.now(), current.number, images=asked)
    return ByHand(current.number, tuple(asked), by_reason(left_out))


def take_back(bench: Workbench, image_ids: Iterable[int]) -> int:
    """Withdraw the questions of `ask_by_hand` about these images that were not sent yet; return their number."""
    wanted = set(image_ids)
    with transaction(bench.project.database) as session:
        mine = [q for q in list_unsent(session) if q.reason is Reason.MANUAL and q.image_id in wanted]
        for query in mine:
            set_status(session, query.id, QueryStatus.WITHDRAWN, bench.now())
        if mine:
            images = [query.image_id for query in mine]
            add_event(session, bench.user, TAKEN_BACK, bench.now(), mine[-1].round_number, images=images)
    return len(mine)


def by_reason(reasons: Mapping[int, str]) -> dict[str, tuple[int, ...]]:
    """Turn image → reason into reason → images."""
    return {why: tuple(i for i, reason in reasons.items() if reason == why) for why in dict.fromkeys(reasons.values())}


def describe_left_out(left_out: Mapping[str, Sequence[int]]) -> list[str]:
    """Return a sentence for each reason."""
    return [f"{len(images)} left out: {reason}." for reason, images in left_out.items()]


def _may_reopen(query: QueryRecord) -> bool:
    """Return whether a question was taken back before it was sent, so that it can simply be asked again."""
    return query.reason is Reason.MANUAL and query.status is QueryStatus.WITHDRAWN and query.task_id is None


def _left_out(session: Session, wanted: Sequence[int], asked: set[int], number: int) -> dict[int, str]:
    splits, classes, refs = find_splits(session, wanted), find_classes(session, wanted), find_refs(session, wanted)
    open_ = list_open_images(session)
    reasons: dict[int, str] = {}
    for image_id in wanted:
        if image_id not in splits:
            reasons[image_id] = "not in the pool"
        elif splits[image_id] in _SPLITS:
            reasons[image_id] = _SPLITS[splits[image_id]]
        elif image_id in open_:
            reasons[image_id] = "being asked about already"
        elif image_id in classes:
            reasons[image_id] = "labeled already"
        elif image_id not in refs:
            reasons[image_id] = "their file is missing"
        elif image_id in asked:
            reasons[image_id] = f"round {number} asked about them and got no label; ask again after the next round"
    return reasons
