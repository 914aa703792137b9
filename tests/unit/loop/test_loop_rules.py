"""Rules without rows: how a query stands, when to stop, how much to ask, which changes of settings are refused."""

import datetime as dt
import itertools

import pytest
from factories import make_config

from alloop.config.load import freeze_config
from alloop.consensus import ClassificationJudge
from alloop.errors import HistoryError
from alloop.loop.intake.holdout import holdout_size
from alloop.loop.rounds.history import check_history
from alloop.loop.state import settle
from alloop.loop.stopping import Rule, Standing, StopEvidence, batch_size, find_stop, list_rules
from alloop.records import Agreement, Answer, Interval, Outcome, QueryStatus

CLASSES = ("cat", "dog")
NOON = dt.datetime(2025, 6, 1, 12, tzinfo=dt.UTC)
CAT, BIRD = (Outcome.LABEL, "cat"), (Outcome.LABEL, "bird")
SKIP, EMPTY, OUTDATED = (Outcome.SKIP, None), (Outcome.EMPTY, None), (Outcome.OUTDATED, "cat")


def settled(*answers: tuple[Outcome, str | None], wanted: int = 1, same_person: bool = False) -> QueryStatus:
    people = itertools.repeat("ada") if same_person else map(str, itertools.count())
    given = [Answer(who, who, *answer, NOON) for who, answer in zip(people, answers, strict=False)]
    return settle(given, ClassificationJudge(CLASSES), wanted)


@pytest.mark.parametrize(
    ("answers", "wanted", "status"),
    [
        ((), 1, QueryStatus.OPEN),
        ((CAT,), 1, QueryStatus.ANSWERED),
        ((CAT,), 2, QueryStatus.OPEN),
        ((CAT, CAT), 2, QueryStatus.ANSWERED),
        ((CAT, SKIP), 2, QueryStatus.OPEN),
        ((CAT, SKIP), 1, QueryStatus.ANSWERED),
        ((CAT, BIRD), 1, QueryStatus.ANSWERED),
        ((CAT, EMPTY, BIRD, SKIP), 1, QueryStatus.ANSWERED),
        ((BIRD,), 1, QueryStatus.UNKNOWN),
        ((BIRD, SKIP, EMPTY), 1, QueryStatus.UNKNOWN),
        ((SKIP,), 1, QueryStatus.SKIPPED),
        ((SKIP,), 2, QueryStatus.SKIPPED),
        ((SKIP, EMPTY), 1, QueryStatus.SKIPPED),
        ((EMPTY,), 1, QueryStatus.EMPTY),
        ((EMPTY, EMPTY), 1, QueryStatus.EMPTY),
        ((OUTDATED,), 1, QueryStatus.WITHDRAWN),
        ((OUTDATED, SKIP), 1, QueryStatus.SKIPPED),
        ((CAT, OUTDATED), 3, QueryStatus.ANSWERED),
    ],
)
def test_a_query_stands_as_its_answers_say(answers, wanted: int, status: QueryStatus):
    for order in itertools.permutations(answers):
        assert settled(*order, wanted=wanted) is status


def test_two_answers_of_one_person_are_not_two_people():
    assert settled(CAT, CAT, wanted=2, same_person=True) is QueryStatus.OPEN


@pytest.mark.parametrize(
    ("loop", "counts", "reason"),
    [
        ({}, {}, None),
        ({"label_budget": 100}, {"n_labels": 99}, None),
        ({"label_budget": 100}, {"n_labels": 100}, "label budget reached: 100 of 100 labels"),
        ({"label_budget": 100}, {"n_labels": 104}, "label budget reached: 104 of 100 labels"),
        ({"label_budget": 100}, {"n_labels": 60, "n_open": 39}, None),
        (
            {"label_budget": 100},
            {"n_labels": 60, "n_open": 40},
            "label budget reached: 60 of 100 labels, 40 being asked",
        ),
        ({"max_rounds": 3}, {"n_rounds": 2}, None),
        ({"max_rounds": 3}, {"n_rounds": 3}, "round limit reached: 3 of 3 rounds"),
        ({}, {"n_askable": 0}, "pool exhausted"),
        ({"label_budget": 100}, {"n_labels": 100, "n_askable": 0}, "label budget"),
    ],
)
def test_a_loop_stops_when_its_budget_rounds_or_pool_are_used_up(loop: dict, counts: dict, reason: str | None):
    given = {"n_labels": 10, "n_open": 0, "n_askable": 10, "n_rounds": 1, **counts}

    found = find_stop(make_config(loop=loop).loop, StopEvidence(**given))

    assert (found is None) == (reason is None)
    assert found is None or found.because.startswith(reason or "")
    assert found is None or found.name.is_stop


