"""First statistics for batch normalization in a trunk that starts from scratch."""

import dataclasses
from collections.abc import Sequence

from torch import nn

from alloop.engine.build import Hardware
from alloop.engine.features import load_batches
from alloop.engine.trunk_passes import prepare_trunk, run_trunk
from alloop.models.backbones import Backbone
from alloop.records import ImageRef

Norm = nn.modules.batchnorm._BatchNorm

MOST_IMAGES = 2048  # more than enough for a mean and a variance per channel


def settle_statistics(backbone: Backbone, images: Sequence[ImageRef], hardware: Hardware) -> tuple[Norm, ...]:
    """Give batch normalization without statistics those of these images, layer after layer, in one pass.

    In a network from scratch all means are 0 and all variances are 1, so the layers normalize nothing, and heads fitted
    to such features are of little use. Statistics that came with trained weights stay.

    Args:
        backbone: Trunk to change in place. It is left in eval mode.
        images: Images of which the first 2048 are used. The same images in the same order give the same statistics.
        hardware: Device and batch size.

    Returns:
        The layers that had no statistics.
    """
    fresh = tuple(module for module in backbone.module.modules() if isinstance(module, Norm) and _is_untouched(module))
    if not fresh:
        return ()
    momenta = [module.momentum for module in fresh]
    backbone.module.eval()
    trunk = prepare_trunk(backbone.in_precision("float32"), hardware.device)  # in bfloat16 a copy would get them
    for module in fresh:
        module.momentum = None  # a plain average over batches
        module.train()
    shown = images[:MOST_IMAGES]
    for batch in load_batches(shown, backbone, dataclasses.replace(hardware, batch_size=max(2, hardware.batch_size))):
        if len(batch.positions) > 1:  # batch statistics of a single image have no variance
            run_trunk(trunk, batch.images)
    for module, momentum in zip(fresh, momenta, strict=True):
        module.momentum = momentum
        module.eval()
    return fresh


def _is_untouched(module: Norm) -> bool:
    if module.running_mean is None or module.running_var is None:
        return False
    return bool((module.running_mean == 0).all() and (module.running_var == 1).all())
