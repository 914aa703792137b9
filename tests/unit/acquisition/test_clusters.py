"""k-means, and the strategies that ask one image of each cluster."""

import collections
import dataclasses

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from alloop.acquisition import cluster_margin as cluster_margin_module
from alloop.acquisition import clusters
from alloop.acquisition import typiclust as typiclust_module
from alloop.acquisition.cluster_margin import cluster_margin
from alloop.acquisition.clusters import k_means, main_directions
from alloop.acquisition.dropquery import dropquery
from alloop.acquisition.strategy import Candidates
from alloop.acquisition.typiclust import typiclust


def _angles(*degrees: float) -> torch.Tensor:
    radians = torch.tensor(degrees).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def _keys(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.uint64)


def _blobs(n_blobs=6, size=40, n_features=10, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.eye(n_features)[:n_blobs].repeat_interleave(size, dim=0)
    return centers + 0.05 * torch.randn(n_blobs * size, n_features, generator=generator)


def test_k_means_is_about_as_good_as_scikit_learns():
    rows = torch.randn(800, 5, generator=torch.Generator().manual_seed(0))

    centers, labels = k_means(rows, 20, 0)

    inertia = float((rows - centers[labels]).square().sum())
    assert inertia < 1.05 * KMeans(20, n_init=1, random_state=0).fit(rows.numpy()).inertia_


def test_copies_leave_clusters_empty():
    centers, labels = k_means(torch.eye(3).repeat(10, 1), 8, 0)

    assert centers.shape == (8, 3)
    assert len(labels.unique()) == 3
    assert torch.equal(labels[:3].repeat(10), labels)


def test_centers_fitted_to_a_sample_serve_all(monkeypatch):
    monkeypatch.setattr(clusters, "FITTED", 60)
    rows = _blobs()

    labels = k_means(rows, 6, 1)[1]

    assert all(len(part.unique()) == 1 for part in labels.view(6, 40))


def test_main_directions_keep_distances_that_matter():
    rows = torch.zeros(300, 200)
    rows[:, 40:50] = torch.randn(300, 10, generator=torch.Generator().manual_seed(0))

    directions = main_directions(rows, 0)

    assert directions.shape == (200, 64)
    torch.testing.assert_close(directions.T @ directions, torch.eye(64), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        torch.cdist(rows @ directions, rows @ directions), torch.cdist(rows, rows), atol=0.01, rtol=0
    )


def test_typiclust_asks_one_of_each_group_and_those_without_labels_first():
    features = _blobs()
    candidates = Candidates(_keys(240), features=features, labeled=torch.eye(10)[:2])

    # 2 labeled + 4: six clusters, the first two of which have a label
    picked = typiclust(candidates, 4, 0).positions

    assert sorted((picked // 40).tolist()) == [2, 3, 4, 5]


def test_typiclust_asks_again_when_all_clusters_had_their_turn(monkeypatch):
    monkeypatch.setattr(typiclust_module, "MOST_CLUSTERS", 6)

    picked = typiclust(Candidates(_keys(240), features=_blobs()), 13, 0).positions

    assert sorted(collections.Counter((picked // 40).tolist()).values()) == [2, 2, 2, 2, 2, 3]
    assert sorted((picked[:6] // 40).tolist()) == list(range(6))


def test_typiclust_passes_over_the_neighbors_of_what_was_picked(monkeypatch):
    # One cluster of a dense and a thin half; the dense half has the most typical ones.
    monkeypatch.setattr(typiclust_module, "MOST_CLUSTERS", 1)
    monkeypatch.setattr(typiclust_module, "NEIGHBORS", 5)
    degrees = [*np.linspace(0, 1.2, 6), *np.linspace(40, 80, 6)]

    picked = typiclust(Candidates(_keys(12), features=_angles(*degrees)), 2, 0).positions

    assert (picked[0] < 6, picked[1] < 6) == (True, False)


def test_typicality_is_one_over_the_mean_distance_to_the_neighbors():
    choice = typiclust(Candidates(_keys(5), features=_angles(0, 10, 30, 60, 100)), 1, 0)

    # chords of 10 and 20 degrees
    assert choice.scores == pytest.approx([1 / ((0.17431 + 0.34730) / 2 + 1e-5)], rel=1e-3)


def test_small_clusters_and_copies_come_last():
    lonely = torch.eye(10)[9:]
    features = torch.cat([lonely, lonely, _blobs(2)])  # 0 and 1 are copies

    choice = typiclust(Candidates(_keys(82), features=features), 82, 0)
    few = typiclust(Candidates(_keys(82), features=features), 3, 0)

    assert choice.positions[-1] == 1
    assert choice.scores[-1] == 0
    assert 0 not in few.positions[:2] and 1 not in few.positions


@pytest.mark.parametrize("compared", [30, 2048])
def test_neighbors_looked_for_in_a_sample_are_no_less_typical(monkeypatch, compared):
    monkeypatch.setattr(typiclust_module, "COMPARED", compared)
    generator = torch.Generator().manual_seed(0)
    features = torch.eye(10)[0] + 0.3 * torch.randn(100, 10, generator=generator)
    features[70] = torch.eye(10)[0]

    picked = typiclust(Candidates(_keys(100), features=features), 1, 0).positions

    z = torch.nn.functional.normalize(features)
    distances = torch.cdist(z, z[picked]).flatten()
    assert distances.median() <= torch.cdist(z, z).median(dim=1).values.quantile(0.2)


def test_cluster_margin_by_hand(monkeypatch):
    # The four smallest margins are those of 1, 4, 2 and 3; 3 stands alone, and smaller clusters come first.
    monkeypatch.setattr(cluster_margin_module, "CONSIDERED", 2)
    monkeypatch.setattr(cluster_margin_module, "IN_A_CLUSTER", 2)
    probs = torch.tensor([[0.9, 0.05, 0.05], [0.5, 0.5, 0.0], [0.4, 0.3, 0.3], [0.7, 0.2, 0.1], [0.45, 0.4, 0.15]])
    candidates = Candidates(_keys(5), calibrated_log_probs=probs.log(), features=_angles(0, 0, 10, 90, 5))

    batches = [cluster_margin(candidates, 2, seed) for seed in range(30)]

    assert {int(batch.positions[0]) for batch in batches} == {3}
    assert {int(batch.positions[1]) for batch in batches} == {1, 2, 4}
    assert batches[0].scores[0] == pytest.approx(-0.5)


def test_cluster_margin_takes_only_small_margins_from_many_clusters():
    n = 2000
    features = _blobs(10, 200)
    gaps = torch.linspace(0, 1, n)[torch.randperm(n, generator=torch.Generator().manual_seed(1))]
    log_probs = torch.stack([(1 + gaps) / 2, (1 - gaps) / 2], dim=1).log()

    picked = cluster_margin(Candidates(_keys(n), calibrated_log_probs=log_probs, features=features), 20, 0).positions

    assert gaps[torch.from_numpy(picked)].max() <= gaps.sort().values[199]
    assert len(set((picked // 200).tolist())) >= 8


def test_images_alone_in_their_cluster_fill_half_of_a_batch_at_most():
    # 30 images in all directions, 50 about one.
    features = torch.cat([torch.eye(40)[:30], torch.eye(40)[39] + 0.01 * torch.randn(170, 40)])
    log_probs = torch.full((200, 2), 0.5).log()

    picked = cluster_margin(Candidates(_keys(200), calibrated_log_probs=log_probs, features=features), 20, 0).positions

    assert (picked >= 30).sum() >= 10 - 1


def _with_head(n: int, flipping: list[int], features: torch.Tensor) -> Candidates:
    """Images whose predicted class the head denies, whatever is dropped."""
    probs = torch.tensor([0.1, 0.9]).repeat(n, 1)
    probs[flipping] = torch.tensor([0.9, 0.1])
    return Candidates(
        _keys(n),
        calibrated_log_probs=probs.log(),
        features=features,
        head=lambda rows: torch.tensor([[0.2, 0.8]]).log().expand(len(rows), -1),
    )


def test_dropquery_takes_one_of_each_cluster_of_those_that_flip():
    flipping = [*range(30), *range(80, 110), *range(200, 230)]

    choice = dropquery(_with_head(240, flipping, _blobs()), 3, 0)

    assert sorted((choice.positions // 40).tolist()) == [0, 2, 5]
    assert set(choice.positions.tolist()) <= set(flipping)
    assert choice.scores.tolist() == [3, 3, 3]


def test_dropquery_draws_the_rest_where_too_few_flip():
    candidates = _with_head(240, [7, 100], _blobs())

    batches = [dropquery(candidates, 4, seed) for seed in range(5)]

    assert all(batch.positions[:2].tolist() == [7, 100] for batch in batches)
    assert all(batch.scores.tolist() == [3, 3, 0, 0] for batch in batches)
    assert len({tuple(batch.positions.tolist()) for batch in batches}) > 1


def test_dropquery_fills_empty_clusters_with_others_that_flip():
    candidates = _with_head(50, list(range(20)), torch.eye(2).repeat(25, 1))

    picked = dropquery(candidates, 6, 0).positions

    assert set(picked.tolist()) <= set(range(20))


def test_dropquery_drops_three_quarters_of_the_features():
    seen = []

    def head(rows):
        seen.append(rows)
        return torch.zeros(len(rows), 2)

    candidates = dataclasses.replace(_with_head(200, [], torch.ones(200, 100)), head=head)
    dropquery(candidates, 2, 0)

    dropped = torch.stack(seen)
    assert dropped.shape == (3, 200, 100)
    assert set(dropped.unique().tolist()) == {0.0, 4.0}
    assert (dropped > 0).float().mean().item() == pytest.approx(0.25, abs=0.005)
    assert not torch.equal(dropped[0], dropped[1])
