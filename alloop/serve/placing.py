"""Images that came after the map was made: placed beside their nearest neighbors on it, each once."""

import itertools
import logging
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from alloop.engine.feature_source import FeatureSource
from alloop.engine.pool_map import PoolMap
from alloop.errors import AlloopError
from alloop.store.images import find_refs

MOST = 10_000  # images that are placed; with more of them it is time for another map
_log = logging.getLogger("alloop")
_placed: dict[str, dict[str, npt.NDArray[np.float32]]] = {}  # of the map that was asked for last: hash → place


def place_new(
    pool_map: PoolMap, source: FeatureSource, images: Mapping[int, str], session: Session
) -> Mapping[int, npt.NDArray[np.float32]]:
    """Return places [2] of those of the images that have a file and features, by image id.

    Args:
        pool_map: Map that they are placed on.
        source: Features that the map was made from.
        images: Image id → content hash of images that are not on the map. Of more than `MOST`, the first are placed.
        session: Session to read in.
    """
    if pool_map.layout is None or not len(pool_map.places):
        return {}
    if pool_map.name not in _placed:
        _placed.clear()
    known = _placed.setdefault(pool_map.name, {})
    wanted = dict(itertools.islice(images.items(), MOST))
    refs = list(find_refs(session, [image_id for image_id, sha256 in wanted.items() if sha256 not in known]).values())
    try:
        there = [ref for ref, has_features in zip(refs, source.known(refs), strict=True) if has_features]
        if there:
            places = pool_map.layout.place(source.read(there))
            known.update((ref.sha256, place) for ref, place in zip(there, places, strict=True))
    except AlloopError as error:
        _log.warning("New images are not placed on the map: %s", error)
        return {}
    return {image_id: known[sha256] for image_id, sha256 in wanted.items() if sha256 in known}
