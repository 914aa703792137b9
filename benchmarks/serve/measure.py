"""Speed of the live pages at 100,000 images and 20 rounds: first bytes, thumbnails, ten readers at once, memory.

    python benchmarks/serve/measure.py FOLDER   # makes the workspace in FOLDER if there is none

The server runs in a process of its own; all times are seen by a client on the same machine, on one connection.
"""

import argparse
import concurrent.futures
import http.client
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

from workspace import N_PHOTOS, build

N_TIMES = 40  # requests of each page
SORTS = ("uncertain", "certain", "name", "margin", "ood")
PAGES = ("overview", "round", "mistakes", "people", "model")


class Client:
    """One connection to the server, kept open."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def first_byte(self, address: str) -> float:
        """Return the seconds from the request to the first byte of the answer; the rest is read afterwards."""
        started = time.perf_counter()
        self._connection.request("GET", f"/{address}")
        answer = self._connection.getresponse()
        seconds = time.perf_counter() - started
        answer.read()
        if answer.status != 200:
            raise SystemExit(f"{address} answered {answer.status}")
        return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--requests", type=int, default=10_000, help="requests while memory is watched")
    args = parser.parse_args()
    if not args.folder.exists():
        started = time.perf_counter()
        build(args.folder, args.images, args.rounds)
        print(f"workspace made in {time.perf_counter() - started:.0f} s", flush=True)
    shutil.rmtree(args.folder / "cache" / "thumbnails", ignore_errors=True)  # of a run before
    port = _free_port()
    command = [sys.executable, "-m", "alloop", "serve", "--port", str(port), "-C", str(args.folder)]
    started = time.perf_counter()
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        server.stdout.readline()
        print(f"server answers after {time.perf_counter() - started:.1f} s")
        _measure(port, server.pid, args)
    finally:
        server.kill()
        server.wait()


def _measure(port: int, pid: int, args: argparse.Namespace) -> None:
    client = Client(port)
    first = [client.first_byte(page) for page in ("overview", "images")]
    print(f"first request of Overview {first[0]:.2f} s, of Images {first[1]:.2f} s")
    last = (args.images - 1) // 60
    for page in PAGES:
        _report(page, [client.first_byte(page) for _ in range(N_TIMES)])
    for sort in SORTS:
        pages = (1, 2, last // 2, last) * (N_TIMES // 4)
        _report(f"images by {sort}", [client.first_byte(f"images?sort={sort}&page={page}") for page in pages])
    for words, query in (
        ("state", "state=unlabeled"), ("class and entropy", f"predicted={quote('class 1')}&least=0.5"),
        ("file name", "text=0099"), ("an attribute", f"attribute={quote('site=site 1')}"),
    ):  # fmt: skip
        _report(f"images filtered by {words}", [client.first_byte(f"images?{query}") for _ in range(N_TIMES)])
    for words in ("made", "kept"):
        started, busy = time.perf_counter(), _cpu_seconds(pid)
        for number in range(1, N_PHOTOS + 1):
            client.first_byte(f"thumbnail?id={number}&side=320")
        seconds, busy = time.perf_counter() - started, _cpu_seconds(pid) - busy
        print(f"thumbnails {words}: {N_PHOTOS / seconds:.0f} a second, {N_PHOTOS / busy:.0f} a second of one core")
    addresses = [*PAGES, *(f"images?sort={sort}&page=3" for sort in SORTS)]
    with concurrent.futures.ThreadPoolExecutor(10) as readers:
        found = list(readers.map(_read_all, [(port, addresses)] * 10))
    _report("ten readers at once, any page", [seconds for one in found for seconds in one])
    _watch_memory(client, pid, addresses, args.requests)


def _watch_memory(client: Client, pid: int, addresses: list[str], n_requests: int) -> None:
    for number in range(n_requests + 1):
        if number % max(1, n_requests // 5) == 0:
            print(f"memory after {number:,} more requests: {_memory(pid) / 2**20:.0f} MiB", flush=True)
        client.first_byte(addresses[number % len(addresses)])


def _read_all(given: tuple[int, list[str]]) -> list[float]:
    port, addresses = given
    client = Client(port)
    return [client.first_byte(address) for address in addresses * 3]


def _report(name: str, seconds: list[float]) -> None:
    middle, high = 1000 * statistics.median(seconds), 1000 * statistics.quantiles(seconds, n=20)[-1]
    print(f"{name:36} median {middle:6.0f} ms, 95 % below {high:6.0f} ms", flush=True)


def _memory(pid: int) -> int:
    """Return the resident memory of the process in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


if __name__ == "__main__":
    main()
