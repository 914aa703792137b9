"""Actions of the pages: ask for images, mark junk, take both back, and run the next step.

The guard has checked where a form comes from. Asking and marking take the writer's lease for a moment; steps run in a
process of their own (`step.py`).
"""

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import parse_qsl, urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from alloop.errors import AlloopError, LeaseHeld, TemporaryError
from alloop.executor import chosen_executor
from alloop.loop.asking.by_hand import ask_by_hand, take_back
from alloop.loop.asking.junk import mark_junk, unmark_junk
from alloop.loop.workbench import Workbench, make_tools, open_workbench
from alloop.names import count
from alloop.project import open_project
from alloop.report.gather import RoundReport
from alloop.serve.desk import Desk
from alloop.serve.filters import BadFilter, apply, read_filter
from alloop.serve.notices import Button, Notice, Notices
from alloop.serve.step import Step
from alloop.store.rounds import RoundRecord, find_last_round
from alloop.store.session import reading

MOST_IMAGES = 10_000  # of one action
LONGEST_REASON = 200  # characters
LONGEST_WAIT = 10.0  # seconds for another action, such as the first of two clicks
NOTHING = Notice(["No image is selected. Tick images, or press space on one."], is_bad=True)
ErrorPage = Callable[[int, str, str], Response]


class Refused(Exception):
    """The form asks for something that cannot be. The message says what, for people."""


