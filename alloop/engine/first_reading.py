"""Features of new images from the reading that adds them to the pool: no file is opened a second time for them."""

import contextlib
import dataclasses
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from alloop.engine.build import build_backbone, build_hardware, search_paths
from alloop.engine.cached_features import open_alone
from alloop.engine.device import explained_shortage
from alloop.engine.features import Preparation, Shards, ensure_features, travel_size
from alloop.engine.settings import EngineSettings
from alloop.engine.trunk_passes import Failed, pass_trunks
from alloop.errors import ModelError
from alloop.models.given import Given
from alloop.pool.dataset import ImageBatch
from alloop.pool.ingest import READING, View
from alloop.progress import Progress, silent
from alloop.records import ImageFile, ImageRef, UnreadableFile

Inspected = ImageFile | UnreadableFile


class FirstReading:
    """The published trunk of a workspace, ready to compute features while files are read, and to keep them.

    It runs in this process, beside the processes that read.

    Attributes:
        n_computed: Number of images whose features were computed so far.

    Raises:
        ModelError: No features of this model can be kept, because its trunk is trained or there is none.
    """

    def __init__(self, settings: EngineSettings, cache: Path, device: str | None = None) -> None:
        if settings.model.mode == "finetune":
            raise ModelError(
                'No features can be computed ahead: with [model] mode = "finetune" every round trains the trunk anew.',
                "Run the command without --features.",
            )
        self._hardware = build_hardware(settings, device)
        backbone = build_backbone(settings, search_paths(cache)).in_precision(self._hardware.precision)
        if any(isinstance(part.module, Given) for part in backbone.alone):
            raise ModelError(
                "No features can be computed: those of this workspace were given, and it has no trunk.",
                "Run the command without --features.",
            )
        self._backbone, self._folder = backbone, cache
        self._blocks = [open_alone(cache, part.fingerprint()) for part in backbone.alone]
        self.n_computed = 0

    @property
    def view(self) -> View:
        """Function that makes the trunk's pixels of an image, for the processes that read."""
        return self._backbone.without_weights().preprocess

    def keep(self, found: Iterable[Inspected], n_files: int, progress: Progress = silent) -> Iterator[Inspected]:
        """Return all files in the order they come, without their pixels, and write the features of new images.

        The features of an image that has some already are not computed again. Features are written every half minute
        and at an interruption. A file is returned when the trunk has finished its batch.

        Args:
            found: Files that were read with `view`.
            n_files: Number of files to come.
            progress: Receives the number of files after each batch but the last: a caller may hold many of them.
        """
        if not n_files:
            return
        done = 0
        waiting: deque[Inspected] = deque()
        keys: dict[int, str] = {}
        prepare = Preparation(self._hardware, self._folder).of(n_files)
        with explained_shortage(), contextlib.ExitStack() as stack:
            shards = [stack.enter_context(Shards(block)) for block in self._blocks]
            batches = self._batches(found, waiting, keys)
            for passed in pass_trunks(batches, self._backbone.alone, self._hardware, prepare=prepare):
                computed = [keys.pop(position) for position in passed.positions]
                for each, rows in zip(shards, passed.rows, strict=True):
                    each.add(computed, rows)
                self.n_computed += len(computed)
                done += len(waiting)
                while waiting:
                    yield waiting.popleft()
                if done < n_files:
                    progress(READING, done, n_files)
        yield from waiting

    def keep_rest(self, images: Sequence[ImageRef], progress: Progress) -> Failed:
        """Compute and write the features of images that have none.

        Returns:
            The images that could not be read, as (image id, reason).
        """
        names = [image.key for image in images]
        n_missing = len({name for block in self._blocks for name in block.missing(names)})
        if not n_missing:
            return ()
        with explained_shortage():
            _, failed = ensure_features(images, self._backbone, self._folder, self._hardware, progress)
        self.n_computed += n_missing - len(failed)
        return failed

    def _batches(
        self, found: Iterable[Inspected], waiting: deque[Inspected], keys: dict[int, str]
    ) -> Iterator[ImageBatch]:
        """Yield the pixels of new images, numbered from 0, an empty batch if there are none among as many files.

        Args:
            found: Files that were read.
            waiting: Takes the files without their pixels.
            keys: Takes the key of each image by its number.
        """
        files, size, n = iter(found), travel_size(self._hardware), 0
        seen: set[str] = set()
        while some := list(itertools.islice(files, size)):
            images = {file.sha256: file.view for file in some if isinstance(file, ImageFile) and file.view is not None}
            new = self._lacking([sha256 for sha256 in images if sha256 not in seen])
            seen.update(images)
            keys.update(enumerate(new, n))
            waiting.extend(_without_view(file) for file in some)
            stack = torch.from_numpy(np.stack([images[sha256] for sha256 in new])) if new else torch.empty(0)
            batch = ImageBatch(stack, torch.arange(n, n + len(new)), (), ())
            n += len(new)
            yield batch.pin_memory() if self._hardware.device.type == "cuda" else batch

    def _lacking(self, names: Sequence[str]) -> list[str]:
        """Return the images that no trunk knows yet. What only some lack is left for `keep_rest`."""
        lacking = [set(block.missing(names)) for block in self._blocks]
        return [name for name in names if all(name in them for them in lacking)]


def _without_view(file: Inspected) -> Inspected:
    return file if isinstance(file, UnreadableFile) or file.view is None else dataclasses.replace(file, view=None)
