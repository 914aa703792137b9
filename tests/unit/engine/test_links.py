"""Links that are kept give the same bytes as links that are found, are found once, and belong to one graph only."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch

from alloop.engine.links import kept_links, link_images
from alloop.engine.score import run_score
from alloop.engine.score_file import read_log_probs
from alloop.engine.train import run_train
from alloop.errors import WorkspaceError
from alloop.pool.cache import FeatureCache
from alloop.smoothing.smoothing import Smoothing, fit_smoothing

KEYS = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(700)]
X = torch.from_numpy(np.random.default_rng(0).normal(size=(700, 12)).astype(np.float32))


@pytest.fixture
def features(tmp_path):
    cache = FeatureCache(tmp_path / "features", {}, X.shape[1])
    cache.add(KEYS, X.numpy())
    return cache


@pytest.fixture(scope="module")
def graph():
    return fit_smoothing(KEYS[:60], X[:60])


@pytest.fixture
def searched(monkeypatch):
    """Return the numbers of images whose nearest nodes were searched, one for each search."""
    found: list[int] = []
    real = Smoothing.link
    monkeypatch.setattr(Smoothing, "link", lambda self, rows: found.append(len(rows)) or real(self, rows))
    return found


def test_kept_links_give_the_same_bytes_and_are_found_once(graph, features, tmp_path, searched):
    fresh = graph.transform(KEYS, X)

    for _ in range(2):
        transform = link_images(graph, KEYS, features, tmp_path)
        assert torch.equal(transform(KEYS, X), fresh)
        assert torch.equal(transform(KEYS[::-3], X.flip(0)[::3]), fresh.flip(0)[::3])
    assert searched == [640]

    more = [*KEYS, "f" * 64]
    features.add(more[-1:], X[:1].numpy())
    link_images(graph, more, features, tmp_path)
    assert searched == [640, 1]


def test_kept_links_spare_the_search(graph, features, tmp_path, monkeypatch):
    transform = link_images(graph, KEYS, features, tmp_path)
    monkeypatch.setattr("alloop.smoothing.smoothing.nearest", None)

    assert transform(KEYS[50:400], X[50:400]).isfinite().all()


def test_links_that_are_kept_are_used_and_others_are_found_without_writing(graph, features, tmp_path, searched):
    fresh = graph.transform(KEYS, X)
    assert torch.equal(kept_links(graph, tmp_path)(KEYS, X), fresh)
    assert searched == [640]
    assert not (tmp_path / "pool_features").exists()

    link_images(graph, KEYS[::2], features, tmp_path)
    before = sorted(tmp_path.rglob("*"))

    assert torch.equal(kept_links(graph, tmp_path)(KEYS, X), fresh)
    assert searched == [640, 320, 320]
    assert sorted(tmp_path.rglob("*")) == before


def test_images_of_the_graph_need_no_links(graph, features, tmp_path, searched):
    transform = link_images(graph, KEYS[:60], features, tmp_path)

    assert torch.equal(transform(KEYS[:60], X[:60]), graph.rows[graph.positions(KEYS[:60])])
    assert searched == []
    assert not (tmp_path / "pool_features").exists()


def test_another_graph_has_links_of_its_own(graph, features, tmp_path, searched):
    link_images(graph, KEYS, features, tmp_path)
    moved = dataclasses.replace(graph, widths=2 * graph.widths)  # the same nodes, as after a change of the arithmetic

    again = link_images(moved, KEYS, features, tmp_path)(KEYS, X)

    assert searched == [640, 640]
    assert torch.equal(again, moved.transform(KEYS, X))
    assert not torch.equal(again, graph.transform(KEYS, X))


def test_links_to_the_newest_two_graphs_are_kept(graph, features, tmp_path, searched):
    for factor in (1.0, 2.0, 3.0, 3.0, 2.0, 1.0):
        link_images(dataclasses.replace(graph, widths=factor * graph.widths), KEYS, features, tmp_path)
        assert len(list((tmp_path / "pool_features" / "links").iterdir())) <= 2
    assert searched == [640] * 4


def test_damaged_links_are_found_again(graph, features, tmp_path, searched):
    link_images(graph, KEYS, features, tmp_path)
    shard = next((tmp_path / "pool_features" / "links").rglob("*.npy"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)

    assert torch.equal(link_images(graph, KEYS, features, tmp_path)(KEYS, X), graph.transform(KEYS, X))
    assert searched == [640, 640]


def test_a_cache_that_cannot_be_written_places_images_anew(graph, features, tmp_path, monkeypatch, caplog):
    def full(*_: object) -> None:
        raise WorkspaceError("the disk is full")

    monkeypatch.setattr(FeatureCache, "add", full)

    assert torch.equal(link_images(graph, KEYS, features, tmp_path)(KEYS, X), graph.transform(KEYS, X))
    assert "not kept: the disk is full" in caplog.text


def test_progress_counts_the_images_to_link(graph, features, tmp_path, heard, monkeypatch):
    monkeypatch.setattr("alloop.engine.links.AT_ONCE", 400)
    said, listen = heard

    link_images(graph, KEYS, features, tmp_path, listen)

    assert said == [("similar images", 400, 640), ("similar images", 640, 640)]


def test_training_and_scoring_share_links(toys, searched):
    job = toys.train_job(pool=toys.images[:40], images=toys.images[:15], holdout=toys.images[60:75])
    job = dataclasses.replace(job, holdout_targets=toys.targets[60:75])
    first, again = run_train(job), run_train(job)
    assert searched == [15]

    path = run_score(toys.score_job(again.files, images=toys.images[20:])).path
    kept = torch.cat([rows for _, rows in read_log_probs(path)])

    assert searched == [15, 35]  # 40 to 59 and 75 to 89
    assert (first.holdout_pooled_log_probs == again.holdout_pooled_log_probs).all()
    for shard in (toys.root / "cache" / "pool_features" / "links").rglob("*.npy"):
        shard.unlink()
    path = run_score(toys.score_job(again.files, images=toys.images[20:])).path
    assert torch.equal(kept, torch.cat([rows for _, rows in read_log_probs(path)]))
