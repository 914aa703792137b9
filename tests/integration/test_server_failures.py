"""Projects whose Label Studio fails, changes, or is another one: messages, exit codes, no loss."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
import socket
import sqlite3
from pathlib import Path

import pytest
from alloop_process import Ended, Forks, Kill
from factories import CLASSES
from faulty_proxy import faulty_proxy
from label_studio_server import LabelStudioServer
from looked_at import Workspace, copied, make_pool, make_workspace, write_settings

from alloop.labeling.single_choice import SingleChoice

pytestmark = [pytest.mark.label_studio, pytest.mark.slow]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, label_studio: LabelStudioServer, forks: Forks) -> Workspace:
    """A workspace before its first run."""
    pool = make_pool(label_studio, "failures", 40)
    return make_workspace(tmp_path_factory.mktemp("failures") / "pets", label_studio, forks, pool, known=12)


@pytest.fixture
def workspace(start: Workspace, tmp_path: Path) -> Workspace:
    return copied(start, tmp_path / "pets", new_identity=True)


def nowhere() -> str:
    """An address at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def secret_is_nowhere(workspace: Workspace, ended: Ended, secret: str) -> bool:
    """Neither in what was printed nor in any file of the workspace, the database and its journal included."""
    files = b"".join(path.read_bytes() for path in workspace.folder.rglob("*") if path.is_file())
    return secret.encode() not in files and secret not in ended.out + ended.err


def settings(workspace: Workspace, **changes: dict) -> None:
    write_settings(workspace, workspace.server.images / "failures", **changes)


def statuses(workspace: Workspace) -> dict[str, int]:
    return dict(workspace.sql("SELECT status, count(*) FROM query GROUP BY status"))


# --- Down, slow, out of order -----------------------------------------------------------------------------------------


def test_a_server_that_is_down_costs_a_retry_and_nothing_else(workspace: Workspace):
    at_push = workspace.alloop("run", "--json", LABEL_STUDIO_URL=nowhere())
    workspace.run()
    workspace.answer()
    at_pull = workspace.alloop("run", LABEL_STUDIO_URL=nowhere())

    for ended in (at_push, at_pull):
        assert ended.rc == 75
        assert "cannot be reached" in ended.err
        assert "run the same command again" in ended.err
    assert json.loads(at_push.out)["exit_code"] == 75
    workspace.finish()
    workspace.check()


@pytest.mark.parametrize("kind", ["500", "html", "cut-before"])
def test_a_server_out_of_order_for_a_while(workspace: Workspace, kind: str):
    with faulty_proxy(workspace.server.url) as proxy:
        for method in ("GET", "POST"):
            proxy.fail(kind, method, "/api/", times=100)
        at_push = workspace.alloop("run", LABEL_STUDIO_URL=proxy.url)
        proxy.faults.clear()
        assert workspace.alloop("run", LABEL_STUDIO_URL=proxy.url).rc == 0
        workspace.answer()
        proxy.fail(kind, "GET", "/api/", times=100)
        at_pull = workspace.alloop("run", LABEL_STUDIO_URL=proxy.url)

    for ended in (at_push, at_pull):
        assert ended.rc == 75, ended.err
        assert "Traceback" not in ended.err
    workspace.finish()
    workspace.check()


def test_a_server_that_is_too_slow_has_acted_all_the_same(workspace: Workspace):
    settings(workspace, labeling__label_studio={"timeout": 1.5})
    with faulty_proxy(workspace.server.url) as proxy:
        # Each reply to an import comes too late, and so does each look at what became of it.
        proxy.fail("slow", "POST", "/import", times=1, seconds=3.0)
        proxy.fail("slow", "GET", "in_list", times=100, seconds=3.0)
        ended = workspace.alloop("run", LABEL_STUDIO_URL=proxy.url)

    assert ended.rc == 75
    assert "did not answer within 1.5 s" in ended.err
    assert "timeout" in ended.err
    settings(workspace)
    workspace.finish()
    workspace.check()


# --- Keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["legacy token", "personal access token"])
def test_a_wrong_key_is_refused_and_written_nowhere(workspace: Workspace, kind: str):
    legacy = "0123456789abcdef0123456789abcdef01234567"
    # {"token_type": "refresh", "exp": 9999999999} and a signature that is none
    personal = (
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJ0b2tlbl90eXBlIjoicmVmcmVzaCIsImV4cCI6OTk5OTk5OTk5OX0"
        ".c2lnbmF0dXJlc2lnbmF0dXJlc2lnbmF0dXJl"
    )
    key = legacy if kind == "legacy token" else personal

    ended = workspace.alloop("run", "-vv", LABEL_STUDIO_API_KEY=key)

    assert ended.rc == 1
    assert "LABEL_STUDIO_API_KEY" in ended.err
    assert secret_is_nowhere(workspace, ended, key)
    workspace.finish()
    workspace.check()


