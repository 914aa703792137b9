"""Out-of-distribution scores and their metrics against third-party values, and by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alloop.evaluation import ood
from alloop.evaluation.ood_metrics import measure_ood, ood_intervals
from alloop.evaluation.ranks import average_rank, ranks

ASSETS = Path(__file__).parents[2] / "assets" / "golden"
GOLDEN = np.load(ASSETS / "ood_scores.npz")
METRICS = np.load(ASSETS / "ood_metrics.npz")
RANKS = np.load(ASSETS / "average_rank.npz")
LOGITS = torch.from_numpy(GOLDEN["logits"]).unsqueeze(0)
OF_LOG_PROBS = {"msp": ood.msp, "entropy": ood.entropy, "gen": ood.gen, "mutual-information": ood.mutual_information}
OF_LOGITS = {"max-logit": ood.max_logit, "energy": ood.energy}
CASES = ["smooth", "ties", "heavy_ties", "perfect", "reversed", "constant", "small"]


def _tensor(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name])


def _members(m: int = 3, n: int = 12, k: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(m, n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def _network() -> torch.nn.Sequential:
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(48, 12), torch.nn.Tanh(), torch.nn.Linear(12, 5)
    ).double()
    for layer, number in ((network[1], 1), (network[3], 2)):
        layer.weight.data, layer.bias.data = _tensor(f"odin_W{number}"), _tensor(f"odin_b{number}")
    return network.eval()


@pytest.mark.parametrize(
    ("score", "key", "factor"),
    [(ood.msp, "msp", 1), (ood.entropy, "entropy", 1), (ood.gen, "gen_mean_gamma01", 10)],
)
def test_scores_of_probabilities_agree_with_other_libraries(score, key, factor):
    scores = score(LOGITS.log_softmax(-1))

    np.testing.assert_allclose(scores.numpy(), GOLDEN[key] * factor, atol=1e-9)


@pytest.mark.parametrize(("score", "key"), [(ood.max_logit, "maxlogit"), (ood.energy, "energy_T1")])
def test_scores_of_logits_agree_with_other_libraries(score, key):
    np.testing.assert_allclose(score(LOGITS).numpy(), GOLDEN[key], rtol=1e-12, atol=1e-9)


def test_gradnorm_agrees_with_gradients_taken_image_by_image():
    scores = ood.gradnorm(_tensor("features"), _tensor("fc_logits").unsqueeze(0))

    np.testing.assert_allclose(scores.numpy(), GOLDEN["gradnorm_mean_over_classes"], atol=1e-9)


def test_gradnorms_temperature_agrees_with_autograd():
    weight = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    features = torch.randn(1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    log_probs = (features @ weight.T / 3).log_softmax(-1)
    (gradient,) = torch.autograd.grad(-log_probs.mean(), weight)

    score = ood.gradnorm(features, (features @ weight.detach().T).unsqueeze(0), temperature=3)
    assert score.item() == pytest.approx(-gradient.abs().sum().item())


def test_odin_agrees_with_another_library():
    images = _tensor("odin_x")

    default = ood.odin(_network(), images, std=_tensor("odin_std"))
    plain = ood.odin(_network(), images, temperature=10, epsilon=0.05)

    np.testing.assert_allclose(default.numpy(), GOLDEN["odin_T1000_eps0014"], atol=1e-9)
    np.testing.assert_allclose(plain.numpy(), GOLDEN["odin_T10_eps05_nostd"], atol=1e-9)


def test_odin_leaves_parameters_and_images_alone():
    network, images = _network(), _tensor("odin_x").clone()
    before = images.clone()

    with torch.no_grad():
        ood.odin(network, images)

    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(images, before)
    assert not images.requires_grad


def test_odin_refuses_a_network_in_training_mode():
    with pytest.raises(ValueError, match="eval mode"):
        ood.odin(_network().train(), _tensor("odin_x"))


def test_odin_of_heads_is_the_mean_of_every_heads_own():
    first = _network()
    second = _network()
    second[3].weight.data = second[3].weight.data.flip(0)
    images = _tensor("odin_x")

    together = ood.odin(lambda x: torch.stack([first(x), second(x)]), images, temperature=10, epsilon=0.05)

    alone = [ood.odin(network, images, temperature=10, epsilon=0.05) for network in (first, second)]
    torch.testing.assert_close(together, (alone[0] + alone[1]) / 2)


def test_odin_refuses_a_network_that_cuts_gradients():
    network = _network()

    with pytest.raises(ValueError, match="this network gives none"):
        ood.odin(lambda images: network(images).detach(), _tensor("odin_x"))


@pytest.mark.parametrize("score", OF_LOGITS.values(), ids=OF_LOGITS)
def test_scores_of_logits_are_means_over_members_not_scores_of_a_mean(score):
    logits = _members()

    expected = sum(score(logits[m : m + 1]) for m in range(3)) / 3

    torch.testing.assert_close(score(logits), expected)
    assert not torch.allclose(score(logits), score(logits.mean(dim=0, keepdim=True)))


@pytest.mark.parametrize("score", OF_LOGITS.values(), ids=OF_LOGITS)
def test_log_probabilities_are_refused_where_raw_logits_are_needed(score):
    with pytest.raises(ValueError, match="raw logits"):
        score(_members().log_softmax(-1).float())


def test_energys_temperature_by_hand():
    logits = torch.tensor([[[2.0, 0.0]]])

    assert ood.energy(logits, temperature=2).item() == pytest.approx(-2 * math.log(math.e + 1))


def test_gen_counts_only_the_largest_probabilities():
    log_probs = torch.tensor([[[0.5, 0.3, 0.2]]], dtype=torch.float64).log()

    assert ood.gen(log_probs, gamma=1, top=2).item() == pytest.approx(0.5 * 0.5 + 0.3 * 0.7)


def test_a_score_that_is_the_same_everywhere_is_refused():
    with pytest.raises(ValueError, match="energy is 0 for all 3 images"):
        ood.check_varies(torch.zeros(3), "energy")
    ood.check_varies(torch.tensor([1.0]), "energy")
    ood.check_varies(torch.tensor([]), "energy")


@pytest.mark.parametrize("name", [*OF_LOG_PROBS, *OF_LOGITS])
@given(seed=st.integers(0, 500), size=st.sampled_from([1e-3, 1.0, 1e6]))
@settings(max_examples=10, deadline=None)
def test_order_of_members_classes_and_images_does_not_matter(name, seed, size):
    logits = _members(seed=seed) * size
    generator = torch.Generator().manual_seed(seed)
    members, images, classes = (torch.randperm(n, generator=generator) for n in (3, 12, 5))
    score = OF_LOG_PROBS.get(name) or OF_LOGITS[name]
    values = logits.log_softmax(-1) if name in OF_LOG_PROBS else logits

    scores = score(values)

    assert torch.isfinite(scores).all()
    torch.testing.assert_close(score(values[members][:, images][:, :, classes]), scores[images])


@pytest.mark.parametrize("name", [*OF_LOG_PROBS, *OF_LOGITS])
def test_empty_sets_single_rows_and_half_precision(name):
    logits = _members()
    score = OF_LOG_PROBS.get(name) or OF_LOGITS[name]
    values = logits.log_softmax(-1) if name in OF_LOG_PROBS else logits

    assert score(values[:, :0]).shape == (0,)
    torch.testing.assert_close(score(values[:, :1]), score(values)[:1])
    assert score(values.half()).dtype == torch.float32
    torch.testing.assert_close(score(values.half()).double(), score(values), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("score", OF_LOG_PROBS.values(), ids=OF_LOG_PROBS)
def test_one_hot_predictions_have_finite_scores(score):
    log_probs = torch.full((3, 2, 4), -torch.inf)
    log_probs[:, :, 1] = 0

    assert torch.isfinite(score(log_probs)).all()


@pytest.mark.parametrize("name", [*OF_LOG_PROBS, *OF_LOGITS])
def test_a_prediction_that_is_not_finite_is_named(name):
    values = _members()
    values[1, 7, 2] = torch.nan
    score = OF_LOG_PROBS.get(name) or OF_LOGITS[name]

    with pytest.raises(ValueError, match="position 7"):
        score(values)


@pytest.mark.parametrize("case", CASES)
def test_metrics_agree_with_scikit_learn(case):
    measured = measure_ood(METRICS[f"{case}_id"], METRICS[f"{case}_ood"])

    expected = [
        METRICS[f"{case}_{key}"]
        for key in ("auroc", "fpr95_ood_positive", "fpr95_id_positive", "aupr_out_ap", "aupr_in_ap")
    ]
    found = [measured.auroc, measured.fpr95, measured.fpr95_id, measured.aupr_out, measured.aupr_in]
    assert found == pytest.approx([float(value) for value in expected], abs=1e-12)
    assert (measured.n_id, measured.n_ood) == (len(METRICS[f"{case}_id"]), len(METRICS[f"{case}_ood"]))


@given(
    inside=st.lists(st.integers(0, 6), min_size=1, max_size=12),
    outside=st.lists(st.integers(0, 6), min_size=1, max_size=12),
)
@settings(max_examples=80, deadline=None)
def test_metrics_of_many_ties_agree_with_their_definitions(inside, outside):
    id_scores, ood_scores = np.array(inside, dtype=float), np.array(outside, dtype=float)

    pairs = np.mean([(o > i) + (o == i) / 2 for o in outside for i in inside])
    rates = [(np.mean(ood_scores >= threshold), np.mean(id_scores >= threshold)) for threshold in {*inside, *outside}]
    measured = measure_ood(id_scores, ood_scores)
    assert measured.auroc == pytest.approx(pairs)
    assert measured.fpr95 == min(false for true, false in rates if true >= 0.95)
    assert measure_ood(ood_scores, id_scores).auroc == pytest.approx(1 - pairs)
    shifted = measure_ood(id_scores * 3 + 1, ood_scores * 3 + 1)
    assert shifted == measured


def test_a_constant_score_is_worth_the_prevalence():
    measured = measure_ood(np.zeros(15), np.zeros(5))

    assert measured.aupr_out == 0.25
    assert measured.fpr95 == 1.0
    assert measured.auroc == 0.5


def test_intervals_are_as_wide_as_the_standard_error_of_the_area_says():
    generator = np.random.default_rng(0)
    inside, outside = generator.normal(size=200), generator.normal(loc=1.0, size=150)

    intervals = ood_intervals(inside, outside, np.random.default_rng(1), draws=400)

    area = intervals["auroc"]
    # Hanley & McNeil (1982), equation 2.
    a = area.value
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    error = math.sqrt((a * (1 - a) + 149 * (q1 - a * a) + 199 * (q2 - a * a)) / (200 * 150))
    assert a == measure_ood(inside, outside).auroc
    assert area.high - area.low == pytest.approx(2 * 1.96 * error, rel=0.25)
    assert all(interval.low <= interval.value <= interval.high for interval in intervals.values())
    assert area.n == 350


def test_an_empty_set_is_an_error():
    with pytest.raises(ValueError, match="no out-of-distribution images"):
        measure_ood(np.ones(3), np.ones(0))


def test_a_score_that_is_no_number_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="in-distribution score at position 1"):
        measure_ood(np.array([0.0, np.nan]), np.ones(2))


def test_ranks_agree_with_scipy():
    values = RANKS["acc_ece_nll"]

    np.testing.assert_array_equal(ranks(values, (True, False, False)), RANKS["ranks"])
    np.testing.assert_allclose(average_rank(values), RANKS["average_rank"], atol=1e-12)


def test_ties_share_the_mean_of_their_ranks():
    assert ranks(np.array([[0.9], [0.8], [0.9], [0.1]]), [True])[:, 0].tolist() == [1.5, 3, 1.5, 4]


def test_an_infinite_nll_is_last_and_nan_has_no_rank():
    assert ranks(np.array([[np.inf], [1.0], [2.0]]), [False])[:, 0].tolist() == [3, 1, 2]
    with pytest.raises(ValueError, match="row 1"):
        ranks(np.array([[0.0], [np.nan]]), [True])
