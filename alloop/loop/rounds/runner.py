"""Runs: take steps until only a person can continue."""

import contextlib
import dataclasses
import enum
import logging
import time
from collections.abc import Callable

from alloop.errors import LeaseHeld, ServerUnavailable
from alloop.labeling.build import check_classes
from alloop.loop.asking import people
from alloop.loop.asking.answers import Recorded
from alloop.loop.asking.people import Connection
from alloop.loop.choosing.askable import list_askable, list_holdout_to_ask
from alloop.loop.choosing.filter import find_matching
from alloop.loop.intake.ingest import look_again
from alloop.loop.intake.near_copies import group_anew
from alloop.loop.measuring.findings import gather_evidence
from alloop.loop.rounds import steps
from alloop.loop.rounds.attention import describe_lost, list_warnings
from alloop.loop.rounds.round_settings import is_free
from alloop.loop.rounds.tally import Tally, tally
from alloop.loop.rounds.training import current_digest
from alloop.loop.rounds.unheeded import list_unheeded
from alloop.loop.stopping import Rule, find_stop
from alloop.loop.workbench import Tools, Workbench, open_workbench
from alloop.names import count
from alloop.project import Project
from alloop.records import Ending, QueryStatus, RoundState, Split
from alloop.store.images import count_labeled, count_pool, list_split
from alloop.store.queries import count_by_status, list_queries, list_unsent
from alloop.store.rounds import RoundRecord, find_last_model, find_last_round, find_round
from alloop.store.session import reading

STOPPED = "stopped: "  # beginning of the sentence about a round that ended the loop
logger = logging.getLogger("alloop")


class Stage(enum.StrEnum):
    """Outcome of a run."""

    WAITING = "waiting"  # for annotators
    ADVANCED = "advanced"  # a round was closed; run again for the next
    DONE = "done"  # a stop rule holds


