"""A run that is killed at any point is continued by the next one, as if nothing had happened."""

import shutil
from pathlib import Path

import pytest
from alloop_process import Forks, Kill
from faulty_proxy import faulty_proxy
from label_studio_server import LabelStudioServer
from looked_at import Workspace, copied, make_pool, make_workspace

pytestmark = [pytest.mark.label_studio, pytest.mark.slow]

# Each run of a whole project: the first asks, the second takes the answers and closes the round, the third trains on
# them and stops. A dot is a commit, a plus something else that lasts: a file that is written or renamed, a request that
# changes something on the server. The twin test below says what to write here when a step does it more or less often.
TRACES = {
    "asking": "....++++++++++++++++++++++++++..+++..+++.+...++++.++.++.+.......",
    "closing": ".......",
    "stopping": "....++++++++++++++...",
}
ALONE = TRACES["asking"][:41]  # of it, all before the server is asked to change anything
BATCHES, BATCH = 3, 3
FILES = 35  # flushes and renames of files of the first run


def points(trace: str, first: int = 1) -> list:
    """Kills after every commit, and before those commits that find the world changed since the commit before them."""
    n = trace.count(".")
    found = []
    for at, changes in enumerate(trace.split(".")[:n], start=1):
        for when in ("before", "after") if changes else ("after",):
            found.append(pytest.param(Kill("commit", at, when), id=f"{when}-commit-{at}-of-{n}"))
    return [kill for kill in found if kill.values[0].at >= first]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, label_studio: LabelStudioServer, forks: Forks) -> Workspace:
    """A workspace before its first run. A dozen labels are known, so that the first round has a model."""
    pool = make_pool(label_studio, "crash", 48)
    return make_workspace(tmp_path_factory.mktemp("crash") / "start", label_studio, forks, pool, known=12)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, start: Workspace, label_studio: LabelStudioServer) -> Workspace:
    """The same with sheets in place of the server: what happens before people are asked is the same."""
    folder = tmp_path_factory.mktemp("alone") / "start"
    pool = (label_studio.images / "crash", dict(start.truth))
    return make_workspace(folder, label_studio, start.forks, pool, known=12, labeling={"backend": "csv"})


