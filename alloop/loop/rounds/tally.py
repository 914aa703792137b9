"""Counts of a round's questions: with a label, closed without a label, or open. Pure functions."""

import dataclasses
import math
from collections.abc import Mapping

from alloop.names import count
from alloop.records import QueryStatus


@dataclasses.dataclass(frozen=True, slots=True)
class Tally:
    """Numbers of questions of one round, by outcome.

    Attributes:
        labeled: Questions that got enough answers for a label.
        withdrawn: Questions whose task was deleted, whose file is missing or changed, or whose image was marked as
            junk. Other images may be asked about again.
    """

    labeled: int = 0
    skipped: int = 0
    empty: int = 0
    unknown: int = 0
    withdrawn: int = 0
    open: int = 0

    @property
    def asked(self) -> int:
        """Number of all questions."""
        return self.labeled + self.skipped + self.empty + self.unknown + self.withdrawn + self.open

    def is_enough(self, share: float) -> bool:
        """Return whether the round may be closed.

        The given share of questions must be settled, and there must be a label, or every answer is a skip. Unknown
        classes, empty answers and deleted tasks alone are not enough: a person can still correct these mistakes.
        """
        if self.asked - self.open < math.ceil(share * self.asked):
            return False
        return self.labeled > 0 or (self.skipped > 0 and self.empty + self.unknown == 0)

    def describe(self) -> str:
        """Return how many images got a label, and for each reason how many got none."""
        reasons = {
            "skipped": self.skipped,
            "submitted without a class": self.empty,
            "answered with an unknown class": self.unknown,
            "withdrawn, because their task was deleted, their file is missing or changed, or they are marked as junk": (
                self.withdrawn
            ),
        }
        why = ", ".join(f"{n} {reason}" for reason, n in reasons.items() if n)
        return f"{self.labeled} of {count(self.asked, 'image')} answered" + (f"; {why}" if why else "")


def tally(counts: Mapping[QueryStatus, int]) -> Tally:
    """Make a tally from the number of queries of each status."""
    return Tally(
        labeled=counts.get(QueryStatus.ANSWERED, 0),
        skipped=counts.get(QueryStatus.SKIPPED, 0),
        empty=counts.get(QueryStatus.EMPTY, 0),
        unknown=counts.get(QueryStatus.UNKNOWN, 0),
        withdrawn=counts.get(QueryStatus.WITHDRAWN, 0),
        open=counts.get(QueryStatus.OPEN, 0),
    )
