"""Predictions and metrics of a classification in words."""

import math

import pytest
import torch

from alloop.acquisition.rows import ONE_ROW
from alloop.composition import CLASSIFICATION
from alloop.evaluation.measures import TASKS as MEASURES
from alloop.report.shown import TASKS

SHOWN = TASKS[CLASSIFICATION]


def test_a_prediction_names_every_class_with_its_probability():
    assert SHOWN.prediction({"dog": 0.75, "cat": 0.25}) == [("dog", "75.0%"), ("cat", "25.0%")]


@pytest.mark.parametrize("entropy", [0.0, 0.5, math.log(4)])
def test_a_certainty_leads_back_to_its_entropy(entropy: float):
    certainty = ONE_ROW.certainty(torch.tensor([entropy], dtype=torch.float64), 4).item()

    assert SHOWN.entropy(certainty, 4) == pytest.approx(entropy)


def test_the_first_column_is_the_primary_metric():
    assert SHOWN.metrics[0].name == MEASURES[CLASSIFICATION].primary