@pytest.fixture(scope="module")
def twin(start: Workspace, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The same project, never killed: how it ended, and the workspace after each run."""
    folder = tmp_path_factory.mktemp("twin")
    workspace = copied(start, folder / "at work", new_identity=True)
    traces, outcomes = {}, {}
    for run, stage in (("asking", "waiting"), ("closing", "advanced"), ("stopping", "done")):
        if run == "closing":
            workspace.answer()
        shutil.copytree(workspace.folder, folder / f"before {run}")
        ended = workspace.alloop("run", "--json", "-q", kill=Kill("commit", 0))
        assert ended.rc == 0, ended.err
        assert ended.json()["stage"] == stage
        traces[run] = ended.trace
        outcomes[run] = workspace.outcome()
    workspace.check()
    return {"outcomes": outcomes, "traces": traces, "folder": folder, "rest": (start.server, start.forks, start.truth)}


def test_the_unkilled_twin_commits_as_often_as_it_is_killed_below(twin: dict):
    assert twin["traces"] == TRACES


def test_the_unkilled_twin_writes_as_many_files_as_it_is_killed_at_below(start: Workspace, tmp_path: Path):
    workspace = copied(start, tmp_path / "counted", new_identity=True)

    assert workspace.alloop("run", kill=Kill("file", 0)).points == FILES


def kill_and_go_on(workspace: Workspace, kill: Kill, twin: dict) -> None:
    """To the very end, where everything is as it would have been."""
    assert workspace.alloop("run", kill=kill).was_killed

    workspace.finish()

    workspace.check()
    assert workspace.outcome() == twin["outcomes"]["stopping"]


def kill_and_ask(workspace: Workspace, kill: Kill, twin: dict) -> None:
    """Until people are asked, and are asked what they would have been."""
    assert workspace.alloop("run", kill=kill).was_killed

    assert workspace.run()["stage"] == "waiting"

    workspace.check()
    assert workspace.outcome() == twin["outcomes"]["asking"]


@pytest.mark.parametrize(
    "kill",
    [
        *points(ALONE),
        *(pytest.param(Kill("file", at), id=f"file-{at}-of-{FILES}") for at in range(1, ALONE.count("+") + 1)),
    ],
)
def test_killed_before_people_are_asked(kill: Kill, alone: Workspace, twin: dict, tmp_path: Path):
    workspace = copied(alone, tmp_path / "killed", new_identity=True)
    assert workspace.alloop("run", kill=kill).was_killed

    assert workspace.run()["stage"] == "waiting"

    workspace.check_training()
    assert workspace.outcome() == twin["outcomes"]["asking"]


@pytest.mark.parametrize("kill", points(TRACES["asking"], first=ALONE.count(".")))
def test_killed_at_a_step_while_asking(kill: Kill, start: Workspace, twin: dict, tmp_path: Path):
    go_on = kill_and_go_on if kill.when == "after" else kill_and_ask
    go_on(copied(start, tmp_path / "killed", new_identity=True), kill, twin)


@pytest.mark.parametrize("kill", points(TRACES["closing"]))
def test_killed_at_a_step_while_taking_answers(kill: Kill, twin: dict, tmp_path: Path):
    before = Workspace(twin["folder"] / "before closing", *twin["rest"])
    kill_and_go_on(copied(before, tmp_path / "killed", new_identity=False), kill, twin)


@pytest.mark.parametrize("kill", points(TRACES["stopping"]))
def test_killed_at_a_step_while_stopping(kill: Kill, twin: dict, tmp_path: Path):
    before = Workspace(twin["folder"] / "before stopping", *twin["rest"])
    kill_and_go_on(copied(before, tmp_path / "killed", new_identity=False), kill, twin)


@pytest.mark.parametrize("at", range(ALONE.count("+") + 1, FILES + 1), ids=lambda at: f"file-{at}-of-{FILES}")
def test_killed_while_a_file_is_written(at: int, start: Workspace, twin: dict, tmp_path: Path):
    kill_and_ask(copied(start, tmp_path / "killed", new_identity=True), Kill("file", at), twin)


@pytest.mark.parametrize(
    ("part", "at"),
    [
        pytest.param("POST api/projects/", 1, id="project"),
        pytest.param("POST api/storages/", 1, id="image-storage"),
        *(pytest.param("…/import", at, id=f"batch-{at}-of-{BATCHES}") for at in range(1, BATCHES + 1)),
        pytest.param("PATCH api/projects/", 1, id="last-push"),
        pytest.param("PATCH api/projects/", 2, id="order-of-tasks"),
    ],
)
def test_killed_right_after_a_request(part: str, at: int, start: Workspace, twin: dict, tmp_path: Path):
    """The server has acted, and alloop has recorded nothing of it. Before it, all was as after the commit before."""
    kill_and_ask(copied(start, tmp_path / "killed", new_identity=True), Kill("request", at, "after", part), twin)


@pytest.mark.parametrize("page", [1, 2, 3])
def test_killed_between_pages_of_answers(page: int, twin: dict, tmp_path: Path):
    before = Workspace(twin["folder"] / "before closing", *twin["rest"])
    workspace = copied(before, tmp_path / "killed", new_identity=False)
    kill_and_go_on(workspace, Kill("request", page, "after", "GET api/tasks"), twin)


def test_killed_again_and_again_a_little_further_each_time(start: Workspace, twin: dict, tmp_path: Path):
    workspace = copied(start, tmp_path / "killed", new_identity=True)
    killed = [workspace.alloop("run", kill=Kill("commit", at, "after")).was_killed for at in range(1, 7)]

    workspace.finish()

    assert all(killed)
    workspace.check()
    assert workspace.outcome() == twin["outcomes"]["stopping"]


def test_a_batch_that_the_server_takes_only_after_the_next_run_sent_it_again(
    start: Workspace, twin: dict, tmp_path: Path
):
    """The killed run's request was still on its way when the next run looked for its tasks."""
    workspace = copied(start, tmp_path / "killed", new_identity=True)
    with faulty_proxy(workspace.server.url) as proxy:
        proxy.fail("late", "POST", "/import", seconds=3600.0)
        # Looks at the tasks: is there a newest one; what did an earlier push leave; what became of the lost batch.
        kill = Kill("request", 3, "before", "GET api/tasks")
        assert workspace.alloop("run", kill=kill, LABEL_STUDIO_URL=proxy.url).was_killed
        workspace.run()
        n_sent = len(workspace.tasks())
        for late in proxy.late:
            late.cancel()
            late.function(*late.args)
    assert len(workspace.tasks()) == n_sent + BATCH, "the late batch has not come"

    workspace.finish()

    workspace.check()
    assert workspace.outcome() == twin["outcomes"]["stopping"]
