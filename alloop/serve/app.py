"""The web application: addresses, templates, pictures, and the server that runs it."""

import contextlib
import io
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from alloop.errors import AlloopError, PoolError
from alloop.machine import usable_cores
from alloop.pool.picture import picture_of
from alloop.records import ImageRef
from alloop.report.gather import StatusReport
from alloop.report.headlines import standing
from alloop.report.html import STYLE, make_environment
from alloop.serve import views
from alloop.serve.actions import Actions, standing_of
from alloop.serve.desk import Desk
from alloop.serve.events import Events
from alloop.serve.guard import PARTS, App, Guard
from alloop.serve.notices import Notices
from alloop.serve.step import State, Step
from alloop.serve.thumbnails import SIDES, Thumbnails
from alloop.store.images import find_refs
from alloop.store.session import reading

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
STATIC = {  # name → file, type; no other file is served, so no address reaches the file system
    "alloop.css": (STYLE, "text/css; charset=utf-8"),
    "alloop.js": (HERE / "static" / "alloop.js", "text/javascript; charset=utf-8"),
    "d3.min.js": (HERE / "static" / "d3.min.js", "text/javascript; charset=utf-8"),
    "icon.svg": (HERE / "static" / "icon.svg", "image/svg+xml"),
    "map.css": (HERE / "static" / "map.css", "text/css; charset=utf-8"),
    "map.js": (HERE / "static" / "map.js", "text/javascript; charset=utf-8"),
}
KEPT = "private, max-age=31536000, immutable"
PICTURE_POLICY = "default-src 'none'; sandbox"

View = Callable[[Desk, Mapping[str, str]], tuple[str, dict[str, Any]]]


