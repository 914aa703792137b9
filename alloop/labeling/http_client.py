"""HTTP client for a Label Studio server."""

import httpx


def make_client(url: str, timeout: float, **options: object) -> httpx.Client:
    """Return a client that follows no redirects; further options are those of `httpx.Client`.

    Over plain HTTP, every request has a connection of its own. The server that `label-studio start` runs sends the head
    and the body of a reply in two packets. On a connection that is kept, the second packet waits until the client's
    system has confirmed the first, which takes 40 ms: longer than the server needs for the whole reply. Over HTTPS,
    where a new connection is expensive and a proxy sends whole replies, connections are kept.
    """
    kept = 0 if url.startswith("http://") else 20
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=kept)
    return httpx.Client(timeout=timeout, follow_redirects=False, limits=limits, **options)  # type: ignore[arg-type]
