"""Input of strategies, read or computed: predictions, members, features and labels."""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alloop.acquisition.registry import OPERATIONS_PER_SECOND, estimate, find_strategy
from alloop.acquisition.rows import TASKS
from alloop.acquisition.strategy import Candidates, Cost, Keys, Size
from alloop.composition import STRATEGIES, Need, strategy_name
from alloop.config.schema import Config
from alloop.engine.classifier import Classifier
from alloop.engine.features import count_features
from alloop.engine.jobs import FeatureJob
from alloop.engine.settings import EngineSettings
from alloop.errors import PoolError
from alloop.loop.choosing.pool_scores import PoolScores
from alloop.loop.intake.teaching import node_reader
from alloop.loop.workbench import Tools
from alloop.records import ImageRef, ModelFiles

GIB = 2**30
BIG = 50_000  # number of candidates above which the cost of a strategy is announced
LONG = 30.0  # seconds above which the cost is announced
BY_DEFAULT = frozenset({Need.CALIBRATED_LOG_PROBS, Need.FEATURES})  # default needs of another package's strategy
_log = logging.getLogger("alloop")


class Unreadable(Exception):
    """Error: images were unreadable when their features were computed; (image id, reason) each."""

    def __init__(self, failed: Sequence[tuple[int, str]]) -> None:
        super().__init__(f"{len(failed)} images")
        self.failed = tuple(failed)


@dataclasses.dataclass(frozen=True)
class Known:
    """Training images that are labeled or being asked about, with their classes [L]; -1 without an answer yet."""

    refs: tuple[ImageRef, ...] = ()
    labels: npt.NDArray[np.int64] = dataclasses.field(default_factory=lambda: np.empty(0, dtype=np.int64))


def needs_of(name: str) -> frozenset[Need]:
    """Return the needs of a strategy. A strategy of another package may have an attribute `needs`."""
    if name in STRATEGIES:
        return STRATEGIES[name].needs
    return frozenset(getattr(find_strategy(name), "needs", BY_DEFAULT))


