"""Steps of a round. Each step reads, computes and writes in one transaction, and can be repeated after a crash.

Steps that compute import their parts themselves, so that a run with nothing to do does not load torch.
"""

import dataclasses

from alloop.config.load import freeze_config
from alloop.errors import AlloopError
from alloop.loop.asking.answers import judged_by, resettle_unknown
from alloop.loop.intake.holdout import begin_holdout, extend_holdout
from alloop.loop.intake.ingest import mark_unusable, mark_vanished
from alloop.loop.intake.judge import judge_of
from alloop.loop.intake.labels import derive_labels
from alloop.loop.intake.near_copies import group_anew
from alloop.loop.intake.reach import require_reachable
from alloop.loop.intake.teaching import list_pool, list_possible_nodes
from alloop.loop.intake.test_set import ensure_test_set
from alloop.loop.rounds.history import check_history
from alloop.loop.rounds.round_settings import compared_with, renew_settings, settings_of, with_strategy
from alloop.loop.rounds.training import make_train_job, read_labels, record_model
from alloop.loop.workbench import Workbench
from alloop.records import Ending, Interval, RoundState, Split
from alloop.seeds import derive_seed
from alloop.store.annotations import list_values
from alloop.store.holdout import list_grown
from alloop.store.images import has_holdout, list_refs
from alloop.store.queries import list_first_reasons
from alloop.store.rounds import (
    RoundRecord,
    add_round,
    drop_model,
    find_last_model,
    find_last_round,
    find_model,
    find_round,
    find_round_in,
    set_agreement,
    set_closed,
    set_matched,
    set_scores,
    set_state,
)
from alloop.store.session import reading, transaction
from alloop.store.workspace import add_event

# Until queries exist, nothing depends on a round's model or scores, so they can be made again.
BEFORE_SELECTION = (RoundState.CREATED, RoundState.TRAINED, RoundState.SCORED)


def start_round(bench: Workbench, *, accept_change: bool = False) -> RoundRecord:
    """Start the next round with the current settings. The first round draws the holdout or reads the test set.

    Raises:
        HistoryError: A setting changed in a way that would invalidate earlier rounds.
        PoolError: There are no images yet.
        SourceUnreachable: A large part of the pool is missing.
        ConfigError: The label budget leaves no label to train on, or the test set does not exist.
        LabelError: The test set has an unknown class.
    """
    project = bench.project
    require_reachable(project)
    group_anew(bench)
    ensure_test_set(bench)
    with transaction(project.database) as session:
        last = find_last_round(session)
        number = 0 if last is None else last.number + 1
        notes: list[str] = []
        if last is not None:
            old = compared_with(session, last, project.config)
            notes = check_history(old, project.config, list_values(session), accept=accept_change)
        seed = derive_seed(project.config.project.seed, number)
        started = add_round(session, number, freeze_config(project.config), seed, bench.now())
        add_event(session, bench.user, "round started", bench.now(), number, notes=notes)
        if not has_holdout(session):
            begin_holdout(session, bench, started, seed)
        elif number > 0:
            extend_holdout(session, bench, started, seed)
    return started


def train(bench: Workbench, number: int, device: str | None = None, *, accept_change: bool = False) -> None:
    """Train on all labels, calibrate and measure on the holdout: CREATED → TRAINED. Use the current settings.

    With labels of fewer than two classes, the round continues without a model.
    """
    from alloop.loop.measuring.matched import compare_arms, without
    from alloop.loop.measuring.measure import record_holdout, record_out_of_fold, rows_of

    project = bench.project
    require_reachable(project)
    renew_settings(bench, number, anew=True, accept_change=accept_change)
    with transaction(project.database) as session:
        current = find_round_in(session, number, *BEFORE_SELECTION)
        config = settings_of(project, current)
        derive_labels(session, judge_of(config.project), bench.now())
        resettle_unknown(session, judged_by(project), bench.now())
        labels = read_labels(session, config)
        previous = find_last_model(session)
        grown = list_grown(session)
        reasons = list_first_reasons(session) if config.evaluation.matched_arm else None
        pool = list_pool(session, config)
    result = matched = None
    metrics: dict[str, dict[str, Interval]] = {}
    if labels.are_enough:
        job = make_train_job(project, current, config, labels, previous, pool, device)
        result = bench.executor.submit(job, bench.progress)
        if (rows := rows_of(job, result, grown)) is not None:
            metrics = record_holdout(project, number, result.files.sha256, labels.coding, rows, job.seed)
        record_out_of_fold(project, number, job, result, labels.coding)
        if reasons is not None:
            by_people = dataclasses.replace(
                job, images=job.images[: len(labels.train)], targets=job.targets[: len(labels.train)]
            )
            matched = compare_arms(bench, without(by_people, grown), result, reasons)
    with transaction(project.database) as session:
        # Results of an earlier model of this round.
        set_scores(session, current.id, None, None)
        set_agreement(session, current.id, None)
        set_matched(session, current.id, matched)
        if result is None:
            drop_model(session, current.id)
            add_event(session, bench.user, "training skipped", bench.now(), number, labels=len(labels.train))
        else:
            mark_unusable(session, bench, result.failed)
            record_model(session, bench, current, job, result, labels, metrics)
            counts = {"labels": len(labels.train), "missing": labels.missing}
            add_event(session, bench.user, "trained", bench.now(), number, **counts)
            if matched is not None:
                add_event(session, bench.user, "matched arms", bench.now(), number, says=matched["says"])
        set_state(session, current.id, current.state, RoundState.TRAINED)


