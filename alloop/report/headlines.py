"""First words of a project's pages: one sentence that answers the question of the page, and what it rests on."""

import dataclasses

from alloop.loop.stopping import Standing
from alloop.records import Interval
from alloop.report.gather import StatusReport

_NEXT = {
    "created": "The next step trains on {labels} labels.",
    "trained": "The next step scores the images without a label.",
    "scored": "The next step chooses the images to ask about.",
    "selected": "The next step sends {n} images to the people who label.",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Headline:
    """First sentence of a page, and the evidence below it."""

    says: str
    rests_on: str


def of_project(status: StatusReport) -> Headline:
    """Say how good the newest measured model is, and whether it is still learning."""
    measured = [row for row in status.rounds if "accuracy" in row.metrics]
    if not measured:
        return Headline(*_without_model(status))
    accuracy = measured[-1].metrics["accuracy"]
    place = "of the test set" if status.findings.on_test else "drawn at random, which it never learned from"
    rests = f"Between {_percent(accuracy.low)} and {_percent(accuracy.high)} % with 95 % confidence, measured on "
    rests += f"{count(accuracy.n, 'image')} {place}."
    if status.findings.matched is not None:
        rests += f" {status.findings.matched['says']}"
    known = "images it has never seen" if not status.findings.on_test else "the images of the test set"
    return Headline(f"The model is right on {_percent(accuracy.value)} % of {known}{_learning(status)}.", rests)


def next_step(status: StatusReport) -> str:
    """Say what happens next and who has to act."""
    if not status.rounds:
        return "`alloop run` takes the first step: it draws the holdout and asks about the first images."
    last = status.rounds[-1]
    waiting = last.queries.get("open", 0)
    if last.state == "pushed":
        if waiting:
            return f"{count(waiting, 'image')} wait for an answer. After that, `alloop run` trains again."
        return "All answers are in. `alloop run` fetches them and trains again."
    if last.state == "closed":
        stop = next((rule for rule in status.findings.rules if rule.stops and rule.standing is Standing.HOLDS), None)
        if stop is not None:
            return f"The loop has stopped: {stop.because}. `alloop run` goes on when a setting or a label changes that."
        why = last.closed_because or "its work is done"
        return f"Round {last.number} is closed: {why}. `alloop run` begins the next one."
    words = _NEXT[last.state].format(labels=status.pool.labeled - status.pool.holdout_labeled, n=waiting)
    return f"{words} `alloop run` does it."


def standing(status: StatusReport) -> str:
    """Say in a few words where the project stands."""
    if not status.rounds:
        return f"{count(status.pool.images, 'image')} · no round yet"
    last = status.rounds[-1]
    asked, settled = sum(last.queries.values()), sum(last.queries.values()) - last.queries.get("open", 0)
    answers = f" · {settled} of {asked} answered" if asked else ""
    return f"Round {last.number} · {last.state}{answers}"


def count(n: int, name: str) -> str:
    """Return "1 image" or "2,287 images"."""
    return f"{n:,} {name}{'' if n == 1 else 's'}"


def _without_model(status: StatusReport) -> tuple[str, str]:
    if not status.pool.images:
        return "No images yet.", "`alloop pool add` adds them."
    images = f"{count(status.pool.images, 'image')}, {status.pool.labeled:,} of them labeled."
    if not status.rounds:
        return "No model yet.", f"{images} Nothing was asked about so far."
    last = status.rounds[-1]
    settled = sum(last.queries.values()) - last.queries.get("open", 0)
    if last.model is not None:
        return "The model is not measured yet.", f"{images} The holdout has too few answers."
    return "No model yet.", f"{images} {settled} of the first {sum(last.queries.values())} answers are in."


def _learning(status: StatusReport) -> str:
    better = status.findings.better
    if better is None:
        return ""
    return {
        "yes": ", and still learning",
        "no": ", and worse than the round before",
        "cannot tell": "; too early to say whether the last round helped",
    }[better.verdict]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def interval_of(interval: Interval | None, factor: float = 100, digits: int = 1) -> str:
    """Return "82.6 (80.0–85.2)"; a dash without a measurement."""
    if interval is None:
        return "–"
    value, low, high = (f"{factor * part:.{digits}f}" for part in (interval.value, interval.low, interval.high))
    return f"{value} ({low}–{high})"
