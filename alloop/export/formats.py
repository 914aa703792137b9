"""Formats of exported labels: plain tables, and folders with images as other programs read them.

Sources:
    Hugging Face datasets, "Create an image dataset", ImageFolder: metadata.jsonl beside the images of each split.
    COCO data format (cocodataset.org): images, annotations, categories.
    FiftyOne user guide, "Importing data", FiftyOneImageClassificationDataset: data/ and labels.json.
"""

import csv
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from alloop.composition import EXPORTS
from alloop.errors import LabelError, did_you_mean
from alloop.export.images import check_images, file_names
from alloop.export.rows import COLUMNS, Cell, Include, LabelRow, as_cells, as_table, as_text, list_exported
from alloop.files import OUTPUT_MARK, atomic_folder, atomic_path, check_new_folder
from alloop.names import folder_names
from alloop.pool.placing import place_image
from alloop.project import Project
from alloop.records import Split
from alloop.store.images import find_shapes
from alloop.store.rounds import list_rounds
from alloop.store.session import reading

DATA = "data"  # folder of images beside labels.json, as FiftyOne expects it, also with COCO labels
LABELS = "labels.json"
METADATA = "metadata.jsonl"
# Folders of splits by the names that `datasets` knows. Near copies of holdout images must be in neither split, and
# `datasets` passes over the folder `excluded` beside a split that it knows.
HF_SPLITS = {Split.TRAIN.value: "train", Split.HOLDOUT.value: "test", Split.EXCLUDED.value: "excluded"}


@dataclasses.dataclass(frozen=True)
class Export:
    """Labels on their way out.

    Attributes:
        labels: Image id → its label.
        classes: Classes in the order in which the workspace got them: a class keeps its place when others are added.
        files: Image id → file name of the exported image; empty for formats without images.
        shapes: Image id → (width, height) in pixels as people see the image; empty for formats without images.
    """

    name: str
    classes: tuple[str, ...]
    labels: Mapping[int, LabelRow]
    files: Mapping[int, str]
    shapes: Mapping[int, tuple[int, int]]

    def place_images(self, folder_of: Callable[[LabelRow], Path], *, copy: bool) -> None:
        """Link or copy every image into the folder of its label."""
        for image_id, label in self.labels.items():
            place_image(str(label.file), folder_of(label) / self.files[image_id], copy=copy)


def export_labels(project: Project, target: Path, form: str, *, copy: bool = False, include: Include = "human") -> int:
    """Write labels as a table, or as a folder with links to (or copies of) the images.

    Args:
        project: Open workspace.
        target: File to write, or a new or empty folder.
        form: Name of a format, one of `EXPORTS`.
        copy: Copy the images instead of linking to them.
        include: People's labels, labels that a model gave, or both.

    Returns:
        Number of written labels.

    Raises:
        LabelError: There is no such format; the target folder is not empty; an image is missing or was replaced; a
            class cannot be the name of a folder. Nothing is written.
    """
    if form not in EXPORTS:
        raise LabelError(f"There is no format '{form}'{did_you_mean(form, EXPORTS)}")
    with_images = EXPORTS[form]
    with reading(project.database) as session:
        labels = list_exported(session, project.config.project, include)
        if with_images:
            check_images(session, labels.values())
        seen = [name for row in list_rounds(session) for name in row.config["project"]["classes"]]
        used = (label.label for label in labels.values())
        classes = tuple(dict.fromkeys((*seen, *project.config.project.classes, *used)))
        shapes = find_shapes(session, labels) if with_images else {}
    files = file_names(labels) if with_images else {}
    export = Export(project.config.project.name, classes, labels, files, shapes)
    if with_images:
        check_new_folder(
            target,
            "Name a new folder: an export never goes into a folder that holds other files.",
            "Name a new folder, or set --format csv, jsonl or parquet.",
            LabelError,
        )
        with atomic_folder(target) as folder:
            (folder / OUTPUT_MARK).touch()
            _FOLDERS[form](export, folder, copy)
    else:
        with atomic_path(target) as temporary:
            _FILES[form](list(labels.values()), temporary)
    return len(labels)


