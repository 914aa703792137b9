"""Settings that are changed after they were used: they count, are refused with the reason, or are said to come late."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from command_line import alloop
from factories import make_config, make_project, write_settings
from sqlalchemy import text

from alloop.config.load import freeze_config
from alloop.config.schema import Config
from alloop.labeling.sheets import list_sheets, read_sheet, write_sheet
from alloop.loop.rounds.history import COMPARED
from alloop.loop.rounds.unheeded import _consequences, _settings
from alloop.project import Project

CSV = {"backend": "csv"}
# Read whenever they are needed; what was made with the earlier value does not depend on it any more.
AT_ONCE = {
    "project.classes", "database.url", "pool.images", "pool.near_duplicate_distance", "pool.near_duplicates",
    "model.device", "model.engine", "loop.min_answered", "loop.label_budget", "loop.max_rounds", "loop.target_accuracy",
    "loop.stop_when_flat", "loop.flat_gain", "loop.stop_when_stable", "loop.stable_agreement", "loop.stable_rounds",
    "labeling.poll_seconds", "labeling.label_studio.api_key_file", "labeling.label_studio.timeout",
    "labeling.label_studio.push_batch", "labeling.images.via", "labeling.images.root", "labeling.images.server_root",
    "labeling.images.url_prefix", "labeling.oracle.file", "labeling.oracle.noise", "labeling.oracle.annotators",
    "labeling.oracle.columns",
}  # fmt: skip
# Frozen with each round.
NEXT_ROUND = {"train", "calibration", "acquisition"}
NEXT_ROUND_TOO = {"loop.batch_size", "model.precision", "evaluation.holdout_growth", "evaluation.matched_arm"}
REFUSED = {
    *(f"model.{key}" for key in COMPARED), "evaluation.test", "labeling.backend", "labeling.label_studio.url",
    "labeling.label_studio.project_id",
}  # fmt: skip


def answer(project: Project, who: str, which: Callable[[Mapping[str, str]], bool] = lambda row: True) -> None:
    """Call the images of these rows cats, where nobody has said anything."""
    for path in list_sheets(project.folder / "sheets"):
        sheet = read_sheet(path)
        said = {"label": "cat", "annotator": who}
        write_sheet(
            path, sheet.header, [row if row["label"] or not which(row) else {**row, **said} for row in sheet.rows]
        )


def step(project: Project, *more: str) -> Any:
    return alloop("run", "-C", project.folder, *more)


def test_it_is_known_of_every_setting_what_a_change_does():
    late = {f"{section}.{key}" for backend in ("csv", "label-studio") for section, key in late_of(backend)}
    every = {f"{section}.{key}" for section, key, _ in _settings(make_config().model_dump(mode="json"))}

    known = AT_ONCE | NEXT_ROUND_TOO | REFUSED | late | {name for name in every if name.split(".")[0] in NEXT_ROUND}
    assert every - known == set(), "decide what a change of these does, and say it where nothing happens"
    assert known - every == set()
    assert not late & (AT_ONCE | NEXT_ROUND_TOO | REFUSED)


def late_of(backend: str) -> Mapping[tuple[str, str], str]:
    return _consequences(make_config(labeling={"backend": backend}), 8)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"evaluation": {"holdout_size": 12}}, "[evaluation] holdout_size was 8 and is 12 now: the holdout was drawn"),
        ({"evaluation": {"holdout_share": 0.5}}, "keeps its 5 images. [evaluation] holdout_growth adds to it"),
        ({"project": {"seed": 8}}, "[project] seed was 7 and is 8 now: draws made with the old seed stay"),
        ({"labeling": {**CSV, "preannotate": True}}, "[labeling] preannotate was false and is true now: tasks that"),
        ({"labeling": {**CSV, "annotations_per_image": 2}}, "sheets that were written already keep their rows"),
        ({"pool": {"max_pixels": 900}}, "[pool] max_pixels was 178956970 and is 900 now: images that are in the pool"),
    ],
)
def test_what_comes_too_late_is_said_by_run(tmp_path: Path, changes: dict[str, dict[str, Any]], said: str):
    project = make_project(tmp_path, n=20, labeling=CSV)
    assert " was " not in step(project).err

    write_settings(project, **{"labeling": CSV, **changes})

    assert said in step(project).err


def test_the_title_of_a_project_and_the_holdout_of_a_test_set_are_told_apart():
    def late(**sections: Mapping[str, Any]) -> set[tuple[str, str]]:
        return set(_consequences(Config.model_validate({"project": {"classes": ("a", "b")}, **sections}), 3))

    assert ("project", "name") in late()
    assert ("project", "name") not in late(labeling={"backend": "csv"})
    assert ("evaluation", "holdout_size") not in late(evaluation={"test": "test.csv"})
    assert ("model", "backbone") not in late()
    assert "url" not in freeze_config(make_config()).get("database", {})


def test_fewer_answers_for_each_image_are_enough_for_those_that_are_out(tmp_path: Path):
    project = make_project(tmp_path, n=12, labeling={**CSV, "annotations_per_image": 2})
    step(project)
    answer(project, "ann", lambda row: row["copy"] == "1")
    assert '"stage": "waiting"' in step(project, "--json").out
    first = min(row["key"] for row in read_sheet(list_sheets(project.folder / "sheets")[0]).rows)
    answer(project, "bob", lambda row: row["copy"] == "2" and row["key"] == first)  # the others are not read again
    assert '"stage": "waiting"' in step(project, "--json").out

    write_settings(project, labeling={**CSV, "annotations_per_image": 1})

    assert '"stage": "advanced"' in step(project, "--json").out


def test_another_back_end_is_refused_while_images_are_out_in_the_first_one(tmp_path: Path):
    project = make_project(tmp_path, n=12, labeling=CSV)
    step(project)
    write_settings(project, labeling={"backend": "oracle"})

    refused = step(project)

    assert refused.code == 1
    assert (
        "9 images are being asked about through 'csv', but [labeling] backend in alloop.toml is now 'oracle'"
        in refused.err
    )
    assert "alloop push --new-project" in refused.err
    assert alloop("push", "--new-project", "-C", project.folder).code == 0
    assert '"stage": "advanced"' in step(project, "--json").out
    with project.database.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM label")).scalar_one() == 9


def test_the_back_end_can_be_changed_between_rounds(tmp_path: Path):
    project = make_project(tmp_path, n=24, labeling=CSV)
    step(project)
    answer(project, "ann")
    step(project)  # closes the round
    write_settings(project, labeling={"backend": "oracle"})

    assert '"stage": "advanced"' in step(project, "--json").out
