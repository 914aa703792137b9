"""The map: areas as filters, colors with their counts, and the process that makes it."""

import dataclasses
import math
import time
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import pytest

pytest.importorskip("starlette")
from map_jobs import Endless, Refused

from alloop.engine.feature_source import FeatureSource
from alloop.engine.pool_map import MapJob, PoolMap
from alloop.serve.filters import BadFilter, Filter, apply, inside, read_filter
from alloop.serve.map import (
    COLORED,
    COLORS,
    NONE,
    REST,
    coloring,
    find_doubt,
    head_of,
    names_on,
    note_of,
    points,
)
from alloop.serve.map_maker import MapMaker
from alloop.serve.snapshot import Scored, Snapshot, Spots
from alloop.smoothing.layout import Layout

SQUARE = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])


def texts(*values: str) -> "np.ndarray[tuple[int, ...], np.dtype[np.object_]]":
    return np.array(values, dtype=object)


def make_pool(n: int = 20, n_classes: int = 2, n_labeled: int = 4) -> Snapshot:
    """Return images on a line, along which doubt grows. The first ones are labeled, the last one is not on the map."""
    classes = tuple(f"class {number}" for number in range(n_classes))
    guesses = [classes[number * n_classes // n] for number in range(n)]
    places = np.column_stack([np.linspace(-1, 1, n), np.zeros(n)])
    places[-1] = np.nan
    pool_map = PoolMap("0a1b2c3d", ("",) * (n - 1), places[:-1].astype(np.float32), n, n - 1)
    return Snapshot(
        image_id=np.arange(1, n + 1),
        path=texts(*(f"/p/{number}.png" for number in range(n))),
        split=texts(*["train"] * n),
        label=texts(*(guesses[number] if number < n_labeled else "" for number in range(n))),
        state=texts(*("answered" if number < n_labeled else "" for number in range(n))),
        asked=np.array([number % 2 if number < n_labeled else -1 for number in range(n)]),
        by_hand=np.zeros(n, dtype=bool),
        copies=np.ones(n, dtype=np.int64),
        group=np.arange(1, n + 1),
        attributes={},
        scored=Scored(
            predicted=texts(*guesses),
            probability=np.linspace(1, 1 / n_classes, n),
            entropy=np.linspace(0, math.log(n_classes), n),
            suspect=np.zeros(n, dtype=bool),
            others={},
            classes=classes,
            round_number=1,
        ),
        spots=Spots(pool_map, places, np.zeros(n, dtype=bool)),
    )


POOL = make_pool()


# -- areas ---------------------------------------------------------------------------------------------------


def test_a_place_lies_in_a_polygon_or_not():
    places = np.array([[0.5, 0.5], [1.5, 0.5], [-0.5, 0.5], [0.5, 1.5], [np.nan, np.nan]])

    assert inside(places, SQUARE).tolist() == [True, False, False, False, False]
    assert inside(places, SQUARE[::-1]).tolist() == [True, False, False, False, False]


def test_a_notch_is_outside():
    horseshoe = np.array([[0, 0], [3, 0], [3, 3], [2, 3], [2, 1], [1, 1], [1, 3], [0, 3]], dtype=np.float64)

    assert inside(np.array([[0.5, 2], [1.5, 2], [2.5, 2], [1.5, 0.5]]), horseshoe).tolist() == [True, False, True, True]


def test_an_area_keeps_the_images_in_it_and_the_address_brings_it_back():
    area = "0a1b2c3d,-1100,-100,-700,-100,-700,100,-1100,100"

    wanted = read_filter({"area": area}, POOL)

    assert POOL.image_id[apply(wanted, POOL)].tolist() == [3, 2, 1]
    assert read_filter(dict(parse_qsl(wanted.address().removeprefix("?"))), POOL) == wanted
    assert wanted.words() == [("in an area of the map", "?")]


@pytest.mark.parametrize(
    "corners",
    ["", "1,2,3,4", "1,2,3,4,5", "1,2,3,4,5,x", "1,2,3,4,5,6.5", "1,2,3,4,5,99999", ",".join(["1"] * 130)],
)
def test_what_is_no_polygon_is_refused(corners: str):
    with pytest.raises(BadFilter, match="polygon of 3 to 64 corners"):
        read_filter({"area": f"0a1b2c3d,{corners}"}, POOL)


def test_an_area_of_another_map_is_refused():
    area = "ffffffff,0,0,1,0,1,1"

    for pool in (POOL, dataclasses.replace(POOL, spots=None)):
        with pytest.raises(BadFilter, match="another map"):
            read_filter({"area": area}, pool)
    assert apply(Filter(area=area), dataclasses.replace(POOL, spots=None)).tolist() == []


def without_prediction(pool: Snapshot, *rows: int) -> Snapshot:
    """Return the pool with images that the model has not scored."""
    predicted, entropy = pool.scored.predicted.copy(), pool.scored.entropy.copy()
    predicted[list(rows)], entropy[list(rows)] = "", np.nan
    return dataclasses.replace(pool, scored=dataclasses.replace(pool.scored, predicted=predicted, entropy=entropy))


# -- colors and numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", COLORS)
@pytest.mark.parametrize("pool", [POOL, make_pool(60, n_classes=12, n_labeled=30)], ids=["few classes", "many"])
def test_each_number_of_the_table_is_that_of_its_link(by: str, pool: Snapshot):
    pool = without_prediction(pool, 2, 5)

    found = coloring(pool, by, find_doubt(pool))

    for key in found.keys:
        assert any(key.cells), key.words
        for cell in filter(None, key.cells):
            wanted = read_filter(dict(parse_qsl(cell.address.removeprefix("?"))), pool)
            assert len(apply(wanted, pool)) == cell.n, (key.words, cell)


@pytest.mark.parametrize(
    ("by", "words", "numbers"),
    [
        ("uncertainty", "no prediction", [2, 1]),  # the first four of 20 images have a label
        ("predicted", "no prediction", [2]),
        ("label", "no label", [None, 16]),
        ("round", "never asked", [16, 0]),
    ],
)
def test_images_that_have_no_color_of_the_others_are_counted_too(by: str, words: str, numbers: list[int | None]):
    pool = without_prediction(POOL, 2, 5)

    last = coloring(pool, by, find_doubt(pool)).keys[-1]

    assert (last.words, [cell and cell.n for cell in last.cells]) == (words, numbers)


def test_eight_classes_have_colors_and_the_rest_is_gray():
    pool = make_pool(120, n_classes=12)

    found = coloring(pool, "predicted", find_doubt(pool))

    assert sorted({*found.codes.tolist()}) == list(range(COLORED + 1))
    assert [key.swatch for key in found.keys[COLORED:]] == ["rest"] * 4 + ["none"]
    assert found.keys[0].words == "class 11"  # it has the most uncertain images
    last = found.keys[len(pool.scored.classes) - 1].words
    assert (found.codes[pool.scored.predicted == last] == REST).all()


def test_images_without_a_label_or_a_question_have_a_color_of_their_own():
    for by in ("label", "round"):
        codes = coloring(POOL, by, find_doubt(POOL)).codes
        assert (codes[4:] == NONE).all() and (codes[:4] < COLORED).all()


def test_the_headline_compares_the_doubt_with_the_labels():
    head = head_of(POOL, find_doubt(POOL))

    assert head.says == "100 % of the most uncertain images are predicted as class 1, which has 0 % of the labels."
    assert "2 unlabeled images" in head.rests_on and "0 of 4 labels are class 1" in head.rests_on


def test_the_headline_of_a_pool_without_predictions_or_without_doubt():
    blind = dataclasses.replace(POOL, scored=dataclasses.replace(POOL.scored, entropy=np.full(20, np.nan)))
    done = make_pool(n_labeled=20)

    assert head_of(blind, find_doubt(blind)).says == "No image has a prediction yet."
    assert head_of(done, find_doubt(done)).says == "Every image has a label."


def test_points_are_whole_numbers_and_leave_out_what_is_not_on_the_map():
    assert POOL.spots is not None
    found = points(POOL, POOL.spots, coloring(POOL, "label", find_doubt(POOL)).codes)

    assert {len(column) for column in found.values()} == {19}
    assert (found["id"][0], found["x"][0], found["x"][-1], found["labeled"][:5]) == (1, -1000, 895, [1, 1, 1, 1, 0])
    assert all(type(value) is int for column in found.values() for value in column)


def test_names_stand_among_their_images():
    assert POOL.spots is not None
    names = {name.words: name.x for name in names_on(POOL, POOL.spots, "predicted", find_doubt(POOL))}

    assert names["class 0"] < 0 < names["class 1"]


def test_the_note_counts_what_is_not_shown():
    assert POOL.spots is not None
    one_more = dataclasses.replace(POOL.spots.pool_map, n_pool=18, n_known=17)

    assert "shows all images" in note_of(POOL, POOL.spots) and "1 image had no features" in note_of(POOL, POOL.spots)
    assert "2 images came to the pool later." in note_of(POOL, dataclasses.replace(POOL.spots, pool_map=one_more))
    large = dataclasses.replace(POOL.spots.pool_map, n_known=30_000)
    assert "uniform sample of 30,000 images" in note_of(POOL, dataclasses.replace(POOL.spots, pool_map=large))


def test_images_that_were_placed_later_are_marked_and_counted_apart():
    assert POOL.spots is not None
    layout = Layout(*(np.zeros((1, 2), dtype=np.float32),) * 4)
    pool_map = dataclasses.replace(POOL.spots.pool_map, n_pool=16, n_known=16, newest_id=16, layout=layout)
    is_new = np.arange(20) >= 16  # three of them have a place, the last one has none
    spots = Spots(pool_map, POOL.spots.places, is_new)

    note = note_of(POOL, spots)

    assert "had features when it was made: 16 images. Diamonds: 3 images placed since then, " in note
    assert "1 image came to the pool later, and cannot be placed without features." in note
    assert points(POOL, spots, np.zeros(20, dtype=np.int64))["placed"] == [0] * 16 + [1] * 3


def test_junk_is_on_no_map_and_in_no_number_of_doubt():
    junk = dataclasses.replace(POOL, split=texts(*["train"] * 17, *["junk"] * 3))
    assert junk.spots is not None

    assert len(points(junk, junk.spots, np.zeros(20, dtype=np.int64))["id"]) == 17
    assert not find_doubt(junk).is_doubtful[17:].any()
    area = "0a1b2c3d,-1100,-100,1100,-100,1100,100,-1100,100"
    assert len(apply(read_filter({"area": area}, junk), junk)) == 17


# -- making --------------------------------------------------------------------------------------------------


def job_of(kind: type[MapJob], folder: Path) -> MapJob:
    return kind(FeatureSource(folder, {}), (), frozenset(), 0, folder / "map.npz")


def wait_for(maker: MapMaker, *, is_under_way: bool, share: float | None) -> str:
    for _ in range(1200):
        state = maker.state()
        if (state.is_under_way, state.share) == (is_under_way, share):
            return state.says
        time.sleep(0.05)
    raise AssertionError(f"still {maker.state()}")


def test_a_map_that_cannot_be_made_says_why_and_is_not_tried_again_at_once(tmp_path: Path):
    maker = MapMaker()
    maker.begin(job_of(Refused, tmp_path))

    assert wait_for(maker, is_under_way=False, share=None) == "The disk is full."
    maker.begin(job_of(Refused, tmp_path))
    assert not maker.state().is_under_way


def test_progress_arrives_a_killed_process_is_seen_and_closing_stops_the_work(tmp_path: Path):
    maker = MapMaker()
    try:
        maker.begin(job_of(Endless, tmp_path))
        assert wait_for(maker, is_under_way=True, share=0.25) == "Arranging the images"
        process = maker._process
        assert process is not None
        process.kill()
        assert "was killed" in wait_for(maker, is_under_way=False, share=None)
    finally:
        maker.close()

    other = MapMaker()
    other.begin(job_of(Endless, tmp_path))
    process = other._process
    assert process is not None
    other.close()
    assert not process._closed and process.exitcode is not None  # type: ignore[attr-defined]
