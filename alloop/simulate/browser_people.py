"""Scripted people who label in Label Studio like a browser: sign in, take a task, load the image, answer."""

import dataclasses
import hashlib
import re
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from alloop.errors import LabelingError
from alloop.labeling.http_client import make_client

_TIMEOUT = 60.0


@dataclasses.dataclass(frozen=True, slots=True)
class SeenTask:
    """Task that a person sees.

    Attributes:
        sha256: Hash of the bytes that the server sent as the image.
        queue: Server's reason for choosing this task.
    """

    id: int
    data: Mapping[str, Any]
    sha256: str
    image: bytes = dataclasses.field(repr=False)
    predictions: tuple[Mapping[str, Any], ...]
    queue: str


class BrowserPerson:
    """Signed-in account.

    Args:
        url: Address of the server.
        email, password: Credentials of the account.

    Raises:
        LabelingError: The server refuses the credentials.
    """

    def __init__(self, url: str, email: str, password: str) -> None:
        self.url = url.rstrip("/")
        self.email = email
        self._client = make_client(self.url, _TIMEOUT, base_url=self.url)
        weakref.finalize(self, self._client.close)
        self._client.get("/user/login/")
        form = {"email": email, "password": password, "persist_session": "on"}
        reply = self._client.post("/user/login/", data=self._signed(form), headers=self._headers())
        if reply.status_code != 302:
            raise LabelingError(f"Label Studio at {self.url} does not let {email} sign in (HTTP {reply.status_code}).")

    def __repr__(self) -> str:
        return f"BrowserPerson({self.email!r})"

    def close(self) -> None:
        """Close the browser."""
        self._client.close()

    def next_task(self, project_id: int) -> SeenTask | None:
        """Press "Label All Tasks" and load the image. Return the task, or None if no task is left.

        Raises:
            LabelingError: The image does not load.
        """
        reply = self._call("POST", "/api/dm/actions", {}, params={"project": project_id, "id": "next_task"})
        if reply.status_code == 404:
            return None
        task = _json(reply, "the next task")
        image = self.load_image(str(task["data"].get("image", "")))
        return SeenTask(
            id=task["id"],
            data=task["data"],
            sha256=hashlib.sha256(image).hexdigest(),
            image=image,
            predictions=tuple(task.get("predictions") or ()),
            queue=str(task.get("queue") or ""),
        )

    def load_image(self, address: str) -> bytes:
        """Load an image like the page does.

        Raises:
            LabelingError: The reply is not an image.
        """
        reply = self._client.get(address)
        kind = reply.headers.get("content-type", "")
        if reply.status_code != 200 or not kind.startswith(("image/", "application/octet-stream")):
            raise LabelingError(f"The image {address} does not load: HTTP {reply.status_code}, {kind or 'no type'}.")
        return reply.content

    def answer(self, project_id: int, task_id: int, choice: str | None, lead_time: float = 1.0) -> int:
        """Press "Submit" with a choice, or without one (None).

        Returns:
            Id of the annotation.
        """
        return self._annotate(project_id, task_id, {"result": _result(choice), "lead_time": lead_time})

    def skip(self, project_id: int, task_id: int, lead_time: float = 1.0) -> int:
        """Press "Skip".

        Returns:
            Id of the annotation that records the skip.
        """
        body = {"result": [], "lead_time": lead_time, "was_cancelled": True}
        return self._annotate(project_id, task_id, body)

    def edit(self, annotation_id: int, choice: str | None, lead_time: float = 1.0) -> None:
        """Change an answer and press "Update"."""
        body = {"result": _result(choice), "lead_time": lead_time}
        _json(self._call("PATCH", f"/api/annotations/{annotation_id}/", body), "an edit")

    def delete(self, annotation_id: int) -> None:
        """Delete an annotation."""
        reply = self._call("DELETE", f"/api/annotations/{annotation_id}/", None)
        if reply.status_code != 204:
            raise LabelingError(f"Annotation {annotation_id} was not deleted (HTTP {reply.status_code}).")

    def save_draft(self, project_id: int, task_id: int, choice: str) -> None:
        """Choose a class and leave without pressing anything."""
        body = {"result": _result(choice), "lead_time": 1.0}
        path = f"/api/tasks/{task_id}/drafts"
        _json(self._call("POST", path, body, params={"project": project_id}), "a draft")

    def _annotate(self, project_id: int, task_id: int, body: Mapping[str, Any]) -> int:
        path = f"/api/tasks/{task_id}/annotations/"
        reply = self._call("POST", path, {"draft_id": 0, **body}, params={"project": project_id})
        return int(_json(reply, f"an answer to task {task_id}")["id"])

    def _call(self, method: str, path: str, body: Any, params: Mapping[str, Any] | None = None) -> httpx.Response:
        return self._client.request(method, path, json=body, params=params, headers=self._headers())

    def _headers(self) -> dict[str, str]:
        return {"X-CSRFToken": self._client.cookies.get("csrftoken") or "", "Referer": self.url + "/"}

    def _signed(self, form: dict[str, str]) -> dict[str, str]:
        return form | {"csrfmiddlewaretoken": self._client.cookies.get("csrftoken") or ""}


def label_all(
    person: BrowserPerson,
    project_id: int,
    decide: Callable[[SeenTask], str | None],
    most: int | None = None,
) -> int:
    """Answer the tasks that the server offers until no task is left or `most` tasks are done.

    Args:
        person: Account that answers.
        project_id: Id of the project.
        decide: Function that returns the class for a task; None skips the task.
        most: Largest number of tasks.

    Returns:
        Number of tasks that were answered or skipped.
    """
    done = 0
    while most is None or done < most:
        began = time.monotonic()
        task = person.next_task(project_id)
        if task is None:
            break
        choice = decide(task)
        seconds = round(time.monotonic() - began, 3)
        if choice is None:
            person.skip(project_id, task.id, seconds)
        else:
            person.answer(project_id, task.id, choice, seconds)
        done += 1
    return done


def create_annotator_account(admin: BrowserPerson, email: str, password: str) -> BrowserPerson:
    """Open an account through the organization's invitation link, like a new colleague.

    An account that is made by the API has no organization and cannot sign in.

    Args:
        admin: Account that may invite.
        email: Email address of the new account.
        password: Password of at least eight characters.

    Returns:
        Signed-in account of the new colleague.

    Raises:
        LabelingError: The server refused, for example because the account already exists.
    """
    invite = _json(admin._call("GET", "/api/invite", None), "an invitation link")["invite_url"]
    with make_client(admin.url, _TIMEOUT, base_url=admin.url) as visitor:
        page = visitor.get(invite)
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
        form = {
            "csrfmiddlewaretoken": token.group(1) if token else "",
            "email": email,
            "password": password,
            "allow_newsletters": "false",
        }
        reply = visitor.post(invite, data=form, headers={"Referer": admin.url + "/"})
    if reply.status_code != 302:
        raise LabelingError(
            f"Label Studio at {admin.url} did not open an account for {email} (HTTP {reply.status_code}).",
            "The account may already exist.",
        )
    return BrowserPerson(admin.url, email, password)


def _result(choice: str | None) -> list[dict[str, Any]]:
    if choice is None:
        return []
    value = {"choices": [choice]}
    return [{"from_name": "label", "to_name": "image", "type": "choices", "value": value, "origin": "manual"}]


def _json(reply: httpx.Response, what: str) -> Any:
    if reply.status_code not in {200, 201}:
        said = " ".join(reply.text.split())[:200]
        raise LabelingError(f"Label Studio did not give {what}: HTTP {reply.status_code} {said}")
    return reply.json()
