"""Trunks side by side: each sees its own pixels, and no block of features decides alone."""

import numpy as np
import pytest
import torch
from factories import Whole
from torch import nn

from alloop.evaluation.ood import odin
from alloop.models.backbones import Backbone, side_by_side
from alloop.models.side_by_side import join_blocks, split_pixels


class Means(nn.Module):
    """Features of an image: the mean of each channel times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3)) * self.factor


def means(size: int, factor: float = 1.0, std: tuple[float, float, float] = (1.0, 0.5, 0.25)) -> Backbone:
    return Backbone(Means(factor), 3, image_size=size, resize=0, mean=(0.5, 0.25, 0.0), std=std)


def pictures(n: int, side: int = 24) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    return [torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=generator) for _ in range(n)]


def features(backbone: Backbone, images: list[torch.Tensor]) -> torch.Tensor:
    return backbone.module(backbone.normalize(torch.stack([backbone.preprocess(Whole(image)) for image in images])))


def test_each_trunk_sees_the_image_at_its_own_size_and_normalization():
    small, large = means(8), means(16, std=(0.1, 0.2, 0.3))
    both, images = side_by_side([small, large]), pictures(5)

    rows = torch.stack([both.preprocess(Whole(image)) for image in images])
    parts = split_pixels(both.normalize(rows), (8, 16))

    assert rows.shape == (5, 3 * (8 * 8 + 16 * 16))
    assert rows.dtype == torch.uint8
    for part, alone in zip(parts, (small, large), strict=True):
        assert torch.equal(part, alone.normalize(torch.stack([alone.preprocess(Whole(image)) for image in images])))


def test_features_stand_in_the_order_of_the_trunks_and_have_a_common_scale():
    first, second = means(8), means(16, factor=1000.0)
    images = pictures(6)

    both, turned = features(side_by_side([first, second]), images), features(side_by_side([second, first]), images)

    blocks = [features(one, images) for one in (first, second)]
    by_hand = [block / (block.double() ** 2).sum(dim=1, keepdim=True).sqrt() / 2**0.5 for block in blocks]
    torch.testing.assert_close(both, torch.cat(by_hand, dim=1).float())
    torch.testing.assert_close(turned, both[:, [3, 4, 5, 0, 1, 2]], rtol=0, atol=0)
    torch.testing.assert_close(both.square().sum(dim=1), torch.ones(6))
    torch.testing.assert_close(both[:, :3].square().sum(dim=1), torch.full((6,), 0.5))


def test_a_row_does_not_depend_on_the_other_images():
    blocks = [torch.randn(50, size, generator=torch.Generator().manual_seed(size)) for size in (7, 1280)]

    together = join_blocks(blocks)

    for row in range(50):
        assert torch.equal(join_blocks([block[row : row + 1] for block in blocks])[0], together[row])


def test_zeros_stay_zeros_and_tiny_features_count():
    joined = join_blocks([torch.tensor([[0.0, 0.0], [3e-20, 4e-20]]), torch.tensor([[1.0], [-5.0]])])

    np.testing.assert_allclose(joined * 2**0.5, [[0, 0, 1], [0.6, 0.8, -1]], rtol=1e-6)


def test_one_trunk_is_not_changed():
    alone = means(8)

    assert side_by_side([alone]) is alone


def test_the_fingerprint_describes_every_trunk_in_order():
    first, second = means(8), means(16)

    both = side_by_side([first, second]).fingerprint()

    assert both == {"side_by_side": [first.fingerprint(), second.fingerprint()]}
    assert both != side_by_side([second, first]).fingerprint()
    assert "parts" not in first.fingerprint()


def test_worker_processes_get_no_weights():
    look = side_by_side([means(8), means(16)]).without_weights()

    assert not [*look.module.state_dict(), *(name for part in look.parts for name in part.module.state_dict())]
    assert look.preprocess(Whole(pictures(1)[0])).shape == (960,)


def test_odin_moves_each_pixel_by_the_deviation_of_its_trunk():
    """With one linear trunk twice, a step in rows of pixels is the step of the single trunk, twice."""
    alone, images = means(8), pictures(4)
    weight = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []

    def watched(inputs: torch.Tensor) -> torch.Tensor:
        seen.append(inputs.detach().clone())
        return sum(part.mean(dim=(2, 3)) @ weight for part in split_pixels(inputs, (8, 8)))

    both = side_by_side([alone, alone])
    rows = both.normalize(torch.stack([both.preprocess(Whole(image)) for image in images]))
    odin(watched, rows, std=both.deviation, epsilon=0.01)

    moved = (seen[1] - seen[0]).abs().reshape(4, 2, 3, 64)
    for channel, std in enumerate((1.0, 0.5, 0.25)):
        assert moved[:, :, channel] == pytest.approx(torch.full((4, 2, 64), 0.01 / std), rel=1e-3)
