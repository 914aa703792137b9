"""No name of a folder is read as a URL or a glob, and relative paths count from the workspace."""

import contextlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import alloop
from factories import make_project, make_settings, render_toml, write_pool
from sqlalchemy import create_engine

from alloop.cli import report as report_command
from alloop.engine.build import build_backbone, search_paths
from alloop.engine.settings import EngineSettings
from alloop.errors import ConfigError
from alloop.loop.workspace import create_workspace
from alloop.models.backbones import load_backbone
from alloop.project import open_project
from alloop.store import migrate
from alloop.store.session import describe, read_url

ODD_NAMES = ["cat?1", "my%20pets", "a#b", "a+b c", "pets[1]", "it's", "file:x", ":memory:", "mode=ro&x", "b\udcffd"]


def count_images(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(os.fsencode(path))) as rows:
        return int(rows.execute("SELECT count(*) FROM image").fetchone()[0])


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_workspace_of_any_name_keeps_its_database_to_itself(tmp_path: Path, name: str):
    write_pool(tmp_path / "photos", 6)
    (tmp_path / "other").mkdir()

    made = alloop("init", tmp_path / name, "--classes", "cat,dog", "--images", tmp_path / "photos")
    added = alloop("pool", "add", "-C", tmp_path / name)
    saved = alloop("db", "backup", "-C", tmp_path / name, tmp_path / name / "saved?.db")

    assert (made.code, added.code, saved.code) == (0, 0, 0), made.err + added.err + saved.err
    assert count_images(tmp_path / name / "alloop.db") == 6
    assert count_images(tmp_path / name / "saved?.db") == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "other", "photos", "truth.csv"])


def test_images_are_found_below_a_folder_whose_name_looks_like_a_glob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = tmp_path / "pets[1]"
    write_pool(home / "photos", 4)
    create_workspace(home, render_toml(make_settings(pool={"images": ["photos/*.png"]})))
    monkeypatch.chdir(home)
    made = alloop("init", "inner", "--classes", "cat,dog", "--images", "photos/*.png")

    by_settings = alloop("pool", "add", "--json")
    by_hand = alloop("pool", "add", "photos/*3.png", "--json")
    of_inner = alloop("pool", "add", "-C", "inner", "--json")

    assert made.code == 0
    assert by_settings.data["new"] == 4
    assert by_hand.data["unchanged"] == 1
    assert of_inner.data["new"] == 4


def test_a_name_that_is_not_utf_8_is_shown_with_escapes(tmp_path: Path):
    made = subprocess.run(
        [sys.executable, "-m", "alloop", "init", os.fsencode(tmp_path / "b\udcffd"), "--classes", "cat,dog"],
        capture_output=True, text=True, env={**os.environ, "PYTHONUTF8": "1"},
    )  # fmt: skip

    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith(f"Made {tmp_path}/b\\udcffd for 2 classes")


def test_a_folder_that_toml_cannot_hold_is_refused_by_its_name(tmp_path: Path):
    made = alloop("init", tmp_path / "pets", "--classes", "cat,dog", "--images", tmp_path / "b\udcffd")

    assert made.code == 1
    assert "b\\xffd is not valid UTF-8" in made.err
    assert not (tmp_path / "pets" / "alloop.toml").exists()


def test_the_database_counts_from_the_workspace_wherever_the_command_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    write_pool(tmp_path / "photos", 6)
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets" / "alloop.toml").write_text(render_toml(make_settings(database={"url": "sqlite:///labels.db"})))

    refused = alloop("pool", "add", tmp_path / "photos", "-C", "../pets")
    assert refused.code == 1
    assert f"The database {tmp_path / 'pets' / 'labels.db'} is empty." in refused.err
    assert alloop("db", "upgrade", "-C", "../pets").code == 0
    assert alloop("pool", "add", tmp_path / "photos", "-C", "../pets").code == 0
    monkeypatch.chdir(tmp_path / "pets")

    assert len(alloop("pool", "list", "--json").data) == 6
    assert count_images(tmp_path / "pets" / "labels.db") == 6
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:labels.db?uri=true"])
def test_a_database_without_a_file_is_refused(url: str, tmp_path: Path):
    with pytest.raises(ConfigError, match="does not name a file"):
        read_url(url, tmp_path)


def test_a_url_whose_file_is_cut_off_is_refused_with_what_is_left(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"would be cut at its '\?', which leaves /data/cat"):
        read_url("sqlite:////data/cat?1/labels.db", tmp_path)

    assert describe(read_url("sqlite:////data/x.db?timeout=5", tmp_path)) == "/data/x.db"
    assert read_url("postgresql://ada@localhost/pets", tmp_path).database == "pets"


def test_every_file_that_the_settings_name_counts_from_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    project = make_project(
        tmp_path,
        12,
        pool={"images": ["photos"]},
        evaluation={"test": "held"},
        labeling={"backend": "csv"},
        labeling__csv={"folder": "~/asked"},
    )
    write_pool(project.folder / "held" / "cat", 2, classes=["cat", "dog"], first=100)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)

    ran = alloop("run", "-C", "../pets", "--json")

    assert ran.code == 0, ran.err
    assert [path.name for path in (tmp_path / "home" / "asked").glob("*.csv")] == ["batch-0001.csv"]
    assert list(elsewhere.iterdir()) == []


def test_the_oracle_may_be_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path / "pets"))
    project = make_project(tmp_path, 12, labeling__oracle={"file": "~/truth.csv"})

    assert alloop("run", "-C", project.folder).code == 0


def test_a_weights_file_counts_from_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "trunk.py").write_text(
        "import torch\n\ndef make():\n    return torch.nn.Sequential(\n"
        "        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2))\n"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "scratch").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "scratch")
    monkeypatch.chdir(elsewhere)
    trunk = load_backbone("trunk:make", "none", None, [tmp_path], 3)
    torch.save(trunk.module.state_dict(), tmp_path / "w.pth")
    create_workspace(
        tmp_path, render_toml(make_settings(model={"backbone": "trunk:make", "weights": "w.pth", "image_size": 8}))
    )
    with open_project(tmp_path, {}) as project:
        config = project.config

    loaded = build_backbone(EngineSettings.of(config), search_paths(tmp_path / "cache"))

    assert torch.equal(loaded.module[2].weight, trunk.module[2].weight)


def test_the_migrations_may_lie_in_a_folder_with_a_percent_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = tmp_path / "my%20env" / "migrations"
    place.parent.mkdir()
    place.symlink_to(migrate.migrations_folder())
    monkeypatch.setattr(migrate, "migrations_folder", lambda: place)
    database = create_engine(f"sqlite:///{tmp_path / 'a.db'}")

    migrate.upgrade(database)

    assert migrate.current_revision(database) == migrate.head_revision()
    database.dispose()


def test_a_report_is_opened_by_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    project = make_project(tmp_path, 6, name="my%20pets#1")
    opened: list[str] = []
    monkeypatch.setattr(report_command.click, "launch", opened.append)

    alloop("report", "-C", project.folder, "--open", "--json")

    assert opened == [f"file://{tmp_path}/my%2520pets%231/report.html"]
