from typing import Any

import numpy as np
import pytest

from alloop.loop.measuring.holdout_file import HoldoutPredictions
from alloop.report.second_looks import SecondLook, find_second_looks

CLASSES = ("cat", "dog")


def holdout_of(*cat: float) -> HoldoutPredictions:
    """Return predictions with these probabilities of "cat"; the hashes are "0", "1", …"""
    probs = np.array([[share, 1 - share] for share in cat], dtype=np.float32).reshape(-1, 2)
    names = tuple(str(at) for at in range(len(cat)))
    guesses = tuple(CLASSES[at] for at in probs.argmax(axis=1))
    return HoldoutPredictions(names, guesses, guesses, np.zeros(len(cat), dtype=bool), CLASSES, np.log(probs))


def found_in(
    holdout: HoldoutPredictions | None, learned: HoldoutPredictions | None, labels: dict[str, str]
) -> tuple[SecondLook, ...]:
    return find_second_looks(holdout, learned, labels, "").found


def test_a_label_is_doubtful_if_another_class_is_as_probable_as_it_usually_is():
    # Images labeled cat get (0.9 + 0.7 + 0.04) / 3 = 54.7 % cat, images labeled dog (0.8 + 0.95) / 2 = 87.5 % dog.
    holdout = holdout_of(0.9, 0.7, 0.04, 0.2, 0.05)

    found = found_in(holdout, None, {"0": "cat", "1": "cat", "2": "cat", "3": "dog", "4": "dog"})

    assert [(one.sha256, one.label, one.predicted) for one in found] == [("2", "cat", "dog")]
    assert found[0].probability == pytest.approx(0.04)
    assert found[0].reason == (
        "Probability of dog: 96.0 %; of the label cat: 4.0 %. Images labeled dog have 87.5 % on average."
    )


def test_a_mistake_of_an_unsure_model_is_no_reason_to_doubt_the_label():
    holdout = holdout_of(0.99, 0.97, 0.45, 0.02, 0.03)

    assert found_in(holdout, None, {"0": "cat", "1": "cat", "2": "cat", "3": "dog", "4": "dog"}) == ()


def test_a_class_that_is_never_recognized_contradicts_no_label_that_is_more_probable():
    holdout = holdout_of(0.9, 0.8, 0.97)  # the only dog gets 3 % dog, less than the cats do

    found = found_in(holdout, None, {"0": "cat", "1": "cat", "2": "dog"})

    assert [(one.sha256, one.label, one.predicted) for one in found] == [("2", "dog", "cat")]


def test_the_present_label_counts_and_the_least_probable_one_comes_first():
    holdout = holdout_of(0.9, 0.9, 0.05, 0.02, 0.1)
    labels = {"0": "cat", "1": "cat", "2": "cat", "3": "cat", "4": "dog"}

    assert [one.sha256 for one in found_in(holdout, None, labels)] == ["3", "2"]
    assert found_in(holdout, None, labels | {"3": "dog", "2": "dog"}) == ()


def test_images_without_a_label_or_with_an_unknown_class_are_left_out():
    assert found_in(holdout_of(0.9, 0.1), None, {"0": "bird"}) == ()
    assert found_in(holdout_of(), None, {}) == ()


def test_a_training_label_says_that_four_fifths_of_the_labels_taught_the_model():
    cats = {str(at): "cat" for at in range(6)}
    dogs = {str(at): "dog" for at in range(6, 11)}

    found = found_in(None, holdout_of(0.03, *[0.9] * 5, *[0.1] * 5), cats | dogs)

    assert [(one.sha256, one.predicted) for one in found] == [("0", "dog")]
    assert found[0].reason.startswith(
        "A model that learned from four fifths of the labels, without this one, gives a probability of 97.0 % to dog "
        "and of 3.0 % to the label cat."
    )


def test_a_class_with_fewer_than_five_training_labels_is_not_doubted():
    few = {**{str(at): "cat" for at in range(4)}, **{str(at): "dog" for at in range(4, 10)}}

    predictions = holdout_of(0.03, *[0.9] * 3, *[0.1] * 6)
    assert found_in(None, predictions, few) == ()
    assert len(found_in(predictions, None, few)) == 1


def test_only_the_labels_that_were_checked_are_counted():
    labels = {**{str(at): "cat" for at in range(4)}, **{str(at): "dog" for at in range(4, 10)}}
    predictions = holdout_of(*[0.9] * 4, *[0.1] * 8)  # the last two images have lost their labels

    assert find_second_looks(predictions, predictions, labels, "").checked == (
        "Checked: 10 labels of the holdout and 6 labels to train on. "
        "Not checked: 4 labels to train on, because fewer than 5 images have the same label."
    )
    assert find_second_looks(None, None, labels, "there is no model yet").checked == (
        "Labels to train on are not checked: there is no model yet."
    )


class _Counted(dict[str, str]):
    """Labels that count how often somebody asks for one."""

    n_asked = 0

    def get(self, *wanted: Any) -> Any:
        self.n_asked += 1
        return super().get(*wanted)


def test_the_labels_of_a_file_are_gone_through_once():
    labels = _Counted({**{str(at): "cat" for at in range(4)}, **{str(at): "dog" for at in range(4, 10)}})
    predictions = holdout_of(*[0.9] * 4, *[0.1] * 6)

    find_second_looks(predictions, predictions, labels, "")

    assert labels.n_asked == 20
