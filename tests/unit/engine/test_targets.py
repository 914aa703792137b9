"""Labels, targets and predictions of a classification, in the order of the model's classes."""

import numpy as np
import pytest

from alloop.composition import CLASSIFICATION
from alloop.engine.targets import TASKS, encode_known

CODING = TASKS[CLASSIFICATION](("cat", "dog", "eel"))


def test_a_target_is_the_position_of_the_class_and_leads_back_to_it():
    targets = encode_known(CODING, ["eel", "cat", "eel"])

    assert targets == (2, 0, 2)
    assert [CODING.decode(target) for target in targets] == ["eel", "cat", "eel"]
    assert CODING.array(targets).dtype == np.int64
    assert CODING.array(()).shape == (0,)


def test_a_label_that_the_model_does_not_have_has_no_target():
    assert CODING.encode("cow") is None
    assert [CODING.is_target(target) for target in (-1, 0, 2, 3)] == [False, True, True, False]
    with pytest.raises(ValueError, match="'cow' is not a label of this model"):
        encode_known(CODING, ["cat", "cow"])


def test_a_guess_is_the_most_probable_class_and_the_first_of_equal_ones():
    log_probs = np.log([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4]])

    assert CODING.guess(log_probs).tolist() == ["dog", "cat"]


@pytest.mark.parametrize(("targets", "found"), [((), "there are none"), ((1, 1), "there are 2 of dog")])
def test_labels_of_one_class_are_too_few_to_train_on(targets: tuple[int, ...], found: str):
    assert found in CODING.shortage(targets)
    assert CODING.shortage((0, 1)) == ""
