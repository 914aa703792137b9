"""Findings from recorded rounds, without training: files beside models, drawn answers, sentences."""

import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from factories import CLASSES, NOW, add_pool_image, fake_sha256, make_config, make_query
from sqlalchemy.orm import Session

from alloop.engine.targets import ClassificationCoding
from alloop.loop.measuring.findings import drawn_risk, gather_evidence, gather_findings
from alloop.loop.measuring.holdout_file import read_holdout, write_holdout
from alloop.project import Project
from alloop.records import (
    Answer,
    Calibration,
    Consensus,
    Ending,
    ImageRef,
    Outcome,
    QueryStatus,
    Reason,
    RoundState,
    Split,
)
from alloop.report.gather import describe_measured, describe_people
from alloop.store.annotations import AnnotationRecord, add_annotations, set_labels
from alloop.store.images import count_pool
from alloop.store.queries import add_queries, list_queries, set_status
from alloop.store.rounds import add_model, add_round, set_closed, set_matched, set_metrics, set_state
from alloop.store.session import transaction

MODEL = "5" * 64


@pytest.fixture
def project(tmp_path: Path, migrated_sqlite: Path) -> Project:
    """A workspace with an empty database."""
    shutil.copyfile(migrated_sqlite, tmp_path / "alloop.db")
    with Project(tmp_path, make_config(loop={"batch_size": 40}), {}) as found:
        yield found


def rows(right: int, n: int) -> tuple[np.ndarray, list[int]]:
    """Log-probabilities that are right about the first of n images, and their targets."""
    targets = [number % 2 for number in range(n)]
    said = [target if number < right else 1 - target for number, target in enumerate(targets)]
    return np.log(np.where(np.arange(2) == np.array(said)[:, None], 0.9, 0.1)), targets


def write(path: Path, right: int, n: int = 100, *, first: int = 0, model: str = MODEL, grown: int = 0) -> None:
    log_probs, targets = rows(right, n)
    refs = [ImageRef(number, fake_sha256(number), "") for number in range(first, first + n)]
    marks = [number >= n - grown for number in range(n)]
    write_holdout(path, refs, targets, marks, log_probs, ClassificationCoding(CLASSES), model)


def add_measured(session: Session, project: Project, number: int, n_labels: int, right: int, **changes: int) -> None:
    """A closed round whose model is right about so many of the 100 holdout images."""
    from alloop.evaluation.intervals import wilson

    started = add_round(session, number, {"model": {}}, 0, NOW)
    values = {
        "round_id": started.id, "name": f"r{number}", "path": "runs", "sha256": f"{number}" * 64, "classes": CLASSES,
        "head_classes": [], "label_digest": "0" * 64, "n_labels": n_labels, "n_holdout": 100, "seed": 3, "config": {},
        "library_versions": {}, "history": {},
    }  # fmt: skip
    model_id = add_model(session, values, Calibration(1.0, 100, None, None), NOW)
    set_metrics(session, model_id, Split.HOLDOUT.value, {"accuracy": wilson(right, 100)}, NOW)
    set_state(session, started.id, RoundState.CREATED, RoundState.CLOSED)
    write(project.paths.holdout(number), right, model=f"{number}" * 64, **changes)


def test_what_is_written_is_read_and_another_models_file_is_none(tmp_path: Path):
    path = tmp_path / "runs" / "holdout.parquet"
    write(path, right=7, n=10, grown=2)

    found = read_holdout(path, MODEL, whole=True)

    assert found is not None
    assert found.sha256s == tuple(fake_sha256(number) for number in range(10))
    assert found.correct.tolist() == [True] * 7 + [False] * 3
    assert found.grown.tolist() == [False] * 8 + [True] * 2
    assert found.targets == CLASSES * 5
    assert found.calibrated_log_probs == pytest.approx(rows(7, 10)[0], abs=1e-6)
    assert read_holdout(path, "6" * 64) is None
    assert read_holdout(tmp_path / "nothing", MODEL) is None
    path.write_bytes(path.read_bytes()[:-20])
    assert read_holdout(path, MODEL) is None


