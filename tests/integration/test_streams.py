"""Output to unusual places: closed streams, pipes that nobody reads, links and devices instead of files, full disks."""

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import alloop
from factories import at_bench, make_project, write_picture

from alloop.cli.main import cli
from alloop.loop.intake.ingest import add_images
from alloop.loop.intake.labels import import_labels
from alloop.project import Project

CLOSED_PIPE = 141  # 128 + SIGPIPE, as a shell says it


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = make_project(tmp_path_factory.mktemp("streams"), n=4)
    made.folder.joinpath("known.csv").write_text("file,label\n0000.png,cat\n0001.png,dog\n")
    at_bench(made, import_labels, made.folder / "known.csv")
    made.close()
    return made


def shell(project: Project, command: str) -> "subprocess.CompletedProcess[str]":
    """A command line with `alloop` in it, in the workspace."""
    run = f'alloop() {{ "{sys.executable}" -m alloop "$@"; }}; {command}'
    return subprocess.run(["bash", "-c", run], cwd=project.folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("command", ["status >&-", "pool add photos 2>&-", "--help >&- 2>&- <&-"])
def test_a_closed_stream_is_no_error(project: Project, command: str):
    ended = shell(project, f"alloop {command}")

    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_command_that_is_interrupted_before_it_did_anything_does_not_say_that_work_was_recorded(
    monkeypatch: pytest.MonkeyPatch,
):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "main", interrupted)

    ended = alloop("status")

    assert (ended.code, ended.out) == (130, "")
    assert ended.err == "Interrupted. Nothing that was recorded is lost. You can run the same command again.\n"


def test_labels_for_a_closed_stream_are_refused(project: Project):
    ended = shell(project, "alloop labels export - >&-")

    assert ended.returncode == 1
    assert ended.stderr == "Error: /dev/stdout could not be written: Bad file descriptor.\n"


@pytest.mark.parametrize("command", ["status", "--help", "strategies", "labels export -"])
def test_a_pipe_that_nobody_reads_ends_quietly(project: Project, command: str):
    reading, writing = os.pipe()
    os.close(reading)

    ended = subprocess.run(
        [sys.executable, "-m", "alloop", *command.split()],
        cwd=project.folder, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120,
    )  # fmt: skip

    os.close(writing)
    assert (ended.returncode, ended.stderr) == (CLOSED_PIPE, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["status --json", "labels export -"])
def test_output_that_cannot_be_written_is_an_error_in_a_line(project: Project, command: str):
    ended = shell(project, f"alloop {command} > /dev/full")

    assert ended.returncode == 1
    assert ended.stderr.startswith("Error: ")
    assert "Traceback" not in ended.stderr


def test_no_file_of_ours_gets_the_number_of_a_closed_stream(project: Project):
    ended = shell(project, "alloop db backup kept.db >&- 2>&- <&- && alloop db check -q")

    assert (ended.returncode, ended.stderr) == (0, "")
    with contextlib.closing(sqlite3.connect(project.folder / "kept.db")) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    (project.folder / "kept.db").unlink()


@pytest.mark.parametrize(
    ("target", "way"), [("-", ">> got.csv"), ("/dev/stdout", "> got.csv"), ("-", "| cat > got.csv")]
)
def test_labels_go_to_standard_output(project: Project, target: str, way: str):
    (project.folder / "got.csv").write_text("")

    ended = shell(project, f"alloop labels export {target} {way}")

    lines = (project.folder / "got.csv").read_text().splitlines()
    assert lines[0].startswith("file,sha256,label,split,agreement,annotations,provenance,")
    assert sorted(line.split(",")[2] for line in lines[1:]) == ["cat", "dog"]
    assert ended.stderr == "2 labels written to /dev/stdout.\n"
    assert not (project.folder / "-").exists()


def test_a_page_and_a_backup_go_to_standard_output(project: Project):
    page = shell(project, "alloop report -o -")
    assert page.stdout.lower().startswith("<!doctype")
    assert page.stdout.endswith("</html>\n") or page.stdout.endswith("</html>")

    shell(project, "alloop db backup - > copy.db")
    with contextlib.closing(sqlite3.connect(project.folder / "copy.db")) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    (project.folder / "copy.db").unlink()


def test_a_linked_target_is_written_through_the_link(project: Project, tmp_path: Path):
    for name in ("labels.csv", "page.html", "copy.db"):
        (tmp_path / name).symlink_to(tmp_path / f"real-{name}")

    ended = shell(
        project,
        f"alloop labels export {tmp_path}/labels.csv && alloop report -o {tmp_path}/page.html "
        f"&& alloop db backup {tmp_path}/copy.db",
    )

    assert ended.returncode == 0, ended.stderr
    assert all((tmp_path / name).is_symlink() for name in ("labels.csv", "page.html", "copy.db"))
    assert (tmp_path / "real-copy.db").stat().st_size > 0


def test_json_may_go_through_a_substituted_process(project: Project, tmp_path: Path):
    shell(project, f"alloop labels export --format jsonl >(cat > {tmp_path}/got) && sleep 0.5")

    assert len((tmp_path / "got").read_text().splitlines()) == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("target", ["out", ""])
def test_a_full_disk_leaves_no_half_export(tmp_path: Path, small_disk: Path, target: str):
    project = make_project(tmp_path, n=0, add=False)
    for number in range(40):
        picture = write_picture(project.folder / "photos" / f"{number}.png", label="cat", number=number)
        with picture.open("ab") as file:
            file.write(bytes(10_000))  # Pillow does not mind what follows a PNG
    at_bench(project, add_images, [str(project.folder / "photos")])
    rows = "".join(f"{number}.png,{('cat', 'dog')[number % 2]}\n" for number in range(40))
    (project.folder / "known.csv").write_text(f"file,label\n{rows}")
    at_bench(project, import_labels, project.folder / "known.csv")

    full = shell(project, f"alloop labels export {small_disk / target} --format folders --copy")

    assert full.returncode == 1
    assert full.stderr.startswith("Error: The disk is full: ")
    assert "Traceback" not in full.stderr
    assert list(small_disk.iterdir()) == []
    again = shell(project, f"alloop labels export {small_disk / target} --format folders")
    assert again.returncode == 0, again.stderr