@dataclasses.dataclass(frozen=True, slots=True)
class RunResult:
    """Result of a run.

    Attributes:
        asked, open, answered: Numbers of queries of that round; answered ones have a label.
        because: Reason why the round ended, or the state of its queries.
        attention: Sentences about problems that a person should look at.
    """

    stage: Stage
    round_number: int
    asked: int
    open: int
    labels: int
    because: str
    answered: int = 0
    attention: tuple[str, ...] = ()

    def describe(self, where: str, again: str = "Run `alloop run` again for the next round.") -> str:
        """Return how far the run came, and who has to act.

        Args:
            where: Words about the place where people label, with which the sentence ends if people have to act.
            again: Sentence that says how the next round begins.
        """
        if self.stage is Stage.ADVANCED:
            return f"Round {self.round_number} is closed: {self.because}. {again}"
        if self.stage is Stage.DONE:
            labels = count(self.labels, "label")
            return f"Done: {self.because.removeprefix(STOPPED)} (round {self.round_number}, {labels})."
        if not self.open:
            return (
                f"Round {self.round_number}: {self.because}. Correct the answers, or run `alloop round close` to ask "
                "about these images again."
            )
        waits = "waits" if self.open == 1 else "wait"
        return f"Round {self.round_number}: {self.open} of {count(self.asked, 'image')} {waits} for annotators.{where}"


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Options of a run.

    Attributes:
        rounds: Number of rounds that may be closed before the run ends; None: no limit.
        wait: True to keep polling while people work, even while their server is down.
        device: Device instead of `[model] device`.
        accept_change: True to continue although the model's settings changed since the last round.
        sleep: Function that waits.
        on_step: Function that is called after every step with the round, its state before, and wall seconds.
    """

    rounds: int | None = 1
    wait: bool = False
    device: str | None = None
    accept_change: bool = False
    sleep: Callable[[float], None] = time.sleep
    on_step: Callable[[int, RoundState, float], None] = lambda number, state, seconds: None


def run(tools: Tools, options: RunOptions) -> RunResult:
    """Advance the workspace as far as possible without a person.

    While it waits for people (`wait`), it holds no lease, so that a round can be closed by hand meanwhile.

    Raises:
        LeaseHeld: Another alloop is at work.
        ConfigError: `[acquisition] only` cannot be used, or the labeling back end cannot ask for a class.
    """
    project = tools.project
    check_filter(project)
    check_classes(project.config)
    so_far = _SoFar()
    with open_workbench(tools) as bench:
        group_anew(bench)
        _say_unheeded(project)
        result = _Run(bench, options, so_far).run()
    while result.stage is Stage.WAITING and options.wait:
        tools.progress("waiting for annotators", result.asked - result.open, result.asked)
        options.sleep(project.config.labeling.poll_seconds)
        with contextlib.suppress(LeaseHeld), open_workbench(tools) as bench:
            result = _Run(bench, options, so_far).run()
    return result


def _say_unheeded(project: Project) -> None:
    with reading(project.database) as session:
        last, n_holdout = find_last_round(session), len(list_split(session, Split.HOLDOUT))
        # The first round takes the current settings, also for its holdout, until something depends on its own.
        if last is None or (last.number == 0 and is_free(session, last)):
            return
    for words in list_unheeded(last.config, project.config, n_holdout):
        logger.warning("%s", words)


def check_filter(project: Project) -> None:
    """Check `[acquisition] only` before a model is trained.

    Raises:
        ConfigError: The setting is not a condition on facts about the images.
    """
    if (only := project.config.acquisition.only) is not None:
        with reading(project.database) as session:
            find_matching(session, only)


@dataclasses.dataclass
class _SoFar:
    """State of one call of `run`, kept while it waits without the lease.

    Attributes:
        connection: Open project in the labeling back end; None before it is needed.
        pulled: Result of the last pull.
        closed: Number of rounds that were closed.
    """

    connection: Connection | None = None
    pulled: Recorded = dataclasses.field(default_factory=Recorded)
    closed: int = 0


class _Run:
    """Part of a call of `run` that happens under one lease."""

    def __init__(self, bench: Workbench, options: RunOptions, so_far: _SoFar) -> None:
        self._bench = bench
        self._project = bench.project
        self._options = options
        self._so_far = so_far

    def run(self) -> RunResult:
        if n := look_again(self._bench):
            logger.info("%d missing files of the pool were found again.", n)
        while (current := self._current()) is not None:
            began = time.perf_counter()
            stage = self._step(current)
            self._options.on_step(current.number, current.state, time.perf_counter() - began)
            if stage is not None:
                return self._result(stage, current.number)
        return self._result(Stage.DONE, None)

    def _current(self) -> RoundRecord | None:
        """Return the round to work on: the open one or a new one; None if a stop rule holds."""
        with reading(self._project.database) as session:
            last = find_last_round(session)
        if last is not None and last.state is not RoundState.CLOSED:
            return last
        if last is not None and last.ending is not None and last.ending.is_stop and self._is_still_stopped():
            return None
        return steps.start_round(self._bench, accept_change=self._options.accept_change)

    def _step(self, current: RoundRecord) -> Stage | None:
        """Take one step; return None to continue."""
        number, device, accept = current.number, self._options.device, self._options.accept_change
        match current.state:
            case RoundState.CREATED:
                steps.train(self._bench, number, device, accept_change=accept)
            case RoundState.TRAINED:
                if (rule := self._find_stop(number)) is not None:
                    return self._stop(number, rule.name, rule.because)
                steps.score(self._bench, number, device, accept_change=accept)
            case RoundState.SCORED:
                # The agreement with the round before is known only after scoring.
                is_asked = self._project.config.loop.stop_when_stable
                if is_asked and (rule := self._find_stop(number)) is not None:
                    return self._stop(number, rule.name, rule.because)
                asked = steps.select(self._bench, number, device=device, accept_change=accept)
                if asked == 0:
                    return self._stop(number, Ending.NOTHING_TO_ASK, "no image could be asked about")
            case RoundState.SELECTED:
                people.push(self._bench, number, self._people())
            case _:
                return self._await_people(number)
        return None

    def _await_people(self, number: int) -> Stage | None:
        try:
            self._fetch(number)
        except ServerUnavailable as error:
            if not self._options.wait:
                raise
            # A run that waits for days must survive a restart of the server.
            logger.warning("%s Trying again in %g s.", error.message, self._project.config.labeling.poll_seconds)
            return Stage.WAITING
        found = self._tally(number)
        if not found.is_enough(self._project.config.loop.min_answered) and not self._was_never_sent(number):
            return Stage.WAITING
        steps.close(self._bench, number, Ending.ANSWERED, found.describe())
        self._so_far.closed += 1
        is_enough = self._options.rounds is not None and self._so_far.closed >= self._options.rounds
        return Stage.ADVANCED if is_enough else None

    def _fetch(self, number: int) -> None:
        self._so_far.pulled = people.pull(self._bench, self._people())
        if self._has_unsent():
            # Nobody can answer them yet: asked for by hand, or a push to a new project was interrupted.
            people.push(self._bench, number, self._people())

    def _stop(self, number: int, ending: Ending, because: str) -> Stage:
        steps.close(self._bench, number, ending, STOPPED + because)
        return Stage.DONE

    def _find_stop(self, number: int) -> Rule | None:
        with reading(self._project.database) as session:
            askable = list_askable(session, self._project.config.acquisition, number)
            n_askable = len(askable) + len(list_holdout_to_ask(session))
            return find_stop(self._project.config.loop, gather_evidence(session, self._project, n_askable))

    def _is_still_stopped(self) -> bool:
        """Return whether rules and labels are unchanged since a stop rule ended the last round."""
        with reading(self._project.database) as session:
            last, model, is_open = find_last_round(session), find_last_model(session), count_pool(session).open > 0
        if is_open and last is not None:
            self._fetch(last.number)
        trained_on = None if model is None else model.label_digest
        number = 0 if last is None else last.number + 1
        return self._find_stop(number) is not None and current_digest(self._project) in (trained_on, None)

    def _people(self) -> Connection:
        """Return the connection to people, opened at most once and only when needed."""
        if self._so_far.connection is None:
            self._so_far.connection = people.connect_people(self._bench)
        return self._so_far.connection

    def _has_unsent(self) -> bool:
        with reading(self._project.database) as session:
            return bool(list_unsent(session))

    def _was_never_sent(self, number: int) -> bool:
        """Return whether every question was withdrawn before it became a task, so that no answer can come."""
        with reading(self._project.database) as session:
            queries = list_queries(session, find_round(session, number).id)
        return all(query.status is QueryStatus.WITHDRAWN and query.task_id is None for query in queries)

    def _tally(self, number: int) -> Tally:
        with reading(self._project.database) as session:
            return tally(count_by_status(session, find_round(session, number).id))

    def _result(self, stage: Stage, number: int | None) -> RunResult:
        with reading(self._project.database) as session:
            last = find_last_round(session) if number is None else find_round(session, number)
            n_labeled = count_labeled(session)
            labels = n_labeled[Split.TRAIN] + n_labeled[Split.HOLDOUT]
            attention = list_warnings(session, self._project.config)
        attention = [*describe_lost(self._so_far.pulled.lost), *attention]
        if last is None:
            return RunResult(stage, 0, 0, 0, labels, "", attention=tuple(attention))
        found = self._tally(last.number)
        because = last.closed_because or found.describe()
        return RunResult(stage, last.number, found.asked, found.open, labels, because, found.labeled, tuple(attention))
