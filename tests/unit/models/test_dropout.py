"""MC dropout by hand: what is dropped, what is not, and what is refused."""

import pytest
import torch

from alloop.models.dropout import HeadDropout
from alloop.models.heads import MultiHead
from alloop.predictive import mutual_information
from alloop.seeds import derive_seed


def _heads(n_features: int = 6, n_heads: int = 1, n_classes: int = 3) -> MultiHead:
    heads = MultiHead(n_features, n_heads, n_classes, torch.Generator().manual_seed(0))
    heads.standardize_by(_features(20, n_features) + 5)
    return heads.eval().requires_grad_(requires_grad=False)


def _features(n: int, d: int = 6) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(n))


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_pass_is_the_heads_on_masked_features_by_hand():
    heads, features = _heads(), _features(5)
    dropout = HeadDropout(rate=0.5, passes=1)

    logits = dropout.logits(heads, features, generator=_generator(3))

    masks = dropout.masks(features, _generator(3))
    assert set(masks.unique().tolist()) == {0.0, 2.0}
    centered = (features - heads.center) / heads.scale * masks
    torch.testing.assert_close(logits[0], centered @ heads.weight[0].T + heads.bias[0])


def test_a_dropped_feature_counts_as_its_mean_not_as_zero():
    heads, features = _heads(), _features(4)
    nothing = torch.zeros_like(features)

    at_center = heads(HeadDropout._dropped(features, heads.center, nothing))

    torch.testing.assert_close(at_center, heads(heads.center.expand(4, -1)))


def test_the_mean_of_many_passes_is_the_plain_logit():
    heads, features = _heads(), _features(3)

    logits = HeadDropout(rate=0.25, passes=4000).logits(heads, features, generator=_generator())

    torch.testing.assert_close(logits.mean(0), heads(features)[0], atol=0.05, rtol=0)


def test_the_share_that_is_dropped_is_the_rate():
    masks = HeadDropout(rate=0.3).masks(torch.zeros(200, 200), _generator())

    assert (masks == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)


def test_with_a_generator_images_and_passes_have_masks_of_their_own():
    same = _features(1, 64).expand(2, -1)

    logits = HeadDropout(passes=2).logits(_heads(64), same, generator=_generator())

    assert not torch.equal(logits[0, 0], logits[0, 1])
    assert not torch.equal(logits[0, 0], logits[1, 0])


def test_with_a_seed_equal_images_agree_within_a_pass_and_passes_differ():
    same = _features(1).expand(2, -1)

    logits = HeadDropout(passes=3).logits(_heads(), same, seed=7)

    torch.testing.assert_close(logits[:, 0], logits[:, 1])
    assert not torch.equal(logits[0], logits[1])


def test_a_consistent_pass_is_the_heads_on_equally_masked_features():
    heads, features = _heads(n_heads=2), _features(5)
    dropout = HeadDropout(rate=0.5, passes=3)

    logits = dropout.logits(heads, features, seed=7).reshape(3, 2, 5, 3)

    for number in range(3):
        mask = dropout.masks(features[:1], _generator(derive_seed(7, "mc-dropout", number)))
        expected = heads(heads.center + mask * (features - heads.center))
        torch.testing.assert_close(logits[number], expected)


def test_a_pool_scored_in_chunks_shares_its_masks():
    heads, features = _heads(), _features(10)
    dropout = HeadDropout(passes=4)

    whole = dropout.logits(heads, features, seed=7)
    chunks = torch.cat([dropout.logits(heads, part, seed=7) for part in features.split(3)], dim=1)

    torch.testing.assert_close(chunks, whole)
    assert not torch.equal(dropout.logits(heads, features, seed=8), whole)


def test_more_passes_begin_with_the_same_ones():
    heads, features = _heads(), _features(4)

    torch.testing.assert_close(
        HeadDropout(passes=5).logits(heads, features, seed=1)[:3], HeadDropout(passes=3).logits(heads, features, seed=1)
    )


def test_members_are_passes_times_heads():
    logits = HeadDropout(passes=5).logits(_heads(n_heads=2), _features(4), seed=0)

    assert logits.shape == (10, 4, 3)
    assert mutual_information(logits.log_softmax(-1)).min() > 0


def test_empty_sets_and_single_images():
    dropout = HeadDropout(passes=2)

    assert dropout.logits(_heads(), _features(3)[:0], seed=0).shape == (2, 0, 3)
    assert dropout.logits(_heads(), _features(1), generator=_generator()).shape == (2, 1, 3)


def test_half_precision_features_are_widened():
    assert HeadDropout(passes=2).logits(_heads(), _features(3).half(), seed=0).dtype == torch.float32


def test_training_uses_the_generator_and_has_gradients():
    heads = _heads(n_heads=2).requires_grad_()
    features = _features(4)

    logits = HeadDropout().train_step(heads, features, _generator(2))
    logits.sum().backward()

    torch.testing.assert_close(logits, HeadDropout().train_step(heads, features, _generator(2)))
    assert heads.weight.grad.abs().sum() > 0


def test_rate_zero_is_refused_unless_it_is_wanted():
    with pytest.raises(ValueError, match="repeats one prediction"):
        HeadDropout(rate=0)

    heads, features = _heads(), _features(3)
    logits = HeadDropout(rate=0, passes=2, allow_zero=True).logits(heads, features, seed=0)

    torch.testing.assert_close(logits, heads(features).expand(2, -1, -1))


@pytest.mark.parametrize("wrong", [{"rate": 1.0}, {"rate": -0.1}, {"passes": 0}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="need a rate"):
        HeadDropout(**wrong)


def test_a_seed_or_a_generator_but_not_both_and_not_neither():
    with pytest.raises(ValueError, match="either"):
        HeadDropout().logits(_heads(), _features(2))
    with pytest.raises(ValueError, match="either"):
        HeadDropout().logits(_heads(), _features(2), seed=0, generator=_generator())
