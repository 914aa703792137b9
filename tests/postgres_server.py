"""A real PostgreSQL for tests: its own cluster in a temporary folder, on a free port, gone afterwards."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SERVER_SETTINGS = "-c fsync=off -c synchronous_commit=off -c full_page_writes=off -c max_connections=40"


def find_binaries() -> Path | None:
    """Return the folder with initdb and pg_ctl: from PATH, or from Debian's folders."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    return next((folder for folder in reversed(folders) if (folder / "initdb").exists()), None)


def server_user() -> str | None:
    """Return another user's name under root, because PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)


@pytest.fixture(scope="session")
def postgres_port() -> Iterator[int]:
    """Run a server that trusts the user "alloop" on 127.0.0.1; skip the test if PostgreSQL is not installed."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed (no initdb in PATH or /usr/lib/postgresql)")
    user = server_user()
    with tempfile.TemporaryDirectory(prefix="alloop-pg-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        home = folder / "home"
        home.mkdir()
        if user is not None:
            shutil.chown(home, user)

        def call(*arguments: str) -> None:
            done = subprocess.run(arguments, cwd=home, user=user, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{arguments[0]} failed: {done.stdout}{done.stderr}"

        data = str(home / "data")
        call(str(binaries / "initdb"), "-D", data, "-U", "alloop", "-A", "trust", "-E", "UTF8", "--no-sync")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={home} {SERVER_SETTINGS}"
        # pg_ctl's children keep an inherited pipe open, so it logs to a file.
        with (folder / "start.log").open("wb") as log:
            start = [str(binaries / "pg_ctl"), "-D", data, "-o", options, "-l", str(home / "log"), "-w", "start"]
            subprocess.run(start, cwd=home, user=user, stdout=log, stderr=log, check=True)
        try:
            yield port
        finally:
            call(str(binaries / "pg_ctl"), "-D", data, "-m", "immediate", "-w", "stop")
