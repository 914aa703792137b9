"""Label Studio's formats: labeling interface (XML), predictions and annotations (JSON).

The parts that depend on the task come from its wording, which `TASKS` names for all labeling back ends.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from alloop.composition import CLASSIFICATION
from alloop.errors import ConfigError, LabelingError
from alloop.labeling.single_choice import SingleChoice
from alloop.labeling.wording import Control, Wording, names_field
from alloop.records import Answer, Outcome, OutgoingTask

TASK_KEY = "alloop_key"
HASH_KEY = "alloop_sha256"

TASKS: Mapping[str, Wording] = {CLASSIFICATION: SingleChoice()}


def check_names(classes: Sequence[str]) -> None:
    """Refuse class names that an interface written by alloop cannot show.

    Raises:
        ConfigError: Label Studio would read a name as a field of the task.
    """
    fields = [name for name in classes if names_field(name)]
    if fields:
        raise ConfigError(
            f"Label Studio cannot show the class {_listing(fields)}: it reads a word that begins with $ as a field of "
            "the task and shows nothing in its place, so the answers would be empty.",
            'Rename the class without $ (for example USD 5), or set [labeling] backend = "csv".',
        )


def is_generated(xml: str, wording: Wording) -> bool:
    """Return whether alloop wrote this interface for some list of classes, ignoring blanks."""
    try:
        names = wording.names(_parse(xml))
    except LabelingError:
        return False
    return xml.split() == wording.build(names).split()


def extended_config(xml: str, classes: Sequence[str], wording: Wording) -> str:
    """Return a generated interface with our classes first, then its other classes."""
    names = wording.names(_parse(xml))
    return wording.build([*classes, *(name for name in names if name not in classes)])


def find_controls(xml: str, parsed: Mapping[str, Any] | None, wording: Wording) -> list[Control]:
    """Find all controls of an interface that can ask the task's question; see `Wording.find_controls`.

    Raises:
        LabelingError: The text is not XML, or declares entities.
    """
    return wording.find_controls(_parse(xml), parsed or {})


def check_config(
    xml: str, parsed: Mapping[str, Any] | None, classes: Sequence[str], where: str, wording: Wording
) -> Control:
    """Return the control of an existing project that can hold our classes.

    Other choices are allowed. An answer with such a choice is reported as unknown.

    Raises:
        LabelingError: No control can hold our classes; names the missing choices and the existing ones.
    """
    controls = find_controls(xml, parsed, wording)
    if not controls:
        raise LabelingError(
            f"The labeling interface of {where} has no {wording.control}, which alloop needs.",
            "Add one in Settings > Labeling Interface, or leave [labeling.label_studio] project_id out "
            "so that alloop makes a project of its own.",
        )
    best = min(controls, key=lambda control: len(set(classes) - set(control.choices)))
    missing = [name for name in classes if name not in best.choices]
    if missing:
        extra = [name for name in best.choices if name not in classes]
        also = f"; it has {_listing(extra)}, which alloop.toml does not know" if extra else ""
        raise LabelingError(
            f"The labeling interface of {where} cannot take the class{'es' if len(missing) > 1 else ''} "
            f"{_listing(missing)}{also}.",
            f"Add {wording.added(missing[0], best)} in Settings > Labeling Interface "
            "(spelling and capitals count), or correct [project] classes in alloop.toml.",
        )
    return best


def prediction(task: OutgoingTask, control: Control, preannotate: bool, wording: Wording) -> dict[str, Any] | None:
    """Return the model's guess in Label Studio's format; None without a model.

    The score orders the queue (lowest first). Without `preannotate` the result is empty, so that nobody can see the
    guess, not even in the Data Manager.
    """
    if task.confidence is None:
        return None
    result = wording.result(task.predicted, control) if preannotate and task.predicted is not None else []
    # Parts of the server silently drop scores outside [0, 1].
    score = min(max(float(task.confidence), 0.0), 1.0)
    return {"model_version": task.model_version or "alloop", "score": score, "result": result}


def read_annotation(annotation: Mapping[str, Any], control_name: str, annotator: str, wording: Wording) -> Answer:
    """Convert an annotation to an answer. An unknown label is kept as it was given."""
    items = [item for item in annotation.get("result") or [] if isinstance(item, Mapping)]
    is_skip = bool(annotation.get("was_cancelled"))
    value = None if is_skip else wording.read([item for item in items if item.get("from_name") == control_name])
    done = Outcome.EMPTY if value is None else Outcome.LABEL
    lead_time = annotation.get("lead_time")
    return Answer(
        external_id=str(annotation["id"]),
        annotator=annotator,
        outcome=Outcome.SKIP if is_skip else done,
        value=value,
        updated_at=read_time(annotation.get("updated_at") or annotation["created_at"]),
        lead_time=float(lead_time) if isinstance(lead_time, int | float) else None,
    )


def read_time(text: str) -> dt.datetime:
    """Read a time in Label Studio's format, in UTC."""
    moment = dt.datetime.fromisoformat(text)
    return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)


def _parse(xml: str) -> ElementTree.Element:
    """Parse an interface. Declarations of entities are refused first, so that none is expanded."""
    if "<!" in xml.replace("<!--", ""):
        raise LabelingError(
            "The labeling interface declares a document type or entities, which alloop does not read.",
            "Remove everything that starts with <! from Settings > Labeling Interface.",
        )
    try:
        return ElementTree.fromstring(xml)  # noqa: S314 - declarations were refused above
    except ElementTree.ParseError as error:
        raise LabelingError(f"The labeling interface is not well-formed XML: {error}.") from error


def _listing(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
