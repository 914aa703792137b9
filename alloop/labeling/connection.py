"""Connection to a Label Studio server: the SDK's client without its retries, and errors in plain words.

The SDK signs requests for both kinds of tokens and exchanges a personal access token when needed. Its typed methods
are not used: they lose results (`prediction_count`, the outcome of an action), are slow on long task lists, and repeat
a POST whose reply was lost, which duplicates tasks.
"""

import base64
import datetime as dt
import enum
import json
import logging
import weakref
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
import stamina
from label_studio_sdk import LabelStudio
from label_studio_sdk.core.api_error import ApiError

from alloop.errors import AlloopError, LabelingError, ServerUnavailable
from alloop.labeling.http_client import make_client

# stamina logs every retry. Without a handler Python would print these messages to stderr.
logging.getLogger("stamina").addHandler(logging.NullHandler())

_ATTEMPTS = 3
_BUSY = {408, 425, 429}


class Fate(enum.Enum):
    """Possible outcome of a request that got no usable answer."""

    LOST = "never reached the server"
    OVER = "the server has finished it, with an unknown result"
    OPEN = "the server may have executed it, or may still be doing so"


class Unanswered(ServerUnavailable):
    """Error for a request that got no usable answer."""

    def __init__(self, message: str, hint: str, fate: Fate) -> None:
        super().__init__(message, hint)
        self.fate = fate


class NotFound(LabelingError):
    """Error 404: the resource does not exist, or this account cannot see it."""


