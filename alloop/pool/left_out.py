"""Names that a walk leaves out: files and folders of systems and network drives, and folders that alloop wrote."""

from collections.abc import Collection
from pathlib import Path

from alloop.files import OUTPUT_MARK

# In lower case. Names that begin with a dot are hidden and need no mention here.
_NOISE = frozenset(
    {
        "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
        "@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@__thumb", "@sharebin",
        "~snapshot", "$recycle.bin", "system volume information", "lost+found", "network trash folder",
        "temporary items", "__macosx", "__pycache__",
    }
)  # fmt: skip
_WORKSPACE_FILE = "alloop.toml"
# Folders of a workspace that alloop writes. Its other folders may hold photos.
_OWN = frozenset({"cache", "runs", "backups", "simulate", "compare", "label-studio"})


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden on macOS and Linux: its name begins with a dot."""
    return name.startswith(".")


def is_noise(name: str) -> bool:
    """Return whether a system or network drive made this file or folder: thumbnails, wastebaskets, snapshots."""
    return name.lower() in _NOISE


def is_own(folder: Path) -> bool:
    """Return whether alloop wrote this folder: a part of a workspace, or a folder of results with its mark."""
    return (folder.name in _OWN and _exists(folder.parent / _WORKSPACE_FILE)) or _exists(folder / OUTPUT_MARK)


def is_left_out(folder: Path) -> bool:
    """Return whether a walk leaves out this folder."""
    return is_hidden(folder.name) or is_noise(folder.name) or is_own(folder)


class Reach:
    """Files that a walk of a folder reaches. The answer is stored for each folder.

    Args:
        root: Folder that is walked. The names of its parent folders do not matter.
        named: Names below it that a glob spells out, such as `@eaDir` in `photos/*/@eaDir/*.jpg`; they are not left
            out.
    """

    def __init__(self, root: Path, named: Collection[str] = ()) -> None:
        self.root = root
        self._stops: dict[Path, str | None] = {root: None}
        self._named = frozenset(named)

    def stop(self, file: Path, *, is_folder: bool = False) -> str | None:
        """Return the first name on the way to a file at which the walk stops; None if the walk reaches the file.

        Hidden names do not stop it: hidden files are in the pool only if somebody named them.
        """
        if file == self.root:
            return None
        if is_folder:
            return self._stop(file)
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
