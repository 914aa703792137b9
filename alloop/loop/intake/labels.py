"""Labels from annotations; import of labels."""

import datetime as dt
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from sqlalchemy.orm import Session

from alloop.consensus import Judge
from alloop.errors import LabelError, did_you_mean
from alloop.loop.intake.judge import judge_of
from alloop.loop.intake.named_images import FileFinder
from alloop.loop.intake.near_copies import update_splits
from alloop.loop.workbench import Workbench
from alloop.records import Answer, Consensus, Outcome
from alloop.spreadsheet import Row, read_table
from alloop.store.annotations import (
    AnnotationRecord,
    add_annotations,
    list_current,
    set_labels,
)
from alloop.store.images import find_image_ids, list_locations
from alloop.store.session import transaction
from alloop.store.workspace import add_event

IMPORT = "import"


def derive_labels(session: Session, judge: Judge, now: dt.datetime, image_ids: Collection[int] | None = None) -> None:
    """Rebuild the labels of these images (None: of all) from their present annotations.

    Labels that disagree split a group of near copies, so the images that are excluded may change too.
    """
    set_labels(session, agree(list_current(session, image_ids=image_ids), judge, image_ids or ()), now)
    update_splits(session, image_ids)


def agree(
    records: Iterable[AnnotationRecord], judge: Judge, image_ids: Iterable[int] = ()
) -> dict[int, Consensus | None]:
    """Return the consensus about each image that has annotations, and about these images; None without a vote."""
    given: dict[int, list[Answer]] = {image_id: [] for image_id in image_ids}
    for record in records:
        given.setdefault(record.image_id, []).append(record.answer)
    return {image_id: judge.agree(answers) for image_id, answers in given.items()}


def record_imported(session: Session, labels: Mapping[str, str], judge: Judge, origin: str, now: dt.datetime) -> int:
    """Record labels known beforehand as answers. A label that is recorded already is not recorded again.

    Args:
        session: Database session to write to.
        labels: Content hash of an image → its label.
        judge: Judge of the project's answers.
        origin: Source of the labels, for example the name of a file.
        now: Time of the answers.

    Returns:
        Number of new and changed labels.
    """
    ids = find_image_ids(session, labels)
    found = list_current(session, image_ids=ids.values(), source=IMPORT)
    current = {record.answer.external_id: record for record in found}
    records = [
        AnnotationRecord(
            image_id=ids[sha256],
            query_id=None,
            source=IMPORT,
            version=current[sha256].version + 1 if sha256 in current else 1,
            answer=Answer(sha256, f"{IMPORT}:{origin}", Outcome.LABEL, value, now),
        )
        for sha256, value in labels.items()
        if sha256 in ids and (sha256 not in current or current[sha256].answer.value != value)
    ]
    add_annotations(session, records, now)
    derive_labels(session, judge, now, {record.image_id for record in records})
    return len(records)


def import_labels(bench: Workbench, path: Path) -> tuple[int, int]:
    """Read a CSV with the columns `label` and `file` or `sha256`.

    A file is found by its full path, by its path relative to the CSV, or by its name if only one image has it.

    Returns:
        (number of recorded labels, number of labels that were already known).

    Raises:
        LabelError: A column, a file or a class is unknown, or a model gave a label; nothing is imported.
    """
    project = bench.project.config.project
    judge = judge_of(project)
    with transaction(bench.project.database) as session:
        find = FileFinder(list_locations(session), path.absolute().parent)
        labels = _agreeing(path, (_read_label(row, path, find, judge, project.classes) for row in _read_rows(path)))
        recorded = record_imported(session, labels, judge, path.name, bench.now())
        add_event(session, bench.user, "labels import", bench.now(), file=path.name, labels=recorded)
    return recorded, len(labels) - recorded


def _read_rows(path: Path) -> tuple[Row, ...]:
    return read_table(path, LabelError, ["label"], one_of=["file", "sha256"]).rows


def _agreeing(path: Path, labels: Iterable[tuple[int, str, str]]) -> dict[str, str]:
    """Return content hash → label, from (line, content hash, label). Refuse two lines that disagree about an image."""
    first: dict[str, tuple[int, str]] = {}
    for line, sha256, value in labels:
        before, other = first.setdefault(sha256, (line, value))
        if other != value:
            raise LabelError(
                f"{path}, line {line}: this image is '{value}' here and '{other}' in line "
                f"{before} (sha256 {sha256[:12]}).",
                "Keep one of the two lines. Nothing was imported.",
            )
    return {sha256: value for sha256, (_, value) in first.items()}


def _read_label(row: Row, path: Path, find: FileFinder, judge: Judge, classes: Sequence[str]) -> tuple[int, str, str]:
    """Return the line, the content hash of the image and the label of a row."""
    if row.get("provenance") == "auto":
        raise LabelError(
            f"{path}, line {row.line}: a model gave this label (provenance auto); labels by people can be imported.",
            "Export with `--include human`, or remove these lines. Nothing was imported.",
        )
    value = judge.spelled(row.get("label"))
    if not judge.is_known(value):
        raise LabelError(
            f"{path}, line {row.line}: '{value}' is not a class{did_you_mean(value, classes)}",
            "Add it to [project] classes, or correct the file. Nothing was imported.",
        )
    found = find.of_row(row, path, LabelError, "Nothing was imported.")
    return row.line, found, value
