"""Rules for every strategy, as one suite; and a hand-computed example of five images for each strategy."""

import dataclasses
import functools
import math
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from choices import choose, scores_of
from torch.autograd.profiler import profile

from alloop.acquisition import arrange, batchbald
from alloop.acquisition.registry import METHODS, estimate, find_strategy
from alloop.acquisition.scores import SCORES, choose_by_score
from alloop.acquisition.strategy import Candidates, Size
from alloop.composition import STRATEGIES, Need

NAMES = sorted({*METHODS, *SCORES})
PERTURBED = [(name, kind) for name in sorted(SCORES) for kind in ("power", "soft-rank")]
CALLS = [(name, "none") for name in NAMES] + PERTURBED
EVERY = pytest.mark.parametrize(("name", "perturb"), CALLS, ids=["-".join(call) for call in CALLS])


@pytest.fixture(autouse=True)
def _few_configurations(monkeypatch):
    monkeypatch.setattr(batchbald, "CONFIGURATIONS", 500)


def _candidates(n=60, n_classes=4, n_members=3, n_features=8, n_labeled=6, seed=0) -> Candidates:
    """Random ones with everything that a strategy may need."""
    generator = torch.Generator().manual_seed(seed)
    members = torch.randn(n_members, n, n_classes, generator=generator).mul(2).log_softmax(dim=-1)
    weight = torch.randn(n_features, n_classes, generator=generator)
    features = torch.randn(n, n_features, generator=generator).relu()
    return Candidates(
        keys=np.random.default_rng(seed).permutation(n).astype(np.uint64) * np.uint64(7919) + np.uint64(5),
        calibrated_log_probs=(features @ weight).log_softmax(dim=-1),
        member_log_probs=members,
        features=features,
        labeled=torch.randn(n_labeled, n_features, generator=generator).relu(),
        labels=torch.arange(n_labeled) % n_classes,
        head=lambda rows: (rows @ weight).log_softmax(dim=-1),
    )


def _rows(candidates: Candidates, rows) -> Candidates:
    index = torch.as_tensor(np.array(rows))
    return dataclasses.replace(
        candidates,
        keys=candidates.keys[index.numpy()],
        calibrated_log_probs=candidates.calibrated_log_probs[index],
        member_log_probs=candidates.member_log_probs[:, index],
        features=candidates.features[index],
    )


def _chosen(name, perturb, candidates, k, seed=0):
    choice = choose(name, candidates, k, seed, perturb=perturb, explore=0.1)
    n = max(min(k, len(candidates)), 0)
    assert choice.positions.dtype == np.int64
    assert len(set(choice.positions.tolist())) == n == len(choice.scores)
    assert np.isfinite(choice.scores).all()
    assert all(0 <= position < len(candidates) for position in choice.positions)
    if choice.probabilities is not None:
        assert ((choice.probabilities > 0) & (choice.probabilities <= 1)).all()
    return choice.positions.tolist()


@EVERY
def test_shuffled_candidates_are_the_same_images_in_the_same_order(name, perturb):
    candidates = _candidates()
    shuffled = np.random.default_rng(1).permutation(60)
    other = dataclasses.replace(
        _rows(candidates, shuffled), labeled=candidates.labeled.flip(0), labels=candidates.labels.flip(0)
    )

    picked = _chosen(name, perturb, candidates, 12)

    assert shuffled[_chosen(name, perturb, other, 12)].tolist() == picked


@EVERY
def test_copies_are_distinct_images(name, perturb):
    candidates = _candidates()
    copied = dataclasses.replace(
        _rows(candidates, [*range(5)] * 8), keys=np.arange(40, dtype=np.uint64) * np.uint64(31) % np.uint64(41)
    )

    _chosen(name, perturb, copied, 30)


@EVERY
def test_when_all_are_equal_a_batch_is_still_full(name, perturb):
    candidates = _candidates()
    equal = dataclasses.replace(_rows(candidates, [0] * 20), keys=np.arange(20, dtype=np.uint64) + np.uint64(3))

    _chosen(name, perturb, equal, 7)


