"""The holdout: uniform over the pool, whole groups, the same whatever the order of adding."""

import collections
import shutil
from pathlib import Path

import pytest
from factories import add_pool_image, fake_sha256, make_config
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from alloop.errors import PoolError
from alloop.loop.holdout import draw_holdout
from alloop.records import Split
from alloop.store.images import list_refs
from alloop.store.session import connect, transaction
from alloop.store.tables import Image

SETTINGS = make_config(evaluation={"holdout_size": 4, "holdout_share": 0.5}).evaluation


def holdout(session: Session) -> set[str]:
    return {ref.sha256 for ref in list_refs(session, Split.HOLDOUT)}


def list_splits(session: Session) -> dict[int, Split]:
    return {image_id: Split(split) for image_id, split in session.execute(select(Image.id, Image.split))}


class Undo(Exception):
    pass


def test_every_image_is_drawn_equally_often_over_seeds(tmp_path: Path, migrated_sqlite: Path):
    """600 draws of 4 from 12: each image is expected 200 times; chi-square with 11 degrees of freedom."""
    shutil.copyfile(migrated_sqlite, tmp_path / "a.db")
    database = connect(f"sqlite:///{tmp_path / 'a.db'}")
    with transaction(database) as session:
        for number in range(12):
            add_pool_image(session, number)
    counts: collections.Counter[str] = collections.Counter()
    for seed in range(600):
        with pytest.raises(Undo), transaction(database) as session:
            assert draw_holdout(session, SETTINGS, seed) == (4, 12)
            counts.update(holdout(session))
            raise Undo
    database.dispose()

    # Each draw is without replacement, which makes the statistic smaller by (n - k) / (n - 1) = 8 / 11.
    chi_square = sum((n - 200) ** 2 / 200 for n in counts.values()) * 11 / 8
    assert len(counts) == 12
    assert chi_square < 31.3  # 0.1 % of uniform draws exceed it


def test_a_group_gives_one_image_and_its_others_are_set_aside(database: Engine):
    with transaction(database) as session:
        leaders = [add_pool_image(session, number) for number in range(4)]
        for number in range(4, 12):
            add_pool_image(session, number, group=leaders[number % 4])

        drawn = draw_holdout(session, make_config(evaluation={"holdout_share": 0.5}).evaluation, seed=0)

        splits = list_splits(session)
        assert drawn == (2, 4)
        for leader in leaders:
            group = [
                splits[leader],
                *(splits[image] for image in splits if image not in leaders and (image - 1) % 4 == leader - 1),
            ]
            assert sorted(group) in ([Split.EXCLUDED, Split.EXCLUDED, Split.HOLDOUT], [Split.TRAIN] * 3)
        assert sum(split is Split.HOLDOUT for split in splits.values()) == 2


def test_a_near_copy_of_a_holdout_image_that_comes_later_is_set_aside(database: Engine):
    with transaction(database) as session:
        for number in range(4):
            add_pool_image(session, number)
        draw_holdout(session, SETTINGS, seed=0)
        splits = list_splits(session)
        chosen = next(image for image, split in splits.items() if split is Split.HOLDOUT)
        other = next(image for image, split in splits.items() if split is Split.TRAIN)

        late = add_pool_image(session, 10, group=chosen)
        fine = add_pool_image(session, 11, group=other)

        assert list_splits(session)[late] is Split.EXCLUDED
        assert list_splits(session)[fine] is Split.TRAIN


def test_neither_names_nor_the_order_of_adding_matter(database: Engine):
    found = []
    for order in (range(10), reversed(range(10))):
        with pytest.raises(Undo), transaction(database) as session:
            for place, number in enumerate(order):
                add_pool_image(session, number, path=f"/{place}.png")
            draw_holdout(session, SETTINGS, seed=3)
            found.append(holdout(session))
            raise Undo

    assert found[0] == found[1]
    assert len(found[0]) == 4
    assert found[0] <= {fake_sha256(number) for number in range(10)}


def test_another_seed_draws_others(database: Engine):
    with transaction(database) as session:
        for number in range(40):
            add_pool_image(session, number)
    found = []
    for seed in range(3):
        with pytest.raises(Undo), transaction(database) as session:
            draw_holdout(session, SETTINGS, seed)
            found.append(frozenset(holdout(session)))
            raise Undo

    assert len(set(found)) == 3


def test_a_pool_of_one_is_refused_with_the_way_out(database: Engine):
    with pytest.raises(PoolError, match=r"2 usable images \(1 different\)") as caught, transaction(database) as session:
        add_pool_image(session, 2, group=add_pool_image(session, 1))
        draw_holdout(session, SETTINGS, seed=0)

    assert "alloop pool add" in caught.value.hint
