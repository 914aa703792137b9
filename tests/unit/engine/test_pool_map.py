"""The map of a pool, on features that are given."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import fake_sha256

from alloop.engine import pool_map
from alloop.engine.feature_source import FeatureSource
from alloop.engine.pool_map import MapJob, choose, map_path, read_map
from alloop.engine.trunk_file import TrunkWriter
from alloop.errors import ModelError
from alloop.pool.cache import FeatureCache
from alloop.records import ImageRef

FINGERPRINT = {"trunk": "given", "n_features": 6}


def make_job(folder: Path, n: int, n_known: int) -> MapJob:
    """Return the job for a pool of n images, of which the first ones have features."""
    images = tuple(ImageRef(number, fake_sha256(number), f"/pool/{number}.png") for number in range(n))
    source = FeatureSource(folder, FINGERPRINT)
    cache = FeatureCache(folder / "features", FINGERPRINT, 6)
    if n_known:
        rows = np.random.default_rng(0).normal(size=(n_known, 6)).astype(np.float32)
        cache.add([image.key for image in images[:n_known]], rows)
    return MapJob(source, images, frozenset({0}), 3, map_path(source, 3))


def test_a_map_shows_the_images_with_features_and_counts_the_others(tmp_path: Path):
    job = make_job(tmp_path, 12, 9)

    job.run()

    found = read_map(job.out)
    assert found is not None
    assert set(found.sha256s) == {fake_sha256(number) for number in range(9)}
    assert (found.places.shape, found.n_pool, found.n_known, found.is_sample) == ((9, 2), 12, 9, False)


def test_a_sampled_map_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool_map, "MOST", 10)
    job = dataclasses.replace(make_job(tmp_path, 60, 50), labeled=frozenset(range(40, 60)))

    job.run()

    found = read_map(job.out)
    assert found is not None and found.is_sample and found.n_known == 50
    assert {fake_sha256(number) for number in range(40, 50)} <= set(found.sha256s)
    assert len(found.sha256s) in range(11, 21)


def test_the_same_map_made_twice_has_the_same_name(tmp_path: Path):
    names = set()
    for folder in ("one", "two"):
        job = make_job(tmp_path / folder, 12, 12)
        job.run()
        found = read_map(job.out)
        assert found is not None
        names.add(found.name)

    assert len(names) == 1


def test_other_features_or_another_seed_have_another_file(tmp_path: Path):
    source = FeatureSource(tmp_path, FINGERPRINT)
    other = FeatureSource(tmp_path, {**FINGERPRINT, "pixels": 3})

    assert len({map_path(source, 0), map_path(source, 1), map_path(other, 0)}) == 3


def test_a_pool_without_features_has_no_map(tmp_path: Path):
    job = make_job(tmp_path, 4, 0)

    with pytest.raises(ModelError, match="No image of the pool has features"):
        job.run()
    assert not job.out.exists()


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "other"])
def test_a_damaged_map_is_no_map(tmp_path: Path, damage: str):
    job = make_job(tmp_path, 12, 12)
    job.run()
    data = bytearray(job.out.read_bytes())
    at = data.index(b"PK", 10) - 20  # within the data of the first part
    data[at] ^= 1

    job.out.write_bytes({"cut": data[:-40], "bit": bytes(data), "empty": b"", "other": b"not a map"}[damage])

    assert read_map(job.out) is None


def test_a_map_keeps_what_it_takes_to_place_other_images(tmp_path: Path):
    job = make_job(tmp_path, 12, 9)
    job.run()

    found = read_map(job.out)

    assert found is not None and found.layout is not None and found.newest_id == 11
    placed = found.layout.place(job.source.read(job.images[:9]))
    order = [found.sha256s.index(image.sha256) for image in job.images[:9]]
    assert placed == pytest.approx(found.places[order], abs=1e-3)


def test_a_map_of_an_older_alloop_is_read_without_it(tmp_path: Path):
    job = make_job(tmp_path, 12, 9)
    job.run()
    with np.load(job.out) as file:
        old = {name: file[name] for name in ("sha256", "places")}
    np.savez(job.out, about=np.array('{"n_pool": 12, "n_known": 9}'), **old)

    found = read_map(job.out)

    assert found is not None and found.layout is None
    assert (len(found.sha256s), found.n_pool, found.n_known) == (9, 12, 9)


def test_a_missing_map_is_no_map(tmp_path: Path):
    assert read_map(tmp_path / "no.npz") is None


def test_a_large_pool_is_sampled_uniformly_and_labeled_images_are_added():
    hashes = [fake_sha256(number) for number in range(1000)]
    is_labeled = np.zeros(1000, dtype=bool)
    without = choose(hashes, is_labeled, seed=1, most=100)
    is_labeled[:40] = True

    chosen = choose(hashes, is_labeled, seed=1, most=100)

    assert len(without) == 100
    assert set(chosen) == set(without) | set(range(40))
    assert len(set(without) & set(range(500))) in range(30, 71)  # a draw of 100 from two halves


def test_the_sample_does_not_depend_on_the_order_of_the_pool():
    hashes = [fake_sha256(number) for number in range(300)]
    nobody = np.zeros(300, dtype=bool)

    chosen = {hashes[at] for at in choose(hashes, nobody, seed=1, most=50)}

    assert chosen == {hashes[::-1][at] for at in choose(hashes[::-1], nobody, seed=1, most=50)}
    assert chosen != {hashes[at] for at in choose(hashes, nobody, seed=2, most=50)}


def test_at_most_so_many_labeled_images_are_added():
    hashes = [fake_sha256(number) for number in range(300)]

    assert len(choose(hashes, np.ones(300, dtype=bool), seed=1, most=50)) == 50


def test_features_of_a_trained_trunk_are_read_from_its_file(tmp_path: Path):
    images = [ImageRef(number, fake_sha256(number), f"/pool/{number}.png") for number in range(5)]
    rows = torch.arange(12.0).reshape(4, 3)
    with TrunkWriter(tmp_path / "features.npy", 4) as writer:
        writer.add(images[:4], rows)
        sha256 = writer.finish()
    source = FeatureSource(tmp_path, FINGERPRINT, tmp_path / "features.npy", str(sha256))

    assert source.known(images).tolist() == [True] * 4 + [False]
    assert source.read([images[2], images[0]]).tolist() == [[6, 7, 8], [0, 1, 2]]
    assert source.name != FeatureSource(tmp_path, FINGERPRINT).name
    with pytest.raises(ModelError, match="1 of 2 images have no features"):
        source.read([images[4], images[0]])
    (tmp_path / "features.npy").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="damaged"):
        source.known(images)
