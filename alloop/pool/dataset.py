"""torch Dataset of images of the pool, in the order given. A bad file gives a reason instead of an error."""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from alloop.errors import PoolError
from alloop.pool.picture import Photo
from alloop.records import ImageRef

Transform = Callable[[Photo], Tensor]  # decodes as far as it needs → input of the model, of one shape for all images


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """Transformed image, or the reason why it cannot be read. Exactly one of both is not None."""

    position: int
    image_id: int
    image: Tensor | None
    reason: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class ImageBatch:
    """Batch of readable images, with the unreadable ones.

    Attributes:
        images: Images [B, ...]; an empty tensor [0] if no image of the batch could be read.
        positions: Positions of the images in the dataset [B], int64; for looking up targets.
        image_ids: Ids of the images.
        failed: (image id, reason) of unreadable images.
    """

    images: Tensor
    positions: Tensor
    image_ids: tuple[int, ...]
    failed: tuple[tuple[int, str], ...]

    def pin_memory(self) -> "ImageBatch":
        """Pin the images; DataLoader(pin_memory=True) calls this."""
        return dataclasses.replace(self, images=self.images.pin_memory(), positions=self.positions.pin_memory())


class ImageDataset(Dataset[Item]):
    """Images of the pool, decoded when needed. The bytes of each are checked against its hash.

    Args:
        images: Images to read, in order.
        transform: Function that makes a tensor of each image. Its errors are bugs and are not caught, except those of
            reading the image, and too little memory for it.
    """

    def __init__(self, images: Sequence[ImageRef], transform: Transform) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> Item:
        ref = self.images[position]
        try:
            return Item(position, ref.image_id, self.transform(Photo(ref)))
        except PoolError as error:
            return Item(position, ref.image_id, None, error.message)
        except (MemoryError, RuntimeError) as error:
            if not _lacks_memory(error):
                raise
            return Item(position, ref.image_id, None, f"{ref.path} needs more memory than this machine has.")


def _lacks_memory(error: MemoryError | RuntimeError) -> bool:
    # The CPU allocator of torch raises a plain RuntimeError.
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def collate(items: Sequence[Item]) -> ImageBatch:
    """Stack the readable images in order; `collate_fn` of a DataLoader over an ImageDataset."""
    read = [(item, item.image) for item in items if item.image is not None]
    return ImageBatch(
        images=torch.stack([image for _, image in read]) if read else torch.empty(0),
        positions=torch.tensor([item.position for item, _ in read], dtype=torch.int64),
        image_ids=tuple(item.image_id for item, _ in read),
        failed=tuple((item.image_id, item.reason or "") for item in items if item.image is None),
    )
