"""Part B: a whole TrashNet project with the oracle on the device, then `alloop compare` and `alloop simulate`.

Seconds of every step, and the share of the time that the card was busy.
"""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

from pictures import Pictures, load
from rows import Busy, Options, Rows, parse, peak_gib, reset_peak

from alloop.engine.executor_local import LocalExecutor
from alloop.loop.intake.ingest import add_images
from alloop.loop.rounds.runner import RunOptions, run
from alloop.loop.workbench import make_tools, open_workbench
from alloop.loop.workspace import create_workspace
from alloop.project import open_project
from alloop.records import RoundState
from alloop.simulate.rest import accuracy_on_rest

STEPS = {
    RoundState.CREATED: "train",
    RoundState.TRAINED: "score",
    RoundState.SCORED: "select",
    RoundState.SELECTED: "push",
    RoundState.PUSHED: "pull",
}


def main() -> None:
    options = parse(__doc__)
    rows = Rows(options.out, "B")
    pictures = load("trashnet", options)
    with Busy(options.device) as busy:
        with rows.guarded("frozen"):
            run_rounds("frozen", options.size(4, 2), pictures, options, rows, busy)
        with rows.guarded("finetune"):
            run_rounds("finetune", 2, pictures, options, rows, busy)
        table = write_table(pictures, options.work / "labels.csv")
        workspace = options.work / "frozen"  # its settings name the trunk and hold its features
        with rows.guarded("alloop compare"):
            flags = ["--methods", "SL1H,4HML", "--seeds", "1"]
            command("compare", [*flags, "--csv", str(table)], workspace, options, rows, busy)
        with rows.guarded("alloop simulate"):
            flags = ["--strategies", "random,default", "--seeds", "1", "--rounds", "2", "--batch", "20"]
            command("simulate", [*flags, "--csv", str(table)], workspace, options, rows, busy)


def run_rounds(mode: str, n_rounds: int, pictures: Pictures, options: Options, rows: Rows, busy: Busy) -> None:
    """Run rounds of the real loop. Each step is a row."""
    folder = options.work / mode
    create_workspace(folder, settings(mode, n_rounds, pictures, options))
    with open_project(folder) as project:
        tools = make_tools(project, LocalExecutor())
        with open_workbench(tools) as bench:
            add_images(bench, [str(pictures.folder)])
        write_answers(pictures, folder / "answers.csv")
        reset_peak(options.device)
        busy.take()

        def on_step(number: int, state: RoundState, seconds: float) -> None:
            if (step := STEPS.get(state)) is not None:
                share = busy.take()
                note = "" if share is None else f"card busy {share:.0f} % of it"
                rows.add(f"{mode}, round {number}", step, seconds, "s", note)

        started = time.perf_counter()
        run(tools, RunOptions(rounds=None, device=str(options.device), on_step=on_step))
        rows.add(mode, "all rounds", time.perf_counter() - started, "s")
        rows.add(mode, "peak memory", peak_gib(options.device), "GiB", "of tensors on the card")
        truth = {ref.sha256: label for ref, label in zip(pictures.refs, pictures.labels, strict=True)}
        rest = accuracy_on_rest(tools, truth)
        interval = f"95 % interval {rest.low * 100:.1f} to {rest.high * 100:.1f}, {rest.n} images never asked about"
        rows.add(mode, "accuracy", rest.value * 100, "%", interval)


def settings(mode: str, n_rounds: int, pictures: Pictures, options: Options) -> str:
    # A round closes when it is answered and the next one trains on its labels: one more round trains the last model.
    size = "image_size = 64" if options.tiny else ""
    epochs = options.size(8, 1)
    train = f"epochs = {epochs}" if mode == "finetune" else ""
    return f"""\
[project]
name = "gpu"
classes = {json.dumps(pictures.classes)}
[model]
backbone = "backbone:efficientnet_lite0"
weights = "none"
mode = "{mode}"
{size}
[train]
workers = {options.size(8, 0)}
{train}
[loop]
batch_size = {options.size(40, 8)}
max_rounds = {n_rounds}
[evaluation]
holdout_size = {options.size(100, 12)}
matched_arm = {"true" if mode == "frozen" else "false"}
[labeling]
backend = "oracle"
[labeling.oracle]
file = "answers.csv"
"""


def write_answers(pictures: Pictures, path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sha256", "label"])
        writer.writerows((ref.sha256, label) for ref, label in zip(pictures.refs, pictures.labels, strict=True))


def write_table(pictures: Pictures, path: Path) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label"])
        writer.writerows((ref.path, label) for ref, label in zip(pictures.refs, pictures.labels, strict=True))
    return path


def command(name: str, flags: list[str], workspace: Path, options: Options, rows: Rows, busy: Busy) -> None:
    """Run a command in its own process, as from a shell; its seconds include the start of Python and PyTorch."""
    busy.take()
    started = time.perf_counter()
    words = [sys.executable, "-m", "alloop", name, *flags, "-C", str(workspace), "--device", str(options.device), "-q"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    seconds, share = time.perf_counter() - started, busy.take()
    if ended.returncode:
        raise RuntimeError(f"exit code {ended.returncode}: {ended.stderr.strip()[-250:]}")
    note = "" if share is None else f"card busy {share:.0f} % of it"
    rows.add(f"alloop {name}", "whole command", seconds, "s", note)


if __name__ == "__main__":
    main()
