"""Batch of a round as queries: the holdout, then the choices of chance and of the strategy."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import numpy as np
from sqlalchemy.orm import Session

from alloop.acquisition.batch import Pick
from alloop.acquisition.strategy import Keys
from alloop.config.schema import Config
from alloop.engine.model_files import library_versions
from alloop.engine.targets import TASKS
from alloop.loop.choosing.askable import list_askable, list_holdout_to_ask
from alloop.loop.choosing.batch import RANDOM, Batch, choose_images
from alloop.loop.choosing.evidence import Evidence, Known
from alloop.loop.choosing.filter import find_matching
from alloop.loop.choosing.pool_scores import PoolScores
from alloop.loop.intake.near_copies import Sizes, keep_largest, list_groups, read_sizes
from alloop.loop.stopping import batch_size, bought
from alloop.loop.workbench import Tools, Workbench
from alloop.project import Project
from alloop.records import ImageRef, ModelFiles, Query, Reason, RoundState, Split
from alloop.seeds import derive_seed, tie_keys
from alloop.store.annotations import list_labels
from alloop.store.holdout import list_probabilities
from alloop.store.images import count_pool, find_refs, list_refs
from alloop.store.queries import add_queries, list_open_images
from alloop.store.rounds import RoundRecord, find_model, find_round_in, set_state
from alloop.store.selections import add_selection
from alloop.store.workspace import add_event, new_key_prefix

logger = logging.getLogger("alloop")


@dataclasses.dataclass(frozen=True)
class AskableImages:
    """Images to choose from, one of each group of near copies.

    Attributes:
        keys: Keys [N] that break ties.
        n_groups: Number of groups before `[acquisition] max_candidates` limited them.
        notes: Decisions during the choice, a sentence each.
    """

    refs: tuple[ImageRef, ...]
    keys: Keys
    n_groups: int
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Situation:
    """Everything that a choice depends on, besides the round's scores.

    Attributes:
        current: The round.
        config: Settings of the round, with flags.
        candidates: Images to choose from.
        known: Training images that are labeled or being asked about.
        model: Files of the round's model; None without one.
        n: Number of images to choose, without the holdout.
        holdout: Queries about the holdout.
    """

    current: RoundRecord
    config: Config
    candidates: AskableImages
    known: Known
    model: ModelFiles | None
    n: int
    holdout: tuple[Query, ...] = ()


@dataclasses.dataclass(frozen=True)
class Selected:
    """Chosen batch.

    Attributes:
        queries: Queries by rank, the holdout first.
        chosen: Images besides the holdout.
        strategy: Strategy that chose them.
        notes: Decisions during the choice with reasons, a sentence each.
    """

    queries: tuple[Query, ...]
    chosen: tuple[ImageRef, ...]
    strategy: str
    notes: tuple[str, ...]


def read_situation(
    session: Session,
    project: Project,
    config: Config,
    current: RoundRecord,
    scores: PoolScores | None,
    n: int | None,
) -> Situation:
    """Read the candidates and the known images.

    The holdout comes first: images never asked about (all of them in round 0), and those whose task was lost.

    Args:
        session: Database session to read from.
        project: The workspace.
        config: Settings of the round, with flags.
        current: The round.
        scores: Scores of the round; None without a model.
        n: Number of images besides the holdout; None: `[loop] batch_size`, within the label budget.
    """
    holdout = _holdout_queries(session, current)
    counts = count_pool(session)
    refs = list_askable(session, config.acquisition, current.number)
    if config.acquisition.only is not None:
        matching = find_matching(session, config.acquisition.only)
        refs = [ref for ref in refs if ref.image_id in matching]
    model = find_model(session, current.id)
    groups = list_groups(session)
    return Situation(
        current=current,
        config=config,
        candidates=_candidates(config, current.seed, scores, refs, groups, read_sizes(session, refs, groups)),
        known=_known(session, config),
        model=None if model is None else model.files(project.folder),
        n=n if n is not None else batch_size(config.loop, bought(config, counts), counts.open + len(holdout)),
        holdout=tuple(holdout),
    )


def choose_batch(
    tools: Tools,
    situation: Situation,
    scores: PoolScores | None,
    device: str | None = None,
) -> Selected:
    """Choose the images of a round, in the order of asking. Nothing is recorded.

    Raises:
        PoolError: The strategy needs more memory than allowed.
        ModelError: Data that the strategy needs were not stored when the images were scored.
        Unreadable: Some candidates can no longer be read.
    """
    config, current = situation.config, situation.current
    evidence = Evidence(tools, config, situation.known, scores, situation.model, device)
    candidates = situation.candidates
    batch = choose_images(candidates.refs, candidates.keys, evidence, situation.n, current.seed, candidates.notes)
    first = len(situation.holdout)
    queries = [_query(pick, candidates, batch, scores, first + pick.rank) for pick in batch.picks]
    return Selected(
        queries=(*situation.holdout, *queries),
        chosen=tuple(candidates.refs[pick.position] for pick in batch.picks),
        strategy=batch.strategy,
        notes=batch.notes,
    )


def record_selection(
    session: Session, bench: Workbench, situation: Situation, selected: Selected, file: Mapping[str, str]
) -> None:
    """Record the queries of a batch and what it was made with: SCORED → SELECTED.

    Args:
        session: Session to write in.
        bench: Workbench of the workspace.
        situation: Input of the choice.
        selected: The batch.
        file: Path and checksum of the file of candidates.
    """
    number, config = situation.current.number, situation.config
    find_round_in(session, number, RoundState.SCORED)
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


def _candidates(
    config: Config,
    seed: int,
    scores: PoolScores | None,
    askable: Sequence[ImageRef],
    groups: Mapping[int, int],
    sizes: Sizes,
) -> AskableImages:
    """Return the largest image of each group of near copies among the askable images, and among those with a score."""
    settings, refs = config.acquisition, list(askable)
    if scores is not None:
        left_out = scores.suspects if settings.skip_suspects else frozenset()
        refs = [ref for ref in refs if ref.image_id in scores and ref.image_id not in left_out]
    refs = keep_largest(refs, groups, sizes)
    notes: tuple[str, ...] = ()
    n_groups, most = len(refs), settings.max_candidates
    if most is not None and n_groups > most:
        order = np.argsort(tie_keys([ref.sha256 for ref in refs], derive_seed(seed, "candidates")), kind="stable")
        refs = [refs[position] for position in np.sort(order[:most])]
        notes = (f"Chosen from a uniform sample of {most:,} of {n_groups:,} images ([acquisition] max_candidates).",)
    keys = tie_keys([ref.sha256 for ref in refs], derive_seed(seed, "ties"))
    return AskableImages(tuple(refs), keys, n_groups, notes)


def _known(session: Session, config: Config) -> Known:
    """Return the labeled training images and those being asked about."""
    labels = _encode_labels(
        config, {label.image_id: label.consensus.value for label in list_labels(session, Split.TRAIN)}
    )
    asked = list_open_images(session)
    open_ = {ref.image_id: -1 for ref in list_refs(session, Split.TRAIN, labeled=False) if ref.image_id in asked}
    given = {**open_, **labels}
    # Ordered by content, because ids depend on the order of adding.
    ordered = sorted(find_refs(session, given).values(), key=lambda ref: ref.sha256)
    return Known(tuple(ordered), np.array([given[ref.image_id] for ref in ordered], dtype=np.int64))


def _encode_labels(config: Config, labels: Mapping[int, str]) -> dict[int, int]:
    """Return image id → target, -1 for a label that models cannot learn."""
    coding = TASKS[config.project.task](config.project.classes)
    targets = {image_id: coding.encode(value) for image_id, value in labels.items()}
    return {image_id: -1 if target is None else target for image_id, target in targets.items()}


def _holdout_queries(session: Session, current: RoundRecord) -> list[Query]:
    refs = list_holdout_to_ask(session)
    if not refs:
        return []
    probabilities = list_probabilities(session)
    keys = tie_keys([ref.sha256 for ref in refs], derive_seed(current.seed, "holdout order"))
    ordered = [refs[int(position)] for position in np.argsort(keys, kind="stable")]
    return [
        Query(ref.image_id, Reason.HOLDOUT, RANDOM, rank, probability=probabilities.get(ref.image_id, 1.0))
        for rank, ref in enumerate(ordered, start=1)
    ]


def _query(pick: Pick, candidates: AskableImages, batch: Batch, scores: PoolScores | None, rank: int) -> Query:
    """Make a query. The probability of a uniform draw refers to all groups, even if max_candidates used a sample."""
    image_id = candidates.refs[pick.position].image_id
    is_drawn, probability = pick.reason is Reason.RANDOM, pick.probability
    if is_drawn and probability is not None:
        probability *= len(candidates.refs) / candidates.n_groups
    # A batch without a model that was drawn as a whole is a seed batch.
    is_seed = scores is None and (not is_drawn or batch.strategy == RANDOM)
    query = Query(
        image_id=image_id,
        reason=Reason.SEED if is_seed else pick.reason,
        strategy=RANDOM if is_drawn else batch.strategy,
        rank=rank,
        score=pick.score,
        probability=probability,
        draw_number=pick.draw_number,
        draw_pool=None if pick.draw_number is None else len(candidates.refs),
    )
    if scores is None:
        return query
    predicted, confidence = scores.guess(image_id)
    name = "entropy" if batch.strategy == RANDOM else batch.strategy
    if is_drawn and scores.has(name):
        # The scores of drawn images can then be compared with those of chosen ones.
        query = dataclasses.replace(query, score=float(scores.values(name, [image_id])[0]))
    suspect = image_id in scores.suspects
    return dataclasses.replace(query, predicted=predicted, confidence=confidence, suspect=suspect)
