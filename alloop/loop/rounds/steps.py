"""Steps of a round. Each step reads, computes and writes in one transaction, and can be repeated after a crash."""

import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from sqlalchemy.orm import Session

from alloop.composition import Need
from alloop.config.load import freeze_config, set_values
from alloop.config.schema import Config
from alloop.engine.jobs import ScoreJob, TrainJob, TrainResult
from alloop.engine.model_files import library_versions
from alloop.engine.settings import EngineSettings
from alloop.engine.targets import TASKS, Coding, encode_known
from alloop.errors import AlloopError
from alloop.loop.asking.answers import judged_by, resettle_unknown
from alloop.loop.choosing.evidence import Unreadable, wide_needs
from alloop.loop.choosing.inputs_file import write_inputs
from alloop.loop.choosing.pool_scores import features_beside, load_scores
from alloop.loop.choosing.selection import Selected, Situation, choose_batch, read_situation
from alloop.loop.intake.holdout import grow_holdout, growth_size
from alloop.loop.intake.ingest import mark_unusable, mark_vanished
from alloop.loop.intake.labels import derive_labels, judge_of
from alloop.loop.intake.near_copies import group_anew
from alloop.loop.intake.reach import require_reachable
from alloop.loop.intake.test_set import ensure_test_set
from alloop.loop.measuring.agreement import agreement, find_before
from alloop.loop.measuring.matched import compare_arms, without
from alloop.loop.measuring.measure import HoldoutRows, record_holdout
from alloop.loop.rounds.history import check_history
from alloop.loop.rounds.round_settings import begin_holdout, compared_with, renew_settings, settings_of
from alloop.loop.workbench import Workbench
from alloop.project import Project
from alloop.records import Ending, ImageRef, Interval, RoundState, Split
from alloop.seeds import derive_seed
from alloop.store.annotations import LabelRecord, list_labels, list_values
from alloop.store.holdout import add_draw, list_grown
from alloop.store.images import count_pool, has_holdout, list_refs
from alloop.store.queries import add_queries, list_first_reasons
from alloop.store.rounds import (
    RoundRecord,
    add_model,
    add_round,
    drop_model,
    find_last_model,
    find_last_round,
    find_model,
    find_round,
    set_agreement,
    set_closed,
    set_matched,
    set_metrics,
    set_scores,
    set_state,
)
from alloop.store.selections import add_selection
from alloop.store.session import reading, transaction
from alloop.store.workspace import add_event, new_key_prefix

logger = logging.getLogger("alloop")
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
            _grow_holdout(session, bench, started, seed)
    return started


