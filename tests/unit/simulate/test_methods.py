"""Methods by name: what they set, what they leave alone, which go together."""

import pytest
from factories import make_config

from alloop.errors import ConfigError
from alloop.simulate.methods import METHODS, apply_method, find_method, find_methods, list_methods


def test_every_listed_method_makes_a_valid_config():
    config = make_config()

    names = [method.name for method in list_methods(config)]

    assert {
        "SL1H",
        "2HSL",
        "2HML",
        "4HML",
        "LS",
        "MbLS",
        "FL-3",
        "FLSD-53",
        "MMCE",
        "DCA",
        "LogitNorm",
        "MixUp",
    } <= set(names)
    assert len(names) == len(set(names))


def test_a_method_that_the_settings_cannot_express_is_not_listed():
    frozen, finetuned = make_config(), make_config(model={"mode": "finetune"})

    assert "CutMix" in METHODS
    assert "CutMix" not in [method.name for method in list_methods(frozen)]
    assert "CutMix" in [method.name for method in list_methods(finetuned)]


def test_naming_a_method_that_does_not_fit_gives_the_reason():
    with pytest.raises(ConfigError, match="cutmix cuts rectangles"):
        find_methods(make_config(), ["cutmix"])


def test_an_unknown_method_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="'logitnrom'; did you mean 'LogitNorm'"):
        find_method("logitnrom")


def test_an_unknown_method_is_shown_as_it_was_written():
    with pytest.raises(ConfigError, match="There is no method 'FOO'"):
        find_methods(make_config(), ["FOO"])


def test_names_are_found_in_any_case_and_taken_once():
    assert [method.name for method in find_methods(make_config(), ["4hml", "sl1h", "4HML"])] == ["4HML", "SL1H"]


@pytest.mark.parametrize(
    ("name", "uncertainty", "n"), [("SL1H", "single", None), ("2HML", "multi-head", 2), ("4HML", "multi-head", 4)]
)
def test_heads_are_as_many_as_the_name_says(name: str, uncertainty: str, n: int | None):
    config = apply_method(make_config(), find_method(name))

    assert config.model.uncertainty == uncertainty
    assert n is None or config.model.members == n


def test_the_same_loss_on_each_head_is_not_multi_loss():
    same, multi = (apply_method(make_config(), find_method(name)).model.head_weights for name in ("2HSL", "2HML"))

    assert (same, multi) == ("same", "multi")


def test_what_makes_a_method_does_not_come_from_the_workspace():
    mine = make_config(model={"members": 7}, train={"loss": "focal", "loss_parameters": {"gamma": 2.0}, "epochs": 9})

    config = apply_method(mine, find_method("SL1H"))

    assert (config.train.loss, config.train.loss_parameters) == ("cross-entropy", {})
    assert config.train.epochs == 9


def test_the_workspaces_own_settings_are_a_method_too():
    mine = make_config(train={"loss": "focal"})

    assert apply_method(mine, find_method("config")) == mine
