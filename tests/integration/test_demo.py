"""The demo: every number it ends with agrees with the database and, where people labeled, with the server itself."""

import contextlib
import json
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from command_line import alloop
from factories import make_project

from alloop.composition import DEFAULT_STRATEGY
from alloop.engine.executor_local import LocalExecutor
from alloop.labeling import local_server
from alloop.report.curves import draw_curves
from alloop.simulate.demo import DemoResult, DemoSettings, run_demo

pytestmark = pytest.mark.slow


def test_both_strategies_of_the_demo_start_from_the_same_images_and_spend_the_same_labels(tmp_path: Path) -> None:
    result = run_demo(
        DemoSettings(tmp_path / "demo", labeler="oracle", rounds=2, batch_size=10, images=200), LocalExecutor()
    )

    arms = result.arms
    assert [point.n_labels for point in arms[DEFAULT_STRATEGY].curve] == [10, 20]
    assert [point.n_labels for point in arms["random"].curve] == [10, 20]
    assert asked(arms[DEFAULT_STRATEGY].workspace, 0) == asked(arms["random"].workspace, 0)
    assert asked(arms[DEFAULT_STRATEGY].workspace, 1) != asked(arms["random"].workspace, 1)
    assert arms[DEFAULT_STRATEGY].rest.n == 200 - 20 - 20


def test_a_demo_is_made_again_in_its_own_folder_and_nowhere_else(tmp_path: Path) -> None:
    settings = DemoSettings(tmp_path / "demo", labeler="oracle", rounds=1, batch_size=10, images=100)
    first = run_demo(settings, LocalExecutor())

    again = run_demo(settings, LocalExecutor())

    assert again.arms[DEFAULT_STRATEGY].curve == first.arms[DEFAULT_STRATEGY].curve
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("two years of work")
    outcome = alloop("demo", str(tmp_path / "mine"), "--labeler", "oracle")
    assert outcome.code == 1
    assert "was not made by the demo" in outcome.err
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_demo_that_is_kept_says_the_address_of_its_pages_and_ends_at_ctrl_c(tmp_path: Path) -> None:
    project = make_project(tmp_path, n=6)
    project.close()
    call = f"from alloop.cli.demo import keep_open; keep_open(Path({str(project.folder)!r}), 'http://127.0.0.1:1/')"
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))  # the pages take another port then
    program = f"from pathlib import Path; {call[:-1]}, port={taken.getsockname()[1]})"

    kept = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert kept.stdout is not None
        lines = [kept.stdout.readline().strip() for _ in range(4)]
        address = lines[1].removeprefix("Pages: ")
        assert httpx.get(address, timeout=60).status_code == 200
        kept.send_signal(signal.SIGINT)
        code = kept.wait(60)
    finally:
        kept.kill()
        kept.wait()
        taken.close()
        kept.stdout.close()

    assert lines[2].startswith("Label Studio: http://127.0.0.1:1/ (user and password: ")
    assert lines[3] == "Ctrl-C ends both."
    assert code == 0


@pytest.mark.label_studio
def test_status_database_and_label_studio_agree_on_the_demo(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    settings = DemoSettings(folder, rounds=2, batch_size=10, images=200, keep=True)

    try:
        result = run_demo(settings, LocalExecutor())
        credentials = local_server.read_credentials(folder / DEFAULT_STRATEGY)
        assert credentials is not None
        status = alloop("status", "-C", str(folder / DEFAULT_STRATEGY), "--json").data
        with contextlib.closing(sqlite3.connect(folder / DEFAULT_STRATEGY / "alloop.db")) as rows:
            database = read_database(rows)
        server = read_server(credentials, status["project_ref"])
    finally:
        local_server.down(folder / DEFAULT_STRATEGY)

    # 20 holdout images and two batches of 10; a task may have two answers where two people took it at the same moment.
    assert database["queries"] == database["tasks"] == server["tasks"] == 40
    assert database["labels"] == status["pool"]["labeled"] == server["labeled_tasks"] == 40
    assert database["holdout_labels"] == status["pool"]["holdout_labeled"] == 20
    assert (
        database["annotations"] == server["annotations"] == sum(who["label"] for who in status["annotators"].values())
    )
    assert set(status["annotators"]) <= {"ada@example.com", "ben@example.com", "cleo@example.com"}
    assert server["answers"] == database["answers"]
    measured = [row["metrics"]["accuracy"] for row in status["rounds"] if row["metrics"]]
    assert [point.accuracy.value for point in result.arms[DEFAULT_STRATEGY].curve] == [one["value"] for one in measured]
    assert [one["n"] for one in measured] == [20, 20] == [n for (n,) in database["metric_n"]]
    assert_draws(result, tmp_path / "accuracy.png")


def asked(workspace: Path, number: int) -> list[str]:
    return [
        query["sha256"]
        for query in alloop("round", "show", str(number), "-C", str(workspace), "--json").data["queries"]
    ]


def read_database(rows: sqlite3.Connection) -> dict[str, object]:
    def count(sql: str) -> int:
        return int(rows.execute(sql).fetchone()[0])

    answers = rows.execute(
        "SELECT q.key, a.value FROM annotation a JOIN query q ON q.id = a.query_id ORDER BY q.key, a.value"
    ).fetchall()
    return {
        "queries": count("SELECT count(*) FROM query"),
        "tasks": count("SELECT count(*) FROM task"),
        "labels": count("SELECT count(*) FROM label"),
        "holdout_labels": count(
            "SELECT count(*) FROM label JOIN image ON image.id = label.image_id WHERE image.split = 'holdout'"
        ),
        "annotations": count("SELECT count(*) FROM annotation WHERE outcome = 'label'"),
        "answers": answers,
        "metric_n": rows.execute(
            "SELECT n FROM metric WHERE name = 'accuracy' AND split = 'holdout' ORDER BY id"
        ).fetchall(),
    }


def read_server(credentials: local_server.Credentials, project: str) -> dict[str, object]:
    """Label Studio's own word, asked behind alloop's back."""
    reply = httpx.get(
        f"{credentials.url}/api/projects/{project}/export",
        params={"exportType": "JSON"},
        headers={"Authorization": f"Token {credentials.token}"},
        timeout=60,
    )
    tasks = json.loads(reply.text)
    answers = sorted(
        (task["data"]["alloop_key"], annotation["result"][0]["value"]["choices"][0])
        for task in tasks
        for annotation in task["annotations"]
    )
    return {
        "tasks": len(tasks),
        "labeled_tasks": sum(bool(task["annotations"]) for task in tasks),
        "annotations": sum(len(task["annotations"]) for task in tasks),
        "answers": answers,
    }


def assert_draws(result: DemoResult, path: Path) -> None:
    draw_curves({name: arm.curve for name, arm in result.arms.items()}, "digits", path)
    assert path.read_bytes().startswith(b"\x89PNG")
