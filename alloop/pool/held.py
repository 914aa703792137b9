"""Decoded images that stay in memory as far as there is room. The rest is decoded every time it is wanted."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import final

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from alloop.machine import usable_memory
from alloop.pool.dataset import ImageDataset, Item, Transform
from alloop.records import ImageRef

SHARE = 0.25  # of the memory that is free when an image set is opened
FEW = 64  # images that are decoded sooner than processes start


@dataclasses.dataclass
class _Room:
    """Memory of a device that images may still take, in bytes."""

    device: torch.device
    left: int


@final
class HeldImages:
    """Images decoded when they are first wanted, and then held: on the device, else in the memory of the host.

    Args:
        images: Images of the pool.
        transform: Function that makes a tensor of each image, as in `ImageDataset`.
        device: Device that the images are for.
        workers: Number of processes that decode.
        share: Share of the free memory that the images may take, of the device and of the host.
    """

    def __init__(
        self, images: Sequence[ImageRef], transform: Transform, device: torch.device, workers: int, share: float = SHARE
    ) -> None:
        self._images, self._transform, self._workers = images, transform, workers
        host = _Room(torch.device("cpu"), int(share * usable_memory()))
        card = [_Room(device, int(share * torch.cuda.mem_get_info(device)[0]))] if device.type == "cuda" else []
        self._rooms = [*card, host]
        self._held: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._images)

    @property
    def n_held(self) -> int:
        """Number of images in memory."""
        return len(self._held)

    def read(self, positions: Sequence[int]) -> Iterator[Tensor | None]:
        """Yield the transformed images in this order, each on the device that holds it; None for unreadable ones.

        Args:
            positions: Places of images, each at most once.
        """
        decoded = self._decode([position for position in positions if position not in self._held])
        for position in positions:
            if position in self._held:
                yield self._held[position]
            else:
                image = next(decoded).image
                yield None if image is None else self._hold(position, image)

    def _decode(self, positions: Sequence[int]) -> Iterator[Item]:
        if positions:
            dataset = ImageDataset([self._images[position] for position in positions], self._transform)
            workers = self._workers if len(positions) > FEW else 0
            yield from DataLoader(dataset, batch_size=None, num_workers=workers)

    def _hold(self, position: int, image: Tensor) -> Tensor:
        for room in self._rooms:
            if image.nbytes <= room.left:
                try:
                    # A tensor from another process lies in shared memory, which is small: it is copied in any case.
                    self._held[position] = image.to(room.device, copy=True, non_blocking=True)
                except torch.OutOfMemoryError:
                    room.left = 0
                    continue
                room.left -= image.nbytes
                return self._held[position]
        return image