def found_rules(loop: dict, **evidence: object) -> dict[str, Rule]:
    given = {"n_labels": 10, "n_open": 0, "n_askable": 10, "n_rounds": 1, **evidence}
    return {rule.name: rule for rule in list_rules(make_config(loop=loop).loop, StopEvidence(**given))}


ACCURACY = Interval(0.9, 0.87, 0.93, 400, "wilson 95%")


@pytest.mark.parametrize(
    ("target", "standing", "because"),
    [
        (0.87, "holds", "target accuracy reached: accuracy 90.0 % [87.0, 93.0] on 400 images, target 87 %"),
        (
            0.9,
            "cannot tell",
            "accuracy 90.0 % [87.0, 93.0] on 400 images: its lower end has not reached the target 90 %, "
            "its upper end has",
        ),
        (
            0.95,
            "does not hold",
            "target accuracy not reached: accuracy 90.0 % [87.0, 93.0] on 400 images, target 95 %",
        ),
    ],
)
def test_a_target_is_reached_when_the_lower_end_reaches_it(target: float, standing: str, because: str):
    rule = found_rules({"target_accuracy": target}, accuracy=ACCURACY)["target accuracy"]

    assert (rule.standing, rule.because, rule.stops) == (standing, because, True)


@pytest.mark.parametrize(
    ("low", "high", "standing", "because"),
    [
        (-0.002, 0.004, "holds", "learning curve flat: twice the labels are expected to bring +0.1 pp [−0.2, 0.4]"),
        (-0.002, 0.02, "cannot tell", "twice the labels are expected to bring +0.1 pp [−0.2, 2.0]"),
        (
            0.006,
            0.02,
            "does not hold",
            "the learning curve still rises: twice the labels are expected to bring +0.1 pp",
        ),
    ],
)
def test_a_curve_is_flat_when_its_upper_end_is(low: float, high: float, standing: str, because: str):
    gain = Interval(0.001, low, high, 5, "power law 95%")

    rule = found_rules({"stop_when_flat": True}, doubling=gain)["learning curve flat"]

    assert rule.standing == standing
    assert rule.because.startswith(because)
    assert rule.because.endswith("against flat_gain = 0.5 pp")


@pytest.mark.parametrize(
    ("shares", "standing"),
    [
        ((), "cannot tell"),
        ((0.99, 0.99), "cannot tell"),
        ((0.9, 0.99, 0.99, 0.98), "holds"),
        ((0.99, 0.99, 0.97), "does not hold"),
        ((0.97,), "does not hold"),
    ],
)
def test_predictions_are_stable_after_three_rounds_in_a_row(shares: tuple[float, ...], standing: str):
    agreements = tuple(Agreement(number + 2, number + 1, share, 500) for number, share in enumerate(shares))

    rule = found_rules({"stop_when_stable": True}, agreements=agreements)["predictions stable"]

    assert rule.standing == standing
    if standing == "holds":
        assert rule.because == (
            "predictions stable: 99.0 %, 99.0 %, 98.0 % of the unlabeled images kept their predicted class from round "
            "to round, 3 times at least 98 %"
        )


