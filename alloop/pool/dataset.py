"""torch Dataset over images of the pool, in the order given. A bad file gives a reason, not a dead worker."""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from alloop.errors import PoolError
from alloop.pool.decode import decode_ref
from alloop.records import ImageRef

Transform = Callable[[Tensor], Tensor]  # uint8 [3, H, W] → what the model eats, of one shape for all images


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One image after its transform, or the reason why there is none; exactly one of the two is not None."""

    position: int
    image_id: int
    image: Tensor | None
    reason: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Images that could be read, and those that could not.

    Attributes:
        images: [B, ...], an empty tensor [0] when no image of the batch could be read.
        positions: [B] int64, where each image stands in the dataset; for looking up targets.
        image_ids: The same images by id.
        failed: (image id, reason) of the rest.
    """

    images: Tensor
    positions: Tensor
    image_ids: tuple[int, ...]
    failed: tuple[tuple[int, str], ...]

    def pin_memory(self) -> "Batch":
        """What DataLoader(pin_memory=True) calls."""
        return dataclasses.replace(self, images=self.images.pin_memory(), positions=self.positions.pin_memory())


class ImageDataset(Dataset[Item]):
    """Images of the pool, decoded when asked for, their bytes proven to be the ones that were added.

    Args:
        images: What to read, in order.
        transform: Function applied to each uint8 tensor [3, H, W]. Its errors are bugs and are not caught, except too
            little memory for this image.
    """

    def __init__(self, images: Sequence[ImageRef], transform: Transform) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> Item:
        ref = self.images[position]
        try:
            return Item(position, ref.image_id, self.transform(decode_ref(ref)))
        except PoolError as error:
            return Item(position, ref.image_id, None, error.message)
        except (MemoryError, RuntimeError) as error:
            if not _lacks_memory(error):
                raise
            return Item(position, ref.image_id, None, f"{ref.path} needs more memory than this machine has.")


def _lacks_memory(error: MemoryError | RuntimeError) -> bool:
    # torch's allocator for the CPU raises a plain RuntimeError.
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def collate(items: Sequence[Item]) -> Batch:
    """Stack what could be read, in order; the `collate_fn` of a DataLoader over an ImageDataset."""
    read = [(item, item.image) for item in items if item.image is not None]
    return Batch(
        images=torch.stack([image for _, image in read]) if read else torch.empty(0),
        positions=torch.tensor([item.position for item, _ in read], dtype=torch.int64),
        image_ids=tuple(item.image_id for item, _ in read),
        failed=tuple((item.image_id, item.reason or "") for item in items if item.image is None),
    )