def test_a_file_with_a_changed_byte_in_any_column_is_not_read(tmp_path: Path):
    path = tmp_path / "holdout.parquet"
    write(path, right=70)
    whole = path.read_bytes()
    with pq.ParquetFile(path) as file:
        columns = [file.metadata.row_group(0).column(at) for at in range(1, file.metadata.num_columns)]

    for column in columns:
        data = bytearray(whole)
        first = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
        data[first + column.total_compressed_size - 1] ^= 1
        path.write_bytes(data)
        assert read_holdout(path, MODEL, whole=True) is None, column.path_in_schema
    path.write_bytes(whole)
    assert read_holdout(path, MODEL, whole=True) is not None


def test_predictions_before_calibration_are_read_if_the_file_has_them(tmp_path: Path):
    log_probs, targets = rows(7, 10)
    refs = [ImageRef(number, fake_sha256(number), "") for number in range(10)]
    path, coding = tmp_path / "holdout.parquet", ClassificationCoding(CLASSES)

    write_holdout(path, refs, targets, [False] * 10, log_probs, coding, MODEL, 2 * log_probs)
    new = read_holdout(path, MODEL, whole=True)
    write_holdout(path, refs, targets, [False] * 10, log_probs, coding, MODEL)
    old = read_holdout(path, MODEL, whole=True)

    assert new.plain_log_probs == pytest.approx(2 * log_probs, abs=1e-6)
    assert new.calibrated_log_probs == pytest.approx(log_probs, abs=1e-6)
    assert old.plain_log_probs is None and old.calibrated_log_probs is not None


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (60, 90, "Better than round 1: yes (+30.0 pp ["),
        (90, 60, "Better than round 1: no (−30.0 pp ["),
        (90, 91, "Better than round 1: cannot tell (+1.0 pp ["),
    ],
)
def test_two_rounds_are_compared_on_the_images_of_both(project: Project, before: int, after: int, says: str):
    with transaction(project.database) as session:
        add_measured(session, project, 1, 50, before)
        add_measured(session, project, 2, 90, after)

        better = gather_findings(session, project, count_pool(session)).better

    assert better is not None
    assert better.says.startswith(says)
    assert better.says.endswith(", 100 images).")
    assert f": {better.verdict} (" in better.says


def test_images_drawn_later_and_images_of_one_round_only_are_left_out_of_the_comparison(project: Project):
    with transaction(project.database) as session:
        add_measured(session, project, 1, 50, 60)
        add_measured(session, project, 2, 90, 60, first=20, grown=30)

        better = gather_findings(session, project, count_pool(session)).better

    assert better is not None
    assert better.comparison is not None
    # Images 0 to 99 and 20 to 119, of which 90 to 119 were drawn later: 20 to 89 are left.
    assert better.comparison.gain.n == 70


def test_without_the_files_nobody_can_tell(project: Project):
    with transaction(project.database) as session:
        add_measured(session, project, 1, 50, 60)
        add_measured(session, project, 2, 90, 60)
        project.paths.holdout(1).unlink()

        better = gather_findings(session, project, count_pool(session)).better

    assert better is not None
    assert (better.verdict, better.comparison) == ("cannot tell", None)


def test_one_more_round_is_priced_by_what_answers_took(project: Project):
    with transaction(project.database) as session:
        for number, right in ((1, 60), (2, 75), (3, 80), (4, 83)):
            add_measured(session, project, number, 40 * number, right)
        for number, seconds in enumerate((4.0, 9.0, 200.0)):
            image_id = add_pool_image(session, number)
            said = Answer(str(number), "ada", Outcome.LABEL, "cat", NOW, seconds)
            answer = AnnotationRecord(image_id, None, "s", 1, said)
            add_annotations(session, [answer], NOW)

        outlook = gather_findings(session, project, count_pool(session)).outlook

    assert outlook is not None
    # 40 images at a median of 9 s are 360 s.
    assert outlook.hours == pytest.approx(0.1)
    assert outlook.gain is not None
    assert outlook.doubling is not None
    assert 0 < outlook.gain.value < outlook.doubling.value
    assert outlook.says.startswith("One more round of 40: about +")
    assert outlook.says.endswith("about 6 annotator minutes (median 9 s a label).")


