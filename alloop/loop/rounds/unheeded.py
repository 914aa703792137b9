"""Messages about changes of alloop.toml that do not affect existing results, such as a drawn holdout."""

from collections.abc import Mapping
from typing import Any

from alloop.config.schema import Config
from alloop.labeling.build import find_backend


def list_unheeded(before: Mapping[str, Any], new: Config, n_holdout: int) -> list[str]:
    """List messages about settings that changed since the last round began but do not affect existing results.

    Settings that take effect at once, or from the next round on, are not listed.

    Args:
        before: Stored config of the last round.
        new: Current settings.
        n_holdout: Number of images in the holdout, which is drawn once.
    """
    now = new.model_dump(mode="json")
    changed = {
        (section, key): f"[{section}] {key} was {_value(then)} and is {_value(value)} now"
        for section, key, value in _settings(now)
        if (then := _find(before, section, key)) is not None and then != value
    }
    consequences = _consequences(new, n_holdout)
    return [f"{words}: {consequences[setting]}" for setting, words in changed.items() if setting in consequences]


def _consequences(new: Config, n_holdout: int) -> dict[tuple[str, str], str]:
    """Return (section, key) → consequence for each setting whose change comes too late for existing results."""
    drawn = (
        f"the holdout was drawn with the first round and keeps its {n_holdout} images. [evaluation] holdout_growth "
        "adds to it in later rounds."
    )
    once_read = "images that are in the pool stay in it; files that were refused are tried again by `alloop pool add`."
    found = {
        ("project", "seed"): "draws made with the old seed stay, above all the holdout; rounds that begin from now on "
        "use the new seed.",
        ("pool", "max_pixels"): once_read,
        ("pool", "truncated"): once_read,
        ("labeling", "preannotate"): "tasks that were sent already stay as they are; it counts for tasks sent from now "
        "on.",
    }
    if new.evaluation.test is None:
        found |= {("evaluation", "holdout_size"): drawn, ("evaluation", "holdout_share"): drawn}
    return {**found, **find_backend(new.labeling.backend).unheeded}


def _settings(config: Mapping[str, Any], above: str = "") -> list[tuple[str, str, Any]]:
    """Return (section, key, value) of every setting."""
    found: list[tuple[str, str, Any]] = []
    for key, value in config.items():
        if isinstance(value, Mapping) and key != "loss_parameters":
            found += _settings(value, f"{above}.{key}" if above else key)
        else:
            found.append((above, key, value))
    return found


def _find(config: Mapping[str, Any], section: str, key: str) -> Any:
    """Return the value of a setting; None if an earlier alloop did not have the setting."""
    table: Any = config
    for name in section.split("."):
        table = table.get(name, {})
    return table.get(key)


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
