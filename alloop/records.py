"""Records that several rooms share: frozen dataclasses and enums without behavior of their own."""

import dataclasses
import datetime as dt
import enum
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

MODEL_METADATA = "model.json"  # in the folder of a model version
Precision = Literal["float32", "bfloat16"]  # of a trunk's arithmetic


class Split(enum.StrEnum):
    """Use of an image."""

    TRAIN = "train"
    HOLDOUT = "holdout"
    EXCLUDED = "excluded"  # near-duplicate of a holdout image: neither trained on nor measured
    JUNK = "junk"  # a person decided that it is never asked about and never trained on


class RoundState(enum.StrEnum):
    """State of a round. `alloop.loop.state` says which state may follow which."""

    CREATED = "created"
    TRAINED = "trained"
    SCORED = "scored"
    SELECTED = "selected"
    PUSHED = "pushed"
    CLOSED = "closed"


class Ending(enum.StrEnum):
    """Reason for closing a round. All but the first two end the loop, too."""

    ANSWERED = "answered"  # enough of its queries are
    BY_HAND = "by hand"
    LABEL_BUDGET = "label budget"
    ROUND_LIMIT = "round limit"
    POOL_EXHAUSTED = "pool exhausted"
    TARGET_ACCURACY = "target accuracy"
    CURVE_FLAT = "learning curve flat"
    STABLE = "predictions stable"
    NOTHING_TO_ASK = "nothing to ask"

    @property
    def is_stop(self) -> bool:
        """True if the loop ended with the round."""
        return self not in (Ending.ANSWERED, Ending.BY_HAND)


class Reason(enum.StrEnum):
    """Reason for asking about an image."""

    ACQUIRED = "acquired"
    RANDOM = "random"
    HOLDOUT = "holdout"
    SEED = "seed"
    RELABEL = "relabel"
    AUDIT = "audit"  # drawn from the images that were labeled automatically, to measure the errors among them
    MANUAL = "manual"  # asked for by hand: not a random draw, and not a choice of the strategy


class QueryStatus(enum.StrEnum):
    """Status of a query. An image with an OPEN query cannot be asked about again."""

    OPEN = "open"
    ANSWERED = "answered"
    SKIPPED = "skipped"
    EMPTY = "empty"
    UNKNOWN = "unknown"
    WITHDRAWN = "withdrawn"


class Outcome(enum.StrEnum):
    """Action of an annotator on a task."""

    LABEL = "label"
    SKIP = "skip"  # declined to answer
    EMPTY = "empty"  # submitted without choosing a class
    OUTDATED = "outdated"  # answered while the file had other bytes than the image that was asked about
    DELETED = "deleted"  # tombstone: the annotation was removed where it was made


class LocationStatus(enum.StrEnum):
    """State of a path when it was last read."""

    OK = "ok"
    UNREADABLE = "unreadable"
    MISSING = "missing"


