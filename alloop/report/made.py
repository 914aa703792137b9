"""Origin of the newest measured model: its labels, settings and versions."""

import dataclasses

from sqlalchemy.orm import Session

from alloop.names import count
from alloop.project import Project
from alloop.records import Split
from alloop.store.annotations import list_class_counts
from alloop.store.rounds import ModelRecord, find_model, list_metrics, list_rounds

Facts = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Made:
    """Origin of a model, in words.

    Attributes:
        facts: What it was trained on, and with which settings.
        versions: Library → version at training.
        labels: Class, number of labels to train on, number of holdout labels; as they are now.
    """

    facts: Facts
    versions: Facts
    labels: tuple[tuple[str, int, int], ...]


def gather_made(session: Session, project: Project) -> Made | None:
    """Read how the newest measured model was made; None before a measurement."""
    model = _last_measured(session)
    if model is None:
        return None
    train, held = list_class_counts(session, Split.TRAIN), list_class_counts(session, Split.HOLDOUT)
    versions = tuple((str(name), str(version)) for name, version in model.library_versions.items())
    labels = tuple((name, train.get(name, 0), held.get(name, 0)) for name in model.classes)
    return Made(_facts(model), versions, labels)


def _last_measured(session: Session) -> ModelRecord | None:
    for row in reversed(list_rounds(session)):
        model = find_model(session, row.id)
        if model is not None and list_metrics(session, model.id, Split.HOLDOUT.value):
            return model
    return None


def _facts(model: ModelRecord) -> Facts:
    settings, train = model.config.get("model", {}), model.config.get("train", {})
    backbone = settings.get("backbone", "")
    facts = [
        ("Trained", f"{model.created_at:%Y-%m-%d %H:%M} UTC, seed {model.seed}"),
        (
            "Learned from",
            f"{count(model.n_labels, 'label')}; {count(model.n_holdout, 'label')} of the holdout kept apart",
        ),
        ("Backbone", backbone if isinstance(backbone, str) else ", ".join(backbone)),
        ("Mode", str(settings.get("mode", ""))),
        ("Uncertainty", str(settings.get("uncertainty", ""))),
        ("Loss", str(train.get("loss", ""))),
        ("Digest of the labels", model.label_digest[:12]),
        ("Digest of the model", model.sha256[:12]),
    ]
    return tuple((name, words) for name, words in facts if words)
