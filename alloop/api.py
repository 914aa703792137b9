"""alloop from Python: `alloop.open(folder)` opens a workspace, `alloop.open_exported` a model without a workspace.

docs/python.md shows both. The names in this file, their arguments and the columns of tables are stable: they change
only with a note in the changelog. torch is imported by `run`, `scores`, `classifier` and `open_exported` only.
"""

import contextlib
import dataclasses
import datetime as dt
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, final

import pyarrow as pa

from alloop.errors import AlloopError, WorkspaceError
from alloop.executor import chosen_executor
from alloop.export.rows import Include, LabelRow, as_table, list_exported
from alloop.export.table import Table
from alloop.progress import Progress, silent
from alloop.project import Project, open_project
from alloop.report.gather import StatusReport, gather_status
from alloop.store.images import find_all_refs
from alloop.store.queries import list_queries
from alloop.store.rounds import find_round, list_rounds
from alloop.store.session import reading

if TYPE_CHECKING:
    from alloop.engine.classifier import Classifier
    from alloop.engine.exported_classifier import ExportedClassifier
    from alloop.loop.rounds.runner import RunResult


@dataclasses.dataclass(frozen=True, slots=True)
class QueryRow:
    """Question about one image.

    Attributes:
        round: Number of its round.
        file: Path at which the image is, or was last seen.
        sha256: Content hash of the image, 64 hex digits.
        status: open, answered, skipped, empty, unknown or withdrawn.
        reason: acquired, random, holdout, seed, relabel, audit or manual.
        strategy: Name of the strategy that chose it.
        rank: Place in the batch, from 1.
        score: Score of the strategy; higher means ask sooner.
        selection_probability: Probability of selection, in (0, 1], if the image was drawn.
        predicted: Class that the model guessed when the image was chosen.
        confidence: Certainty of the guess in [0, 1]: 1 - entropy / ln K.
        suspect: True if the image looked unlike the rest of the pool.
        settled_at: Time at which the question was no longer open, UTC.
    """

    round: int
    file: str
    sha256: str
    status: str
    reason: str
    strategy: str
    rank: int
    score: float | None
    selection_probability: float | None
    predicted: str | None
    confidence: float | None
    suspect: bool
    settled_at: dt.datetime | None


@dataclasses.dataclass(frozen=True, slots=True)
class ScoreRow:
    """Prediction for one image of the pool, by the model of a round.

    Attributes:
        file: Path at which the image is, or was last seen.
        sha256: Content hash of the image, 64 hex digits.
        predicted: Most probable class.
        probability: Its calibrated probability, in (0, 1].
        entropy: Entropy of the calibrated prediction, in nats, in [0, ln K].
        confidence: 1 - entropy / ln K.
        ood: OOD score; higher means less like the training images.
        suspect: True if the OOD score is extreme in the pool.
        uncertainty: Name of a strategy → score; higher is more uncertain. A column each in the table.
        probabilities: Class → calibrated probability. In the table, a column `p_` and the class each.
    """

    file: str
    sha256: str
    predicted: str
    probability: float
    entropy: float
    confidence: float
    ood: float
    suspect: bool
    uncertainty: Mapping[str, float]
    probabilities: Mapping[str, float]