def test_the_curve_is_only_fitted_for_a_rule_that_asks_for_it(project: Project):
    with transaction(project.database) as session:
        for number in (1, 2, 3):
            add_measured(session, project, number, 40 * number, 60 + 5 * number)

        assert gather_evidence(session, project, 5).doubling is None
        asked = Project(project.folder, make_config(loop={"stop_when_flat": True}), {})
        assert gather_evidence(session, asked, 5).doubling is not None
        assert gather_evidence(session, asked, 5).n_askable == 5


def add_batch(session: Session, n: int, pool: int, right: int, *, labeled: int | None = None) -> None:
    """A closed round of n uniform draws from a pool, answered; the model was right about the first ones."""
    started = add_round(session, 1, {}, 0, NOW)
    ids = [add_pool_image(session, number) for number in range(n)]
    picks = [
        make_query(
            image_id,
            rank=number + 1,
            reason=Reason.RANDOM,
            predicted="cat",
            probability=n / pool,  # of being among them, as the share of a batch records it
            draw_number=number + 1,
            draw_pool=pool,
        )
        for number, image_id in enumerate(ids)
    ]
    add_queries(session, started.id, picks, "k", NOW)
    for query in list_queries(session):
        set_status(session, query.id, QueryStatus.ANSWERED, NOW)
    known = ids if labeled is None else ids[:labeled]
    labels = {image: Consensus("cat" if at < right else "dog", 1.0, 1) for at, image in enumerate(known)}
    set_labels(session, labels, NOW)
    set_state(session, started.id, RoundState.CREATED, RoundState.CLOSED)


def test_answers_drawn_with_known_probability_measure_the_rest_of_the_pool(project: Project):
    with transaction(project.database) as session:
        add_batch(session, n=60, pool=600, right=45)

        unbiased = gather_findings(session, project, count_pool(session)).unbiased

    assert unbiased is not None
    assert unbiased.accuracy is not None
    assert unbiased.accuracy.value == pytest.approx(0.75)
    assert unbiased.accuracy.low < 0.75 < unbiased.accuracy.high
    assert unbiased.says.startswith("Accuracy of round 1's model on the 600 images it drew from: 75.0 % [")
    assert unbiased.says.endswith("(LURE, 60 answers, effective sample size 60).")


def test_images_that_a_strategy_drew_count_by_the_probability_of_being_drawn_next(project: Project):
    """Two uniform draws from five, then one by score: v_3 = 1 + 2/2 * (1 / (3 * 0.8) - 1)."""
    with transaction(project.database) as session:
        add_batch(session, n=2, pool=5, right=2)
        image_id = add_pool_image(session, 10)
        third = make_query(
            image_id, rank=3, reason=Reason.ACQUIRED, predicted="cat", probability=0.8, draw_number=3, draw_pool=5
        )
        add_queries(session, 1, [third], "k", NOW)
        set_status(session, list_queries(session)[-1].id, QueryStatus.ANSWERED, NOW)
        queries = list_queries(session)

    risk = drawn_risk(queries, {query.image_id: "cat" for query in queries})

    assert risk is not None
    third_weight = 1 / 2.4
    assert risk.effective == pytest.approx((2 + third_weight) ** 2 / (2 + third_weight**2))


def test_a_drawn_question_that_was_skipped_stays_without_an_answer_however_its_image_is_labeled_later(
    project: Project,
):
    with transaction(project.database) as session:
        add_batch(session, n=60, pool=600, right=45)
        for query in list_queries(session)[45:]:  # all images that the model was wrong about, two of them by hand again
            set_status(session, query.id, QueryStatus.SKIPPED, NOW)
        again = [make_query(query.image_id, reason=Reason.MANUAL) for query in list_queries(session)[45:47]]
        add_queries(session, add_round(session, 2, {}, 0, NOW).id, again, "h", NOW)
        for query in list_queries(session)[60:]:
            set_status(session, query.id, QueryStatus.ANSWERED, NOW)

        unbiased = gather_findings(session, project, count_pool(session)).unbiased

    assert unbiased is not None
    assert (unbiased.drawn, unbiased.answered) == (60, 45)


