"""Post-hoc calibrators: fitted numbers that correct log-probabilities.

All are fitted to held-out predictions of a network in eval mode, in float64 on the CPU.
"""

import dataclasses
import hashlib
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

RAW, SMOOTHED = 0, 1  # positions on the axis of two predictions: by raw heads, and by smoothed heads
LOWEST_LOG = -1e6  # log-probability in place of log 0; keeps every result finite


class Calibrator(Protocol):
    """Frozen dataclass of plain numbers and tuples, so that `dataclasses.asdict` is its JSON."""

    name: ClassVar[str]

    def apply(self, log_probs: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """Return calibrated log-probabilities, float64 on the CPU, finite; each row sums to 1."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Unchanged:
    """No calibration."""

    name: ClassVar[str] = "none"

    def apply(self, log_probs: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """Return the log-probabilities, with log 0 replaced by a finite number."""
        return prepare(log_probs)


@dataclasses.dataclass(frozen=True)
class FittedCalibrator:
    """Calibrator with its evidence. NLLs are in nats per image, on the images it was fitted to.

    Attributes:
        calibrator: Fitted calibrator.
        n: Number of images.
        class_counts: Number of images of each class [K].
        data_sha256: Digest of the predictions and labels it was fitted to.
        nll_before, nll_after: Mean NLL; None without images. `cross_fit` gives numbers out of sample.
        accuracy_before, accuracy_after: Accuracy; it differs only for calibrators that may change the top class.
        note: Reason for another calibrator than the requested one, or for an automatic choice; may be empty.
    """

    calibrator: Calibrator
    n: int
    class_counts: tuple[int, ...]
    data_sha256: str
    nll_before: float | None
    nll_after: float | None
    accuracy_before: float | None
    accuracy_after: float | None
    note: str = ""


def describe(
    calibrator: Calibrator, log_probs: Float[Tensor, "N *two K"], targets: Int[Tensor, "N"], note: str = ""
) -> FittedCalibrator:
    """Return a calibrator with its evidence on the data it was fitted to."""
    before, after = prepare(plain(log_probs)), calibrator.apply(log_probs)
    n, n_classes = before.shape
    labels = targets.detach().cpu().long()
    return FittedCalibrator(
        calibrator=calibrator,
        n=n,
        class_counts=tuple(torch.bincount(labels, minlength=n_classes).tolist()),
        data_sha256=_digest(before, labels),
        nll_before=float(nll_per_image(before, labels).mean()) if n else None,
        nll_after=float(nll_per_image(after, labels).mean()) if n else None,
        accuracy_before=_accuracy(before, labels) if n else None,
        accuracy_after=_accuracy(after, labels) if n else None,
        note=note,
    )


def is_double(log_probs: Tensor) -> bool:
    """Return whether these are predictions [N, 2, K] of raw and smoothed heads, and not [N, K] of one kind of heads."""
    return log_probs.ndim == 3


def plain(log_probs: Float[Tensor, "N *two K"]) -> Float[Tensor, "N K"]:
    """Return the prediction before calibration: of two predictions, that of the smoothed heads."""
    return log_probs[:, SMOOTHED] if is_double(log_probs) else log_probs


def prepare(log_probs: Float[Tensor, "N *two K"]) -> Float[Tensor, "N *two K"]:
    """Convert log-probabilities to float64 on the CPU, normalized and finite.

    Rows are [N, K], or [N, 2, K] of a model with two kinds of heads (`calibration.weighing`).

    Raises:
        ValueError: There are fewer than two classes, or a row holds nan or +inf, or all of a row is -inf.
    """
    wide = log_probs.detach().cpu().double()
    if wide.ndim not in (2, 3) or wide.shape[-1] < 2:
        raise ValueError(f"need log-probabilities [N, K] of at least 2 classes, got {list(wide.shape)}")
    bad = torch.isnan(wide).any(dim=-1) | (wide == torch.inf).any(dim=-1) | (wide == -torch.inf).all(dim=-1)
    bad = bad.flatten(1).any(dim=1) if bad.ndim > 1 else bad
    if bool(bad.any()):
        raise ValueError(f"the prediction of row {int(bad.nonzero()[0])} is not finite ({int(bad.sum())} such rows)")
    return wide.log_softmax(dim=-1).clamp_min(LOWEST_LOG)


def check_targets(log_probs: Float[Tensor, "N K"], targets: Int[Tensor, "N"]) -> Int[Tensor, "N"]:
    """Return class positions on the CPU after checking them.

    Raises:
        ValueError: Targets are soft, their number is wrong, or a class does not exist.
    """
    labels = targets.detach().cpu()
    n, n_classes = log_probs.shape[0], log_probs.shape[-1]
    if labels.is_floating_point() or labels.shape != (n,):
        raise ValueError(f"need {n} class positions, got {labels.dtype} {list(labels.shape)}")
    outside = (labels < 0) | (labels >= n_classes)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise ValueError(f"the label of row {row} is {int(labels[row])}, but there are {n_classes} classes")
    return labels.long()


def normalize_probs(probs: np.ndarray[Any, Any], fallback: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Divide rows [N, K] by their sum. Rows that sum to 0 are taken from `fallback`."""
    total = probs.sum(axis=1, keepdims=True)
    return np.asarray(np.where(total > 0, probs / np.where(total > 0, total, 1.0), fallback))


def nll_per_image(log_probs: Float[Tensor, "N K"], targets: Int[Tensor, "N"]) -> Float[Tensor, "N"]:
    """Return -log p of the true class [N], in nats."""
    return -log_probs.gather(1, targets.unsqueeze(1)).squeeze(1)


def _accuracy(log_probs: Tensor, targets: Tensor) -> float:
    return float((log_probs.argmax(dim=1) == targets).double().mean())


def _digest(log_probs: Tensor, targets: Tensor) -> str:
    digest = hashlib.sha256(str(tuple(log_probs.shape)).encode())
    digest.update(log_probs.contiguous().numpy().tobytes())
    digest.update(targets.contiguous().numpy().tobytes())
    return digest.hexdigest()
