"""Map of the pool: places of its images on a plane, made once for each way of computing features, kept in the cache."""

import dataclasses
import hashlib
import io
import json
import logging
import os
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import numpy.typing as npt

from alloop.engine.feature_source import FeatureSource
from alloop.errors import AlloopError, ModelError
from alloop.files import write_bytes
from alloop.processes import begin_worker
from alloop.progress import Progress, silent
from alloop.records import ImageRef
from alloop.seeds import derive_seed, tie_keys
from alloop.smoothing.layout import VERSION, Layout, lay_out

MOST = 20_000  # images of the sample, and labeled images beside it
FOLDER = "map"  # in the cache
NICE = 10  # lower priority: pages and commands go first
PROBLEM = "problem"
_KEPT = 4  # maps; older ones can be made again
_log = logging.getLogger("alloop")


@dataclasses.dataclass(frozen=True, eq=False)
class PoolMap:
    """Places of images on the map.

    Attributes:
        name: Name of these places, 8 hex digits. A map that was made again with other places has another one.
        sha256s: Hashes of the images, hex.
        places: Coordinates [n, 2] in [-1, 1].
        n_pool: Number of images in the pool when the map was made.
        n_known: Number of them that had features.
        newest_id: Largest id among them; images of the pool with a larger one came later.
        layout: Arrangement that other images can be placed in; None in a map of an older alloop.
    """

    name: str
    sha256s: tuple[str, ...]
    places: npt.NDArray[np.float32]
    n_pool: int
    n_known: int
    newest_id: int = 0
    layout: Layout | None = None

    @property
    def is_sample(self) -> bool:
        """True if some images with features were left out."""
        return len(self.sha256s) < self.n_known


@dataclasses.dataclass(frozen=True)
class MapJob:
    """Make the map of a pool.

    Attributes:
        images: The pool.
        labeled: Ids of the labeled images.
        seed: Seed of the project.
        out: File to write.
    """

    source: FeatureSource
    images: tuple[ImageRef, ...]
    labeled: frozenset[int]
    seed: int
    out: Path

    def run(self, progress: Progress = silent) -> None:
        """Make and write the map.

        Raises:
            ModelError: No image has features, or features cannot be read.
            WorkspaceError: The disk is full, or the cache cannot be written.
        """
        progress("features", 0, 0)
        known = [image for image, is_known in zip(self.images, self.source.known(self.images), strict=True) if is_known]
        if not known:
            raise ModelError("No image of the pool has features in the cache.", "The next round computes them.")
        is_labeled = np.array([image.image_id in self.labeled for image in known], dtype=bool)
        chosen = [known[at] for at in choose([image.sha256 for image in known], is_labeled, self.seed, MOST)]
        layout = lay_out(self.source.read(chosen), derive_seed(self.seed, "map"), progress)
        newest_id = max(image.image_id for image in self.images)
        about = {"n_pool": len(self.images), "n_known": len(known), "newest_id": newest_id}
        _write(self.out, [image.sha256 for image in chosen], layout, about)
        _drop_old(self.out.parent)


def make_aside(job: MapJob, reports: Connection) -> None:
    """Make a map in a process that was started for it. Loads no torch, and no module of the server.

    Args:
        job: Job to do.
        reports: Receives (label, done, total), and (`PROBLEM`, words, 0) if the map cannot be made.
    """
    begin_worker()
    os.nice(NICE)
    try:
        job.run(lambda label, done, total: reports.send((label, done, total)))
    except (AlloopError, OSError, MemoryError) as error:
        reports.send((PROBLEM, str(error) or "Memory ran out.", 0))
    reports.close()


def map_path(source: FeatureSource, seed: int) -> Path:
    """Return the path of the map of these features."""
    text = json.dumps([VERSION, source.name, seed])
    return source.cache / FOLDER / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"


def choose(sha256s: list[str], is_labeled: npt.NDArray[np.bool_], seed: int, most: int) -> npt.NDArray[np.intp]:
    """Return the positions of the images that the map shows, ascending.

    These are all images, or a uniform sample of `most` of them and, beside it, up to `most` labeled images. The sample
    depends on hashes and seed only, so it shows the pool's densities; the labeled images beside it are few.
    """
    order = np.argsort(tie_keys(sha256s, derive_seed(seed, "map")), kind="stable")
    return np.union1d(order[:most], order[is_labeled[order]][:most])


def read_map(path: Path) -> PoolMap | None:
    """Read a map; None if its file is missing or damaged, or of another version."""
    try:
        data = path.read_bytes()
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            digests, places, about = file["sha256"], file["places"], json.loads(str(file["about"]))
            layout = Layout(places, file["rows"], file["mean"], file["axes"]) if "rows" in file else None
        if digests.shape != (len(places), 32) or places.shape != (len(places), 2) or not np.isfinite(places).all():
            raise ValueError("it has another layout")
        name = hashlib.sha256(digests.tobytes() + places.tobytes()).hexdigest()[:8]
        sha256s = tuple(row.tobytes().hex() for row in digests.astype(np.uint8))
        counts = int(about["n_pool"]), int(about["n_known"]), int(about.get("newest_id", 0))
        return PoolMap(name, sha256s, places, *counts, layout)
    except FileNotFoundError:
        return None
    except Exception as error:  # with a damaged header NumPy can raise anything
        _log.warning("The map in %s cannot be used and is made again: %s", path, error)
        return None


def _write(path: Path, sha256s: Sequence[str], layout: Layout, about: Mapping[str, int]) -> None:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        sha256=np.frombuffer(bytes.fromhex("".join(sha256s)), dtype=np.uint8).reshape(-1, 32),
        **dataclasses.asdict(layout),
        about=np.array(json.dumps(dict(about))),
    )
    write_bytes(path, buffer.getvalue())  # a ZIP file with checksums: damage is seen when it is read


def _drop_old(folder: Path) -> None:
    """Delete all but the newest maps."""
    for path in sorted(folder.glob("*.npz"), key=lambda path: path.stat().st_mtime_ns)[:-_KEPT]:
        path.unlink(missing_ok=True)
