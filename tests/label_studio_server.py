"""One real Label Studio for a test run: it starts when a test needs it, and stops with the run, even a killed one."""

import contextlib
import dataclasses
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from alloop.config.schema import Config, ImagesConfig, LabelingConfig, LabelStudioConfig, ProjectConfig
from alloop.labeling import local_install, local_server
from alloop.labeling.annotator import Annotator
from alloop.labeling.build import build_annotator
from alloop.labeling.http_client import make_client
from alloop.pool.picture import PICTURES
from alloop.simulate.browser_people import BrowserPerson, create_annotator_account

PASSWORD = "correct-horse-battery"

# Installs Label Studio and prepares the empty database of every server. If interrupted, it leaves nothing behind.
INSTALL = """
import pathlib, signal, sys
from alloop.labeling import local_server
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
workspace = pathlib.Path(sys.argv[1])
try:
    local_server.up(workspace)
finally:
    local_server.down(workspace)
"""

# Waits for the end of the test process, also of a killed one, and then stops the server.
WATCHDOG = """
import pathlib, sys
from alloop.labeling import local_server
sys.stdin.read()
local_server.down(pathlib.Path(sys.argv[1]))
"""


@dataclasses.dataclass
class LabelStudioServer:
    """The server and its accounts. `images` is the pool as the server names it."""

    workspace: Path
    images: Path
    credentials: local_server.Credentials
    people: dict[str, BrowserPerson] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        # One client for all requests, because each new one reads the machine's certificates again.
        headers = {"Authorization": f"Token {self.credentials.token}"}
        self.client = make_client(self.url, 60, base_url=self.url, headers=headers)

    @property
    def url(self) -> str:
        return self.credentials.url

    @property
    def admin(self) -> BrowserPerson:
        if "admin" not in self.people:
            self.people["admin"] = BrowserPerson(self.url, self.credentials.email, self.credentials.password)
        return self.people["admin"]

    def person(self, name: str) -> BrowserPerson:
        """Return a colleague with their own account."""
        if name not in self.people:
            self.people[name] = create_annotator_account(self.admin, f"{name}@example.com", PASSWORD)
        return self.people[name]

    def api(self, method: str, path: str, **kwargs: object) -> httpx.Response:
        """Send a request without alloop, with the administrator's token."""
        return self.client.request(method, path, **kwargs)  # type: ignore[arg-type]

    def tasks(self, project_ref: str) -> list[dict[str, object]]:
        """Return all tasks of a project as the server lists them."""
        return self.api("GET", f"/api/tasks?project={project_ref}&page_size=1000&resolve_uri=false").json()["tasks"]

    def annotator(
        self,
        *,
        url: str | None = None,
        key: str | None = None,
        workspace_key: str | None = None,
        classes: tuple[str, ...] = ("cat", "dog"),
        images: ImagesConfig | None = None,
        preannotate: bool = False,
        project_id: int | None = None,
        timeout: float = 60.0,
        push_batch: int = 500,
        annotations_per_image: int = 1,
    ) -> Annotator:
        """Return an annotator as `alloop` builds it from settings."""
        server = LabelStudioConfig(url=url or self.url, timeout=timeout, push_batch=push_batch, project_id=project_id)
        labeling = LabelingConfig(
            label_studio=server,
            images=images or ImagesConfig(root=Path(self.credentials.document_root)),
            preannotate=preannotate,
            annotations_per_image=annotations_per_image,
        )
        config = Config(project=ProjectConfig(name="tests", classes=classes), labeling=labeling)
        # A folder without a server: address and key must come from the settings and the environment, unless a test
        # asks for the server's own workspace.
        folder = self.workspace if url is None and key is None else self.workspace / "elsewhere"
        environ = {} if url is None and key is None else {"LABEL_STUDIO_API_KEY": key or self.credentials.token}
        return build_annotator(config, folder, workspace_key or uuid.uuid4().hex, environ, PICTURES)


@contextlib.contextmanager
def installed_meanwhile(folder: Path) -> Iterator[None]:
    """Install Label Studio, if it is missing, while tests without a server run, because this takes minutes.

    A test that needs the server waits for the installation. If it failed, the test tries again and shows the reason.
    """
    if local_install.program(local_install.venv_path()).exists():
        yield
        return
    quiet = subprocess.DEVNULL
    with subprocess.Popen([sys.executable, "-c", INSTALL, str(folder)], stdout=quiet, stderr=quiet) as process:
        yield
        process.terminate()


@pytest.fixture(scope="session")
def label_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelStudioServer]:
    """Run the server of this test process (of this worker, with pytest-xdist)."""
    workspace = tmp_path_factory.mktemp("label-studio")
    pool = workspace / "pool"
    pool.mkdir()
    watchdog = subprocess.Popen([sys.executable, "-c", WATCHDOG, str(workspace)], stdin=subprocess.PIPE)
    try:
        local_server.up(workspace, [pool])
        credentials = local_server.read_credentials(workspace)
        assert credentials is not None
        server = LabelStudioServer(workspace, Path(credentials.folders[0][1]), credentials)
        yield server
        for person in server.people.values():
            person.close()
        server.client.close()
    finally:
        assert watchdog.stdin is not None
        watchdog.stdin.close()
        watchdog.wait()
        assert not local_server.status(workspace).running


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for a result of another process; fail if it does not come in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
