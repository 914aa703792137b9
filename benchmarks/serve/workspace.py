"""A workspace of 100,000 images and 20 rounds, written through the store without training or asking anybody.

Only some images have a file, because files matter for thumbnails only. Predictions and answers are drawn at random.
"""

import dataclasses
import datetime as dt
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sqlalchemy.orm import Session

from alloop.composition import CLASSIFICATION
from alloop.engine.model_files import ModelVersion
from alloop.engine.predictions import Predictions
from alloop.engine.score_writer import ScoreWriter
from alloop.engine.targets import ClassificationCoding
from alloop.evaluation.measures import TASKS
from alloop.files import sha256_of
from alloop.loop.measuring.holdout_file import write_holdout
from alloop.loop.workspace import create_workspace
from alloop.project import Project, open_project
from alloop.records import (
    Answer,
    Calibration,
    Consensus,
    Ending,
    ImageFile,
    ImageRef,
    Outcome,
    Query,
    QueryStatus,
    Reason,
    RoundState,
    Split,
)
from alloop.store import annotations, images, queries, rounds
from alloop.store.session import transaction
from alloop.store.tables import QueryRow

CLASSES = tuple(f"class {number}" for number in range(10))
PEOPLE = ("ann", "bob", "cyd")
N_HOLDOUT, BATCH, N_PHOTOS = 200, 50, 1000
START = dt.datetime(2026, 1, 1, 8, tzinfo=dt.UTC)
_TOML = """
[project]
name = "large"
classes = {classes}
[model]
backbone = "pixels"
weights = "none"
image_size = 16
pool_features = "off"
device = "cpu"
[labeling]
backend = "csv"
"""


def build(folder: Path, n_images: int, n_rounds: int) -> None:
    """Make the workspace in a folder that does not exist."""
    folder.mkdir(parents=True)
    create_workspace(folder, _TOML.format(classes=str(list(CLASSES)).replace("'", '"')))
    with open_project(folder) as project:
        refs = _add_images(project, n_images)
        _Rounds(project, refs).add(n_rounds)


def _add_images(project: Project, n_images: int) -> list[ImageRef]:
    files = [_photo(project.folder / "photos" / f"photo {number:04d}.jpg", number) for number in range(N_PHOTOS)]
    files += [_absent(project.folder / "photos", number) for number in range(N_PHOTOS, n_images)]
    refs: list[ImageRef] = []
    for start in range(0, len(files), 10_000):
        some = files[start : start + 10_000]
        with transaction(project.database) as session:
            ids = images.add_images(session, some, START)
            images.set_locations(session, some, ids, START)
            images.add_groups(session, [(image_id, image_id, 0) for image_id in ids.values()])
            images.set_attributes(session, {image_id: {"site": f"site {image_id % 7}"} for image_id in ids.values()})
        refs += [ImageRef(ids[file.sha256], file.sha256, file.path) for file in some]
    return refs


def _photo(path: Path, number: int) -> ImageFile:
    """Write a picture of 1024 x 768 pixels with the detail of a photo."""
    path.parent.mkdir(exist_ok=True)
    rough = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(rough).resize((1024, 768), Image.Resampling.BICUBIC).save(path, quality=85)
    stat, sha256 = path.stat(), sha256_of(path)
    return ImageFile(str(path), sha256, stat.st_size, stat.st_mtime_ns, 1024, 768, "JPEG", "RGB", sha256[:16])


def _absent(folder: Path, number: int) -> ImageFile:
    sha256 = hashlib.sha256(str(number).encode()).hexdigest()
    path = folder / f"{number % 100:02d}" / f"image {number:06d}.jpg"
    return ImageFile(str(path), sha256, 1000 + number, number, 1024, 768, "JPEG", "RGB", sha256[:16])


