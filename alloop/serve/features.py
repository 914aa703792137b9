"""Features of the newest model: where they are, and the labeled images that are nearest by them."""

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from alloop.engine.feature_source import FeatureSource
from alloop.engine.score_file import read_scores
from alloop.errors import AlloopError, ModelError
from alloop.files import sha256_of
from alloop.loop.choosing.pool_scores import features_beside
from alloop.project import Project
from alloop.records import MODEL_METADATA, ImageRef, Split
from alloop.seeds import derive_seed, tie_keys
from alloop.store.images import find_refs, list_refs
from alloop.store.rounds import find_last_model, find_round_number
from alloop.store.session import reading

NEAREST = 6
MOST_BYTES = 256 * 2**20  # of the features of labeled images in memory


@dataclasses.dataclass(frozen=True, eq=False)
class Labeled:
    """Features of labeled training images, each of length 1.

    Attributes:
        source: Place of all features; None if there are none.
        image_ids: Ids [L].
        rows: Features [L, D].
        note: Why there are none, or why these are not all; "" otherwise.
    """

    source: FeatureSource | None
    image_ids: npt.NDArray[np.int64]
    rows: npt.NDArray[np.float32]
    note: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Near:
    """Nearest labeled images, the nearest first: (image id, cosine). `note` says why there are none."""

    found: tuple[tuple[int, float], ...]
    note: str = ""


def find_source(session: Session, project: Project) -> FeatureSource:
    """Return the place of the features that the newest model sees.

    Raises:
        ModelError: There is no model yet, its files are gone, or features of its own trunk were not kept.
    """
    model = find_last_model(session)
    if model is None:
        raise ModelError("There is no model yet.", "The first model is trained when the first answers are in.")
    path = model.files(project.folder).folder / MODEL_METADATA
    try:
        if sha256_of(path) != model.sha256:
            raise OSError("its checksum is wrong")
        metadata = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(
            f"The model {model.name} cannot be read: {error}.", "`alloop train` makes it again."
        ) from error
    source = FeatureSource(project.paths.cache, metadata["backbone"])
    if metadata["config"]["model"]["mode"] == "frozen":
        return source
    scores = project.paths.scores(find_round_number(session, model.round_id))
    sha256 = read_scores(scores).features_sha256 if scores.exists() else None
    if sha256 is None:
        raise ModelError(
            "A fine-tuned model has features of its own, and they were not kept.",
            "`alloop score --strategy k-center` keeps them.",
        )
    return dataclasses.replace(source, trunk_file=features_beside(scores), sha256=sha256)


def read_labeled(project: Project) -> Labeled:
    """Read the features of the labeled training images that have features."""
    nothing = np.zeros(0, dtype=np.int64), np.zeros((0, 0), dtype=np.float32)
    with reading(project.database) as session:
        try:
            source = find_source(session, project)
        except ModelError as error:
            return Labeled(None, *nothing, error.message)
        refs = list_refs(session, Split.TRAIN, labeled=True)
    try:
        known = [ref for ref, is_known in zip(refs, source.known(refs), strict=True) if is_known]
        if not known:
            return Labeled(source, *nothing, "No labeled training image has features yet.")
        most = max(1, MOST_BYTES // source.read(known[:1]).nbytes)
        order = np.argsort(tie_keys([ref.sha256 for ref in known], derive_seed(project.config.project.seed, "nearest")))
        kept = [known[at] for at in np.sort(order[:most])]
        note = "" if len(kept) == len(known) else f"Searched in a uniform sample of {len(kept):,} labeled images."
        return Labeled(source, np.array([ref.image_id for ref in kept]), _unit(source.read(kept)), note)
    except AlloopError as error:
        return Labeled(None, *nothing, error.message)


def find_nearest(project: Project, labeled: Labeled, image_id: int) -> Near:
    """Find the labeled images whose features have the largest cosine with those of an image."""
    if labeled.source is None or not len(labeled.rows):
        return Near((), labeled.note)
    with reading(project.database) as session:
        image = find_refs(session, [image_id]).get(image_id)
    if image is None:
        return Near((), "The file of this image is missing.")
    try:
        own = _features_of(labeled.source, image)
    except AlloopError as error:
        return Near((), error.message)
    if own is None:
        return Near((), "This image has no features yet.")
    cosines = labeled.rows @ own
    order = [at for at in np.argsort(-cosines, kind="stable")[: NEAREST + 1] if labeled.image_ids[at] != image_id]
    found = ((int(labeled.image_ids[at]), float(cosines[at])) for at in order[:NEAREST])
    return Near(tuple(found), labeled.note)


def _features_of(source: FeatureSource, image: ImageRef) -> npt.NDArray[np.float32] | None:
    images: Sequence[ImageRef] = [image]
    return _unit(source.read(images))[0] if source.known(images)[0] else None


def _unit(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    lengths: npt.NDArray[np.float32] = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, np.finfo(np.float32).tiny), dtype=np.float32)
