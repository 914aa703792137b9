import json
import os
import socket
import sys
from pathlib import Path

import pytest

from alloop.errors import LabelingError, WorkspaceError
from alloop.labeling import local_install, local_process, local_server

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
]


def wait_for_word(log: Path) -> None:
    while "up" not in log.read_text():
        pass


def test_a_started_process_is_found_again_and_stopped(tmp_path: Path):
    started = local_process.start(SLEEP, os.environ, tmp_path / "log", tmp_path / "record")

    found = local_process.find(tmp_path / "record")

    assert found == started
    assert found.is_alive()
    assert local_process.stop(found)
    assert not found.is_alive()
    assert not local_process.stop(found)


def test_a_process_that_ignores_the_polite_request_is_ended_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(local_process, "_STOP_SECONDS", 0.2)
    process = local_process.start(STUBBORN, os.environ, tmp_path / "log", tmp_path / "record")
    wait_for_word(tmp_path / "log")

    assert local_process.stop(process)
    assert not process.is_alive()


def test_a_stranger_with_the_same_number_is_left_alone(tmp_path: Path):
    ours = local_process.start(SLEEP, os.environ, tmp_path / "log", tmp_path / "record")
    (tmp_path / "record").write_text(json.dumps({"pid": ours.pid, "started": "12345"}))

    stranger = local_process.find(tmp_path / "record")

    assert not local_process.stop(stranger)
    assert ours.is_alive()
    local_process.stop(ours)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}'])
def test_a_damaged_record_is_no_process(tmp_path: Path, text: str):
    (tmp_path / "record").write_text(text)

    assert local_process.find(tmp_path / "record") is None


def test_without_a_server_there_is_nothing_to_tell_or_stop(tmp_path: Path):
    status = local_server.status(tmp_path)

    assert (status.url, status.pid, status.running, status.healthy) == (None, None, False, False)
    assert not local_server.down(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def fake_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment whose label-studio is a script of the test."""
    venv = tmp_path / "venv"
    site = venv / "lib" / "python3.11" / "site-packages" / f"label_studio-{local_install.VERSION}.dist-info"
    site.mkdir(parents=True)
    (site / "RECORD").touch()
    (venv / "bin").mkdir()
    (venv / "alloop").mkdir()
    (venv / "alloop" / f"empty-{local_install.VERSION}.sqlite3").touch()
    monkeypatch.setenv(local_install.VENV_VARIABLE, str(venv))
    return venv


def write_program(venv: Path, text: str) -> None:
    program = local_install.program(venv)
    program.write_text(f"#!{sys.executable}\n{text}")
    program.chmod(0o755)


ANSWER_EVERYTHING = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        ok = self.headers["Authorization"] == "Token " + os.environ["LABEL_STUDIO_USER_TOKEN"]
        self.send_response(200 if ok else 401); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[-1])), Handler).serve_forever()
"""


def test_up_starts_once_and_down_stops(fake_install: Path, tmp_path: Path):
    write_program(fake_install, ANSWER_EVERYTHING)
    workspace, pool = tmp_path / "ws", tmp_path / "pool"
    pool.mkdir()
    heard: list[str] = []

    first = local_server.up(workspace, [pool], progress=lambda label, done, total: heard.append(label))
    second = local_server.up(workspace, [pool])

    assert first.healthy
    assert not first.already_running
    assert second.already_running
    assert second.pid == first.pid
    assert "starting Label Studio" in heard
    credentials = local_server.read_credentials(workspace)
    assert Path(dict(credentials.folders)[str(pool)]).resolve() == pool
    assert local_server.down(workspace)
    assert not local_server.status(workspace).running


def test_a_second_start_keeps_user_token_and_folders(fake_install: Path, tmp_path: Path):
    write_program(fake_install, ANSWER_EVERYTHING)
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    local_server.up(tmp_path, [one])
    before = local_server.read_credentials(tmp_path)
    local_server.up(tmp_path, [two])  # a running server sees a new folder at once
    local_server.down(tmp_path)

    local_server.up(tmp_path)

    after = local_server.read_credentials(tmp_path)
    assert (after.token, after.password) == (before.token, before.password)
    assert set(dict(after.folders)) == {str(one), str(two)}
    local_server.down(tmp_path)


def test_no_secret_is_given_on_the_command_line(fake_install: Path, tmp_path: Path):
    write_program(fake_install, ANSWER_EVERYTHING)
    status = local_server.up(tmp_path)
    credentials = local_server.read_credentials(tmp_path)
    command = Path(f"/proc/{status.pid}/cmdline")

    if command.exists():
        assert credentials.token not in command.read_text()
        assert credentials.password not in command.read_text()
    assert credentials.token not in status.log.read_text()
    local_server.down(tmp_path)


def test_a_start_that_fails_shows_the_servers_last_words_and_its_log(fake_install: Path, tmp_path: Path):
    write_program(fake_install, "import sys; sys.exit('no database today')")

    with pytest.raises(LabelingError, match="no database today") as caught:
        local_server.up(tmp_path)

    assert "server.log" in caught.value.hint
    assert not local_server.status(tmp_path).running


def test_a_taken_port_is_refused_beforehand(fake_install: Path, tmp_path: Path):
    write_program(fake_install, ANSWER_EVERYTHING)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(LabelingError, match=f"Port {port} on 127.0.0.1 is taken"):
            local_server.up(tmp_path, port=port)


def test_a_pool_folder_that_is_none_is_named(fake_install: Path, tmp_path: Path):
    with pytest.raises(WorkspaceError, match="nowhere is not a folder"):
        local_server.up(tmp_path, [tmp_path / "nowhere"])


def test_an_interrupted_installation_does_not_count(fake_install: Path):
    write_program(fake_install, "")
    assert local_install.install() == fake_install
    (fake_install / "alloop" / "begun.json").touch()

    assert not local_install._is_complete(fake_install)
    (fake_install / "alloop" / "done.json").touch()
    assert local_install._is_complete(fake_install)


def test_a_folder_with_something_else_is_never_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "thesis.tex").touch()
    monkeypatch.setenv(local_install.VENV_VARIABLE, str(tmp_path))

    with pytest.raises(LabelingError, match="does not hold Label Studio"):
        local_install.install()
    assert (tmp_path / "thesis.tex").exists()


def test_a_failed_installation_shows_why_and_leaves_no_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    venv = tmp_path / "venv"
    monkeypatch.setenv(local_install.VENV_VARIABLE, str(venv))
    failing = [sys.executable, "-c", "import sys; sys.exit('no space left')"]
    monkeypatch.setattr(local_install, "_install_commands", lambda venv: [failing])

    with pytest.raises(LabelingError, match="no space left") as caught:
        local_install.install()

    assert "install.log" in caught.value.hint
    assert not local_install._is_complete(venv)
