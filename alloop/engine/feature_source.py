"""Place of the features that a model sees. Reading it needs no trunk, and in most cases no torch."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alloop.engine.cached_features import open_features
from alloop.errors import ModelError
from alloop.records import ImageRef


@dataclasses.dataclass(frozen=True)
class FeatureSource:
    """Features of a model's images: in the cache, if its trunk is a published one, else in the file of its own trunk.

    Attributes:
        cache: Folder of the caches.
        fingerprint: Everything that features of a published trunk depend on besides the image.
        trunk_file: File with the features of a trained trunk; None for a published trunk.
        sha256: Checksum of that file.
    """

    cache: Path
    fingerprint: Mapping[str, Any]
    trunk_file: Path | None = None
    sha256: str = ""

    @property
    def name(self) -> str:
        """Name of this way of computing features, 16 hex digits."""
        text = self.sha256 if self.trunk_file else json.dumps(self.fingerprint, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def known(self, images: Sequence[ImageRef]) -> npt.NDArray[np.bool_]:
        """Return a mask [N] of the images that have features.

        Raises:
            ModelError: The file of a trained trunk is missing or damaged.
        """
        if self.trunk_file is not None:
            from alloop.engine.trunk_file import list_trunk_images

            ids = np.array([image.image_id for image in images], dtype=np.int64)
            return np.isin(ids, list_trunk_images(self.trunk_file, self.sha256))
        lacking = set(open_features(self.cache, self.fingerprint).missing([image.key for image in images]))
        return np.array([image.key not in lacking for image in images], dtype=bool)

    def read(self, images: Sequence[ImageRef]) -> npt.NDArray[np.float32]:
        """Return features [N, D] of images that have some, in the order given.

        Raises:
            ModelError: An image has no features, or the file of a trained trunk is missing or damaged.
        """
        if self.trunk_file is None:
            return open_features(self.cache, self.fingerprint).take([image.key for image in images])
        from alloop.engine.trunk_file import read_trunk_features

        ids = np.array([image.image_id for image in images], dtype=np.int64)
        rows, found = read_trunk_features(self.trunk_file, self.sha256, ids)
        if not found.all():
            raise ModelError(f"{int((~found).sum())} of {len(images)} images have no features in {self.trunk_file}.")
        return rows
