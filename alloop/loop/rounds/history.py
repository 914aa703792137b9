"""Changes of alloop.toml that would invalidate earlier rounds."""

from collections.abc import Collection, Mapping
from typing import Any

from alloop.config.schema import Config, ModelConfig
from alloop.errors import HistoryError

COMPARED = (
    "backbone",
    "weights",
    "mode",
    "uncertainty",
    "members",
    "heads",
    "head_weights",
    "dropout",
    "consistent_masks",
    "image_size",
    "pool_features",
)


def check_history(old: Mapping[str, Any], new: Config, used: Collection[str], *, accept: bool) -> list[str]:
    """Compare the current settings with those of the last round.

    Args:
        old: Stored settings of the last round.
        new: Current settings.
        used: Classes that annotators have answered with.
        accept: True to accept a changed model (`--accept-change`).

    Returns:
        Accepted or harmless changes in words, for the log.

    Raises:
        HistoryError: A class with labels was removed, the test set changed, or the model changed without acceptance.
    """
    _check_test(old.get("evaluation", {}).get("test"), new)
    return _check_classes(old["project"]["classes"], new, used) + _check_model(old["model"], new, accept)


def _check_test(before: str | None, new: Config) -> None:
    now = None if new.evaluation.test is None else str(new.evaluation.test)
    if before != now:
        raise HistoryError(
            f"[evaluation] test was {before or 'not set'} in the last round, and is {now or 'not set'} now.",
            "All rounds must be measured on the same images. Undo the change, or start a new workspace.",
        )


def _check_classes(before: Collection[str], new: Config, used: Collection[str]) -> list[str]:
    now = new.project.classes
    lost = [name for name in before if name not in now and name in used]
    if lost:
        raise HistoryError(
            f"alloop.toml: [project] classes no longer has {', '.join(map(repr, lost))}, which annotators have used.",
            "Put it back: its labels would be lost to training and the rounds could not be compared. "
            "To merge classes, correct the annotations where they were made, or start a new workspace.",
        )
    notes = [f"class added: {name}" for name in now if name not in before]
    return notes + [f"unused class removed: {name}" for name in before if name not in now]


def _check_model(before: Mapping[str, Any], new: Config, accept: bool) -> list[str]:
    # Rounds of an earlier alloop lack newer settings; they ran with the defaults.
    then, now = ModelConfig.model_validate(before), new.model
    keys = [key for key in COMPARED if getattr(then, key) != getattr(now, key)]
    if "members" in keys and (then.uncertainty, then.n_members) == (now.uncertainty, now.n_members):
        keys.remove("members")  # None and the default number mean the same
    changed = [f"[model] {key}: {getattr(then, key)!r} → {getattr(now, key)!r}" for key in keys]
    if changed and not accept:
        raise HistoryError(
            f"alloop.toml: the model changed since the last round: {'; '.join(changed)}.",
            "Accuracies before and after would not show what the labels did. Undo the change, or accept it once with "
            "`alloop run --accept-change`; labels are kept either way.",
        )
    return changed
