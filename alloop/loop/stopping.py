"""Stop rules: each one gives a plain sentence with its evidence. Pure functions."""

import dataclasses
import enum
import math
from collections.abc import Sequence

from alloop.config.schema import Config, LoopConfig
from alloop.names import count
from alloop.records import Agreement, Ending, Interval
from alloop.store.images import PoolCounts


class Standing(enum.StrEnum):
    """State of a rule by the evidence."""

    HOLDS = "holds"
    NOT = "does not hold"
    UNKNOWN = "cannot tell"


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """Stop rule with its state.

    Attributes:
        name: Reason for closing a round if the rule holds.
        because: The same as a sentence with the evidence.
        stops: True if the settings use the rule, so that the loop ends when it holds.
    """

    name: Ending
    standing: Standing
    because: str
    stops: bool


@dataclasses.dataclass(frozen=True, slots=True)
class StopEvidence:
    """Evidence for the rules.

    Attributes:
        n_labels: Number of labels, with the holdout.
        n_open: Number of unanswered queries.
        n_askable: Number of images that could be asked about now.
        n_rounds: Number of rounds that asked about images.
        accuracy: Accuracy of the newest model on the holdout.
        doubling: Expected gain in accuracy from doubling the training labels.
        agreements: Agreements of the scored rounds, oldest first.
    """

    n_labels: int
    n_open: int
    n_askable: int
    n_rounds: int
    accuracy: Interval | None = None
    doubling: Interval | None = None
    agreements: Sequence[Agreement] = ()


def bought(config: Config, counts: PoolCounts) -> int:
    """Return the number of labels that people gave. Labels of a test set are not counted."""
    return counts.labeled - (0 if config.evaluation.test is None else counts.holdout_labeled)


def find_stop(settings: LoopConfig, evidence: StopEvidence) -> Rule | None:
    """Return the first rule that holds and is configured to stop the loop, or None."""
    rules = list_rules(settings, evidence)
    return next((rule for rule in rules if rule.stops and rule.standing is Standing.HOLDS), None)


def list_rules(settings: LoopConfig, evidence: StopEvidence) -> list[Rule]:
    """List all rules, configured or not."""
    return [
        _budget(settings, evidence),
        _rounds(settings, evidence),
        _exhausted(evidence),
        _target(settings, evidence.accuracy),
        _flat(settings, evidence.doubling),
        _stable(settings, evidence.agreements),
    ]


def batch_size(settings: LoopConfig, n_labels: int, n_open: int) -> int:
    """Return the number of images to ask about now: the configured number, within the label budget.

    Open queries count as labels.
    """
    if settings.label_budget is None:
        return settings.batch_size
    return max(0, min(settings.batch_size, settings.label_budget - n_labels - n_open))


def _budget(settings: LoopConfig, evidence: StopEvidence) -> Rule:
    name, budget = Ending.LABEL_BUDGET, settings.label_budget
    if budget is None:
        return Rule(name, Standing.NOT, f"no label_budget is set; labels so far: {evidence.n_labels}", stops=False)
    to_come = f", {evidence.n_open} being asked" if evidence.n_open else ""
    counted = f"{evidence.n_labels} of {budget} labels{to_come}"
    if evidence.n_labels + evidence.n_open >= budget:
        return Rule(name, Standing.HOLDS, f"label budget reached: {counted}", stops=True)
    return Rule(name, Standing.NOT, f"label budget not reached: {counted}", stops=True)


def _rounds(settings: LoopConfig, evidence: StopEvidence) -> Rule:
    name, limit, n = Ending.ROUND_LIMIT, settings.max_rounds, evidence.n_rounds
    if limit is None:
        return Rule(name, Standing.NOT, f"no max_rounds is set; rounds so far: {n}", stops=False)
    if n >= limit:
        return Rule(name, Standing.HOLDS, f"round limit reached: {n} of {limit} rounds", stops=True)
    return Rule(name, Standing.NOT, f"round limit not reached: {n} of {limit} rounds", stops=True)


