"""Guard before every page: host names, login, and the headers that tell the browser what a page may do."""

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
LONGEST_BODY = 4096  # bytes: a form with a token
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
    """

    def __init__(self, app: App, hosts: Collection[str], token: str | None) -> None:
        """`hosts` are names with ports, as a browser sends them; `token` is None where no login is needed."""
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)
        self._token = token
        self._sessions: set[str] = set()

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
        elif self._token is None or scope["path"] in OPEN or self._is_known(scope):
            await self._app(scope, receive, _with_headers(send))
        else:
            await _redirect(send, LOGIN.removeprefix("/"))

    def _refusal(self, scope: Message) -> tuple[int, str] | None:
        if _header(scope, b"host").lower() not in self._hosts:
            return 421, "This server does not answer to this name. Use the address that `alloop serve` printed."
        if len(scope.get("query_string", b"")) > LONGEST_ADDRESS:
            return 414, "The address is too long."
        is_login = scope["path"] == LOGIN and scope["method"] == "POST"
        if scope["method"] not in ("GET", "HEAD") and not is_login:
            return 405, "These pages only show; nothing can be changed here."
        if is_login and _header(scope, b"origin") != f"{scope['scheme']}://{_header(scope, b'host')}":
            return 403, "The form was sent from another page."
        return None

    def _is_known(self, scope: Message) -> bool:
        try:
            cookies = SimpleCookie(_header(scope, b"cookie"))
        except CookieError:
            return False
        return COOKIE in cookies and cookies[COOKIE].value in self._sessions

    async def _log_in(self, scope: Message, receive: Receive, send: Send) -> None:
        body = await _read_body(receive)
        given = parse_qs((body or b"").decode("utf-8", "replace")).get("token", [""])[0]
        if body is None or not hmac.compare_digest(given.strip().encode(), str(self._token).encode()):
            await _redirect(send, f"{LOGIN.removeprefix('/')}?wrong=1")
            return
        session = secrets.token_urlsafe(32)
        self._sessions.add(session)
        secure = "; Secure" if scope["scheme"] == "https" else ""
        cookie = f"{COOKIE}={session}; HttpOnly; SameSite=Strict; Path=/{secure}"
        await _redirect(send, "./", (b"set-cookie", cookie.encode()))


def _header(scope: Message, name: bytes) -> str:
    found = [value for key, value in scope["headers"] if key == name]
    return str(found[0].decode("latin-1")) if len(found) == 1 else ""


async def _read_body(receive: Receive) -> bytes | None:
    """Return the body of a request; None if it is too long."""
    body = b""
    while True:
        message = await receive()
        part: bytes = message.get("body", b"")
        body += part
        if len(body) > LONGEST_BODY:
            return None
        if not message.get("more_body", False):
            return body


def _with_headers(send: Send) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = [tuple(pair) for pair in message.get("headers", [])]
            names = {name for name, _ in given}
            message["headers"] = given + [pair for pair in HEADERS if pair[0] not in names]
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