@EVERY
@pytest.mark.parametrize("k", [-1, 0, 1, 59, 60, 61, 1000])
def test_a_batch_has_k_images_or_all_there_are(name, perturb, k):
    assert len(_chosen(name, perturb, _candidates(), k)) == max(min(k, 60), 0)


@EVERY
def test_an_empty_pool_gives_an_empty_batch(name, perturb):
    assert _chosen(name, perturb, _rows(_candidates(), np.empty(0, dtype=np.int64)), 5) == []


@EVERY
def test_one_image_is_chosen_whatever_it_is(name, perturb):
    assert _chosen(name, perturb, _rows(_candidates(), [3]), 5) == [0]


@EVERY
def test_nothing_has_to_be_labeled(name, perturb):
    candidates = _candidates()
    unlabeled = dataclasses.replace(candidates, labeled=None, labels=None)
    empty = dataclasses.replace(candidates, labeled=candidates.labeled[:0], labels=candidates.labels[:0])

    assert _chosen(name, perturb, unlabeled, 12) == _chosen(name, perturb, empty, 12)


@EVERY
def test_a_class_may_be_without_labels_and_a_label_may_be_missing(name, perturb):
    candidates = _candidates()

    _chosen(name, perturb, dataclasses.replace(candidates, labels=torch.tensor([0, 0, -1, 0, -1, 0])), 12)


@EVERY
@pytest.mark.parametrize("kind", ["sure of one", "sure of several", "undecided", "one head sure"])
def test_sure_and_undecided_predictions_are_no_trouble(name, perturb, kind):
    candidates = _candidates()
    classes = torch.zeros(60, dtype=torch.int64) if kind == "sure of one" else torch.arange(60) % 4
    sure = torch.full((60, 4), -math.inf).index_put((torch.arange(60), classes), torch.tensor(0.0))
    undecided = torch.full((60, 4), 0.25).log()
    log_probs = sure if kind.startswith("sure") else undecided
    members = torch.stack([sure if kind == "one head sure" else log_probs, log_probs, log_probs])

    _chosen(
        name,
        perturb,
        dataclasses.replace(
            candidates,
            calibrated_log_probs=log_probs,
            member_log_probs=members,
            head=lambda rows: log_probs[: len(rows)],
        ),
        12,
    )


@EVERY
def test_features_of_zeros_and_enormous_ones_are_no_trouble(name, perturb):
    candidates = _candidates()
    features = candidates.features.clone()
    features[::3] = 0
    features[1] *= 1e30
    features[2] *= 1e-30

    _chosen(name, perturb, dataclasses.replace(candidates, features=features), 40)


@EVERY
def test_a_seed_fixes_the_batch(name, perturb):
    candidates = _candidates()

    first, again = (choose(name, candidates, 12, 3, perturb=perturb, explore=0.1) for _ in range(2))

    assert first.positions.tolist() == again.positions.tolist()
    assert first.scores.tolist() == again.scores.tolist()


@EVERY
def test_another_seed_chooses_others_only_where_something_is_drawn(name, perturb):
    candidates = _candidates()

    batches = {tuple(_chosen(name, perturb, candidates, 12, seed)) for seed in range(5)}

    if perturb != "none" or name == "badge":
        assert len(batches) == 5
    elif name not in SEEDED:
        assert len(batches) == 1


@EVERY
def test_the_size_of_blocks_changes_nothing(name, perturb, monkeypatch):
    whole = _chosen(name, perturb, _candidates(), 12)
    monkeypatch.setattr(arrange, "BLOCK_FLOATS", 50)

    assert _chosen(name, perturb, _candidates(), 12) == whole


@EVERY
def test_what_is_given_is_left_as_it_was(name, perturb):
    given, untouched = _candidates(), _candidates()

    _chosen(name, perturb, given, 12)

    for field in dataclasses.fields(Candidates):
        if field.name not in {"head", "rule"}:  # functions
            assert torch.equal(
                torch.as_tensor(getattr(given, field.name)), torch.as_tensor(getattr(untouched, field.name))
            )