def wide_needs(name: str) -> frozenset[Need]:
    """Return the data that scoring must store for a strategy, besides scores of images.

    A score of each image is kept as such, whatever it is computed from.
    """
    known = strategy_name(name)
    return frozenset() if known in STRATEGIES and STRATEGIES[known].is_score else needs_of(known)


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Sources of the parts of candidates.

    Attributes:
        scores, model: Scores and model of the round; None without a model.
        device: Device instead of `[model] device`.
    """

    tools: Tools
    config: Config
    known: Known
    scores: PoolScores | None = None
    model: ModelFiles | None = None
    device: str | None = None

    def gather(self, name: str, refs: Sequence[ImageRef], keys: Keys, drawn: Sequence[ImageRef], k: int) -> Candidates:
        """Gather the candidates [N] with the parts that a strategy needs.

        Args:
            name: Name of the strategy.
            refs: Candidates; those of a round with a model have scores.
            keys: Keys [N].
            drawn: Images already in the batch; they count as being asked about.
            k: Number of images to choose, for the estimate of the cost.

        Raises:
            PoolError: The choice would need more memory than `[acquisition] max_ram`.
            ModelError: A part was not stored when the images were scored.
            Unreadable: Some of the candidates cannot be read.
        """
        needs = needs_of(name)
        known = Known((*self.known.refs, *drawn), np.append(self.known.labels, np.full(len(drawn), -1)))
        self._check_cost(name, needs, len(refs), len(known.refs), k)
        candidates = Candidates(keys, rule=TASKS[self.config.project.task])
        ids = [ref.image_id for ref in refs]
        if self.scores is not None and Need.CALIBRATED_LOG_PROBS in needs:
            candidates = dataclasses.replace(candidates, calibrated_log_probs=self.scores.calibrated_log_probs(ids))
        if self.scores is not None and Need.MEMBER_LOG_PROBS in needs:
            candidates = dataclasses.replace(candidates, member_log_probs=self.scores.member_log_probs(ids, name))
        if self.model is not None and Need.HEAD in needs:
            cache, pool = self.tools.project.paths.cache, node_reader(self.tools.project, self.config)
            model = Classifier.open(self.model, EngineSettings.of(self.config), cache, pool=pool)
            candidates = dataclasses.replace(candidates, head=model.predict_features)
        if Need.FEATURES in needs:
            features, labeled, labels = self._features(name, refs, known)
            candidates = dataclasses.replace(candidates, features=features, labeled=labeled, labels=labels)
        return candidates

    def features_of(self, name: str, refs: Sequence[ImageRef]) -> tuple[Tensor, npt.NDArray[np.bool_], dict[int, str]]:
        """Return the features [n, D] of images that have features, a mask of these [N], and reasons for the others."""
        if self.scores is not None and self.config.model.mode == "finetune":
            rows, found = self.scores.features([ref.image_id for ref in refs], name)
            return torch.from_numpy(rows), found, {}
        result = self.tools.executor.submit(self._feature_job(refs), self.tools.progress)
        found = np.isin(np.array([ref.image_id for ref in refs], dtype=np.int64), result.image_ids)
        return torch.from_numpy(result.features), found, dict(result.failed)

    def _features(self, name: str, refs: Sequence[ImageRef], known: Known) -> tuple[Tensor, Tensor, Tensor]:
        """Return features of the candidates [N, D] and of known images [L, D], with the labels [L] of these."""
        rows, found, reasons = self.features_of(name, [*refs, *known.refs])
        lost = [refs[position].image_id for position in np.flatnonzero(~found[: len(refs)])]
        if lost:
            raise Unreadable([(image_id, reasons.get(image_id, "it has no features")) for image_id in lost])
        # Known images that can no longer be read are left out.
        return rows[: len(refs)], rows[len(refs) :], torch.from_numpy(known.labels[found[len(refs) :]])

    def _feature_job(self, refs: Sequence[ImageRef]) -> FeatureJob:
        return FeatureJob(EngineSettings.of(self.config), tuple(refs), self.tools.project.paths.cache, self.device)

    def announce(self, name: str, n: int, k: int) -> None:
        """Announce the cost of choosing by existing scores, if there are many candidates."""
        # One number per image.
        size = Size(n, 0, k, classes=1, members=1, features=0)
        if n > BIG:
            _log.info("%s", describe_cost(name, size, estimate(name, size)))

    def _check_cost(self, name: str, needs: frozenset[Need], n: int, n_known: int, k: int) -> None:
        n_features = count_features(self._feature_job(())) if Need.FEATURES in needs else 0
        size = Size(n, n_known, k, len(self.config.project.classes), self.config.model.n_members, n_features)
        cost = estimate(name, size)
        n_bytes = cost.n_bytes + own_bytes(needs, size)
        limit = self.config.acquisition.max_ram
        if n_bytes > limit * GIB:
            fitting = int(n * limit * GIB / n_bytes)
            raise PoolError(
                f"{name} would take about {n_bytes / GIB:.1f} GiB for {n:,} candidates, and [acquisition] max_ram "
                f"allows {limit:g}.",
                f"Set [acquisition] max_candidates to {fitting} or fewer, take another strategy (margin needs little), "
                "or allow more with --max-ram.",
            )
        if n > BIG or cost.operations > LONG * OPERATIONS_PER_SECOND:
            _log.info("%s", describe_cost(name, size, Cost(cost.operations, n_bytes)))


def own_bytes(needs: frozenset[Need], size: Size) -> float:
    """Return the memory of the candidates themselves, in float32."""
    per_image = 0
    if Need.CALIBRATED_LOG_PROBS in needs:
        per_image += size.classes
    if Need.MEMBER_LOG_PROBS in needs:
        per_image += size.members * size.classes
    if Need.FEATURES in needs:
        per_image += size.features
    labeled = size.labeled * size.features if Need.FEATURES in needs else 0
    return 4.0 * (size.candidates * per_image + labeled)


def describe_cost(name: str, size: Size, cost: Cost) -> str:
    """Describe the time and memory that choosing will take."""
    seconds = cost.operations / OPERATIONS_PER_SECOND
    time = f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{max(seconds, 1):.0f} s"
    return (
        f"{name} chooses {size.k:,} of {size.candidates:,} candidates: about {time} on one core and "
        f"{cost.n_bytes / GIB:.1f} GiB of memory."
    )