# -- files -------------------------------------------------------------------------------------------------------------


def _write_csv(labels: list[LabelRow], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=COLUMNS)
        writer.writeheader()
        writer.writerows(as_cells(label) for label in labels)


def _write_jsonl(labels: list[LabelRow], path: Path) -> None:
    _write_lines(({**as_cells(label), "annotators": label.annotators} for label in labels), path)


def _write_parquet(labels: list[LabelRow], path: Path) -> None:
    pq.write_table(as_table(labels), path, compression="zstd")


_FILES: Mapping[str, Callable[[list[LabelRow], Path], None]] = {
    "csv": _write_csv,
    "jsonl": _write_jsonl,
    "parquet": _write_parquet,
}

# -- folders -----------------------------------------------------------------------------------------------------------


def _write_folders(export: Export, folder: Path, copy: bool) -> None:
    names = folder_names(export.classes)
    export.place_images(lambda label: folder / names[label.label], copy=copy)


def _write_hf(export: Export, folder: Path, copy: bool) -> None:
    """Write a folder for each split. All columns are texts.

    `datasets` takes the types of columns from the first rows of each split and refuses splits of different types, which
    a column would have that is empty in one split only.
    """
    export.place_images(lambda label: folder / HF_SPLITS[label.split], copy=copy)
    for split in sorted({label.split for label in export.labels.values()}):
        rows = (
            {"file_name": export.files[image_id], **as_text(label)}
            for image_id, label in export.labels.items()
            if label.split == split
        )
        _write_lines(rows, folder / HF_SPLITS[split] / METADATA)


def _write_coco(export: Export, folder: Path, copy: bool) -> None:
    """Write one annotation for each image, about the whole image: without a box and without an area.

    The keys of a box are there, because readers expect them. The ids of images and classes stay the same in later
    exports.
    """
    export.place_images(lambda _: folder / DATA, copy=copy)
    ids = {name: number for number, name in enumerate(export.classes, start=1)}
    content = {
        "info": {"description": f"Labels of {export.name}, exported by alloop"},
        "licenses": [],
        "categories": [{"id": number, "name": name, "supercategory": ""} for name, number in ids.items()],
        "images": [
            {"id": image_id, "file_name": export.files[image_id], "width": width, "height": height}
            for image_id, (width, height) in sorted(export.shapes.items())
        ],
        "annotations": [
            {
                "id": image_id,
                "image_id": image_id,
                "category_id": ids[label.label],
                "bbox": [],
                "segmentation": [],
                "area": 0,
                "iscrowd": 0,
                "attributes": _attributes(label),
            }
            for image_id, label in sorted(export.labels.items())
        ],
    }
    _write_json(content, folder / LABELS)


def _write_fiftyone(export: Export, folder: Path, copy: bool) -> None:
    export.place_images(lambda _: folder / DATA, copy=copy)
    ids = {name: number for number, name in enumerate(export.classes)}
    labels = {}
    for image_id, label in export.labels.items():
        target: dict[str, Any] = {"label": ids[label.label], "attributes": _attributes(label)}
        if label.probability is not None:
            target["confidence"] = label.probability
        labels[Path(export.files[image_id]).stem] = target
    _write_json({"classes": export.classes, "labels": labels}, folder / LABELS)


_FOLDERS: Mapping[str, Callable[[Export, Path, bool], None]] = {
    "folders": _write_folders,
    "hf-imagefolder": _write_hf,
    "coco": _write_coco,
    "fiftyone": _write_fiftyone,
}


def _attributes(label: LabelRow) -> dict[str, Cell]:
    """Return the columns that exist, except for the label itself."""
    return {name: value for name, value in as_cells(label).items() if name != "label" and value not in (None, "")}


def _write_lines(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def _write_json(content: Mapping[str, Any], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, allow_nan=False, indent=1)
