"""All images of the pool as columns in memory: filters, orders and pages take milliseconds at 100,000 images."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from alloop.engine.pool_map import PoolMap, map_path, read_map
from alloop.engine.score_file import each_log_probs
from alloop.errors import ModelError
from alloop.loop.choosing.pool_scores import PoolScores, find_newest_scores
from alloop.loop.measuring.findings import read_last_holdout
from alloop.project import Project
from alloop.records import LocationStatus, QueryStatus, Reason, Split
from alloop.report.headlines import with_share
from alloop.serve.features import find_source
from alloop.serve.placing import place_new
from alloop.store.images import find_image_ids, list_attribute_names
from alloop.store.tables import Image, ImageAttribute, ImageLocation, Label, NearDuplicate, QueryRow, Round

Floats = npt.NDArray[np.float64]
Texts = npt.NDArray[np.object_]


@dataclasses.dataclass(frozen=True, eq=False)
class Snapshot:
    """Columns [N] of the images, by id. Images without a score have nan and "".

    Attributes:
        path: Present path, or "" for an image whose file is missing.
        split: "train", "holdout", "excluded" or "junk".
        label: Label that people gave, or "".
        state: Status of its newest query, or "".
        asked: Number of the round of its newest query; -1 if it was never asked about.
        by_hand: True if a person asked for it by hand.
        copies: Number of images in its group of near copies.
        group: Group of near copies, named by the id of its first image.
        attributes: Name of an attribute → values [N], "" for an image without it.
        spots: Places on the map; None before the map is made.
    """

    image_id: npt.NDArray[np.int64]
    path: Texts
    split: Texts
    label: Texts
    state: Texts
    asked: npt.NDArray[np.int64]
    by_hand: npt.NDArray[np.bool_]
    copies: npt.NDArray[np.int64]
    group: npt.NDArray[np.int64]
    attributes: Mapping[str, Texts]
    scored: "Scored"
    spots: "Spots | None" = None

    def __len__(self) -> int:
        return len(self.image_id)

    @functools.cached_property
    def is_kept(self) -> npt.NDArray[np.bool_]:
        """Mask [N] of the images that are not marked as junk."""
        return np.asarray(self.split != Split.JUNK.value, dtype=bool)

    @functools.cached_property
    def name_rank(self) -> npt.NDArray[np.int64]:
        """Place of each image [N] in the order of paths, small and capital letters alike."""
        order = np.argsort(np.array([path.casefold() for path in self.path.tolist()], dtype=object), kind="stable")
        ranks = np.empty(len(self), dtype=np.int64)
        ranks[order] = np.arange(len(self))
        return ranks

    @functools.cached_property
    def sources(self) -> tuple[str, ...]:
        """The folder or other source of each file, each once, in order."""
        return tuple(sorted({path.rpartition("/")[0] for path in self.path.tolist() if path}))

    @functools.cached_property
    def attribute_values(self) -> Mapping[str, tuple[str, ...]]:
        """Attribute → its values, in order."""
        return {name: tuple(sorted({*column.tolist()} - {""})) for name, column in self.attributes.items()}

    def place(self, image_id: int) -> int | None:
        """Return the row of an image; None if there is no such image."""
        at = int(np.searchsorted(self.image_id, image_id))
        return at if at < len(self) and int(self.image_id[at]) == image_id else None

    def row(self, at: int) -> "Tile":
        """Return what a grid shows of an image."""
        return Tile(
            image_id=int(self.image_id[at]),
            name=self.path[at].rpartition("/")[2],
            predicted=self.scored.predicted[at],
            probability=float(self.scored.probability[at]),
            uncertainty=min(1.0, float(self.scored.entropy[at]) / np.log(max(2, len(self.scored.classes)))),
            entropy=float(self.scored.entropy[at]),
            label=self.label[at],
            state=self.state[at],
            asked=int(self.asked[at]),
            split=self.split[at],
            mark=self._mark(at),
            is_missing=not self.path[at],
        )

    def _mark(self, at: int) -> str:
        if self.split[at] == Split.JUNK.value:
            return "junk"
        if self.by_hand[at]:
            return "asked by hand"
        if self.scored.suspect[at]:
            return "unlike the rest"
        return f"{self.copies[at]} near copies" if self.copies[at] > 1 else ""


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """Columns [N] of the newest scores. Images without a score have nan and "".

    The labeled holdout images are not scored with the pool; their predictions are those of the newest measured model.

    Attributes:
        predicted, probability: Most probable class, and its calibrated probability.
        entropy: Predictive entropy in nats.
        suspect: True if the image looks unlike the rest of the pool.
        others: Name → score by which images can be sorted; higher is more uncertain, or stranger for `ood`.
        round_number: Round of the scores; None without scores.
    """

    predicted: Texts
    probability: Floats
    entropy: Floats
    suspect: npt.NDArray[np.bool_]
    others: Mapping[str, Floats]
    classes: tuple[str, ...]
    round_number: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class Spots:
    """Images on the map.

    Attributes:
        pool_map: The map.
        places: Places [N, 2] of all images, in [-1, 1]; nan for images that are not on it.
        is_new: True for images that came after the map was made and were placed beside their neighbors [N].
    """

    pool_map: PoolMap
    places: Floats
    is_new: npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, slots=True)
class Tile:
    """Image in a grid, with fields of `Snapshot`.

    Attributes:
        uncertainty: Predictive entropy as a share of its maximum.
        mark: What is special about the image, in two words; or "".
    """

    image_id: int
    name: str
    predicted: str
    probability: float
    uncertainty: float
    entropy: float
    label: str
    state: str
    asked: int
    split: str
    mark: str
    is_missing: bool

    @property
    def guess(self) -> str:
        """Prediction with its probability, if that is known. Images that the model learned from have none."""
        if not self.predicted:
            return "trained on" if self.label and self.split == "train" else "no prediction yet"
        if np.isnan(self.probability):
            return f"predicted {self.predicted}"
        return with_share(self.predicted, self.probability)

    @property
    def standing(self) -> str:
        """Label, or what is known of the question about the image."""
        if self.split == Split.JUNK.value:
            return f"marked as junk, labeled {self.label}" if self.label else "marked as junk"
        if self.label:
            return f"labeled {self.label}"
        if self.is_missing:
            return "file missing"
        if self.state == "open":
            return f"asked in round {self.asked}"
        if self.state and self.state != "withdrawn":
            return f"{self.state} in round {self.asked}"
        return "set aside: near copy in the holdout" if self.split == "excluded" else "not asked yet"


def take_snapshot(session: Session, project: Project) -> Snapshot:
    """Read the columns. Takes about half a second for 100,000 images."""
    image_ids, splits, sha256s = _columns(session, select(Image.id, Image.split, Image.sha256).order_by(Image.id))
    ids = np.array(image_ids, dtype=np.int64)
    n = len(ids)

    path, label, state = (np.full(n, "", dtype=object) for _ in range(3))
    asked, group = np.full(n, -1, dtype=np.int64), ids.copy()
    here = select(ImageLocation.image_id, ImageLocation.path).where(
        ImageLocation.image_id.is_not(None), ImageLocation.status == LocationStatus.OK.value
    )
    _fill(path, ids, *_columns(session, here.order_by(ImageLocation.path.desc())))
    _fill(label, ids, *_columns(session, select(Label.image_id, Label.class_name)))
    asking = select(QueryRow.image_id, QueryRow.status, Round.number, QueryRow.reason)
    asking = asking.join(Round, Round.id == QueryRow.round_id).order_by(Round.number)
    about, statuses, numbers, reasons = _columns(session, asking)
    manual = [
        image_id
        for image_id, status, reason in zip(about, statuses, reasons, strict=True)
        if reason == Reason.MANUAL.value and status != QueryStatus.WITHDRAWN.value
    ]
    _fill(state, ids, about, statuses)
    _fill(asked, ids, about, numbers)
    _fill(group, ids, *_columns(session, select(NearDuplicate.image_id, NearDuplicate.group_id)))
    _, members, sizes = np.unique(group, return_inverse=True, return_counts=True)
    return Snapshot(
        image_id=ids,
        path=path,
        split=np.array(splits, dtype=object),
        label=label,
        state=state,
        asked=asked,
        by_hand=np.isin(ids, manual),
        copies=sizes[members] if n else np.zeros(0, dtype=np.int64),
        group=group,
        attributes=_attributes(ids, session),
        scored=_scored(ids, find_newest_scores(session, project), session, project),
        spots=_spots(ids, sha256s, label != "", session, project),
    )


def _attributes(ids: npt.NDArray[np.int64], session: Session) -> dict[str, Texts]:
    found: dict[str, Texts] = {}
    for name in list_attribute_names(session):
        found[name] = np.full(len(ids), "", dtype=object)
        rows = select(ImageAttribute.image_id, ImageAttribute.value).where(ImageAttribute.name == name)
        _fill(found[name], ids, *_columns(session, rows))
    return found


def _spots(
    ids: npt.NDArray[np.int64],
    sha256s: Sequence[str],
    is_labeled: npt.NDArray[np.bool_],
    session: Session,
    project: Project,
) -> Spots | None:
    try:
        source = find_source(session, project)
        pool_map = read_map(map_path(source, project.config.project.seed))
    except ModelError:  # no model yet
        return None
    if pool_map is None:
        return None
    places = np.full((len(sha256s), 2), np.nan)
    known = {sha256: at for at, sha256 in enumerate(sha256s)}
    on_map = [known.get(sha256, -1) for sha256 in pool_map.sha256s]
    is_there = np.array(on_map, dtype=np.int64) >= 0
    places[np.array(on_map, dtype=np.int64)[is_there]] = pool_map.places[is_there]
    is_off = np.isnan(places[:, 0])
    if pool_map.is_sample:  # the others were left out, so that the map stays quick
        is_off &= is_labeled | (ids > pool_map.newest_id)
    found = place_new(pool_map, source, {int(ids[at]): sha256s[at] for at in np.flatnonzero(is_off)}, session)
    is_new = np.isin(ids, list(found))
    if found:
        places[is_new] = [found[image_id] for image_id in ids[is_new].tolist()]
    return Spots(pool_map, places, is_new)


def _columns(session: Session, query: "Select[*tuple[Any, ...]]") -> list[Sequence[Any]]:
    """Return the columns of a query of texts and whole numbers.

    They are read as the database's own tuples: rows of SQLAlchemy, which nobody needs here, would take twice as long.
    """
    result = session.connection().execute(query)
    assert result.cursor is not None
    rows = result.cursor.fetchall()
    result.close()
    return [[row[at] for row in rows] for at in range(len(query.selected_columns))]


def _fill(
    column: npt.NDArray[Any], ids: npt.NDArray[np.int64], image_ids: Sequence[int], values: Sequence[Any]
) -> None:
    """Set the values of images; of several values of an image the last one stays."""
    if len(image_ids):
        places = np.searchsorted(ids, np.array(image_ids, dtype=np.int64))
        column[places] = np.array(values, dtype=column.dtype)


def _scored(
    ids: npt.NDArray[np.int64], found: tuple[int, PoolScores] | None, session: Session, project: Project
) -> Scored:
    n = len(ids)
    predicted, suspect = np.full(n, "", dtype=object), np.zeros(n, dtype=bool)
    entropy, probability = np.full(n, np.nan), np.full(n, np.nan)
    if found is None or n == 0:
        _add_holdout(ids, session, project, predicted, probability, entropy)
        return Scored(predicted, probability, entropy, suspect, {}, project.config.project.classes, None)
    number, scores = found
    known = scores.scores
    places = np.minimum(np.searchsorted(ids, known.image_ids), n - 1)
    is_there = ids[places] == known.image_ids
    rows = places[is_there]
    predicted[rows] = np.array(known.predicted, dtype=object)[is_there]
    entropy[rows] = known.entropy[is_there]
    suspect[rows] = np.isin(known.image_ids[is_there], list(scores.suspects))
    others: dict[str, Floats] = {}
    for name, values in {**known.uncertainty, "ood": known.ood}.items():
        others[name] = np.full(n, np.nan)
        others[name][rows] = values[is_there]
    for some, log_probs in each_log_probs(project.paths.scores(number)):
        if log_probs.ndim == 2:  # calibrated
            places = np.minimum(np.searchsorted(ids, some), n - 1)
            is_there = ids[places] == some
            probability[places[is_there]] = np.exp(log_probs.max(axis=1)[is_there])
    _add_holdout(ids, session, project, predicted, probability, entropy)
    return Scored(predicted, probability, entropy, suspect, others, known.classes, number)


def _add_holdout(
    ids: npt.NDArray[np.int64],
    session: Session,
    project: Project,
    predicted: Texts,
    probability: Floats,
    entropy: Floats,
) -> None:
    holdout = read_last_holdout(session, project)
    if holdout is None or holdout.calibrated_log_probs is None:
        return
    known = find_image_ids(session, holdout.sha256s)
    log_probs = holdout.calibrated_log_probs.astype(np.float64)
    there = [at for at, sha256 in enumerate(holdout.sha256s) if sha256 in known]
    image_ids = [known[holdout.sha256s[at]] for at in there]
    _fill(predicted, ids, image_ids, [holdout.predicted[at] for at in there])
    _fill(probability, ids, image_ids, np.exp(log_probs.max(axis=1))[there].tolist())
    _fill(entropy, ids, image_ids, (-np.exp(log_probs) * log_probs).sum(axis=1)[there].tolist())