class _Rounds:
    """Rounds of the workspace. The images are asked about in a random order, the holdout first."""

    def __init__(self, project: Project, refs: list[ImageRef]) -> None:
        self._project = project
        self._random = np.random.default_rng(0)
        self._coding = ClassificationCoding(CLASSES)
        order = [refs[at] for at in self._random.permutation(len(refs))]
        self._holdout, self._rest = order[:N_HOLDOUT], order[N_HOLDOUT:]
        self._truth = self._random.integers(len(CLASSES), size=N_HOLDOUT)
        self._config: dict[str, Any] = project.config.model_dump(mode="json")

    def add(self, n_rounds: int) -> None:
        with transaction(self._project.database) as session:
            images.set_split(session, [ref.image_id for ref in self._holdout], Split.HOLDOUT)
        for number in range(n_rounds):
            with transaction(self._project.database) as session:
                self._add(session, number, is_last=number == n_rounds - 1)

    def _add(self, session: Session, number: int, *, is_last: bool) -> None:
        now = START + dt.timedelta(days=number)
        record = rounds.add_round(session, number, self._config, number, now)
        if number:
            self._add_model(session, record.id, number, now)
        if is_last:
            self._add_scores(session, record.id, number)
        asked = self._holdout if number == 0 else self._rest[BATCH * (number - 1) : BATCH * number]
        reason = Reason.HOLDOUT if number == 0 else Reason.ACQUIRED
        picks = [
            Query(ref.image_id, reason, "entropy-spread", at + 1, predicted=CLASSES[at % 10] if number else None)
            for at, ref in enumerate(asked)
        ]
        queries.add_queries(session, record.id, picks, f"{number}", now)
        if is_last:
            session.get_one(rounds.Round, record.id).state = RoundState.PUSHED.value
            return
        self._answer(session, record.id, asked, now, is_holdout=number == 0)
        session.get_one(rounds.Round, record.id).state = RoundState.CLOSED.value
        rounds.set_closed(session, record.id, Ending.ANSWERED, f"{len(asked)} of {len(asked)} images answered", now)

    def _answer(
        self, session: Session, round_id: int, asked: list[ImageRef], now: dt.datetime, *, is_holdout: bool
    ) -> None:
        by_image = {query.image_id: query.id for query in queries.list_queries(session, round_id)}
        said = self._truth if is_holdout else self._random.integers(len(CLASSES), size=len(asked))
        records, labels = [], {}
        for at, ref in enumerate(asked):
            value, when = CLASSES[said[at]], now + dt.timedelta(seconds=5 * at)
            seconds = float(self._random.gamma(4.0))
            answer = Answer(f"{ref.image_id}", PEOPLE[at % 3], Outcome.LABEL, value, when, seconds)
            records.append(annotations.AnnotationRecord(ref.image_id, by_image[ref.image_id], "csv", 1, answer))
            labels[ref.image_id] = Consensus(value, 1.0, 1)
        annotations.add_annotations(session, records, now)
        annotations.set_labels(session, labels, now)
        settled = {QueryRow.status: QueryStatus.ANSWERED.value, QueryRow.settled_at: now}
        session.query(QueryRow).filter(QueryRow.round_id == round_id).update(settled)

    def _add_model(self, session: Session, round_id: int, number: int, now: dt.datetime) -> None:
        sha256 = hashlib.sha256(f"model {number}".encode()).hexdigest()
        log_probs = self._predict(self._truth, 1 + 0.15 * number)
        measured = TASKS[CLASSIFICATION].measure(log_probs, self._truth, self._random, log_probs)
        values = {
            "round_id": round_id,
            "name": f"model-{number:04d}",
            "path": f"runs/round-{number:04d}/model",
            "sha256": sha256,
            "classes": list(CLASSES),
            "head_classes": [],
            "label_digest": sha256,
            "n_labels": BATCH * number,
            "n_holdout": N_HOLDOUT,
            "seed": number,
            "config": self._config,
            "library_versions": {"torch": torch.__version__},
            "history": {},
        }
        model_id = rounds.add_model(session, values, Calibration(1.2, N_HOLDOUT, 0.9, 0.8), now)
        rounds.set_metrics(session, model_id, Split.HOLDOUT.value, measured, now)
        path = self._project.paths.holdout(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        grown = [False] * N_HOLDOUT
        write_holdout(path, self._holdout, self._truth.tolist(), grown, log_probs, self._coding, sha256)

    def _add_scores(self, session: Session, round_id: int, number: int) -> None:
        path = self._project.paths.scores(number)
        calibration = Calibration(1.2, N_HOLDOUT, 0.9, 0.8)
        network: Any = None  # the writer needs classes, calibration and the number of members only
        version = ModelVersion(network, (), CLASSES, calibration, {"config": self._config})
        with ScoreWriter(path, version, "0" * 64, CLASSIFICATION) as writer:
            for start in range(0, len(self._rest), 10_000):
                some = self._rest[start : start + 10_000]
                guesses = self._random.integers(len(CLASSES), size=len(some))
                log_probs = torch.from_numpy(self._predict(guesses, 3.0))
                members = log_probs.unsqueeze(0).expand(version.n_members, -1, -1)
                ood = torch.from_numpy(self._random.normal(size=len(some)).astype(np.float32))
                plain = Predictions(some, [], CLASSIFICATION, CLASSES, log_probs)
                found = {"member_log_probs": members, "uncalibrated_log_probs": log_probs, "ood": ood}
                writer.write(dataclasses.replace(plain, **found))
        rounds.set_scores(session, round_id, self._project.paths.relative(path), sha256_of(path))

    def _predict(self, classes: np.ndarray, sureness: float) -> np.ndarray:
        """Return log-probabilities [N, K] that favor these classes."""
        logits = self._random.normal(size=(len(classes), len(CLASSES))).astype(np.float32)
        logits[np.arange(len(classes)), classes] += sureness
        rows: np.ndarray = torch.from_numpy(logits).log_softmax(dim=1).numpy()
        return rows
