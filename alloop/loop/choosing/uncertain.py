"""Images without a label that the newest scores are least sure of."""

import numpy as np

from alloop.errors import ModelError
from alloop.loop.choosing.pool_scores import PoolScores, load_scores
from alloop.project import Project
from alloop.records import Split, Uncertain
from alloop.store.images import list_refs
from alloop.store.rounds import RoundRecord, list_rounds
from alloop.store.session import reading


def find_most_uncertain(project: Project, n: int) -> list[Uncertain]:
    """Return at most n unlabeled images, the highest predictive entropy first; none without scores."""
    with reading(project.database) as session:
        found = next(
            (scores for row in reversed(list_rounds(session)) if (scores := _scores(project, row)) is not None), None
        )
        refs = {ref.image_id: ref for ref in list_refs(session, Split.TRAIN, labeled=False)}
    if found is None:
        return []
    known = found.scores
    order = np.argsort(-known.entropy, kind="stable")
    rows = [int(at) for at in order if int(known.image_ids[at]) in refs][:n]
    ids = [int(known.image_ids[at]) for at in rows]
    best = found.calibrated_log_probs(ids).amax(dim=1).exp().tolist() if ids else []
    return [
        Uncertain(refs[image_id], known.predicted[at], float(share), float(known.entropy[at]))
        for at, image_id, share in zip(rows, ids, best, strict=True)
    ]


def _scores(project: Project, row: RoundRecord) -> PoolScores | None:
    try:
        return load_scores(project, row, project.config.acquisition)
    except ModelError:  # its files were deleted
        return None
