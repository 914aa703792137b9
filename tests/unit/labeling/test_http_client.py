"""The client of Label Studio: a connection for each request over plain HTTP, no redirects."""

import http.server
import threading
from collections.abc import Iterator

import httpx
import pytest

from alloop.labeling.http_client import make_client


class Server(http.server.ThreadingHTTPServer):
    connections = 0

    def get_request(self):
        self.connections += 1
        return super().get_request()


class Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections may be kept

    def do_GET(self):
        self.send_response(302 if self.path == "/away" else 200)
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_every_request_over_plain_http_has_a_connection_of_its_own(server: Server):
    url = f"http://127.0.0.1:{server.server_port}"
    with make_client(url, 5) as client, httpx.Client() as usual:
        for _ in range(3):
            assert client.get(url).status_code == 200
        assert server.connections == 3
        for _ in range(3):
            usual.get(url)

    assert server.connections == 3 + 1


def test_redirects_are_not_followed(server: Server):
    url = f"http://127.0.0.1:{server.server_port}"
    with make_client(url, 5, base_url=url) as client:
        assert client.get("/away").status_code == 302
