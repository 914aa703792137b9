"""Settings and origin of the newest model, as far as they may be shown. Never holds a secret."""

import dataclasses
import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from alloop.project import Project
from alloop.report.made import Facts, gather_made
from alloop.store.rounds import find_last_model
from alloop.store.session import reading

SHOWN = ("project", "pool", "model", "train", "calibration", "loop", "acquisition", "evaluation")
# What a public report may say: no folders of images, and no value that could name a file or a place.
PUBLIC = ("model", "train", "calibration", "loop", "acquisition", "evaluation")
_PLAIN = re.compile(r"[A-Za-z0-9_+:-]+(\.[A-Za-z0-9_]+)*")
_FILES = re.compile(r"\.(safetensors|pth|pt|csv|tsv|parquet|json|zip|tar)$", re.IGNORECASE)
_PRIVATE = frozenset({"only", "test"})


@dataclasses.dataclass(frozen=True, slots=True)
class Provenance:
    """Origin of the newest measured model.

    Attributes:
        facts: What it was trained on, and with which settings.
        versions: Library → version at training; before the first model, the version of this alloop.
        settings: Lines of TOML.
    """

    facts: Facts
    versions: Facts
    settings: tuple[str, ...]


def gather_provenance(project: Project, *, is_public: bool) -> Provenance:
    """Read the origin and the settings of the newest model; before the first model, the present settings."""
    with reading(project.database) as session:
        model, made = find_last_model(session), gather_made(session, project)
    config = project.config.model_dump(mode="json") if model is None else model.config
    facts = () if made is None else tuple(fact for fact in made.facts if not is_public or _may_be_said(*fact))
    versions = (("alloop", importlib.metadata.version("alloop")),) if made is None else made.versions
    return Provenance(facts, versions, tuple(_settings(config, is_public=is_public)))


def _may_be_said(name: str, value: str) -> bool:
    return name != "Backbone" or all(_is_harmless(part) for part in value.split(", "))


def _settings(config: Mapping[str, Any], *, is_public: bool) -> list[str]:
    lines: list[str] = []
    for section in PUBLIC if is_public else SHOWN:
        values = config.get(section)
        if not isinstance(values, Mapping):
            continue
        shown = [(name, value) for name, value in values.items() if value is not None and value != {}]
        if is_public:
            shown = [(name, value) for name, value in shown if name not in _PRIVATE and _is_harmless(value)]
        lines += [f"[{section}]", *(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in shown), ""]
    return lines[:-1]


def _is_harmless(value: object) -> bool:
    """Return whether a value names no file, no place and no person."""
    if isinstance(value, str):
        return bool(_PLAIN.fullmatch(value)) and not _FILES.search(value)
    if isinstance(value, Mapping):
        return all(_is_harmless(each) for each in (*value, *value.values()))
    if isinstance(value, Sequence):
        return all(_is_harmless(each) for each in value)
    return True
