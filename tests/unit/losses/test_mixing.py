"""MixUp and CutMix by hand, against torchvision's on equal draws, and by their properties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from alloop.losses.cross_entropy import cross_entropy
from alloop.losses.mixing import Mixing, as_soft, blend, cutmix, draw_share, mix, mixup, paste, rectangle

NEIGHBOR = torch.tensor([3, 0, 1, 2])  # torchvision pairs like roll(1)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(n: int = 4, size: tuple[int, int] = (6, 10), seed: int = 1) -> torch.Tensor:
    return torch.randn(n, 3, *size, generator=_generator(seed))


def test_mixup_by_hand():
    inputs = torch.tensor([[0.0], [10.0]])
    targets = as_soft(torch.tensor([0, 1]), 3)
    seed = next(s for s in range(99) if torch.randperm(2, generator=_generator(s)).tolist() == [1, 0])

    mixed, rows = mixup(inputs, targets, 0.75, _generator(seed))

    assert mixed.tolist() == [[2.5], [7.5]]
    assert rows.tolist() == [[0.75, 0.25, 0], [0.25, 0.75, 0]]


def test_blending_is_torchvisions():
    images, labels = _images(), torch.tensor([0, 1, 2, 0])
    theirs = v2.MixUp(num_classes=3)
    params = {"lam": 0.3, "labels": labels, "batch_size": 4}

    torch.testing.assert_close(blend(images, NEIGHBOR, 0.3), theirs.transform(images, params))
    torch.testing.assert_close(blend(as_soft(labels, 3), NEIGHBOR, 0.3), theirs.transform(labels, params))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_rectangles_and_their_area_are_torchvisions(seed):
    images, labels = _images(), torch.tensor([0, 1, 2, 0])
    theirs = v2.CutMix(num_classes=3)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        params = theirs.make_params([images]) | {"labels": labels, "batch_size": 4}
        torch.manual_seed(seed)  # the same draws once more
        share = float(theirs._dist.sample(()))
        column, row = int(torch.randint(10, (1,))), int(torch.randint(6, (1,)))

    box = rectangle(6, 10, share, row, column)

    left, top, right, bottom = params["box"]
    assert box == (top, bottom, left, right)
    torch.testing.assert_close(paste(images, NEIGHBOR, box), theirs.transform(images, params))


@given(seed=st.integers(0, 10_000), share=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_targets_of_cutmix_are_the_share_of_pixels_that_stayed(seed, share):
    constant = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 7, 9)

    mixed, rows = cutmix(constant, torch.eye(4), share, _generator(seed))

    for image, row in zip(mixed, rows, strict=True):
        shares = torch.stack([(image[0] == value).float().mean() for value in range(4)])
        torch.testing.assert_close(shares, row)


@pytest.mark.parametrize("function", [mixup, cutmix])
def test_a_share_of_one_is_the_batch_itself_and_of_zero_its_partners(function):
    images, targets = _images(), torch.eye(4)
    images[0, 0, 0, 0] = torch.inf  # 0 * inf would be nan
    partners = torch.randperm(4, generator=_generator(5))

    same, same_rows = function(images, targets, 1.0, _generator(5))
    other, other_rows = function(images, targets, 0.0, _generator(5))

    assert torch.equal(same, images)
    assert torch.equal(same_rows, targets)
    assert torch.equal(other, images[partners])
    assert torch.equal(other_rows, targets[partners])


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "either"])
def test_nothing_changes_in_place(kind):
    images, targets = _images(), torch.tensor([0, 1, 2, 0])
    before = images.clone()

    for seed in range(10):
        mix(images, targets, 3, Mixing(kind), _generator(seed))

    assert torch.equal(images, before)
    assert targets.tolist() == [0, 1, 2, 0]


@given(seed=st.integers(0, 1000), kind=st.sampled_from(["mixup", "cutmix", "either"]))
@settings(max_examples=40, deadline=None)
def test_soft_targets_still_sum_to_one_and_keep_the_batchs_classes(seed, kind):
    labels = torch.tensor([0, 1, 2, 0])

    _, rows = mix(_images(), labels, 5, Mixing(kind), _generator(seed))

    torch.testing.assert_close(rows.sum(dim=1), torch.ones(4))
    assert (rows[:, 3:] == 0).all()
    assert (rows.gather(1, labels.unsqueeze(1)) >= 0).all()


def test_features_can_be_mixed_but_not_cut():
    features = torch.randn(4, 8, generator=_generator())

    mixed, _ = mix(features, torch.tensor([0, 1, 0, 1]), 2, Mixing("mixup"), _generator(1))

    assert mixed.shape == features.shape
    with pytest.raises(ValueError, match="images"):
        mix(features, torch.tensor([0, 1, 0, 1]), 2, Mixing("cutmix"), _generator())


def test_the_same_generator_gives_the_same_batch_and_the_process_wide_stream_stays():
    torch.manual_seed(0)
    state = torch.get_rng_state()

    first = mix(_images(), torch.tensor([0, 1, 2, 0]), 3, Mixing("either"), _generator(4))
    second = mix(_images(), torch.tensor([0, 1, 2, 0]), 3, Mixing("either"), _generator(4))

    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_of_one_is_left_alone():
    image = _images(1)

    mixed, rows = mix(image, torch.tensor([1]), 3, Mixing("mixup"), _generator())

    assert mixed is image
    assert rows.tolist() == [[0, 1, 0]]


def test_either_chooses_cutmix_as_often_as_asked():
    constant = torch.arange(2.0).reshape(2, 1, 1, 1).expand(2, 1, 8, 8)
    generator = _generator()
    n_cut = n_mixed = 0
    for _ in range(800):
        mixed, _ = mix(constant, torch.tensor([0, 1]), 2, Mixing("either", mixup_alpha=1, cutmix_share=0.25), generator)
        if not torch.equal(mixed, constant):
            cut = bool(((mixed == 0) | (mixed == 1)).all())
            n_cut, n_mixed = n_cut + cut, n_mixed + 1

    assert 0.2 < n_cut / n_mixed < 0.3


def test_probability_says_how_many_batches_are_mixed():
    generator = _generator()
    images = _images(8)
    n = sum(
        mix(images, torch.arange(8), 8, Mixing("mixup", probability=0.3), generator)[0] is not images
        for _ in range(1000)
    )

    assert 250 < n < 350


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_have_the_mean_and_variance_of_the_beta_distribution(alpha):
    generator = _generator()
    shares = torch.tensor([draw_share(alpha, generator) for _ in range(2500)], dtype=torch.float64)

    variance = 1 / (4 * (2 * alpha + 1))
    assert shares.min() >= 0
    assert shares.max() <= 1
    assert shares.mean().item() == pytest.approx(0.5, abs=0.03)
    assert shares.var().item() == pytest.approx(variance, rel=0.09)


def test_a_tiny_alpha_neither_underflows_nor_mixes():
    shares = [draw_share(1e-3, _generator(seed)) for seed in range(50)]

    assert sum(0.01 < share < 0.99 for share in shares) <= 2  # one in 200 is expected


def test_cross_entropy_of_mixed_targets_is_the_mix_of_cross_entropies_with_weights_too():
    log_probs = torch.randn(4, 3, generator=_generator()).log_softmax(-1)
    labels, weights = torch.tensor([0, 1, 2, 0]), torch.tensor([1.0, 2.0, 5.0])

    mixed = cross_entropy(log_probs, blend(as_soft(labels, 3), NEIGHBOR, 0.7), weights)

    parts = 0.7 * cross_entropy(log_probs, labels, weights) + 0.3 * cross_entropy(log_probs, labels[NEIGHBOR], weights)
    torch.testing.assert_close(mixed, parts)


def test_half_precision_inputs_stay_half_and_targets_do_not():
    mixed, rows = mix(_images().half(), torch.tensor([0, 1, 2, 0]), 3, Mixing("mixup"), _generator(1))

    assert mixed.dtype == torch.float16
    assert rows.dtype == torch.float32


def test_bytes_are_refused():
    with pytest.raises(ValueError, match="normalization"):
        mixup(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.eye(2), 0.5, _generator())


@pytest.mark.parametrize("wrong", [{"mixup_alpha": 0.0}, {"cutmix_alpha": -1.0}, {"probability": 1.5}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError):
        Mixing("mixup", **wrong)
