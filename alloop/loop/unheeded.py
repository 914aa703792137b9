"""Changes of alloop.toml that come too late for what exists already, each said once in words."""

from collections.abc import Mapping
from typing import Any

from alloop.config.schema import Config


def list_unheeded(before: Mapping[str, Any], new: Config, n_holdout: int) -> list[str]:
    """Settings that changed since the last round began and do not change what it, or a round before it, made.

    Settings that count from the next round on, or at once, are not listed.

    Args:
        before: The frozen config of the last round.
        new: The settings now.
        n_holdout: Images of the holdout, which is drawn once.
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
    """What is true of each setting that only counts once, as long as it counts at all."""
    drawn = (
        f"the holdout was drawn with the first round and keeps its {n_holdout} images. [evaluation] holdout_growth "
        "adds to it in later rounds."
    )
    once_read = "images that are in the pool stay in it; files that were refused are tried again by `alloop pool add`."
    found = {
        ("project", "seed"): "what the earlier seed drew stays, the holdout above all; rounds that begin from now on "
        "draw with the new one.",
        ("pool", "max_pixels"): once_read,
        ("pool", "truncated"): once_read,
        ("labeling", "preannotate"): "tasks that people have already stay as they are; it counts for those sent from "
        "now on.",
    }
    if new.evaluation.test is None:
        found |= {("evaluation", "holdout_size"): drawn, ("evaluation", "holdout_share"): drawn}
    backend = new.labeling.backend
    if backend == "label-studio":
        found["project", "name"] = "the project in Label Studio keeps its title; it can be changed there."
    if backend == "csv":
        found["labeling", "annotations_per_image"] = (
            "sheets that are out keep their rows. Where more people have to answer, copy the row and raise its number "
            "in the column 'copy', or end the round with `alloop round close`."
        )
        found["labeling.csv", "folder"] = "sheets that are out are read from the new folder only; move them there."
    return found


def _settings(config: Mapping[str, Any], above: str = "") -> list[tuple[str, str, Any]]:
    """(section, key, value) of every setting."""
    found: list[tuple[str, str, Any]] = []
    for key, value in config.items():
        if isinstance(value, Mapping) and key != "loss_parameters":
            found += _settings(value, f"{above}.{key}" if above else key)
        else:
            found.append((above, key, value))
    return found


def _find(config: Mapping[str, Any], section: str, key: str) -> Any:
    """A setting; None where an earlier alloop had none."""
    table: Any = config
    for name in section.split("."):
        table = table.get(name, {})
    return table.get(key)


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
