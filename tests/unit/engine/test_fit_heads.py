"""Heads are solved to the minimum that PyTorch's L-BFGS finds, alone or as folds of one set of features."""

import pytest
import torch
from torch import Tensor

from alloop.composition import LOSSES
from alloop.engine.build import HeadRecipe
from alloop.engine.fit_heads import HeadFits, choose_solver_device, fit_heads
from alloop.engine.objective import Objective, balanced_weights
from alloop.losses.multi_head import class_weights, multi_head_loss
from alloop.losses.named import find_loss
from alloop.models.heads import MultiHead

K = 3
SMOOTH = [name for name, rule in LOSSES.items() if rule.is_smooth]
RECIPE = HeadRecipe(steps=200, weight_decay=1e-3, prior=3.0, loss_scale="mean")


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _data(n: int, n_features: int) -> tuple[Tensor, Tensor]:
    """Return features whose variance falls from one to the next, as those of a trunk, and labels of unequal classes."""
    targets = torch.arange(n) % 7 % K
    spread = torch.arange(1, n_features + 1) ** -0.7
    centers = torch.randn(K, n_features, generator=_generator(1))
    return 3 + spread * (torch.randn(n, n_features, generator=_generator(2)) + 0.7 * centers[targets]), targets


def _objective(
    name: str = "cross-entropy", n_heads: int = 1, targets: Tensor | None = None, scale: str = "mean"
) -> Objective:
    """Return a loss whose heads have weights of their own, with weights against imbalance if there are targets."""
    omega = class_weights([[0, 2], [1], [1, 2], [0]][:n_heads], K) if n_heads > 1 else None
    return Objective(find_loss(name), omega, None if targets is None else balanced_weights(targets, K), scale)


def _value(heads: MultiHead, features: Tensor, targets: Tensor, objective: Objective, recipe: HeadRecipe) -> Tensor:
    """Return what heads are to minimize, as docs/methods.md writes it, in the precision of the heads."""
    objective = Objective(
        objective.loss,
        objective.head_weights,
        None if objective.class_weights is None else objective.class_weights.to(heads.weight.dtype),
        objective.loss_scale,
    )
    even = torch.full((1, K), 1 / K, dtype=heads.weight.dtype)
    prior = multi_head_loss(heads.bias.unsqueeze(1), even, objective.head_weights, loss_scale=objective.loss_scale)
    decay = 0.5 * recipe.weight_decay * heads.weight.square().sum() / heads.n_heads
    return objective(heads(features), targets) + decay + recipe.prior / len(features) * prior


