"""Known labels of a workspace: a table to import, and what the database says."""

from pathlib import Path

from alloop.project import Project
from alloop.store.annotations import list_labels
from alloop.store.images import list_refs
from alloop.store.session import reading


def write_csv(project: Project, *rows: str) -> Path:
    """Write rows as a table of known labels, and return its path."""
    path = project.folder / "known.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def labels(project: Project) -> dict[str, str]:
    """Return file name → label."""
    with reading(project.database) as session:
        return {Path(str(label.path)).name: label.consensus.value for label in list_labels(session)}


def sha256_of_image(project: Project, name: str) -> str:
    """Return the content hash of the image with this file name."""
    with reading(project.database) as session:
        return next(ref.sha256 for ref in list_refs(session) if Path(ref.path).name == name)
