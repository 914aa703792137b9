"""Task lists of a Label Studio project, by key, id or time of change, in pages that cannot skip a task."""

import datetime as dt
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from alloop.labeling.connection import ServerConnection
from alloop.labeling.label_config import HASH_KEY, TASK_KEY, read_time
from alloop.records import ListedTask

Row = dict[str, Any]

_KEY_COLUMN = f"data.{TASK_KEY}"
_URL_BUDGET = 5000  # characters of encoded keys in one address; 9 kB worked, 18 kB failed, and proxies may allow less
_LONG_PAGE = 1000
# For so many keys of a project, reading all keys once is faster than asking for each.
_KEYS_PER_TASK = 0.2
_ANSWERS = "id,data,created_at,updated_at,annotations,result,completed_by,was_cancelled,lead_time"


def write_time(moment: dt.datetime) -> str:
    """Write a time in the format of the server's filters. Other formats make the server answer 500."""
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def task_ref(row: Row) -> str | None:
    """Return a task's name for the loop: number and key, as in `12:r3-0007`. None for a task that alloop did not push.

    The number alone is not enough: on SQLite, Label Studio gives the numbers of deleted tasks to new ones.
    """
    key = (row.get("data") or {}).get(TASK_KEY)
    return f"{row['id']}:{key}" if key else None


def listed_task(row: Row) -> ListedTask | None:
    """Convert a row to a task of the loop; None for a task that alloop did not push.

    alloop pushes every task with the hash of its image. A task without one was edited by hand and may show any image.
    """
    ref = task_ref(row)
    return None if ref is None else ListedTask(ref, row["data"][TASK_KEY], str(row["data"].get(HASH_KEY) or ""))


def task_number(ref: str) -> int:
    """Return the server's number of a task."""
    return int(ref.partition(":")[0])


def refs_by_key(
    connection: ServerConnection, project_id: int, wanted: Mapping[str, str], n_tasks: int
) -> dict[str, list[str]]:
    """Find the tasks that have each key and show its image, lowest number first. Keys without a task are absent.

    Args:
        connection: Connection to the server.
        project_id: Id of the project.
        wanted: Values of `data.alloop_key` → content hashes.
        n_tasks: Approximate number of tasks in the project. It affects only the speed, not the result.
    """
    found: dict[str, list[str]] = {}
    if len(wanted) > _LONG_PAGE and len(wanted) > _KEYS_PER_TASK * n_tasks:
        rows = _by_id(connection, project_id, "id,data")
    else:
        rows = itertools.chain.from_iterable(
            _page(connection, project_id, "task_only", "id,data", [_is_in(_KEY_COLUMN, chunk)], size=_LONG_PAGE)
            for chunk in _chunks(sorted(wanted))
        )
    for row in rows:
        # Checked here, too: a proxy that drops the filter would return all tasks.
        if (task := listed_task(row)) is not None and task.sha256 == wanted.get(task.key):
            found.setdefault(task.key, []).append(task.id)
    return {key: sorted(refs, key=task_number) for key, refs in found.items()}


def all_tasks(connection: ServerConnection, project_id: int) -> list[ListedTask]:
    """List all tasks of the project that alloop pushed, from this workspace or another one."""
    rows = _by_id(connection, project_id, "id,data")
    return [task for row in rows if (task := listed_task(row)) is not None]


def existing_refs(connection: ServerConnection, project_id: int, refs: Sequence[str]) -> frozenset[str]:
    """Return those of `refs` that still exist."""
    return _refs(_some(connection, project_id, "task_only", "id,data", refs)) & set(refs)


def some_rows(connection: ServerConnection, project_id: int, refs: Sequence[str]) -> Iterator[Row]:
    """Yield number and data of those tasks of `refs` that exist."""
    wanted = set(refs)
    rows = _some(connection, project_id, "task_only", "id,data", refs)
    return (row for row in rows if task_ref(row) in wanted)


