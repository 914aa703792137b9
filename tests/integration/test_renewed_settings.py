"""A round takes the current settings until a model, a score or a query depends on those it began with."""

from pathlib import Path

import pytest
from command_line import alloop
from factories import at_bench, make_project, write_pool, write_settings
from sqlalchemy import text

from alloop.loop.rounds import steps
from alloop.project import Project

BROKEN = {"backbone": "nowhere:make"}


def value(project: Project, statement: str) -> object:
    with project.database.connect() as connection:
        return connection.execute(text(statement)).scalar_one()


def test_a_first_run_that_failed_goes_on_with_the_settings_as_they_were_mended(tmp_path: Path):
    project = make_project(tmp_path, 20, model=BROKEN)
    refused = alloop("run", "-C", project.folder)
    assert refused.code == 2
    assert "nowhere" in refused.err

    ran = alloop("run", "-C", write_settings(project, loop={"batch_size": 3}).folder)

    assert ran.code == 0, ran.err
    assert (
        "Round 0 takes the current settings: [model] backbone: 'nowhere:make' → 'pixels'; [loop] batch_size: 6 → 3."
        in ran.err
    )
    assert value(project, "SELECT count(*) FROM round") == 1
    assert value(project, "SELECT count(*) FROM query WHERE reason <> 'holdout'") == 3


def test_a_round_closed_before_any_model_leaves_nothing_to_accept(tmp_path: Path):
    project = make_project(tmp_path, 20, model=BROKEN)
    assert alloop("run", "-C", project.folder).code == 2
    assert alloop("round", "close", "-C", project.folder).code == 0

    ran = alloop("run", "-C", write_settings(project).folder)

    assert ran.code == 0, ran.err


def test_the_holdout_is_drawn_again_as_long_as_nobody_was_asked(tmp_path: Path):
    project = make_project(tmp_path, 24, model=BROKEN)
    assert alloop("run", "-C", project.folder).code == 2
    assert value(project, "SELECT count(*) FROM image WHERE split = 'holdout'") == 6

    project = write_settings(project, evaluation={"holdout_size": 2})
    ran = alloop("run", "-C", project.folder)
    assert (ran.code, "the holdout was drawn" in ran.err) == (0, False)

    assert value(project, "SELECT count(*) FROM image WHERE split = 'holdout'") == 2
    assert value(project, "SELECT group_concat(n_images) FROM holdout_draw") == "2"
    drawn = "SELECT count(*) FROM holdout_image h JOIN image i ON i.id = h.image_id WHERE i.split = 'holdout'"
    assert value(project, drawn) == value(project, "SELECT count(*) FROM holdout_image") == 2
    assert value(project, "SELECT count(*) FROM query WHERE reason = 'holdout'") == 2
    assert value(project, "SELECT count(*) FROM image WHERE split = 'train'") == 22
    assert alloop("run", "-C", write_settings(project, evaluation={"holdout_size": 4}).folder).code == 0
    assert value(project, "SELECT count(*) FROM image WHERE split = 'holdout'") == 2


def test_a_test_set_may_still_take_the_place_of_the_holdout(tmp_path: Path):
    project = make_project(tmp_path, 12, model=BROKEN)
    write_pool(project.folder / "held" / "cat", 2, first=100)
    assert alloop("run", "-C", project.folder).code == 2

    project = write_settings(project, evaluation={"test": "held"})
    assert alloop("run", "-C", project.folder).code == 0

    assert value(project, "SELECT count(*) FROM image WHERE split = 'holdout'") == 2
    assert value(project, "SELECT count(*) FROM holdout_draw") == 0
    assert value(project, "SELECT count(*) FROM query WHERE reason = 'holdout'") == 0


def test_a_change_that_was_accepted_once_stays_accepted_when_its_round_failed(tmp_path: Path):
    project = make_project(tmp_path, 30)
    for _ in range(2):
        assert alloop("run", "-C", project.folder).code == 0
    write_settings(project, model=BROKEN)
    assert alloop("run", "-C", project.folder, "--accept-change").code == 2
    assert "nowhere" in alloop("run", "-C", project.folder).err

    # Back to what the model was, and to a third one, which nobody accepted.
    other = alloop("run", "-C", write_settings(project, model={"members": 3}).folder)
    assert (other.code, "--accept-change" in other.err) == (2, True)
    ran = alloop("run", "-C", write_settings(project).folder)

    assert ran.code == 0, ran.err
    assert value(project, "SELECT count(*) FROM model_version") == 2


def test_a_model_that_is_trained_again_takes_todays_settings(tmp_path: Path):
    project = make_project(tmp_path, 20, loop={"batch_size": 4})
    alloop("run", "-C", project.folder)
    alloop("train", "-C", project.folder)
    project = write_settings(project, loop={"batch_size": 2}, train={"epochs": 3})

    assert alloop("train", "-C", project.folder).code == 0
    assert alloop("run", "-C", project.folder, "--json").data["asked"] == 2

    trained = value(project, "SELECT config FROM model_version")
    assert '"epochs": 3' in str(trained)


def test_how_much_memory_choosing_may_take_is_todays(tmp_path: Path):
    project = make_project(tmp_path, 20, acquisition={"strategy": "k-center", "max_ram": 1e-9})
    alloop("run", "-C", project.folder)
    refused = alloop("run", "-C", project.folder)
    assert (refused.code, "max_ram" in refused.err) == (1, True), refused.err

    ran = alloop("run", "-C", write_settings(project, acquisition={"strategy": "k-center", "max_ram": 1.0}).folder)

    assert ran.code == 0, ran.err


def test_a_class_that_was_used_cannot_be_removed_from_a_round_that_failed(tmp_path: Path):
    project = make_project(tmp_path, 12, classes=("cat", "dog", "bird"), model=BROKEN)
    alloop("labels", "import", project.folder / "truth.csv", "-C", project.folder)
    assert alloop("run", "-C", project.folder).code == 2

    refused = alloop("run", "-C", write_settings(project, project={"classes": ["cat", "dog"]}).folder)

    assert refused.code == 2
    assert "no longer has 'bird'" in refused.err


def test_a_renewal_that_was_killed_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    project = make_project(tmp_path, 24, model=BROKEN)
    assert alloop("run", "-C", project.folder).code == 2
    with project.database.begin() as connection:  # killed between taking the holdout back and drawing another
        connection.execute(text("UPDATE image SET split = 'train'"))
    with pytest.raises(Exception, match="nowhere"):
        at_bench(project, steps.train, 0)
        at_bench(project, steps.score, 0)
        at_bench(project, steps.select, 0)

    assert value(project, "SELECT count(*) FROM image WHERE split = 'holdout'") == 6
