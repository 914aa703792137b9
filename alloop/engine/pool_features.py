"""Smoothed features of a workspace: the graph of its pool, kept beside the feature cache and found again by its key.

A graph is fitted to the raw features of the pool's images, its nodes. Its file can be deleted at any time: it is fitted
again from cached features, because every model version that needs it holds the list of its nodes.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from alloop.engine.build import Hardware
from alloop.engine.cached_features import CachedFeatures, open_features
from alloop.engine.features import Preparation, ensure_features, look_up_features
from alloop.engine.jobs import TrainJob
from alloop.engine.settings import EngineSettings
from alloop.errors import ModelError, WorkspaceError
from alloop.files import sha256_of, write_bytes, write_json
from alloop.models.backbones import Backbone
from alloop.progress import Progress, silent
from alloop.records import ImageRef
from alloop.smoothing.smoothing import FEWEST, VERSION, Smoothing, choose_nodes, fit_smoothing

NODES = "nodes.npy"  # in the folder of a model version: the keys of the nodes, uint8 [N, 32], sorted
GROWTH = 1.1  # the graph is fitted again when the pool has more than this many times the images it had then
STILL_THERE = 0.9  # ... or when fewer than this share of its nodes is left in the pool
_KEPT = 2  # graphs in the folder; older ones can be fitted again
_log = logging.getLogger("alloop")
# The graph that this process used last, by path, inode, size and time: a round trains and scores several times with it.
_last: dict[tuple[str, int, int, int], Smoothing] = {}


@dataclasses.dataclass(frozen=True)
class Graph:
    """The smoothing that a model version is trained with, and what model.json says about it.

    Attributes:
        smoothing: None if the model has raw heads only.
        about: JSON-able: `is_on`, and either `reason` or `key`, `version`, `n_pool` and `n_nodes`.
    """

    smoothing: Smoothing | None
    about: Mapping[str, object]

    def files(self) -> dict[str, bytes]:
        """Return the files that belong into the folder of the model version, by name."""
        return {} if self.smoothing is None else {NODES: _to_bytes(self.smoothing.keys)}


def prepare_graph(
    job: TrainJob,
    backbone: Backbone,
    fingerprint: Mapping[str, object],
    hardware: Hardware,
    progress: Progress = silent,
) -> Graph:
    """Return the graph that a job's heads are trained with: an existing one, or a new one.

    The graph of the model version before is kept until the pool has grown by a tenth. No label enters it. The
    fingerprint is that of the backbone; making it takes a while.

    Raises:
        ModelError: Features cannot be computed.
        WorkspaceError: The disk is full.
    """
    reason = why_off(job.settings)
    if reason:
        return _off(reason)
    keys = sorted({ref.key for ref in job.pool})
    if len(keys) < FEWEST:
        return _off(f"the pool has {len(keys)} images, and a graph needs at least {FEWEST}")
    before = _before(job.pool_before, keys, fingerprint)
    if before is not None:
        nodes, n_pool = before
        kept = _load_or_fit(job.cache, nodes, backbone, fingerprint, progress)
        if kept is not None:
            return Graph(kept, _about(kept, fingerprint, n_pool))
    chosen = set(choose_nodes(keys, [ref.key for ref in job.images]))
    refs = list({ref.key: ref for ref in job.pool if ref.key in chosen}.values())
    _, failed = ensure_features(refs, backbone, job.cache, hardware, progress)
    gone = {image_id for image_id, _ in failed}
    readable = sorted(ref.key for ref in refs if ref.image_id not in gone)
    if len(readable) < FEWEST:
        return _off(f"only {len(readable)} images of the pool can be read, and a graph needs at least {FEWEST}")
    made = _load_or_fit(job.cache, readable, backbone, fingerprint, progress)
    assert made is not None  # all features are there
    return Graph(made, _about(made, fingerprint, len(keys)))


def open_graph(
    folder: Path,
    cache: Path,
    ways: Sequence[tuple[Backbone, Mapping[str, object]]],
    pool: Callable[[], Sequence[ImageRef]],
    hardware: Hardware,
    progress: Progress = silent,
) -> Smoothing:
    """Return the smoothing of a model version. If its file is missing or damaged, it is fitted again.

    Args:
        folder: Folder of the model version, whose checksums were verified.
        cache: Folder of the caches.
        ways: Backbone of the model version with its fingerprint, whose making takes a while: in the precision of the
            training, then in the one that is used now.
        pool: Function that lists the images of the pool, called if the cache lost features of nodes, too.
        hardware: Where these features are computed.
        progress: Called while a graph is fitted.

    Raises:
        ModelError: The file is gone, and some nodes have neither features nor a readable image; or another alloop
            made the graph in another way.
    """
    version = _read_about(folder)["version"]
    if version != VERSION:
        raise ModelError(
            f"The model in {folder} needs a graph of version {version}, but this alloop makes graphs of version "
            f"{VERSION}.",
            "Train it again with `alloop train`, or use the alloop that trained it.",
        )
    nodes = _read_nodes(folder / NODES)
    for backbone, fingerprint in ways:
        found = _load_or_fit(cache, nodes, backbone, fingerprint, progress)
        if found is not None:
            return found
    wanted = set(nodes)
    refs = [ref for ref in pool() if ref.key in wanted]
    try:
        ensure_features(refs, backbone, cache, hardware, progress)
        found = _load_or_fit(cache, nodes, backbone, fingerprint, progress)
    except (OSError, WorkspaceError) as error:  # a cache that we may only read, or a full disk
        _log.warning("The features of the pool are computed again, and kept in memory only: %s", error)
        cached = open_features(cache, fingerprint)
        found = _fit_in_memory(refs, nodes, cached, backbone, hardware, cache, progress)
    if found is None:
        raise ModelError(
            f"The model in {folder} needs a graph of the pool. Its file in {cache / 'pool_features'} is missing, and "
            "so are features or images that it was made from.",
            "Train it again with `alloop train`.",
        )
    return found


def why_off(settings: EngineSettings) -> str:
    """Return why a model of these settings has no smoothed heads; empty if it has them."""
    model = settings.model
    if model.pool_features == "off":
        return '[model] pool_features = "off"'
    if model.mode == "finetune":
        return "a trunk that is trained with the heads has new features in every round"
    if not model.has_learned_features:
        return "the trunk has random weights"
    return ""


def _off(reason: str) -> Graph:
    return Graph(None, {"is_on": False, "reason": reason})


def _about(smoothing: Smoothing, fingerprint: Mapping[str, object], n_pool: int) -> dict[str, object]:
    key = _key(smoothing.keys, fingerprint)
    return {"is_on": True, "key": key, "version": VERSION, "n_pool": n_pool, "n_nodes": len(smoothing.keys)}


def _before(
    folder: Path | None, keys: Sequence[str], fingerprint: Mapping[str, object]
) -> tuple[list[str], int] | None:
    """Return the nodes of the model version before and the size of its pool, if its graph still fits the pool."""
    if folder is None:
        return None
    try:
        about = _read_about(folder)
        if (
            not about["is_on"]
            or about["version"] != VERSION
            or about["backbone"] != json.loads(json.dumps(fingerprint))
        ):
            return None
        nodes = _read_nodes(folder / NODES)
    except (OSError, ValueError, KeyError):  # no such model any more, or one of an older alloop
        return None
    has_grown = len(keys) > GROWTH * about["n_pool"]
    is_left = len(set(keys).intersection(nodes)) >= STILL_THERE * len(nodes)
    return (nodes, int(about["n_pool"])) if is_left and not has_grown else None


def _read_about(folder: Path) -> dict[str, Any]:
    metadata = json.loads((folder / "model.json").read_bytes())
    return {**metadata["pool_features"], "backbone": metadata["backbone"]}


def _load_or_fit(
    cache: Path, nodes: Sequence[str], backbone: Backbone, fingerprint: Mapping[str, object], progress: Progress
) -> Smoothing | None:
    """Return the smoothing of these nodes; None if its file is not there and neither are all features."""
    folder = cache / "pool_features"
    path = folder / f"{_key(nodes, fingerprint)}.safetensors"
    found = _load(path)
    if found is not None:
        return found
    features = open_features(cache, fingerprint)
    if features.missing(nodes):
        return None
    made = fit_smoothing(nodes, torch.from_numpy(features.take(nodes)), progress)
    try:
        _write(made, path)
    except (OSError, WorkspaceError) as error:  # a cache that we may only read, or a full disk
        _log.warning("The graph of the pool is kept in memory only: %s", error)
    _drop_old(folder)
    return made


def _fit_in_memory(
    refs: Sequence[ImageRef],
    nodes: Sequence[str],
    cached: CachedFeatures,
    backbone: Backbone,
    hardware: Hardware,
    cache: Path,
    progress: Progress,
) -> Smoothing | None:
    """Return the smoothing of these nodes without writing anything; None if images of some cannot be read."""
    lacking = set(cached.missing(nodes))
    todo = [ref for ref in refs if ref.key in lacking]

    def say(done: int) -> None:
        progress("features", done, len(todo))

    computed, places, _ = look_up_features(todo, cached, backbone, hardware, Preparation(hardware, cache), say)
    rows = dict(zip((todo[place].key for place in places), computed, strict=True))
    if lacking - rows.keys():
        return None
    known = [key for key in nodes if key not in lacking]
    rows |= dict(zip(known, torch.from_numpy(cached.take(known)), strict=True))
    return fit_smoothing(nodes, torch.stack([rows[key] for key in nodes]), progress)


def _write(smoothing: Smoothing, path: Path) -> None:
    data = safetensors.torch.save(smoothing.to_tensors())
    path.with_suffix(".json").unlink(missing_ok=True)  # it does not describe the file that is written next
    write_bytes(path, data)
    write_json(path.with_suffix(".json"), {"sha256": hashlib.sha256(data).hexdigest(), "nodes": len(smoothing.keys)})


def _load(path: Path) -> Smoothing | None:
    """Read a smoothing; None if the file is missing or damaged."""
    try:
        stat = path.stat()
        stamp = (str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if stamp not in _last:
            about = json.loads(path.with_suffix(".json").read_bytes())
            if sha256_of(path) != about["sha256"]:
                raise ValueError("its checksum is wrong")
            found = Smoothing.from_tensors(safetensors.torch.load_file(path))
            _last.clear()
            _last[stamp] = found
        return _last[stamp]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        _log.warning("The graph in %s cannot be used and is fitted again: %s", path, error)
        return None


def _drop_old(folder: Path) -> None:
    """Delete all but the newest graphs."""
    with contextlib.suppress(OSError):  # deleted by another process, or a folder that we may only read
        files = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
        for path in files[:-_KEPT]:
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink(missing_ok=True)


def _key(nodes: Sequence[str], fingerprint: Mapping[str, object]) -> str:
    """Return the name of a graph: a digest of its nodes, of how their features were made, and of the arithmetic."""
    digest = hashlib.sha256(json.dumps([VERSION, fingerprint], sort_keys=True).encode())
    digest.update("".join(sorted(nodes)).encode())
    return digest.hexdigest()[:16]


def _to_bytes(nodes: Sequence[str]) -> bytes:
    buffer = io.BytesIO()
    rows = np.frombuffer(bytes.fromhex("".join(nodes)), dtype=np.uint8).reshape(-1, 32)
    np.save(buffer, rows, allow_pickle=False)
    return buffer.getvalue()


def _read_nodes(path: Path) -> list[str]:
    return [row.tobytes().hex() for row in np.load(path, allow_pickle=False)]
