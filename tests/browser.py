"""A real browser for tests: the Chromium of the distribution, driven by Selenium, and the server that it looks at."""

import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

AXE = Path(__file__).parents[1] / ".cache" / "axe-core" / "package" / "axe.min.js"
WIDE, NARROW = (1280, 900), (400, 800)
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-dev-shm-usage",
    "--hide-scrollbars",
)  # fmt: skip
_RUN_AXE = """
const done = arguments[arguments.length - 1];
axe.run(document, {resultTypes: ["violations"]}).then(found => done(found.violations), error => done(String(error)));
"""


@dataclasses.dataclass(frozen=True)
class Browser:
    """The browser at one server, with a width of `WIDE` and light colors until a test changes that."""

    driver: Any
    address: str

    def open(self, page: str) -> None:
        """Load a page, such as `images?state=asked`."""
        self.driver.get(f"{self.address}/{page}")

    def all(self, selector: str) -> Sequence[Any]:
        """Return the elements of a CSS selector."""
        found: Sequence[Any] = self.driver.find_elements("css selector", selector)
        return found

    def one(self, selector: str) -> Any:
        """Return the first element of a CSS selector, which must exist."""
        return self.driver.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        """Return the text of the first element, once there is some; the page may replace the element meanwhile."""
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.wait import WebDriverWait

        waits = WebDriverWait(self.driver, 10, ignored_exceptions=[StaleElementReferenceException])
        found: str = waits.until(lambda _: self.one(selector).text)
        return found

    def run(self, script: str, *arguments: object) -> Any:
        """Run JavaScript in the page, past its policy."""
        return self.driver.execute_script(script, *arguments)

    def press(self, *keys: str) -> None:
        """Press keys, one after another, wherever the focus is."""
        from selenium.webdriver import ActionChains

        for key in keys:
            ActionChains(self.driver, duration=0).send_keys(key).perform()

    def focused(self) -> Any:
        """Return the element that has the focus."""
        return self.driver.switch_to.active_element

    def show(self, size: tuple[int, int] = WIDE, *, dark: bool = False, media: str = "") -> None:
        """Set size, colors and medium (`print`) of the window."""
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [scheme]})

    def touch(self, *moments: Sequence[tuple[float, float]]) -> None:
        """Lay fingers on the screen, one or several, move them from moment to moment, and take them away.

        Args:
            moments: Places of all fingers in the window at each moment.
        """
        for at, places in enumerate(moments):
            fingers = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(places)]
            event = {"type": "touchMove" if at else "touchStart", "touchPoints": fingers}
            self.driver.execute_cdp_cmd("Input.dispatchTouchEvent", event)
        self.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    def complaints(self) -> list[str]:
        """Return the errors of the console since the last call: scripts, missing files, breaches of the policy."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def faults(self, axe: str) -> list[str]:
        """Return the serious and critical faults that axe-core finds in the page, each with its first element."""
        self.run(axe)
        found = self.driver.execute_async_script(_RUN_AXE)
        assert isinstance(found, list), found
        return [
            f"{one['id']} ({one['help']}): {one['nodes'][0]['html'][:160]}"
            for one in found
            if one["impact"] in ("serious", "critical")
        ]


@contextlib.contextmanager
def served(folder: Path, *options: str) -> Iterator[str]:
    """Start `alloop serve` for a workspace in a process of its own, and yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "alloop", "serve", "--port", str(port), "-C", str(folder), *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)
    assert server.stdout is not None
    try:
        said = server.stdout.readline()
        assert f"http://127.0.0.1:{port}/" in said, said + server.stdout.read()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start Chromium once; skip the test where there is none."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no chromium and chromedriver on the PATH (Debian: apt-get install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # With the path of its driver, Selenium does not look for one on the network.
    found = webdriver.Chrome(options, webdriver.ChromeService(driver))
    found.set_page_load_timeout(60)
    found.set_script_timeout(60)
    yield found
    found.quit()


@pytest.fixture(scope="session")
def axe() -> str:
    """Return the source of axe-core; skip the test where it was not fetched."""
    if not AXE.is_file():
        pytest.skip(f"no axe-core at {AXE} (.ci/run fetches it with npm)")
    return AXE.read_text(encoding="utf-8")