def untouched_refs(connection: ServerConnection, project_id: int, refs: Sequence[str]) -> frozenset[str]:
    """Return the references of existing tasks that nobody has worked on: no annotation, no skip, no draft."""
    # `drafts` lists only the drafts of the key's user; `draft_exists` covers all users.
    rows = _some(connection, project_id, "all", "id,data,annotations,draft_exists", refs)
    return _refs(row for row in rows if row["annotations"] == [] and row["draft_exists"] is False) & set(refs)


def newest_tasks(connection: ServerConnection, project_id: int, include: str, n: int) -> list[Row]:
    """List the newest tasks, newest first."""
    return _page(connection, project_id, "all", include, [], ordering="-tasks:id", size=n)


def changed_since(connection: ServerConnection, project_id: int, since: str | None, size: int) -> Iterator[list[Row]]:
    """Yield pages of tasks whose annotations changed at or after `since`, oldest change first.

    A task that is changed meanwhile moves to the end of the list, and the tasks behind it move up by one. Page numbers
    would therefore skip a task. Each page starts from the last time seen instead; page numbers are used only within a
    whole page of equal times.
    """
    seen: set[tuple[int, str]] = set()
    cursor, number = since, 1
    while True:
        filters = [] if cursor is None else [_from_time(cursor)]
        rows = _page(
            connection, project_id, "all", _ANSWERS, filters, ordering="tasks:updated_at", size=size, number=number
        )
        fresh = [row for row in rows if (row["id"], row["updated_at"]) not in seen]
        seen.update((row["id"], row["updated_at"]) for row in fresh)
        if fresh:
            yield fresh
        if len(rows) < size:
            return
        last = write_time(read_time(rows[-1]["updated_at"]))
        cursor, number = (last, 1) if last != cursor else (cursor, number + 1)


def _by_id(connection: ServerConnection, project_id: int, include: str) -> Iterator[Row]:
    """Yield all tasks by id. Deletions meanwhile cannot make it skip a task."""
    last = 0
    while True:
        beyond = [{"filter": "filter:tasks:id", "operator": "greater", "type": "Number", "value": last}]
        rows = _page(connection, project_id, "task_only", include, beyond, ordering="tasks:id", size=_LONG_PAGE)
        yield from rows
        if len(rows) < _LONG_PAGE:
            return
        last = int(rows[-1]["id"])


def _some(
    connection: ServerConnection, project_id: int, fields: str, include: str, refs: Sequence[str]
) -> Iterator[Row]:
    numbers = [task_number(ref) for ref in refs]
    for start in range(0, len(numbers), 200):
        chunk = numbers[start : start + 200]
        yield from _page(connection, project_id, fields, include, [_is_in("id", chunk)], size=len(chunk))


def _refs(rows: Iterable[Row]) -> frozenset[str]:
    return frozenset(ref for row in rows if (ref := task_ref(row)) is not None)


def _page(
    connection: ServerConnection,
    project_id: int,
    fields: str,
    include: str,
    filters: list[Row],
    *,
    ordering: str | None = None,
    size: int,
    number: int = 1,
) -> list[Row]:
    query: Row = {"filters": {"conjunction": "and", "items": filters}}
    if ordering is not None:
        query["ordering"] = [ordering]
    params = {
        "project": project_id,
        "fields": fields,
        "include": include,
        "resolve_uri": "false",
        "page_size": size,
        "page": number,
        "query": json.dumps(query, ensure_ascii=False, separators=(",", ":")),
    }
    reply = connection.read("api/tasks", params)
    rows: list[Row] = reply["tasks"]
    return rows


def _is_in(column: str, values: Sequence[str] | Sequence[int]) -> Row:
    return {"filter": f"filter:tasks:{column}", "operator": "in_list", "type": "List", "value": list(values)}


def _from_time(moment: str) -> Row:
    return {
        "filter": "filter:tasks:updated_at",
        "operator": "greater_or_equal",
        "type": "Datetime",
        "value": moment,
    }


def _chunks(keys: Sequence[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    length = 0
    for key in keys:
        cost = len(quote(json.dumps(key, ensure_ascii=False))) + 3
        if chunk and length + cost > _URL_BUDGET:
            yield chunk
            chunk, length = [], 0
        chunk.append(key)
        length += cost
    if chunk:
        yield chunk