def test_rules_that_are_not_configured_are_shown_and_stop_nothing():
    flat = Interval(0.0, -0.001, 0.001, 5, "power law 95%")
    stable = tuple(Agreement(number + 1, number, 1.0, 500) for number in range(1, 4))
    evidence = StopEvidence(10, 0, 10, 1, ACCURACY, flat, stable)
    settings = make_config().loop

    rules = list_rules(settings, evidence)

    assert [rule.name for rule in rules if rule.standing is Standing.HOLDS] == [
        "learning curve flat",
        "predictions stable",
    ]
    assert [rule.name for rule in rules if rule.stops] == ["pool exhausted"]
    assert find_stop(settings, evidence) is None
    for setting, name in {"stop_when_stable": "predictions stable", "stop_when_flat": "learning curve flat"}.items():
        found = find_stop(make_config(loop={setting: True}).loop, evidence)
        assert found is not None
        assert (found.name, found.because.startswith(name)) == (name, True)


@pytest.mark.parametrize(
    ("budget", "n_labels", "n_open", "n"),
    [(None, 1000, 0, 50), (100, 0, 0, 50), (100, 60, 0, 40), (100, 60, 30, 10), (100, 20, 20, 50), (100, 99, 0, 1)],
)
def test_a_batch_is_what_the_budget_leaves(budget: int | None, n_labels: int, n_open: int, n: int):
    assert batch_size(make_config(loop={"label_budget": budget}).loop, n_labels, n_open) == n


def test_a_batch_never_goes_beyond_the_budget():
    assert batch_size(make_config(loop={"label_budget": 100}).loop, 60, 40) == 0
    assert batch_size(make_config(loop={"label_budget": 10}).loop, 0, 20) == 0


@pytest.mark.parametrize(("n_groups", "size"), [(2, 1), (4, 1), (30, 3), (35, 4), (1999, 200), (100_000, 200)])
def test_the_holdout_is_a_tenth_of_a_small_pool_and_200_of_a_large_one(n_groups: int, size: int):
    assert holdout_size(make_config().evaluation, n_groups) == size


def test_a_class_that_people_have_used_cannot_be_removed():
    old = freeze_config(make_config(project={"classes": ("cat", "dog", "bird")}))
    new = make_config(project={"classes": ("cat", "dog")})

    with pytest.raises(HistoryError, match="no longer has 'bird'") as caught:
        check_history(old, new, {"bird", "cat"}, accept=True)

    assert caught.value.exit_code == 2
    assert check_history(old, new, {"cat"}, accept=False) == ["unused class removed: bird"]


def test_a_class_may_be_added_and_classes_reordered():
    old = freeze_config(make_config())
    new = make_config(project={"classes": ("dog", "bird", "cat")})

    assert check_history(old, new, {"cat", "dog"}, accept=False) == ["class added: bird"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backbone", "resnet18"),
        ("weights", "none"),
        ("mode", "finetune"),
        ("uncertainty", "single"),
        ("members", 2),
        ("image_size", 64),
    ],
)
def test_another_model_is_refused_until_it_is_accepted(key: str, value: object):
    old, new = freeze_config(make_config()), make_config(model={key: value})

    with pytest.raises(HistoryError, match=f"\\[model\\] {key}: .* → {value!r}") as caught:
        check_history(old, new, set(), accept=False)

    assert "--accept-change" in caught.value.hint
    assert len(check_history(old, new, set(), accept=True)) == 1


def test_the_default_number_of_members_may_be_written_out_and_rounds_without_later_settings_compared():
    old = freeze_config(make_config())
    for key in ("heads", "head_weights", "dropout", "consistent_masks"):
        del old["model"][key]
    old["model"]["members"] = 4

    assert check_history(old, make_config(), set(), accept=False) == []
    with pytest.raises(HistoryError, match="members: 4 → 5"):
        check_history(old, make_config(model={"members": 5}), set(), accept=False)


def test_settings_that_invalidate_nothing_may_change():
    new = make_config(
        loop={"batch_size": 5}, model={"device": "cpu"}, train={"epochs": 3}, acquisition={"strategy": "random"}
    )

    assert check_history(freeze_config(make_config()), new, set(), accept=False) == []
