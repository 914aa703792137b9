"""The port for tasks in this room: the words in which people are asked about an image and answer."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from xml.etree.ElementTree import Element

import numpy as np

IMAGE_KEY = "image"

# Label Studio replaces this, anywhere in a text, by the value of the task's field of that name: by nothing if the task
# has no such field. The recorded answer is the replaced text.
_FIELD = re.compile(r"\$[\w\[\].{}]", re.ASCII)


@dataclasses.dataclass(frozen=True, slots=True)
class Control:
    """Control of a labeling interface that asks about an image.

    Attributes:
        name, to_name: Names of the control and of its image in results.
        data_key: Field of a task's data that holds the image.
        choices: Values of its annotations, in the order shown.
    """

    name: str
    to_name: str
    data_key: str
    choices: tuple[str, ...]


class Wording(Protocol):
    """Questions and answers of one task: Label Studio's XML and JSON, titles of sheets, mistakes of simulated people.

    XML is parsed before it comes here, and a guess's score is added afterwards.

    Attributes:
        control: XML that an interface must contain, in words.
        answer: Noun for what people write into a sheet.
    """

    @property
    def control(self) -> str: ...

    @property
    def answer(self) -> str: ...

    def build(self, classes: Sequence[str]) -> str:
        """Return the labeling interface (XML) that alloop makes."""
        ...

    def names(self, root: Element) -> list[str]:
        """Return the classes of an interface that `build` may have made."""
        ...

    def find_controls(self, root: Element, parsed: Mapping[str, Any]) -> list[Control]:
        """Find all controls of an interface that can ask this task's question.

        Args:
            root: The project's labeling interface, possibly written by hand.
            parsed: Label Studio's own reading of it (`parsed_label_config`), which holds the values of annotations.
        """
        ...

    def added(self, name: str, control: Control) -> str:
        """Return in words what a person adds to a control so that it takes the class."""
        ...

    def result(self, guess: str, control: Control) -> list[dict[str, Any]]:
        """Return a model's guess as the result of a prediction."""
        ...

    def read(self, items: Sequence[Mapping[str, Any]]) -> str | None:
        """Return the text of an answer from the control's items in a result; None if nothing was chosen."""
        ...

    def mistake(self, value: str, classes: Sequence[str], draw: np.random.Generator) -> str | None:
        """Return a wrong answer; None if none is possible. Draws nothing then."""
        ...


def names_field(name: str) -> bool:
    """Return whether Label Studio would read a class name, or a part of it, as the name of a task's field."""
    return _FIELD.search(name) is not None
