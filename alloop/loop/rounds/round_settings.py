"""Settings of a round: the current ones until a model, score or query depends on them, then the stored ones."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy.orm import Session

from alloop.config.load import MAY_BE_SECRET, freeze_config, set_values, validate_config
from alloop.config.schema import Config
from alloop.loop.intake.holdout import begin_holdout
from alloop.loop.intake.test_set import ensure_test_set
from alloop.loop.rounds.history import check_history
from alloop.loop.workbench import Workbench
from alloop.project import Project
from alloop.records import RoundState, Split
from alloop.seeds import derive_seed
from alloop.store.annotations import list_values
from alloop.store.holdout import drop_draws
from alloop.store.images import has_holdout, list_split, set_split
from alloop.store.queries import list_ever_asked
from alloop.store.rounds import RoundRecord, find_last_model, find_model, find_round, set_config
from alloop.store.session import transaction
from alloop.store.workspace import add_event

RENEWED = "settings changed"
logger = logging.getLogger("alloop")


def settings_of(project: Project, current: RoundRecord) -> Config:
    """Return the stored settings of a round. Limits of the machine, which change no result, are the current ones."""
    frozen, today = validate_config(current.config, f"the config of round {current.number}"), project.config
    return set_values(
        frozen,
        model={"device": today.model.device, "engine": today.model.engine},
        train={"workers": today.train.workers},
        acquisition={"max_ram": today.acquisition.max_ram},
    )


def with_strategy(config: Config, strategy: str | None, max_ram: float | None = None) -> Config:
    """Return settings with the values of flags.

    Raises:
        ConfigError: The strategy is unknown, or it cannot work with the model.
    """
    given = {"strategy": strategy, "max_ram": max_ram}
    values = {name: value for name, value in given.items() if value is not None}
    return set_values(config, acquisition=values) if values else config


def renew_settings(bench: Workbench, number: int, *, anew: bool = False, accept_change: bool = False) -> None:
    """Give a round the current settings unless a model, a score or a query depends on its own. Log what changed.

    Args:
        bench: Workbench of the workspace.
        number: Number of the round.
        anew: True if the round's model will be trained again, so that nothing depends on the existing one.
        accept_change: True to accept a model that differs from that of earlier rounds.

    Raises:
        HistoryError: A setting changed in a way that would invalidate earlier rounds.
        ConfigError: The label budget leaves no label to train on, or the test set does not exist.
    """
    project = bench.project
    with transaction(project.database) as session:
        current = find_round(session, number)
        if not is_free(session, current, anew=anew):
            return
        before = validate_config(current.config, f"the config of round {number}")
        changes = list(_differences(freeze_config(before), freeze_config(project.config)))
        # A killed call may have left round 0 without a holdout.
        if not changes and (number > 0 or has_holdout(session)):
            return
        _check(session, project.config, current, before, accept_change)
        is_drawn_again = number == 0 and _holdout_of(before) != _holdout_of(project.config)
        is_drawn_again = is_drawn_again and not list_ever_asked(session)
        if is_drawn_again:
            for split in (Split.HOLDOUT, Split.EXCLUDED):
                set_split(session, list_split(session, split), Split.TRAIN)
            drop_draws(session)
    if is_drawn_again:
        ensure_test_set(bench)
    with transaction(project.database) as session:
        seed = derive_seed(project.config.project.seed, number)
        set_config(session, current.id, freeze_config(project.config), seed)
        if not has_holdout(session):
            begin_holdout(session, bench, current, seed)
        add_event(session, bench.user, RENEWED, bench.now(), number, changes=changes)
    if changes:
        logger.info("Round %d takes the current settings: %s.", number, "; ".join(changes))


def compared_with(session: Session, before: RoundRecord, config: Config) -> Mapping[str, Any]:
    """Return the settings that a later round's settings are compared with.

    These are the settings of the round before, with the [model] section of the newest model up to it. Without a model
    there is no accuracy to compare with, so the new [model] section is used.
    """
    model = find_last_model(session, up_to=before.number)
    return {**before.config, "model": freeze_config(config)["model"] if model is None else model.config["model"]}


def _check(session: Session, config: Config, current: RoundRecord, before: Config, accept_change: bool) -> None:
    # A [model] section that the round already has was accepted when the round began.
    accept = accept_change or before.model == config.model
    if current.number > 0:
        old = compared_with(session, find_round(session, current.number - 1), config)
    else:
        now = freeze_config(config)
        # Before the first measurement, a test set may still replace the holdout.
        old = {**current.config, "model": now["model"]}
        old["evaluation"] = old["evaluation"] if before.evaluation.test is not None else now["evaluation"]
    check_history(old, config, list_values(session), accept=accept)


def is_free(session: Session, current: RoundRecord, *, anew: bool = False) -> bool:
    """Return whether a round may take the current settings: nothing depends on its old ones yet."""
    if current.state not in (RoundState.CREATED, RoundState.TRAINED, RoundState.SCORED):
        return False
    return anew or (current.scores_path is None and find_model(session, current.id) is None)


def _holdout_of(config: Config) -> tuple[Any, ...]:
    """Return the settings that the draw of the holdout depends on."""
    settings = config.evaluation
    return settings.holdout_size, settings.holdout_share, settings.test, config.project.seed


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], table: str = "") -> Iterator[str]:
    """Yield one phrase for each setting that changed. Addresses and keys of servers are not shown."""
    for key in now:
        old, new = before.get(key), now[key]
        if isinstance(new, dict) and isinstance(old, dict) and key != "loss_parameters":
            yield from _differences(old, new, f"{table}.{key}".lstrip("."))
        elif old != new and table.rpartition(".")[2] in MAY_BE_SECRET:
            yield f"[{table}] {key}"
        elif old != new:
            yield f"[{table}] {key}: {old!r} → {new!r}"
