"""TrivialAugment makes torchvision's changes, from numbers that are given."""

import pytest
import torch
from torchvision.transforms import v2

from alloop.engine.trivial_augment import CHANGES, STRENGTHS, change

THEIRS = v2.TrivialAugmentWide()


@pytest.mark.parametrize("kind", range(len(CHANGES)))
def test_every_change_is_torchvisions(kind: int):
    image = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(kind))
    name, (strengths_of, is_signed) = list(THEIRS._AUGMENTATION_SPACE.items())[kind]
    strengths = strengths_of(STRENGTHS, 40, 40)

    for step in range(STRENGTHS):
        for sign in (0.1, 0.9):
            numbers = ((kind + 0.5) / len(CHANGES), (step + 0.5) / STRENGTHS, sign)
            strength = 0.0 if strengths is None else float(strengths[step])
            strength = -strength if is_signed and sign < 0.5 else strength

            ours = change(image, numbers)

            theirs = THEIRS._apply_image_or_video_transform(image, name, strength, v2.InterpolationMode.NEAREST, {})
            assert (ours.int() - theirs.int()).abs().max() <= 1, (name, step, sign)
            assert (ours != theirs).float().mean() < 0.01, (name, step, sign)


def test_all_kinds_of_torchvision_are_there():
    assert len(CHANGES) == len(THEIRS._AUGMENTATION_SPACE)
