"""Simulation of strategies × seeds in the real loop, with an oracle. Each cell has a JSON file: a kill loses one."""

import contextlib
import dataclasses
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from alloop import __version__
from alloop.composition import strategy_name
from alloop.config.load import parse_value, set_values
from alloop.config.schema import Config
from alloop.errors import AlloopError, ConfigError
from alloop.executor import Executor
from alloop.files import write_json
from alloop.loop.rounds.runner import RunOptions, run
from alloop.loop.workbench import Tools, make_tools
from alloop.progress import Progress, silent
from alloop.project import Project
from alloop.records import Reason, RoundState, Split
from alloop.simulate.base import Base
from alloop.simulate.cells import Deadline, digest_of, read_cell_file, run_cells
from alloop.simulate.rest import accuracy_on_rest
from alloop.store.annotations import list_labels
from alloop.store.queries import list_queries
from alloop.store.rounds import find_model, list_metrics, list_rounds
from alloop.store.session import reading

LAYOUT = 1  # layout of cell files; files of another layout are computed again


@dataclasses.dataclass(frozen=True)
class Arm:
    """Strategy to simulate, as written.

    Written as `NAME`, or `NAME:setting=value:…` with settings of [acquisition] or, with a dot, of any section.
    """

    name: str
    config: Config


@dataclasses.dataclass(frozen=True)
class SimulateSettings:
    """Settings of a simulation.

    Attributes:
        arms: Strategies with their settings, which differ only in the compared settings.
        seeds: Number of seeds. A seed decides holdout, seed batch, and all randomness of training and choosing.
        rounds: Number of batches; the random seed batch is the first.
        jobs: Number of processes.
        minutes: Time after which no cell is started; None: no limit.
        out: Folder of the results.
        digest: Digest of the data.
    """

    arms: tuple[Arm, ...]
    seeds: int
    rounds: int
    out: Path
    digest: str
    jobs: int = 1
    minutes: float | None = None
    device: str | None = None


@dataclasses.dataclass(frozen=True)
class StrategyCell:
    """Result of one strategy with one seed. All tuples but `picks` have one number per batch.

    Attributes:
        picks: Row numbers of each batch, in the order asked.
        n_labels: Number of training labels of the model after each batch.
        accuracy: Accuracy of that model, on the test set or the labeled holdout.
        seconds: Wall time of choosing, asking, training and measuring.
        select_seconds: Wall time of choosing, without scoring the pool (`score_seconds`).
        train_seconds: Wall time of training and measuring.
        n_test: Number of images measured on.
        rest: Accuracy of the last model on rows that were never asked about; None if not measured.
        ended: Reason for the end of the run.
    """

    strategy: str
    seed: int
    picks: tuple[tuple[int, ...], ...]
    n_labels: tuple[int, ...]
    accuracy: tuple[float, ...]
    seconds: tuple[float, ...]
    select_seconds: tuple[float, ...]
    score_seconds: tuple[float, ...]
    train_seconds: tuple[float, ...]
    n_test: int
    rest: float | None
    n_rest: int
    ended: str


@dataclasses.dataclass(frozen=True)
class Simulation:
    """Results of a simulation. `missing` cells were not started because time was up; `failed` cells have a reason."""

    arms: tuple[str, ...]
    cells: tuple[StrategyCell, ...]
    missing: tuple[tuple[str, int], ...] = ()
    failed: tuple[tuple[str, int, str], ...] = ()
    computed: int = 0


@dataclasses.dataclass(frozen=True)
class CellPlan:
    """Input of a process that computes a cell."""

    arm: Arm
    seed: int
    config: Config
    path: Path
    base: Base
    device: str | None


