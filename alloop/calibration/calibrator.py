"""What every post-hoc calibrator is: fitted numbers that turn log-probabilities into better ones.

All are fitted on held-out predictions of a network in eval mode, in float64 on the CPU.
"""

import dataclasses
import hashlib
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

LOWEST_LOG = -1e6  # what a probability of exactly 0 counts as; keeps every result finite


class Calibrator(Protocol):
    """A frozen dataclass of plain numbers and tuples, so that `dataclasses.asdict` is its JSON."""

    name: ClassVar[str]

    def apply(self, log_probs: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """Calibrated log-probabilities, float64, on the CPU: finite, rows summing to 1."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Unchanged:
    """No calibration."""

    name: ClassVar[str] = "none"

    def apply(self, log_probs: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """The same distribution, with probabilities of exactly 0 made finite."""
        return prepare(log_probs)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A calibrator and the evidence for it; NLLs are in nats per image, on the images it was fitted to.

    Attributes:
        calibrator: What to apply.
        n: Images.
        class_counts: Of each class; K numbers.
        data_sha256: Digest of the predictions and labels it was fitted to.
        nll_before, nll_after: None without images. For numbers out of sample see `cross_fit`.
        accuracy_before, accuracy_after: They differ only where the top class may change.
        note: Why it is not what was asked for, or how it was chosen; empty when there is nothing to say.
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
    calibrator: Calibrator, log_probs: Float[Tensor, "N K"], targets: Int[Tensor, "N"], note: str = ""
) -> Fitted:
    """The evidence for a calibrator on the data it was fitted to."""
    before, after = prepare(log_probs), calibrator.apply(log_probs)
    n, n_classes = before.shape
    labels = targets.detach().cpu().long()
    return Fitted(
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


def prepare(log_probs: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """Log-probabilities in float64 on the CPU, normalized, with -inf made finite.

    Raises:
        ValueError: Fewer than two classes; a row that holds nan or +inf, or no probability at all.
    """
    wide = log_probs.detach().cpu().double()
    if wide.ndim != 2 or wide.shape[1] < 2:
        raise ValueError(f"need log-probabilities [N, K] of at least 2 classes, got {list(wide.shape)}")
    bad = torch.isnan(wide).any(dim=1) | (wide == torch.inf).any(dim=1) | (wide == -torch.inf).all(dim=1)
    if bool(bad.any()):
        raise ValueError(f"the prediction of row {int(bad.nonzero()[0])} is not finite ({int(bad.sum())} such rows)")
    return wide.log_softmax(dim=-1).clamp_min(LOWEST_LOG)


def check_targets(log_probs: Float[Tensor, "N K"], targets: Int[Tensor, "N"]) -> Int[Tensor, "N"]:
    """Class positions on the CPU.

    Raises:
        ValueError: Soft targets, another number of them, or a class that does not exist.
    """
    labels = targets.detach().cpu()
    n, n_classes = log_probs.shape
    if labels.is_floating_point() or labels.shape != (n,):
        raise ValueError(f"need {n} class positions, got {labels.dtype} {list(labels.shape)}")
    outside = (labels < 0) | (labels >= n_classes)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise ValueError(f"the label of row {row} is {int(labels[row])}, but there are {n_classes} classes")
    return labels.long()


def normalize_probs(probs: np.ndarray[Any, Any], fallback: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rows [N, K] divided by their sum; rows that sum to 0 are taken from `fallback`."""
    total = probs.sum(axis=1, keepdims=True)
    return np.asarray(np.where(total > 0, probs / np.where(total > 0, total, 1.0), fallback))


def nll_per_image(log_probs: Float[Tensor, "N K"], targets: Int[Tensor, "N"]) -> Float[Tensor, "N"]:
    """-log p of the true class, nats."""
    return -log_probs.gather(1, targets.unsqueeze(1)).squeeze(1)


def _accuracy(log_probs: Tensor, targets: Tensor) -> float:
    return float((log_probs.argmax(dim=1) == targets).double().mean())


def _digest(log_probs: Tensor, targets: Tensor) -> str:
    digest = hashlib.sha256(str(tuple(log_probs.shape)).encode())
    digest.update(log_probs.contiguous().numpy().tobytes())
    digest.update(targets.contiguous().numpy().tobytes())
    return digest.hexdigest()
