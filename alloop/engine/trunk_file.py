"""Features by a trained trunk, stored next to the scores: one .npy file for each round, read by memory map.

Models with a published trunk have no such file, because the feature cache serves every round.
"""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from alloop.errors import ModelError
from alloop.files import atomic_path, explain_os_error, sha256_of
from alloop.records import ImageRef

NOBODY = -1  # image id of an empty row, whose image could not be read


class TrunkWriter:
    """Writes features as they come to a file of known length: fields `image_id` int64 and `features` float32 [D].

    Args:
        path: Place of the file. None writes nothing: all methods do nothing.
        n_rows: Number of images, readable or not.
    """

    def __init__(self, path: Path | None, n_rows: int) -> None:
        self._path = path
        self._n_rows = n_rows
        self._place: Any = None
        self._temporary = Path()
        self._rows: np.memmap[Any, Any] | None = None
        self._n_filled = 0

    @property
    def is_open(self) -> bool:
        return self._path is not None

    def __enter__(self) -> "TrunkWriter":
        if self._path is not None:
            self._place = atomic_path(self._path)
            self._temporary = self._place.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rows = None
        if self._place is not None:
            self._place.__exit__(kind, error, trace)

    def add(self, images: Sequence[ImageRef], features: Tensor) -> None:
        """Write features [B, D] into the next rows."""
        if self._path is None or not images:
            return
        rows = self._rows if self._rows is not None else self._begin(features.shape[1])
        end = self._n_filled + len(images)
        rows["image_id"][self._n_filled : end] = [image.image_id for image in images]
        rows["features"][self._n_filled : end] = features.numpy()
        self._n_filled = end

    def finish(self) -> str | None:
        """Complete the file and return its checksum; None if nothing is written."""
        if self._path is None:
            return None
        rows = self._rows if self._rows is not None else self._begin(0)
        rows["image_id"][self._n_filled :] = NOBODY
        rows.flush()
        self._rows = None
        return sha256_of(self._temporary)

    def _begin(self, n_features: int) -> "np.memmap[Any, Any]":
        kind = np.dtype([("image_id", "<i8"), ("features", "<f4", (n_features,))])
        try:
            rows: np.memmap[Any, Any] = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
                self._temporary, mode="w+", dtype=kind, shape=(self._n_rows,)
            )
        except OSError as error:
            raise explain_os_error(error, self._temporary) from error
        self._rows = rows
        return rows


def list_trunk_images(path: Path, sha256: str) -> npt.NDArray[np.int64]:
    """List the ids of the images that the file has features of.

    Raises:
        ModelError: The file is missing or damaged.
    """
    return np.array(_opened(path, sha256)["image_id"], dtype=np.int64)


def read_trunk_features(
    path: Path, sha256: str, image_ids: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Return features [n, D] of the images that the file has, and a mask [N] of these images.

    Raises:
        ModelError: The file is missing or damaged.
    """
    rows = _opened(path, sha256)
    ids = np.array(rows["image_id"])
    order = np.argsort(ids, kind="stable")
    places = np.minimum(np.searchsorted(ids[order], image_ids), max(len(ids) - 1, 0))
    found = ids[order][places] == image_ids if len(ids) else np.zeros(len(image_ids), dtype=bool)
    return np.ascontiguousarray(rows["features"][order[places[found]]], dtype=np.float32), found


def _opened(path: Path, sha256: str) -> Any:
    again = "Score again with `alloop score`."
    try:
        if sha256_of(path) != sha256:
            raise ModelError(f"The features in {path} are damaged: their checksum does not match.", again)
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"The features in {path} cannot be read: {error}.", again) from error
