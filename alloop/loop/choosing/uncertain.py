"""Images without a label that the newest scores are least sure of."""

import numpy as np

from alloop.loop.choosing.pool_scores import find_newest_scores
from alloop.project import Project
from alloop.records import Split, Uncertain
from alloop.store.images import list_refs
from alloop.store.session import reading


def find_most_uncertain(project: Project, n: int) -> list[Uncertain]:
    """Return at most n unlabeled images, the highest predictive entropy first; none without scores."""
    with reading(project.database) as session:
        newest = find_newest_scores(session, project)
        refs = {ref.image_id: ref for ref in list_refs(session, Split.TRAIN, labeled=False)}
    if newest is None:
        return []
    found = newest[1]
    known = found.scores
    order = np.argsort(-known.entropy, kind="stable")
    rows = [int(at) for at in order if int(known.image_ids[at]) in refs][:n]
    ids = [int(known.image_ids[at]) for at in rows]
    best = found.calibrated_log_probs(ids).amax(dim=1).exp().tolist() if ids else []
    return [
        Uncertain(refs[image_id], known.predicted[at], float(share), float(known.entropy[at]))
        for at, image_id, share in zip(rows, ids, best, strict=True)
    ]