class ServerConnection:
    """Requests to one server with one key.

    Args:
        url: Address of the server, with its path prefix if it has one.
        api_key: Legacy token or personal access token. Never shown in messages or by `repr`.
        timeout: Seconds that one request may take.
        patience: Seconds of the first pause between attempts of a read; each further pause is twice as long.

    Raises:
        LabelingError: The address is invalid, or the key cannot be a valid key.
    """

    def __init__(self, url: str, api_key: str, timeout: float = 120.0, patience: float = 0.5) -> None:
        self.url = url.strip().rstrip("/")
        self._key = api_key.strip()
        self._timeout = timeout
        self._patience = patience
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.netloc:
            raise LabelingError(
                f"{self.url!r} is not an address of a Label Studio server.",
                "Write it as in http://localhost:8080 ([labeling.label_studio] url or LABEL_STUDIO_URL).",
            )
        if parts.username or parts.password:
            raise LabelingError(
                f"The Label Studio address for {parts.hostname} holds a user name or password.",
                "Leave them out; alloop uses the token only.",
            )
        _check_key(self._key, self.url)
        # The slash makes the SDK keep a path prefix when it exchanges a personal access token. Redirects are not
        # followed, because they would turn a POST into a GET.
        self._sdk = LabelStudio(  # type: ignore[no-untyped-call]
            base_url=self.url + "/",
            api_key=self._key,
            timeout=timeout,
            max_retries=0,
            httpx_client=make_client(self.url, timeout),
        )
        # Close the sockets when this object is garbage-collected.
        weakref.finalize(self, self._sdk._client_wrapper.httpx_client.httpx_client.close)

    def __repr__(self) -> str:
        return f"Connection({self.url!r}, {self.key_kind})"

    @property
    def key_kind(self) -> str:
        """Kind of the key, in words."""
        return "personal access token" if _claims(self._key) is not None else "legacy token"

    def read(self, path: str, params: Mapping[str, Any] | None = None) -> Any:
        """Send a GET, several times if necessary.

        Returns:
            The JSON of the reply.

        Raises:
            ServerUnavailable, NotFound, LabelingError: See `send`.
        """
        return self._repeat("GET", path, None, params)

    def change(self, path: str, body: Any) -> Any:
        """Send a PATCH. Like `read`, it can be repeated without harm."""
        return self._repeat("PATCH", path, body, None)

    def _repeat(self, method: str, path: str, body: Any, params: Mapping[str, Any] | None) -> Any:
        for attempt in stamina.retry_context(
            on=ServerUnavailable,
            attempts=_ATTEMPTS,
            timeout=self._timeout,
            wait_initial=self._patience,
            wait_max=4 * self._patience,
            wait_jitter=0.0,
        ):
            with attempt:
                return self.send(method, path, body, params=params)
        raise AssertionError("unreachable: stamina returns or raises")

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        params: Mapping[str, Any] | None = None,
        files: Mapping[str, tuple[str, bytes, str]] | None = None,
    ) -> Any:
        """Send a request exactly once.

        Returns:
            The JSON of the reply; None if it is empty.

        Raises:
            Unanswered: Time-out, lost connection, 5xx, busy server, or a web page instead of data.
            NotFound: 404.
            LabelingError: The server refused the token or the request.
        """
        http = self._sdk._client_wrapper.httpx_client  # private in the SDK, but the same in all of its versions
        try:
            response = http.request(
                path,
                method=method,
                json=body,
                params=dict(params) if params else None,
                files=dict(files) if files else None,
                request_options={"max_retries": 0},
            )
        except ApiError as error:  # raised when the SDK exchanges a personal access token
            raise self._refused(error.status_code or 0, error.body) from None
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        except ValueError as error:  # the reply to the token exchange is a web page
            raise self._nonsense(f"{type(error).__name__} in the reply to the token exchange") from None
        return self._content(response)

    def _content(self, response: httpx.Response) -> Any:
        if response.status_code >= 400:
            raise self._refused(response.status_code, _json_or_text(response))
        if response.is_redirect:
            to = response.headers.get("location", "")
            raise self._nonsense(
                f"HTTP {response.status_code}, a redirect to {urlsplit(to)._replace(query='').geturl()}"
            )
        if response.status_code == 204 or not response.content:
            return None
        body = _json_or_text(response)
        # Only /health returns JSON as text, and alloop does not call it.
        if isinstance(body, str):
            raise self._nonsense(f"HTTP {response.status_code} with {body[:60]!r}")
        return body

    def _refused(self, status: int, body: Any) -> AlloopError:
        said = self._redact(_said(body))
        if status in {401, 403}:
            return self._unauthorized(status, said)
        if status == 404 and isinstance(body, dict):
            return NotFound(f"Label Studio at {self.url} does not have this resource: {said or 'HTTP 404'}.")
        if status >= 500 or status in _BUSY:
            hint = "Try again later. The log of the server holds the reason."
            fate = Fate.OPEN if status in {502, 503, 504} else Fate.OVER
            return Unanswered(f"Label Studio at {self.url} answered HTTP {status}: {said}", hint, fate)
        if not isinstance(body, dict | list):
            return self._nonsense(f"HTTP {status} with {said[:60]!r}")
        return LabelingError(f"Label Studio at {self.url} refused (HTTP {status}): {said}")

    def _unauthorized(self, status: int, said: str) -> LabelingError:
        kind = self.key_kind
        low = said.lower()
        if "legacy token" in low and "disabled" in low:
            return LabelingError(
                f"Label Studio at {self.url} has legacy tokens switched off, and the key looks like one.",
                "Use a personal access token (Account & Settings > Personal Access Token), "
                "or have legacy tokens enabled under Organization > API Tokens Settings.",
            )
        if status == 403:
            return LabelingError(
                f"Label Studio at {self.url} accepted the key ({kind}) but does not permit this: {said}",
                "Use the key of a user who may manage this project.",
            )
        page = "Personal Access Token" if kind.startswith("personal") else "Legacy Token"
        return LabelingError(
            f"Label Studio at {self.url} does not accept the key, which looks like a {kind}: {said}",
            f"Get a new one there under Account & Settings > {page} and put it into LABEL_STUDIO_API_KEY.",
        )

    def _unreachable(self, error: httpx.HTTPError) -> Unanswered:
        hint = "Check that it runs and that [labeling.label_studio] url is right, then run the same command again."
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.UnsupportedProtocol):
            text = f"Label Studio at {self.url} cannot be reached: {self._redact(str(error)) or type(error).__name__}"
            return Unanswered(text.rstrip(".") + ".", hint, Fate.LOST)
        if isinstance(error, httpx.TimeoutException):
            text = f"Label Studio at {self.url} did not answer within {self._timeout:g} s."
            hint = "Try again later, or raise [labeling.label_studio] timeout."
            return Unanswered(text, hint, Fate.OPEN)
        text = f"Label Studio at {self.url} cut the connection: {self._redact(str(error)) or type(error).__name__}"
        return Unanswered(text.rstrip(".") + ".", hint, Fate.OPEN)

    def _nonsense(self, seen: str) -> Unanswered:
        return Unanswered(
            f"The program that answers at {self.url} is not Label Studio: {self._redact(seen)}.",
            "Check [labeling.label_studio] url: a proxy, a login page or another program may be there.",
            Fate.OPEN,
        )

    def _redact(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def retrying(action: Callable[[], Any], exists: Callable[[], Any], attempts: int, pause: Callable[[int], None]) -> Any:
    """Create something exactly once: after an unclear failure, first check whether it exists.

    Args:
        action: Function that creates and returns the object.
        exists: Function that finds the object, or returns None.
        attempts: Largest number of calls of `action`.
        pause: Function that waits; called with 1, 2, … before each check.
    """
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except Unanswered as error:
            pause(attempt)
            if (found := exists()) is not None:
                return found
            if attempt == attempts:
                raise error
    raise AssertionError("unreachable: the last attempt returns or raises")


def _check_key(key: str, url: str) -> None:
    where = f"{url} under Account & Settings"
    if not key:
        raise LabelingError("The Label Studio key is empty.", f"Get one at {where}.")
    if any(sign.isspace() or not sign.isprintable() or not sign.isascii() for sign in key):
        raise LabelingError(
            "The Label Studio key contains spaces or characters that no token has.",
            "Give the bare token, without 'Token '.",
        )
    claims = _claims(key)
    if claims is None:
        return
    if claims.get("token_type") == "access":
        raise LabelingError(
            "The Label Studio key is an access token, which lives for five minutes only.",
            f"Use the personal access token itself: {where} > Personal Access Token.",
        )
    expires = claims.get("exp")
    if not isinstance(expires, int | float) or expires < dt.datetime.now(dt.UTC).timestamp():
        raise LabelingError(
            "The Label Studio key is a personal access token that has expired.",
            f"Get a new one at {where} > Personal Access Token.",
        )


def _claims(key: str) -> dict[str, Any] | None:
    """Return the unverified claims of a JWT; None if the key is not a JWT."""
    parts = key.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except ValueError:
        return None
    return claims if isinstance(claims, dict) else None


def _json_or_text(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return response.text


def _said(body: Any) -> str:
    """Return the server's message: `detail` and the validation errors."""
    if not isinstance(body, dict):
        return " ".join(str(body).split())[:200]
    parts = [str(body.get("detail") or "").strip()]
    errors = body.get("validation_errors")
    if errors:
        parts.append(json.dumps(errors, ensure_ascii=False)[:400])
    return "; ".join(part for part in parts if part) or json.dumps(body, ensure_ascii=False)[:200]