def train(bench: Workbench, number: int, device: str | None = None, *, accept_change: bool = False) -> None:
    """Train on all labels, calibrate and measure on the holdout: CREATED → TRAINED. Use the current settings.

    With labels of fewer than two classes, the round continues without a model.
    """
    project = bench.project
    require_reachable(project)
    renew_settings(bench, number, anew=True, accept_change=accept_change)
    with transaction(project.database) as session:
        current = _expect(session, number, *BEFORE_SELECTION)
        config = settings_of(project, current)
        derive_labels(session, judge_of(config.project), bench.now())
        resettle_unknown(session, judged_by(project), bench.now())
        labeled, missing = _labeled(session, Split.TRAIN, config)
        holdout, _ = _labeled(session, Split.HOLDOUT, config)
        previous = find_last_model(session)
        grown = list_grown(session)
        reasons = list_first_reasons(session) if config.evaluation.matched_arm else None
    classes, coding = config.project.classes, _coding(config)
    targets = encode_known(coding, [label.consensus.value for label, _ in labeled])
    result = matched = None
    metrics: dict[str, dict[str, Interval]] = {}
    if not coding.shortage(targets):
        job = TrainJob(
            settings=EngineSettings.of(config),
            classes=classes,
            images=tuple(ref for _, ref in labeled),
            targets=targets,
            holdout=tuple(ref for _, ref in holdout),
            holdout_targets=encode_known(coding, [label.consensus.value for label, _ in holdout]),
            seed=derive_seed(current.seed, "train"),
            cache=project.paths.cache,
            out=project.paths.model(number),
            device=device,
            head_classes=_kept_heads(previous.head_classes if previous else (), config),
            is_test=config.evaluation.test is not None,
        )
        result = bench.executor.submit(job, bench.progress)
        if (rows := _holdout_rows(job, result, grown)) is not None:
            metrics = record_holdout(project, number, result.files.sha256, coding, rows, job.seed)
        if reasons is not None:
            matched = compare_arms(bench, without(job, grown), result, reasons)
    with transaction(project.database) as session:
        # Results of an earlier model of this round.
        set_scores(session, current.id, None, None)
        set_agreement(session, current.id, None)
        set_matched(session, current.id, matched)
        if result is None:
            drop_model(session, current.id)
            add_event(session, bench.user, "training skipped", bench.now(), number, labels=len(labeled))
        else:
            mark_unusable(session, bench, result.failed)
            digest = label_digest(classes, labeled, holdout)
            _record_model(session, bench, current, job, result, digest, metrics)
            add_event(session, bench.user, "trained", bench.now(), number, labels=len(labeled), missing=missing)
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
    """Score the unlabeled images with the round's model: TRAINED → SCORED. Without a model there are no scores.

    The data that the strategy needs (the configured one, or `strategy`) are stored with the scores.
    """
    project = bench.project
    require_reachable(project)
    renew_settings(bench, number, accept_change=accept_change)
    with reading(project.database) as session:
        current = _expect(session, number, RoundState.TRAINED, RoundState.SCORED)
        model = find_model(session, current.id)
        refs = list_refs(session, Split.TRAIN, labeled=False)
        labeled = list_refs(session, Split.TRAIN, labeled=True)
        before = find_before(session, number)
    config = with_strategy(settings_of(project, current), strategy)
    needs = wide_needs(config.acquisition.strategy)
    result = same = None
    if model is not None and refs:
        job = ScoreJob(
            settings=EngineSettings.of(config),
            model=model.files(project.folder),
            images=tuple(refs),
            cache=project.paths.cache,
            out=project.paths.scores(number),
            device=device,
            keep_members=Need.MEMBER_LOG_PROBS in needs,
            features_out=features_beside(project.paths.scores(number)) if Need.FEATURES in needs else None,
            labeled=tuple(labeled),
        )
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
    project = bench.project
    renew_settings(bench, number, accept_change=accept_change)
    while True:
        with reading(project.database) as session:
            current = _expect(session, number, RoundState.SCORED)
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
                _record_selection(session, bench, situation, selected, file)
                return len(selected.queries)


def with_strategy(config: Config, strategy: str | None, max_ram: float | None = None) -> Config:
    """Return settings with the strategy of a flag.

    Raises:
        ConfigError: The strategy is unknown, or it cannot work with the model.
    """
    given = {"strategy": strategy, "max_ram": max_ram}
    values = {name: value for name, value in given.items() if value is not None}
    return set_values(config, acquisition=values) if values else config


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


def current_digest(project: Project) -> str | None:
    """Return the digest of the present labels; None if they are too few to train on."""
    with reading(project.database) as session:
        labeled, _ = _labeled(session, Split.TRAIN, project.config)
        holdout, _ = _labeled(session, Split.HOLDOUT, project.config)
    coding = _coding(project.config)
    if coding.shortage(encode_known(coding, [label.consensus.value for label, _ in labeled])):
        return None
    return label_digest(project.config.project.classes, labeled, holdout)


def label_digest(
    classes: Sequence[str],
    labeled: Sequence[tuple[LabelRecord, ImageRef]],
    holdout: Sequence[tuple[LabelRecord, ImageRef]],
) -> str:
    """Return the SHA-256 of a model's labels: classes, and each image's hash, use and label."""
    lines = [f"class {name}" for name in classes]
    for use, pairs in (("train", labeled), ("holdout", holdout)):
        lines += sorted(f"{use} {label.sha256} {label.consensus.value}" for label, _ in pairs)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _record_selection(
    session: Session, bench: Workbench, situation: Situation, selected: Selected, file: Mapping[str, str]
) -> None:
    number, config = situation.current.number, situation.config
    _expect(session, number, RoundState.SCORED)
    add_queries(session, situation.current.id, selected.queries, new_key_prefix(session, number), bench.now())
    set_state(session, situation.current.id, RoundState.SCORED, RoundState.SELECTED)
    made_with = {
        "strategy": selected.strategy,
        "notes": list(selected.notes),
        "settings": config.acquisition.model_dump(mode="json"),
        "library_versions": library_versions(),
        **file,
    }
    add_selection(session, situation.current.id, {"n": situation.n, **made_with})
    add_event(session, bench.user, "selected", bench.now(), number, queries=len(selected.queries), **made_with)
    for note in selected.notes:
        logger.info("%s", note)


