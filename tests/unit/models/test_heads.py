"""Heads on one trunk: shapes, precision, independence and standardization."""

import pytest
import torch

from alloop.models.heads import MultiHead


def _heads(seed: int = 0) -> MultiHead:
    return MultiHead(5, 3, 4, torch.Generator().manual_seed(seed))


def test_features_become_logits_of_every_head():
    heads = _heads()

    assert heads(torch.zeros(2, 5)).shape == (3, 2, 4)
    assert (heads.n_heads, heads.n_classes) == (3, 4)


def test_every_head_is_a_linear_layer_on_standardized_features():
    heads = _heads()
    heads.center.fill_(2.0)
    heads.scale.fill_(4.0)
    features = torch.arange(10.0).reshape(2, 5)

    logits = heads(features)

    for head in range(3):
        expected = torch.nn.functional.linear((features - 2) / 4, heads.weight[head], heads.bias[head])
        torch.testing.assert_close(logits[head], expected)


def test_heads_start_different_from_each_other_and_equal_for_equal_seeds():
    heads = _heads()

    assert not torch.equal(heads.weight[0], heads.weight[1])
    assert torch.equal(heads.weight, _heads().weight)
    assert not torch.equal(heads.weight, _heads(seed=1).weight)


def test_heads_compute_in_float32_also_under_autocast():
    heads, features = _heads(), torch.arange(10.0).reshape(2, 5) * 0.123456

    with torch.autocast("cpu", torch.bfloat16):
        logits = heads(features)

    assert torch.equal(logits, heads(features))


def test_standardized_features_are_centered_and_of_mean_squared_norm_one():
    features = torch.randn(50, 5, generator=torch.Generator().manual_seed(0)) * 7 + 3
    heads = _heads()

    heads.standardize_by(features)

    standard = (features - heads.center) / heads.scale
    torch.testing.assert_close(standard.mean(0), torch.zeros(5), atol=1e-6, rtol=0)
    assert standard.square().sum(1).mean().item() == pytest.approx(1, rel=1e-5)


def test_features_that_are_all_equal_are_only_centered():
    heads = _heads()

    heads.standardize_by(torch.full((4, 5), 3.0))

    assert heads.scale.item() == 1
    assert torch.isfinite(heads(torch.ones(1, 5))).all()
