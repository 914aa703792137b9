"""The port for labeling back ends. `[labeling] backend` names one, and a `Backend` of this name makes its annotator.

alloop's own back ends are listed in `alloop.composition.BACKENDS`. Other packages add theirs through the entry points
`alloop.labeling`, each of which leads to a `Backend`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from alloop.labeling.annotator import Annotator
from alloop.labeling.pictures import Pictures
from alloop.labeling.settings import Settings


@dataclasses.dataclass(frozen=True, slots=True)
class BackendSetup:
    """Input from which a back end makes its annotator.

    Attributes:
        settings: alloop.toml; relative paths in it are relative to `folder`. `settings.labeling.options` has the
            settings of another package's back end.
        folder: The workspace.
        workspace_key: Key of the workspace, which never changes. It finds the project of an interrupted creation.
        environ: Environment variables; secrets come from here.
        pictures: The images of the pool.
    """

    settings: Settings
    folder: Path
    workspace_key: str
    environ: Mapping[str, str]
    pictures: Pictures


def accept(settings: Settings) -> None:
    """Accept all class names."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answering:
    """Input from which a back end builds the address of the page where people answer.

    Attributes:
        settings, folder, environ: As in `BackendSetup`.
        project_ref: Project of the tasks, as `Annotator.open_project` named it.
        task_id: One task, as `Annotator.push` named it; None for all tasks.
    """

    settings: Settings
    folder: Path
    environ: Mapping[str, str]
    project_ref: str
    task_id: str | None = None


def nowhere(asked: Answering) -> str | None:
    """Return None: there is no page where people answer."""
    return None


def no_files(settings: Settings) -> str | None:
    """Return None: people do not fill in files."""
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class Backend:
    """Place where people label.

    Attributes:
        build: Function that makes the annotator, without asking a server anything. The annotator's `source` is the name
            of the back end.
        check: Function that raises a ConfigError for class names that the back end cannot ask for.
        unheeded: (section, key) → consequence of changing this setting after tasks were sent, if it has no effect on
            these tasks.
        address: Function that returns the address (http or https, without a secret) of the page where people answer,
            without asking a server anything; None if there is no such page.
        folder: Function that returns the folder of the files that people fill in, as alloop.toml writes it; None if
            people do not fill in files.
    """

    build: Callable[[BackendSetup], Annotator]
    check: Callable[[Settings], None] = accept
    unheeded: Mapping[tuple[str, str], str] = dataclasses.field(default_factory=dict)
    address: Callable[[Answering], str | None] = nowhere
    folder: Callable[[Settings], str | None] = no_files
