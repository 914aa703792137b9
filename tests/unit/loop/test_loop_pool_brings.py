"""What the unlabeled pool teaches: which images do, how it is measured, and the sentence about it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from factories import CLASSES, NOW, add_pool_image, make_config
from sqlalchemy.orm import Session

from alloop.evaluation.measures import TASKS as MEASURES
from alloop.loop.intake.teaching import list_pool, list_possible_nodes
from alloop.loop.measuring.measure import measure_heads
from alloop.loop.measuring.pool_brings import RAW_HEADS, SMOOTHED_HEADS, find_pool_brings
from alloop.project import Project
from alloop.records import Calibration, Interval, Split
from alloop.report.gather import describe_calibration
from alloop.report.model_card import _structure
from alloop.store.rounds import add_model, add_round, find_last_model, set_metrics
from alloop.store.session import reading, transaction


@pytest.fixture
def project(tmp_path: Path, migrated_sqlite: Path) -> Project:
    """A workspace with an empty database."""
    shutil.copyfile(migrated_sqlite, tmp_path / "alloop.db")
    with Project(tmp_path, make_config(), {}) as found:
        yield found


def _interval(value: float) -> Interval:
    return Interval(value, value - 0.05, value + 0.05, 200, "test")


def _add_model(session: Session, history: dict, weights: tuple[float, float] | None = None) -> int:
    started = add_round(session, 3, {"model": {}}, 0, NOW)
    values = {
        "round_id": started.id, "name": "r3", "path": "runs", "sha256": "3" * 64, "classes": CLASSES,
        "head_classes": [], "label_digest": "0" * 64, "n_labels": 80, "n_holdout": 200, "seed": 3, "config": {},
        "library_versions": {}, "history": history,
    }  # fmt: skip
    calibration = Calibration(1.0, 200, None, None, method="weights", fitted={}, weights=weights)
    return add_model(session, values, calibration, NOW)


def test_the_sentence_gives_all_three_with_intervals_and_the_weights(project):
    on = {"is_on": True, "key": "k", "version": 1, "n_pool": 2000, "n_nodes": 1990}
    with transaction(project.database) as session:
        model_id = _add_model(session, {"pool_features": on}, (0.25, 0.75))
        for split, accuracy, nll in (
            (RAW_HEADS, 0.7, 0.9),
            (SMOOTHED_HEADS, 0.8, 0.6),
            (Split.HOLDOUT.value, 0.81, 0.5),
        ):
            set_metrics(session, model_id, split, {"accuracy": _interval(accuracy), "nll": _interval(nll)}, NOW)

    with reading(project.database) as session:
        found = find_pool_brings(session)

    assert found.says == (
        "The model also sees features that are averaged over similar images of the pool (1,990 different ones), "
        "without their labels. Holdout accuracy: 70.0 % [65.0, 75.0], NLL 0.900 [0.850, 0.950] without these features "
        "(raw heads); 80.0 % [75.0, 85.0], NLL 0.600 [0.550, 0.650] with these features only (smoothed heads); 81.0 % "
        "[76.0, 86.0], NLL 0.500 [0.450, 0.550] with both, as the model predicts. The weights are 0.25 (raw) and 0.75 "
        "(smoothed)."
    )
    assert (found.round_number, found.weights) == (3, (0.25, 0.75))


def test_a_holdout_without_labels_leaves_the_numbers_out(project):
    on = {"is_on": True, "key": "k", "version": 1, "n_pool": 2000, "n_nodes": 1990}
    with transaction(project.database) as session:
        _add_model(session, {"pool_features": on}, (0.0, 0.83))
    with reading(project.database) as session:
        found = find_pool_brings(session)
    assert found.accuracy == found.nll == {}
    assert "accuracy" not in found.says


def test_the_sentence_says_why_nothing_is_taught(project):
    with transaction(project.database) as session:
        _add_model(session, {"pool_features": {"is_on": False, "reason": "the trunk has random weights"}})
    with reading(project.database) as session:
        assert find_pool_brings(session).says == (
            "The model does not see features that are averaged over similar images of the pool: the trunk has random "
            "weights."
        )


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        (2, "In the epoch that is kept, the network was sure of 71 % of those shown."),
        (0, "No epoch was better than the untrained trunk, which is kept."),
    ],
)
@pytest.mark.parametrize("is_ensemble", [False, True])
def test_the_sentence_about_fine_tuning_says_how_many_images_taught(project, kept, says, is_ensemble):
    epochs = [{"loss": 1.0, "sure": 0.4}, {"loss": 0.5, "sure": 0.712}]
    tuned = {"n_unlabeled": 4700, "best_epoch": kept, "epochs": epochs}
    about = {"pool_features": {"is_on": False, "reason": "a trunk that is trained"}}
    with transaction(project.database) as session:
        _add_model(session, about | ({"networks": [tuned, {}]} if is_ensemble else tuned))

    with reading(project.database) as session:
        found = find_pool_brings(session)

    assert found.says == (
        "Fine-tuning also learns from 4,700 images without a label; each epoch shows as many of them as training "
        f"labels. {says}"
    )


@pytest.mark.parametrize("n_unlabeled", [4700, 0])
def test_the_model_card_says_that_fine_tuning_learned_from_unlabeled_images(project, n_unlabeled):
    config = make_config(model={"mode": "finetune"}).model_dump()
    about = {"pool_features": {"is_on": False, "reason": "a trunk that is trained"}}
    with transaction(project.database) as session:
        _add_model(session, about | {"n_unlabeled": n_unlabeled, "best_epoch": 1, "epochs": [{"loss": 1, "sure": 0.4}]})

    with reading(project.database) as session:
        model = find_last_model(session)
        said = _structure(session, model, config, is_distilled=False)

    assert ("from 4,700 images without a label" in said) is (n_unlabeled > 0)
    assert "averaged" not in said


def test_models_of_an_older_alloop_say_nothing(project):
    with reading(project.database) as session:
        assert find_pool_brings(session) is None
    with transaction(project.database) as session:
        _add_model(session, {"mode": "frozen"})
    with reading(project.database) as session:
        assert find_pool_brings(session) is None


def test_each_kind_of_heads_is_measured_at_its_own_temperature():
    generator = np.random.default_rng(0)
    truth = generator.integers(3, size=600)
    logits = generator.normal(size=(600, 2, 3))
    logits[np.arange(600), :, truth] += [1.0, 2.0]
    logits[:, 0] *= 5  # raw heads that are far too sure
    both = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    measured = measure_heads(both, truth, MEASURES["classification"], 0, is_test=False)
    as_is = measure_heads(both, truth, MEASURES["classification"], 0, is_test=True)

    for position, name in enumerate((RAW_HEADS, SMOOTHED_HEADS)):
        right = (both[:, position].argmax(axis=1) == truth).mean()
        assert measured[name]["accuracy"].value == as_is[name]["accuracy"].value == pytest.approx(right)
        assert as_is[name]["nll"].value == pytest.approx(-both[np.arange(600), position, truth].mean(), abs=1e-6)
    assert measured[RAW_HEADS]["nll"].value < 0.7 * as_is[RAW_HEADS]["nll"].value


def test_every_image_but_those_of_a_test_set_teaches_near_copies_once(project):
    with transaction(project.database) as session:
        splits = [Split.HOLDOUT, Split.HOLDOUT, *[Split.TRAIN] * 2]
        ids = [add_pool_image(session, number, split=split) for number, split in enumerate(splits)]
        ids += [add_pool_image(session, 4, group=ids[3]), add_pool_image(session, 5)]
    with_test = make_config(evaluation={"test": "test.csv"})
    with reading(project.database) as session:
        drawn = {ref.image_id for ref in list_pool(session, project.config)}
        named = {ref.image_id for ref in list_pool(session, with_test)}
        taught = make_config(model={"mode": "finetune"}, train={"unlabeled": "on"})
        tuned = {ref.image_id for ref in list_pool(session, taught)}
        both = (list_pool, list_possible_nodes)
        assert all(listed(session, make_config(model={"pool_features": "off"})) == [] for listed in both)
        assert list_possible_nodes(session, make_config(model={"mode": "finetune"})) == []
        assert list_pool(session, make_config(model={"mode": "finetune"})) == []

    assert len(drawn) == 5
    assert len(drawn & {ids[3], ids[4]}) == 1
    assert named == drawn - {ids[0], ids[1]}
    assert tuned == drawn


@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        (Calibration(0.8, 200, None, None), "temperature T = 0.800"),
        (Calibration(1.0, 0, None, None, method="none"), "no calibrator"),
        (
            Calibration(1.0, 200, None, None, method="weights", weights=(0.25, 0.7)),
            "weights 0.25 (raw heads) and 0.70 (smoothed heads)",
        ),
        (
            Calibration(1.0, 200, None, None, method="platt", weights=(0.25, 0.7)),
            "weights 0.25 (raw heads) and 0.70 (smoothed heads), then platt",
        ),
    ],
)
def test_a_calibrator_is_described_in_words(calibration, words):
    assert describe_calibration(calibration) == words
