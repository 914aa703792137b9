"""The holdout: uniform over the pool, whole groups, the same whatever the order of adding."""

import collections
import shutil
from pathlib import Path

import pytest
from factories import NOW, add_pool_image, fake_sha256, make_config, make_query
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from alloop.errors import PoolError
from alloop.loop.intake.holdout import draw_holdout, grow_holdout, growth_size
from alloop.records import Consensus, Split
from alloop.store.annotations import set_labels
from alloop.store.images import list_refs, set_split
from alloop.store.queries import add_queries
from alloop.store.rounds import add_round
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
            drawn, groups = draw_holdout(session, SETTINGS, seed)
            assert (len(drawn), groups) == (4, 12)
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

        drawn, groups = draw_holdout(session, make_config(evaluation={"holdout_share": 0.5}).evaluation, seed=0)

        splits = list_splits(session)
        assert (len(drawn), groups) == (2, 4)
        assert drawn == [image for image, split in splits.items() if split is Split.HOLDOUT]
        for leader in leaders:
            group = [
                splits[leader],
                *(splits[image] for image in splits if image not in leaders and (image - 1) % 4 == leader - 1),
            ]
            assert sorted(group) in ([Split.EXCLUDED, Split.EXCLUDED, Split.HOLDOUT], [Split.TRAIN] * 3)
        assert sum(split is Split.HOLDOUT for split in splits.values()) == 2


def test_a_group_is_drawn_as_often_as_any_other_however_many_images_it_has(tmp_path: Path, migrated_sqlite: Path):
    """600 draws of 2 from 4 groups of 7, 1, 1 and 1 images: each is expected 300 times, give or take 12.2."""
    shutil.copyfile(migrated_sqlite, tmp_path / "a.db")
    database = connect(f"sqlite:///{tmp_path / 'a.db'}")
    with transaction(database) as session:
        leaders = [add_pool_image(session, number) for number in range(4)]
        sizes = [add_pool_image(session, number, group=leaders[0], width=number) for number in range(4, 10)]
    counts: collections.Counter[str] = collections.Counter()
    for seed in range(600):
        with pytest.raises(Undo), transaction(database) as session:
            drawn, groups = draw_holdout(session, make_config(evaluation={"holdout_share": 0.5}).evaluation, seed)
            assert (len(drawn), groups) == (2, 4)
            counts.update(holdout(session))
            raise Undo
    database.dispose()

    assert set(counts) == {fake_sha256(number) for number in (1, 2, 3, 9)}, f"not the largest of {sizes}"
    assert all(abs(n - 300) < 45 for n in counts.values())


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


def ask(session: Session, image_ids: list[int]) -> None:
    started = add_round(session, 0, {}, 0, NOW)
    add_queries(session, started.id, [make_query(image_id) for image_id in image_ids], "k", NOW)


def test_the_holdout_grows_by_images_nobody_chose_or_labeled_and_no_near_copies_of_them(database: Engine):
    with transaction(database) as session:
        ids = [add_pool_image(session, number) for number in range(10)]
        copies = [add_pool_image(session, 20 + number, group=ids[number]) for number in range(4)]
        set_split(session, [ids[0]], Split.HOLDOUT)
        set_split(session, [copies[0]], Split.EXCLUDED)
        ask(session, [ids[1]])
        set_labels(session, {copies[2]: Consensus("cat", 1.0, 1)}, NOW)

        drawn, groups = grow_holdout(session, 100, seed=0)

        # Left are the groups of ids 3 to 9: of the first three one is holdout, one was asked, one has a label.
        assert groups == 7
        assert len(drawn) == 7
        splits = list_splits(session)
        assert {splits[ids[3]], splits[copies[3]]} == {Split.HOLDOUT, Split.EXCLUDED}
        assert [splits[image_id] for image_id in ids[4:]] == [Split.HOLDOUT] * 6
        assert [splits[ids[1]], splits[ids[2]], splits[copies[2]]] == [Split.TRAIN] * 3


def test_every_image_of_the_rest_grows_the_holdout_equally_often(tmp_path: Path, migrated_sqlite: Path):
    """600 draws of 4 from 12: each image is expected 200 times; chi-square with 11 degrees of freedom."""
    shutil.copyfile(migrated_sqlite, tmp_path / "a.db")
    database = connect(f"sqlite:///{tmp_path / 'a.db'}")
    with transaction(database) as session:
        for number in range(12):
            add_pool_image(session, number)
    counts: collections.Counter[int] = collections.Counter()
    for seed in range(600):
        with pytest.raises(Undo), transaction(database) as session:
            counts.update(grow_holdout(session, 4, seed)[0])
            raise Undo
    database.dispose()

    assert len(counts) == 12
    assert sum((n - 200) ** 2 / 200 for n in counts.values()) * 11 / 8 < 31.3


@pytest.mark.parametrize(
    ("share", "room", "n"), [(0.0, None, 0), (0.1, None, 5), (0.001, None, 1), (0.1, 3, 3), (0.1, 0, 0), (0.1, -4, 0)]
)
def test_the_holdout_grows_by_a_share_of_the_batch_and_never_beyond_the_budget(share: float, room: int | None, n: int):
    assert growth_size(make_config(evaluation={"holdout_growth": share}), room) == n


def test_a_test_set_does_not_grow():
    assert growth_size(make_config(evaluation={"holdout_growth": 0.5, "test": "test.csv"})) == 0
