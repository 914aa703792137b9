"""Tensors of image files, and a dataset that survives bad ones."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from alloop.errors import PoolError
from alloop.pool.dataset import ImageDataset, collate
from alloop.pool.picture import Photo, picture_of, read_verified
from alloop.records import ImageRef


def save(path: Path, image: Image.Image) -> ImageRef:
    image.save(path)
    return ImageRef(int(path.stem), hashlib.sha256(path.read_bytes()).hexdigest(), str(path))


def plain(path: Path, level: int) -> ImageRef:
    return save(path, Image.new("RGB", (4, 2), (level, 0, 0)))


def whole(photo: Photo) -> torch.Tensor:
    image, _ = photo.enough(lambda width, height: (width, height))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_a_jpeg_has_exactly_the_pixels_that_pillow_gives(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8))
    ref = save(tmp_path / "1.jpg", noise)

    with Image.open(ref.path) as image:
        expected = np.asarray(image.convert("RGB"))

    assert np.array_equal(picture_of(ref), expected)
    assert np.array_equal(whole(Photo(ref)).permute(1, 2, 0).numpy(), expected)


def test_a_truncated_file_is_named_with_the_reason(tmp_path):
    path = tmp_path / "1.jpg"
    save(path, Image.effect_noise((64, 64), 50).convert("RGB"))
    path.write_bytes(path.read_bytes()[:900])
    ref = ImageRef(1, hashlib.sha256(path.read_bytes()).hexdigest(), str(path))

    for read in (picture_of, lambda ref: whole(Photo(ref))):
        with pytest.raises(PoolError) as error:
            read(ref)

        assert str(path) in error.value.message
        assert "truncated" in error.value.message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PoolError, match=r"1\.png does not exist"):
        Photo(ImageRef(1, "", str(tmp_path / "1.png")))


def test_a_folder_cannot_be_read(tmp_path):
    with pytest.raises(PoolError, match="cannot be read: Is a directory"):
        Photo(ImageRef(1, "", str(tmp_path)))


def test_other_bytes_than_those_that_were_added_are_refused(tmp_path):
    ref = plain(tmp_path / "1.png", 1)
    plain(tmp_path / "1.png", 2)

    with pytest.raises(PoolError, match="has changed since it was added"):
        read_verified(ref)
    with pytest.raises(PoolError, match="has changed"):
        Photo(ref)


def test_verified_bytes_are_the_files(tmp_path):
    ref = plain(tmp_path / "1.png", 1)

    assert Image.open(io.BytesIO(read_verified(ref))).size == (4, 2)


def bad_and_good(tmp_path: Path) -> list[ImageRef]:
    refs = [plain(tmp_path / f"{i}.png", i) for i in (10, 11, 12, 13)]
    Path(refs[1].path).write_bytes(b"")
    Path(refs[2].path).unlink()
    return refs


@pytest.mark.parametrize("workers", [0, 1])
def test_images_come_in_the_order_given_and_bad_ones_with_their_reason(workers, tmp_path):
    refs = bad_and_good(tmp_path)
    loader = DataLoader(ImageDataset(refs, whole), batch_size=3, num_workers=workers, collate_fn=collate)

    first, second = list(loader)

    assert first.images[:, 0, 0, 0].tolist() == [10]
    assert (first.positions.tolist(), first.image_ids) == ([0], (10,))
    assert [image_id for image_id, _ in first.failed] == [11, 12]
    assert "has changed" in first.failed[0][1]
    assert "does not exist" in first.failed[1][1]
    assert second.images[:, 0, 0, 0].tolist() == [13]
    assert (second.positions.tolist(), second.image_ids, second.failed) == ([3], (13,), ())


def test_a_batch_of_nothing_but_bad_images_is_empty(tmp_path):
    dataset = ImageDataset(bad_and_good(tmp_path)[1:3], whole)

    batch = collate([dataset[0], dataset[1]])

    assert (len(batch.images), len(batch.positions), batch.image_ids) == (0, 0, ())
    assert len(batch.failed) == len(dataset) == 2


def test_the_transform_is_applied(tmp_path):
    dataset = ImageDataset([plain(tmp_path / "7.png", 7)], lambda photo: whole(photo).float().mean(dim=(1, 2)))

    assert dataset[0].image.tolist() == [7.0, 0.0, 0.0]


def test_a_transform_that_fails_is_a_bug_not_a_bad_image(tmp_path):
    dataset = ImageDataset([plain(tmp_path / "7.png", 7)], lambda photo: whole(photo).view(-5))

    with pytest.raises(RuntimeError):
        dataset[0]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you …")])
def test_an_image_that_memory_does_not_suffice_for_is_set_aside_with_the_reason(tmp_path: Path, error: Exception):
    def transform(photo: Photo) -> torch.Tensor:
        image = whole(photo)
        if image[0, 0, 0] == 9:
            raise error
        return image

    refs = [plain(tmp_path / "7.png", 7), plain(tmp_path / "9.png", 9)]
    batch = collate([ImageDataset(refs, transform)[position] for position in range(2)])

    assert batch.image_ids == (7,)
    assert batch.failed == ((9, f"{tmp_path}/9.png needs more memory than this machine has."),)
