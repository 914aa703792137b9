"""Interface of query strategies: pure functions that know no rows, files or settings.

    choose(candidates, k, seed) -> Choice

`composition.STRATEGIES` lists the strategies and their needs; `acquisition/registry.py` finds the function of a name.

A strategy of another package gets `calibrated_log_probs` and `features` of the candidates, and features and labels of
the labeled images. For other parts, set an attribute `needs` of the function, a set of `alloop.composition.Need`. With
`{Need.FEATURES}` alone, the strategy also chooses before there is a model. An attribute `cost`, a function of a `Size`
that returns a `Cost`, lets alloop check the memory first.
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
    """Images that may be asked about, one per group of near copies, and known labels.

    A strategy gets the parts that its rule names; other parts may be None. A strategy must not change them.

    Attributes:
        keys: Distinct keys [N]. Ties go to the smaller key, and random numbers of an image depend on its key.
        calibrated_log_probs: Calibrated log p̄ [N, K], float32.
        member_log_probs: Log-probabilities of every member [M, N, K], uncalibrated, float32.
        features: Features of the trunk [N, D], float32, not normalized.
        labeled: Features [L, D] of the training images that are labeled or being asked about.
        labels: Class of each labeled image [L]; -1 without an answer yet.
        head: Function from features [B, D] to log p̄ [B, K] of the round's model.
        rule: Rule of the project's task, which combines predictions of an image.
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
    """Chosen batch in the order of asking: exactly min(k, N) distinct positions.

    Attributes:
        positions: Rows of the candidates [k].
        scores: Finite scores [k], float64, on the strategy's own scale; higher means ask sooner.
        probabilities: Probability of each draw [k], given the earlier draws. None if nothing was drawn, or if the
            probabilities are not known.
        notes: Automatic decisions of the strategy with reasons, a plain sentence each.
    """

    positions: Positions
    scores: npt.NDArray[np.float64]
    probabilities: npt.NDArray[np.float64] | None = None
    notes: tuple[str, ...] = ()


Strategy = Callable[[Candidates, int, int], Choice]


@dataclasses.dataclass(frozen=True, slots=True)
class Size:
    """Size of a selection: N candidates, L labeled images, k to choose, K classes, M members, D features."""

    candidates: int
    labeled: int
    k: int
    classes: int
    members: int
    features: int


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """Cost of a selection: floating-point operations, and peak bytes besides the candidates themselves."""

    operations: float
    n_bytes: float
