"""Images that look like nothing else in their pool."""

import numpy as np
import pytest
from factories import make_config

from alloop.engine.score_file import Scores
from alloop.errors import ModelError
from alloop.loop.choosing.pool_scores import PoolScores, find_suspects


def _scores(ood: list[float], **uncertainty: list[float]) -> Scores:
    n = len(ood)
    numbers = np.zeros(n, dtype=np.float32)
    return Scores(
        image_ids=np.arange(n, dtype=np.int64) + 100,
        sha256s=["" for _ in range(n)],
        predicted=["cat"] * n,
        entropy=numbers,
        confidence=numbers,
        uncertainty={"entropy": numbers} | {k: np.array(v, dtype=np.float32) for k, v in uncertainty.items()},
        ood=np.array(ood, dtype=np.float32),
        classes=("cat", "dog"),
        model_sha256="",
        temperature=1.0,
    )


def test_the_images_above_the_quantile_are_suspect():
    # 200 scores 0 ... 199: the 0.99 quantile is 197 (198 of 200 do not exceed it), and two lie above it.
    assert find_suspects(_scores([float(n) for n in range(200)]), 0.99) == {298, 299}


def test_a_pool_of_fewer_images_than_the_quantile_resolves_has_no_suspect():
    assert find_suspects(_scores([float(n) for n in range(99)]), 0.99) == frozenset()
    assert find_suspects(_scores([float(n) for n in range(99)]), 0.9) == set(range(190, 199))


@pytest.mark.parametrize("ood", [[1.0] * 200, []])
def test_without_a_score_that_stands_out_nothing_is_suspect(ood: list[float]):
    assert find_suspects(_scores(ood), 0.5) == frozenset()


def test_equal_highest_scores_are_suspect_together_or_not_at_all():
    assert find_suspects(_scores([0.0] * 90 + [1.0] * 10), 0.9) == set(range(190, 200))
    assert find_suspects(_scores([0.0] * 89 + [1.0] * 11), 0.9) == frozenset()


def test_scores_that_lack_the_strategy_are_refused_with_the_way_out():
    scores = PoolScores(_scores([0.0]), make_config().acquisition)

    with pytest.raises(ModelError, match="do not have margin") as caught:
        scores.values("margin", [100])

    assert "alloop score" in caught.value.hint
    known = PoolScores(_scores([0.0] * 3, margin=[3, 1, 2]), make_config().acquisition)
    assert known.values("margin", [102, 100]).tolist() == [2, 3]