def parse_arms(config: Config, written: Sequence[str]) -> tuple[Arm, ...]:
    """Parse strategies.

    Raises:
        ConfigError: A strategy or setting is unknown, does not work with the model, or is named twice.
    """
    names = [name.strip() for name in written if name.strip()]
    if not names:
        raise ConfigError("No strategy is named.", "Name some, as in --strategies random,entropy,default.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"The strategy '{twice[0]}' is named twice.")
    return tuple(Arm(name, _arm_config(config, name)) for name in names)


def _arm_config(config: Config, written: str) -> Config:
    name, *settings = written.split(":")
    sections: dict[str, dict[str, Any]] = {"acquisition": {"strategy": strategy_name(name)}}
    for setting in settings:
        key, sign, value = setting.partition("=")
        section, _, key = key.rpartition(".")
        if not sign or "." in section:
            raise ConfigError(f"'{written}': '{setting}' is not a setting.", "Write NAME:setting=value.")
        sections.setdefault(section or "acquisition", {})[key.strip()] = parse_value(value)
    try:
        return set_values(config, **sections)
    except ConfigError as error:
        raise ConfigError(f"The strategy '{written}': {error.message}", error.hint) from None


def plan_cells(settings: SimulateSettings, base: Base) -> list[CellPlan]:
    """List all cells, seed by seed, so that all strategies have equally many cells when time is up.

    Args:
        settings: What to simulate.
        base: Base, which need not exist yet.
    """
    plans = []
    for seed in range(settings.seeds):
        for arm in settings.arms:
            config = set_values(
                arm.config,
                project={"seed": arm.config.project.seed + seed},
                loop={"max_rounds": settings.rounds},
            )
            digest = digest_of(
                {
                    "layout": LAYOUT,
                    "alloop": __version__,
                    # Without defaults, so that a setting that a later alloop adds does not change the digest.
                    "config": config.model_dump(mode="json", exclude_defaults=True),
                    "data": settings.digest,
                }
            )
            kept = "".join(letter if letter.isalnum() or letter in "-_=." else "+" for letter in arm.name)[:80]
            path = settings.out / "cells" / f"{kept}-seed{seed}-{digest[:12]}.json"
            plans.append(CellPlan(arm, seed, config, path, base, settings.device))
    return plans


def is_finished(plans: Sequence[CellPlan]) -> bool:
    """Return whether all cells are computed."""
    return all(plan.path.exists() for plan in plans)


def simulate(
    settings: SimulateSettings, plans: Sequence[CellPlan], executor: Executor, progress: Progress = silent
) -> Simulation:
    """Compute all missing cells.

    Args:
        settings: What to simulate.
        plans: Result of `plan_cells`. The base must exist unless all cells do.
        executor: Runs cells, and the jobs of each cell.
        progress: Called with the number of finished cells.

    Raises:
        WorkspaceError: The results cannot be written; earlier results are kept.
        AlloopError: A process was killed, or every cell failed.
    """
    deadline = Deadline(settings.minutes)
    todo = [plan for plan in plans if not plan.path.exists()]
    failed: dict[tuple[str, int], str] = {}
    done = computed = len(plans) - len(todo)
    progress("strategies × seeds", done, len(plans))
    at_once = min(settings.jobs, max(1, len(todo)))
    for plan, why in run_cells(todo, partial(run_cell, executor), executor, at_once, deadline):
        done += 1
        if why is not None:
            failed[plan.arm.name, plan.seed] = why
        progress("strategies × seeds", done, len(plans))
    found = {(plan.arm.name, plan.seed): read_cell_file(plan.path, _read) for plan in plans}
    cells = tuple(cell for cell in found.values() if cell is not None)
    if failed and not cells:
        (strategy, seed), why = next(iter(failed.items()))
        raise AlloopError(f"All {len(failed)} runs failed, the first one ({strategy}, seed {seed}): {why}")
    missing = tuple(key for key, cell in found.items() if cell is None and key not in failed)
    names = tuple(arm.name for arm in settings.arms)
    return Simulation(names, cells, missing, tuple((*key, why) for key, why in failed.items()), done - computed)


def to_json(simulation: Simulation) -> dict[str, Any]:
    """Convert to plain data: all runs, and missing or failed cells."""
    return {
        "runs": [dataclasses.asdict(cell) for cell in simulation.cells],
        "missing": [{"strategy": strategy, "seed": seed} for strategy, seed in simulation.missing],
        "failed": [{"strategy": strategy, "seed": seed, "reason": why} for strategy, seed, why in simulation.failed],
    }


def run_cell(executor: Executor, plan: CellPlan) -> None:
    """Compute one cell and store it."""
    threads = torch.get_num_threads()
    if plan.config.model.mode == "frozen":
        torch.set_num_threads(1)  # so that the result does not depend on how many cells are computed at once
    try:
        with tempfile.TemporaryDirectory(dir=plan.base.folder.parent, prefix="cell-") as folder, _quiet():
            cell = _run(executor, plan, Path(folder))
        write_json(plan.path, dataclasses.asdict(cell))
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide info messages of simulated rounds unless -vv is given. Warnings are always shown."""
    logger = logging.getLogger("alloop")
    before = logger.level
    logger.setLevel(before if before == logging.DEBUG else max(before, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(before)


def _run(executor: Executor, plan: CellPlan, folder: Path) -> StrategyCell:
    shutil.copyfile(plan.base.database, folder / "alloop.db")
    seconds: dict[tuple[int, RoundState], float] = {}

    def note(number: int, state: RoundState, took: float) -> None:
        seconds[number, state] = seconds.get((number, state), 0.0) + took

    with Project(folder, plan.config, {}, plan.base.cache) as project:
        tools = make_tools(project, executor)
        ended = run(tools, RunOptions(rounds=None, device=plan.device, on_step=note)).because
        return _measure(plan, tools, seconds, ended)


def _measure(plan: CellPlan, tools: Tools, seconds: Mapping[tuple[int, RoundState], float], ended: str) -> StrategyCell:
    truth = plan.base.read_truth()
    rows = {sha256: row for row, sha256 in enumerate(truth)}
    picks = []
    with reading(tools.project.database) as session:
        rounds = list_rounds(session)
        for one in rounds:
            asked = [query for query in list_queries(session, one.id) if query.reason is not Reason.HOLDOUT]
            picks.append(tuple(rows[query.sha256] for query in asked))
        models = [find_model(session, one.id) for one in rounds]
        measured = [None if model is None else list_metrics(session, model.id, "holdout") for model in models]
        tested = [label.consensus.value for label in list_labels(session, Split.HOLDOUT)]
        labels = {label.sha256: label.consensus.value for label in list_labels(session, Split.TRAIN)}
    picks = [batch for batch in picks if batch]
    names = list(truth)
    accuracy, n_labels, asked_so_far = [], [], 0
    for number, batch in enumerate(picks, start=1):
        asked_so_far += len(batch)
        metrics, model = measured[number], models[number]
        if metrics is None or model is None:
            # With labels of one class no model is trained; the prediction is always this class.
            known = [labels[names[row]] for part in picks[:number] for row in part if names[row] in labels]
            accuracy.append(sum(name in known[:1] for name in tested) / max(1, len(tested)))
            n_labels.append(len(known))
        else:
            accuracy.append(metrics["accuracy"].value)
            n_labels.append(model.n_labels)
    rest = None
    if plan.config.evaluation.test is None and asked_so_far < len(truth) and models[-1] is not None:
        rest = accuracy_on_rest(tools, truth)
    count = range(len(picks))
    asking = (RoundState.TRAINED, RoundState.SCORED, RoundState.SELECTED, RoundState.PUSHED)
    return StrategyCell(
        strategy=plan.arm.name,
        seed=plan.seed,
        picks=tuple(picks),
        n_labels=tuple(n_labels),
        accuracy=tuple(accuracy),
        seconds=tuple(
            sum(seconds.get((i, state), 0.0) for state in asking) + seconds.get((i + 1, RoundState.CREATED), 0.0)
            for i in count
        ),
        select_seconds=tuple(seconds.get((i, RoundState.SCORED), 0.0) for i in count),
        score_seconds=tuple(seconds.get((i, RoundState.TRAINED), 0.0) for i in count),
        train_seconds=tuple(seconds.get((i + 1, RoundState.CREATED), 0.0) for i in count),
        n_test=len(tested),
        rest=None if rest is None else rest.value,
        n_rest=0 if rest is None else rest.n,
        ended=ended,
    )


def _read(data: Any) -> StrategyCell:
    tuples = {
        key: tuple(data[key])
        for key in ("n_labels", "accuracy", "seconds", "select_seconds", "score_seconds", "train_seconds")
    }
    return StrategyCell(**{**data, **tuples, "picks": tuple(tuple(batch) for batch in data["picks"])})
