"""Fixtures of the GPU tests: the device, the record of measurements, and images.

The tests run with CUDA. Where there is none, they are rehearsed on the CPU with small networks. A rehearsal shows that
the tests themselves work, and nothing about a GPU; tests that need a real card are skipped. `ALLOOP_GPU_TESTS=cpu`
rehearses beside a card, too; `ALLOOP_GPU_TESTS=cuda` skips all tests where there is no CUDA.

`ALLOOP_GPU_ROWS` names a CSV file. Every measured difference is appended to it at once, so that an interrupted run
keeps its measurements: test, quantity, measured, bound (empty: reported only). The result of each test, the reason for
a skip, and every warning are rows, too. Warnings are errors in all other tests and measurements here: torch warns of
operations without a deterministic implementation, and these depend on the card and the version.
"""

import csv
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from gpu_toys import REHEARSES, Sizes, Toys, make_toys

HERE = Path(__file__).parent
COLUMNS = ("test", "quantity", "measured", "bound")
_warned: set[tuple[str, str]] = set()


def write_row(test: str, quantity: str, measured: object, bound: object = "") -> None:
    """Append a row to the file that ALLOOP_GPU_ROWS names, if it is set."""
    name = os.environ.get("ALLOOP_GPU_ROWS")
    if not name:
        return
    path = Path(name)
    is_new = not path.exists() or not path.stat().st_size
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(COLUMNS)
        writer.writerow([test, quantity, _shown(measured), _shown(bound)])


def _shown(value: object) -> object:
    return f"{value:.3g}" if isinstance(value, float) else value


def _short(nodeid: str) -> str:
    return nodeid.rpartition("gpu/")[2].removeprefix("test_gpu_").replace(".py::test_", ": ")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.filterwarnings("always"))


def pytest_warning_recorded(warning_message: object, nodeid: str) -> None:
    text = " ".join(str(warning_message.message).split())[:160]
    if "gpu/" in nodeid and (nodeid, text) not in _warned:
        _warned.add((nodeid, text))
        kind = "not deterministic" if "determinis" in text else "warning"
        write_row(_short(nodeid), kind, text)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: "pytest.CallInfo[None]") -> Iterator[None]:
    report = yield
    if HERE in item.path.parents:
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            write_row(_short(item.nodeid), "skipped", reason.removeprefix("Skipped: "))
        elif report.failed:
            said = str(call.excinfo.value).strip().splitlines() if call.excinfo else []
            write_row(_short(item.nodeid), f"failed in {report.when}", said[0][:300] if said else report.when)
        elif report.when == "call":
            write_row(_short(item.nodeid), "passed, seconds", report.duration)
    return report


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Return the device under test."""
    if REHEARSES:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA here, and ALLOOP_GPU_TESTS=cuda")
    return torch.device("cuda")


@pytest.fixture(scope="session")
def sizes(device: torch.device) -> Sizes:
    return Sizes.real() if device.type == "cuda" else Sizes.tiny()


@pytest.fixture
def card(device: torch.device) -> torch.device:
    """Return the device for a test that needs a real card."""
    if device.type != "cuda":
        pytest.skip("only a real card can show this")
    return device


@dataclasses.dataclass(frozen=True)
class Measured:
    """Records measurements, and fails the test if one is beyond its bound."""

    test: str

    def __call__(self, quantity: str, value: float, bound: float | None = None) -> None:
        write_row(self.test, quantity, float(value), "" if bound is None else float(bound))
        if bound is not None:
            assert value <= bound, f"{quantity}: {value:.3g} is more than {bound:.3g}"

    def at_least(self, quantity: str, value: float, bound: float) -> None:
        write_row(self.test, quantity, float(value), f">= {bound:g}")
        assert value >= bound, f"{quantity}: {value:.3g} is less than {bound:.3g}"

    def same(self, quantity: str, one: object, other: object) -> None:
        write_row(self.test, quantity, one, other)
        assert one == other, f"{quantity}: {one} and {other}"

    def say(self, quantity: str, text: object) -> None:
        write_row(self.test, quantity, text)


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    return Measured(_short(request.node.nodeid))


@pytest.fixture(scope="session")
def toys(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Toys:
    """Write striped pictures, which a small network can learn."""
    return make_toys(tmp_path_factory.mktemp("toys"))


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that names folders which do not exist yet."""
    return lambda name: tmp_path / name
