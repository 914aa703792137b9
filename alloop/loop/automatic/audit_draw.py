"""Draw of the automatic labels that an audit asks people about."""

import dataclasses

import numpy as np

from alloop.errors import LabelError
from alloop.loop.intake.near_copies import keep_largest, list_groups, read_sizes
from alloop.loop.workbench import Workbench
from alloop.records import Query, Reason
from alloop.seeds import derive_seed, tie_keys
from alloop.store.auto_labels import list_auto_labels
from alloop.store.images import find_refs
from alloop.store.queries import add_queries, list_open_images, list_queries
from alloop.store.rounds import find_round
from alloop.store.session import transaction
from alloop.store.workspace import add_event, new_key_prefix


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
