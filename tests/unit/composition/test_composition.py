"""Methods that do not go together are refused, with the reason."""

import re
import typing
from pathlib import Path

import pytest
from pydantic import ValidationError

from alloop.acquisition import perturb
from alloop.calibration import choose
from alloop.composition import (
    CALIBRATORS,
    LOSSES,
    MIXINGS,
    OOD_SCORES,
    PERTURBATIONS,
    check_composition,
    loss_parameters,
)
from alloop.config.schema import Config
from alloop.engine.ood_score import SCORES
from alloop.losses import named


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"loss": "mmce", "mixing": "mixup"}, "undefined for a mixed image"),
        ({"loss": "dca", "mixing": "either", "frozen": False}, "undefined for a mixed image"),
        ({"mixing": "cutmix"}, "frozen trunk"),
        ({"mixing": "either"}, "frozen trunk"),
        ({"loss": "mmce", "batch_size": 8}, "8 images are too few"),
        ({"dropout_passes": 1}, "at least 2 passes"),
        ({"dropout_passes": 20, "dropout_rate": 0.0}, "repeats one prediction"),
        ({"dropout_passes": 20, "dropout_rate": 1.0}, "below 1"),
        ({"ood_score": "mutual-information"}, "only one"),
        ({"loss": "focal", "parameters": {"gamma": 0.5}}, "gamma of the loss focal must be at least 1, or 0"),
        ({"loss": "logit-norm", "parameters": {"tau": 0.0}}, "above 0"),
        ({"loss": "label-smoothing", "parameters": {"epsilon": 1.5}}, "at most 1"),
        ({"loss": "dca", "parameters": {"bta": 1}}, "did you mean 'beta'"),
        ({"loss": "focl"}, "did you mean 'focal'"),
        ({"mixing": "mixpu"}, "did you mean 'mixup'"),
        ({"calibrator": "plat"}, "did you mean 'platt'"),
        ({"ood_score": "energi"}, "did you mean 'energy'"),
        ({"ood_score": "gradnrom"}, "did you mean 'gradnorm'"),
        ({"ood_score": "odin", "dropout_passes": 20}, "set consistent_masks = true"),
        ({"ood_score": "odin", "has_images": False}, "the pool holds only features"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_reason(settings, reason):
    with pytest.raises(ValueError, match=reason):
        check_composition(**settings)


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - {"mmce", "dca"}))
def test_losses_of_soft_targets_go_with_every_mixing(loss):
    check_composition(loss=loss, mixing="mixup")
    check_composition(loss=loss, mixing="either", frozen=False)


def test_mutual_information_goes_with_heads_networks_or_dropout():
    check_composition(ood_score="mutual-information", n_members=4)
    check_composition(ood_score="mutual-information", dropout_passes=20)


def test_odin_goes_with_whatever_says_the_same_twice():
    check_composition(ood_score="odin", n_members=20)
    check_composition(ood_score="odin", frozen=False, loss="logit-norm")
    check_composition(ood_score="odin", dropout_passes=20, consistent_masks=True)


def test_defaults_are_those_of_the_methods_table():
    assert loss_parameters("label-smoothing") == {"epsilon": 0.05}
    assert loss_parameters("mbls") == {"margin": 10, "alpha": 0.1}
    assert loss_parameters("mmce", {"weight": 4}) == {"weight": 4, "width": 0.4}
    assert loss_parameters("dca") == {"alpha": 1, "beta": 5}
    assert loss_parameters("logit-norm") == {"tau": 0.04}


def test_every_name_has_a_function():
    assert set(named._FUNCTIONS) == set(LOSSES)
    assert {"none", *perturb._LOG_WEIGHTS} == set(PERTURBATIONS)
    assert [*choose._FITS, "auto"] == list(CALIBRATORS)
    assert [*SCORES] == [name for name, rule in OOD_SCORES.items() if not rule.needs_images]


EVERY_TABLE = pytest.mark.parametrize(
    ("section", "setting", "table"),
    [
        ("train", "loss", LOSSES), ("train", "mixing", MIXINGS), ("calibration", "method", CALIBRATORS),
        ("acquisition", "ood_score", OOD_SCORES), ("acquisition", "perturb", PERTURBATIONS),
    ],
)  # fmt: skip


@EVERY_TABLE
def test_settings_take_the_names_of_the_table_and_no_others(section, setting, table):
    names = typing.get_args(Config.model_fields[section].annotation.model_fields[setting].annotation)

    assert names == tuple(table)
    with pytest.raises(ValidationError, match=f"{section}.{setting}"):
        Config.model_validate({"project": {"classes": ["cat", "dog"]}, section: {setting: "no such name"}})


def test_losses_say_what_they_need():
    def those(need: str) -> set[str]:
        return {name for name, rule in LOSSES.items() if getattr(rule, need)}

    assert those("is_plain") == {"cross-entropy"}
    assert those("is_smooth") == {"cross-entropy", "label-smoothing", "focal", "entropy"}
    assert those("needs_raw_logits") == {"mbls", "logit-norm"}
    assert set(LOSSES) - those("has_prior") == those("normalizes_logits") == {"logit-norm"}
    assert set(LOSSES) - those("takes_soft_targets") == {"mmce", "dca"}


@EVERY_TABLE
def test_the_readme_lists_the_names_of_the_table(section, setting, table):
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")

    found = re.search(rf"^\[{section}\]\n(?:.+\n)*?{setting} = (.+\n(?: +#.+\n)*)", readme, flags=re.MULTILINE)

    assert found is not None
    assert set(table) <= set(re.findall(r"[a-z0-9-]+", found[1]))
