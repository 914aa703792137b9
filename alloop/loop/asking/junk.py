"""Images that a person marks as junk: never asked about, never trained on, until the mark is removed."""

import dataclasses
from collections.abc import Mapping, Sequence

from alloop.loop.asking.answers import judged_by, settle_queries
from alloop.loop.asking.by_hand import by_reason, describe_left_out
from alloop.loop.intake.near_copies import update_splits
from alloop.loop.workbench import Workbench
from alloop.records import QueryStatus, Split
from alloop.store.images import find_splits
from alloop.store.junk import add_junk, drop_junk
from alloop.store.queries import list_queries, set_status
from alloop.store.session import transaction
from alloop.store.workspace import add_event

MARKED, UNMARKED = "marked as junk", "no longer junk"  # kinds of events
HOLDOUT = (
    "in the holdout or the test set. It is a fixed sample that says how good the model is, and leaving images out of "
    "it would make the model look better or worse than it is. Skip such an image in the labeling tool instead"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Marked:
    """Result of marking images.

    Attributes:
        marked: Images that are junk now and were not before.
        left_out: Reason → images that were not marked.
        withdrawn: Number of open questions about them, which are withdrawn.
    """

    marked: tuple[int, ...]
    left_out: Mapping[str, tuple[int, ...]]
    withdrawn: int

    def describe(self) -> list[str]:
        """Return sentences about the images that were left out."""
        return describe_left_out(self.left_out)


def mark_junk(bench: Workbench, image_ids: Sequence[int], reason: str = "") -> Marked:
    """Mark images as junk. Answers and labels are kept, but count for nothing until the mark is removed.

    Open questions about the images are withdrawn here; the next pull takes their tasks back.

    Args:
        bench: Workbench of the workspace.
        image_ids: Images to mark. Those of the holdout or a test set are left out.
        reason: Words of the person; may be empty.
    """
    wanted = list(dict.fromkeys(image_ids))
    with transaction(bench.project.database) as session:
        splits = find_splits(session, wanted)
        reasons = {Split.HOLDOUT: HOLDOUT, Split.JUNK: "marked already"}
        left_out = {i: "not in the pool" if i not in splits else reasons.get(splits[i], "") for i in wanted}
        marked = [image_id for image_id, why in left_out.items() if not why]
        add_junk(session, marked, reason, bench.user, bench.now())
        mine = set(marked)
        open_ = [query for query in list_queries(session, status=QueryStatus.OPEN) if query.image_id in mine]
        for query in open_:
            set_status(session, query.id, QueryStatus.WITHDRAWN, bench.now())
        if marked:
            add_event(session, bench.user, MARKED, bench.now(), images=marked, reason=reason, withdrawn=len(open_))
    return Marked(tuple(marked), by_reason({i: why for i, why in left_out.items() if why}), len(open_))


def unmark_junk(bench: Workbench, image_ids: Sequence[int]) -> tuple[int, ...]:
    """Remove the marks of images; their labels and automatic labels count again. Return the images that had a mark.

    A question that was open is open again if its round is not over and its task is still there. Otherwise the image is
    back in the pool.
    """
    with transaction(bench.project.database) as session:
        splits = find_splits(session, image_ids)
        marked = [image_id for image_id in dict.fromkeys(image_ids) if splits.get(image_id) is Split.JUNK]
        drop_junk(session, marked)
        update_splits(session, marked)
        mine, stays = set(marked), find_splits(session, marked)
        withdrawn = [
            query
            for query in list_queries(session, status=QueryStatus.WITHDRAWN)
            if query.image_id in mine and stays[query.image_id] is Split.TRAIN
        ]
        settle_queries(session, judged_by(bench.project), withdrawn, bench.now())
        if marked:
            add_event(session, bench.user, UNMARKED, bench.now(), images=marked)
    return tuple(marked)