def _expect(session: Session, number: int, *states: RoundState) -> RoundRecord:
    current = find_round(session, number)
    if current.state not in states:
        wanted = " or ".join(f"'{state}'" for state in states)
        raise AlloopError(
            f"Round {number} is '{current.state}', but this step needs it to be {wanted}.",
            "Run `alloop run`, which takes the next step.",
        )
    return current


def _labeled(session: Session, split: Split, config: Config) -> tuple[list[tuple[LabelRecord, ImageRef]], int]:
    """Return learnable labels of a split with their images, and the number of learnable labels without an image."""
    coding = _coding(config)
    labels = [label for label in list_labels(session, split) if coding.encode(label.consensus.value) is not None]
    refs = {ref.image_id: ref for ref in list_refs(session, split, labeled=True)}
    there = [(label, refs[label.image_id]) for label in labels if label.image_id in refs]
    return there, len(labels) - len(there)


def _coding(config: Config) -> Coding:
    return TASKS[config.project.task](config.project.classes)


def _kept_heads(before: tuple[tuple[str, ...], ...], config: Config) -> tuple[tuple[str, ...], ...]:
    """Return the specialties of each head of the previous model, if the number of heads is the same."""
    if len(before) != config.model.n_networks * config.model.n_heads:
        return ()
    return tuple(tuple(name for name in part if name in config.project.classes) for part in before)


def _record_model(
    session: Session,
    bench: Workbench,
    current: RoundRecord,
    job: TrainJob,
    result: TrainResult,
    digest: str,
    metrics: Mapping[str, Mapping[str, Interval]],
) -> None:
    model_id = add_model(
        session,
        {
            "round_id": current.id,
            "name": f"r{current.number}-{result.files.sha256[:8]}",
            "path": bench.project.paths.relative(result.files.folder),
            "sha256": result.files.sha256,
            "classes": list(job.classes),
            "head_classes": [list(part) for part in result.head_classes],
            "label_digest": digest,
            "n_labels": len(job.images),
            "n_holdout": len(result.holdout_calibrated_log_probs),
            "seed": job.seed,
            "config": dict(current.config),
            "library_versions": result.library_versions,
            "history": {
                **result.history,
                "seconds": result.seconds,
                "failed": [{"image": image_id, "reason": reason} for image_id, reason in result.failed],
            },
        },
        result.calibration,
        bench.now(),
    )
    for split, found in metrics.items():
        set_metrics(session, model_id, split, found, bench.now())


def _holdout_rows(job: TrainJob, result: TrainResult, grown: Collection[int]) -> HoldoutRows | None:
    """Return the readable holdout images with their predictions; None without any."""
    failed = {image_id for image_id, _ in result.failed}
    pairs = zip(job.holdout, job.holdout_targets, strict=True)
    kept = [(ref, target) for ref, target in pairs if ref.image_id not in failed]
    if not kept or result.holdout_pooled_log_probs is None:
        return None
    return HoldoutRows(
        refs=tuple(ref for ref, _ in kept),
        targets=np.array([target for _, target in kept], dtype=np.int64),
        grown=np.array([ref.image_id in grown for ref, _ in kept], dtype=bool),
        calibrated_log_probs=result.holdout_calibrated_log_probs,
        pooled_log_probs=result.holdout_pooled_log_probs,
    )


def _grow_holdout(session: Session, bench: Workbench, current: RoundRecord, seed: int) -> None:
    """Draw the images that `[evaluation] holdout_growth` adds, within the label budget."""
    config = bench.project.config
    counts, budget = count_pool(session), config.loop.label_budget
    n = growth_size(config, None if budget is None else budget - counts.labeled - counts.open)
    drawn, of = grow_holdout(session, n, seed) if n else ([], 0)
    if drawn:
        add_draw(session, current.id, drawn, of, is_growth=True)
        add_event(session, bench.user, "holdout grown", bench.now(), current.number, images=drawn, groups=of)
