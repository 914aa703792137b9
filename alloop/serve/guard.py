"""Guard before every page: host names, login, forms, and the headers that tell the browser what a page may do."""

import asyncio
import hmac
import secrets
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

COOKIE = "alloop-session"
LOGIN = "/login"
OPEN = frozenset({LOGIN, "/static"})  # paths that need no login
# Paths of forms that change something.
ACTIONS = frozenset({"/ask", "/unask", "/junk", "/unjunk", "/send", "/run", "/remap"})
# Parts of a page, which begin no session and show no notice.
PARTS = frozenset({"/static", "/thumbnail", "/picture", "/events", "/tile", "/map/points", "/map/progress"})
CSRF = "csrf"  # hidden field of every form that changes something
LONGEST_NAME = 40  # characters
LONGEST_BODY = 4096  # bytes: a form with a token
LONGEST_FORM = 256 * 1024  # bytes: a form with the ids of 10,000 images
MOST_FIELDS = 10_100
FORM_SECONDS = 20.0  # time in which a form must have arrived
LONGEST_ADDRESS = 8192  # bytes of the query: filters
POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Guard:
    """ASGI application around the pages.

    A request is refused unless its `Host` is one of `hosts`: a page of another name that resolves to this machine (DNS
    rebinding) would otherwise read everything. With a token, a browser logs in once; its cookie is a random name of the
    session, so that the token itself is in no cookie and no address.

    A form that changes something must come from a page of this server (`Origin`), and must hold the session's own field
    `csrf`, which only these pages know. The application finds the session, its field, the name that the person gave at
    the login, and the fields of the form in the scope, under `alloop.session`, `.csrf`, `.person` and `.form`.
    """

    def __init__(self, app: App, hosts: Collection[str], token: str | None, *, is_read_only: bool = False) -> None:
        """`hosts` are names with ports, as a browser sends them; `token` is None where no login is needed."""
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)
        self._token = token
        self._is_read_only = is_read_only
        self._sessions: dict[str, str] = {}  # session → name that the person gave at the login, or ""
        self._secret = secrets.token_bytes(32)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await _answer(send, *refusal)
        elif scope["path"] == LOGIN and scope["method"] == "POST" and self._token is not None:
            await self._log_in(scope, receive, send)
        elif self._token is None or scope["path"] in OPEN or _session(scope) in self._sessions:
            await self._pass(scope, receive, send)
        else:
            await _redirect(send, LOGIN.removeprefix("/"))

    async def _pass(self, scope: Message, receive: Receive, send: Send) -> None:
        """Hand a request to the application, a form only after its check."""
        session, cookie = _session(scope), None
        if not session and self._token is None and scope["path"] not in PARTS:
            session = secrets.token_urlsafe(32)
            cookie = _cookie(scope, session)
        csrf = hmac.new(self._secret, session.encode(), "sha256").hexdigest()
        scope["alloop.session"], scope["alloop.csrf"] = session, csrf
        scope["alloop.person"] = self._sessions.get(session, "")
        if scope["method"] == "POST":
            form = await _read_form(scope, receive)
            if isinstance(form, tuple):
                await _answer(send, *form)
                return
            if not hmac.compare_digest("".join(form.get(CSRF, [])).encode(), csrf.encode()):
                words = "The form is older than this server, or was sent from another page. Nothing was changed. "
                await _answer(send, 403, f"{words}Go back, reload the page, and try again.")
                return
            scope["alloop.form"] = form
        await self._app(scope, receive, _with_headers(send, *([] if cookie is None else [cookie])))

    def _refusal(self, scope: Message) -> tuple[int, str] | None:
        if _header(scope, b"host").lower() not in self._hosts:
            return 421, "This server does not answer to this name. Use the address that `alloop serve` printed."
        if len(scope.get("query_string", b"")) > LONGEST_ADDRESS:
            return 414, "The address is too long."
        if scope["method"] in ("GET", "HEAD"):
            return None
        if scope["method"] != "POST" or scope["path"] not in ACTIONS | {LOGIN}:
            return 405, "Nothing can be changed at this address."
        if _header(scope, b"origin") != f"{scope['scheme']}://{_header(scope, b'host')}":
            return 403, "The form was sent from another page. Nothing was changed."
        if self._is_read_only and scope["path"] != LOGIN:
            return 403, "Nothing was changed: this server only shows the project (`alloop serve --read-only`)."
        return None

    async def _log_in(self, scope: Message, receive: Receive, send: Send) -> None:
        body = await _read_body(receive)
        fields = parse_qs((body or b"").decode("utf-8", "replace"))
        given = fields.get("token", [""])[0]
        if body is None or not hmac.compare_digest(given.strip().encode(), str(self._token).encode()):
            await _redirect(send, f"{LOGIN.removeprefix('/')}?wrong=1")
            return
        session = secrets.token_urlsafe(32)
        self._sessions[session] = " ".join(fields.get("name", [""])[0].split())[:LONGEST_NAME]
        await _redirect(send, "./", _cookie(scope, session))


