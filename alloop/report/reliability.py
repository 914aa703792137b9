"""The newest model: whether its probabilities can be trusted, and how it was made."""

import math
from typing import Any

import numpy as np

from alloop.evaluation.metrics import Bins
from alloop.loop.measuring.holdout_file import HoldoutPredictions
from alloop.names import count
from alloop.report.gather import RoundReport, StatusReport
from alloop.report.headlines import Headline, interval_of, next_step
from alloop.report.histogram import Histogram, make_histogram
from alloop.report.shown import Shown

LEFT, BOTTOM, WIDE, HIGH = 44, 296, 360, 280  # of the diagram, in pixels


def gather_model(status: StatusReport, holdout: HoldoutPredictions | None, shown: Shown) -> dict[str, Any]:
    """Return the values of the part."""
    measured = [row for row in status.rounds if row.metrics]
    if not measured:
        head = Headline("No model was measured yet.", next_step(status))
        return {"head": head, "bins": [], "facts": [], "confidences": None}
    row = measured[-1]
    bins = None if holdout is None else shown.reliability(holdout)
    before = None if holdout is None else shown.reliability(holdout, is_calibrated=False)
    return {
        "head": _head(row),
        "bins": [] if bins is None else [_column(bins, at) for at in range(len(bins.count))],
        "before": [] if before is None else [_column(before, at) for at in range(len(before.count))],
        "eces": _eces(row),
        "summary": "Accuracy of the newest model by its confidence on the holdout, after calibration and before it.",
        "ticks": [
            {"x": LEFT + WIDE * part / 4, "y": BOTTOM - HIGH * part / 4, "words": f"{25 * part}"} for part in range(5)
        ],
        "facts": _facts(row, shown),
        "confidences": None if bins is None else _confidences(bins),
    }


def _head(row: RoundReport) -> Headline:
    ece = row.metrics.get("ece")
    if ece is None:
        return Headline(f"{row.model} was measured.", "")
    words = f"Its probabilities are wrong by {100 * ece.value:.1f} points on average."
    return Headline(
        words,
        f"Expected calibration error {interval_of(ece)} %, on {ece.n} images. It is biased upwards when the holdout is "
        "small.",
    )


def _eces(row: RoundReport) -> str:
    """Compare the calibration errors before and after calibration, or say why they cannot be compared."""
    before = row.metrics.get("ece_uncalibrated")
    if before is None:
        return (
            "The probabilities before calibration are not shown: this model was trained before alloop kept them. "
            "The next training keeps them."
        )
    return (
        f"Expected calibration error {interval_of(before)} % before calibration, "
        f"{interval_of(row.metrics.get('ece'))} % after it."
    )


def _column(bins: Bins, at: int) -> dict[str, Any]:
    low, high = float(bins.edges[at]), float(bins.edges[at + 1])
    n, accuracy = int(bins.count[at]), float(bins.accuracy[at])
    height = 0.0 if math.isnan(accuracy) else HIGH * accuracy
    x = LEFT + WIDE * low
    range_ = f"{100 * low:.0f} to {100 * high:.0f}"
    return {
        "x": round(x + 1, 1),
        "width": round(WIDE * (high - low) - 2, 1),
        "middle": round(x + WIDE * (high - low) / 2, 1),
        "y": round(BOTTOM - height, 1),
        "height": round(height, 1),
        "n": n,
        "range": range_,
        "accuracy": f"{100 * accuracy:.1f}",
        "words": f"confidence {range_} %: accuracy {100 * accuracy:.1f} %, {count(n, 'image')}" if n else "no images",
    }


def _confidences(bins: Bins) -> Histogram | None:
    """Return the histogram of confidences: right predictions below, wrong ones above."""
    counts = bins.count.tolist()
    shares = np.nan_to_num(bins.accuracy).tolist()
    right = [round(n * share) for n, share in zip(counts, shares, strict=True)]
    wrong = [n - k for n, k in zip(counts, right, strict=True)]
    return make_histogram((100 * bins.edges).tolist(), right, wrong, "{:.0f}")


def _facts(row: RoundReport, shown: Shown) -> list[tuple[str, str]]:
    facts = [("Name", row.model or ""), ("Labels to train on", str(row.n_labels))]
    facts += [
        (
            metric.title[0].upper() + metric.title[1:],
            interval_of(row.metrics.get(metric.name), metric.factor, metric.digits),
        )
        for metric in shown.metrics
    ]
    facts.append(("Calibration", f"{row.calibration}, fitted to {row.n_calibration} holdout labels"))
    if "nll_uncalibrated" in row.metrics:
        facts.append(("NLL before calibration", interval_of(row.metrics["nll_uncalibrated"], 1, 3)))
        facts.append(("NLL after calibration", interval_of(row.metrics["nll"], 1, 3)))
    if row.calibration_note:
        facts.append(("Note", row.calibration_note))
    return facts
