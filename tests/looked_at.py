"""A workspace with a real Label Studio, checked in three places: its database, its commands, the server."""

import contextlib
import csv
import dataclasses
import hashlib
import shutil
import sqlite3
import uuid
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alloop_process import Ended, Forks, Kill
from factories import CLASSES, render_toml, write_picture
from label_studio_server import LabelStudioServer

from alloop.files import sha256_of


@dataclasses.dataclass(frozen=True)
class Workspace:
    """A workspace. `truth` maps content hashes to classes."""

    folder: Path
    server: LabelStudioServer
    forks: Forks
    truth: Mapping[str, str]

    # --- commands

    def alloop(self, *argv: str, kill: Kill | None = None, **env: str) -> Ended:
        return self.forks.end(self.start(*argv, kill=kill, **env))

    def start(self, *argv: str, kill: Kill | None = None, **env: str) -> int:
        """Start a command beside the test and return its process id; `forks.end` waits for its end."""
        environ = {"LABEL_STUDIO_API_KEY": self.server.credentials.token, **env}
        return self.forks.start(*argv, "-C", str(self.folder), env=environ, kill=kill)

    def run(self) -> dict[str, Any]:
        """Call `alloop run`, which must succeed, and return its output."""
        ended = self.alloop("run", "--json", "-q")
        assert ended.rc == 0, (ended.rc, ended.out, ended.err)
        return ended.json()

    def finish(self) -> None:
        """Run and answer in turn until a stop rule holds."""
        for _ in range(10):
            stage = self.run()["stage"]
            if stage == "done":
                return
            if stage == "waiting":
                self.answer()
        raise AssertionError("it does not come to an end")

    def status(self) -> dict[str, Any]:
        return self.alloop("status", "--json").json()

    # --- the database

    def sql(self, query: str, *args: Any) -> list[tuple[Any, ...]]:
        place = f"file:{self.folder / 'alloop.db'}?mode=ro"
        with contextlib.closing(sqlite3.connect(place, uri=True)) as connection:
            return connection.execute(query, args).fetchall()

    @property
    def uuid(self) -> str:
        ((found,),) = self.sql("SELECT uuid FROM workspace")
        return found

    @property
    def project(self) -> str:
        ((found,),) = self.sql("SELECT project_ref FROM sync_state")
        return found

    # --- the server

    def projects(self) -> list[dict[str, Any]]:
        """Return the projects that this workspace made."""
        found = self.server.api("GET", "/api/projects/?page_size=1000&include=id,description").json()["results"]
        return [row for row in found if f"alloop-workspace:{self.uuid}" in (row["description"] or "")]

    def tasks(self, project: str | None = None) -> list[dict[str, Any]]:
        """Return all tasks with their annotations."""
        path = f"/api/tasks?project={project or self.project}&page_size=1000&resolve_uri=false&fields=all"
        return self.server.api("GET", path).json()["tasks"]

    def answer(self, most: int | None = None, project: str | None = None) -> list[int]:
        """Answer all open tasks with the true class; return the ids of the annotations."""
        waiting = [task for task in self.tasks(project) if not task["annotations"]]
        return [self.annotate(task, self.truth[task["data"]["alloop_sha256"]]) for task in waiting[:most]]

    def annotate(self, task: Mapping[str, Any], value: str | None, **more: Any) -> int:
        choices = [{"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [value]}}]
        body = {"result": choices if value else [], "lead_time": 1.5, **more}
        reply = self.server.api("POST", f"/api/tasks/{task['id']}/annotations/", json=body)
        assert reply.status_code == 201, reply.text
        return int(reply.json()["id"])

    # --- everything

    def outcome(self) -> dict[str, Any]:
        """Return everything that two runs with the same seed, images and answers must have in common."""
        files = {}
        for name, path in self.sql("SELECT name, path FROM model_version"):
            files[name] = sha256_of(self.folder / path / "model.safetensors")
        return {
            "rounds": self.sql("SELECT number, state, seed, closed_because, scores_sha256 FROM round ORDER BY number"),
            "queries": self.sql(
                "SELECT r.number, q.rank, i.sha256, q.reason, q.strategy, q.status, q.score, q.probability, q.predicted"
                " FROM query q JOIN round r ON r.id = q.round_id JOIN image i ON i.id = q.image_id ORDER BY 1, 2"
            ),
            "splits": self.sql("SELECT sha256, split FROM image ORDER BY 1"),
            "labels": self.sql(
                "SELECT i.sha256, l.class_name, l.n_annotations FROM label l JOIN image i ON i.id = l.image_id"
                " ORDER BY i.sha256"
            ),
            "models": self.sql("SELECT name, sha256, label_digest, n_labels, n_holdout FROM model_version ORDER BY id"),
            "model files": files,
            "metrics": self.sql("SELECT model_version_id, name, value, low, high, n FROM metric ORDER BY 1, 2"),
        }

    def check(self) -> None:
        """Check the rules that hold while no command runs: nothing twice, nothing lost, all three places agree."""
        tasks = self.tasks()
        self._check_tasks(tasks)
        self._check_annotations(tasks)
        self.check_training()
        self._check_status(tasks)

    def _check_tasks(self, tasks: list[dict[str, Any]]) -> None:
        queries = self.sql("SELECT q.key, q.status, t.external_id FROM query q LEFT JOIN task t ON t.query_id = q.id")
        assert [key for key, _, task in queries if task is None] == []
        on_server = Counter(task["data"]["alloop_key"] for task in tasks)
        assert on_server == Counter(key for key, _, _ in queries)
        assert {f"{task['id']}:{task['data']['alloop_key']}" for task in tasks} == {ref for _, _, ref in queries}
        twice = self.sql("SELECT image_id FROM query WHERE status = 'open' GROUP BY image_id HAVING count(*) > 1")
        assert twice == []
        assert self.sql("SELECT image_id FROM query GROUP BY image_id HAVING count(*) > 1") == []
        assert len(self.projects()) == 1
        # No task was made twice and deleted afterwards.
        assert self.sql("SELECT data FROM event WHERE kind = 'copies taken back'") == []

    def _check_annotations(self, tasks: list[dict[str, Any]]) -> None:
        on_server = {
            (str(annotation["id"]), task["data"]["alloop_sha256"], annotation["result"][0]["value"]["choices"][0])
            for task in tasks
            for annotation in task["annotations"]
        }
        recorded = self.sql(
            "SELECT a.external_id, i.sha256, a.value, a.version FROM annotation a JOIN image i ON i.id = a.image_id"
            " WHERE a.source = 'label-studio'"
        )
        assert len(recorded) == len(on_server)
        assert {(name.rpartition("/")[2], sha256, value) for name, sha256, value, _ in recorded} == on_server
        assert {version for *_, version in recorded} <= {1}

    def check_training(self) -> None:
        """Check that the newest model was trained on exactly the training labels, and only measured on the holdout."""
        labels = self.sql("SELECT i.split, i.sha256, l.class_name FROM label l JOIN image i ON i.id = l.image_id")
        digest = [f"class {name}" for name in CLASSES]
        for split in ("train", "holdout"):
            digest += sorted(f"{split} {sha256} {name}" for where, sha256, name in labels if where == split)
        newest = self.sql("SELECT label_digest, n_labels, n_holdout FROM model_version ORDER BY id DESC LIMIT 1")
        n_train = sum(split == "train" for split, _, _ in labels)
        n_holdout = sum(split == "holdout" for split, _, _ in labels)
        assert newest == [(hashlib.sha256("\n".join(digest).encode()).hexdigest(), n_train, n_holdout)]
        asked = self.sql("SELECT i.split, q.reason FROM query q JOIN image i ON i.id = q.image_id")
        assert all((split == "holdout") == (reason == "holdout") for split, reason in asked)

    def _check_status(self, tasks: list[dict[str, Any]]) -> None:
        status = self.status()
        labels = self.sql("SELECT i.split FROM label l JOIN image i ON i.id = l.image_id")
        assert status["pool"]["labeled"] == len(labels)
        assert status["pool"]["holdout_labeled"] == sum(split == "holdout" for (split,) in labels)
        assert status["pool"]["open"] == sum(not task["annotations"] for task in tasks)
        assert status["project_ref"] == self.project
        asked = sum(n for row in status["rounds"] for n in row["queries"].values())
        assert asked == len(tasks)
        answered = {who: counts for who, counts in status["annotators"].items() if not who.startswith("import:")}
        n_answers = sum(len(task["annotations"]) for task in tasks)
        assert answered == ({self.server.credentials.email: {"label": n_answers}} if n_answers else {})


def make_pool(server: LabelStudioServer, name: str, n: int) -> tuple[Path, dict[str, str]]:
    """Write n tiny pictures where the server sees them, and return their classes."""
    folder, truth = server.images / name, {}
    for number in range(n):
        label = CLASSES[number % len(CLASSES)]
        truth[sha256_of(write_picture(folder / f"{number:04d}.png", label=label, number=number))] = label
    return folder, truth


def make_workspace(
    folder: Path,
    server: LabelStudioServer,
    forks: Forks,
    pool: tuple[Path, dict[str, str]],
    known: int = 0,
    **changes: Mapping[str, Any],
) -> Workspace:
    """Make a workspace with a pool; the first `known` images have labels already."""
    workspace = Workspace(folder, server, forks, pool[1])
    folder.mkdir(parents=True)
    write_settings(workspace, pool[0], **changes)
    for argv in (["db", "upgrade"], ["pool", "add"]):
        ended = workspace.alloop(*argv)
        assert ended.rc == 0, ended.err
    if known:
        with (folder / "known.csv").open("w", newline="") as file:
            rows = [("sha256", "label"), *list(pool[1].items())[:known]]
            csv.writer(file).writerows(rows)
        ended = workspace.alloop("labels", "import", str(folder / "known.csv"))
        assert ended.rc == 0, ended.err
    return workspace


def write_settings(workspace: Workspace, images: Path, **changes: Mapping[str, Any]) -> None:
    """Write an alloop.toml for a small, quick project on the real server."""
    server = workspace.server
    sections: dict[str, dict[str, Any]] = {
        "project": {"name": "crash", "classes": list(CLASSES), "seed": 3},
        "pool": {"images": [str(images)], "near_duplicates": False},
        "model": {"backbone": "pixels", "weights": "none", "image_size": 8, "members": 2, "device": "cpu"},
        "train": {"workers": 0},
        "loop": {"batch_size": 5, "max_rounds": 1},
        "evaluation": {"holdout_size": 6, "holdout_share": 0.25},
        "labeling": {"backend": "label-studio", "poll_seconds": 0.2},
        "labeling.label_studio": {"url": server.url, "push_batch": 3, "timeout": 30.0},
        "labeling.images": {"root": server.credentials.document_root},
    }
    for name, values in changes.items():
        sections.setdefault(name.replace("__", "."), {}).update(values)
    (workspace.folder / "alloop.toml").write_text(render_toml(sections))


def copied(workspace: Workspace, folder: Path, *, new_identity: bool) -> Workspace:
    """Return a copy of the workspace in another place; with a new identity, it makes its own project."""
    shutil.copytree(workspace.folder, folder)
    if new_identity:
        with contextlib.closing(sqlite3.connect(folder / "alloop.db")) as connection, connection:
            connection.execute("UPDATE workspace SET uuid = ?", (uuid.uuid4().hex,))
    return dataclasses.replace(workspace, folder=folder)
