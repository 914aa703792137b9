"""Labels worth a second look: labels that a model which never learned from them finds improbable."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from alloop.loop.measuring.findings import read_last_holdout, read_out_of_fold
from alloop.loop.measuring.holdout_file import HoldoutPredictions
from alloop.names import count
from alloop.project import Project
from alloop.store.annotations import list_classes_by_hash

FEWEST_OF_CLASS = 5  # training labels of a class: with fewer, a fold may have taught hardly any


@dataclasses.dataclass(frozen=True, slots=True)
class SecondLook:
    """Label worth a second look.

    Attributes:
        sha256: Content hash of the image.
        label: Label that people gave.
        predicted: Class that the model expects instead.
        probability: Calibrated probability of the label, in [0, 1].
        reason: Evidence in words.
    """

    sha256: str
    label: str
    predicted: str
    probability: float
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class SecondLooks:
    """Labels worth a second look.

    Attributes:
        found: These labels, the least probable one first.
        n_checked: Number of labels that were checked.
        checked: Which labels were checked and which were not, in words.
    """

    found: tuple[SecondLook, ...]
    n_checked: int
    checked: str


@dataclasses.dataclass(frozen=True, slots=True)
class Evidence:
    """Probabilities of one image in percent, in words; `usual` is the mean over images with the expected label."""

    label: str
    predicted: str
    of_label: str
    of_predicted: str
    usual: str


Words = Callable[[Evidence], str]


def gather_second_looks(session: Session, project: Project) -> SecondLooks:
    """Return the labels worth a second look, of the holdout and of the images to train on."""
    holdout, (learned, why_not) = read_last_holdout(session, project), read_out_of_fold(session, project)
    return find_second_looks(holdout, learned, list_classes_by_hash(session, with_junk=False), why_not)


def find_second_looks(
    holdout: HoldoutPredictions | None, learned: HoldoutPredictions | None, labels: Mapping[str, str], why_not: str
) -> SecondLooks:
    """Return the labels worth a second look, and say how many labels were checked, and why others were not.

    Training labels of classes with fewer than five of them are left out, because a model without a fifth of them hardly
    knows the class.

    Args:
        holdout: Predictions of the newest measured model for the holdout. Each image is calibrated without its own
            label.
        learned: Out-of-fold predictions of the newest model for its training images.
        labels: Present label of each image, by content hash. Images without a label are left out.
        why_not: Reason why there are no out-of-fold predictions, without a full stop; not used if there are some.
    """
    looks, n_checked, parts = list[SecondLook](), 0, list[str]()
    rest = f"Labels to train on are not checked: {why_not}."
    if holdout is not None:
        pairs, _ = _checkable(holdout, labels, 1)
        looks += _find(holdout, pairs, _of_holdout)
        n_checked += len(pairs)
        parts.append(f"{count(len(pairs), 'label')} of the holdout")
    if learned is not None:
        pairs, n_rare = _checkable(learned, labels, FEWEST_OF_CLASS)
        looks += _find(learned, pairs, _of_learned)
        n_checked += len(pairs)
        parts.append(f"{count(len(pairs), 'label')} to train on")
        rare = f"{count(n_rare, 'label')} to train on, because fewer than {FEWEST_OF_CLASS} images have the same label"
        rest = f"Not checked: {rare}." if n_rare else ""
    checked = " ".join(filter(None, [f"Checked: {' and '.join(parts)}." if parts else "", rest]))
    return SecondLooks(tuple(sorted(looks, key=lambda look: look.probability)), n_checked, checked)


def _checkable(
    predictions: HoldoutPredictions, labels: Mapping[str, str], fewest: int
) -> tuple[list[tuple[int, str]], int]:
    """Return (row, label) of the labels that can be checked, and the number of labels that too few images have.

    Labels of classes that the model does not know are neither.
    """
    classes, given = set(predictions.classes), [labels.get(sha256) for sha256 in predictions.sha256s]
    known = [(at, label) for at, label in enumerate(given) if label is not None and label in classes]
    counts = Counter(label for _, label in known)
    kept = [(at, label) for at, label in known if counts[label] >= fewest]
    return kept, len(known) - len(kept)


def _find(predictions: HoldoutPredictions, pairs: Sequence[tuple[int, str]], words: Words) -> list[SecondLook]:
    if predictions.calibrated_log_probs is None:
        return []
    classes = predictions.classes
    place = {name: at for at, name in enumerate(classes)}
    kept = [at for at, _ in pairs]
    probs = np.exp(predictions.calibrated_log_probs[kept].astype(np.float64))
    given = np.array([place[label] for _, label in pairs], dtype=np.int64)
    usual = usual_probabilities(probs, given)
    found = []
    for at, guess in find_doubtful(probs, given, usual):
        label, predicted, of_label = classes[given[at]], classes[guess], float(probs[at, given[at]])
        said = Evidence(label, predicted, _percent(of_label), _percent(probs[at, guess]), _percent(usual[guess]))
        found.append(SecondLook(predictions.sha256s[kept[at]], label, predicted, of_label, words(said)))
    return found


def _of_holdout(one: Evidence) -> str:
    return (
        f"Probability of {one.predicted}: {one.of_predicted}; of the label {one.label}: {one.of_label}. "
        f"Images labeled {one.predicted} have {one.usual} on average."
    )


def _of_learned(one: Evidence) -> str:
    return (
        f"A model that learned from four fifths of the labels, without this one, gives a probability of "
        f"{one.of_predicted} to {one.predicted} and of {one.of_label} to the label {one.label}. "
        f"Images labeled {one.predicted} have {one.usual} on average."
    )


def usual_probabilities(probs: npt.NDArray[np.float64], given: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return for each class the mean probability of this class among images with this label [K]; inf without images.

    Args:
        probs: Probabilities [N, K].
        given: Position of the label's class [N].
    """
    n_classes = probs.shape[1]
    sums = np.bincount(given, weights=probs[np.arange(len(given)), given], minlength=n_classes)
    counts = np.bincount(given, minlength=n_classes)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)


def find_doubtful(
    probs: npt.NDArray[np.float64], given: npt.NDArray[np.int64], usual: npt.NDArray[np.float64]
) -> list[tuple[int, int]]:
    """Return (row, other class) of the labels that the predictions contradict.

    A label is contradicted if another class is more probable than the label, and as probable as this other class
    usually is for images that people gave it. The most probable of such classes counts. Source: Northcutt, Jiang,
    Chuang (2021), Confident Learning, section 3.1; the first condition keeps a class out whose few images are all
    mistaken, so that it is "usually" improbable.

    Args:
        probs: Probabilities [N, K] by a model that did not learn these labels.
        given: Position of the label's class [N].
        usual: Result of `usual_probabilities` [K].
    """
    if not len(given):
        return []
    confident = np.where(probs >= usual, probs, 0.0)
    guess = confident.argmax(axis=1)
    is_more = confident.max(axis=1) > probs[np.arange(len(given)), given]
    return [(int(at), int(guess[at])) for at in np.flatnonzero(is_more & (guess != given))]


def _percent(share: float) -> str:
    if share < 0.001:
        return "less than 0.1 %"
    return f"{100 * share:.1f} %"
