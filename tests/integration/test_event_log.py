"""The event log is for people: nothing that alloop does depends on it."""

import re
from pathlib import Path
from typing import Any

from command_line import alloop
from factories import make_project, tools_of
from sqlalchemy import text

from alloop.loop.rounds.runner import RunOptions, run
from alloop.project import Project

ALLOOP = Path(__file__).parents[2] / "alloop"
# The table itself, the functions that add to it and list it for people, and the page that shows an image's history.
KNOW_THE_LOG = {"store/tables.py", "store/workspace.py", "serve/details.py"}
READS = re.compile(r"\blist_events\b|(?<!threading\.)(?<!cuda\.)\bEvent\b|\b(FROM|JOIN)\s+event\b")


def test_no_module_reads_the_log():
    found = {
        path.relative_to(ALLOOP).as_posix() for path in ALLOOP.rglob("*.py") if READS.search(path.read_text("utf-8"))
    }

    assert found == KNOW_THE_LOG


def started(folder: Path, name: str) -> Project:
    """A workspace with a holdout that grows, compared arms, and rules that look at earlier rounds."""
    project = make_project(
        folder,
        n=60,
        name=name,
        loop={"batch_size": 6, "max_rounds": 4, "stop_when_stable": True},
        acquisition={"random_fraction": 0.34},
        evaluation={"holdout_size": 10, "holdout_share": 0.5, "holdout_growth": 0.2},
    )
    run(tools_of(project), RunOptions(rounds=2))
    return project


def facts(project: Project) -> dict[str, Any]:
    """Everything that was asked, drawn and found out, without ids and times of this workspace."""
    statements = {
        "queries": "SELECT r.number, i.sha256, q.rank, q.reason, q.strategy, q.score, q.probability, q.predicted "
        "FROM query q JOIN round r ON r.id = q.round_id JOIN image i ON i.id = q.image_id ORDER BY 1, 3",
        "rounds": "SELECT number, ending, closed_because FROM round ORDER BY 1",
        "agreement": "SELECT round_id, before_id, share, n FROM agreement ORDER BY 1",
        "draws": "SELECT round_id, is_growth, n_images, n_groups FROM holdout_draw ORDER BY 1",
        "metrics": "SELECT model_version_id, split, name, value, low, high, n FROM metric ORDER BY 1, 2, 3",
    }
    with project.database.connect() as connection:
        return {name: connection.execute(text(statement)).all() for name, statement in statements.items()}


def test_a_workspace_whose_log_was_emptied_goes_on_as_its_twin(tmp_path: Path):
    whole, emptied = started(tmp_path, "whole"), started(tmp_path, "emptied")
    at = ("-C", emptied.folder)
    shown = (("status", "--json"), ("round", "list", "--json"), ("replay", "1", "--json"), ("explain", "0011.png"))
    before = [alloop(*words, *at).out for words in shown]

    with emptied.database.begin() as connection:
        connection.execute(text("DELETE FROM event"))

    assert [alloop(*words, *at).out for words in shown] == before
    for project in (whole, emptied):
        run(tools_of(project), RunOptions(rounds=None))
    assert facts(emptied) == facts(whole)
    assert len(facts(whole)["draws"]) >= 3
    assert facts(whole)["agreement"]
