"""`alloop db`: upgrade, check and backup of the database."""

from pathlib import Path

import click

from alloop.cli._options import OutFile, Session, common_options


@click.group()
def db() -> None:
    """Upgrade, check and back up the database."""


@db.command()
@common_options
def upgrade(session: Session) -> None:
    """Create the tables, or upgrade them to this version's schema."""
    from alloop.loop.workspace import upgrade_database
    from alloop.store.migrate import current_revision, head_revision

    project = session.project(check_schema=False)
    before = current_revision(project.database)
    if before == head_revision():
        session.show({"before": before, "now": before}, f"The database already has schema {before}.")
        return
    upgrade_database(project)
    after = current_revision(project.database)
    session.show(
        {"before": before, "now": after}, f"The database was upgraded from schema {before or 'none'} to {after}."
    )


@db.command()
@common_options
def check(session: Session) -> None:
    """Check that the database is intact and has the right schema."""
    from alloop.loop.workspace import check_database

    revision = check_database(session.project())
    session.show({"schema": revision, "sound": True}, f"The database is intact and has schema {revision}.")


@db.command()
@click.argument("target", type=OutFile(), required=False)
@common_options
def backup(session: Session, target: Path | None) -> None:
    """Copy the database, even while other commands write to it.

    Without TARGET, the copy goes into the workspace's folder backups/ and is named by date and time. With `-` as
    TARGET, it goes to standard output.
    """
    from alloop.loop.workspace import backup_database, default_backup

    project = session.project(check_schema=False)
    path = backup_database(project, target or default_backup(project))
    session.show({"backup": str(path)}, f"Copied to {path}.", written=path)