def score(
    bench: Workbench,
    number: int,
    device: str | None = None,
    *,
    strategy: str | None = None,
    accept_change: bool = False,
) -> None:
    """Score the unlabeled images with the round's model: TRAINED → SCORED.

    A round without a model becomes SCORED, too, but has no scores.

    The data that the strategy needs (the configured one, or `strategy`) are stored with the scores.
    """
    from alloop.loop.choosing.scoring import make_score_job
    from alloop.loop.measuring.agreement import agreement, find_before

    project = bench.project
    require_reachable(project)
    renew_settings(bench, number, accept_change=accept_change)
    with reading(project.database) as session:
        current = find_round_in(session, number, RoundState.TRAINED, RoundState.SCORED)
        model = find_model(session, current.id)
        refs = list_refs(session, Split.TRAIN, labeled=False)
        labeled = list_refs(session, Split.TRAIN, labeled=True)
        before = find_before(session, number)
        config = with_strategy(settings_of(project, current), strategy)
        pool = list_possible_nodes(session, config)
    result = same = None
    if model is not None and refs:
        job = make_score_job(project, number, config, model, refs, labeled, pool, device)
        result = bench.executor.submit(job, bench.progress)
        same = None if before is None else agreement(project.folder, before, number, result.path)
    with transaction(project.database) as session:
        if result is not None:
            set_scores(session, current.id, project.paths.relative(result.path), result.sha256)
            set_agreement(session, current.id, same)
            failed = [{"image": image_id, "reason": reason} for image_id, reason in result.failed]
            add_event(session, bench.user, "scored", bench.now(), number, images=result.n_images, failed=failed[:100])
            mark_unusable(session, bench, result.failed)
        set_state(session, current.id, current.state, RoundState.SCORED)


def select(
    bench: Workbench,
    number: int,
    n: int | None = None,
    *,
    strategy: str | None = None,
    max_ram: float | None = None,
    device: str | None = None,
    accept_change: bool = False,
) -> int:
    """Choose the batch and record its queries: SCORED → SELECTED.

    Files that are missing or unreadable since they were scored are recorded, and other images take their place.

    Args:
        bench: Workbench of the workspace.
        number: Number of the round.
        n: Batch size of this round instead of `[loop] batch_size`.
        strategy: Strategy of this round instead of `[acquisition] strategy`.
        max_ram: Memory limit in GiB instead of `[acquisition] max_ram`.
        device: Device for features instead of `[model] device`.
        accept_change: True to accept a model that differs from that of earlier rounds.

    Returns:
        Number of images that will be asked about; 0 if the pool is exhausted.
    """
    from alloop.loop.choosing.evidence import Unreadable
    from alloop.loop.choosing.inputs_file import write_inputs
    from alloop.loop.choosing.pool_scores import load_scores
    from alloop.loop.choosing.selection import choose_batch, read_situation, record_selection

    project = bench.project
    renew_settings(bench, number, accept_change=accept_change)
    while True:
        with reading(project.database) as session:
            current = find_round_in(session, number, RoundState.SCORED)
            config = with_strategy(settings_of(project, current), strategy, max_ram)
            scores = load_scores(project, current, config.acquisition)
            situation = read_situation(session, project, config, current, scores, n)
        try:
            selected = choose_batch(bench, situation, scores, device)
        except Unreadable as error:
            with transaction(project.database) as session:
                mark_unusable(session, bench, error.failed)
            continue
        path = project.paths.inputs(number)
        file = {
            "path": project.paths.relative(path),
            "sha256": write_inputs(path, situation.candidates, situation.known),
        }
        with transaction(project.database) as session:
            if not mark_vanished(session, bench, [ref.path for ref in selected.chosen]):
                record_selection(session, bench, situation, selected, file)
                return len(selected.queries)


def close(bench: Workbench, number: int, ending: Ending, because: str) -> None:
    """End a round in any state. Open queries stay open, so late answers still count.

    Args:
        bench: Workbench of the workspace.
        number: Number of the round.
        ending: Reason for closing it.
        because: The same reason as a sentence.

    Raises:
        AlloopError: The round is closed already.
    """
    with transaction(bench.project.database) as session:
        current = find_round(session, number)
        if current.state is RoundState.CLOSED:
            raise AlloopError(f"Round {number} is closed already: {current.closed_because}.")
        set_state(session, current.id, current.state, RoundState.CLOSED)
        set_closed(session, current.id, ending, because, bench.now())
        add_event(session, bench.user, "round closed", bench.now(), number, because=because)
