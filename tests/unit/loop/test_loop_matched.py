"""Matched arms: which labels are in which arm, what is said, and a whole comparison on a toy project."""

from pathlib import Path

import numpy as np
import pytest
from factories import fake_sha256, make_config, make_project

from alloop.engine.jobs import TrainJob
from alloop.evaluation.matched import Matched
from alloop.loop.matched import compare_arms, describe, find_arms, without
from alloop.loop.runner import RunOptions, run
from alloop.records import ImageRef, Interval, Reason
from alloop.store.session import reading
from alloop.store.workspace import list_last_events

RANDOM, ACQUIRED, SEED = Reason.RANDOM, Reason.ACQUIRED, Reason.SEED


def test_arms_share_the_seed_batch_and_take_equally_many_of_their_own_in_the_order_asked():
    # Image 9 was imported, 5 has no label any more.
    reasons = {1: SEED, 2: SEED, 8: ACQUIRED, 3: RANDOM, 7: ACQUIRED, 5: RANDOM, 4: RANDOM, 6: ACQUIRED}
    image_ids = [1, 2, 3, 4, 6, 7, 8, 9]

    arms = find_arms(image_ids, reasons)

    def ids(positions: tuple[int, ...]) -> list[int]:
        return [image_ids[at] for at in positions]

    assert ids(arms.shared) == [1, 2, 9]
    assert ids(arms.random) == [3, 4]
    assert ids(arms.acquired) == [8, 7]
    assert arms.own == 2


def job(tmp_path: Path, **changes: object) -> TrainJob:
    refs = tuple(ImageRef(number, fake_sha256(number), "") for number in range(6))
    config = make_config(**changes)
    return TrainJob(config, ("cat", "dog"), refs, (0, 1) * 3, refs[:4], (0, 1, 0, 1), 0, tmp_path, tmp_path / "out")


def test_too_few_labels_and_fine_tuning_are_skipped_with_the_reason(tmp_path: Path):
    few = compare_arms(job(tmp_path), None, {1: RANDOM, 2: ACQUIRED})  # type: ignore[arg-type]
    tuned = compare_arms(job(tmp_path, model={"mode": "finetune"}), None, {})  # type: ignore[arg-type]

    assert few["skipped"]
    assert "1 random labels and 1 acquired ones so far; 20 of each are needed" in few["says"]
    assert "fine-tuning" in tuned["says"]


def test_images_drawn_later_are_left_out_of_the_holdout(tmp_path: Path):
    kept = without(job(tmp_path), {1, 2})

    assert [ref.image_id for ref in kept.holdout] == [0, 3]
    assert kept.holdout_targets == (0, 1)


@pytest.mark.parametrize(
    ("value", "low", "high", "says"),
    [
        (0.013, 0.004, 0.021, "Active learning helped here: +1.3 pp [0.4, 2.1] over random at 800 labels."),
        (
            -0.02,
            -0.03,
            -0.01,
            "Random is doing better here: −2.0 pp [−3.0, −1.0] over random at 800 labels; "
            'consider strategy = "random".',
        ),
        (
            0.004,
            -0.01,
            0.018,
            "No evidence yet that active learning helps here: +0.4 pp [−1.0, 1.8] over random at 800 labels; "
            "350 more random labels would tell a gain of 1.0 pp.",
        ),
    ],
)
def test_the_result_is_one_sentence(value: float, low: float, high: float, says: str):
    gain = Interval(value, low, high, 400, "matched arms 95%")

    assert describe(Matched(gain, 800, 300, 1e-4, 1e-4, 350, 0.01)) == says


def test_a_project_is_told_whether_asking_helped_and_a_setting_turns_that_off(tmp_path: Path):
    """Holdout 20, seed batch 12, then batches of 24, half of them at random: 24 labels of each arm in round 3."""
    changes = {
        "loop": {"batch_size": 24, "max_rounds": 3},
        "acquisition": {"random_fraction": 0.5},
        "evaluation": {"holdout_size": 20, "holdout_share": 0.4},
    }
    compared = make_project(tmp_path, n=120, **changes)
    plain = make_project(
        tmp_path, n=120, name="plain", **changes | {"evaluation": {**changes["evaluation"], "matched_arm": False}}
    )

    for project in (compared, plain):
        run(project, RunOptions(rounds=None))

    with reading(compared.database) as session:
        events = list_last_events(session, "matched arms")
    with reading(plain.database) as session:
        assert list_last_events(session, "matched arms") == {}
    assert [events[number]["skipped"] for number in (1, 2, 3)] == [True, True, False]
    last = events[3]
    assert (last["own"], last["labels"], last["gain"]["n"]) == (24, 24 + 24, 20)
    assert last["says"].startswith(("No evidence yet", "Active learning helped", "Random is doing better"))
    # The arms change nothing about the round: both workspaces have the same models.
    for number in (1, 2, 3):
        models = [(p.folder / f"runs/round-000{number}/model/model.json").read_bytes() for p in (compared, plain)]
        assert models[0] == models[1]
    assert np.isfinite(last["seconds"])