def _reference(features: Tensor, targets: Tensor, n_heads: int, objective: Objective, recipe: HeadRecipe) -> MultiHead:
    """Fit heads with PyTorch's L-BFGS, float32, in all dimensions of the features."""
    heads = MultiHead(features.shape[1], n_heads, K, _generator(5))
    heads.standardize_by(features)
    optimizer = torch.optim.LBFGS(
        heads.parameters(), max_iter=recipe.steps, tolerance_grad=1e-6, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = _value(heads, features, targets, objective, recipe)
        value.backward()
        return value

    optimizer.step(closure)
    return heads.requires_grad_(requires_grad=False)


def _exact(heads: MultiHead, features: Tensor, targets: Tensor, objective: Objective, recipe: HeadRecipe) -> float:
    wide = MultiHead(heads.weight.shape[2], heads.n_heads, K).double()
    wide.load_state_dict(heads.state_dict())
    return _value(wide, features.double(), targets, objective, recipe).item()


@pytest.mark.parametrize(("n", "n_features"), [(40, 90), (150, 20)])
@pytest.mark.parametrize(("n_heads", "is_balanced"), [(1, True), (2, False), (4, True)])
@pytest.mark.parametrize("name", SMOOTH)
def test_the_loss_is_at_most_that_of_pytorchs_solver(name, n_heads, is_balanced, n, n_features):
    features, targets = _data(n, n_features)
    objective = _objective(name, n_heads, targets if is_balanced else None)

    ours, record = fit_heads(features, targets, K, n_heads, objective, RECIPE, _generator(5))
    theirs = _reference(features, targets, n_heads, objective, RECIPE)

    found, wanted = (_exact(heads, features, targets, objective, RECIPE) for heads in (ours, theirs))
    assert found <= wanted * (1 + 1e-6)
    assert record["loss_after"] == pytest.approx(found, rel=1e-6)
    torch.testing.assert_close(ours.center, theirs.center)
    torch.testing.assert_close(ours.scale, theirs.scale)


@pytest.mark.parametrize("scale", ["mean", "sum"])
@pytest.mark.parametrize("decay", [1e-5, 1.0])
def test_so_it_is_with_little_and_with_much_decay(scale, decay):
    features, targets = _data(60, 12)
    recipe = HeadRecipe(steps=200, weight_decay=decay, prior=3.0, loss_scale=scale)
    objective = _objective(n_heads=4, scale=scale)

    ours, _ = fit_heads(features, targets, K, 4, objective, recipe, _generator(5))

    theirs = _reference(features, targets, 4, objective, recipe)
    found, wanted = (_exact(heads, features, targets, objective, recipe) for heads in (ours, theirs))
    assert found <= wanted * (1 + 1e-6)


def test_fewer_images_than_features_give_the_same_predictions_for_other_images():
    features, targets = _data(20, 60)
    unseen = _data(50, 60)[0]
    objective, recipe = _objective(n_heads=2), HeadRecipe(steps=500, weight_decay=1e-2, prior=3.0, loss_scale="mean")

    ours = fit_heads(features, targets, K, 2, objective, recipe, _generator(5))[0](unseen)

    torch.testing.assert_close(ours, _reference(features, targets, 2, objective, recipe)(unseen), atol=2e-3, rtol=0)


def test_soft_targets_are_learned():
    features, targets = _data(60, 12)
    soft = torch.nn.functional.one_hot(targets, K) * 0.7 + 0.1

    heads, _ = fit_heads(features, soft, K, 1, _objective(), RECIPE, _generator(5))

    theirs = _reference(features, soft, 1, _objective(), RECIPE)
    found, wanted = (_exact(one, features, soft, _objective(), RECIPE) for one in (heads, theirs))
    assert found <= wanted * (1 + 1e-6)


@pytest.mark.parametrize(("n", "n_features"), [(60, 100), (150, 20)])
@pytest.mark.parametrize("n_heads", [1, 4])
def test_a_fold_has_the_same_heads_alone_and_started_from_those_that_saw_its_images(n_heads, n, n_features):
    features, targets = _data(n, n_features)
    rest, fold = torch.arange(n)[torch.arange(n) % 5 != 0], torch.arange(0, n, 5)
    objective, fits = _objective(n_heads=n_heads), HeadFits(features, targets, K)
    whole, _ = fits.fit(n_heads, objective, RECIPE, _generator(5))

    alone, slow = fit_heads(features[rest], targets[rest], K, n_heads, objective, RECIPE, _generator(5))
    started, quick = fits.fit(n_heads, objective, RECIPE, _generator(5), rest, whole)

    assert quick["evaluations"] < slow["evaluations"]
    assert quick["loss_after"] == pytest.approx(slow["loss_after"], rel=1e-6)
    unseen = [heads(features[fold]).softmax(dim=2) for heads in (started, alone, whole)]
    torch.testing.assert_close(unseen[0], unseen[1], atol=2e-4, rtol=0)
    assert (unseen[0] - unseen[2]).abs().max() > 0.05  # the held-out labels would show


def test_a_fit_does_not_depend_on_the_fits_before_it_or_on_the_number_of_cores():
    features, targets = _data(150, 20)
    part, objective = torch.arange(0, 150, 2), _objective(n_heads=4)
    used, fresh = HeadFits(features, targets, K), HeadFits(features, targets, K)
    used.fit(4, objective, RECIPE, _generator(5))
    threads = torch.get_num_threads()

    first = used.fit(4, objective, RECIPE, _generator(6), part)[0]
    try:
        torch.set_num_threads(threads + 1)
        second = fresh.fit(4, objective, RECIPE, _generator(6), part)[0]
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)

    assert all(torch.equal(first.state_dict()[name], tensor) for name, tensor in second.state_dict().items())


def test_features_that_are_all_equal_predict_the_share_of_each_class():
    targets = torch.tensor([0, 0, 0, 1])

    heads, _ = fit_heads(
        torch.ones(4, 6), targets, 2, 1, Objective(find_loss(), None, None, "mean"), RECIPE, _generator()
    )

    # Three imaginary images count half for each class: (3 + 1.5) / 7.
    torch.testing.assert_close(
        heads(torch.ones(1, 6)).softmax(dim=2)[0, 0, 0], torch.tensor(4.5 / 7), atol=1e-4, rtol=0
    )


def test_the_number_of_steps_is_limited():
    features, targets = _data(150, 20)
    recipe = HeadRecipe(steps=2, weight_decay=1e-3, prior=3.0, loss_scale="mean")

    few, many = (fit_heads(features, targets, K, 1, _objective(), r, _generator(5))[1] for r in (recipe, RECIPE))

    assert few["evaluations"] < many["evaluations"]
    assert few["loss_before"] > few["loss_after"] > many["loss_after"]


def test_small_problems_stay_on_the_cpu_and_large_ones_go_to_a_card():
    card = torch.device("cuda", 0)

    assert choose_solver_device(torch.empty(500, 1280), card).type == "cpu"
    assert choose_solver_device(torch.empty(5000, 1280), card) == card
    assert choose_solver_device(torch.empty(5000, 1280), torch.device("mps")).type == "cpu"
