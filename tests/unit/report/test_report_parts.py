"""Numbers of the parts that the pages and the report share: people and mistakes."""

import numpy as np

from alloop.loop.measuring.holdout_file import HoldoutPredictions
from alloop.report.mistakes import gather_mistakes
from alloop.report.people import agreements


def test_agreement_counts_pairs_with_other_people():
    labels = [
        (1, "ann", "cat"),
        (1, "ben", "cat"),
        (1, "eve", "dog"),
        (2, "ann", "dog"),
        (3, "ann", "cat"),
        (3, "ann", "dog"),
    ]

    assert agreements(labels) == {"ann": (1, 2), "ben": (1, 2), "eve": (0, 2)}


def test_the_matrix_counts_true_classes_in_rows():
    holdout = HoldoutPredictions(
        sha256s=("a", "b", "c", "d", "e"),
        targets=("cat", "cat", "cat", "dog", "dog"),
        predicted=("cat", "dog", "dog", "dog", "cat"),
        grown=np.zeros(5, dtype=bool),
        classes=("cat", "dog"),
        calibrated_log_probs=np.log(np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7], [0.7, 0.3]], np.float32)),
    )

    found = gather_mistakes(holdout)

    assert [[cell.n for cell in row.cells] for row in found.matrix] == [[1, 2], [1, 1]]
    assert found.head.says == "cat is taken for dog more often than anything else is confused."
    assert "2 of the 3 holdout images of cat" in found.head.rests_on
    assert found.sure == ("c", "e", "b")
    assert [(row.name, row.n) for row in found.worst] == [("cat", 3), ("dog", 2)]
    assert found.matrix[0].cells[1].words == "cat predicted as dog: 2 of 3, 66.7 (20.8–93.9) %"
