"""`alloop demo`: a whole project in a few minutes."""

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alloop.cli._options import Session, common_options

if TYPE_CHECKING:
    from alloop.simulate.demo import DemoResult

HOST, PORT = "127.0.0.1", 8571  # of the pages that --keep shows


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path("demo-workspace"))
@click.option(
    "--labeler",
    type=click.Choice(["label-studio", "oracle"]),
    default="label-studio",
    show_default=True,
    help="Scripted people in a real Label Studio, or an oracle without a server.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Rounds of 50 labels each.")
@click.option("--keep", is_flag=True, help="Show the project's pages and Label Studio until Ctrl-C.")
@common_options
def demo(session: Session, folder: Path, labeler: str, rounds: int, keep: bool) -> None:
    """See a whole project on scikit-learn's digits.

    Writes 1,797 images and starts a local Label Studio (the first time, it installs it, about 1 GB). Three scripted
    people label for five rounds through its web interface, with a few mistakes. alloop's default strategy is compared
    with random choice at the same number of labels. FOLDER is created, or replaced if the demo made it.
    """
    from alloop.report.curves import draw_curves
    from alloop.simulate.demo import DemoSettings, run_demo

    started = time.perf_counter()
    settings = DemoSettings(folder=folder, labeler=labeler, rounds=rounds, keep=keep)  # type: ignore[arg-type]
    result = run_demo(settings, session.executor(), session.progress())
    picture = folder / "accuracy.png"
    title = f"scikit-learn digits: {' against '.join(result.arms)}"
    draw_curves({name: arm.curve for name, arm in result.arms.items()}, title, picture)
    if session.as_json:
        session.show(_data(result, picture))
        return
    _print(result, folder, picture, time.perf_counter() - started)
    if keep:
        keep_open(next(iter(result.arms.values())).workspace, result.url)


def _print(result: "DemoResult", folder: Path, picture: Path, seconds: float) -> None:
    from alloop.cli._tables import print_table, print_text

    curves = [arm.curve for arm in result.arms.values()]
    lines = [
        [("/".join(dict.fromkeys(str(p.n_labels) for p in points)), 0)]
        + [(f"{p.accuracy.value:.1%} [{p.accuracy.low:.1%}, {p.accuracy.high:.1%}]", 0) for p in points]
        for points in zip(*curves, strict=False)
    ]
    title = "Holdout accuracy [95 % Wilson interval] by number of training labels"
    print_table((title, ["labels", *result.arms], lines), left=frozenset())
    n = curves[0][-1].accuracy.n if curves[0] else 0
    print_text(
        f"The holdout has {n} images that no strategy chose and no model trained on. Its labels include people's "
        "mistakes."
    )
    for name, arm in result.arms.items():
        if arm.rest is None:
            continue
        print_text(
            f"{name}: {arm.rest.value:.1%} [{arm.rest.low:.1%}, {arm.rest.high:.1%}] correct on the {arm.rest.n} "
            "images that nobody was asked about (their labels are known in a demo only)"
        )
    print_text(f"\nPicture: {picture}   Took {seconds:.0f} s.\nLook around:")
    ours = next(iter(result.arms.values())).workspace
    print_text(f"  alloop status -C {ours}")
    print_text(f"  alloop round show 1 -C {ours}")
    print_text(f"  alloop serve -C {ours}")
    if result.url is None:
        print_text(f"  alloop labelstudio up -C {ours}")


def keep_open(workspace: Path, url: str | None, port: int = PORT) -> None:
    """Serve the workspace's pages, and leave its Label Studio running, until Ctrl-C. The last lines say the addresses.

    Args:
        workspace: The workspace.
        url: Address of its Label Studio; None if there is none.
        port: First port to try.
    """
    from alloop.cli._tables import print_text
    from alloop.cli.serve import hosts_of, load_server
    from alloop.errors import ConfigError
    from alloop.labeling import local_server

    account = f"user and password: {workspace / 'label-studio/credentials.json'}"
    studio = "" if url is None else f"Label Studio: {url} ({account})"
    try:
        serve = load_server()
    except ConfigError as error:  # only the pages are missing
        print_text(f"\nNo pages: {error}")
        if studio:
            print_text(f"{studio}\nIt is stopped by `alloop labelstudio down -C {workspace}`.")
        return
    port = _free_port(port)

    def ready() -> None:
        print_text(f"\nPages: http://{HOST}:{port}/")
        print_text("\n".join(filter(None, (studio, "Ctrl-C ends both." if studio else "Ctrl-C ends them."))))

    try:
        with contextlib.suppress(KeyboardInterrupt):
            serve(workspace, HOST, port, hosts_of(HOST, port, ()), None, ready)
    finally:
        if url is not None:
            local_server.down(workspace)


def _free_port(first: int) -> int:
    """Return this port, or any free one if it is taken."""
    import socket

    with socket.socket() as tried:
        try:
            tried.bind((HOST, first))
        except OSError:
            tried.bind((HOST, 0))
        return int(tried.getsockname()[1])


def _data(result: "DemoResult", picture: Path) -> dict[str, Any]:
    import dataclasses

    arms = {
        name: {
            "workspace": str(arm.workspace),
            "curve": [dataclasses.asdict(point) for point in arm.curve],
            "rest": None if arm.rest is None else dataclasses.asdict(arm.rest),
        }
        for name, arm in result.arms.items()
    }
    return {"arms": arms, "picture": str(picture), "url": result.url}
