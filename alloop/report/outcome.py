"""Outcome of a run in a sentence, for commands and pages."""

from alloop.loop.rounds.runner import STOPPED, RunResult, Stage
from alloop.names import count
from alloop.report.headlines import where_to_label


def describe_run(result: RunResult, place: str | None) -> str:
    """Return how far the run came, and who has to act.

    Args:
        result: Result of the run.
        place: Place where people label, from `find_label_place`.
    """
    if result.stage is Stage.ADVANCED:
        return f"Round {result.round_number} is closed: {result.because}. Run `alloop run` again for the next round."
    if result.stage is Stage.DONE:
        labels = count(result.labels, "label")
        return f"Done: {result.because.removeprefix(STOPPED)} (round {result.round_number}, {labels})."
    if not result.open:
        return (
            f"Round {result.round_number}: {result.because}. Correct the answers, or run `alloop round close` to ask "
            "about these images again."
        )
    waits = "waits" if result.open == 1 else "wait"
    said = f"Round {result.round_number}: {result.open} of {count(result.asked, 'image')} {waits} for annotators."
    return said + where_to_label(place)