def _header(scope: Message, name: bytes) -> str:
    found = [value for key, value in scope["headers"] if key == name]
    return str(found[0].decode("latin-1")) if len(found) == 1 else ""


def _session(scope: Message) -> str:
    """Return the name of the browser's session; empty without one."""
    try:
        cookies = SimpleCookie(_header(scope, b"cookie"))
    except CookieError:
        return ""
    return cookies[COOKIE].value if COOKIE in cookies else ""


def _cookie(scope: Message, session: str) -> tuple[bytes, bytes]:
    secure = "; Secure" if scope["scheme"] == "https" else ""
    return b"set-cookie", f"{COOKIE}={session}; HttpOnly; SameSite=Strict; Path=/{secure}".encode()


async def _read_form(scope: Message, receive: Receive) -> dict[str, list[str]] | tuple[int, str]:
    """Return the fields of a form, or the refusal of a form that is too long, too slow or none."""
    if _header(scope, b"content-type").partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        return 415, "This is not a form of these pages. Nothing was changed."
    try:
        body = await asyncio.wait_for(_read_body(receive, LONGEST_FORM), FORM_SECONDS)
        if body is None:
            return 413, "The form is too long. Nothing was changed. Select fewer images at once."
        return parse_qs(body.decode("ascii"), strict_parsing=bool(body), max_num_fields=MOST_FIELDS)
    except TimeoutError:
        return 408, "The form did not arrive in time. Nothing was changed. Try again."
    except ValueError:
        return 400, "The form cannot be read. Nothing was changed."


async def _read_body(receive: Receive, longest: int = LONGEST_BODY) -> bytes | None:
    """Return the body of a request; None if it is too long."""
    body = b""
    while True:
        message = await receive()
        part: bytes = message.get("body", b"")
        body += part
        if len(body) > longest or message["type"] == "http.disconnect":
            return None
        if not message.get("more_body", False):
            return body


def _with_headers(send: Send, *more: tuple[bytes, bytes]) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = [tuple(pair) for pair in message.get("headers", [])]
            names = {name for name, _ in given}
            message["headers"] = [*given, *(pair for pair in HEADERS if pair[0] not in names), *more]
        await send(message)

    return with_headers


async def _answer(send: Send, status: int, words: str, *headers: tuple[bytes, bytes]) -> None:
    plain = [(b"content-type", b"text/plain; charset=utf-8"), *headers]
    send = _with_headers(send)
    await send({"type": "http.response.start", "status": status, "headers": plain})
    await send({"type": "http.response.body", "body": words.encode()})


async def _redirect(send: Send, to: str, *headers: tuple[bytes, bytes]) -> None:
    """Redirect to a relative address of these pages, never to one that came with the request."""
    await _answer(send, 303, "", (b"location", to.encode()), *headers)
