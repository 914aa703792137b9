"""Layout of images on a plane."""

import numpy as np
import pytest

from alloop.smoothing.layout import FEWEST, lay_out


def clusters(n_each: int, n: int = 3, seed: int = 0) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    """Return features of n groups of images, one after the other."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(n, 60))
    return (np.repeat(centers, n_each, axis=0) + 0.2 * rng.normal(size=(n * n_each, 60))).astype(np.float32)


def test_the_same_seed_gives_the_same_bytes_and_groups_stay_together():
    features = clusters(30)

    first, again = lay_out(features, seed=5).places, lay_out(features, seed=5).places

    assert first.tobytes() == again.tobytes()
    assert first.dtype == np.float32 and np.abs(first).max() == pytest.approx(1)
    gaps = np.linalg.norm(first[:, None] - first[None], axis=2)
    np.fill_diagonal(gaps, np.inf)
    assert (gaps.argmin(axis=1) // 30 == np.arange(90) // 30).all()


@pytest.mark.parametrize("n", [0, 1, 2, 3, FEWEST - 1])
def test_few_images_have_places_too(n: int):
    places = lay_out(clusters(n, 1), seed=0).places

    assert places.shape == (n, 2) and np.isfinite(places).all() and (np.abs(places) <= 1).all()
    assert len(np.unique(places, axis=0)) == n


def test_equal_images_are_no_error():
    assert not lay_out(np.ones((200, 8), dtype=np.float32), seed=0).places.any()
    assert not lay_out(np.zeros((3, 8), dtype=np.float32), seed=0).places.any()
    copies = np.tile(clusters(FEWEST, 1), (3, 1))
    places = lay_out(copies, seed=0).places
    assert np.isfinite(places).all()


def test_the_length_of_a_feature_does_not_matter():
    features = clusters(10)

    longer = lay_out(features * np.arange(1, 31, dtype=np.float32)[:, None], seed=0).places

    assert longer == pytest.approx(lay_out(features, seed=0).places, abs=1e-4)


def test_progress_comes_to_its_end():
    seen: list[tuple[str, int, int]] = []

    lay_out(clusters(20), seed=0, progress=lambda *report: seen.append(report))

    assert seen[0] == ("layout", 0, 1000) and seen[-1] == ("layout", 1000, 1000)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen) and len(seen) > 3


@pytest.mark.parametrize("n_each", [8, 30])  # by two axes, and by t-SNE
def test_a_copy_is_placed_on_its_original_and_another_image_in_its_group(n_each: int):
    features = clusters(n_each)
    layout = lay_out(features, seed=0)
    others = clusters(n_each, seed=0) + 0.02 * np.random.default_rng(1).normal(size=features.shape).astype(np.float32)

    copies, found = layout.place(3 * features), layout.place(others)

    assert copies == pytest.approx(layout.places, abs=0.02)
    nearest = np.linalg.norm(found[:, None] - layout.places[None], axis=2).argmin(axis=1)
    assert (nearest // n_each == np.arange(len(features)) // n_each).all()


def test_a_map_of_one_image_places_all_others_there():
    layout = lay_out(clusters(1, 1), seed=0)

    assert layout.place(clusters(4, 1)).tolist() == [layout.places[0].tolist()] * 4
    assert layout.place(np.zeros((0, 60), dtype=np.float32)).shape == (0, 2)
