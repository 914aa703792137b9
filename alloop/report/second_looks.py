"""Labels worth a second look: labels of the holdout that the model, which never learned from them, finds improbable."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from alloop.loop.measuring.holdout_file import HoldoutPredictions


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


def find_second_looks(holdout: HoldoutPredictions, labels: Mapping[str, str]) -> tuple[SecondLook, ...]:
    """Return the labels worth a second look, the least probable label first.

    Only labels of the holdout are looked at. The model has learned the others, so its agreement with them says little.

    Args:
        holdout: Predictions of the newest measured model. Each image is calibrated without its own label.
        labels: Present label of each image, by content hash. Images without a label are left out.
    """
    if holdout.calibrated_log_probs is None:
        return ()
    place = {name: at for at, name in enumerate(holdout.classes)}
    kept = [at for at, sha256 in enumerate(holdout.sha256s) if labels.get(sha256) in place]
    probs = np.exp(holdout.calibrated_log_probs[kept].astype(np.float64))
    given = np.array([place[labels[holdout.sha256s[at]]] for at in kept], dtype=np.int64)
    usual = usual_probabilities(probs, given)
    doubtful = find_doubtful(probs, given, usual)
    rows = sorted(doubtful, key=lambda pair: float(probs[pair[0], given[pair[0]]]))
    return tuple(
        _second_look(holdout.sha256s[kept[at]], probs[at], int(given[at]), guess, usual[guess], holdout.classes)
        for at, guess in rows
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


def _second_look(
    sha256: str, probs: npt.NDArray[np.float64], given: int, guess: int, usual: float, classes: Sequence[str]
) -> SecondLook:
    label, predicted = classes[given], classes[guess]
    reason = (
        f"Probability of {predicted}: {_percent(probs[guess])}; of the label {label}: {_percent(probs[given])}. "
        f"Images labeled {predicted} have {_percent(usual)} on average."
    )
    return SecondLook(sha256, label, predicted, float(probs[given]), reason)


def _percent(share: float) -> str:
    if share < 0.001:
        return "less than 0.1 %"
    return f"{100 * share:.1f} %"
