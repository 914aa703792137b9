"""First words about a project: for each question one sentence, and what it rests on.

`alloop status`, the live pages and the report say the same, because they all ask here.
"""

import dataclasses

from alloop.loop.stopping import Rule, Standing, points
from alloop.names import count
from alloop.records import Ending, Interval
from alloop.report.gather import StatusReport
from alloop.report.shown import Shown

_NEXT = {
    "created": "The next step trains on {labels}.",
    "trained": "The next step scores the images without a label.",
    "scored": "The next step chooses the images to ask about.",
    "selected": "The next step sends {images} to the people who label.",
}
_STATES = {
    "created": "trains a model",
    "trained": "has a model",
    "scored": "has scored the pool",
    "selected": "has chosen its images",
    "pushed": "waits for answers",
    "closed": "is closed",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Headline:
    """First sentence of a page, and the evidence below it."""

    says: str
    rests_on: str


def five_lines(status: StatusReport, shown: Shown) -> tuple[tuple[str, str], ...]:
    """Return the five lines that matter, each as (subject, sentence).

    They say where the project stands, what happens next and who has to act, how good the model is, whether the labels
    helped, and when to stop.
    """
    title = shown.metrics[0].title.removesuffix(" %")
    return (
        ("Project", _project(status)),
        ("Next", next_step(status)),
        (f"{title[0].upper()}{title[1:]}", how_good(status, shown)),
        ("Did it help?", did_it_help(status)),
        ("When to stop", when_to_stop(status)),
    )


def of_project(status: StatusReport) -> Headline:
    """Say how good the newest measured model is, and whether it is still learning."""
    measured = [row for row in status.rounds if "accuracy" in row.metrics]
    if not measured:
        says, images, rests = _without_model(status)
        return Headline(says, f"{images} {rests}".strip())
    accuracy = measured[-1].metrics["accuracy"]
    rests = f"Between {_percent(accuracy.low)} and {_percent(accuracy.high)} % with 95 % confidence, measured on "
    rests += f"{_measured_images(status, accuracy.n)}."
    if status.findings.matched is not None:
        rests += f" {status.findings.matched['says']}"
    known = "images it has never seen" if not status.findings.on_test else "the images of the test set"
    return Headline(f"The model is right on {_percent(accuracy.value)} % of {known}{_learning(status)}.", rests)


def next_step(status: StatusReport) -> str:
    """Say what happens next and who has to act."""
    if not status.pool.images:
        return "`alloop pool add` adds images."
    if not status.rounds:
        return "`alloop run` takes the first step: it draws the holdout and asks about the first images."
    last = status.rounds[-1]
    n_open = last.queries.get("open", 0)
    if last.state == "pushed":
        if n_open:
            fill_in = f" Fill in the sheets in `{status.sheets}`." if status.sheets else ""
            return (
                f"{waiting(n_open)}. After that, `alloop run` trains again.{fill_in}{where_to_label(status.label_at)}"
            )
        return "All answers are in. `alloop run` fetches them and trains again."
    if last.state == "closed":
        stop = holding(status)
        if stop is not None:
            return f"The loop has stopped: {stop.because}. `alloop run` goes on when a setting or a label changes that."
        why = last.closed_because or "its work is done"
        return f"Round {last.number} is closed: {why}. `alloop run` begins the next one."
    labels = count(status.pool.labeled - status.pool.holdout_labeled, "label")
    words = _NEXT[last.state].format(labels=labels, images=count(n_open, "image"))
    return f"{words} `alloop run` does it."


def waiting(n: int) -> str:
    """Say that people have to answer about n images."""
    return f"{count(n, 'image')} {'waits' if n == 1 else 'wait'} for an answer"


def where_to_label(place: str | None) -> str:
    """Say where people label, as a sentence after another one; empty if the place is not known."""
    return "" if place is None else f" Label at {place}"


def how_good(status: StatusReport, shown: Shown) -> str:
    """Say the primary metric of the newest measured model with its interval, and what it is measured on."""
    metric = shown.metrics[0]
    measured = [row for row in status.rounds if metric.name in row.metrics]
    if not measured:
        says, _, rests = _without_model(status)
        return f"{says} {rests}".rstrip()
    found = measured[-1].metrics[metric.name]
    unit = " %" if metric.title.endswith("%") else ""
    value, low, high = (f"{metric.factor * part:.{metric.digits}f}" for part in (found.value, found.low, found.high))
    return (
        f"{value}{unit}, between {low} and {high}{unit} with 95 % confidence: round {measured[-1].number}, "
        f"{_measured_images(status, found.n)}."
    )


def did_it_help(status: StatusReport) -> str:
    """Say whether the last round made the model better, and whether active learning is better than random choice."""
    better, matched = status.findings.better, status.findings.matched
    if better is None and matched is None:
        return "Nobody can say yet: this needs two measured models."
    said = []
    if better is not None:
        words = {
            "yes": "The last round made the model better",
            "no": "The last round made the model worse",
            "cannot tell": "Too early to say whether the last round helped",
        }[better.verdict]
        said.append(f"{words}{f' ({points(better.comparison.gain)})' if better.comparison else ''}.")
    if matched is not None:
        said.append(str(matched["says"]).removeprefix("Did active learning help here? "))
    return " ".join(said)


def when_to_stop(status: StatusReport) -> str:
    """Say which stop rule holds, or how far the rules of the settings are, and what one more round would bring."""
    if not status.pool.images:
        return "Nothing has begun: there are no images yet."
    stop = holding(status)
    if stop is not None:
        return f"Now: {stop.because}."
    rules = [rule for rule in status.findings.rules if rule.stops]
    chosen = [rule for rule in rules if rule.name is not Ending.POOL_EXHAUSTED]
    left = "; ".join(rule.because for rule in rules if rule.name is Ending.POOL_EXHAUSTED)
    said = f"Not yet: {'; '.join(rule.because for rule in chosen)}." if chosen else f"No stop rule is set; {left}."
    outlook = status.findings.outlook
    return said if outlook is None else f"{said} {outlook.says}"


def holding(status: StatusReport) -> Rule | None:
    """Return the first rule of the settings that holds; None if the loop goes on, or there are no images yet."""
    if not status.pool.images:
        return None
    return next((rule for rule in status.findings.rules if rule.stops and rule.standing is Standing.HOLDS), None)


def look_at(attention: tuple[str, ...]) -> str:
    """Say how many problems need a look, and the first of them; empty without a problem."""
    if len(attention) <= 1:
        return "".join(attention)
    return f"{len(attention)} things need a look (`alloop status -v` shows all). The first: {attention[0]}"


def standing(status: StatusReport) -> str:
    """Say in a few words where the project stands."""
    if not status.rounds:
        return f"{count(status.pool.images, 'image')} · no round yet"
    last = status.rounds[-1]
    asked, settled = sum(last.queries.values()), sum(last.queries.values()) - last.queries.get("open", 0)
    answers = f" · {settled} of {asked} answered" if asked else ""
    return f"Round {last.number} · {last.state}{answers}"


def _project(status: StatusReport) -> str:
    pool = status.pool
    if not pool.images:
        return f"{status.name}: 0 images."
    labeled = (
        f"{count(pool.images, 'image')}, {pool.labeled:,} labeled: "
        f"{pool.labeled - pool.holdout_labeled:,} to train on, "
        f"{pool.holdout_labeled:,} of {pool.holdout:,} in the holdout."
    )
    if not status.rounds:
        return f"{status.name}: no round yet. {labeled}"
    last = status.rounds[-1]
    asked = sum(last.queries.values())
    answers = f" ({asked - last.queries.get('open', 0)} of {asked} are in)" if asked and last.state == "pushed" else ""
    return f"{status.name}: round {last.number} {_STATES[last.state]}{answers}. {labeled}"


def _without_model(status: StatusReport) -> tuple[str, str, str]:
    """Return three sentences: what is missing, which images there are, and what it waits for."""
    if not status.pool.images:
        return "No images yet.", "", "`alloop pool add` adds them."
    images = f"{count(status.pool.images, 'image')}, {status.pool.labeled:,} of them labeled."
    if not status.rounds:
        return "No model yet.", images, "Nothing was asked about so far."
    last = status.rounds[-1]
    asked = sum(last.queries.values())
    if last.model is not None:
        return "The model is not measured yet.", images, "The holdout has too few answers."
    return (
        "No model yet.",
        images,
        f"Answers so far: {asked - last.queries.get('open', 0)} of {asked}." if asked else "",
    )


def _measured_images(status: StatusReport, n: int) -> str:
    """Return the images that the newest model was measured on, in words."""
    which = "of the test set" if status.findings.on_test else "drawn at random, which it never learned from"
    return f"{count(n, 'image')} {which}"


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


def with_share(name: str, share: float) -> str:
    """Return a class with its probability, as "cat (90 %)". Without brackets, "4 100 %" could be read as one number."""
    return f"{name} ({100 * share:.0f} %)"


def gain_of(interval: Interval | None) -> str:
    """Return a difference in points as "+4.5 (1.9 to 7.1)"; a dash without a measurement."""
    if interval is None:
        return "–"
    value, low, high = (f"{100 * part:.1f}".replace("-", "−") for part in (interval.value, interval.low, interval.high))
    return f"{'+' if interval.value >= 0 else ''}{value} ({low} to {high})"
