"""First statistics of batch normalization: those of the images, layer upon layer, and never over trained ones."""

import pytest
import torch
from torch import nn

from alloop.engine.batch_norm import settle_statistics
from alloop.engine.build import Hardware
from alloop.engine.features import load_batches
from alloop.models.backbones import Backbone


def _two_layers() -> Backbone:
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)]
    return Backbone(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), n_features=5, image_size=16)


def _hardware(batch_size: int) -> Hardware:
    return Hardware(torch.device("cpu"), batch_size, 0)


def test_every_layer_gets_the_statistics_of_what_reaches_it(toys):
    backbone, hardware = _two_layers(), _hardware(90)
    first, norm, relu, second, last, *_ = backbone.module

    settled = settle_statistics(backbone, toys.images, hardware)

    assert settled == (norm, last)
    (batch,) = load_batches(toys.images, backbone, hardware)
    with torch.no_grad():
        seen = first(backbone.normalize(batch.images))
        mean, variance = seen.mean((0, 2, 3), keepdim=True), seen.var((0, 2, 3), keepdim=True)
        deeper = second(relu((seen - mean) / (variance + norm.eps).sqrt()))
    torch.testing.assert_close(norm.running_mean, mean.flatten())
    torch.testing.assert_close(norm.running_var, variance.flatten())
    torch.testing.assert_close(last.running_mean, deeper.mean((0, 2, 3)), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(last.running_var, deeper.var((0, 2, 3)), atol=1e-3, rtol=1e-3)
    assert not any(module.training for module in backbone.module.modules())
    assert norm.momentum == last.momentum == 0.1


def test_batches_count_alike_and_the_same_images_give_the_same_statistics(toys):
    once, again, whole = _two_layers(), _two_layers(), _two_layers()
    for backbone, batch_size in ((once, 30), (again, 30), (whole, 90)):
        settle_statistics(backbone, toys.images, _hardware(batch_size))

    assert torch.equal(once.module[4].running_var, again.module[4].running_var)
    torch.testing.assert_close(once.module[1].running_mean, whole.module[1].running_mean)


def test_statistics_that_came_with_weights_stay(toys):
    backbone = _two_layers()
    norm, other = backbone.module[1], backbone.module[4]
    norm.running_var.fill_(2.0)

    assert settle_statistics(backbone, toys.images, _hardware(90)) == (other,)

    assert torch.equal(norm.running_var, torch.full((4,), 2.0))
    assert norm.num_batches_tracked == 0


def test_a_trunk_without_batch_normalization_is_not_even_run(toys):
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    trunk.register_forward_hook(lambda *_: pytest.fail("run"))

    assert settle_statistics(Backbone(trunk, n_features=4, image_size=16), toys.images, _hardware(90)) == ()


def test_a_lone_last_image_is_left_out(toys):
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4), nn.BatchNorm1d(4))
    backbone = Backbone(trunk, n_features=4, image_size=16)

    settle_statistics(backbone, toys.images[:9], _hardware(4))

    assert trunk[2].num_batches_tracked == 2


@pytest.mark.parametrize(("batch_size", "batches"), [(1, 4), (2, 4), (9, 1)])
def test_statistics_need_two_images_at_a_time_whatever_the_batch_size(toys, batch_size: int, batches: int):
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4), nn.BatchNorm1d(4))

    settle_statistics(Backbone(trunk, n_features=4, image_size=16), toys.images[:9], _hardware(batch_size))

    assert trunk[2].num_batches_tracked == batches


def test_a_single_readable_image_gives_no_statistics(toys):
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4), nn.BatchNorm1d(4))

    settle_statistics(Backbone(trunk, n_features=4, image_size=16), toys.images[:1], _hardware(4))

    assert trunk[2].num_batches_tracked == 0
