"""Views of training images: drawn by seed and content, resized alike one by one and together."""

import numpy as np
import pytest
import torch
from factories import Whole
from torch import Tensor, nn
from torchvision.transforms import v2

from alloop.engine.views import (
    WIDEST,
    change_views,
    choose_views,
    draw_numbers,
    make_views,
    resize_each,
    resize_together,
    shrink,
)
from alloop.models.backbones import Backbone

CPU = torch.device("cpu")
SIZES = ((64, 64), (57, 90), (200, 150), (33, 21), (131, 65))


def _look(interpolation: str = "bilinear") -> Backbone:
    return Backbone(nn.Identity(), 1, image_size=64, interpolation=interpolation)


def _images(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    noise = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in SIZES]
    stripes = [(torch.arange(3 * high * wide) % 2 * 255).reshape(3, high, wide).to(torch.uint8) for high, wide in SIZES]
    return [*noise, *stripes]


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_resizing_together_is_torchvisions_resize_within_one_level(interpolation: str):
    images = _images()

    together = resize_together(images, 64, interpolation, CPU)

    apart = resize_each(images, 64, interpolation, CPU)
    assert (together.int() - apart.int()).abs().max() <= 1
    assert (together != apart)[: len(SIZES)].float().mean() < 0.01  # stripes have many ties between two levels


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resizing_together_does_not_depend_on_the_batch(interpolation: str):
    images = _images()

    together = resize_together(images, 64, interpolation, CPU)

    alone = torch.cat([resize_together([image], 64, interpolation, CPU) for image in images])
    assert torch.equal(together, alone)


def test_views_depend_on_content_and_seed_only():
    images, keys = _images(), [f"image {number}" for number in range(10)]
    order = [7, 2, 9]

    views = make_views(images, draw_numbers(keys, 5), _look(), CPU)

    some = [images[place] for place in order]
    again = make_views(some, draw_numbers([keys[place] for place in order], 5), _look(), CPU)
    other = make_views(some, draw_numbers([keys[place] for place in order], 6), _look(), CPU)
    assert torch.equal(again, views[order])
    assert not torch.equal(other, again)


def test_trivial_changes_views_and_they_still_depend_on_content_and_seed_only():
    images, numbers = _images(), draw_numbers([f"image {number}" for number in range(10)], 5)
    plain = make_views(images, numbers, _look(), CPU)

    views = change_views(plain, numbers)

    alone = [change_views(plain[[row]], numbers[[row]])[0] for row in range(len(images))]
    assert torch.equal(views, torch.stack(alone))
    assert sum(not torch.equal(one, other) for one, other in zip(plain, views, strict=True)) >= 5


def test_rectangles_are_distributed_as_those_of_random_resized_crop():
    n, size = 3000, (96, 128)
    ours = choose_views(np.tile(np.array(size), (n, 1)), draw_numbers([str(key) for key in range(n)], 0))
    transform, image = v2.RandomResizedCrop(64, scale=(0.5, 1)), torch.zeros(3, *size)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        drawn = [transform.make_params([image]) for _ in range(n)]
    theirs = np.array([[box["top"], box["left"], box["height"], box["width"]] for box in drawn])

    error = theirs.std(axis=0) * np.sqrt(2 / n)
    assert (np.abs(ours.boxes.mean(axis=0) - theirs.mean(axis=0)) < 4 * error).all()
    np.testing.assert_allclose(ours.boxes.std(axis=0), theirs.std(axis=0), rtol=0.08)
    assert (ours.boxes[:, :2] + ours.boxes[:, 2:] <= size).all()
    assert 0.45 < ours.mirrored.mean() < 0.55


@pytest.mark.parametrize("size", [(40, 400), (400, 40)])
def test_of_a_strip_the_middle_is_shown(size: tuple[int, int]):
    views = choose_views(np.array([size]), draw_numbers(["strip"], 0))

    top, left, height, width = views.boxes[0]
    assert {height, width} == {40, round(40 * WIDEST)}
    assert (top, left) == ((size[0] - height) // 2, (size[1] - width) // 2)


@pytest.mark.parametrize(("size", "kept"), [((100, 120), (100, 120)), ((256, 512), (128, 256)), ((20, 2000), (20, 80))])
def test_large_images_shrink_to_what_views_need(size: tuple[int, int], kept: tuple[int, int]):
    assert shrink(Whole(torch.zeros(3, *size, dtype=torch.uint8)), _look()).shape == (3, *kept)
