"""Creation of the annotator that `[labeling] backend` names."""

from collections.abc import Mapping
from pathlib import Path

from alloop.composition import BACKEND_GROUP, BACKENDS, check_backend
from alloop.errors import ConfigError
from alloop.labeling.annotator import Annotator
from alloop.labeling.backend import Answering, Backend, BackendSetup
from alloop.labeling.pictures import Pictures
from alloop.labeling.settings import Settings
from alloop.plugins import load_named, package_of

_WAY_OUT = "set another [labeling] backend"


def find_backend(name: str) -> Backend:
    """Return the labeling back end of this name. A back end of another package is imported.

    Raises:
        ConfigError: No back end has this name, or it cannot be imported, or it is not a `Backend`.
    """
    try:
        backend = load_named("labeling back end", name, BACKEND_GROUP, BACKENDS, _WAY_OUT)
    except KeyError:
        raise _unknown(name) from None
    if not isinstance(backend, Backend):
        raise ConfigError(
            f"the labeling back end {name} of the package {package_of(name, BACKEND_GROUP)} is not a "
            "Backend (alloop.labeling.backend).",
            f"Ask its authors, or {_WAY_OUT}.",
        )
    return backend


def check_classes(settings: Settings) -> None:
    """Refuse class names that the back end of `[labeling]` cannot ask for.

    Raises:
        ConfigError: The back end cannot ask for a class, or cannot be used.
    """
    find_backend(settings.labeling.backend).check(settings)


def find_page(asked: Answering) -> str | None:
    """Return the address of the page where people answer; None if the back end of `[labeling]` has none.

    Raises:
        ConfigError: The back end cannot be used.
    """
    return find_backend(asked.settings.labeling.backend).address(asked)


def find_sheets(settings: Settings) -> str | None:
    """Return the folder of the files that people fill in; None if the back end of `[labeling]` has none.

    Raises:
        ConfigError: The back end cannot be used.
    """
    return find_backend(settings.labeling.backend).folder(settings)


def build_annotator(
    settings: Settings,
    folder: Path,
    workspace_key: str,
    environ: Mapping[str, str],
    pictures: Pictures,
) -> Annotator:
    """Make the annotator of the back end that `[labeling] backend` names. Nothing is asked of a server yet.

    The arguments are those of `BackendSetup`.

    Raises:
        ConfigError: A setting is missing, or the back end cannot ask for a class, or cannot be used.
        LabelingError: The key is missing or cannot be a valid key.
    """
    name = settings.labeling.backend
    backend = find_backend(name)
    backend.check(settings)
    annotator = backend.build(BackendSetup(settings, folder, workspace_key, environ, pictures))
    if annotator.source != name:  # status finds the back end's project by this name, without a connection
        raise ConfigError(
            f"The labeling back end {name} calls itself {annotator.source!r}.",
            f"Its `source` must be the name under which it is installed. Ask its authors, or {_WAY_OUT}.",
        )
    return annotator


def _unknown(name: str) -> ConfigError:
    try:
        check_backend(name)
    except ValueError as error:
        return ConfigError(str(error))
    return ConfigError(f"The labeling back end {name} is not installed.")
