"""What every query strategy takes and gives: a pure function of these, which knows no rows, files or settings.

    choose(candidates, k, seed) -> Choice

Which strategies there are, and what each one needs to see, stands in `composition.STRATEGIES`; which function belongs
to a name, in `acquisition/registry.py`.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int
from torch import Tensor

from alloop.acquisition.rows import ONE_ROW, RowRule

Positions = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]


@dataclasses.dataclass(frozen=True)
class Candidates:
    """The images that may be asked about now, one of each group of near copies, and what is known already.

    A strategy gets the parts that its rule names; the others may be None. Nothing here may be changed.

    Attributes:
        keys: [N], distinct. Order-free: ties go to the smaller, and random numbers of one image are drawn by its key.
        calibrated_log_probs: Calibrated log p̄ [N, K], float32.
        member_log_probs: Every member's log-probs [M, N, K], uncalibrated, float32.
        features: [N, D], float32, as the trunk gives them; not normalized.
        labeled: Features [L, D] of the training images that are labeled or being asked about.
        labels: Class of each labeled image [L]; -1 where the answer is not there yet.
        head: Features [B, D] to log p̄ [B, K] of the round's model.
        rule: Tells what predictions come to for an image, under the project's task.
    """

    keys: Keys
    calibrated_log_probs: Float[Tensor, "N K"] | None = None
    member_log_probs: Float[Tensor, "M N K"] | None = None
    features: Float[Tensor, "N D"] | None = None
    labeled: Float[Tensor, "L D"] | None = None
    labels: Int[Tensor, "L"] | None = None
    head: Callable[[Float[Tensor, "B D"]], Float[Tensor, "B K"]] | None = None
    rule: RowRule = ONE_ROW

    def __len__(self) -> int:
        return len(self.keys)


@dataclasses.dataclass(frozen=True)
class Choice:
    """A batch, in the order in which it should be asked: exactly min(k, N) distinct positions.

    Attributes:
        positions: [k], rows of the candidates.
        scores: [k], float64, finite; what each was picked for, in the strategy's own scale, higher meaning sooner.
        probabilities: [k]; for strategies that draw: the probability with which each was drawn, given those drawn
            before it. None where nothing was drawn, or the probabilities are not known.
        notes: What the strategy decided by itself and why, a plain sentence each.
    """

    positions: Positions
    scores: npt.NDArray[np.float64]
    probabilities: npt.NDArray[np.float64] | None = None
    notes: tuple[str, ...] = ()


Strategy = Callable[[Candidates, int, int], Choice]


@dataclasses.dataclass(frozen=True, slots=True)
class Size:
    """How big a selection is: N candidates, L labeled, k to choose, K classes, M members, D features."""

    candidates: int
    labeled: int
    k: int
    classes: int
    members: int
    features: int


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """What a selection takes: floating-point operations, and bytes at its peak besides the candidates themselves."""

    operations: float
    n_bytes: float
