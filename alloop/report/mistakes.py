"""Mistakes on the holdout: the confusion matrix, the worst classes, the most confident mistakes."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from alloop.evaluation.intervals import wilson
from alloop.loop.measuring.holdout_file import HoldoutPredictions
from alloop.report.headlines import Headline, count, interval_of

N_SURE = 12  # most confident mistakes
SHADES = (0.001, 0.1, 0.25, 0.5)  # shares of a row from which a mistake is shaded darker


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """Cell of the matrix: number of images, and the same in words."""

    n: int
    is_right: bool
    shade: int
    words: str


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """Row of the matrix: images of one true class."""

    name: str
    cells: tuple[Cell, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class ClassRow:
    """Class with its recall and precision in words."""

    name: str
    recall: str
    precision: str
    n: int


@dataclasses.dataclass(frozen=True, slots=True)
class Mistakes:
    """Content of the part. `sure` are hashes of images, the most confident mistake first."""

    head: Headline
    matrix: tuple[Row, ...]
    worst: tuple[ClassRow, ...]
    sure: tuple[str, ...]


def gather_mistakes(holdout: HoldoutPredictions) -> Mistakes:
    """Count what is confused with what, on all labeled holdout images."""
    counts = count_pairs(holdout.targets, holdout.predicted, holdout.classes)
    return Mistakes(
        head=_head(counts, holdout.classes),
        matrix=tuple(_row(at, counts, holdout.classes) for at in range(len(holdout.classes))),
        worst=_worst(counts, holdout.classes),
        sure=_sure(holdout),
    )


def count_pairs(targets: Sequence[str], predicted: Sequence[str], classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the confusion matrix [K, K]: rows are true classes, columns are predictions."""
    place = {name: at for at, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for target, guess in zip(targets, predicted, strict=True):
        if target in place and guess in place:
            counts[place[target], place[guess]] += 1
    return counts


def _head(counts: npt.NDArray[np.int64], classes: Sequence[str]) -> Headline:
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    n = int(counts.sum())
    if not wrong.any():
        return Headline("The model makes no mistake on the holdout.", f"{count(n, 'image')} with a label.")
    true, guess = divmod(int(wrong.argmax()), len(classes))
    k, of = int(wrong[true, guess]), int(counts[true].sum())
    share = interval_of(wilson(k, of), digits=0)
    return Headline(
        f"{classes[true]} is taken for {classes[guess]} more often than anything else is confused.",
        f"This happened to {k} of the {count(of, 'holdout image')} of {classes[true]}: {share} %. "
        "Click a number for its images.",
    )


def _row(at: int, counts: npt.NDArray[np.int64], classes: Sequence[str]) -> Row:
    total = int(counts[at].sum())
    cells = []
    for column, name in enumerate(classes):
        n, is_right = int(counts[at, column]), at == column
        share = n / total if total else 0.0
        shade = min(1, n) if is_right else sum(share >= bound for bound in SHADES)
        words = f"{classes[at]} predicted as {name}: {n} of {total}"
        if total:
            words += f", {interval_of(wilson(n, total))} %"
        cells.append(Cell(n, is_right, shade, words))
    return Row(classes[at], tuple(cells))


def _worst(counts: npt.NDArray[np.int64], classes: Sequence[str]) -> tuple[ClassRow, ...]:
    true, said, right = counts.sum(axis=1), counts.sum(axis=0), counts.diagonal()
    recall = np.where(true > 0, right / np.maximum(true, 1), np.inf)
    return tuple(
        ClassRow(
            classes[at],
            interval_of(wilson(int(right[at]), int(true[at])), digits=0) if true[at] else "–",
            interval_of(wilson(int(right[at]), int(said[at])), digits=0) if said[at] else "–",
            int(true[at]),
        )
        for at in np.argsort(recall, kind="stable")
    )


def _sure(holdout: HoldoutPredictions) -> tuple[str, ...]:
    if holdout.calibrated_log_probs is None:
        return ()
    wrong = np.flatnonzero(~holdout.correct)
    order = np.argsort(-holdout.calibrated_log_probs[wrong].max(axis=1), kind="stable")
    return tuple(holdout.sha256s[at] for at in wrong[order][:N_SURE])
