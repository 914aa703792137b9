"""Rows of a prediction, and what their scores come to for an image."""

import math

import pytest
import torch
from torch import Tensor

from alloop.acquisition import uncertainty
from alloop.acquisition.rows import ONE_ROW, TASKS, Rows, image_scores
from alloop.acquisition.scores import SCORES
from alloop.composition import CLASSIFICATION

MEMBERS = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0)).log_softmax(dim=-1)


class RowForEachClass:
    """Rule of a task that asks of every class whether the image has it; the prediction holds log p of the yes."""

    def rows(self, log_probs: Tensor) -> Rows:
        n_members, n, n_classes = log_probs.shape
        both = torch.stack([torch.log1p(-log_probs.exp()), log_probs], dim=-1)
        owner = torch.arange(n).repeat_interleave(n_classes)
        return Rows(both.reshape(n_members, n * n_classes, 2), owner, n)

    def add_up(self, values: Tensor, rows: Rows) -> Tensor:
        return torch.zeros(rows.n_images).index_add(0, rows.owner, values)


@pytest.mark.parametrize("name", SCORES)
def test_a_classification_has_one_row_for_each_image_and_the_same_scores_bit_for_bit(name: str):
    assert TASKS[CLASSIFICATION] is ONE_ROW
    assert torch.equal(image_scores(ONE_ROW, SCORES[name].function, MEMBERS), SCORES[name].function(MEMBERS))


def test_an_image_is_as_uncertain_as_its_rows_together():
    log_probs = torch.tensor([[[0.5, 0.5], [0.5, 1e-9]]]).log()

    scores = image_scores(RowForEachClass(), uncertainty.predictive_entropy, log_probs)

    assert scores.tolist() == pytest.approx([2 * math.log(2), math.log(2)], abs=1e-6)


def test_a_single_class_that_is_there_or_not_is_a_question_of_two_classes():
    yes = MEMBERS[:, :, :1]
    two_classes = torch.cat([torch.log1p(-yes.exp()), yes], dim=-1)

    scores = image_scores(RowForEachClass(), uncertainty.mutual_information, yes)

    assert torch.equal(scores, uncertainty.mutual_information(two_classes))


def test_certainty_and_the_share_of_the_highest_entropy_lie_between_0_and_1():
    calibrated = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]]).log()

    share = ONE_ROW.share_of_highest(calibrated)

    assert share.tolist() == pytest.approx([1.0, 0.0])
    assert ONE_ROW.certainty(torch.tensor([math.log(4), 0.0]), 4).tolist() == pytest.approx([0.0, 1.0])
    assert ONE_ROW.mass(calibrated).flatten().tolist() == pytest.approx([0.25] * 4 + [1.0, 0.0, 0.0, 0.0])


def test_sharpened_predictions_are_powers_that_sum_to_1():
    # 0.8² and 0.2² are 16 and 1 parts of 17.
    calibrated = torch.tensor([[0.8, 0.2, 0.0], [0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]).log()

    squared = ONE_ROW.sharpen(calibrated, 2.0)

    assert squared.exp().flatten().tolist() == pytest.approx([16 / 17, 1 / 17, 0, 4 / 6, 1 / 6, 1 / 6, 1, 0, 0])
    torch.testing.assert_close(ONE_ROW.sharpen(calibrated, 1.0), calibrated)
