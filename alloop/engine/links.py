"""Links of images to a graph that they are not in, kept on disk.

A pool that is larger than its graph is placed in every round. Finding the nearest nodes takes most of this time, and
depends on the image and the graph only.
"""

import contextlib
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from alloop.engine.cached_features import CachedFeatures
from alloop.engine.features import Shards
from alloop.errors import WorkspaceError
from alloop.pool.cache import FeatureCache
from alloop.progress import Progress, silent
from alloop.smoothing.smoothing import NEIGHBORS, VERSION, Links, Smoothing

AT_ONCE = 4096  # images whose features are in memory while their links are found
_KEPT = 2  # graphs whose links are kept; those of older ones can be found again
_log = logging.getLogger("alloop")

Transform = Callable[[Sequence[str], Float[Tensor, "B D"]], Float[Tensor, "B S"]]


def link_images(
    smoothing: Smoothing,
    keys: Sequence[str],
    features: CachedFeatures,
    cache: Path,
    progress: Progress = silent,
) -> Transform:
    """Find and keep the links of images that are not in the graph, and return the transform that uses them.

    It gives the same bytes as `Smoothing.transform`. On disk, the links of an image take 112 bytes.

    Args:
        smoothing: The graph.
        keys: Content keys of the images. The transform takes these, in any parts.
        features: Cache that has the raw features of all of them.
        cache: Folder of the caches. If it cannot be written, the transform finds links anew.
        progress: Receives the progress.
    """
    outside = [keys[row] for row in (smoothing.positions(keys) < 0).nonzero().flatten().tolist()]
    if not outside:
        return smoothing.transform
    links = _open(cache, smoothing)
    try:
        lacking = links.missing(outside)
        with Shards(links) as shards:
            for start in range(0, len(lacking), AT_ONCE):
                part = lacking[start : start + AT_ONCE]
                found = smoothing.link(torch.from_numpy(features.take(part)))
                shards.add(part, torch.cat([found.nodes.float(), found.weights], dim=1))  # float32 holds 2^24 positions
                progress("similar images", start + len(part), len(lacking))
    except (OSError, WorkspaceError) as error:  # a cache that we may only read, or a full disk
        _log.warning("The nearest images in the graph are not kept: %s", error)
        return smoothing.transform
    _drop_old(links.folder)
    return lambda asked, rows: smoothing.transform(asked, rows, _take(links, smoothing, asked))


def kept_links(smoothing: Smoothing, cache: Path) -> Transform:
    """Return the transform that uses the links that are kept, finds those that are not, and writes nothing."""
    links = _open(cache, smoothing)

    def transform(keys: Sequence[str], rows: Tensor) -> Tensor:
        positions = (smoothing.positions(keys) < 0).nonzero().flatten().tolist()
        lacking = set(links.missing([keys[row] for row in positions]))
        new = [row for row in positions if keys[row] in lacking]
        old = [row for row in positions if keys[row] not in lacking]
        kept, found = _take(links, smoothing, [keys[row] for row in old]), smoothing.link(rows[new])
        order = torch.tensor([*old, *new], dtype=torch.int64).argsort()
        nodes, weights = torch.cat([kept.nodes, found.nodes]), torch.cat([kept.weights, found.weights])
        return smoothing.transform(keys, rows, Links(nodes[order], weights[order]))

    return transform


def _open(cache: Path, smoothing: Smoothing) -> FeatureCache:
    about = {"graph": smoothing.digest, "version": VERSION}
    return FeatureCache(cache / "pool_features" / "links", about, 2 * NEIGHBORS)


def _take(links: FeatureCache, smoothing: Smoothing, keys: Sequence[str]) -> Links:
    outside = [keys[row] for row in (smoothing.positions(keys) < 0).nonzero().flatten().tolist()]
    rows = torch.from_numpy(links.take(outside))
    return Links(rows[:, :NEIGHBORS].long(), rows[:, NEIGHBORS:])


def _drop_old(used: Path) -> None:
    """Delete the links to all but the newest graphs, and never those in use."""
    with contextlib.suppress(OSError):  # deleted by another process, or a folder that we may only read
        folders = sorted(used.parent.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        for folder in folders[:-_KEPT]:
            if folder != used:
                shutil.rmtree(folder, ignore_errors=True)
