"""Make the current schema's database for the upgrade test: `python tests/assets/schemas/make.py`, once per schema."""

import contextlib
import sqlite3
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from factories import make_project, tools_of  # noqa: E402

from alloop.loop.rounds.runner import RunOptions, run  # noqa: E402
from alloop.store.migrate import head_revision  # noqa: E402


def main() -> None:
    """Write a project with one answered round of eight images and the model that was trained on them."""
    target = HERE / f"{head_revision()}.db"
    target.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        with make_project(Path(folder), n=8, name="pets") as project:
            run(tools_of(project), RunOptions(rounds=None))
        with contextlib.closing(sqlite3.connect(project.folder / "alloop.db")) as connection:
            root = str(project.folder)
            connection.execute("UPDATE image_location SET path = replace(path, ?, '/pets')", [root])
            connection.execute("UPDATE event SET actor = 'ada@example pid 1', data = replace(data, ?, '/pets')", [root])
            connection.execute("UPDATE annotation SET annotator = 'ada'")
            connection.commit()
            connection.execute("VACUUM INTO ?", [str(target)])
    assert folder.encode() not in target.read_bytes(), "the place where it was made shows"


if __name__ == "__main__":
    main()