def test_the_right_key_is_written_nowhere_either(workspace: Workspace):
    ended = workspace.alloop("run", "-vv")

    assert ended.rc == 0
    assert secret_is_nowhere(workspace, ended, workspace.server.credentials.token)


# --- Projects deleted, changed, mistaken ------------------------------------------------------------------------------


def answered_in_part(workspace: Workspace, n: int = 3) -> None:
    workspace.run()
    workspace.answer(most=n)
    assert workspace.run()["open"] == 8 - n


def annotations(workspace: Workspace) -> int:
    return workspace.sql("SELECT count(*) FROM annotation WHERE source = 'label-studio'")[0][0]


def test_a_project_deleted_on_the_server_is_continued_in_a_new_one(workspace: Workspace):
    answered_in_part(workspace)
    old = workspace.project
    assert workspace.server.api("DELETE", f"/api/projects/{old}/").status_code == 204

    refused = workspace.alloop("run")
    pushed = workspace.alloop("push", "--new-project")

    assert refused.rc == 1
    assert "push --new-project" in refused.err
    assert pushed.rc == 0, pushed.err
    assert workspace.project != old
    assert len(workspace.tasks()) == 5
    assert annotations(workspace) == 3
    workspace.finish()
    assert annotations(workspace) == 8
    assert statuses(workspace) == {"answered": 8}
    assert workspace.sql("SELECT count(*) FROM label") == [(12 + 8,)]


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5, 6])
def test_a_push_to_a_new_project_that_is_killed_is_finished_by_the_next_run(workspace: Workspace, at: int):
    answered_in_part(workspace)
    old = workspace.project
    # 1 takes the lease, 2 gives the old project up, 3 knows the new one; the others are in the push to it.
    assert workspace.alloop("push", "--new-project", kill=Kill("commit", at, "after")).was_killed

    workspace.run()

    if at == 1:
        assert workspace.project == old
        return
    assert workspace.project != old
    assert len(workspace.tasks()) == 5
    workspace.finish()
    assert annotations(workspace) == 8
    assert statuses(workspace) == {"answered": 8}


def test_two_of_two_answers_may_come_from_two_projects(workspace: Workspace):
    """Answers from the old project are not deleted because the new project does not list them."""
    settings(workspace, labeling={"annotations_per_image": 2})
    workspace.run()
    workspace.answer(most=1)
    workspace.run()
    assert workspace.alloop("push", "--new-project").rc == 0

    workspace.answer()
    workspace.run()

    assert workspace.sql("SELECT outcome, count(*) FROM annotation WHERE query_id IS NOT NULL GROUP BY 1") == [
        ("label", 9)
    ]


def test_a_project_of_the_same_number_on_another_server_is_not_taken_for_ours(workspace: Workspace):
    answered_in_part(workspace)
    # As if this project had been another server's: there it was made at another time.
    with contextlib.closing(sqlite3.connect(workspace.folder / "alloop.db")) as connection, connection:
        connection.execute("UPDATE sync_state SET identity = '2020-01-01T00:00:00.000000Z'")
        connection.execute(
            "UPDATE task SET project_ref = substr(project_ref, 1, instr(project_ref, '@'))"
            " || '2020-01-01T00:00:00.000000Z'"
        )
        connection.execute(
            "UPDATE annotation SET external_id = replace(external_id, substr(external_id, instr(external_id, '@') + 1,"
            " 27), '2020-01-01T00:00:00.000000Z') WHERE query_id IS NOT NULL"
        )
    stranger = workspace.project
    before = workspace.server.api("PATCH", f"/api/projects/{stranger}/", json={"sampling": "Sequential sampling"})

    refused = [workspace.alloop(*argv) for argv in (["run"], ["pull"], ["push"])]

    assert [ended.rc for ended in refused] == [1, 1, 1]
    assert all("is not the one" in ended.err for ended in refused)
    after = workspace.server.api("GET", f"/api/projects/{stranger}/").json()
    assert (after["sampling"], after["description"]) == ("Sequential sampling", before.json()["description"])
    assert len(workspace.tasks(stranger)) == 8

    assert workspace.alloop("push", "--new-project").rc == 0
    assert workspace.project != stranger
    workspace.finish()
    assert annotations(workspace) == 8


