"""Model card of an exported model: what it was taught, how well it was measured, and its limits. Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from alloop.loop.measuring.holdout_file import HoldoutPredictions, read_holdout
from alloop.loop.measuring.pool_brings import find_pool_brings
from alloop.project import Project
from alloop.records import Interval, Split
from alloop.report.gather import describe_calibration
from alloop.store.annotations import list_annotator_counts, list_class_counts
from alloop.store.rounds import ModelRecord, list_metrics


def make_card(
    session: Session,
    project: Project,
    model: ModelRecord,
    number: int,
    suspect_above: float | None,
    *,
    is_distilled: bool = False,
) -> str:
    """Return the card without the results of the check, which the export adds.

    Args:
        session: Database session to read from.
        project: The workspace.
        model: The model version.
        number: Its round.
        suspect_above: OOD score above which images of the pool are suspect; None if nothing was scored.
        is_distilled: True if the files hold the distilled head in place of all heads.
    """
    config = model.config
    parts = [
        f"# Model card: {project.config.project.name}, {model.name}",
        f"An image classifier with {len(model.classes)} classes, trained by alloop in round {number} "
        f"({model.created_at:%Y-%m-%d}). `preprocess.json` says how an image becomes its input.",
        _taught(session, model),
        _measured(session, project, model, number),
        _calibrated(model),
        _structure(session, model, config, is_distilled=is_distilled),
        _suspects(config, suspect_above),
        _LIMITS,
        "## Licence\n\nTODO: the licence of this model. Mind the licences of the images, the labels and the backbone's "
        "weights.",
        _versions(model),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _taught(session: Session, model: ModelRecord) -> str:
    train, held = list_class_counts(session, Split.TRAIN), list_class_counts(session, Split.HOLDOUT)
    people = sorted((counts.get("label", 0) for counts in list_annotator_counts(session).values()), reverse=True)
    by = f"Labels by annotator, without names: {', '.join(map(str, people))}. " if people else ""
    n_auto = model.history.get("automatic", 0)
    auto = f"{n_auto} automatic labels, which no person gave, were learned as well. " if n_auto else ""
    rows = [(name, train.get(name, 0), held.get(name, 0)) for name in model.classes]
    return (
        f"## What it was taught\n\n{model.n_labels} labeled images to train on; {model.n_holdout} to calibrate and "
        f"measure it on. {auto}{by}Labels by class, as they are now:\n\n"
        + _table(("class", "to train on", "held out"), rows)
    )


def _measured(session: Session, project: Project, model: ModelRecord, number: int) -> str:
    metrics = list_metrics(session, model.id, Split.HOLDOUT.value)
    if not metrics:
        return "## How well it was measured\n\nNot measured: no held-out image had a label."
    place = "a test set" if project.config.evaluation.test is not None else "a random holdout"
    lines = [f"## How well it was measured\n\nOn {place} of {metrics['accuracy'].n} images, with 95 % intervals:", ""]
    lines += [
        f"- {words} {_shown(metrics[name], factor)}{unit}" for name, words, factor, unit in _METRICS if name in metrics
    ]
    holdout = read_holdout(project.paths.holdout(number), model.sha256)
    if holdout is not None:
        lines += ["", "Rows are people's answers, columns are predictions:", "", _confusion(holdout)]
    return "\n".join(lines)


_METRICS = (
    ("accuracy", "accuracy", 100, " %"),
    ("nll", "negative log-likelihood", 1, " nats per image"),
    ("ece", "expected calibration error (15 bins)", 100, " %"),
)


def _confusion(holdout: HoldoutPredictions) -> str:
    place = {name: position for position, name in enumerate(holdout.classes)}
    counts = np.zeros((len(place), len(place)), dtype=int)
    for target, predicted in zip(holdout.targets, holdout.predicted, strict=True):
        if target in place:
            counts[place[target], place[predicted]] += 1
    return _table(("", *holdout.classes), [(name, *counts[row].tolist()) for name, row in place.items()])


def _calibrated(model: ModelRecord) -> str:
    words = f"Calibrated by {describe_calibration(model.calibration)} on {model.calibration.n} labels."
    return f"## Calibration\n\n{' '.join((words, model.calibration.note)).strip()} The calibrator is inside the files."


def _structure(session: Session, model: ModelRecord, config: Mapping[str, Any], *, is_distilled: bool) -> str:
    settings = config["model"]
    words = [
        f"Backbone {settings['backbone']} (weights {settings['weights']}), {settings['mode']}; "
        f"{settings['uncertainty']} heads."
    ]
    if is_distilled:
        words.append(
            "The files hold one linear head on the backbone's features that imitates the predictions of this model for "
            "images of the pool. The measured numbers above are those of the model, not of this head."
        )
        return "## What is inside\n\n" + " ".join(words)
    if settings["uncertainty"] == "mc-dropout":
        words.append("The files use one fixed set of dropout masks for all images; alloop draws masks for each image.")
    if model.calibration.weights is not None:
        words.append(
            "Half of the heads see features that are averaged over similar images of the pool. The files hold the "
            "features of these images, not the images, and place every image among them, as alloop does with images "
            "outside the pool. Images of the pool itself therefore get slightly other numbers in alloop's scores."
        )
    found = find_pool_brings(session, model)
    if found is not None and (found.is_on or found.n_unlabeled):
        words.append(found.says)
    return "## What is inside\n\n" + " ".join(words)


def _suspects(config: Mapping[str, Any], above: float | None) -> str:
    if above is None:
        return ""
    settings = config["acquisition"]
    return (
        "## Strange images\n\n"
        f"alloop marks an image as suspect if its score `{settings['ood_score']}` is above {above:.6g}, the quantile "
        f"{settings['suspect_quantile']} of the unlabeled pool. The score `msp` is minus the largest "
        "probability, computed from raw features; docs/methods.md of alloop defines the others."
    )


_LIMITS = (
    "## Limits\n\n"
    "- It knows only these classes. An image of anything else gets one of them, often with a high probability.\n"
    "- The measured numbers hold for images like those of the pool. Measure again on images from elsewhere.\n"
    "- Accuracy is agreement with people's answers, so their mistakes are part of it.\n"
    "- `predict.py` refuses images with more than 8 bits a channel; `alloop predict` reads them as the pool was read."
)


def _versions(model: ModelRecord) -> str:
    rows = [(name, version) for name, version in model.library_versions.items()]
    return (
        "## Versions\n\n"
        + _table(("library", "version at training"), rows)
        + f"\n\nDigest of the model version: `{model.sha256}`. Digest of its labels: `{model.label_digest}`."
    )


def _shown(value: Interval, factor: float) -> str:
    return f"{factor * value.value:.3g} [{factor * value.low:.3g}, {factor * value.high:.3g}]"


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