def make_app(
    folder: Path,
    hosts: Collection[str],
    token: str | None = None,
    *,
    is_read_only: bool = False,
    at_end: list[Callable[[], None]] | None = None,
) -> App:
    """Return the application for one workspace.

    Args:
        folder: The workspace.
        hosts: Names with ports that the server answers to.
        token: Token for the login; None if everybody who reaches the server may look.
        is_read_only: True to refuse every action.
        at_end: List to which a function is added that ends all streams; the server calls it before it waits for them.

    Raises:
        AlloopError: The folder is not a workspace that can be opened.
    """
    desk, notices = Desk(folder), Notices()
    step = Step(folder, desk.version)
    thumbnails = desk.project().paths.cache / "thumbnails"
    small = Thumbnails(thumbnails, workers=max(1, usable_cores() - 1))
    pages, events = _Pages(desk, small, step, notices, can_act=not is_read_only), Events(desk, step)
    if at_end is not None:
        at_end.append(events.end)

    @contextlib.asynccontextmanager
    async def closing(_: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(step.stop)
        desk.close()

    addresses: dict[str, View] = {
        "/": views.overview,
        "/overview": views.overview,
        "/round": views.round_,
        "/images": views.images,
        "/image": views.image,
        "/map": views.map_,
        "/tile": views.tile,
        "/mistakes": views.mistakes,
        "/people": views.people,
        "/model": views.model,
    }
    routes = [Route(address, pages.page(view)) for address, view in addresses.items()]
    routes += [
        Route("/map/points", pages.numbers(views.map_points)),
        Route("/map/progress", pages.numbers(views.map_progress)),
        Route("/thumbnail", pages.thumbnail),
        Route("/picture", pages.picture),
        Route("/static", pages.static),
        Route("/login", pages.login),
        Route("/events", events.stream),
        *Actions(desk, step, notices, addresses, pages.error).routes(),
    ]
    inner = Starlette(routes=routes, lifespan=closing, exception_handlers={404: pages.not_found})
    return Guard(inner, hosts, token, is_read_only=is_read_only)


def serve(
    folder: Path,
    host: str,
    port: int,
    hosts: Collection[str],
    token: str | None,
    ready: Callable[[], None],
    *,
    is_read_only: bool = False,
) -> None:
    """Serve the pages until Ctrl-C. `ready` is called when the server answers.

    Raises:
        OSError: The port is taken, or the address is not one of this machine.
    """
    at_end: list[Callable[[], None]] = []
    settings = uvicorn.Config(
        make_app(folder, hosts, token, is_read_only=is_read_only, at_end=at_end),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,  # an address may hold names of files
        server_header=False,
        lifespan="on",
        limit_concurrency=200,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=16384,
    )
    _Server(settings, ready, at_end).run()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], at_end: Sequence[Callable[[], None]]) -> None:
        super().__init__(config)
        self._ready = ready
        self._at_end = at_end

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        for end in self._at_end:
            end()
        await super().shutdown(sockets)

    async def startup(self, sockets: list[Any] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()


class _Pages:
    """Answers to requests. Functions without `async` run in threads, so that a slow one does not stop another."""

    def __init__(self, desk: Desk, thumbnails: Thumbnails, step: Step, notices: Notices, *, can_act: bool) -> None:
        self._desk = desk
        self._thumbnails = thumbnails
        self._templates = make_environment(HERE / "templates")
        self._step = step
        self._notices = notices
        self._can_act = can_act

    def page(self, view: View) -> Callable[[Request], Response]:
        """Return the answer of a page."""

        def answer(request: Request) -> Response:
            try:
                version = self._desk.version()  # before everything else: what changes meanwhile is shown later
                name, values = view(self._desk, request.query_params)
                status = self._desk.status()
                around = views.frame(status) | {"standing": standing(status), "version": version}
                around |= self._acting(request, status, version)
                text = self._templates.get_template(f"{name}.html.jinja").render(**around, **values)
                return HTMLResponse(text, headers={"cache-control": "no-store"})
            except views.NotFound as error:
                return self.error(404, str(error), "Go back, or choose a page from the list.")
            except AlloopError as error:
                return self.error(503, error.message, error.hint or "", waits=True)

        return answer

    def numbers(self, view: Callable[[Desk, Mapping[str, str]], dict[str, Any]]) -> Callable[[Request], Response]:
        """Return the answer with numbers for a script."""

        def answer(request: Request) -> Response:
            try:
                found = view(self._desk, request.query_params)
            except views.NotFound as error:
                return _plain(404, str(error))
            except AlloopError as error:
                return _plain(503, error.message)
            return JSONResponse(found, headers={"cache-control": "no-store"})

        return answer

    def _acting(self, request: Request, status: StatusReport, version: str) -> dict[str, Any]:
        """Return what the forms of a page need, the running step, and what the last action did."""
        query, is_part = request.scope["query_string"].decode("latin-1"), request.scope["path"] in PARTS
        return {
            "can_act": self._can_act,
            "csrf": request.scope["alloop.csrf"],
            "back": f"{request.scope['path'].lstrip('/') or './'}{'?' if query else ''}{query}",
            "seen": standing_of(status.rounds[-1] if status.rounds else None),
            "step": self._step_at(version),
            "notice": None if is_part else self._notices.take(request.scope["alloop.session"]),
        }

    def _step_at(self, version: str) -> State:
        """Return the state of the newest step, without a result that may no longer be true."""
        state = self._step.state()
        return state if state.is_true_of(version) else State(state.number)

    def thumbnail(self, request: Request) -> Response:
        """Answer with a small picture of an image, or with a plain reason."""
        side = request.query_params.get("side", "")
        if side not in {str(one) for one in SIDES}:
            return _plain(404, "There is no picture of this size.")
        return self._picture(request, lambda image: self._thumbnails.jpeg(image, int(side)))

    def picture(self, request: Request) -> Response:
        """Answer with the whole picture, as the model and the people see it."""
        return self._picture(request, _whole_picture)

    def _picture(self, request: Request, make: Callable[[ImageRef], bytes]) -> Response:
        given = request.query_params.get("id", "")
        if not given.isdecimal() or len(given) > 15:
            return _plain(404, "There is no such image.")
        try:
            with reading(self._desk.project().database) as session:
                image = find_refs(session, [int(given)]).get(int(given))
            if image is None:
                return _plain(404, "The file of this image is missing.")
            if request.headers.get("if-none-match") == f'"{image.key}"':
                return Response(status_code=304)
            headers = {
                "cache-control": "private, max-age=60",
                "etag": f'"{image.key}"',
                "content-security-policy": PICTURE_POLICY,
            }
            return Response(make(image), media_type="image/jpeg", headers=headers)
        except PoolError as error:
            return _plain(404, error.message)
        except MemoryError:
            return _plain(503, "This image needs more memory than there is.")

    def static(self, request: Request) -> Response:
        """Answer with a file of the package."""
        name = request.query_params.get("file", "")
        if name not in STATIC:
            return _plain(404, "There is no such file.")
        file, kind = STATIC[name]
        return Response(file.read_bytes(), media_type=kind)

    def login(self, request: Request) -> Response:
        """Answer with the form for the token."""
        page = self._templates.get_template("login.html.jinja")
        return HTMLResponse(page.render(wrong="wrong" in request.query_params), headers={"cache-control": "no-store"})

    def not_found(self, request: Request, error: Exception) -> Response:
        """Return the error page for an unknown address."""
        return self.error(404, "There is no such page.", "Choose a page from the list.")

    def error(self, code: int, says: str, hint: str, *, waits: bool = False) -> Response:
        """Return the page that says what went wrong and what to do. With `waits` it loads again after a change."""
        try:
            around = views.frame(self._desk.status())
        except AlloopError:
            around = {"name": "alloop", "pages": []}
        template = self._templates.get_template("error.html.jinja")
        version = self._desk.version()
        inactive = {"can_act": False, "notice": None, "step": self._step_at(version), "waits": waits}
        seen = version if waits else ""
        text = template.render(**around, **inactive, version=seen, title="Error", standing="", says=says, hint=hint)
        return HTMLResponse(text, status_code=code, headers={"cache-control": "no-store"})


def _whole_picture(image: ImageRef) -> bytes:
    buffer = io.BytesIO()
    picture_of(image).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _plain(code: int, words: str) -> Response:
    return Response(words, status_code=code, media_type="text/plain; charset=utf-8")
