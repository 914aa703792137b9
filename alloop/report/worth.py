"""Cost of the labels so far and of one more round, in words."""

from alloop.report.gather import StatusReport
from alloop.report.headlines import count


def cost_so_far(status: StatusReport) -> str:
    """Say how many answers people gave, how long that took, and how this is known."""
    n = sum(sum(counts.values()) for counts in status.annotators.values())
    if not n:
        return "Nobody has answered yet."
    seconds = status.findings.outlook.seconds if status.findings.outlook else None
    if seconds is None:
        return f"{count(n, 'answer')} so far. How long they took is not known."
    how = f"{n:,} times the median of {seconds:.2g} s a label"
    return f"{count(n, 'answer')} so far, about {duration(n * seconds)}: {how}."


def duration(seconds: float) -> str:
    """Return seconds as "40 seconds", "25 minutes" or "3.5 hours"."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
