"""Push and pull, with a back end that does what a real one does rarely."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from factories import at_bench, make_project

from alloop.loop.asking import people
from alloop.loop.asking.people import Connection
from alloop.loop.rounds import steps
from alloop.project import Project
from alloop.records import ListedTask, QueryStatus
from alloop.store.annotations import list_labels
from alloop.store.queries import list_pushed, list_queries
from alloop.store.session import reading


class Odd:
    """The oracle, with some of its answers replaced."""

    def __init__(self, annotator, **replaced) -> None:
        self._annotator, self._replaced = annotator, replaced

    def __getattr__(self, name: str):
        return self._replaced.get(name) or getattr(self._annotator, name)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A round whose batch is chosen and not sent."""
    project = make_project(tmp_path, 24)
    at_bench(project, steps.start_round)
    at_bench(project, steps.train, 0)
    at_bench(project, steps.score, 0)
    at_bench(project, steps.select, 0)
    return project


def odd(project: Project, **replaced) -> Connection:
    connection = at_bench(project, people.connect_people)
    return dataclasses.replace(connection, annotator=Odd(connection.annotator, **replaced))


def statuses(project: Project) -> Counter:
    with reading(project.database) as session:
        return Counter(query.status for query in list_queries(session))


def test_a_task_deleted_between_its_answer_and_the_listing_stays_answered(project: Project):
    n = at_bench(project, people.push, 0)

    recorded = at_bench(project, people.pull, odd(project, list_tasks=list))

    assert recorded.lost == 0
    assert statuses(project) == {QueryStatus.ANSWERED: n}
    with reading(project.database) as session:
        assert len(list_labels(session)) == n


def test_a_task_that_took_the_place_of_its_copy_is_the_one_remembered(project: Project):
    """If people began one of two copies, this copy stays, although alloop recorded the other one."""
    at_bench(project, people.push, 0)
    connection = at_bench(project, people.connect_people)
    with reading(project.database) as session:
        recorded = list_pushed(session, "oracle", connection.place.project_ref)
    old, query = next(iter(recorded.items()))

    ids = {each.key: task_id for task_id, each in recorded.items()} | {query.key: "4711"}

    def there() -> list[ListedTask]:
        return [ListedTask(ids[each.key], each.key, each.sha256) for each in recorded.values()]

    def reconcile(images: Mapping[str, str]) -> dict[str, str]:
        return {key: ids[key] for key in images}

    lost = at_bench(
        project, people.pull, odd(project, list_tasks=there, reconcile=reconcile, pull=lambda mark: iter(()))
    ).lost

    assert lost == 0
    with reading(project.database) as session:
        now = list_pushed(session, "oracle", connection.place.project_ref)
    assert now["4711"].id == query.id
    assert old not in now


def test_pulling_the_same_answers_again_writes_and_reports_nothing(project: Project):
    at_bench(project, people.push, 0)
    first = at_bench(project, people.pull)

    # From the beginning, as after a lost mark.
    from_start = at_bench(project, people.connect_people).annotator.pull
    again = at_bench(project, people.pull, odd(project, pull=lambda mark: from_start(None)))

    assert first.new > 0
    assert again == people.Recorded()