@dataclasses.dataclass(frozen=True, slots=True)
class ImageFile:
    """Readable image file, before it is added to the database.

    Attributes:
        path: Location of the image: the path of a local file, or a URI whose scheme names a source.
        depth: Number of bits that hold the largest value of an image with more than 8 bits a channel; None for others.
        view: What the same reading made of the image for a trunk, a NumPy array uint8; None if nobody asked for it.
    """

    path: str
    sha256: str
    size: int
    mtime_ns: int
    width: int
    height: int
    format: str
    mode: str
    phash: str
    depth: int | None = None
    view: Any = dataclasses.field(default=None, compare=False, repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class UnreadableFile:
    """File that cannot be used, with the reason in words."""

    path: str
    size: int
    mtime_ns: int
    reason: str
    sha256: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class ImageRef:
    """Image of the pool, with one location at which its bytes were last seen.

    Attributes:
        path: Location of the image, as in `ImageFile`.
        depth: Number of bits at which the image is read, the same for all images of the pool with more than 8 bits a
            channel: their largest number is white. None for an image with 8 bits.
        is_admitted: True if `pool add` has accepted these bytes: a file that ends too early is then read as far as it
            goes.
        data: Bytes of an image that is in memory and has no location; its path is then a name for messages.
    """

    image_id: int
    sha256: str
    path: str
    depth: int | None = None
    is_admitted: bool = dataclasses.field(default=False, compare=False)
    data: bytes | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def key(self) -> str:
        """Identity of its pixels, 64 hex digits: the hash of the bytes, and of the depth if the image has one."""
        if self.depth is None:
            return self.sha256
        return hashlib.sha256(f"{self.sha256} read with {self.depth} bits".encode()).hexdigest()


@dataclasses.dataclass(frozen=True, slots=True)
class Agreement:
    """Share of the images in the score files of two rounds whose predicted class is the same.

    Attributes:
        round_number: Number of the later round.
        before: Number of the earlier round.
        n: Number of images in both files.
    """

    round_number: int
    before: int
    share: float
    n: int


@dataclasses.dataclass(frozen=True, slots=True)
class Query:
    """Chosen question about one image.

    Attributes:
        probability: Probability of selection. Uniform draws store the chance of being in the sample; draws by score
            store the chance at this step, given the earlier draws. None if nothing was drawn.
        suspect: True if its OOD score was extreme in the pool; the image may show none of the classes.
        draw_number: Number of the draw in the batch, from 1.
        draw_pool: Number of images (one per group of near copies) from which the batch's first image was drawn.
    """

    image_id: int
    reason: Reason
    strategy: str
    rank: int
    score: float | None = None
    probability: float | None = None
    predicted: str | None = None
    confidence: float | None = None
    suspect: bool = False
    draw_number: int | None = None
    draw_pool: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class OutgoingTask:
    """Input of a labeling back end for one task.

    Attributes:
        key: Stable key, unique even among copies of the workspace. Finds the tasks of a push that may have been
            interrupted.
        predicted, confidence: Model's guess and its certainty in [0, 1] (1 - entropy / ln K); None without a guess.
        model_version: Name of the model that guessed.
    """

    key: str
    image: ImageRef
    predicted: str | None = None
    confidence: float | None = None
    model_version: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """Annotation as a person gave it.

    Attributes:
        external_id: Id of the annotation in the labeling back end. Stays the same when the annotation is edited.
        value: Text as given, known or not; None unless outcome is LABEL or OUTDATED.
        updated_at: Time of the last change by the back end's clock, UTC.
        lead_time: Seconds that the annotator spent; None if unknown.
    """

    external_id: str
    annotator: str
    outcome: Outcome
    value: str | None
    updated_at: dt.datetime
    lead_time: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Uncertain:
    """Image that a model is not sure of, with its prediction.

    Attributes:
        probability: Calibrated probability of the predicted class, in [0, 1].
        entropy: Predictive entropy in nats.
    """

    image: ImageRef
    predicted: str
    probability: float
    entropy: float


@dataclasses.dataclass(frozen=True, slots=True)
class Consensus:
    """Agreed label of one image.

    Attributes:
        value: Text that models learn from. For a classification, the name of a class.
        agreement: Share of the votes that are for `value`, in (0, 1].
        n: Number of votes, one for each annotator who gave a valid answer.
    """

    value: str
    agreement: float
    n: int


@dataclasses.dataclass(frozen=True, slots=True)
class ListedTask:
    """Task as stored in the labeling back end.

    Attributes:
        key: Key of the `OutgoingTask` that the task was made from.
        sha256: Content hash of the image that the task asks about. The key alone is not enough: databases of an earlier
            alloop may give one key to two images after a restore. None if the back end did not store a hash.
    """

    id: str
    key: str
    sha256: str | None

    def asks_about(self, sha256: str) -> bool:
        """Return whether the task shows the image with this content hash.

        A task without a hash cannot be checked. It counts as a task about the image.
        """
        return self.sha256 in (None, sha256)


@dataclasses.dataclass(frozen=True, slots=True)
class TaskAnswers:
    """All present annotations of a task. A known annotation that is not listed has been deleted.

    Attributes:
        file: Path of the local file that people see; None if they see a copy, or if the file is not known.
    """

    task: ListedTask
    answers: tuple[Answer, ...]
    file: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class PullPage:
    """Part of a pull. `mark` is safe to resume from once these tasks are recorded."""

    tasks: tuple[TaskAnswers, ...]
    mark: str


@dataclasses.dataclass(frozen=True, slots=True)
class Interval:
    """Number with its interval and sample size."""

    value: float
    low: float
    high: float
    n: int
    method: str  # "wilson 95%", "bootstrap 95%"


@dataclasses.dataclass(frozen=True, slots=True)
class Calibration:
    """Fitted post-hoc calibrator with its evidence. NLLs are in nats per image.

    Attributes:
        temperature: Fitted temperature; 1 if no temperature was fitted.
        n: Number of holdout images it was fitted to.
        note: Reason for another calibrator than the requested one, or for an automatic choice.
        method: Name of the calibrator; "none" leaves predictions as they are, "weights" are those below and nothing
            else.
        fitted: Parameters of the calibrator as JSON; None if the temperature is the only one.
        weights: Weights a, b of the predictions of raw and smoothed heads; None for a model with one kind of heads.
    """

    temperature: float
    n: int
    nll_before: float | None
    nll_after: float | None
    note: str = ""
    method: str = "temperature"
    fitted: Mapping[str, Any] | None = None
    weights: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class CurvePoint:
    """Point of a learning curve: one round."""

    n_labels: int
    accuracy: Interval


@dataclasses.dataclass(frozen=True, slots=True)
class ModelFiles:
    """Files of a model version, with the checksum of its `model.json`, which holds the checksums of the others."""

    folder: Path
    sha256: str
