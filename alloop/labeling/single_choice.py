"""Wording of a classification: one class for each image."""

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element
from xml.sax.saxutils import quoteattr

import numpy as np

from alloop.labeling.wording import IMAGE_KEY, Control, names_field

# Class names hold no slash (config/schema.py), so several choices at once never look like a class.
_JOINT = " / "


class SingleChoice:
    """People choose one class of a list."""

    control = '<Choices choice="single"> on an <Image value="$…">'
    answer = "class"

    def build(self, classes: Sequence[str]) -> str:
        """Return an interface with one image, one choice, and number keys for the first nine classes."""
        lines = [
            "<View>",
            f'  <Image name="image" value="${IMAGE_KEY}" zoom="true" zoomControl="true" brightnessControl="true"/>',
            '  <Choices name="label" toName="image" choice="single" showInline="true">',
        ]
        for number, name in enumerate(classes, start=1):
            hotkey = f' hotkey="{number}"' if number <= 9 else ""
            lines.append(f"    <Choice value={quoteattr(name)}{hotkey}/>")
        return "\n".join([*lines, "  </Choices>", "</View>"])

    def names(self, root: Element) -> list[str]:
        return [node.get("value", "") for node in root.iter("Choice")]

    def find_controls(self, root: Element, parsed: Mapping[str, Any]) -> list[Control]:
        images = {node.get("name", ""): node.get("value", "") for node in root.iter("Image")}
        controls = []
        for node in root.iter("Choices"):
            name, to_name = node.get("name", ""), node.get("toName", "")
            data_key = images.get(to_name, "").strip()
            if data_key.startswith("$") and _asks_for_one_class(node):
                labels = (parsed.get(name) or {}).get("labels")
                controls.append(Control(name, to_name, data_key[1:], _choices(node, labels)))
        return controls

    def added(self, name: str, control: Control) -> str:
        # A name with a field gets an alias, which is not replaced in answers.
        choice = f'value="..." alias="{name}"' if names_field(name) else f'value="{name}"'
        return f'<Choice {choice}/> to <Choices name="{control.name}">'

    def result(self, guess: str, control: Control) -> list[dict[str, Any]]:
        value = {"choices": [guess]}
        return [{"from_name": control.name, "to_name": control.to_name, "type": "choices", "value": value}]

    def read(self, items: Sequence[Mapping[str, Any]]) -> str | None:
        chosen: list[str] = []
        for item in items:
            choices = (item.get("value") or {}).get("choices") or []
            for choice in choices if isinstance(choices, list) else [choices]:
                if str(choice) not in chosen:
                    chosen.append(str(choice))
        return _JOINT.join(chosen) if chosen else None

    def mistake(self, value: str, classes: Sequence[str], draw: np.random.Generator) -> str | None:
        others = [name for name in classes if name != value]
        return str(draw.choice(others)) if others else None


def _asks_for_one_class(choices: Element) -> bool:
    is_single = choices.get("choice", "single") in {"single", "single-radio"}
    is_of_part = "true" in (choices.get(key, "false").lower() for key in ("perRegion", "perItem"))
    return is_single and not is_of_part


def _choices(node: Element, labels: Sequence[Any] | None) -> tuple[str, ...]:
    """Return the values of annotations made with a control."""
    spoken = labels or [choice.get("alias") or choice.get("value", "") for choice in node.iter("Choice")]
    lost = {choice.get("value", "") for choice in node.iter("Choice") if not choice.get("alias")}
    return tuple(str(choice) for choice in spoken if not (choice in lost and names_field(str(choice))))
