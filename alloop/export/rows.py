"""Labels as they leave alloop: one row for each labeled image, with what is known about the label."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from typing import Literal, get_args

import pyarrow as pa
from sqlalchemy.orm import Session

from alloop.config.schema import ProjectConfig
from alloop.consensus import list_votes
from alloop.loop.intake.judge import judge_of
from alloop.records import Split
from alloop.store.annotations import AnnotationRecord, list_current, list_labels
from alloop.store.auto_labels import list_auto_labels
from alloop.store.images import find_splits
from alloop.store.queries import list_queries

Include = Literal["human", "auto", "both"]
INCLUDES: tuple[Include, ...] = get_args(Include)
Cell = str | int | float | None


@dataclasses.dataclass(frozen=True, slots=True)
class LabelRow:
    """Label of one image. What does not exist is None or empty.

    Attributes:
        file: Path at which the image is, or was last seen.
        sha256: Content hash of the image, 64 hex digits.
        split: train, holdout, or excluded (a near copy of a holdout image).
        agreement: Consensus share: share of the votes that are for the label, in (0, 1].
        annotations: Number of votes, one for each annotator.
        provenance: human, or auto for a label that a model gave.
        source: Labeling back ends that the votes came from, or import; auto for a label that a model gave.
        annotators: Names of those who voted, for the label or against it.
        round: Number of the round that first asked about the image and got one of the votes.
        reason: Reason for that question: acquired, random, holdout, seed, relabel, audit or manual (asked for by hand).
        probability: Probability of the label before calibration, in (0, 1], if a model gave it: the number that
            `alloop autolabel` compared with its threshold.
        selection_probability: Probability of that question's selection, in (0, 1], if the image was drawn.
        model: Name of the model that gave the label.
    """

    file: str | None
    sha256: str
    label: str
    split: str
    agreement: float | None
    annotations: int | None
    provenance: str
    source: str
    annotators: tuple[str, ...]
    round: int | None
    reason: str | None
    probability: float | None
    selection_probability: float | None
    model: str | None


COLUMNS = tuple(field.name for field in dataclasses.fields(LabelRow))
SCHEMA = pa.schema(
    [
        pa.field("file", pa.string()),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("agreement", pa.float64()),
        pa.field("annotations", pa.int64()),
        pa.field("provenance", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("annotators", pa.list_(pa.string()), nullable=False),
        pa.field("round", pa.int64()),
        pa.field("reason", pa.string()),
        pa.field("probability", pa.float64()),
        pa.field("selection_probability", pa.float64()),
        pa.field("model", pa.string()),
    ]
)


def list_exported(session: Session, settings: ProjectConfig, include: Include = "human") -> dict[int, LabelRow]:
    """Return image id → its label, by content hash. Images marked as junk are left out."""
    found = _human(session, settings) if include != "auto" else {}
    if include != "human":
        found |= _auto(session)
    return dict(sorted(found.items(), key=lambda pair: pair[1].sha256))


def as_cells(label: LabelRow) -> dict[str, Cell]:
    """Return column → value, as JSON and CSV hold it."""
    values = dataclasses.asdict(label)
    return values | {"annotators": join_names(label.annotators)}


def as_text(label: LabelRow) -> dict[str, str]:
    """Return column → text; the text of what does not exist is empty."""
    return {name: "" if value is None else str(value) for name, value in as_cells(label).items()}


def as_table(labels: Sequence[LabelRow]) -> pa.Table:
    """Return labels as an Arrow table with the columns of `LabelRow`."""
    columns = [[getattr(label, name) for label in labels] for name in COLUMNS]
    return pa.table([pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)], SCHEMA)


def join_names(names: Sequence[str]) -> str:
    """Join names by `;`. A name with `;` or a quote is quoted as in CSV."""
    text = io.StringIO()
    csv.writer(text, delimiter=";", lineterminator="").writerow(names)
    return text.getvalue()


def _human(session: Session, settings: ProjectConfig) -> dict[int, LabelRow]:
    judge = judge_of(settings)
    questions = {query.id: query for query in list_queries(session)}
    given: dict[int, list[AnnotationRecord]] = {}
    for record in list_current(session):
        given.setdefault(record.image_id, []).append(record)
    found = {}
    for label in list_labels(session):
        if label.split is Split.JUNK:
            continue
        records = {id(record.answer): record for record in given.get(label.image_id, ())}
        answers = [record.answer for record in records.values()]
        votes = [records[id(answer)] for _, answer in list_votes(answers, judge.vote)]
        asked = [questions[record.query_id] for record in votes if record.query_id is not None]
        first = min(asked, key=lambda query: (query.round_number, query.rank), default=None)
        found[label.image_id] = LabelRow(
            file=label.path,
            sha256=label.sha256,
            label=label.consensus.value,
            split=label.split.value,
            agreement=label.consensus.agreement,
            annotations=label.consensus.n,
            provenance="human",
            source=";".join(sorted({record.source for record in votes})),
            annotators=tuple(sorted(record.answer.annotator for record in votes)),
            round=None if first is None else first.round_number,
            reason=None if first is None else first.reason.value,
            probability=None,
            selection_probability=None if first is None else first.probability,
            model=None,
        )
    return found


def _auto(session: Session) -> dict[int, LabelRow]:
    labels = list_auto_labels(session)
    splits = find_splits(session, [label.image_id for label in labels])
    return {
        label.image_id: LabelRow(
            file=label.path,
            sha256=label.sha256,
            label=label.class_name,
            split=splits[label.image_id].value,
            agreement=None,
            annotations=None,
            provenance="auto",
            source=label.source,
            annotators=(),
            round=None,
            reason=None,
            probability=label.probability,
            selection_probability=None,
            model=label.model,
        )
        for label in labels
    }