def test_annotations_of_two_servers_may_have_the_same_numbers(workspace: Workspace):
    """One number for an annotation of ours, pulled from a server since given up, and for one of the new server."""
    answered_in_part(workspace)
    assert workspace.alloop("push", "--new-project").rc == 0
    task = next(task for task in workspace.tasks() if not task["annotations"])
    number = workspace.annotate(task, workspace.truth[task["data"]["alloop_sha256"]])
    with contextlib.closing(sqlite3.connect(workspace.folder / "alloop.db")) as connection, connection:
        connection.execute(
            "UPDATE annotation SET external_id = rtrim(external_id, '0123456789') || ? WHERE id ="
            " (SELECT max(id) FROM annotation)",
            (str(number),),
        )

    workspace.run()

    assert annotations(workspace) == 4
    numbers = [
        name.rpartition("/")[2] for (name,) in workspace.sql("SELECT external_id FROM annotation WHERE query_id > 0")
    ]
    assert numbers.count(str(number)) == 2


def test_naming_another_project_is_refused_until_the_old_one_is_given_up(workspace: Workspace):
    answered_in_part(workspace)
    old = workspace.project
    body = {"title": "chosen by hand", "label_config": SingleChoice().build(CLASSES)}
    chosen = workspace.server.api("POST", "/api/projects/", json=body).json()["id"]
    settings(workspace, labeling__label_studio={"project_id": chosen})

    refused = workspace.alloop("run")

    assert refused.rc == 1
    assert f"project {chosen}" in refused.err
    assert workspace.project == old
    assert workspace.alloop("push", "--new-project").rc == 0
    assert workspace.project == str(chosen)
    assert len(workspace.tasks()) == 5


def test_an_interface_edited_by_hand_serves_as_long_as_it_can_hold_our_classes(workspace: Workspace):
    answered_in_part(workspace)
    config = workspace.server.api("GET", f"/api/projects/{workspace.project}/").json()["label_config"]
    more = config.replace("<View>", '<View><Header value="Cat or dog?"/>').replace(
        "</Choices>", '<Choice value="fox"/></Choices>'
    )
    assert edit_interface(workspace, more) == 200
    assert workspace.run()["open"] == 5

    assert edit_interface(workspace, more.replace('value="dog"', 'value="hound"')) == 200
    refused = workspace.alloop("run")

    assert refused.rc == 1
    assert "'dog'" in refused.err
    assert "Labeling Interface" in refused.err
    assert edit_interface(workspace, more) == 200
    workspace.finish()
    workspace.check()


def edit_interface(workspace: Workspace, config: str) -> int:
    path = f"/api/projects/{workspace.project}/"
    return workspace.server.api("PATCH", path, json={"label_config": config}).status_code


# --- Tasks and answers that change ------------------------------------------------------------------------------------


def test_a_deleted_task_gives_its_image_back_or_leaves_its_label(workspace: Workspace):
    answered_in_part(workspace)
    tasks = workspace.tasks()
    answered = next(task for task in tasks if task["annotations"])
    waiting = next(task for task in tasks if not task["annotations"])
    for task in (answered, waiting):
        assert workspace.server.api("DELETE", f"/api/tasks/{task['id']}/").status_code == 204

    ended = workspace.alloop("pull", "--json")

    assert ended.json()["lost"] == 1
    assert statuses(workspace) == {"answered": 3, "open": 4, "withdrawn": 1}
    assert annotations(workspace) == 3
    labels = {sha256 for (sha256,) in workspace.sql("SELECT sha256 FROM image JOIN label ON label.image_id = image.id")}
    assert answered["data"]["alloop_sha256"] in labels
    assert workspace.alloop("pull", "--json").json()["lost"] == 0


