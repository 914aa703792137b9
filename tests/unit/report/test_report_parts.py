"""Numbers of the parts that the pages and the report share: people and mistakes."""

import datetime as dt

import numpy as np

from alloop.loop.measuring.holdout_file import HoldoutPredictions
from alloop.records import Answer, Outcome
from alloop.report.mistakes import MOST_CLASSES, gather_mistakes
from alloop.report.people import _days, agreements, with_consensus


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


def test_agreement_with_the_label_counts_images_of_several_people():
    labels = [
        (1, "ann", "cat"),
        (1, "ben", "cat"),
        (1, "eve", "dog"),
        (2, "ann", "dog"),
        (3, "ann", "cat"),
        (3, "eve", "dog"),
    ]

    assert with_consensus(labels, {1: "cat", 2: "dog"}) == {"ann": (1, 1), "ben": (1, 1), "eve": (0, 1)}


def test_a_days_bar_is_made_of_the_answers_of_each_person():
    monday, tuesday = (dt.datetime(2026, 1, day, 12, tzinfo=dt.UTC) for day in (5, 6))
    answers = [
        Answer(str(at), who, Outcome.LABEL, "cat", when)
        for at, (who, when) in enumerate([("ben", monday), ("ann", monday), ("ann", tuesday), *[("ben", tuesday)] * 3])
    ]

    days = _days(answers)

    assert [(day.name, day.n) for day in days] == [("2026-01-06", 4), ("2026-01-05", 2)]
    assert [(piece.words, piece.tone, piece.start, piece.width) for piece in days[0].pieces] == [
        ("ben 3", 1, 0.0, 75.0),
        ("ann 1", 2, 75.0, 25.0),
    ]
    assert [piece.width for piece in days[1].pieces] == [25.0, 25.0]


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
    assert found.head.says == "The most frequent mistake: cat is predicted as dog."
    assert "2 of 3 holdout images of cat" in found.head.rests_on
    assert found.sure == ("c", "e", "b")
    assert [(row.name, row.n) for row in found.worst] == [("cat", 3), ("dog", 2)]
    assert found.matrix[0].cells[1].words == "cat predicted as dog: 2 of 3, 66.7 (20.8–93.9) %"
    assert [(one.true, one.predicted, one.n, one.share) for one in found.confusions] == [
        ("cat", "dog", 2, "67 (21–94)"),
        ("dog", "cat", 1, "50 (9–91)"),
    ]
    assert (found.classes, found.left_out) == (("cat", "dog"), 0)


def test_one_mistake_of_a_kind_is_too_few_to_name_the_classes():
    holdout = HoldoutPredictions(
        sha256s=("a", "b"),
        targets=("cat", "dog"),
        predicted=("cat", "cat"),
        grown=np.zeros(2, dtype=bool),
        classes=("cat", "dog"),
        calibrated_log_probs=np.log(np.array([[0.9, 0.1], [0.7, 0.3]], np.float32)),
    )

    head = gather_mistakes(holdout).head

    assert head.says == "No class is taken for another one more than once."
    assert head.rests_on == "The model is wrong on 1 of 2 holdout images."


def test_of_many_classes_the_matrix_shows_those_with_the_most_mistakes():
    names = tuple(f"{number:02d}" for number in range(MOST_CLASSES + 5))
    holdout = HoldoutPredictions(
        sha256s=tuple(f"x{name}" for name in names),
        targets=names,
        predicted=(*names[:-2], names[-1], names[-2]),
        grown=np.zeros(len(names), dtype=bool),
        classes=names,
        calibrated_log_probs=None,
    )

    found = gather_mistakes(holdout)

    assert (len(found.matrix), found.left_out) == (MOST_CLASSES, 5)
    assert found.classes == (*names[: MOST_CLASSES - 2], *names[-2:])
    assert [cell.n for cell in found.matrix[-1].cells[-2:]] == [1, 0]
