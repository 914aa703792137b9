"""Push and pull, with a back end that does what a real one does rarely."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from factories import make_project

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
    steps.start_round(project)
    steps.train(project, 0)
    steps.score(project, 0)
    steps.select(project, 0)
    return project


def odd(project: Project, **replaced) -> Connection:
    connection = people.connect_people(project)
    return dataclasses.replace(connection, annotator=Odd(connection.annotator, **replaced))


def statuses(project: Project) -> Counter:
    with reading(project.database) as session:
        return Counter(query.status for query in list_queries(session))


def test_a_task_deleted_between_its_answer_and_the_listing_stays_answered(project: Project):
    n = people.push(project, 0)

    recorded = people.pull(project, odd(project, list_tasks=list))

    assert recorded.lost == 0
    assert statuses(project) == {QueryStatus.ANSWERED: n}
    with reading(project.database) as session:
        assert len(list_labels(session)) == n


def test_a_task_that_took_the_place_of_its_copy_is_the_one_remembered(project: Project):
    """Of two copies the one that people had begun stays, which is not the one we had recorded."""
    people.push(project, 0)
    connection = people.connect_people(project)
    with reading(project.database) as session:
        recorded = list_pushed(session, "oracle", connection.place.project_ref)
    old, query = next(iter(recorded.items()))

    ids = {each.key: task_id for task_id, each in recorded.items()} | {query.key: "4711"}

    def there() -> list[ListedTask]:
        return [ListedTask(ids[each.key], each.key, each.sha256) for each in recorded.values()]

    def reconcile(images: Mapping[str, str]) -> dict[str, str]:
        return {key: ids[key] for key in images}

    lost = people.pull(project, odd(project, list_tasks=there, reconcile=reconcile, pull=lambda mark: iter(()))).lost

    assert lost == 0
    with reading(project.database) as session:
        now = list_pushed(session, "oracle", connection.place.project_ref)
    assert now["4711"].id == query.id
    assert old not in now


def test_pulling_the_same_answers_again_writes_and_reports_nothing(project: Project):
    people.push(project, 0)
    first = people.pull(project)

    # From the beginning, as after a lost mark.
    from_start = people.connect_people(project).annotator.pull
    again = people.pull(project, odd(project, pull=lambda mark: from_start(None)))

    assert first.new > 0
    assert again == people.Recorded()
