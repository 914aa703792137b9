"""A model of an exported folder that predicts images, with the preprocessing and the numbers of alloop."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from alloop.composition import CLASSIFICATION
from alloop.config.schema import PoolConfig
from alloop.engine.build import Hardware
from alloop.engine.device import full_float32
from alloop.engine.exported_folder import ExportedFolder, read_folder
from alloop.engine.features import load_batches
from alloop.engine.predictions import Predictions
from alloop.errors import ModelError
from alloop.pool.outside import OutsideImage, Reading, open_images, refuse_one_image
from alloop.progress import Progress, silent

BATCH = 32  # images that go through the model at once
_HARDWARE = Hardware(torch.device("cpu"), BATCH, 0)


@final
class ExportedClassifier:
    """A model of an exported folder, on the CPU.

    It needs no workspace. It knows no image of the pool, so all images are predicted as images outside the pool.

    Args:
        folder: Content of the folder; `ExportedClassifier.open` reads it.
        max_pixels: Width times height above which an image is refused; None: the default of [pool].
    """

    def __init__(self, folder: ExportedFolder, max_pixels: int | None = None) -> None:
        self._folder = folder
        self._reading = Reading(max_pixels or PoolConfig().max_pixels, depth=folder.depth)

    @classmethod
    def open(cls, folder: Path, max_pixels: int | None = None) -> "ExportedClassifier":
        """Read a folder of `alloop export-model`. See `__init__` for the arguments.

        Raises:
            ModelError: A file is missing, damaged, or of another kind.
        """
        return cls(read_folder(folder), max_pixels)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of probabilities."""
        return self._folder.classes

    def predict(self, images: Iterable[OutsideImage], progress: Progress = silent) -> Iterator[Predictions]:
        """Predict images in the order given, batch by batch, as `Classifier.predict` does.

        The predictions hold calibrated probabilities alone: members, features and OOD scores are not exported.

        Raises:
            TypeError: One image was given instead of several.
            ModelError: The model gives no log-probabilities of the classes.
        """
        refuse_one_image(images)
        return self._batches(images, progress)

    def _batches(self, images: Iterable[OutsideImage], progress: Progress) -> Iterator[Predictions]:
        total, done, numbered = len(images) if isinstance(images, Sized) else 0, 0, enumerate(images)
        while chunk := list(itertools.islice(numbered, BATCH)):
            refs, failed = open_images(chunk, self._reading)
            nothing = torch.empty(0, len(self.classes))
            predicted = Predictions((), failed, CLASSIFICATION, self.classes, nothing)
            for batch in load_batches(refs, self._folder.look, _HARDWARE):
                read = [refs[position] for position in batch.positions.tolist()]
                log_probs = self._run(batch.images) if read else nothing
                failed = (*failed, *batch.failed)
                predicted = dataclasses.replace(predicted, images=read, failed=failed, calibrated_log_probs=log_probs)
            yield predicted
            done += len(chunk)
            progress("predict", done, total)

    def _run(self, images: Tensor) -> Tensor:
        with torch.inference_mode(), full_float32():
            log_probs: Tensor = self._folder.program(*self._folder.look.each_ones_images(images))
        if log_probs.shape != (len(images), len(self.classes)) or not bool((log_probs < 1e-5).all()):
            raise ModelError(
                f"The exported model gave no log-probabilities of {len(self.classes)} classes.",
                "Write the folder again with `alloop export-model`.",
            )
        return log_probs
