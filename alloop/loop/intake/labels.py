"""Labels from annotations; import and export of labels."""

import csv
import datetime as dt
import json
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from sqlalchemy.orm import Session

from alloop.config.schema import ProjectConfig
from alloop.consensus import TASKS, Judge
from alloop.errors import LabelError, did_you_mean
from alloop.files import OUTPUT_MARK, atomic_folder, atomic_path
from alloop.loop.intake.named_images import FileFinder
from alloop.loop.intake.near_copies import update_splits
from alloop.loop.intake.presence import find_replaced
from alloop.loop.workbench import Workbench
from alloop.pool.sources import find_source, name_of
from alloop.project import Project
from alloop.records import Answer, Consensus, Outcome
from alloop.spreadsheet import Row, read_table
from alloop.store.annotations import (
    AnnotationRecord,
    LabelRecord,
    add_annotations,
    list_current,
    list_labels,
    set_labels,
)
from alloop.store.images import find_image_ids, list_locations
from alloop.store.session import reading, transaction
from alloop.store.workspace import add_event

IMPORT = "import"
ExportFormat = Literal["csv", "jsonl", "folders"]


def judge_of(settings: ProjectConfig) -> Judge:
    """Return the judge of the answers under `[project]`'s task and classes."""
    return TASKS[settings.task](settings.classes)


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
        LabelError: A column, a file or a class is unknown; nothing is imported.
    """
    project = bench.project.config.project
    judge = judge_of(project)
    with transaction(bench.project.database) as session:
        find = FileFinder(list_locations(session), path.absolute().parent)
        labels = _agreeing(path, (_read_label(row, path, find, judge, project.classes) for row in _read_rows(path)))
        recorded = record_imported(session, labels, judge, path.name, bench.now())
        add_event(session, bench.user, "labels import", bench.now(), file=path.name, labels=recorded)
    return recorded, len(labels) - recorded


def export_labels(project: Project, target: Path, form: ExportFormat, *, copy: bool = False) -> int:
    """Write all labels as CSV, JSON lines, or a folder per class with links to (or copies of) the images.

    Returns:
        Number of written labels.

    Raises:
        LabelError: The target folder is not empty, or an image is missing and cannot be linked.
    """
    with reading(project.database) as session:
        labels = list_labels(session)
        replaced = [] if form != "folders" else find_replaced(session, [(x.path, x.sha256) for x in labels if x.path])
    if replaced:
        raise LabelError(
            f"{len(replaced)} labeled images were replaced by other files, for example {replaced[0][0]}. Nothing was "
            "exported.",
            "Run `alloop pool check`, which records it, and export again; or use --format csv, which exports no files.",
        )
    if form == "folders":
        _export_folders(labels, target, copy=copy)
        return len(labels)
    rows = [_exported(label) for label in labels]
    with atomic_path(target) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        if form == "csv":
            writer = csv.DictWriter(file, fieldnames=list(_EXPORTED))
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return len(labels)


_EXPORTED = ("file", "sha256", "label", "split", "agreement", "annotations")


def _exported(label: LabelRecord) -> dict[str, str | float | int | None]:
    found = label.consensus
    values = (label.path, label.sha256, found.value, label.split.value, found.agreement, found.n)
    return dict(zip(_EXPORTED, values, strict=True))


def _export_folders(labels: Sequence[LabelRecord], target: Path, *, copy: bool) -> None:
    if target.exists() and not target.is_dir():
        raise LabelError(f"{target} is not a folder.", "Name a new folder, or set --format csv or jsonl.")
    if target.is_dir() and (found := next(target.iterdir(), None)):
        raise LabelError(
            f"{target} is not empty: it holds {found.name}.",
            "Name a new folder: an export never goes into a folder that holds other files.",
        )
    gone = [label for label in labels if label.path is None or find_source(label.path).stamp(label.path) is None]
    if gone:
        raise LabelError(
            f"{len(gone)} labeled images are missing, for example {gone[0].path or gone[0].sha256}.",
            "`alloop pool check` lists them; export as CSV keeps their labels without the files.",
        )
    with atomic_folder(target) as folder:
        (folder / OUTPUT_MARK).touch()
        for label in labels:
            location = str(label.path)
            place = folder / label.consensus.value / _exported_name(location, label.sha256)
            place.parent.mkdir(exist_ok=True)
            _export_image(location, place, copy=copy)


def _exported_name(location: str, sha256: str) -> str:
    """Return a file name of at most 255 bytes with a part of the hash, so that equal names of two folders differ."""
    name = PurePosixPath(name_of(location))
    end = f"-{sha256[:8]}{name.suffix}"
    return name.stem.encode()[: 255 - len(end.encode())].decode(errors="ignore") + end


def _export_image(location: str, place: Path, *, copy: bool) -> None:
    """Link an image or copy it. An image that is not a file of this machine is copied."""
    source = find_source(location)
    original = source.local_file(location)
    if original is not None and not copy:
        place.symlink_to(original)
        return
    try:
        opened = source.open(location)
    except OSError as error:
        raise LabelError(f"{location} cannot be read: {error.strerror}.", "Nothing was exported.") from error
    with opened, place.open("wb") as copied:
        shutil.copyfileobj(opened, copied)
    if original is not None:
        shutil.copystat(original, place)


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
    value = judge.spelled(row.get("label"))
    if not judge.is_known(value):
        raise LabelError(
            f"{path}, line {row.line}: '{value}' is not a class{did_you_mean(value, classes)}",
            "Add it to [project] classes, or correct the file. Nothing was imported.",
        )
    found = find.of_row(row, path, LabelError, "Nothing was imported.")
    return row.line, found, value
