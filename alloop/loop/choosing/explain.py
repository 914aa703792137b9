"""Explanation of an image: reasons for its questions, and its present state."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sqlalchemy.orm import Session

from alloop.config.load import validate_config
from alloop.config.schema import Config
from alloop.errors import AlloopError, ModelError, PoolError
from alloop.loop.choosing.askable import list_askable
from alloop.loop.choosing.evidence import Evidence, Known
from alloop.loop.choosing.explanation import Asked, Automatic, Explanation, Neighbor, Rank
from alloop.loop.choosing.filter import find_matching
from alloop.loop.choosing.pool_scores import PoolScores, load_scores
from alloop.loop.intake.near_copies import keep_largest, list_groups, read_sizes
from alloop.loop.workbench import Tools
from alloop.pool.sources import full_name, name_of
from alloop.project import Project
from alloop.records import ImageRef, QueryStatus, Split
from alloop.store.annotations import list_labels
from alloop.store.auto_labels import find_auto_label, list_looks
from alloop.store.images import find_refs, find_split, list_locations
from alloop.store.queries import QueryRecord, list_queries
from alloop.store.rounds import RoundRecord, find_model, list_rounds
from alloop.store.selections import list_selections
from alloop.store.session import reading

SHORTEST = 4  # smallest number of digits that count as a hash
NEIGHBORS = 5


def explain(tools: Tools, name: str, device: str | None = None) -> Explanation:
    """Gather the facts about an image.

    Args:
        tools: Tools of the workspace.
        name: Beginning of its hash, a path, or its file name.
        device: Device for features instead of `[model] device`.

    Raises:
        PoolError: No image, or several images, have this name.
    """
    project = tools.project
    with reading(project.database) as session:
        image_id, sha256, path = _find(session, name)
        queries = [query for query in list_queries(session) if query.image_id == image_id]
        labels = {label.image_id: label.consensus.value for label in list_labels(session)}
        train = [label.image_id for label in list_labels(session, Split.TRAIN)]
        split = find_split(session, image_id)
        notes = {number: chosen.notes for number, chosen in list_selections(session).items()}
        source = _source(session, project, image_id, queries)
        refs = find_refs(session, [image_id, *train])
        standing = _standing(session, project.config, image_id, split, labels, queries)
        model = None if source is None else find_model(session, source[0].id)
        automatic = _automatic(session, image_id)
    explanation = Explanation(
        image_id=image_id,
        sha256=sha256,
        path=path,
        split=split.value,
        label=labels.get(image_id),
        standing=standing,
        asked=tuple(_asked(query, notes) for query in queries),
        automatic=automatic,
        depth=refs[image_id].depth if image_id in refs else None,
    )
    said = {} if source is None else _said(*source, image_id)
    config = project.config if source is None else validate_config(source[0].config, "the config of the round")
    evidence = Evidence(tools, config, Known(), None if source is None else source[1], None, device=device)
    others = [refs[other] for other in train if other in refs and other != image_id]
    neighbors, note = _neighbors(evidence, refs.get(image_id), others, labels)
    name_of = None if model is None else model.name
    return dataclasses.replace(explanation, **said, model=name_of, neighbors=neighbors, note=note)


def _find(session: Session, name: str) -> tuple[int, str, str]:
    """Find id, hash and path of the named image."""
    places = [place for place in list_locations(session) if place.image_id is not None and place.sha256 is not None]
    absolute = full_name(name, os.getcwd())  # noqa: PTH109
    is_hash = len(name) >= SHORTEST and all(digit in "0123456789abcdef" for digit in name.lower())
    by_path = [place for place in places if place.path in (name, absolute)]
    by_name = [place for place in places if name_of(place.path) == name]
    by_hash = [place for place in places if is_hash and str(place.sha256).startswith(name.lower())]
    found = {place.image_id: place for place in by_path or by_name or by_hash}
    if not found:
        raise PoolError(
            f"No image of the pool is called {name}.",
            f"Give the beginning of its hash ({SHORTEST} digits or more), its path or its file name; `alloop pool "
            "list` shows them.",
        )
    if len(found) > 1:
        some = ", ".join(f"{str(place.sha256)[:12]} ({place.path})" for place in list(found.values())[:3])
        raise PoolError(f"{len(found)} images are called {name}: {some}{' …' if len(found) > 3 else ''}.", "Say which.")
    image_id, place = found.popitem()
    return int(image_id or 0), str(place.sha256), place.path


def _automatic(session: Session, image_id: int) -> Automatic | None:
    label = find_auto_label(session, image_id)
    if label is None:
        return None
    (look,) = [look for look in list_looks(session) if look.number == label.look]
    return Automatic(
        class_name=label.class_name,
        probability=label.probability,
        threshold=label.threshold,
        model=label.model,
        look=label.look,
        max_error=look.max_error,
        confidence=look.confidence,
    )


def _asked(query: QueryRecord, notes: dict[int, tuple[str, ...]]) -> Asked:
    return Asked(
        round_number=query.round_number,
        reason=query.reason.value,
        strategy=query.strategy,
        rank=query.rank,
        score=query.score,
        probability=query.probability,
        draw_number=query.draw_number,
        draw_pool=query.draw_pool,
        status=query.status.value,
        notes=notes.get(query.round_number, ()),
    )


def _source(
    session: Session, project: Project, image_id: int, queries: Sequence[QueryRecord]
) -> tuple[RoundRecord, PoolScores] | None:
    """Find the round with the best scores: the last that asked about the image, else the newest that scored it."""
    asked_by = {query.round_number for query in queries}
    rounds = sorted(list_rounds(session), key=lambda row: (row.number in asked_by, row.number), reverse=True)
    for row in rounds:
        try:
            scores = load_scores(project, row, project.config.acquisition)
        except ModelError:  # its files were deleted
            continue
        if scores is not None and image_id in scores:
            return row, scores
    return None


def _said(row: RoundRecord, scores: PoolScores, image_id: int) -> dict[str, Any]:
    position = int(scores.positions([image_id])[0])
    columns = {**scores.scores.uncertainty, "ood": scores.scores.ood}
    probs = scores.calibrated_log_probs([image_id])[0].exp().tolist()
    ordered = sorted(zip(scores.scores.classes, probs, strict=True), key=lambda pair: -pair[1])
    return {
        "round_number": row.number,
        "probs": dict(ordered),
        "entropy": float(scores.scores.entropy[position]),
        "suspect": image_id in scores.suspects,
        "ranks": {
            name: Rank(float(values[position]), 1 + int((values > values[position]).sum()), len(values))
            for name, values in columns.items()
        },
    }


def _neighbors(
    evidence: Evidence, image: ImageRef | None, labeled: Sequence[ImageRef], labels: dict[int, str]
) -> tuple[tuple[Neighbor, ...], str]:
    """Return the nearest labeled images, or the reason for having none."""
    if image is None:
        return (), "The image file is missing."
    if not labeled:
        return (), "No training image has a label yet."
    try:
        rows, found, _ = evidence.features_of(evidence.config.acquisition.strategy, [image, *labeled])
    except AlloopError as error:
        return (), error.message
    if not found[0]:
        return (), "The image has no features: it cannot be read, or was not scored with this model."
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    cosines = (unit[1:] @ unit[0]).numpy()
    there = [labeled[place] for place in np.flatnonzero(found[1:])]
    order = sorted(range(len(there)), key=lambda place: (-cosines[place], there[place].sha256))
    return tuple(
        Neighbor(there[at].sha256, there[at].path, labels[there[at].image_id], float(cosines[at]), there[at].depth)
        for at in order[:NEIGHBORS]
    ), ""


def _standing(
    session: Session,
    config: Config,
    image_id: int,
    split: Split,
    labels: dict[int, str],
    queries: Sequence[QueryRecord],
) -> str:
    """Describe whether the image can be asked about now, with the reason if not."""
    if any(query.status is QueryStatus.OPEN for query in queries):
        return "It is being asked about now."
    if split is Split.HOLDOUT:
        return "It is in the holdout: no strategy chooses from it."
    if split is Split.EXCLUDED:
        return "It is set aside: a near copy of it is in the holdout."
    if split is Split.JUNK:
        return "It is marked as junk: nobody is asked about it, and no model is trained on it."
    if image_id in labels:
        return f"It is labeled: {labels[image_id]}."
    last = queries[-1].status if queries else None
    number = max((row.number for row in list_rounds(session)), default=0)
    askable = list_askable(session, config.acquisition, number)
    if image_id in {ref.image_id for ref in askable}:
        only = config.acquisition.only
        if only is not None and image_id not in find_matching(session, only):
            return f"It is not asked about, because it does not match [acquisition] only = {only!r}."
        groups = list_groups(session)
        one_each = keep_largest(askable, groups, read_sizes(session, askable, groups))
        is_asked = image_id in {ref.image_id for ref in one_each}
        return "It can be asked about." if is_asked else "A larger near copy of it can be asked about in its place."
    if last in (QueryStatus.SKIPPED, QueryStatus.UNKNOWN):
        return f"It was asked about, and the answer was: {last.value}."
    if image_id not in find_refs(session, [image_id]):
        return "It is missing, or cannot be read: `alloop pool check` says more."
    groups = list_groups(session)
    copies = [other for other in labels if groups.get(other) == groups[image_id]]
    return "A near copy of it is labeled already." if copies else "A near copy of it is being asked about."
