"""CPU time of whole commands, as a multiple of what importing their libraries takes.

    python benchmarks/speed/commands.py --before OLD [--images 100000] [--runs 4]

The workspace has many images, six closed rounds with models, and a seventh whose 200 questions wait for people. Its
rows are inserted at once; nothing is trained. The reference processes and the commands run by turns.
"""

import argparse
import base64
import datetime as dt
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sides import compare_versions, cpu_seconds, report

CLASSES = ("cat", "dog", "fox")
HOLDOUT, BATCH, CLOSED = 1_000, 200, 6  # images of the holdout, images of a batch, closed rounds
NOW = "2026-01-02 03:04:05.000000"
LIBRARIES, CLICK = "import click, rich.table, sqlalchemy.orm", "import click"
# Command → what it is compared with, and the largest multiple of it that is wanted.
TARGETS: dict[str, tuple[str, float]] = {
    "--help": (CLICK, 1.3),
    "status": (LIBRARIES, 1.5),
    "run, nothing to do": (LIBRARIES, 2.5),
    "run, outside a workspace": (LIBRARIES, 2.5),
    "pool add, of nothing new": (LIBRARIES, 3.0),
}


def make_workspace(folder: Path, n_images: int) -> None:
    from alloop.config.load import freeze_config
    from alloop.loop.workspace import create_workspace
    from alloop.project import open_project

    settings = [
        f"[project]\nname = 'speed'\nclasses = {json.dumps(CLASSES)}\n[model]\nbackbone = 'pixels'\nweights = 'none'",
        f"[loop]\nbatch_size = {BATCH}\n[evaluation]\nholdout_size = {HOLDOUT}\n[labeling]\nbackend = 'csv'",
    ]
    create_workspace(folder, "\n".join(settings))
    with open_project(folder, {}) as project:
        config, distance = json.dumps(freeze_config(project.config)), project.config.pool.near_duplicate_distance
    truth = [CLASSES[number % len(CLASSES)] for number in range(n_images)]
    with sqlite3.connect(folder / "alloop.db") as rows:
        rows.executescript("PRAGMA synchronous = OFF; PRAGMA cache_size = -200000; PRAGMA foreign_keys = OFF")
        hashes = _add_images(rows, folder, n_images)
        for number in range(CLOSED + 1):
            _add_round(rows, number, config, hashes, truth)
        rows.execute("UPDATE workspace SET near_copies = ?", (str(distance),))
    rows.close()
    for number in range(CLOSED):
        _write_holdout(folder / f"runs/round-{number:04d}/holdout.parquet", number, hashes, truth)
    alloop(folder, "push")


def _add_images(rows: sqlite3.Connection, folder: Path, n: int) -> list[str]:
    """Add images 0, …, n - 1 with the ids 1, …, n: the holdout, then the batches. Only the waiting ones are files."""
    first = HOLDOUT + CLOSED * BATCH
    (folder / "photos").mkdir()
    for number in range(first, first + BATCH):
        path = folder / f"photos/{number}.png"
        path.write_bytes(f"image {number}".encode())
        os.utime(path, ns=(0, 0))
    hashes = [hashlib.sha256(f"image {number}".encode()).hexdigest() for number in range(n)]
    images = (
        (i + 1, sha256, "holdout" if i < HOLDOUT else "train", _fingerprint(sha256), NOW)
        for i, sha256 in enumerate(hashes)
    )
    insert = "INSERT INTO image (id, sha256, split, width, height, format, mode, phash, added_at) VALUES "
    rows.executemany(f"{insert} (?, ?, ?, 640, 480, 'PNG', 'RGB', ?, ?)", images)
    places = ((f"{folder}/photos/{i}.png", i + 1, len(f"image {i}"), NOW) for i in range(n))
    insert = "INSERT INTO image_location (path, image_id, status, size, mtime_ns, seen_at) VALUES "
    rows.executemany(f"{insert} (?, ?, 'ok', ?, 0, ?)", places)
    groups = ((i + 1, i - (i % 20 == 19) + 1, 2 * (i % 20 == 19)) for i in range(n))  # one in twenty is a near copy
    rows.executemany("INSERT INTO near_duplicate (image_id, group_id, distance) VALUES (?, ?, ?)", groups)
    return hashes


def _fingerprint(sha256: str) -> str:
    """Return a made-up fingerprint: a hash of 16 hex digits, and 72 bytes as a thumbnail."""
    return sha256[:16] + base64.urlsafe_b64encode(bytes.fromhex(sha256 * 3)[:72]).decode()


def _add_round(rows: sqlite3.Connection, number: int, config: str, hashes: Sequence[str], truth: Sequence[str]) -> None:
    is_open, round_id = number == CLOSED, number + 1
    ending = (None, None, None) if is_open else (NOW, "200 of 200 answered", "answered")
    rows.execute(
        "INSERT INTO round (id, number, state, config, seed, created_at, closed_at, closed_because, ending)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (round_id, number, "selected" if is_open else "closed", config, number, NOW, *ending),
    )
    start = HOLDOUT + number * BATCH
    asked = [*(range(HOLDOUT) if number == 0 else ()), *range(start, start + BATCH)]
    for rank, i in enumerate(asked, start=1):
        reason = "holdout" if i < HOLDOUT else "random" if i % 10 == 0 else "acquired"
        is_drawn = i >= HOLDOUT
        found = rows.execute(
            "INSERT INTO query (key, round_id, image_id, status, reason, strategy, rank, probability, predicted,"
            " confidence, draw_number, draw_pool, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                f"key-{i}", round_id, i + 1, "open" if is_open else "answered", reason, "entropy-spread", rank, 0.01,
                truth[i] if is_drawn and number else None, 0.5, rank if is_drawn and number else None,
                90_000 if is_drawn and number else None, NOW,
            ),
        )  # fmt: skip
        if not is_open:
            rows.execute(
                "INSERT INTO annotation (image_id, query_id, source, external_id, version, annotator, outcome, value,"
                " lead_time, answered_at, recorded_at) VALUES (?, ?, 'csv', ?, 1, 'ann', 'label', ?, 3.5, ?, ?)",
                (i + 1, found.lastrowid, f"key-{i}#1", truth[i], NOW, NOW),
            )
            rows.execute("INSERT INTO label VALUES (?, ?, 1.0, 1, ?)", (i + 1, truth[i], NOW))
    if not is_open:
        _add_model(rows, round_id, config)


