"""Label Studio's formats: labeling interface (XML), predictions and annotations (JSON)."""

import dataclasses
import datetime as dt
import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from alloop.errors import ConfigError, LabelingError
from alloop.records import Answer, Outcome, OutgoingTask

IMAGE_KEY = "image"
TASK_KEY = "alloop_key"
HASH_KEY = "alloop_sha256"

# Class names hold no slash (config/schema.py), so several choices at once never look like a class.
_JOINT = " / "

# Label Studio replaces this, anywhere in a text, by the value of the task's field of that name: by nothing if the task
# has no such field. The recorded answer is the replaced text.
_FIELD = re.compile(r"\$[\w\[\].{}]", re.ASCII)


@dataclasses.dataclass(frozen=True, slots=True)
class Control:
    """Control of a labeling interface that asks for the class of an image.

    Attributes:
        name, to_name: Names of the control and of its image in results.
        data_key: Field of a task's data that holds the image.
        choices: Values of its annotations, in the order shown.
    """

    name: str
    to_name: str
    data_key: str
    choices: tuple[str, ...]


def names_field(name: str) -> bool:
    """Return whether Label Studio would read a class name, or a part of it, as the name of a task's field."""
    return _FIELD.search(name) is not None


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


def build_label_config(classes: Sequence[str]) -> str:
    """Return alloop's labeling interface: one image, one choice, number keys for the first nine classes."""
    lines = [
        "<View>",
        f'  <Image name="image" value="${IMAGE_KEY}" zoom="true" zoomControl="true" brightnessControl="true"/>',
        '  <Choices name="label" toName="image" choice="single" showInline="true">',
    ]
    for number, name in enumerate(classes, start=1):
        hotkey = f' hotkey="{number}"' if number <= 9 else ""
        lines.append(f"    <Choice value={quoteattr(name)}{hotkey}/>")
    return "\n".join([*lines, "  </Choices>", "</View>"])


def is_generated(xml: str) -> bool:
    """Return whether `build_label_config` wrote this interface for some list of classes, ignoring blanks."""
    try:
        choices = [node.get("value", "") for node in _parse(xml).iter("Choice")]
    except LabelingError:
        return False
    return xml.split() == build_label_config(choices).split()


def extended_config(xml: str, classes: Sequence[str]) -> str:
    """Return a generated interface with our classes first, then its other classes."""
    choices = [node.get("value", "") for node in _parse(xml).iter("Choice")]
    return build_label_config([*classes, *(choice for choice in choices if choice not in classes)])


def find_controls(xml: str, parsed: Mapping[str, Any] | None = None) -> list[Control]:
    """Find all controls that ask for exactly one class of a whole image.

    Args:
        xml: The project's labeling interface, possibly written by hand.
        parsed: Label Studio's own reading of it (`parsed_label_config`), which holds the values of annotations.

    Raises:
        LabelingError: The text is not XML, or declares entities.
    """
    root = _parse(xml)
    images = {node.get("name", ""): node.get("value", "") for node in root.iter("Image")}
    controls = []
    for node in root.iter("Choices"):
        name, to_name = node.get("name", ""), node.get("toName", "")
        data_key = images.get(to_name, "").strip()
        if not data_key.startswith("$") or node.get("choice", "single") not in {"single", "single-radio"}:
            continue
        if node.get("perRegion", "false").lower() == "true" or node.get("perItem", "false").lower() == "true":
            continue
        labels = ((parsed or {}).get(name) or {}).get("labels")
        spoken = labels or [choice.get("alias") or choice.get("value", "") for choice in node.iter("Choice")]
        lost = {choice.get("value", "") for choice in node.iter("Choice") if not choice.get("alias")}
        heard = [str(choice) for choice in spoken if not (choice in lost and names_field(str(choice)))]
        controls.append(Control(name, to_name, data_key[1:], tuple(heard)))
    return controls


def check_config(xml: str, parsed: Mapping[str, Any] | None, classes: Sequence[str], where: str) -> Control:
    """Return the control of an existing project that can hold our classes.

    Other choices are allowed. An answer with such a choice is reported as unknown.

    Raises:
        LabelingError: No control can hold our classes; names the missing choices and the existing ones.
    """
    controls = find_controls(xml, parsed)
    if not controls:
        raise LabelingError(
            f'The labeling interface of {where} has no <Choices choice="single"> on an <Image value="$…">, '
            "which alloop needs.",
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
            f'Add {_choice(missing[0])} to <Choices name="{best.name}"> in Settings > Labeling Interface '
            "(spelling and capitals count), or correct [project] classes in alloop.toml.",
        )
    return best


def extra_choices(control: Control, classes: Sequence[str]) -> tuple[str, ...]:
    """Return the choices of a control that are not our classes."""
    return tuple(choice for choice in control.choices if choice not in classes)


def prediction(task: OutgoingTask, control: Control, preannotate: bool) -> dict[str, Any] | None:
    """Return the model's guess in Label Studio's format; None without a model.

    The score orders the queue (lowest first). Without `preannotate` the result is empty, so that nobody can see the
    guess, not even in the Data Manager.
    """
    if task.confidence is None:
        return None
    result: list[dict[str, Any]] = []
    if preannotate and task.predicted is not None:
        value = {"choices": [task.predicted]}
        result = [{"from_name": control.name, "to_name": control.to_name, "type": "choices", "value": value}]
    # Parts of the server silently drop scores outside [0, 1].
    score = min(max(float(task.confidence), 0.0), 1.0)
    return {"model_version": task.model_version or "alloop", "score": score, "result": result}


def read_annotation(annotation: Mapping[str, Any], control_name: str, annotator: str) -> Answer:
    """Convert an annotation to an answer. An unknown label is kept as it was given."""
    outcome, value = _outcome(annotation, control_name)
    lead_time = annotation.get("lead_time")
    return Answer(
        external_id=str(annotation["id"]),
        annotator=annotator,
        outcome=outcome,
        value=value,
        updated_at=read_time(annotation.get("updated_at") or annotation["created_at"]),
        lead_time=float(lead_time) if isinstance(lead_time, int | float) else None,
    )


def read_time(text: str) -> dt.datetime:
    """Read a time in Label Studio's format, in UTC."""
    moment = dt.datetime.fromisoformat(text)
    return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)


def _outcome(annotation: Mapping[str, Any], control_name: str) -> tuple[Outcome, str | None]:
    if annotation.get("was_cancelled"):
        return Outcome.SKIP, None
    chosen: list[str] = []
    for item in annotation.get("result") or []:
        if not isinstance(item, Mapping) or item.get("from_name") != control_name:
            continue
        choices = (item.get("value") or {}).get("choices") or []
        for choice in choices if isinstance(choices, list) else [choices]:
            if str(choice) not in chosen:
                chosen.append(str(choice))
    if not chosen:
        return Outcome.EMPTY, None
    return Outcome.LABEL, _JOINT.join(chosen)


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


def _choice(name: str) -> str:
    """Return the XML of a choice for a class. A name with a field gets an alias, which is not replaced in answers."""
    return f'<Choice value="..." alias="{name}"/>' if names_field(name) else f'<Choice value="{name}"/>'


def _listing(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