class Actions:
    """Answers to forms. Each ends with a redirect to the page that the form was on."""

    def __init__(self, desk: Desk, step: Step, notices: Notices, pages: Collection[str], error: ErrorPage) -> None:
        """`pages` are the addresses to which a form may lead back; `error` makes the page of an error."""
        self._desk = desk
        self._folder = desk.folder
        self._step = step
        self._notices = notices
        self._pages = frozenset(pages)
        self._error = error
        self._one_at_a_time = threading.Lock()

    def routes(self) -> list[Route]:
        """Return the addresses of all actions."""
        actions: dict[str, Callable[[Request], Notice]] = {
            "/ask": self._ask,
            "/unask": self._unask,
            "/junk": self._junk,
            "/unjunk": self._unjunk,
            "/send": self._send,
            "/run": self._run,
            "/remap": self._remap,
        }
        return [Route(address, self._answer(action), methods=["POST"]) for address, action in actions.items()]

    def _answer(self, action: Callable[[Request], Notice]) -> Callable[[Request], Response]:
        def answer(request: Request) -> Response:
            try:
                notice = action(request)
            except Refused as error:
                return self._error(400, str(error), "Nothing was changed. Go back and try again.")
            except AlloopError as error:
                code = 409 if isinstance(error, LeaseHeld) or not isinstance(error, TemporaryError) else 503
                return self._error(code, error.message, f"Nothing was changed. {error.hint}".strip())
            self._notices.put(request.scope["alloop.session"], notice)
            return RedirectResponse(self._back(request), 303)

        return answer

    def _ask(self, request: Request) -> Notice:
        images = self._chosen(request)
        if not images:
            return NOTHING
        with self._bench(request) as bench:
            found = ask_by_hand(bench, images)
        if not found.asked:
            return Notice(["No image was asked about.", *found.describe()], is_bad=True)
        lines = [f"People are asked about {count(len(found.asked), 'image')} with the next step.", *found.describe()]
        return Notice(lines, [Button("Send now", "send"), Button("Undo", "unask", found.asked)])

    def _unask(self, request: Request) -> Notice:
        with self._bench(request) as bench:
            n = take_back(bench, _images(request))
        if not n:
            return Notice(["No question was taken back: they were sent already, or answered."], is_bad=True)
        return Notice([f"{count(n, 'question')} taken back."])

    def _junk(self, request: Request) -> Notice:
        images = self._chosen(request)
        if not images:
            return NOTHING
        with self._bench(request) as bench:
            found = mark_junk(bench, images, " ".join(_field(request, "reason").split())[:LONGEST_REASON])
        if not found.marked:
            return Notice(["No image was marked.", *found.describe()], is_bad=True)
        lines = [f"{count(len(found.marked), 'image')} marked as junk.", *found.describe()]
        if found.withdrawn:
            lines.append(f"{count(found.withdrawn, 'open question')} withdrawn; the next step takes the tasks back.")
        return Notice(lines, [Button("Undo", "unjunk", found.marked)])

    def _unjunk(self, request: Request) -> Notice:
        with self._bench(request) as bench:
            images = unmark_junk(bench, self._chosen(request))
        if not images:
            return Notice(["None of the images is marked as junk."], is_bad=True)
        return Notice([f"{count(len(images), 'image')} no longer marked as junk; labels count again."])

    def _send(self, request: Request) -> Notice:
        return self._start(request, "send", "The questions are being sent.")

    def _run(self, request: Request) -> Notice:
        with open_project(self._folder) as project, reading(project.database) as session:
            seen = standing_of(find_last_round(session))
        if not self._step.state().is_running and _field(request, "seen") != seen:
            raise AlloopError("The project has moved on since your page was made.", "Look at the page again first.")
        return self._start(request, "run", "The next step has started.")

    def _remap(self, request: Request) -> Notice:
        self._desk.make_map(is_asked_for=True)
        return Notice(["The map is being made again, of the present pool. The old one stays until then."])

    def _start(self, request: Request, job: str, words: str) -> Notice:
        if not self._step.state().is_running:
            with self._bench(request):  # refused if another alloop is at work
                pass
        if not self._step.start(job, _person(request)):
            raise LeaseHeld("A step is running already.", "The page shows how far it is.")
        return Notice([words])

    def _chosen(self, request: Request) -> Sequence[int]:
        """Return the images of the form, or with a field `matching` all images that match the filter of its page.

        Raises:
            Refused: Another number of images matches than the page said, there are too many, or an id is no number.
        """
        said = _field(request, "matching")
        if not said:
            return _images(request)
        pool, query = self._desk.pool(), dict(parse_qsl(urlsplit(_field(request, "back")).query))
        try:
            rows = apply(read_filter(query, pool), pool)
        except BadFilter as error:
            raise Refused(str(error)) from error
        if str(len(rows)) != said:
            raise Refused(f"{count(len(rows), 'image')} match the filter now, and {said[:20]} when the page was made.")
        _check_number(len(rows))
        return [int(image_id) for image_id in pool.image_id[rows]]

    @contextmanager
    def _bench(self, request: Request) -> Iterator[Workbench]:
        if self._step.state().is_running:
            raise LeaseHeld("A step is running, and only one thing can change the project.", "Wait for its end.")
        if not self._one_at_a_time.acquire(timeout=LONGEST_WAIT):
            raise LeaseHeld("Another action takes long, and only one thing can change the project.", "Try again.")
        try:
            with (
                open_project(self._folder) as project,
                open_workbench(make_tools(project, chosen_executor(), person=_person(request))) as bench,
            ):
                yield bench
        finally:
            self._one_at_a_time.release()

    def _back(self, request: Request) -> str:
        """Return the page that the form was on, never another server's."""
        back = urlsplit(_field(request, "back"))
        known = not back.scheme and not back.netloc and f"/{back.path.removeprefix('./')}" in self._pages
        return back._replace(fragment="").geturl() if known else "./"


def standing_of(last: RoundRecord | RoundReport | None) -> str:
    """Return number and state of the newest round, as the button of the next step sends them back."""
    return "" if last is None else f"{last.number} {last.state}"


def _field(request: Request, name: str) -> str:
    form: dict[str, list[str]] = request.scope["alloop.form"]
    return form.get(name, [""])[-1]


def _person(request: Request) -> str:
    return str(request.scope["alloop.person"])


def _images(request: Request) -> Sequence[int]:
    """Return the images of the form: a field `id` for each, or several ids with commas between them.

    Raises:
        Refused: An id is no number, or there are too many.
    """
    form: dict[str, list[str]] = request.scope["alloop.form"]
    texts = [text for field in form.get("id", []) for text in field.split(",")]
    _check_number(len(texts))
    wrong = next((text for text in texts if not text.isascii() or not text.isdecimal() or len(text) > 15), None)
    if wrong is not None:
        raise Refused(f"“{wrong[:40]}” is not the number of an image.")
    return [int(text) for text in texts]


def _check_number(n: int) -> None:
    if n > MOST_IMAGES:
        raise Refused(f"{n:,} images are selected, and at most {MOST_IMAGES:,} can be changed at once.")
