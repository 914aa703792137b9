import datetime as dt
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from alloop.labeling import label_studio_tasks as task_list

START = dt.datetime(2026, 11, 22, tzinfo=dt.UTC)


def at(seconds: float) -> str:
    return (START + dt.timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


def data(number: int) -> dict[str, str]:
    return {"alloop_key": f"q{number}", "alloop_sha256": f"{number:064x}"}


def wanted(*numbers: int) -> dict[str, str]:
    return {f"q{number}": f"{number:064x}" for number in numbers}


class FakeTasks:
    """A project's task list with the server's filters, order and pages; `between` runs after every page."""

    def __init__(self, n: int, times: Callable[[int], float] = float) -> None:
        self.rows = {
            number: {"id": number, "updated_at": at(times(number)), "data": data(number)} for number in range(1, n + 1)
        }
        self.between: Callable[[int], None] = lambda page: None
        self.queries: list[dict[str, Any]] = []
        self.obeys_filters = True

    def read(self, path: str, params: dict[str, Any]) -> dict[str, Any]:
        query = json.loads(params["query"])
        self.queries.append(params)
        items = query["filters"]["items"] if self.obeys_filters else []
        rows = [row for row in self.rows.values() if all(self._passes(row, item) for item in items)]
        column = query.get("ordering", ["tasks:id"])[0].removeprefix("tasks:")
        rows.sort(key=lambda row: (row[column], row["id"]))
        start = (params["page"] - 1) * params["page_size"]
        page = [dict(row) for row in rows[start : start + params["page_size"]]]
        self.between(len(self.queries))
        return {"tasks": page}

    def _passes(self, row: dict[str, Any], item: dict[str, Any]) -> bool:
        column = item["filter"].removeprefix("filter:tasks:")
        have = row["data"]["alloop_key"] if column == "data.alloop_key" else row[column]
        if column == "updated_at":
            # The one spelling that the server understands.
            wanted = dt.datetime.strptime(item["value"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=dt.UTC)
            return dt.datetime.fromisoformat(have) >= wanted
        operators = {"greater": lambda: have > item["value"], "in_list": lambda: have in item["value"]}
        return operators[item["operator"]]()


def changed(tasks: FakeTasks, since: str | None = None, size: int = 3) -> list[int]:
    return [row["id"] for page in task_list.changed_since(tasks, 1, since, size) for row in page]  # type: ignore[arg-type]


def test_changes_come_oldest_first_in_pages():
    assert changed(FakeTasks(7, lambda number: -number)) == [7, 6, 5, 4, 3, 2, 1]


def test_only_what_changed_since_is_read():
    assert changed(FakeTasks(7), task_list.write_time(START + dt.timedelta(seconds=5))) == [5, 6, 7]


@pytest.mark.parametrize("page", [1, 2, 3])
def test_a_change_between_two_pages_makes_no_task_disappear(page: int):
    tasks = FakeTasks(9)

    def somebody_edits(read: int) -> None:
        if read == page:
            tasks.rows[1]["updated_at"] = tasks.rows[2]["updated_at"] = at(100 + read)

    tasks.between = somebody_edits

    assert set(changed(tasks)) == set(range(1, 10))


@pytest.mark.parametrize("n", [0, 1, 3, 6, 7])
def test_tasks_of_the_same_instant_fill_more_than_a_page(n: int):
    assert changed(FakeTasks(n, lambda number: 5.0)) == list(range(1, n + 1))


def test_all_tasks_are_listed_although_some_are_deleted_meanwhile(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(task_list, "_LONG_PAGE", 3)
    tasks = FakeTasks(9)

    def somebody_deletes(read: int) -> None:
        if read == 1:
            del tasks.rows[1], tasks.rows[2]

    tasks.between = somebody_deletes

    listed = {task.id for task in task_list.all_tasks(tasks, 1)}  # type: ignore[arg-type]
    assert {f"{number}:q{number}" for number in range(3, 10)} <= listed


def test_keys_are_asked_for_in_addresses_of_bounded_length():
    tasks = FakeTasks(0)
    keys = [f"{number:04d}-ключ-{'x' * 40}" for number in range(500)]

    task_list.refs_by_key(tasks, 1, dict.fromkeys(keys, "0" * 64), n_tasks=10_000)  # type: ignore[arg-type]

    asked = [key for params in tasks.queries for key in json.loads(params["query"])["filters"]["items"][0]["value"]]
    assert sorted(asked) == sorted(keys)
    assert max(len(quote(params["query"])) for params in tasks.queries) < 6000


def test_a_proxy_that_drops_the_filter_cannot_make_strangers_ours():
    tasks = FakeTasks(5)
    tasks.obeys_filters = False

    assert task_list.refs_by_key(tasks, 1, wanted(2), 5) == {"q2": ["2:q2"]}  # type: ignore[arg-type]


def test_many_keys_are_found_by_reading_all_once():
    tasks = FakeTasks(1500)

    found = task_list.refs_by_key(tasks, 1, wanted(*range(400, 1600)), 1500)  # type: ignore[arg-type]

    assert len(found) == 1101
    assert len(tasks.queries) == 2


def test_a_task_whose_hash_is_another_or_was_removed_is_not_the_one_asked_for():
    tasks = FakeTasks(3)
    tasks.rows[1]["data"]["alloop_sha256"] = "f" * 64
    del tasks.rows[2]["data"]["alloop_sha256"]

    assert task_list.refs_by_key(tasks, 1, wanted(1, 2, 3), 3) == {"q3": ["3:q3"]}  # type: ignore[arg-type]


def test_tasks_that_alloop_did_not_push_have_no_name_here():
    assert task_list.task_ref({"id": 3, "data": {"image": "x"}}) is None
    assert task_list.task_ref({"id": 3, "data": None}) is None
    assert task_list.task_number("12:r3:0007") == 12
