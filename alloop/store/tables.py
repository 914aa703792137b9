"""Tables and their constraints. The database itself refuses what must never happen."""

import datetime as dt
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from alloop.records import Ending, LocationStatus, Outcome, QueryStatus, Reason, RoundState, Split

# SQLite gives row ids to INTEGER columns only; PostgreSQL wants 64 bits for a pool of billions.
RowId = BigInteger().with_variant(Integer, "sqlite")


class UtcDateTime(TypeDecorator[dt.datetime]):
    """Time with a zone in Python, stored as UTC without a zone, because SQLite has no time zones."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        """Convert to UTC; refuse times without a zone, because they are ambiguous."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone cannot be stored")
        return value.astimezone(dt.UTC).replace(tzinfo=None)

    def process_result_value(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        """Add the zone UTC."""
        return None if value is None else value.replace(tzinfo=dt.UTC)


class TableBase(DeclarativeBase):
    """Base of all tables. Every constraint has a name, so that a migration can drop it on any database."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {dt.datetime: UtcDateTime, dict[str, Any]: JSON}  # noqa: RUF012 (SQLAlchemy's own contract)


def _one_of(column: str, values: type[Any]) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


class Workspace(TableBase):
    """Workspace of this database, in one row. Task keys and the server's project contain its uuid.

    `near_copies` is the distance that the images were grouped with, or "off"; empty before the first grouping.
    """

    __tablename__ = "workspace"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    uuid: Mapped[str] = mapped_column(String(32))
    created_at: Mapped[dt.datetime]
    near_copies: Mapped[str | None] = mapped_column(String(16))
    __table_args__ = (CheckConstraint("id = 1", name="single_row"),)


class Image(TableBase):
    """Image of the pool. Files with the same bytes are one image."""

    __tablename__ = "image"
    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    split: Mapped[str] = mapped_column(String(16), default=Split.TRAIN.value, index=True)
    width: Mapped[int]
    height: Mapped[int]
    format: Mapped[str] = mapped_column(String(16))
    mode: Mapped[str] = mapped_column(String(16))
    phash: Mapped[str] = mapped_column(String(128))  # fingerprint at the image's own depth
    depth: Mapped[int | None]  # number of bits that hold its largest value; None for an image with 8 bits a channel
    added_at: Mapped[dt.datetime]
    __table_args__ = (_one_of("split", Split), CheckConstraint("length(sha256) = 64", name="sha256"))


class Junk(TableBase):
    """Mark of an image as junk: who marked it, when and why. The image's split is `junk` as long as the mark stands."""

    __tablename__ = "junk"
    image_id: Mapped[int] = mapped_column(ForeignKey("image.id"), primary_key=True, autoincrement=False)
    marked_at: Mapped[dt.datetime]
    marked_by: Mapped[str] = mapped_column(String(200))
    reason: Mapped[str | None] = mapped_column(Text)


class ImageLocation(TableBase):
    """Path at which an image was found. A path without an image is a file that could not be read, with the reason."""

    __tablename__ = "image_location"
    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    path: Mapped[str] = mapped_column(Text, unique=True)
    image_id: Mapped[int | None] = mapped_column(ForeignKey("image.id"), index=True)
    status: Mapped[str] = mapped_column(String(16), index=True)
    reason: Mapped[str | None] = mapped_column(Text)
    size: Mapped[int] = mapped_column(BigInteger)
    mtime_ns: Mapped[int] = mapped_column(BigInteger)
    seen_at: Mapped[dt.datetime]
    __table_args__ = (
        _one_of("status", LocationStatus),
        CheckConstraint("status = 'unreadable' OR image_id IS NOT NULL", name="readable_is_image"),
        CheckConstraint("status <> 'unreadable' OR reason IS NOT NULL", name="unreadable_says_why"),
    )


class NearDuplicate(TableBase):
    """Near-duplicate group of an image. A group is named by its first member, which also belongs to it."""

    __tablename__ = "near_duplicate"
    image_id: Mapped[int] = mapped_column(ForeignKey("image.id"), primary_key=True, autoincrement=False)
    group_id: Mapped[int] = mapped_column(ForeignKey("image.id"), index=True)
    distance: Mapped[int]


class ImageAttribute(TableBase):
    """Attribute of an image, such as the site or year, for conditions in `[acquisition] only`."""

    __tablename__ = "image_attribute"
    image_id: Mapped[int] = mapped_column(ForeignKey("image.id"), primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class Round(TableBase):
    """Round, with its exact settings. `matched` is its comparison of acquired with random labels."""

    __tablename__ = "round"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    number: Mapped[int] = mapped_column(unique=True)
    state: Mapped[str] = mapped_column(String(16))
    config: Mapped[dict[str, Any]]
    seed: Mapped[int] = mapped_column(BigInteger)
    scores_path: Mapped[str | None] = mapped_column(Text)
    scores_sha256: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[dt.datetime]
    closed_at: Mapped[dt.datetime | None]
    closed_because: Mapped[str | None] = mapped_column(Text)
    ending: Mapped[str | None] = mapped_column(String(32))  # the reason that `closed_because` puts into words
    matched: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    __table_args__ = (
        _one_of("state", RoundState),
        _one_of("ending", Ending),
        # One round at a time: an index over a constant among the rows that are not closed.
        # Here and below, the same condition for PostgreSQL stands in the migrations only: named here, it would load
        # SQLAlchemy's PostgreSQL dialect into every command.
        Index(
            "uq_round_unclosed",
            text("(state <> 'closed')"),
            unique=True,
            sqlite_where=text("state <> 'closed'"),
        ),
    )


class HoldoutDraw(TableBase):
    """A uniform draw of holdout images: the first one from the pool, those of later rounds from the rest of it."""

    __tablename__ = "holdout_draw"
    round_id: Mapped[int] = mapped_column(ForeignKey("round.id"), primary_key=True, autoincrement=False)
    is_growth: Mapped[bool]
    n_images: Mapped[int]
    n_groups: Mapped[int]  # groups of near copies that the images were drawn from
    __table_args__ = (CheckConstraint("n_images BETWEEN 1 AND n_groups", name="n_images"),)


class HoldoutImage(TableBase):
    """The draw that an image came into the holdout with. Images of a test set have none."""

    __tablename__ = "holdout_image"
    image_id: Mapped[int] = mapped_column(ForeignKey("image.id"), primary_key=True, autoincrement=False)
    round_id: Mapped[int] = mapped_column(ForeignKey("holdout_draw.round_id"), index=True)


class Selection(TableBase):
    """Selection of a round: settings and strategy of its choice. The candidates are in a file under runs/.

    Rounds that chose before there was such a file have none, and the earliest ones recorded no settings either.
    """

    __tablename__ = "selection"
    round_id: Mapped[int] = mapped_column(ForeignKey("round.id"), primary_key=True, autoincrement=False)
    strategy: Mapped[str] = mapped_column(String(64))
    notes: Mapped[list[str]] = mapped_column(JSON)
    n: Mapped[int | None]  # images to choose, the holdout not counted
    settings: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    library_versions: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    path: Mapped[str | None] = mapped_column(Text)
    sha256: Mapped[str | None] = mapped_column(String(64))
    __table_args__ = (CheckConstraint("(path IS NULL) = (sha256 IS NULL)", name="file"),)


class RoundAgreement(TableBase):
    """Share of the images scored in a round and in an earlier one whose predicted class stayed the same."""

    __tablename__ = "agreement"
    round_id: Mapped[int] = mapped_column(ForeignKey("round.id"), primary_key=True, autoincrement=False)
    before_id: Mapped[int] = mapped_column(ForeignKey("round.id"))
    share: Mapped[float] = mapped_column(Float)
    n: Mapped[int]
    __table_args__ = (CheckConstraint("share >= 0 AND share <= 1", name="share"),)


class ModelVersionRow(TableBase):
    """Trained model, with its training labels and calibration. The arrays are files."""

    __tablename__ = "model_version"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    round_id: Mapped[int] = mapped_column(ForeignKey("round.id"), unique=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    path: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(String(64))
    classes: Mapped[list[str]] = mapped_column(JSON)
    head_classes: Mapped[list[list[str]]] = mapped_column(JSON)
    label_digest: Mapped[str] = mapped_column(String(64))
    n_labels: Mapped[int]
    n_holdout: Mapped[int]
    seed: Mapped[int] = mapped_column(BigInteger)
    config: Mapped[dict[str, Any]]
    library_versions: Mapped[dict[str, Any]]
    calibration: Mapped[dict[str, Any]]
    history: Mapped[dict[str, Any]]
    created_at: Mapped[dt.datetime]


class Metric(TableBase):
    """Metric of a model version, with its sample and its uncertainty."""

    __tablename__ = "metric"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    model_version_id: Mapped[int] = mapped_column(ForeignKey("model_version.id"))
    split: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(32))
    value: Mapped[float | None] = mapped_column(Float)
    low: Mapped[float | None] = mapped_column(Float)
    high: Mapped[float | None] = mapped_column(Float)
    n: Mapped[int]
    method: Mapped[str] = mapped_column(String(32))
    computed_at: Mapped[dt.datetime]
    __table_args__ = (UniqueConstraint("model_version_id", "split", "name"),)


class QueryRow(TableBase):
    """Question about one image. An image has at most one open query."""

    __tablename__ = "query"
    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    key: Mapped[str] = mapped_column(String(80), unique=True)
    round_id: Mapped[int] = mapped_column(ForeignKey("round.id"), index=True)
    image_id: Mapped[int] = mapped_column(ForeignKey("image.id"), index=True)
    status: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(String(16))
    strategy: Mapped[str] = mapped_column(String(64))
    rank: Mapped[int]
    score: Mapped[float | None] = mapped_column(Float)
    probability: Mapped[float | None] = mapped_column(Float)
    predicted: Mapped[str | None] = mapped_column(Text)
    confidence: Mapped[float | None] = mapped_column(Float)
    suspect: Mapped[bool] = mapped_column(server_default=false())
    draw_number: Mapped[int | None]
    draw_pool: Mapped[int | None]
    created_at: Mapped[dt.datetime]
    settled_at: Mapped[dt.datetime | None]
    __table_args__ = (
        _one_of("status", QueryStatus),
        _one_of("reason", Reason),
        CheckConstraint("probability IS NULL OR (probability > 0 AND probability <= 1)", name="probability"),
        UniqueConstraint("round_id", "rank"),
        UniqueConstraint("round_id", "image_id"),
        Index(
            "uq_query_open_image",
            "image_id",
            unique=True,
            sqlite_where=text("status = 'open'"),
        ),
    )


class Task(TableBase):
    """Task of a query in the labeling back end: one task per query, one query per task."""

    __tablename__ = "task"
    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    query_id: Mapped[int] = mapped_column(ForeignKey("query.id"), unique=True)
    source: Mapped[str] = mapped_column(String(32))
    project_ref: Mapped[str] = mapped_column(String(200))
    external_id: Mapped[str] = mapped_column(String(200))
    pushed_at: Mapped[dt.datetime]
    gone_at: Mapped[dt.datetime | None]
    __table_args__ = (UniqueConstraint("source", "project_ref", "external_id"),)


class Annotation(TableBase):
    """Answer as given. Rows are only added: an edit is a new version, a deletion is a tombstone."""

    __tablename__ = "annotation"
    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    image_id: Mapped[int] = mapped_column(ForeignKey("image.id"), index=True)
    query_id: Mapped[int | None] = mapped_column(ForeignKey("query.id"), index=True)
    source: Mapped[str] = mapped_column(String(32))
    external_id: Mapped[str] = mapped_column(String(200))
    version: Mapped[int]
    annotator: Mapped[str] = mapped_column(String(200))
    outcome: Mapped[str] = mapped_column(String(16))
    value: Mapped[str | None] = mapped_column(Text)
    lead_time: Mapped[float | None] = mapped_column(Float)
    answered_at: Mapped[dt.datetime]
    recorded_at: Mapped[dt.datetime]
    __table_args__ = (
        UniqueConstraint("source", "external_id", "version"),
        _one_of("outcome", Outcome),
        CheckConstraint("version >= 1", name="version"),
        CheckConstraint("outcome <> 'label' OR value IS NOT NULL", name="label_has_value"),
    )


class Label(TableBase):
    """Label for training, derived from the annotations. Labels can be rebuilt at any time."""

    __tablename__ = "label"
    image_id: Mapped[int] = mapped_column(ForeignKey("image.id"), primary_key=True, autoincrement=False)
    class_name: Mapped[str] = mapped_column(Text)
    agreement: Mapped[float] = mapped_column(Float)
    n_annotations: Mapped[int]
    derived_at: Mapped[dt.datetime]


class AutolabelLook(TableBase):
    """Look at the holdout labels that may allow automatic labels. Every look spends a part of the confidence.

    `outcome` holds the tests of the look: for each chain of thresholds its class, threshold, images and errors.
    """

    __tablename__ = "autolabel_look"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    number: Mapped[int] = mapped_column(unique=True)
    model: Mapped[str] = mapped_column(String(64))
    model_sha256: Mapped[str] = mapped_column(String(64))
    holdout_digest: Mapped[str] = mapped_column(String(64))
    max_error: Mapped[float] = mapped_column(Float)
    confidence: Mapped[float] = mapped_column(Float)
    is_classwise: Mapped[bool]
    n_holdout: Mapped[int]
    outcome: Mapped[dict[str, Any]]
    created_at: Mapped[dt.datetime]
    __table_args__ = (
        CheckConstraint("max_error > 0 AND max_error < 1", name="max_error"),
        CheckConstraint("confidence > 0 AND confidence < 1", name="confidence"),
    )


class AutoLabel(TableBase):
    """Label that the model of a look gave an image, withdrawn when a person labels the image."""

    __tablename__ = "auto_label"
    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    image_id: Mapped[int] = mapped_column(ForeignKey("image.id"), index=True)
    look_id: Mapped[int] = mapped_column(ForeignKey("autolabel_look.id"), index=True)
    class_name: Mapped[str] = mapped_column(Text)
    probability: Mapped[float] = mapped_column(Float)
    threshold: Mapped[float] = mapped_column(Float)
    created_at: Mapped[dt.datetime]
    withdrawn_at: Mapped[dt.datetime | None]
    __table_args__ = (
        CheckConstraint("probability >= threshold", name="threshold"),
        Index(
            "uq_auto_label_active_image",
            "image_id",
            unique=True,
            sqlite_where=text("withdrawn_at IS NULL"),
        ),
    )


class SyncState(TableBase):
    """Project of this workspace in a back end, and the progress of pulling from it."""

    __tablename__ = "sync_state"
    source: Mapped[str] = mapped_column(String(32), primary_key=True)
    project_ref: Mapped[str] = mapped_column(String(200))
    # Distinguishes projects of the same number on two servers.
    identity: Mapped[str] = mapped_column(String(64))
    mark: Mapped[str | None] = mapped_column(Text)
    pulled_at: Mapped[dt.datetime | None]
    # Random ids of our last push to the project, and of a push that may have been interrupted.
    last_push: Mapped[str | None] = mapped_column(String(16))
    next_push: Mapped[str | None] = mapped_column(String(16))
    # Numbers of tasks in the project that this database does not know, at the last pull: of this workspace, of others.
    n_orphaned: Mapped[int | None]
    n_foreign: Mapped[int | None]


class Event(TableBase):
    """Log entry: who did what, and when. For people: the program adds entries and reads none. Never holds a secret."""

    __tablename__ = "event"
    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    at: Mapped[dt.datetime] = mapped_column(index=True)
    actor: Mapped[str] = mapped_column(String(200))
    kind: Mapped[str] = mapped_column(String(64))
    round_number: Mapped[int | None]
    data: Mapped[dict[str, Any]]


class LeaseRow(TableBase):
    """Lease of the only writer. It expires if its holder dies."""

    __tablename__ = "lease"
    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    holder: Mapped[str] = mapped_column(String(200))
    acquired_at: Mapped[dt.datetime]
    expires_at: Mapped[dt.datetime]
