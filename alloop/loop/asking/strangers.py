"""Sentences about tasks in the labeling project that the database does not know."""


def describe_strangers(orphaned: int, foreign: int) -> list[str]:
    """Return sentences about tasks in the labeling project that the database does not know."""
    lines = [describe_orphaned(orphaned)] if orphaned else []
    if foreign:
        lines.append(f"{foreign} tasks in the labeling project belong to another workspace. They are not changed.")
    return lines


def describe_orphaned(n: int) -> str:
    """Return a message about tasks that this workspace made but its database does not know."""
    return (
        f"{n} tasks were made by this workspace, but its database does not know them: the database was restored from a "
        "backup, or another copy of the workspace made them. Their answers are not recorded. `alloop labels adopt` "
        "records them for the images that the tasks show."
    )
