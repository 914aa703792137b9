"""The alloop strategies that take part, and their runs: `alloop simulate`, one process for each set and seed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from sets import BATCHES, ROUNDS, files_of

from alloop.composition import DEFAULT_STRATEGY, PERTURBATIONS, STRATEGIES, Need

PERTURBED = tuple(f"entropy:perturb={kind}" for kind in PERTURBATIONS if kind != "none")
# The most important ones run first.
FIRST = ("random", DEFAULT_STRATEGY, "entropy", "margin", "badge", "uherding", "max-herding", "typiclust", "k-center")
ARMS = (*FIRST, *(name for name in STRATEGIES if name not in FIRST), *PERTURBED)
UNCALIBRATED = ":calibration.method=none"


def run_arms(name: str, seed: int, arms: tuple[str, ...], work: Path) -> dict[str, Any]:
    """Return every arm's run with this seed, by name. `alloop simulate` itself keeps finished runs.

    Both the split and everything random in alloop follow the seed: it is the seed of the project.
    """
    folder = work / "runs" / name / f"seed{seed}" / "alloop"
    folder.mkdir(parents=True, exist_ok=True)
    found = _read(folder)
    todo = [arm for arm in arms if arm not in found]
    if todo:
        pool, test = files_of(name, seed, work)
        command = [
            sys.executable, "-m", "alloop", "simulate", "--features", str(pool), "--test", str(test),
            "--strategies", ",".join(map(written, todo)), "--seeds", "1", "--set", f"project.seed={seed}",
            "--batch", str(BATCHES[name]), "--rounds", str(ROUNDS), "--jobs", "1", "--out", str(folder / "cells"),
            "--json-out", str(folder / f"{_next(folder)}.json"),
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name}, seed {seed}: alloop simulate failed:\n{done.stderr[-2000:]}")
        found = _read(folder)
    return {arm: found[arm] for arm in arms if arm in found}


def written(arm: str) -> str:
    """Return the arm as `alloop simulate` takes it.

    Cross-validating a temperature on the labeled rows takes most of a round's time. It changes neither the top class
    nor the picks of strategies that do not use predictions, so it is left out for these.
    """
    rule = STRATEGIES.get(arm)
    return arm + UNCALIBRATED if rule is not None and rule.needs <= {Need.FEATURES} else arm


def _read(folder: Path) -> dict[str, Any]:
    runs = {}
    for path in sorted(folder.glob("*.json")):
        runs |= {run["strategy"].removesuffix(UNCALIBRATED): run for run in json.loads(path.read_text())["runs"]}
    return runs


def _next(folder: Path) -> str:
    return f"{len(list(folder.glob('*.json'))):02}"
