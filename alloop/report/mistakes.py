"""Mistakes on the holdout: the confusion matrix, the worst classes, the most confident mistakes."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from alloop.evaluation.intervals import wilson
from alloop.loop.measuring.holdout_file import HoldoutPredictions
from alloop.names import count
from alloop.report.headlines import Headline, interval_of

N_SURE = 12  # most confident mistakes
MOST_CLASSES = 20  # rows and columns of the matrix
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
class Confusion:
    """Class that is taken for another one: number and share of its images, in words."""

    true: str
    predicted: str
    n: int
    share: str


@dataclasses.dataclass(frozen=True, slots=True)
class Mistakes:
    """Content of the part.

    Attributes:
        classes: Classes of the matrix: all, or those with the most mistakes.
        left_out: Number of classes that are not in the matrix.
        confusions: All pairs of classes that are confused, the most frequent first.
        sure: Hashes of images, the most confident mistake first.
    """

    head: Headline
    classes: tuple[str, ...]
    left_out: int
    matrix: tuple[Row, ...]
    confusions: tuple[Confusion, ...]
    worst: tuple[ClassRow, ...]
    sure: tuple[str, ...]


def gather_mistakes(holdout: HoldoutPredictions) -> Mistakes:
    """Count what is confused with what, on all labeled holdout images."""
    counts = count_pairs(holdout.targets, holdout.predicted, holdout.classes)
    shown = _with_most_mistakes(counts)
    return Mistakes(
        head=_head(counts, holdout.classes),
        classes=tuple(holdout.classes[at] for at in shown),
        left_out=len(holdout.classes) - len(shown),
        matrix=tuple(_row(at, counts, holdout.classes, shown) for at in shown),
        confusions=_confusions(counts, holdout.classes),
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
        rests = f"It is right on all {n} images with a label" if n else "No image of it has a label"
        most = f"; of other images, up to {100 * wilson(0, n).high:.0f} % may be wrong (95 % interval)" if n else ""
        return Headline("The model makes no mistake on the holdout.", f"{rests}{most}.")
    true, guess = divmod(int(wrong.argmax()), len(classes))
    k, of = int(wrong[true, guess]), int(counts[true].sum())
    if k == 1:
        rests = f"The model is wrong on {int(wrong.sum())} of {count(n, 'holdout image')}."
        return Headline("No class is taken for another one more than once.", rests)
    share = interval_of(wilson(k, of), digits=0)
    return Headline(
        f"The most frequent mistake: {classes[true]} is predicted as {classes[guess]}.",
        f"This happened to {k} of {count(of, 'holdout image')} of {classes[true]}: {share} %.",
    )


def _with_most_mistakes(counts: npt.NDArray[np.int64]) -> list[int]:
    """Return the positions of the classes that the matrix shows, in the order of the classes."""
    right = counts.diagonal()
    mistakes = counts.sum(axis=0) + counts.sum(axis=1) - 2 * right
    return sorted(np.argsort(-mistakes, kind="stable")[:MOST_CLASSES].tolist())


def _confusions(counts: npt.NDArray[np.int64], classes: Sequence[str]) -> tuple[Confusion, ...]:
    pairs = [(int(true), int(guess)) for true, guess in zip(*counts.nonzero(), strict=True) if true != guess]
    totals = counts.sum(axis=1)
    return tuple(
        Confusion(classes[true], classes[guess], int(counts[true, guess]), _share(counts[true, guess], totals[true]))
        for true, guess in sorted(pairs, key=lambda pair: -int(counts[pair]))
    )


def _share(n: int, of: int) -> str:
    return interval_of(wilson(int(n), int(of)), digits=0)


def _row(at: int, counts: npt.NDArray[np.int64], classes: Sequence[str], shown: Sequence[int]) -> Row:
    total = int(counts[at].sum())
    cells = []
    for column in shown:
        name = classes[column]
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
            _share(right[at], true[at]) if true[at] else "–",
            _share(right[at], said[at]) if said[at] else "–",
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
