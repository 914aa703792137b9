"""Accuracy, NLL and Brier score of predictions, and the bins of calibration errors. Plain arrays, float64.

Two kinds of input with two names: `probs` are probabilities [N, K] whose rows sum to 1, `log_probs` their logarithms.
Labels are class positions [N]. `evaluation.intervals` has the calibration errors.

Source of all definitions and bin conventions: docs/methods.md section 8.
"""

import dataclasses

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Labels = npt.NDArray[np.integer]

N_BINS = 15


@dataclasses.dataclass(frozen=True, slots=True)
class Bins:
    """Numbers of a reliability diagram, one entry per bin; nan for empty bins.

    Attributes:
        edges: Edges of the bins [n_bins + 1].
        count: Number of images in the bin.
        confidence, accuracy: Mean confidence and accuracy in the bin.
    """

    edges: Array
    count: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]


def accuracy(probs: Array, labels: Labels) -> float:
    """Return the share of images whose top class is the label. Ties go to the lowest position."""
    return float(np.mean(probs.argmax(axis=1) == labels)) if len(labels) else float("nan")


def nll_per_image(log_probs: Array, labels: Labels) -> npt.NDArray[np.float64]:
    """-log p of the true class [N], nats; inf where its probability was 0 (docs/methods.md section 8.3)."""
    picked: npt.NDArray[np.float64] = -np.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0].astype(np.float64)
    return picked


def brier_per_image(probs: Array, labels: Labels) -> npt.NDArray[np.float64]:
    """Σ_k (p_k - [k = y])² of each image [N], in [0, 2]; the binary version is half. Source: Brier (1950)."""
    wide = probs.astype(np.float64)
    at_label = np.take_along_axis(wide, labels[:, None], axis=1)[:, 0]
    return np.asarray((wide**2).sum(axis=1) - 2 * at_label + 1)


def confidence_bins(probs: Array, labels: Labels, n_bins: int = N_BINS) -> Bins:
    """Put images into bins of equal width by their confidence r; bin b holds e_b < r <= e_(b+1), the first also 0."""
    return _fill(np.linspace(0, 1, n_bins + 1), top_confidence(probs), probs.argmax(axis=1) == labels)


def top_confidence(probs: Array) -> npt.NDArray[np.float64]:
    """Return the probability of the top class [N] in float64, since float32 0.2 lies above the float64 edge 0.2."""
    return np.asarray(probs.max(axis=1, initial=0), dtype=np.float64)


def bin_positions(values: Array, edges: Array) -> npt.NDArray[np.int64]:
    """Return the right-closed bin of each value. The lowest edge belongs to the first bin."""
    return np.clip(np.searchsorted(edges, values, side="left") - 1, 0, len(edges) - 2).astype(np.int64)


def _fill(edges: Array, confidence: Array, correct: npt.NDArray[np.bool_]) -> Bins:
    positions = bin_positions(confidence, edges)
    n_bins = len(edges) - 1
    count = np.bincount(positions, minlength=n_bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 is nan, since an empty bin has no mean
        mean_confidence = np.bincount(positions, confidence, n_bins) / count
        mean_accuracy = np.bincount(positions, correct.astype(np.float64), n_bins) / count
    return Bins(edges, count.astype(np.int64), mean_confidence, mean_accuracy)
