"""`alloop serve`: live pages of the workspace in a browser."""

from collections.abc import Callable
from pathlib import Path

import click

from alloop.cli._options import Session, common_options
from alloop.errors import ConfigError

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
SHORTEST_TOKEN = 16


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8571, show_default=True, help="Port to listen on.")
@click.option("--name", "names", multiple=True, metavar="HOST", help="Further name of this server in the browser.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with the token that people log in with; needed unless --host is this machine only.",
)
@click.option("--read-only", "is_read_only", is_flag=True, help="Refuse every action; the pages only show.")
@click.option("--open", "is_shown", is_flag=True, help="Open the first page in the browser.")
@common_options
def serve(
    session: Session,
    host: str,
    port: int,
    names: tuple[str, ...],
    token_file: Path | None,
    is_read_only: bool,
    is_shown: bool,
) -> None:
    """Show the project in a browser: results, images, mistakes, people.

    The pages follow what other commands change. They can run the next step, ask for images and mark images as junk,
    unless --read-only is given. Ctrl-C ends the server, and a step that it runs; the next step goes on from there.
    """
    token = _read_token(host, token_file)
    session.project().close()  # refuses a folder that is no workspace before anything else
    run = load_server()
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}/"

    def ready() -> None:
        session.show({"address": address}, f"{address}  (Ctrl-C ends the server)")
        if is_shown:
            click.launch(address)

    run(session.workspace, host, port, hosts_of(host, port, names), token, ready, is_read_only=is_read_only)


def load_server() -> "Callable[..., None]":
    """Return `alloop.serve.app.serve`.

    Raises:
        ConfigError: The extra `serve` is not installed.
    """
    try:
        from alloop.serve.app import serve as run
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise ConfigError(
            f"The package {error.name} is missing.", "Install it: pip install 'alloop[serve]'."
        ) from error
    return run


def _read_token(host: str, file: Path | None) -> str | None:
    if file is None and host not in _LOOPBACK:
        raise ConfigError(
            f"Everybody who reaches {host} could see the project.",
            "Write a long random token to a file, and name the file: --token-file FILE.",
        )
    if file is None:
        return None
    token = file.read_text(encoding="utf-8").strip()
    if len(token) < SHORTEST_TOKEN:
        raise ConfigError(
            f"The token in {file} is too short: it has {len(token)} characters, and {SHORTEST_TOKEN} are needed.",
            "Make one: python -c 'import secrets; print(secrets.token_urlsafe())'.",
        )
    return token


def hosts_of(host: str, port: int, names: tuple[str, ...]) -> set[str]:
    """Return the names of this server, with the port, as browsers send them."""
    import socket

    known = {host, *names, *(_LOOPBACK if host in _LOOPBACK else (socket.gethostname(), "localhost", "127.0.0.1"))}
    shown = {f"[{name}]" if ":" in name else name for name in known}
    return {f"{name}:{port}" for name in shown} | ({*shown} if port in (80, 443) else set()) | set(names)