def _exhausted(evidence: StopEvidence) -> Rule:
    name = Ending.POOL_EXHAUSTED
    if evidence.n_askable == 0:
        because = "pool exhausted: every image is labeled, being asked, set aside, or a near copy of one that is"
        return Rule(name, Standing.HOLDS, because, stops=True)
    return Rule(
        name, Standing.NOT, f"at most {count(evidence.n_askable, 'image')} could still be asked about", stops=True
    )


def _target(settings: LoopConfig, accuracy: Interval | None) -> Rule:
    name, target = Ending.TARGET_ACCURACY, settings.target_accuracy
    if accuracy is None or math.isnan(accuracy.value):
        return Rule(name, Standing.UNKNOWN, "no accuracy has been measured yet", stops=target is not None)
    measured = f"accuracy {percent(accuracy)} on {accuracy.n} images"
    if target is None:
        return Rule(name, Standing.NOT, f"no target_accuracy is set; {measured}", stops=False)
    wanted = f"target {100 * target:g} %"
    if accuracy.low >= target:
        return Rule(name, Standing.HOLDS, f"target accuracy reached: {measured}, {wanted}", stops=True)
    if accuracy.high < target:
        return Rule(name, Standing.NOT, f"target accuracy not reached: {measured}, {wanted}", stops=True)
    because = f"{measured}: its lower end has not reached the {wanted}, its upper end has"
    return Rule(name, Standing.UNKNOWN, because, stops=True)


def _flat(settings: LoopConfig, doubling: Interval | None) -> Rule:
    name, stops, least = Ending.CURVE_FLAT, settings.stop_when_flat, settings.flat_gain
    if doubling is None:
        return Rule(name, Standing.UNKNOWN, "a learning curve needs three measured rounds", stops=stops)
    promised = f"twice the labels are expected to bring {points(doubling)}, against flat_gain = {100 * least:g} pp"
    if doubling.high < least:
        return Rule(name, Standing.HOLDS, f"learning curve flat: {promised}", stops=stops)
    if doubling.low >= least:
        return Rule(name, Standing.NOT, f"the learning curve still rises: {promised}", stops=stops)
    return Rule(name, Standing.UNKNOWN, promised, stops=stops)


def _stable(settings: LoopConfig, agreements: Sequence[Agreement]) -> Rule:
    name, stops = Ending.STABLE, settings.stop_when_stable
    wanted, least = settings.stable_rounds, settings.stable_agreement
    last = agreements[-wanted:]
    shares = ", ".join(f"{100 * one.share:.1f} %" for one in last)
    if not last:
        return Rule(name, Standing.UNKNOWN, "fewer than two rounds have scored the same images", stops=stops)
    said = f"{shares} of the unlabeled images kept their predicted class from round to round"
    if any(one.share < least for one in last):
        return Rule(name, Standing.NOT, f"{said}, not {100 * least:g} % each time", stops=stops)
    if len(last) < wanted:
        return Rule(name, Standing.UNKNOWN, f"{said}; {wanted} rounds in a row are needed", stops=stops)
    return Rule(name, Standing.HOLDS, f"predictions stable: {said}, {wanted} times at least {100 * least:g} %", stops)


def percent(interval: Interval) -> str:
    """Write a share as `81.2 % [78.0, 84.1]`."""
    value, low, high = (100 * number for number in (interval.value, interval.low, interval.high))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


def points(interval: Interval) -> str:
    """Write a difference in percentage points as `+1.2 pp [−0.5, 2.9]`."""
    value, low, high = (100 * number for number in (interval.value, interval.low, interval.high))
    return f"{_signed(value)} pp [{_plain(low)}, {_plain(high)}]"


def _signed(value: float) -> str:
    rounded = f"{value:+.1f}"
    return ("+0.0" if rounded == "-0.0" else rounded).replace("-", "−")


def _plain(value: float) -> str:
    rounded = f"{value:.1f}"
    return ("0.0" if rounded == "-0.0" else rounded).replace("-", "−")
