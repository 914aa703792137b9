"""The judge of people's answers that a project asks for."""

from alloop.config.schema import ProjectConfig
from alloop.consensus import TASKS, Judge


def judge_of(settings: ProjectConfig) -> Judge:
    """Return the judge of the answers under `[project]`'s task and classes."""
    return TASKS[settings.task](settings.classes)
