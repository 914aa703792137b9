"""Run the same measurement with two versions of alloop, by turns, and compare them.

A benchmark of this folder is one script with two roles. Without `--measure` it is the user's command: it calls
`compare_versions`, which starts the script again with `--measure` for each version, by turns, so that both meet
the same disturbances of the machine. With `--measure` it measures the alloop that it imports, and calls `report`.

The older version is a checkout of an older commit:

    git worktree add OLD 0058436
    python benchmarks/speed/NAME.py --before OLD
"""

import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parents[2]
_MARK = "measured: "

Figures = dict[str, float]


def cpu_seconds() -> float:
    """Seconds of CPU time of this process and its children that have ended. Other programs hardly change them."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, kinds))


def report(figures: Mapping[str, float]) -> None:
    """Hand the figures of `--measure` to the process that compares."""
    print(_MARK + json.dumps(dict(figures)), flush=True)


def measure(checkout: Path, script: str, arguments: Sequence[str] = ()) -> Figures:
    """Run `script --measure` with the alloop of a checkout, and return what it reports.

    Raises:
        RuntimeError: The script failed; with the end of its output.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(checkout), str(Path(script).parent)])}
    command = [sys.executable, script, "--measure", *arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = [line for line in ran.stdout.splitlines() if line.startswith(_MARK)]
    if ran.returncode != 0 or not found:
        raise RuntimeError(f"{' '.join(command)} with {checkout} failed:\n{(ran.stdout + ran.stderr)[-2000:]}")
    figures: Figures = json.loads(found[-1].removeprefix(_MARK))
    return figures


def compare_versions(
    before: Path, script: str, arguments: Sequence[str] = (), repeats: int = 3
) -> tuple[Figures, Figures]:
    """Return the medians of each figure with the older version and with this one, measured by turns."""
    sides: tuple[list[Figures], list[Figures]] = ([], [])
    for _ in range(repeats):
        for side, checkout in zip(sides, (before.resolve(), HERE), strict=True):
            side.append(measure(checkout, script, arguments))
    old, new = ({name: statistics.median(run[name] for run in side) for name in side[0]} for side in sides)
    return old, new


def table(old: Figures, new: Figures, targets: Mapping[str, float], unit: str = "ms") -> str:
    """Return a table in Markdown: each time before, now, and how many times faster. Targets are such ratios."""
    lines = [f"| | before, {unit} | now, {unit} | times faster | target |", "|---|---|---|---|---|"]
    for name, now in new.items():
        ratio, wanted = old[name] / now if name in old else float("nan"), targets.get(name)
        verdict = "" if wanted is None else f"{wanted:g} ({'met' if ratio >= wanted else 'missed'})"
        was = f"{old[name]:.3g}" if name in old else "–"
        lines.append(f"| {name} | {was} | {now:.3g} | {ratio:.2f} | {verdict} |")
    return "\n".join(lines)
