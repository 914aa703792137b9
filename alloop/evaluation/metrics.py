"""Metrics of predictions: accuracy, NLL, Brier score, calibration errors. Plain arrays, float64.

Two kinds of input with two names: `probs` are probabilities [N, K] whose rows sum to 1, `log_probs` their logarithms.
Labels are class positions [N]. Without images every measure is nan.

Source of all definitions and bin conventions: docs/methods.md section 8.
"""

import dataclasses

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Labels = npt.NDArray[np.integer]

N_BINS = 15


@dataclasses.dataclass(frozen=True, slots=True)
class Metrics:
    """Metrics of predictions on n labeled images.

    Attributes:
        accuracy: Accuracy in [0, 1].
        nll: Mean NLL in nats; inf if a true class had probability 0.
        brier: Mean Brier score in [0, 2].
        ece, mce: Expected and greatest calibration error over 15 bins of equal width, in [0, 1].
        n: Images.
    """

    accuracy: float
    nll: float
    brier: float
    ece: float
    mce: float
    n: int


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

    @property
    def ece(self) -> float:
        """Expected calibration error Σ_b n_b / N * |accuracy_b - confidence_b|."""
        total = self.count.sum()
        return float(np.nansum(self.count * self.gaps) / total) if total else float("nan")

    @property
    def mce(self) -> float:
        """Greatest gap of a non-empty bin."""
        return float(np.nanmax(self.gaps)) if self.count.any() else float("nan")

    @property
    def gaps(self) -> npt.NDArray[np.float64]:
        return np.abs(self.accuracy - self.confidence)


def measure(log_probs: Array, labels: Labels) -> Metrics:
    """Compute all of `Metrics`."""
    probs = np.exp(log_probs.astype(np.float64))
    bins = confidence_bins(probs, labels)
    return Metrics(
        accuracy=accuracy(probs, labels),
        nll=nll(log_probs, labels),
        brier=brier(probs, labels),
        ece=bins.ece,
        mce=bins.mce,
        n=len(labels),
    )


def accuracy(probs: Array, labels: Labels) -> float:
    """Return the share of images whose top class is the label. Ties go to the lowest position."""
    return float(np.mean(probs.argmax(axis=1) == labels)) if len(labels) else float("nan")


def nll_per_image(log_probs: Array, labels: Labels) -> npt.NDArray[np.float64]:
    """Return -log p of the true class [N], in nats; inf for a probability of 0."""
    picked: npt.NDArray[np.float64] = -np.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0].astype(np.float64)
    return picked


def nll(log_probs: Array, labels: Labels) -> float:
    """Return the mean negative log-likelihood in nats. A sure mistake makes it inf (docs/methods.md section 8.3)."""
    return float(nll_per_image(log_probs, labels).mean()) if len(labels) else float("nan")


def brier(probs: Array, labels: Labels) -> float:
    """Return the mean of Σ_k (p_k - [k = y])², in [0, 2]; the half-scale version is half. Source: Brier (1950)."""
    return float(brier_per_image(probs, labels).mean()) if len(labels) else float("nan")


def brier_per_image(probs: Array, labels: Labels) -> npt.NDArray[np.float64]:
    """Return Σ_k (p_k - [k = y])² of each image [N]."""
    wide = probs.astype(np.float64)
    at_label = np.take_along_axis(wide, labels[:, None], axis=1)[:, 0]
    return np.asarray((wide**2).sum(axis=1) - 2 * at_label + 1)


def ece(probs: Array, labels: Labels, n_bins: int = N_BINS) -> float:
    """Return the expected calibration error of the top class, in [0, 1]. Sources: Naeini (2015), Guo (2017)."""
    return confidence_bins(probs, labels, n_bins).ece


def mce(probs: Array, labels: Labels, n_bins: int = N_BINS) -> float:
    """Return the greatest calibration error of a bin, in [0, 1]. Source: Naeini et al. (2015)."""
    return confidence_bins(probs, labels, n_bins).mce


def confidence_bins(probs: Array, labels: Labels, n_bins: int = N_BINS) -> Bins:
    """Put images into bins of equal width by their confidence r; bin b holds e_b < r <= e_(b+1), the first also 0."""
    return _fill(np.linspace(0, 1, n_bins + 1), top_confidence(probs), probs.argmax(axis=1) == labels)


def adaptive_ece(probs: Array, labels: Labels, n_bins: int = N_BINS) -> float:
    """Return the ECE over right-closed bins with equally many images, by interpolated quantiles of the confidence.

    Equal quantiles are merged; the lowest confidence belongs to the first bin. Source: docs/methods.md section 8.2.
    """
    if not len(labels):
        return float("nan")
    confidence = top_confidence(probs)
    edges = np.unique(np.quantile(confidence, np.linspace(0, 1, n_bins + 1)))
    if len(edges) == 1:
        edges = np.repeat(edges, 2)
    return _fill(edges, confidence, probs.argmax(axis=1) == labels).ece


def classwise_ece(probs: Array, labels: Labels, n_bins: int = N_BINS) -> float:
    """Return the mean over all K classes of the ECE of p_k against [y = k]. Compare it only at equal K.

    Source: docs/methods.md section 8.2.
    """
    if not len(labels):
        return float("nan")
    edges = np.linspace(0, 1, n_bins + 1)
    columns = probs.astype(np.float64).T
    return float(np.mean([_fill(edges, column, labels == k).ece for k, column in enumerate(columns)]))


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