def test_answers_may_change_and_go_after_their_round_is_closed(workspace: Workspace):
    settings(workspace, loop={"max_rounds": 3})
    workspace.run()
    workspace.answer()
    assert workspace.run()["stage"] == "advanced"
    edited, deleted = (task["annotations"][0]["id"] for task in workspace.tasks()[:2])
    first = workspace.tasks()[0]["data"]["alloop_sha256"]
    other = next(name for name in CLASSES if name != workspace.truth[first])
    choice = [{"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [other]}}]
    assert workspace.server.api("PATCH", f"/api/annotations/{edited}/", json={"result": choice}).status_code == 200
    assert workspace.server.api("DELETE", f"/api/annotations/{deleted}/").status_code == 204

    workspace.run()
    workspace.run()

    label = "SELECT class_name FROM label JOIN image ON image.id = label.image_id WHERE sha256 = ?"
    assert workspace.sql(label, first) == [(other,)]
    gone = workspace.tasks()[1]["data"]["alloop_sha256"]
    assert workspace.sql(label, gone) == []
    versions = workspace.sql("SELECT outcome FROM annotation WHERE version = 2 ORDER BY outcome")
    assert versions == [("deleted",), ("label",)]
    # The round is over, so the image went back to the pool (or is a holdout image that is asked about again).
    asked = workspace.sql(
        "SELECT r.number, q.status FROM query q JOIN round r ON r.id = q.round_id JOIN image i ON i.id = q.image_id"
        " WHERE i.sha256 = ? ORDER BY 1",
        gone,
    )
    assert asked[0] == (0, "withdrawn")


def test_skips_and_empty_submissions_settle_a_round_without_labels(workspace: Workspace):
    workspace.run()
    skipped, empty, *_ = workspace.tasks()
    workspace.annotate(skipped, None, was_cancelled=True)
    workspace.annotate(empty, None)
    workspace.answer()

    assert workspace.run()["stage"] == "advanced"

    assert statuses(workspace) == {"answered": 6, "skipped": 1, "empty": 1}
    status = workspace.status()
    assert status["skipped"] == [skipped["data"]["alloop_sha256"]]
    assert status["empty"] == [empty["data"]["alloop_sha256"]]
    assert status["pool"]["labeled"] == 12 + 6


def test_an_unknown_label_is_reported_and_counts_once_its_class_is_added(workspace: Workspace):
    settings(workspace, loop={"max_rounds": 2})
    workspace.run()
    task = workspace.tasks()[0]
    workspace.annotate(task, "fox")
    workspace.answer()
    assert workspace.run()["stage"] == "advanced"
    reported = workspace.status()

    settings(workspace, loop={"max_rounds": 2}, project={"classes": [*CLASSES, "fox"]})
    workspace.run()

    assert reported["unknown_values"] == {"fox": 1}
    assert reported["pool"]["labeled"] == 12 + 7
    assert workspace.status()["unknown_values"] == {}
    assert workspace.status()["pool"]["labeled"] == 12 + 8
    assert statuses(workspace).get("unknown", 0) == 0


def test_answers_that_come_after_a_round_was_closed_still_count(workspace: Workspace):
    settings(workspace, loop={"max_rounds": 2})
    workspace.run()
    assert workspace.alloop("round", "close").rc == 0
    late = workspace.answer()

    workspace.run()
    workspace.run()

    assert annotations(workspace) == len(late) == 8
    assert workspace.sql(
        "SELECT q.status, count(*) FROM query q JOIN round r ON r.id = q.round_id WHERE r.number = 0 GROUP BY 1"
    ) == [("answered", 8)]


def test_closing_a_round_can_take_back_what_nobody_has_begun(workspace: Workspace):
    workspace.run()
    workspace.answer(most=3)

    ended = workspace.alloop("round", "close", "--withdraw", "--json")

    assert ended.rc == 0, ended.err
    assert ended.json()["withdrawn"] == 5
    assert statuses(workspace) == {"answered": 3, "withdrawn": 5}
    assert len(workspace.tasks()) == 3
    assert annotations(workspace) == 3


def test_withdrawing_reaches_what_was_never_sent_and_what_was_sent_unrecorded(workspace: Workspace):
    kill = Kill("request", 2, "after", "…/import")  # one batch recorded, one sent, one not
    assert workspace.alloop("run", kill=kill).was_killed
    assert len(workspace.tasks()) == 6

    ended = workspace.alloop("round", "close", "--withdraw", "--json")

    assert ended.json()["withdrawn"] == 8
    assert statuses(workspace) == {"withdrawn": 8}
    assert workspace.tasks() == []


def test_a_withdrawal_that_is_killed_is_finished_by_the_next_one(workspace: Workspace):
    workspace.run()
    workspace.answer(most=3)
    kill = Kill("request", 1, "after", "POST api/dm/actions")  # deleted there, not recorded here
    assert workspace.alloop("round", "close", "--withdraw", kill=kill).was_killed

    assert workspace.alloop("round", "close", "--withdraw").rc == 0

    assert statuses(workspace) == {"answered": 3, "withdrawn": 5}
    assert len(workspace.tasks()) == 3


# --- Asked for by hand, and junk --------------------------------------------------------------------------------------


def test_what_is_asked_for_by_hand_becomes_a_task_and_junk_loses_its_task_though_the_server_was_down(
    workspace: Workspace,
):
    workspace.run()
    ((free, path),) = workspace.sql(
        "SELECT i.sha256, l.path FROM image i JOIN image_location l ON l.image_id = i.id WHERE i.split = 'train' AND "
        "i.id NOT IN (SELECT image_id FROM query) AND i.id NOT IN (SELECT image_id FROM label) ORDER BY i.id LIMIT 1"
    )
    kill = Kill("request", 1, "after", "…/import")  # sent there, not recorded here
    assert workspace.alloop("ask", path, "--now", kill=kill).was_killed
    assert workspace.alloop("push").rc == 0
    assert [task["data"]["alloop_sha256"] for task in workspace.tasks()].count(free) == 1
    assert len(workspace.tasks()) == 9

    marked = workspace.alloop("pool", "junk", path, LABEL_STUDIO_URL=nowhere())
    assert marked.rc == 0 and "were not taken back yet" in marked.err
    assert (len(workspace.tasks()), statuses(workspace)) == (9, {"open": 8, "withdrawn": 1})
    workspace.run()

    assert len(workspace.tasks()) == 8
    assert free not in {task["data"]["alloop_sha256"] for task in workspace.tasks()}


# --- A restored database, a copied workspace, images that moved -------------------------------------------------------


def test_answers_given_since_a_backup_reach_no_other_image_and_can_be_adopted(workspace: Workspace, tmp_path: Path):
    settings(workspace, loop={"max_rounds": 3})
    workspace.run()
    workspace.answer()
    workspace.run()
    saved = tmp_path / "saved.db"
    assert workspace.alloop("db", "backup", str(saved)).rc == 0
    workspace.run()
    asked = {task["data"]["alloop_sha256"] for task in workspace.tasks() if not task["annotations"]}
    workspace.answer()
    for path in workspace.folder.glob("alloop.db*"):
        path.unlink()
    shutil.copy(saved, workspace.folder / "alloop.db")
    before = workspace.sql("SELECT count(*) FROM label")

    pulled = workspace.alloop("pull", "--json")
    after = workspace.sql("SELECT count(*) FROM label")
    adopted = workspace.alloop("labels", "adopt", "--json").json()

    assert pulled.rc == 0, pulled.err
    assert "The database is older than its tasks" in pulled.err
    assert pulled.json()["orphaned"] == len(asked) > 0
    assert after == before
    assert adopted == {"recorded": len(asked), "left_out": 0}
    workspace.finish()
    told = dict(workspace.sql("SELECT i.sha256, l.class_name FROM label l JOIN image i ON i.id = l.image_id"))
    assert told == {sha256: workspace.truth[sha256] for sha256 in told}
    assert asked <= told.keys()


def test_a_copy_of_the_workspace_is_stopped_and_may_have_a_project_of_its_own(workspace: Workspace, tmp_path: Path):
    settings(workspace, loop={"max_rounds": 3})
    workspace.run()
    copy = dataclasses.replace(workspace, folder=tmp_path / "copy")
    shutil.copytree(workspace.folder, copy.folder)
    workspace.answer()
    workspace.run()
    workspace.run()
    n_tasks = len(workspace.tasks())

    refused = [copy.alloop(command) for command in ("run", "pull")]
    assert copy.alloop("push", "--new-project").rc == 0
    copy.run()

    assert [ended.rc for ended in refused] == [1, 1]
    assert all("another copy of the workspace" in ended.err for ended in refused)
    assert copy.sql("SELECT count(*) FROM annotation WHERE source = 'label-studio'") == [(0,)]
    assert copy.project != workspace.project
    assert len(copy.tasks()) == 8
    assert len(workspace.tasks()) == n_tasks
    assert workspace.alloop("pull").rc == 0
    workspace.check()


def test_open_tasks_follow_images_that_moved_and_keep_their_answers(workspace: Workspace):
    workspace.run()
    workspace.answer(most=3)
    images = workspace.server.images
    (images / "failures").rename(images / "failures-moved")
    try:
        lost = workspace.alloop("run")
        assert workspace.alloop("pool", "add", str(images / "failures-moved")).rc == 0
        assert workspace.alloop("run").rc == 0

        assert lost.rc == 0
        assert "5 images being asked about are not where they were" in lost.err
        person = workspace.server.person("mover")
        for task in workspace.tasks():
            if not task["annotations"]:
                shown = person.load_image(task["data"]["image"])
                assert hashlib.sha256(shown).hexdigest() == task["data"]["alloop_sha256"]
        assert annotations(workspace) == 3
    finally:
        (images / "failures-moved").rename(images / "failures")
