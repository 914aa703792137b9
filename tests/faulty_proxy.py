"""Proxy that fails on purpose in front of a real server. Standard library only."""

import contextlib
import dataclasses
import http.client
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

PAGE = b"<!doctype html><html><title>Sign in</title></html>"


@dataclasses.dataclass
class Fault:
    """Fault of the next `times` requests that match.

    kind: `cut-before` (never delivered), `cut-after` (delivered, reply lost), `late` (connection cut, delivered
        `seconds` later), `slow` (delivered, reply `seconds` late), `held` (delivered, reply when
        `release` is set), `500`, `html` (instead of delivering), `500-after`, `html-after` (delivered, reply replaced).
    """

    kind: str
    matches: Callable[[str, str], bool]
    times: int = 1
    seconds: float = 0.0


class FaultyProxy:
    """Forwards to `target`, below `prefix` if one is given. `log` lists the requests as (method, path)."""

    def __init__(self, target: str, prefix: str = "") -> None:
        self.target = urlsplit(target)
        self.prefix = prefix
        self.faults: list[Fault] = []
        self.log: list[tuple[str, str]] = []
        self.late: list[threading.Thread] = []
        self.release = threading.Event()
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                proxy.handle(self)

            do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = handle_any

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}{prefix}"

    def fail(self, kind: str, method: str, part: str, times: int = 1, seconds: float = 0.0) -> None:
        """Add a fault for requests of this method whose path contains `part`."""
        self.faults.append(Fault(kind, lambda m, p: m == method and part in p, times, seconds))

    def count(self, method: str, part: str) -> int:
        return sum(m == method and part in p for m, p in self.log)

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        fault = self._take_fault(request.command, request.path)
        kind = fault.kind if fault else ""
        if not request.path.startswith(self.prefix + "/"):
            self._answer(request, 404, "text/html", b"<h1>Nothing here</h1>")
        elif kind == "cut-before":
            self._cut(request)
        elif kind == "late":
            self.late.append(threading.Timer(fault.seconds, self._forward, (request, body)))
            self.late[-1].start()
            self._cut(request)
        elif kind == "500":
            self._answer(request, 500, "application/json", b'{"detail": "out of order"}')
        elif kind == "html":
            self._answer(request, 200, "text/html", PAGE)
        else:
            self._deliver(request, body, kind, fault.seconds if fault else 0.0)

    def _deliver(self, request: BaseHTTPRequestHandler, body: bytes, kind: str, seconds: float) -> None:
        status, headers, content = self._forward(request, body)
        if kind == "cut-after":
            self._cut(request)
        elif kind == "500-after":
            self._answer(request, 500, "application/json", b'{"detail": "out of order"}')
        elif kind == "html-after":
            self._answer(request, 502, "text/html", PAGE)
        else:
            if kind == "held":
                self.release.wait(120)
            time.sleep(seconds)
            with contextlib.suppress(OSError):
                self._answer(request, status, headers.get("Content-Type") or "", content)

    def _take_fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.log.append((method, path))
            for fault in self.faults:
                if fault.times and fault.matches(method, path):
                    fault.times -= 1
                    return fault
        return None

    def _forward(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection(self.target.hostname or "", self.target.port, timeout=60)
        hop = {"host", "connection", "content-length"}
        headers = {name: value for name, value in request.headers.items() if name.lower() not in hop}
        try:
            connection.request(request.command, request.path.removeprefix(self.prefix), body or None, headers)
            reply = connection.getresponse()
            return reply.status, reply.headers, reply.read()
        finally:
            connection.close()

    def _answer(self, request: BaseHTTPRequestHandler, status: int, kind: str, content: bytes) -> None:
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def _cut(self, request: BaseHTTPRequestHandler) -> None:
        request.close_connection = True
        with contextlib.suppress(OSError):
            request.connection.shutdown(2)


@contextlib.contextmanager
def faulty_proxy(target: str, prefix: str = "") -> Iterator[FaultyProxy]:
    """Start a proxy, and stop it at the end of the block."""
    proxy = FaultyProxy(target, prefix)
    thread = threading.Thread(target=proxy.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.release.set()
        for late in proxy.late:
            late.join()
        proxy.server.shutdown()
        thread.join()
        proxy.server.server_close()