def test_too_few_drawn_answers_give_no_number_and_say_so(project: Project):
    with transaction(project.database) as session:
        add_batch(session, n=60, pool=600, right=45, labeled=40)

        unbiased = gather_findings(session, project, count_pool(session)).unbiased

    assert unbiased is not None
    assert unbiased.accuracy is None
    assert unbiased.says == (
        "No accuracy from round 1's own answers: its 40 of 60 drawn answers have an effective sample size of 40.0, and "
        "at least 50 is needed."
    )


def test_draws_that_are_not_all_known_give_no_risk(project: Project):
    with transaction(project.database) as session:
        add_batch(session, n=60, pool=600, right=45)
        queries = list_queries(session)

    assert drawn_risk(queries, {}) is not None
    assert drawn_risk(queries[1:], {}) is None  # the first draw is missing
    assert drawn_risk([], {}) is None
    nothing = drawn_risk(queries, {})
    assert nothing is not None
    assert (nothing.answered, nothing.interval, math.isfinite(nothing.effective)) == (0, None, True)


def test_the_last_matched_arms_are_shown_with_their_round(project: Project):
    with transaction(project.database) as session:
        assert gather_findings(session, project, count_pool(session)).matched is None
        for number in (1, 2):
            started = add_round(session, number, {"model": {}}, 0, NOW)
            set_state(session, started.id, RoundState.CREATED, RoundState.CLOSED)
            set_matched(session, started.id, {"skipped": True, "says": f"said {number}"})
        add_round(session, 3, {"model": {}}, 0, NOW)  # compared nothing yet

        matched = gather_findings(session, project, count_pool(session)).matched

    assert matched == {"round": 2, "skipped": True, "says": "said 2"}


@pytest.mark.parametrize(("ending", "standing"), [(Ending.POOL_EXHAUSTED, "holds"), (Ending.BY_HAND, "does not hold")])
def test_a_pool_is_exhausted_by_the_reason_of_the_last_round_and_not_by_its_sentence(
    project: Project, ending: Ending, standing: str
):
    with transaction(project.database) as session:
        add_pool_image(session, 1)
        started = add_round(session, 1, {"model": {}}, 0, NOW)
        set_state(session, started.id, RoundState.CREATED, RoundState.CLOSED)
        set_closed(session, started.id, ending, "I thought the pool exhausted", NOW)

        rules = {rule.name: rule.standing for rule in gather_findings(session, project, count_pool(session)).rules}

    assert rules["pool exhausted"] == standing


def test_people_who_disagree_about_the_holdout_are_counted(project: Project):
    with transaction(project.database) as session:
        ids = [add_pool_image(session, number, split=Split.HOLDOUT) for number in range(4)]
        other = add_pool_image(session, 9)
        labels = (
            Consensus("cat", 1.0, 1),
            Consensus("cat", 2 / 3, 3),
            Consensus("dog", 1.0, 2),
            Consensus("cat", 0.5, 2),
        )
        set_labels(session, dict(zip((*ids[:3], other), labels, strict=True)), NOW)

        assert gather_findings(session, project, count_pool(session)).disputed == (1, 2)


def test_a_test_set_is_not_called_a_holdout(project: Project):
    tested = Project(project.folder, make_config(evaluation={"test": "test.csv"}), {})
    with transaction(project.database) as session:
        pool = count_pool(session)
        ours, theirs = (gather_findings(session, one, pool) for one in (project, tested))

    assert describe_measured(ours).startswith("on the labeled images of the holdout")
    assert describe_people(ours) == (
        "Accuracy is agreement with people's answers, so disagreement among people lowers it."
    )
    assert describe_measured(theirs) == "on the images of the test set, to which nothing was fitted"
    assert describe_people(theirs).startswith("Accuracy is agreement with the labels of the test set")
