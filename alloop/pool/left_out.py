"""Names that a walk passes over: folders of systems and devices, and what alloop itself has written."""

from collections.abc import Collection
from pathlib import Path

from alloop.files import OUTPUT_MARK

# In lower case. Names that begin with a dot are hidden and need no mention here.
_NOISE = frozenset(
    {
        "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
        "@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@__thumb", "@sharebin",
        "$recycle.bin", "system volume information", "lost+found", "network trash folder", "temporary items",
        "__macosx", "__pycache__",
    }
)  # fmt: skip
_WORKSPACE_FILE = "alloop.toml"
# In a workspace. Photos may lie in any other folder of it.
_OWN = frozenset({"cache", "runs", "backups", "simulate", "compare", "label-studio"})


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, as macOS and Linux hide it."""
    return name.startswith(".")


def is_noise(name: str) -> bool:
    """Whether a system or a network drive made this file or folder: thumbnails, wastebaskets, snapshots."""
    return name.lower() in _NOISE


def is_own(folder: Path) -> bool:
    """Whether alloop wrote this folder: a part of a workspace, or results that carry its mark."""
    return (folder.name in _OWN and _exists(folder.parent / _WORKSPACE_FILE)) or _exists(folder / OUTPUT_MARK)


def is_left_out(folder: Path) -> bool:
    """Whether a walk passes over a folder that it comes to."""
    return is_hidden(folder.name) or is_noise(folder.name) or is_own(folder)


class Reach:
    """Whether a walk of a folder comes to the files below it, remembered for each folder.

    Args:
        root: The folder that is walked. What leads to it does not matter: it was named.
        named: Names below it that were spelled out, too, as in the glob `photos/*/@eaDir/*.jpg`.
    """

    def __init__(self, root: Path, named: Collection[str] = ()) -> None:
        self.root = root
        self._stops: dict[Path, str | None] = {root: None}
        self._named = frozenset(named)

    def stop(self, file: Path) -> str | None:
        """The first name on the way to a file for which it is not reached; None when it is.

        Hidden names do not count: whatever the pool has of them was named.
        """
        if file == self.root:
            return None
        at_folder = self._stop(file.parent)
        if at_folder is not None or file.name in self._named:
            return at_folder
        return file.name if is_noise(file.name) else None

    def _stop(self, folder: Path) -> str | None:
        if folder not in self._stops:
            above = self._stop(folder.parent)
            is_passed = above is None and folder.name not in self._named
            is_left_out = is_passed and (is_noise(folder.name) or is_own(folder))
            self._stops[folder] = folder.name if is_left_out else above
        return self._stops[folder]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False
