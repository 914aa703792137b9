"""From a name to a strategy: aliases, other packages' strategies, and choices that break the contract."""

import importlib.metadata

import numpy as np
import pytest
import torch

from alloop.acquisition import registry
from alloop.acquisition.registry import choose, estimate, find_strategy
from alloop.acquisition.scores import SCORES, choose_by_score
from alloop.acquisition.strategy import Candidates, Choice, Cost, Size
from alloop.composition import STRATEGIES, check_strategy, strategy_name
from alloop.errors import ConfigError

CANDIDATES = Candidates(np.arange(5, dtype=np.uint64), calibrated_log_probs=torch.full((5, 2), 0.5).log())
SIZE = Size(candidates=1000, labeled=10, k=20, classes=10, members=4, features=64)


def from_the_back(candidates: Candidates, k: int, seed: int) -> Choice:
    """A strategy of somebody else: the last ones first."""
    positions = np.argsort(candidates.keys)[::-1][:k]
    return Choice(positions, np.ones(len(positions)))


from_the_back.cost = lambda size: Cost(float(size.candidates), 8.0 * size.candidates)
NO_FUNCTION = 7


def _install(monkeypatch, **points: str) -> None:
    made = [importlib.metadata.EntryPoint(name, value, "alloop.strategies") for name, value in points.items()]
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda **wanted: [point for point in made if wanted.get("name", point.name) == point.name],
    )


@pytest.mark.parametrize(
    ("alias", "name"),
    [("CoreSet", "k-center"), ("max_herding", "max-herding"), ("Default", "entropy-spread")],
)
def test_other_names_lead_to_the_same_function(alias, name):
    assert find_strategy(alias) is find_strategy(name)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'margin'"):
        find_strategy("margins")


def test_another_package_adds_a_strategy(monkeypatch):
    _install(monkeypatch, backwards=f"{__name__}:from_the_back")

    assert choose("backwards", CANDIDATES, 2, 0).positions.tolist() == [4, 3]
    assert estimate("backwards", SIZE) == Cost(1000.0, 8000.0)


@pytest.mark.parametrize("written", ["From_The_Back", "from-the-back"])
def test_a_strategy_of_another_package_may_be_spelled_with_underscores(monkeypatch, written):
    _install(monkeypatch, From_The_Back=f"{__name__}:from_the_back")

    assert strategy_name(written) == "From_The_Back"
    assert choose(written, CANDIDATES, 2, 0).positions.tolist() == [4, 3]


def test_of_two_spellings_the_one_that_is_written_counts(monkeypatch):
    _install(monkeypatch, **{"by-hand": f"{__name__}:NO_FUNCTION", "by_hand": f"{__name__}:from_the_back"})

    assert choose("by_hand", CANDIDATES, 2, 0).positions.tolist() == [4, 3]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("not_installed_anywhere:choose", "cannot be imported: ModuleNotFoundError"),
        (f"{__name__}:missing", "cannot be imported: AttributeError"),
        (f"{__name__}:NO_FUNCTION", "is not a function"),
    ],
)
def test_a_strategy_that_cannot_be_had_is_named_with_its_package(monkeypatch, value, message):
    _install(monkeypatch, broken=value)

    with pytest.raises(ConfigError, match=f"the strategy broken of the package .*{message}"):
        find_strategy("broken")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(np.array([0, 0]), np.ones(2)), "an image twice"),
        (Choice(np.array([0, 5]), np.ones(2)), "not among the 5 candidates"),
        (Choice(np.array([-1, 0]), np.ones(2)), "not among the 5 candidates"),
        (Choice(np.array([0]), np.ones(1)), "chose 1 images, with 1 scores, instead of 2"),
        (Choice(np.array([0, 1]), np.ones(3)), "with 3 scores"),
        (Choice(np.array([0, 1]), np.array([1, np.nan])), "not finite"),
        (Choice(np.array([0, 1]), np.ones(2), np.array([0.5, 0.0])), "probabilities"),
    ],
)
def test_a_choice_that_breaks_the_contract_is_refused(monkeypatch, choice, message):
    monkeypatch.setattr(registry, "METHODS", {"k-center": (lambda *_: choice, lambda _: Cost(0, 0))})

    with pytest.raises(ConfigError, match=f"the strategy k-center .*{message}"):
        choose("k-center", CANDIDATES, 2, 0)


@pytest.mark.parametrize("name", ["k-center", "random"])
def test_only_scores_can_be_perturbed(name):
    with pytest.raises(ValueError, match=f"power perturbs scores of images, but {name} has no such scores"):
        check_strategy(name, perturb="power")


def test_a_strategy_of_another_package_cannot_be_perturbed(monkeypatch):
    _install(monkeypatch, backwards=f"{__name__}:from_the_back")

    with pytest.raises(ValueError, match="power perturbs a score that alloop computes, and backwards"):
        check_strategy("backwards", perturb="power")


def test_every_strategy_is_defined_once():
    assert set(SCORES) == {name for name, rule in STRATEGIES.items() if rule.is_score}
    # A uniform draw needs no function of its own: the whole batch is its random share.
    assert {*SCORES, *registry.METHODS, "random"} == set(STRATEGIES)
    assert not set(SCORES) & set(registry.METHODS)


def test_a_power_of_the_margin_is_that_of_what_is_missing_to_a_gap_of_1():
    # gaps 1, 0.5 and 0: weights 0, 1/2 and 1
    margins = np.array([-1, -0.5, 0])

    choice = choose_by_score("margin", margins, np.zeros(3), np.arange(3, dtype=np.uint64), 3, 1, perturb="power")

    first = {1: 1 / 3, 2: 2 / 3}[int(choice.positions[0])]
    assert choice.probabilities == pytest.approx([first, 1, 1])
    assert choice.scores == pytest.approx(margins[choice.positions])


def test_scores_that_cannot_be_ranked_are_refused():
    with pytest.raises(ValueError, match="position 1 is not finite"):
        choose_by_score("margin", np.array([0, np.nan]), np.zeros(2), np.arange(2, dtype=np.uint64), 1, 0)


@pytest.mark.parametrize("name", sorted({*registry.METHODS, *SCORES}))
def test_an_estimate_grows_with_the_pool(name):
    larger = Size(candidates=2_000_000, labeled=10, k=20, classes=10, members=4, features=64)

    assert 0 < estimate(name, SIZE).operations < estimate(name, larger).operations
    assert 0 < estimate(name, SIZE).n_bytes < estimate(name, larger).n_bytes