@final
class Workspace:
    """A workspace, open for programs: what the commands do and say, as Python objects.

    Every method opens the database, reads one consistent state (or takes the steps of `run`) and closes it. So a
    workspace may be used from several threads and after a fork, edits of alloop.toml count from the next call, and
    commands can work on the workspace meanwhile. Use it in a `with` block, or call `close`.
    """

    def __init__(self, folder: Path) -> None:
        """Use `alloop.open`, which checks the folder."""
        self._folder = folder
        self._is_open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Workspace {self._folder}{'' if self._is_open else ', closed'}>"

    @property
    def folder(self) -> Path:
        """Folder of the workspace, as an absolute path."""
        return self._folder

    def close(self) -> None:
        """End the use of the workspace: later calls are refused."""
        self._is_open = False

    def run(
        self,
        *,
        rounds: int | None = 1,
        wait: bool = False,
        device: str | None = None,
        accept_change: bool = False,
        progress: Progress = silent,
    ) -> "RunResult":
        """Advance the current round as far as it can go without a person, as `alloop run` does.

        Args:
            rounds: Number of rounds that may be closed; None: no limit.
            wait: Keep polling while people work.
            device: Device instead of `[model] device`.
            accept_change: Continue although `[model]` changed since the last round.
            progress: Function that receives (label, done, total).

        Returns:
            The stage (`waiting`, `advanced` or `done`), the round, and the numbers of its questions.

        Raises:
            AlloopError: The same problems that the command reports; `LeaseHeld` if another alloop is at work.
        """
        from alloop.loop.rounds.runner import RunOptions
        from alloop.loop.rounds.runner import run as advance
        from alloop.loop.workbench import make_tools

        options = RunOptions(rounds=rounds, wait=wait, device=device, accept_change=accept_change)
        with self._opened() as project:
            return advance(make_tools(project, chosen_executor(), progress), options)

    def status(self) -> StatusReport:
        """Return the numbers of `alloop status --json`."""
        with self._opened() as project:
            return gather_status(project)

    def labels(self, include: Include = "human") -> Table[LabelRow]:
        """Return the labels by content hash, with the columns of `alloop labels export`.

        Args:
            include: Labels by people (`human`), by `alloop autolabel` (`auto`), or `both`.
        """
        with self._opened() as project, reading(project.database) as session:
            labels = list_exported(session, project.config.project, include)
        return Table(as_table(list(labels.values())), _label)

    def queries(self, round: int | None = None) -> Table[QueryRow]:  # noqa: A002 - the word of the commands
        """Return the questions of a round, or of all rounds, by round and rank.

        Raises:
            AlloopError: There is no such round.
        """
        with self._opened() as project, reading(project.database) as session:
            number = None if round is None else find_round(session, round).id
            found = list_queries(session, number)
            refs = find_all_refs(session, {query.image_id for query in found})
        rows = [
            QueryRow(
                round=query.round_number,
                file=refs[query.image_id].path,
                sha256=query.sha256,
                status=query.status.value,
                reason=query.reason.value,
                strategy=query.strategy,
                rank=query.rank,
                score=query.score,
                selection_probability=query.probability,
                predicted=query.predicted,
                confidence=query.confidence,
                suspect=query.suspect,
                settled_at=query.settled_at,
            )
            for query in found
        ]
        columns = {field.name: [getattr(row, field.name) for row in rows] for field in _QUERIES}
        return Table(pa.table(columns, _QUERIES), lambda row: QueryRow(**row))

    def scores(self, round: int | None = None) -> Table[ScoreRow]:  # noqa: A002 - the word of the commands
        """Return the predictions for the pool by the model of a round, or of the newest round that has scores.

        All of them are in memory: images × (classes + about 10) × 4 bytes, and the paths.

        Raises:
            AlloopError: There is no such round, or it has no scores.
            ModelError: The file with the scores is missing or damaged.
        """
        from alloop.loop.choosing.pool_scores import load_scores

        with self._opened() as project:
            with reading(project.database) as session:
                known = [find_round(session, round)] if round is not None else list_rounds(session)
                scored = [one for one in known if one.scores_path is not None]
                if not scored:
                    which = "No round" if round is None else f"Round {round}"
                    has = "has scores yet" if round is None else "has no scores"
                    raise AlloopError(f"{which} {has}.", "`alloop run` or `alloop score` makes them.")
            found = load_scores(project, scored[-1], project.config.acquisition)
            assert found is not None
            with reading(project.database) as session:
                refs = find_all_refs(session, found.scores.image_ids.tolist())
            probs = found.calibrated_log_probs(found.scores.image_ids.tolist()).exp().numpy()
        scores = found.scores
        columns: dict[str, Any] = {
            "file": [refs[image_id].path for image_id in scores.image_ids.tolist()],
            "sha256": scores.sha256s,
            "predicted": scores.predicted,
            "probability": probs.max(axis=1, initial=0.0),
            "entropy": scores.entropy,
            "confidence": scores.confidence,
            "ood": scores.ood,
            "suspect": [image_id in found.suspects for image_id in scores.image_ids.tolist()],
            **scores.uncertainty,
            **{f"p_{name}": probs[:, place] for place, name in enumerate(scores.classes)},
        }
        names, classes = tuple(scores.uncertainty), scores.classes
        return Table(pa.table(columns), lambda row: _score(row, names, classes))

    def classifier(self, round: int | None = None, *, device: str | None = None) -> "Classifier":  # noqa: A002
        """Open the newest model, or that of a round, with its calibrator. It can be used after `close`.

        Args:
            round: Number of a round; None: the newest model.
            device: Device instead of `[model] device`.

        Raises:
            ModelError: There is no model, or it is damaged.
        """
        from alloop.loop.using.model import open_model

        with self._opened() as project:
            return open_model(project, round, device).classifier

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Project]:
        if not self._is_open:
            raise WorkspaceError(f"The workspace {self._folder} is closed.", "Open it again with `alloop.open`.")
        with open_project(self._folder) as project:
            yield project


def open(folder: str | os.PathLike[str] = ".") -> Workspace:  # noqa: A001 - `alloop.open`, as in `gzip.open`
    """Open a workspace, which `alloop init` made.

    Raises:
        ConfigError: The folder is not a workspace, or its settings are wrong.
        DatabaseError: The database has another schema than this alloop needs.
    """
    with open_project(Path(folder)) as project:
        return Workspace(project.folder)


def open_exported(folder: str | os.PathLike[str], *, max_pixels: int | None = None) -> "ExportedClassifier":
    """Open the model of a folder that `alloop export-model` wrote. It predicts on the CPU and needs no workspace.

    Args:
        folder: The folder. Its model is a program: open only folders that you trust.
        max_pixels: Width times height above which an image is refused; None: the default of [pool].

    Raises:
        ModelError: A file is missing, damaged, or of another kind.
    """
    from alloop.engine.exported_classifier import ExportedClassifier

    return ExportedClassifier.open(Path(folder), max_pixels)


_QUERIES = pa.schema(
    [
        pa.field("round", pa.int64(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("strategy", pa.string(), nullable=False),
        pa.field("rank", pa.int64(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("selection_probability", pa.float64()),
        pa.field("predicted", pa.string()),
        pa.field("confidence", pa.float64()),
        pa.field("suspect", pa.bool_(), nullable=False),
        pa.field("settled_at", pa.timestamp("us", "UTC")),
    ]
)


def _label(row: dict[str, Any]) -> LabelRow:
    return LabelRow(**{**row, "annotators": tuple(row["annotators"])})


def _score(row: dict[str, Any], names: tuple[str, ...], classes: tuple[str, ...]) -> ScoreRow:
    plain = {field.name: row[field.name] for field in dataclasses.fields(ScoreRow) if field.name in row}
    return ScoreRow(
        **plain,
        uncertainty={name: row[name] for name in names},
        probabilities={name: row[f"p_{name}"] for name in classes},
    )
