"""The labeled holdout and the rest of the pool, as automatic labels need them, and a model's predictions of both."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from alloop.calibration.calibrator import plain
from alloop.config.load import validate_config
from alloop.engine.score_file import read_log_probs
from alloop.errors import ConfigError, LabelError, ModelError
from alloop.evaluation.autolabel import FEWEST
from alloop.loop.intake.near_copies import list_groups
from alloop.loop.uncalibrated import scored_apart
from alloop.loop.workbench import Workbench
from alloop.project import Project
from alloop.records import ImageRef, QueryStatus, Reason, Split
from alloop.store.annotations import list_labels
from alloop.store.holdout import find_draw_time, list_probabilities
from alloop.store.images import list_added_after, list_refs
from alloop.store.queries import list_queries
from alloop.store.rounds import ModelRecord, find_last_model

DECLINED = (QueryStatus.SKIPPED, QueryStatus.EMPTY, QueryStatus.UNKNOWN)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Images of a look.

    Attributes:
        model: Newest model version.
        holdout: Holdout images with an answer and a file.
        truths: Their classes by people's answers; None for an image that people gave no class of the project.
        waiting: Number of holdout images without an answer.
        rest: Images that may get an automatic label.
        groups: Image → group of near copies, for the rest.
        added_later: Number of unlabeled images that were added after the holdout was drawn.
        declined: Number of unlabeled images that people skipped or gave no known class.
    """

    model: ModelRecord
    holdout: tuple[ImageRef, ...]
    truths: tuple[str | None, ...]
    waiting: int
    rest: tuple[ImageRef, ...]
    groups: dict[int, int]
    added_later: int
    declined: int

    def digest(self) -> str:
        """Return the SHA-256 of the holdout labels: each image's hash and class."""
        pairs = zip(self.holdout, self.truths, strict=True)
        lines = sorted(f"{ref.sha256} {'' if truth is None else truth}" for ref, truth in pairs)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Predicted:
    """Predictions before calibration for images by id.

    Attributes:
        classes: Image → most probable class.
        scores: Image → log of its probability.
        failed: Images that could not be read, with the reasons.
    """

    classes: dict[int, str]
    scores: dict[int, float]
    failed: tuple[tuple[int, str], ...]

    def scores_of(self, refs: Sequence[ImageRef]) -> npt.NDArray[np.float64]:
        return np.array([self.scores[ref.image_id] for ref in refs], dtype=np.float64)


def read_sample(session: Session, project: Project) -> Sample:
    """Read the labeled holdout and the images that may get an automatic label.

    These are the unlabeled images that nobody is being asked about and nobody declined, and that were in the pool when
    the holdout was drawn: the holdout says nothing about later ones. Images of an open audit keep their labels.

    Raises:
        ConfigError: There is a test set instead of a holdout.
        ModelError: There is no model, or it cannot be tested on the holdout.
        LabelError: Fewer than 50 holdout images have an answer.
    """
    config = project.config
    if config.evaluation.test is not None:
        raise ConfigError(
            "[evaluation] test names a test set, and automatic labels need a holdout: only images that were drawn at "
            "random from the pool say how often the model is wrong on the rest of it.",
            "Label the rest with people, or start a workspace without [evaluation] test, which draws a holdout.",
        )
    model = _usable(find_last_model(session), config.project.classes)
    drawn_at = find_draw_time(session)
    drawn = set(list_probabilities(session)) if drawn_at is not None else set()
    labels = {label.image_id: label.consensus.value for label in list_labels(session, Split.HOLDOUT)}
    queries = list_queries(session)
    declined = {query.image_id for query in queries if query.status in DECLINED}
    open_ = {q.image_id for q in queries if q.status is QueryStatus.OPEN and q.reason is not Reason.AUDIT}
    held = [ref for ref in list_refs(session, Split.HOLDOUT) if ref.image_id in drawn]
    answered = [ref for ref in held if ref.image_id in labels or ref.image_id in declined - open_]
    if len(answered) < FEWEST or drawn_at is None:
        raise LabelError(
            f"Automatic labels need at least {FEWEST} holdout images with an answer, and there are {len(answered)}.",
            f"{len(held) - len(answered)} holdout images have none yet; `alloop pull` fetches new answers. "
            "[evaluation] holdout_growth adds holdout images in every round.",
        )
    later = list_added_after(session, drawn_at)
    unlabeled = [ref for ref in list_refs(session, Split.TRAIN, labeled=False) if ref.image_id not in open_]
    known = [ref for ref in unlabeled if ref.image_id not in later]
    groups = list_groups(session)
    rest = tuple(ref for ref in known if ref.image_id not in declined)
    return Sample(
        model=model,
        holdout=tuple(answered),
        truths=tuple(labels.get(ref.image_id) for ref in answered),
        waiting=len(held) - len(answered),
        rest=rest,
        groups={ref.image_id: groups[ref.image_id] for ref in rest},
        added_later=len(unlabeled) - len(known),
        declined=len(known) - len(rest),
    )


def _usable(model: ModelRecord | None, classes: Sequence[str]) -> ModelRecord:
    if model is None:
        raise ModelError("There is no model yet.", "`alloop run` trains one as soon as two classes have labels.")
    if set(model.classes) != set(classes):
        changed = sorted(set(model.classes) ^ set(classes))
        raise ModelError(
            f"The classes have changed since {model.name} was trained, for example '{changed[0]}'.",
            "`alloop run` trains a model with the present classes; label automatically after it.",
        )
    if validate_config(model.config, f"the config of model {model.name}").train.use_auto_labels:
        raise ModelError(
            f"{model.name} may have been trained on automatic labels. It is surer of these images than of those of the "
            "holdout, so the holdout cannot say how often it is wrong about them.",
            "Set [train] use_auto_labels = false, and train again with `alloop train`.",
        )
    return model


def predict(bench: Workbench, sample: Sample, device: str | None = None) -> Predicted:
    """Predict holdout and rest with the model, without its calibrator, in one pass.

    The calibrator was fitted to the holdout labels, so its probabilities are a little too good there; the probabilities
    before it were shaped by no holdout label. A model with raw and smoothed heads is represented by the smoothed ones,
    because the calibrator weighs the two.

    Raises:
        ModelError: The model is damaged, or belongs to another backbone.
    """
    model = sample.model
    with scored_apart(bench, model, (*sample.holdout, *sample.rest), device) as result:
        classes: dict[int, str] = {}
        scores: dict[int, float] = {}
        for ids, rows in read_log_probs(result.path):
            top = plain(rows).max(dim=1)
            for image_id, score, position in zip(ids.tolist(), top.values.tolist(), top.indices.tolist(), strict=True):
                classes[image_id], scores[image_id] = model.classes[position], min(score, 0.0)
    return Predicted(classes, scores, result.failed)