def _add_model(rows: sqlite3.Connection, round_id: int, config: str) -> None:
    calibration = {"temperature": 1.1, "n": HOLDOUT, "nll_before": 0.5, "nll_after": 0.4}
    rows.execute(
        "INSERT INTO model_version (id, round_id, name, path, sha256, classes, head_classes, label_digest, n_labels,"
        " n_holdout, seed, config, library_versions, calibration, history, created_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?, '{}', ?, '{}', ?)",
        (
            round_id, round_id, f"model-{round_id}", f"runs/round-{round_id - 1:04d}/model", f"{round_id:064d}",
            json.dumps(CLASSES), json.dumps([CLASSES]), "0" * 64, round_id * BATCH, HOLDOUT, config,
            json.dumps(calibration), NOW,
        ),
    )  # fmt: skip
    for name, value in (("accuracy", 0.8 + 0.02 * round_id), ("nll", 0.4), ("ece", 0.03), ("nll_uncalibrated", 0.5)):
        rows.execute(
            "INSERT INTO metric (model_version_id, split, name, value, low, high, n, method, computed_at)"
            " VALUES (?, 'holdout', ?, ?, ?, ?, ?, 'wilson 95%', ?)",
            (round_id, name, value, value - 0.02, value + 0.02, HOLDOUT, NOW),
        )


def _write_holdout(path: Path, number: int, hashes: Sequence[str], truth: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    wrong = 20 - 2 * number  # percent
    predicted = [truth[i] if i * 37 % 100 >= wrong else truth[i + 1] for i in range(HOLDOUT)]
    columns = {"sha256": hashes[:HOLDOUT], "target": truth[:HOLDOUT], "predicted": predicted}
    table = pa.table({**columns, "grown": [False] * HOLDOUT})
    known = {"alloop.classes": json.dumps(CLASSES), "alloop.model_sha256": f"{number + 1:064d}"}
    path.parent.mkdir(parents=True)
    pq.write_table(table.replace_schema_metadata(known), path)


def alloop(folder: Path, *arguments: str) -> None:
    _python(folder, "-m", "alloop", *arguments)


def _python(folder: Path, *arguments: str, code: int = 0) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    ran = subprocess.run([sys.executable, *arguments], cwd=folder, env=environ, capture_output=True, text=True)
    if ran.returncode != code:
        raise RuntimeError(f"{arguments}: {ran.stdout}{ran.stderr}")


def _processes(workspace: Path, elsewhere: Path) -> dict[str, Callable[[], None]]:
    known = str(workspace / "photos" / f"{HOLDOUT + CLOSED * BATCH}.png")
    return {
        CLICK: lambda: _python(elsewhere, "-c", CLICK),
        LIBRARIES: lambda: _python(elsewhere, "-c", LIBRARIES),
        "--help": lambda: alloop(elsewhere, "--help"),
        "status": lambda: alloop(workspace, "status"),
        "run, nothing to do": lambda: alloop(workspace, "run"),
        "run, outside a workspace": lambda: _python(elsewhere, "-m", "alloop", "run", code=2),
        "pool add, of nothing new": lambda: alloop(workspace, "pool", "add", known),
    }


def measure(n_images: int, runs: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        make_workspace(Path(folder) / "speed", n_images)
        elsewhere = Path(folder) / "elsewhere"
        elsewhere.mkdir()
        processes = _processes(Path(folder) / "speed", elsewhere)
        seconds: dict[str, list[float]] = {name: [] for name in processes}
        for _ in range(runs + 1):  # the first of each fills the caches of bytecode and of the system
            for name, process in processes.items():
                began = cpu_seconds()
                process()
                seconds[name].append(cpu_seconds() - began)
    least = {name: min(found[1:]) for name, found in seconds.items()}  # other programs only ever add to a time
    return {name: least[name] / least[reference] for name, (reference, _) in TARGETS.items()}


def lines(old: dict[str, float], new: dict[str, float]) -> Iterator[str]:
    yield "| `alloop` … | before | now | at most |"
    yield "|---|---|---|---|"
    for name, (reference, most) in TARGETS.items():
        verdict = "met" if new[name] <= most else "missed"
        yield f"| {name} | {old[name]:.2f} | {new[name]:.2f} | {most:g} × `{reference}` ({verdict}) |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--before", type=Path, help="checkout of an older commit")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--measure", action="store_true")
    given = parser.parse_args()
    if given.measure:
        report(measure(given.images, given.runs))
        return
    sizes = ["--images", str(given.images), "--runs", str(given.runs)]
    old, new = compare_versions(given.before, __file__, sizes, given.repeats)
    print(f"{dt.date.today()}, {given.images:,} images, the least of {given.runs} runs of each process\n")
    print("\n".join(lines(old, new)))


if __name__ == "__main__":
    main()