@EVERY
def test_the_process_wide_random_streams_are_left_alone(name, perturb):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]

    _chosen(name, perturb, _candidates(), 12)

    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_number_that_is_not_finite_is_refused_with_its_position(name):
    for need in STRATEGIES[name].needs - {Need.HEAD}:
        field = {
            Need.CALIBRATED_LOG_PROBS: "calibrated_log_probs",
            Need.MEMBER_LOG_PROBS: "member_log_probs",
            Need.FEATURES: "features",
        }[need]
        rows = getattr(_candidates(), field).clone()
        rows[..., 17, 1] = math.nan

        with pytest.raises(ValueError, match=r"position 17 "):
            choose(name, dataclasses.replace(_candidates(), **{field: rows}), 5, 0)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_what_a_strategy_needs_and_does_not_get_is_named(name):
    with pytest.raises(ValueError, match="this strategy needs"):
        choose(name, Candidates(_candidates().keys), 5, 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_strategy_gets_by_with_what_it_says_it_needs(name):
    candidates = _candidates()
    fields = {
        Need.CALIBRATED_LOG_PROBS: ("calibrated_log_probs",),
        Need.MEMBER_LOG_PROBS: ("member_log_probs",),
        Need.FEATURES: ("features", "labeled", "labels"),
        Need.HEAD: ("head",),
    }
    given = {field: getattr(candidates, field) for need in STRATEGIES[name].needs for field in fields[need]}

    assert _chosen(name, "none", Candidates(candidates.keys, **given), 12) == _chosen(name, "none", candidates, 12)


@pytest.mark.parametrize("name", NAMES)
def test_memory_stays_within_the_estimate_on_a_hundred_thousand_images(name):
    n, k = 100_000, 10
    candidates = _candidates(n, 4, 3, 128, 50)
    bound = estimate(name, Size(n, 50, k, 4, 3, candidates.features.shape[1])).n_bytes

    call = (
        functools.partial(find_strategy(name), candidates, k, 0) if name in METHODS else _choosing(name, candidates, k)
    )
    assert _peak(call) <= bound
    assert bound < 0.5e9


def _choosing(name, candidates, k):
    """Choose by scores that are there already: scoring the pool took memory of its own, a batch at a time."""
    scores, entropies = scores_of(name, candidates), scores_of("entropy", candidates)
    return lambda: choose_by_score(name, scores, entropies, candidates.keys, k, 0)


def _peak(call) -> int:
    """Bytes of tensors and arrays at their highest, at most: both peaks are added up."""
    tracemalloc.start()
    with warnings.catch_warnings():
        # torch before 2.14 says so of every run; here there is one cycle
        warnings.filterwarnings("ignore", ".*Profiler clears events at the end of each cycle", UserWarning)
        with profile(profile_memory=True) as profiler:
            call()
    arrays = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    held = tensors = 0
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        tensors = max(tensors, held)
    assert tensors > 0 or arrays > 0
    return tensors + arrays


# k-means, masks and samples inside; another seed may or may not change the batch.
SEEDED = {"batchbald", "cluster-margin", "dropquery", "probcover", "typiclust"}


def _by_log_probs(*probs) -> dict:
    return {"calibrated_log_probs": torch.tensor(probs).log()}


def _by_members(*members) -> dict:
    return {"member_log_probs": torch.tensor(members).log()}


def _angles(*degrees: float) -> torch.Tensor:
    radians = torch.tensor(degrees).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


# Three classes; image 2 is undecided between all, 1 between two, 4 nearly so.
FIVE = [[0.9, 0.05, 0.05], [0.5, 0.5, 0.0], [0.4, 0.3, 0.3], [0.7, 0.2, 0.1], [0.45, 0.4, 0.15]]
# Two members on two classes.
ONE = [[0.9, 0.1], [0.9, 0.1], [0.5, 0.5], [1.0, 0.0], [0.6, 0.4]]
TWO = [[0.9, 0.1], [0.1, 0.9], [0.5, 0.5], [0.0, 1.0], [0.4, 0.6]]

BY_HAND = {
    # 0.394, 0.693, 1.089, 0.802, 1.010 nats
    "entropy": (_by_log_probs(*FIVE), 3, [2, 4, 3]),
    # gaps 0.85, 0, 0.1, 0.5, 0.05
    "margin": (_by_log_probs(*FIVE), 3, [1, 4, 2]),
    # best 0.9, 0.5, 0.4, 0.7, 0.45
    "least-confidence": (_by_log_probs(*FIVE), 3, [2, 4, 1]),
    # 0.325, 0.325, 0.693, 0, 0.673 nats; equal ones by key
    "expected-entropy": (_by_members(ONE, TWO), 4, [2, 4, 0, 1]),
    # 0, 0.368, 0, 0.693, 0.020 nats
    "mutual-information": (_by_members(ONE, TWO), 3, [3, 1, 4]),
    # votes differ on 1, 3 and 4 (1/2 each), whose mean predictions are all even: by key
    "variation-ratio": (_by_members(ONE, TWO), 4, [1, 3, 4, 2]),
    # the only one with a gradient
    "badge": (
        {
            "member_log_probs": torch.tensor([[[1.0, 0], [0.5, 0.5], [0, 1], [1, 0], [1, 0]]]).log(),
            "features": torch.eye(5),
        },
        1,
        [1],
    ),
    # from 0 degrees: 100 is the farthest, then 50 (50 from both), then 20 before 80 and 100's copies
    # Kernels add up to 3.020, 3.171, 3.183, 2.393 and 2.269. Given the third, both of the pair gain 1.643: by key.
    "max-herding": ({"features": _angles(0, 10, 20, 100, 110)}, 2, [2, 3]),
    # two clusters 80 degrees apart are two classes: balls of 3 and 2; then all is covered, and keys decide
    "probcover": (
        {
            "features": _angles(0, 10, 20, 100, 110),
            "labeled": _angles(195, 270),
            "labels": torch.tensor([0, 1]),
        },
        3,
        [0, 3, 1],
    ),
    # only the pair is undecided; once it is covered nothing counts, and keys decide
    "uherding": (
        {
            "features": _angles(0, 10, 20, 100, 110),
            "calibrated_log_probs": torch.tensor([[1.0, 0], [1, 0], [1, 0], [0.5, 0.5], [0.5, 0.5]]).log(),
        },
        3,
        [3, 4, 0],
    ),
    # 10 degrees has neighbors at 10 and 20 degrees, others are farther from their two
    "typiclust": ({"features": _angles(0, 10, 30, 60, 100)}, 1, [1]),
    # what is certain has a factor of 0, so the two undecided come first, whose features are alike; then keys decide
    "entropy-spread": (
        {
            "features": torch.tensor([[2.0, 0], [-2, 0], [0, 1], [0, -2], [0, 1]]),
            "calibrated_log_probs": torch.tensor([[1.0, 0], [1, 0], [0.5, 0.5], [1, 0], [0.5, 0.5]]).log(),
            "labeled": torch.tensor([[1.0, 0], [-1, 0]]),
        },
        3,
        [2, 4, 0],
    ),
    # whatever is dropped, the head says class 1, and two images were said to be class 0
    "dropquery": (
        {
            "features": _angles(0, 10, 20, 30, 40),
            "calibrated_log_probs": torch.tensor([[0.2, 0.8], [0.9, 0.1], [0.4, 0.6], [0.6, 0.4], [0.1, 0.9]]).log(),
            "head": lambda rows: torch.tensor([[0.3, 0.7]]).log().expand(len(rows), -1),
        },
        2,
        [1, 3],
    ),
    # the answer to 3 says which member is right; after that no answer tells more, and keys decide
    "batchbald": (_by_members(ONE, TWO), 3, [3, 0, 1]),
    "k-center": ({"features": _angles(20, 50, 80, 100, 0), "labeled": _angles(0)}, 3, [3, 1, 0]),
}


@pytest.mark.parametrize("name", sorted(BY_HAND))
def test_five_images_by_hand(name):
    parts, k, expected = BY_HAND[name]

    assert choose(name, Candidates(np.arange(5, dtype=np.uint64), **parts), k, 0).positions.tolist() == expected


def test_every_strategy_has_an_example_by_hand():
    # cluster-margin draws within clusters, of which five images make one: see its own tests.
    assert set(BY_HAND) | {"cluster-margin"} == set(NAMES)
