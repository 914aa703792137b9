"""Matched arms: which labels are in which arm, what is said, and a whole comparison on a toy project."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from factories import fake_sha256, make_config, make_project, tools_of

from alloop.engine.jobs import TrainJob, TrainResult
from alloop.engine.settings import EngineSettings
from alloop.evaluation.matched import Matched
from alloop.loop.measuring.matched import compare_arms, describe, find_arms, without
from alloop.loop.rounds.runner import RunOptions, run
from alloop.loop.workbench import Tools
from alloop.progress import Progress, silent
from alloop.records import Calibration, ImageRef, Interval, ModelFiles, Reason
from alloop.store.rounds import list_rounds
from alloop.store.session import reading

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


def test_an_image_asked_for_by_hand_is_in_both_arms_and_changes_no_other_place():
    reasons = {1: SEED, 8: ACQUIRED, 3: RANDOM, 7: ACQUIRED, 4: RANDOM}
    image_ids = [1, 3, 4, 7, 8, 5, 6]

    without_them, with_them = (
        find_arms(image_ids[:n], reasons | by_hand)
        for n, by_hand in ((5, {}), (7, {5: Reason.MANUAL, 6: Reason.MANUAL}))
    )

    assert (with_them.random, with_them.acquired) == (without_them.random, without_them.acquired)
    assert set(with_them.shared) - set(without_them.shared) == {5, 6}


def job(tmp_path: Path, **changes: object) -> TrainJob:
    refs = tuple(ImageRef(number, fake_sha256(number), "") for number in range(6))
    config = make_config(**changes)
    return TrainJob(
        EngineSettings.of(config),
        ("cat", "dog"),
        refs,
        (0, 1) * 3,
        refs[:4],
        (0, 1, 0, 1),
        0,
        tmp_path,
        tmp_path / "out",
    )


def tools(executor: object = None) -> Tools:
    return Tools(project=None, executor=executor, annotator=None, user="ada")  # type: ignore[arg-type]


def test_too_few_labels_and_fine_tuning_are_skipped_with_the_reason(tmp_path: Path):
    few = compare_arms(tools(), job(tmp_path), None, {1: RANDOM, 2: ACQUIRED})  # type: ignore[arg-type]
    tuned = compare_arms(tools(), job(tmp_path, model={"mode": "finetune"}), None, {})  # type: ignore[arg-type]

    assert few["skipped"]
    assert "1 random label and 1 acquired one so far; 20 of each are needed" in few["says"]
    assert "fine-tuning" in tuned["says"]


def test_images_drawn_later_are_left_out_of_the_holdout(tmp_path: Path):
    kept = without(job(tmp_path), {1, 2})

    assert [ref.image_id for ref in kept.holdout] == [0, 3]
    assert kept.holdout_targets == (0, 1)


class Recorder:
    """In place of the executor: remembers the labels of each job, and is right about everything if it had all."""

    def __init__(self) -> None:
        self.jobs: list[TrainJob] = []

    def submit(self, job: TrainJob, progress: Progress = silent) -> TrainResult:
        self.jobs.append(job)
        sure = np.where(np.arange(2) == np.array(job.holdout_targets)[:, None], 0.0, -9.0).astype(np.float32)
        nothing = Calibration(1.0, 0, None, None)
        return TrainResult(ModelFiles(job.out, ""), nothing, sure, (), {}, {}, 0.0)


def test_each_arm_is_trained_whole_and_without_each_fifth_of_its_own_labels(tmp_path: Path):
    recorder = Recorder()
    refs = tuple(ImageRef(number, fake_sha256(number), "") for number in range(70))
    whole = dataclasses.replace(job(tmp_path), images=refs, targets=(0, 1) * 35, head_classes=(("cat",),))
    # Images 0 to 9 are the seed batch, 10 to 39 were acquired, 40 to 64 drawn; 65 to 69 were known beforehand.
    reasons = {at: SEED if at < 10 else ACQUIRED if at < 40 else RANDOM for at in range(65)}
    result = Recorder().submit(whole)

    found = compare_arms(tools(recorder), whole, dataclasses.replace(result, head_classes=(("dog",),)), reasons)

    shared = {*range(10), *range(65, 70)}
    for jobs, own in ((recorder.jobs[:6], set(range(10, 35))), (recorder.jobs[6:], set(range(40, 65)))):
        sets = [{ref.image_id for ref in one.images} for one in jobs]
        assert sets[0] == shared | own
        left_out = [sets[0] - one for one in sets[1:]]
        assert [len(group) for group in left_out] == [5] * 5
        assert set().union(*left_out) == own
    for one in recorder.jobs:
        assert one.targets == tuple(ref.image_id % 2 for ref in one.images)
        assert (one.head_classes, one.settings.calibration, one.seed) == ((("dog",),), "none", whole.seed)
        assert one.settings.train == whole.settings.train
    assert (found["labels"], found["own"], found["gain"]["value"]) == (40, 25, 0)


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
            "350 more random labels would show a difference of 1.0 pp.",
        ),
    ],
)
def test_the_result_is_one_sentence(value: float, low: float, high: float, says: str):
    gain = Interval(value, low, high, 400, "matched arms 95%")

    assert describe(Matched(gain, 800, 300, 1e-4, 1e-4, 350, 0.01, gain)) == says


def test_a_project_is_told_whether_asking_helped_and_a_setting_turns_that_off(tmp_path: Path):
    """Holdout 20, seed batch 12, then batches of 24, half of them at random: 24 labels of each arm in round 3."""
    changes = {
        "loop": {"batch_size": 24, "max_rounds": 3},
        "acquisition": {"random_fraction": 0.5, "cold_start": "random"},
        "evaluation": {"holdout_size": 20, "holdout_share": 0.4},
    }
    compared = make_project(tmp_path, n=120, **changes)
    plain = make_project(
        tmp_path, n=120, name="plain", **changes | {"evaluation": {**changes["evaluation"], "matched_arm": False}}
    )

    for project in (compared, plain):
        run(tools_of(project), RunOptions(rounds=None))

    with reading(compared.database) as session:
        found = [row.matched or {} for row in list_rounds(session)]
    with reading(plain.database) as session:
        assert [row.matched for row in list_rounds(session)] == [None] * 4
    assert [found[number]["skipped"] for number in (1, 2, 3)] == [True, True, False]
    last = found[3]
    assert (last["own"], last["labels"], last["gain"]["n"]) == (24, 24 + 24, 20)
    assert last["says"].startswith(("No evidence yet", "Active learning helped", "Random is doing better"))
    # The arms change nothing about the round: both workspaces have the same models.
    for number in (1, 2, 3):
        models = [(p.folder / f"runs/round-000{number}/model/model.json").read_bytes() for p in (compared, plain)]
        assert models[0] == models[1]
    assert np.isfinite(last["seconds"])
