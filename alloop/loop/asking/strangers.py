"""Sentences about tasks in the labeling project that the database does not know."""

from alloop.names import count


def describe_strangers(orphaned: int, foreign: int) -> list[str]:
    """Return sentences about tasks in the labeling project that the database does not know."""
    lines = [describe_orphaned(orphaned)] if orphaned else []
    if foreign:
        belong, are = ("belongs", "It is") if foreign == 1 else ("belong", "They are")
        lines.append(
            f"{count(foreign, 'task')} in the labeling project {belong} to another workspace. {are} not changed."
        )
    return lines


def describe_orphaned(n: int) -> str:
    """Return a message about tasks that this workspace made but its database does not know."""
    were, them = ("was", "it") if n == 1 else ("were", "them")
    return (
        f"{count(n, 'task')} {were} made by this workspace, but its database does not know {them}: the database was "
        f"restored from a backup, or another copy of the workspace made {them}. Answers to {them} are not recorded. "
        "`alloop labels adopt` records them for the images that the tasks show."
    )
