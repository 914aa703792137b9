"""Quotas on predicted classes, and which strategy can choose without a model. By hand, without a database."""

import logging

import numpy as np
import pytest
from factories import make_config
from toys.installed import install

from alloop.acquisition.strategy import Candidates, Choice, Cost, Size
from alloop.composition import Need
from alloop.loop.choosing.batch import strategy_now, within_quota
from alloop.loop.choosing.evidence import Evidence, Known, describe_cost, own_bytes, wide_needs

NONE = np.zeros(3, dtype=np.intp)


class Highest:
    """Takes the highest of fixed scores, and writes down what it was asked."""

    def __init__(self, scores: list[float], chances: bool = False) -> None:
        self.scores = np.array(scores)
        self.chances = chances
        self.asked: list[tuple[list[int], list[int], int]] = []

    def __call__(self, eligible, kept, k, seed):
        self.asked.append((eligible.tolist(), kept.tolist(), k))
        best = eligible[np.argsort(-self.scores[eligible], kind="stable")][:k]
        return Choice(best, self.scores[best], np.full(len(best), 0.5) if self.chances else None)


def test_what_is_over_the_quota_gives_way_to_other_classes():
    # By score: three of class 0, then one of class 1, one of class 2, one of class 0.
    ask = Highest([9, 8, 7, 6, 5, 4])
    classes = np.array([0, 0, 0, 1, 2, 0])

    choice = within_quota(ask, classes, NONE, limit=2, k=4, seed=0)

    assert choice.positions.tolist() == [0, 1, 3, 4]
    assert choice.scores.tolist() == [9, 8, 6, 5]
    # The second asking leaves class 0 out and knows what was kept.
    assert ask.asked == [([0, 1, 2, 3, 4, 5], [], 4), ([4], [0, 1, 3], 1)]


def test_what_the_batch_has_already_counts():
    ask = Highest([9, 8, 7, 6])

    choice = within_quota(ask, np.array([0, 0, 1, 1]), np.array([1, 0, 0]), limit=2, k=3, seed=0)

    assert choice.positions.tolist() == [0, 2, 3]


def test_where_only_full_classes_are_left_the_batch_is_filled_up_and_that_is_said():
    ask = Highest([9, 8, 7, 6])

    choice = within_quota(ask, np.array([0, 0, 0, 1]), NONE, limit=1, k=4, seed=0)

    assert choice.positions.tolist() == [0, 3, 1, 2]
    assert choice.notes == ("2 images exceed the quota of 1 per class, because no images of other classes were left.",)


def test_probabilities_hold_only_as_long_as_no_class_was_shut_out():
    classes = np.array([0, 0, 1, 1])

    free = within_quota(Highest([4, 3, 2, 1], chances=True), classes, NONE, limit=2, k=2, seed=0)
    bound = within_quota(Highest([4, 3, 2, 1], chances=True), classes, NONE, limit=1, k=2, seed=0)

    assert free.probabilities is not None
    assert bound.probabilities is None


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("entropy", "max-herding"), ("default", "max-herding"), ("badge", "max-herding"), ("dropquery", "max-herding"),
        ("typiclust", "typiclust"), ("probcover", "probcover"), ("coreset", "k-center"), ("max_herding", "max-herding"),
        ("random", "random"),
    ],
)  # fmt: skip
def test_without_a_model_features_choose(strategy: str, expected: str):
    config = make_config(acquisition={"strategy": strategy})

    assert strategy_now(config, has_model=False)[0] == expected


def of_features(candidates: Candidates, k: int, seed: int) -> Choice:
    """A strategy of somebody else that needs no model."""
    return Choice(np.argsort(candidates.keys)[:k], np.ones(min(k, len(candidates))))


def of_predictions(candidates: Candidates, k: int, seed: int) -> Choice:
    return of_features(candidates, k, seed)


of_features.needs = {Need.FEATURES}


@pytest.mark.parametrize(("function", "expected"), [("of_features", "theirs"), ("of_predictions", "max-herding")])
def test_without_a_model_a_strategy_of_another_package_that_needs_only_features_chooses(
    tmp_path, monkeypatch, function, expected
):
    install(monkeypatch, tmp_path / "site", f"[alloop.strategies]\ntheirs = {__name__}:{function}")
    config = make_config(acquisition={"strategy": "theirs"})

    assert strategy_now(config, has_model=False)[0] == expected


def test_with_a_model_the_strategy_that_is_set_chooses():
    config = make_config(acquisition={"strategy": "coreset"}, model={"weights": "none"})

    assert strategy_now(config, has_model=True) == ("k-center", ())


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({}, True), ({"weights": "none"}, False), ({"backbone": "pixels", "weights": "none"}, True),
        ({"backbone": "own:trunk", "weights": "none"}, True), ({"backbone": "timm:resnet18", "weights": "none"}, False),
        ({"backbone": "features:64", "weights": "none"}, True), ({"weights": "local.pth"}, True),
        ({"backbone": ("pixels", "resnet18"), "weights": "none"}, False), ({"backbone": ("pixels", "resnet18")}, True),
    ],
)  # fmt: skip
def test_which_backbones_tell_images_apart_untrained(model: dict[str, str], expected: bool):
    assert make_config(model=model).model.has_learned_features is expected


def test_only_strategies_that_look_at_more_than_their_own_score_need_wide_columns():
    assert wide_needs("mutual-information") == wide_needs("random") == frozenset()
    assert wide_needs("batchbald") == {Need.MEMBER_LOG_PROBS}
    assert wide_needs("badge") == {Need.MEMBER_LOG_PROBS, Need.FEATURES}


def test_the_memory_of_candidates_is_counted_by_hand():
    size = Size(candidates=1000, labeled=10, k=5, classes=7, members=3, features=64)

    assert own_bytes(frozenset({Need.CALIBRATED_LOG_PROBS}), size) == 4 * 1000 * 7
    assert own_bytes(frozenset({Need.MEMBER_LOG_PROBS, Need.FEATURES}), size) == 4 * (1000 * (21 + 64) + 10 * 64)


@pytest.mark.parametrize(
    ("operations", "said"), [(1e9, "about 1 s"), (5e11, "about 50 s"), (1.2e13, "about 20 minutes")]
)
def test_what_choosing_takes_is_said_in_words(operations: float, said: str):
    size = Size(candidates=1_000_000, labeled=0, k=500, classes=10, members=1, features=512)

    words = describe_cost("k-center", size, Cost(operations, 2.5 * 2**30))

    assert words == f"k-center chooses 500 of 1,000,000 candidates: {said} on one core and 2.5 GiB of memory."


def test_a_big_choice_is_announced(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    evidence = Evidence(None, make_config(), Known())
    logging.getLogger("alloop").propagate = True

    with caplog.at_level(logging.INFO, logger="alloop"):
        evidence.announce("entropy", 50_000, 10)
        assert caplog.text == ""
        evidence.announce("entropy", 50_001, 10)

    assert "entropy chooses 10 of 50,001 candidates" in caplog.text
