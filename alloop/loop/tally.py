"""How the questions of a round stand: with a label, or settled without one, and why. Pure."""

import dataclasses
import math
from collections.abc import Mapping

from alloop.records import QueryStatus


@dataclasses.dataclass(frozen=True, slots=True)
class Tally:
    """Questions of one round, by what became of them.

    Attributes:
        labeled: Answered by as many people as must answer.
        withdrawn: Their task was deleted, or their file vanished or changed; the image may be asked about again.
    """

    labeled: int = 0
    skipped: int = 0
    empty: int = 0
    unknown: int = 0
    withdrawn: int = 0
    open: int = 0

    @property
    def asked(self) -> int:
        """All of them."""
        return self.labeled + self.skipped + self.empty + self.unknown + self.withdrawn + self.open

    def is_enough(self, share: float) -> bool:
        """Whether the round may be closed.

        As many questions as are wanted are settled, and not in vain: somebody gave a label, or skipped all there was.
        Answers that name no class, empty ones and deleted tasks alone are mistakes that a person can still mend.
        """
        if self.asked - self.open < math.ceil(share * self.asked):
            return False
        return self.labeled > 0 or (self.skipped > 0 and self.empty + self.unknown == 0)

    def describe(self) -> str:
        """How many images have a label, and why others that are settled do not."""
        reasons = {
            "skipped": self.skipped,
            "submitted without a class": self.empty,
            "answered with what is no class": self.unknown,
            "taken back, as their task was deleted, or their file vanished or changed": self.withdrawn,
        }
        why = ", ".join(f"{n} {reason}" for reason, n in reasons.items() if n)
        return f"{self.labeled} of {self.asked} images answered" + (f"; {why}" if why else "")


def tally(counts: Mapping[QueryStatus, int]) -> Tally:
    """The same from how many queries have each status."""
    return Tally(
        labeled=counts.get(QueryStatus.ANSWERED, 0),
        skipped=counts.get(QueryStatus.SKIPPED, 0),
        empty=counts.get(QueryStatus.EMPTY, 0),
        unknown=counts.get(QueryStatus.UNKNOWN, 0),
        withdrawn=counts.get(QueryStatus.WITHDRAWN, 0),
        open=counts.get(QueryStatus.OPEN, 0),
    )
