"""A round's batch: holdout, seed batch, random share and what the strategy prefers, as queries to be recorded."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from sqlalchemy.orm import Session

from alloop.acquisition.batch import Pick, compose_batch
from alloop.config.schema import AcquisitionConfig, Config
from alloop.engine.score_file import Scores
from alloop.errors import ModelError
from alloop.loop.askable import group_ids, list_askable, list_holdout_to_ask
from alloop.loop.holdout import holdout_probabilities
from alloop.loop.ingest import mark_vanished
from alloop.loop.stopping import batch_size
from alloop.loop.test_set import bought
from alloop.records import ImageRef, Query, Reason
from alloop.seeds import derive_seed, tie_keys
from alloop.store.images import count_pool
from alloop.store.rounds import RoundRecord

RANDOM = "random"


class PoolScores:
    """The scores of a round by image id, whatever order the file has.

    Raises:
        ModelError: They were made by an alloop that did not know the strategy, or for a model with fewer members.
    """

    def __init__(self, scores: Scores, settings: AcquisitionConfig) -> None:
        """The settings say whose scores count (entropies where images are drawn at random), and what is suspect."""
        strategy = settings.strategy
        self._scores = scores
        name = "entropy" if strategy == RANDOM else strategy
        if name not in scores.uncertainty:
            raise ModelError(f"The scores of this round do not have {name}.", "Score again with `alloop score`.")
        self._values = scores.uncertainty[name]
        self._order = np.argsort(scores.image_ids, kind="stable")
        self._sorted = scores.image_ids[self._order]

        self.suspects = find_suspects(scores, settings.suspect_quantile)

    def __contains__(self, image_id: int) -> bool:
        place = int(np.searchsorted(self._sorted, image_id))
        return place < len(self._sorted) and int(self._sorted[place]) == image_id

    def values(self, image_ids: Sequence[int]) -> npt.NDArray[np.float64]:
        """The strategy's scores [N], in the order asked; higher means ask sooner."""
        return self._values[self._positions(image_ids)].astype(np.float64)

    def guess(self, image_id: int) -> tuple[str, float, float]:
        """(predicted class, confidence in [0, 1], the strategy's score) of one image."""
        position = int(self._positions([image_id])[0])
        scores = self._scores
        return scores.predicted[position], float(scores.confidence[position]), float(self._values[position])

    def _positions(self, image_ids: Sequence[int]) -> npt.NDArray[np.intp]:
        return self._order[np.searchsorted(self._sorted, np.asarray(image_ids, dtype=np.int64))]


def find_suspects(scores: Scores, quantile: float) -> frozenset[int]:
    """Images whose OOD score lies above the pool's quantile: at most 1 - quantile of them, none where scores are equal.

    The quantile is one of the scores themselves (the smallest that at least that share does not exceed), so that in a
    pool of fewer than 1 / (1 - quantile) images there is no suspect.
    """
    if scores.ood is None or not len(scores.ood):
        return frozenset()
    bound = np.quantile(scores.ood, quantile, method="inverted_cdf")
    return frozenset(scores.image_ids[scores.ood > bound].tolist())


def choose_batch(
    session: Session, config: Config, current: RoundRecord, scores: PoolScores | None, n: int | None
) -> list[Query]:
    """What the round asks, in the order in which it is asked.

    The holdout comes first: images never asked about (all of them in round 0), and those whose task was lost. A round
    without scores adds a uniform seed batch; any other one the strategy's choice and a uniform random share.

    Args:
        session: Files found to be missing are marked here.
        config: The round's.
        current: The round.
        scores: Of the unlabeled pool, or None without a model.
        n: Images besides the holdout; None: `[loop] batch_size`, or what the label budget leaves.
    """
    holdout = _holdout_queries(session, current)
    counts = count_pool(session)
    wanted = n if n is not None else batch_size(config.loop, bought(config, counts), counts.open + len(holdout))
    return holdout + _batch_queries(session, config, current, scores, wanted, first_rank=len(holdout) + 1)


def _holdout_queries(session: Session, current: RoundRecord) -> list[Query]:
    refs = list_holdout_to_ask(session)
    if not refs:
        return []
    at_first, later = holdout_probabilities(session)
    keys = tie_keys([ref.sha256 for ref in refs], derive_seed(current.seed, "holdout order"))
    ordered = [refs[int(position)] for position in np.argsort(keys, kind="stable")]
    return [
        Query(ref.image_id, Reason.HOLDOUT, RANDOM, rank, probability=later.get(ref.image_id, at_first))
        for rank, ref in enumerate(ordered, start=1)
    ]


def _batch_queries(
    session: Session, config: Config, current: RoundRecord, scores: PoolScores | None, n: int, first_rank: int
) -> list[Query]:
    """Files that vanished since they were scored are marked as missing, and others take their place."""
    while True:
        refs = list_askable(session, config.acquisition, current.number)
        if scores is not None:
            left_out = scores.suspects if config.acquisition.skip_suspects else frozenset()
            refs = [ref for ref in refs if ref.image_id in scores and ref.image_id not in left_out]
        picks = _compose(session, config, current, scores, refs, n)
        if not mark_vanished(session, [refs[pick.position].path for pick in picks]):
            break
    strategy = config.acquisition.strategy
    return [_query(pick, refs[pick.position], strategy, scores, first_rank + pick.rank - 1) for pick in picks]


def _compose(
    session: Session,
    config: Config,
    current: RoundRecord,
    scores: PoolScores | None,
    refs: Sequence[ImageRef],
    n: int,
) -> Sequence[Pick]:
    if not refs:
        return ()
    by_chance = scores is None or config.acquisition.strategy == RANDOM
    values = np.zeros(len(refs)) if scores is None else scores.values([ref.image_id for ref in refs])
    return compose_batch(
        values,
        tie_keys([ref.sha256 for ref in refs], derive_seed(current.seed, "ties")),
        np.asarray(group_ids(session, refs), dtype=np.int64),
        k=n,
        random_fraction=1.0 if by_chance else config.acquisition.random_fraction,
        generator=torch.Generator().manual_seed(derive_seed(current.seed, "random share")),
    )


def _query(pick: Pick, ref: ImageRef, strategy: str, scores: PoolScores | None, rank: int) -> Query:
    if scores is None:
        return Query(ref.image_id, Reason.SEED, RANDOM, rank, probability=pick.probability)
    predicted, confidence, value = scores.guess(ref.image_id)
    return Query(
        image_id=ref.image_id,
        reason=pick.reason,
        strategy=strategy if pick.reason is Reason.ACQUIRED else RANDOM,
        rank=rank,
        score=value,
        probability=pick.probability,
        predicted=predicted,
        confidence=confidence,
        suspect=ref.image_id in scores.suspects,
    )
