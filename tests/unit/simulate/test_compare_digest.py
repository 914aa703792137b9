"""What a stored cell of `alloop compare` depends on."""

from pathlib import Path

import numpy as np
import pytest
from factories import make_config

from alloop.records import ImageRef
from alloop.simulate import compare
from alloop.simulate.compare import CompareSettings, _plan
from alloop.simulate.labeled import LabeledImages, Parts
from alloop.simulate.methods import METHODS

IMAGES = tuple(ImageRef(number, f"{number:064x}", f"{number}.png") for number in range(12))
PARTS = Parts(np.arange(6), np.arange(6, 8), np.arange(8, 10))


def _cell(n_images: int, **settings: dict[str, str]) -> str:
    """Return the file name of a cell whose parts are the same, in a pool of so many images."""
    data = LabeledImages(("cat", "dog", "bird"), IMAGES[:n_images], np.arange(n_images) % 3)
    method = METHODS["SL1H"]
    compared = CompareSettings(make_config(**settings), (method,), 1, Path("out"), Path("cache"))
    return _plan(compared, data, lambda _: PARTS)[0].path.name


@pytest.mark.parametrize(("unlabeled", "depends"), [("on", True), ("off", False)])
def test_a_fine_tuned_cell_depends_on_the_unlabeled_images_that_teach(unlabeled, depends):
    settings = {"model": {"mode": "finetune"}, "train": {"unlabeled": unlabeled}}

    assert (_cell(10, **settings) != _cell(12, **settings)) is depends


@pytest.mark.parametrize(("mode", "depends"), [("frozen", False), ("finetune", True)])
def test_a_new_recipe_of_fine_tuning_leaves_frozen_cells_alone(monkeypatch, mode, depends):
    before = _cell(10, model={"mode": mode})
    monkeypatch.setattr(compare, "FINE_TUNING", 0)

    assert (_cell(10, model={"mode": mode}) != before) is depends
