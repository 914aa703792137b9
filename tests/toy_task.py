"""A task that alloop does not have: people mark the defects of a part, and a part without a mark is fine.

It is a classification into the first class (fine) and the others (defects). So it takes from `classification` all parts
that it does not change, and a real trunk, loss and calibrator work with it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element
from xml.sax.saxutils import quoteattr

import numpy as np
import torch

from alloop import consensus
from alloop.acquisition.rows import ONE_ROW, Rows
from alloop.engine import targets
from alloop.evaluation import measures
from alloop.evaluation.intervals import wilson
from alloop.labeling.single_choice import SingleChoice
from alloop.labeling.wording import Control
from alloop.records import Answer, Interval, Outcome
from alloop.report import shown

NAME = "defects"


class _Like:
    """Takes from a classification all parts that it does not define itself."""

    def __init__(self, other: Any) -> None:
        self._other = other

    def __getattr__(self, name: str) -> Any:
        return getattr(self._other, name)


class DefectJudge(_Like):
    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__(consensus.ClassificationJudge(classes))
        self._fine = classes[0]

    def vote(self, answer: Answer) -> str | None:
        vote: str | None = self._fine if answer.outcome is Outcome.EMPTY else self._other.vote(answer)
        return vote

    def agree(self, answers: Sequence[Answer]) -> Any:
        return consensus.majority(answers, self.vote)


class DefectWording(_Like):
    """The interface offers only the defects; choosing nothing means `fine`."""

    control = '<Choices choice="single"> of defects under a <Header>'
    answer = "defect"

    def __init__(self) -> None:
        super().__init__(SingleChoice())

    def build(self, classes: Sequence[str]) -> str:
        header = f"<View>\n  <Header value={quoteattr(classes[0])}/>"
        return str(self._other.build(classes[1:])).replace("<View>", header, 1)

    def names(self, root: Element) -> list[str]:
        return [_fine(root), *self._other.names(root)]

    def find_controls(self, root: Element, parsed: Mapping[str, Any]) -> list[Control]:
        found: list[Control] = self._other.find_controls(root, parsed)
        return [dataclasses.replace(control, choices=(_fine(root), *control.choices)) for control in found]

    def result(self, guess: str, control: Control) -> list[dict[str, Any]]:
        defect: list[dict[str, Any]] = self._other.result(guess, control)
        return [] if guess == control.choices[0] else defect


def _fine(root: Element) -> str:
    return "".join(node.get("value", "") for node in root.iter("Header"))


class DefectCoding(_Like):
    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__(targets.ClassificationCoding(classes))

    def shortage(self, given: Sequence[int]) -> str:
        return "" if len(set(given)) > 1 and 0 in given else "Training needs fine parts and defects."


class DefectRule(_Like):
    """An image has a row for each defect, which is present or absent."""

    def __init__(self) -> None:
        super().__init__(ONE_ROW)

    def rows(self, log_probs: torch.Tensor) -> Rows:
        n_members, n, n_classes = log_probs.shape
        yes = log_probs[:, :, 1:].clamp_max(-1e-6)
        both = torch.stack([torch.log1p(-yes.exp()), yes], dim=-1)
        owner = torch.arange(n).repeat_interleave(n_classes - 1)
        return Rows(both.reshape(n_members, -1, 2), owner, n)

    def add_up(self, values: torch.Tensor, given: Rows) -> torch.Tensor:
        return torch.zeros(given.n_images, dtype=values.dtype).index_add(0, given.owner, values)

    def certainty(self, entropies: torch.Tensor, n_classes: int) -> torch.Tensor:
        return 1 / (1 + entropies)


class DefectMeasures(_Like):
    primary = "found"

    def __init__(self) -> None:
        super().__init__(measures.TASKS["classification"])

    def measure(self, log_probs: Any, labels: Any, generator: np.random.Generator, pooled: Any = None) -> Any:
        others: Mapping[str, Interval] = self._other.measure(log_probs, labels, generator, pooled)
        is_defect = labels > 0
        n_found = int((log_probs.argmax(axis=1)[is_defect] > 0).sum())
        return {self.primary: wilson(n_found, int(is_defect.sum())), **others}


class DefectShown(_Like):
    metrics = (shown.Column("found", "found %", 100, 0),)
    explained = "Found is the share of the defects that the model sees, {measured}."

    def __init__(self) -> None:
        super().__init__(shown.TASKS["classification"])

    def prediction(self, probs: Mapping[str, float]) -> list[tuple[str, str]]:
        return [(name, f"{1000 * share:.0f} in a thousand") for name, share in probs.items()]

    def entropy(self, certainty: float, n_classes: int) -> float:
        return 1 / certainty - 1
