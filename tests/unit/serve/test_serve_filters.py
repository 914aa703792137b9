"""The filter of the page Images, on a hand-made pool."""

import dataclasses

import numpy as np
import pytest

from alloop.serve.filters import BadFilter, Filter, apply, offer_attributes, offer_sources, read_filter
from alloop.serve.snapshot import Scored, Snapshot


def texts(*values: str) -> "np.ndarray[tuple[int, ...], np.dtype[np.object_]]":
    return np.array(values, dtype=object)


POOL = Snapshot(
    image_id=np.array([3, 5, 7, 9]),
    path=texts("/p/Cat_1.png", "/p/dog_2.png", "/p/cat_3.png", ""),
    split=texts("train", "holdout", "train", "train"),
    label=texts("", "dog", "cat", ""),
    state=texts("open", "answered", "answered", ""),
    asked=np.array([2, 1, 1, -1]),
    by_hand=np.zeros(4, dtype=bool),
    copies=np.array([2, 1, 2, 1]),
    group=np.array([3, 5, 3, 9]),
    attributes={"site": texts("A", "B=1", "", "A")},
    scored=Scored(
        predicted=texts("cat", "cat", "cat", ""),
        probability=np.array([0.5, 0.9, 0.8, np.nan]),
        entropy=np.array([0.69, 0.3, 0.5, np.nan]),
        suspect=np.array([True, False, False, False]),
        others={"ood": np.array([1.0, 5.0, 2.0, np.nan])},
        classes=("cat", "dog"),
        round_number=2,
    ),
)


def found(**fields: object) -> list[int]:
    return POOL.image_id[apply(Filter(**fields), POOL)].tolist()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [3, 7, 5, 9]),
        ({"sort": "certain"}, [5, 7, 3, 9]),
        ({"sort": "ood"}, [5, 7, 3, 9]),
        ({"sort": "name"}, [9, 3, 7, 5]),
        ({"state": "unlabeled"}, [3, 9]),
        ({"state": "labeled"}, [7, 5]),
        ({"state": "asked"}, [3]),
        ({"state": "holdout"}, [5]),
        ({"state": "wrong"}, [5]),
        ({"predicted": "cat", "label": "dog"}, [5]),
        ({"text": "CAT"}, [3, 7]),
        ({"text": "p/"}, []),
        ({"source": "/p"}, [3, 7, 5]),
        ({"source": "/q"}, []),
        ({"attribute": "site=A"}, [3, 9]),
        ({"attribute": "site=B=1"}, [5]),
        ({"attribute": "site="}, [7]),
        ({"round": "1"}, [7, 5]),
        ({"group": "3"}, [3, 7]),
        ({"suspect": "1"}, [3]),
        ({"copies": "1"}, [3, 7]),
        ({"least": "0.5"}, [3, 7]),
        ({"most": "0.5"}, [7, 5]),
        ({"least": "0.4", "most": "0.6"}, [7]),
    ],
)
def test_what_a_filter_keeps_and_its_order(fields: dict[str, str], expected: list[int]):
    assert found(**fields) == expected


def test_the_address_brings_the_same_filter_back():
    from urllib.parse import parse_qsl

    wanted = Filter(state="wrong", predicted="a&b=c", text="#?%+é", least="0.25", sort="ood", page=3)

    address = wanted.address(page=wanted.page)

    assert read_filter(dict(parse_qsl(address.removeprefix("?"))), POOL) == wanted


def test_a_changed_filter_begins_at_its_first_page():
    assert "page" not in Filter(page=7).address(state="labeled")


@pytest.mark.parametrize(
    "query",
    [
        {"least": "0,5"},
        {"most": "nan"},
        {"most": "1e999"},
        {"round": "-1"},
        {"round": "x"},
        {"state": "x"},
        {"sort": "x"},
        {"attribute": "site"},
        {"attribute": "year=2020"},
    ],
)
def test_a_value_that_cannot_be_is_refused_with_its_name(query: dict[str, str]):
    with pytest.raises(BadFilter, match=f"{next(iter(query))}="):
        read_filter(query, POOL)


def test_a_tile_says_what_is_known_of_its_image():
    tile = POOL.row(0)

    assert (tile.guess, tile.standing, tile.mark) == ("cat (50 %)", "asked in round 2", "unlike the rest")
    assert tile.uncertainty == pytest.approx(0.69 / np.log(2))
    assert (POOL.row(1).standing, POOL.row(2).mark) == ("labeled dog", "2 near copies")
    assert (POOL.row(3).guess, POOL.row(3).standing) == ("no prediction yet", "file missing")
    learned = dataclasses.replace(POOL.row(3), label="dog", split="train")
    assert (learned.guess, dataclasses.replace(learned, split="holdout").guess) == ("trained on", "no prediction yet")


def test_only_images_of_the_pool_have_a_place():
    assert [POOL.place(image_id) for image_id in (3, 9, 4, 10, 0)] == [0, 3, None, None, None]


def test_conditions_are_said_in_words_with_the_address_without_them():
    wanted = Filter(state="wrong", predicted="cat")

    assert [words for words, _ in wanted.words()] == ["labeled and predicted as another class", "predicted cat"]
    assert read_filter({"predicted": "cat"}, POOL) == dataclasses.replace(wanted, state="")
    assert wanted.words()[0][1] == "?predicted=cat"


def test_folders_and_attributes_are_offered_as_the_filter_writes_them():
    assert offer_sources(POOL) == ("/p",)
    assert offer_attributes(POOL) == ["site=A", "site=B=1"]
    assert [words for words, _ in Filter(attribute="site=A").words()] == ["site is A"]
