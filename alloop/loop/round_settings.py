"""The settings that a round runs with: today's until something depends on them, then those of that day."""

import datetime as dt
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy.orm import Session

from alloop.config.load import MAY_BE_SECRET, freeze_config, set_values, validate_config
from alloop.config.schema import Config
from alloop.errors import ConfigError
from alloop.loop.history import check_history
from alloop.loop.holdout import draw_holdout
from alloop.loop.named_test import ensure_test_set
from alloop.loop.writer import actor
from alloop.project import Project
from alloop.records import RoundState, Split
from alloop.seeds import derive_seed
from alloop.store.annotations import list_values
from alloop.store.images import has_holdout, list_split, set_split
from alloop.store.queries import list_ever_asked
from alloop.store.rounds import RoundRecord, find_last_model, find_model, find_round, set_config
from alloop.store.session import transaction
from alloop.store.workspace import add_event

RENEWED = "settings changed"
logger = logging.getLogger("alloop")


def settings_of(project: Project, current: RoundRecord) -> Config:
    """The settings of a round. Limits of the machine, which change no result, are today's."""
    frozen, today = validate_config(current.config, f"the config of round {current.number}"), project.config
    return set_values(
        frozen,
        model={"device": today.model.device},
        train={"workers": today.train.workers},
        acquisition={"max_ram": today.acquisition.max_ram},
    )


def renew_settings(project: Project, number: int, *, anew: bool = False, accept_change: bool = False) -> None:
    """Give a round today's settings, unless a model, a score or a query depends on those it has; says what changed.

    Args:
        project: The workspace.
        number: The round.
        anew: Its model will be trained again, so that nothing depends on the one there is.
        accept_change: Accept a model that differs from that of earlier rounds.

    Raises:
        HistoryError: A setting changed in a way that would invalidate earlier rounds.
        ConfigError: The label budget leaves nothing to train on, or the test set is not there.
    """
    with transaction(project.database) as session:
        current = find_round(session, number)
        if not is_free(session, current, anew=anew):
            return
        before = validate_config(current.config, f"the config of round {number}")
        changes = list(_differences(freeze_config(before), freeze_config(project.config)))
        # A call that was killed may have left round 0 without a holdout.
        if not changes and (number > 0 or has_holdout(session)):
            return
        _check(session, project.config, current, before, accept_change)
        is_drawn_again = number == 0 and _holdout_of(before) != _holdout_of(project.config)
        is_drawn_again = is_drawn_again and not list_ever_asked(session)
        if is_drawn_again:
            for split in (Split.HOLDOUT, Split.EXCLUDED):
                set_split(session, list_split(session, split), Split.TRAIN)
    if is_drawn_again:
        ensure_test_set(project)
    with transaction(project.database) as session:
        seed = derive_seed(project.config.project.seed, number)
        set_config(session, current.id, freeze_config(project.config), seed)
        if not has_holdout(session):
            begin_holdout(session, project.config, number, seed)
        add_event(session, actor(), RENEWED, _now(), number, changes=changes)
    if changes:
        logger.info("Round %d takes today's settings: %s.", number, "; ".join(changes))


def begin_holdout(session: Session, config: Config, number: int, seed: int) -> None:
    """Draw the holdout.

    Raises:
        ConfigError: The label budget leaves nothing to train on.
    """
    drawn, of = draw_holdout(session, config.evaluation, seed)
    budget = config.loop.label_budget
    if budget is not None and budget <= drawn:
        raise ConfigError(
            f"alloop.toml: [loop] label_budget = {budget} leaves no label to train on: the holdout alone takes "
            f"{drawn}.",
            "Raise the budget, or lower [evaluation] holdout_size.",
        )
    add_event(session, actor(), "holdout drawn", _now(), number, images=drawn, groups=of)


def compared_with(session: Session, before: RoundRecord, config: Config) -> Mapping[str, Any]:
    """The settings that those of a later round must go with: of the round before, and of the newest model before it.

    Rounds that never trained a model have no accuracy that could be compared.
    """
    model = find_last_model(session, up_to=before.number)
    return {**before.config, "model": freeze_config(config)["model"] if model is None else model.config["model"]}


def _check(session: Session, config: Config, current: RoundRecord, before: Config, accept_change: bool) -> None:
    # A model that the round has in its settings already was accepted when it began.
    accept = accept_change or before.model == config.model
    if current.number > 0:
        old = compared_with(session, find_round(session, current.number - 1), config)
    else:
        now = freeze_config(config)
        # Nothing was measured yet, so that a test set may take the place of the holdout.
        old = {**current.config, "model": now["model"]}
        old["evaluation"] = old["evaluation"] if before.evaluation.test is not None else now["evaluation"]
    check_history(old, config, list_values(session), accept=accept)


def is_free(session: Session, current: RoundRecord, *, anew: bool = False) -> bool:
    """Whether a round may take today's settings: nothing depends on those it has."""
    if current.state not in (RoundState.CREATED, RoundState.TRAINED, RoundState.SCORED):
        return False
    return anew or (current.scores_path is None and find_model(session, current.id) is None)


def _holdout_of(config: Config) -> tuple[Any, ...]:
    """What the drawing of the holdout depends on."""
    settings = config.evaluation
    return settings.holdout_size, settings.holdout_share, settings.test, config.project.seed


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], table: str = "") -> Iterator[str]:
    """Settings that are not the same, in words; addresses and keys of servers are not shown."""
    for key in now:
        old, new = before.get(key), now[key]
        if isinstance(new, dict) and isinstance(old, dict) and key != "loss_parameters":
            yield from _differences(old, new, f"{table}.{key}".lstrip("."))
        elif old != new and table.rpartition(".")[2] in MAY_BE_SECRET:
            yield f"[{table}] {key}"
        elif old != new:
            yield f"[{table}] {key}: {old!r} → {new!r}"


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
