"""Images that are decoded once, as far as there is room for them."""

import hashlib
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from alloop.pool import held
from alloop.pool.held import HeldImages
from alloop.pool.picture import Photo
from alloop.records import ImageRef

CPU = torch.device("cpu")


@pytest.fixture
def images(tmp_path: Path) -> list[ImageRef]:
    refs = []
    for number in range(6):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (4 + number, 5), (number, 0, 0)).save(path)
        refs.append(ImageRef(number + 1, hashlib.sha256(path.read_bytes()).hexdigest(), str(path)))
    return refs


def _counted() -> tuple[list[int], "held.Transform"]:
    calls: list[int] = []

    def transform(photo: Photo) -> Tensor:
        image = whole(photo)
        calls.append(int(image[0, 0, 0]))
        return image

    return calls, transform


def whole(photo: Photo) -> Tensor:
    """Return the pixels of an image that is not reduced, uint8 [3, H, W]."""
    return pil_to_tensor(photo.enough(lambda width, height: (math.ceil(width), math.ceil(height)))[0])


def test_images_come_in_the_order_wanted_and_are_decoded_once(images: list[ImageRef]):
    calls, transform = _counted()
    holder = HeldImages(images, transform, CPU, workers=0)

    first = [int(image[0, 0, 0]) for image in holder.read([3, 0, 5])]
    second = [int(image[0, 0, 0]) for image in holder.read([5, 1, 3])]

    assert (first, second) == ([3, 0, 5], [5, 1, 3])
    assert calls == [3, 0, 5, 1]


def test_what_does_not_fit_is_decoded_again(images: list[ImageRef], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(held, "usable_memory", lambda: 3 * 5 * (4 + 5) / held.SHARE)  # for the first two images
    calls, transform = _counted()
    holder = HeldImages(images, transform, CPU, workers=0)

    rounds = [[int(image[0, 0, 0]) for image in holder.read(range(6))] for _ in range(2)]

    assert rounds == [[0, 1, 2, 3, 4, 5]] * 2
    assert holder.n_held == 2
    assert calls == [0, 1, 2, 3, 4, 5, 2, 3, 4, 5]


def test_processes_give_the_same_images(images: list[ImageRef], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(held, "FEW", 1)
    alone, together = (HeldImages(images, whole, CPU, workers) for workers in (0, 2))

    pairs = zip(alone.read([4, 2, 0, 1]), together.read([4, 2, 0, 1]), strict=True)

    assert all(torch.equal(one, other) and not other.is_shared() for one, other in pairs)


def test_an_unreadable_image_is_none_and_is_tried_again(images: list[ImageRef]):
    path = Path(images[2].path)
    data = path.read_bytes()
    path.unlink()
    holder = HeldImages(images, whole, CPU, workers=0)

    assert [image is None for image in holder.read(range(4))] == [False, False, True, False]
    path.write_bytes(data)
    assert [image is None for image in holder.read(range(4))] == [False] * 4
