"""Images of an export: checks that all of them are there, and file names for them."""

import os
from collections.abc import Iterable, Mapping

from sqlalchemy.orm import Session

from alloop.errors import LabelError
from alloop.export.rows import LabelRow
from alloop.loop.intake.presence import find_replaced
from alloop.pool.placing import placed_name
from alloop.pool.sources import find_source

_HINT = "export as csv, jsonl or parquet, which hold no images."


def check_images(session: Session, labels: Iterable[LabelRow]) -> None:
    """Refuse labels whose images are missing or were replaced.

    Raises:
        LabelError: An image is not at its path, or other bytes are there.
    """
    labels = list(labels)
    replaced = find_replaced(session, [(label.file, label.sha256) for label in labels if label.file])
    if replaced:
        raise LabelError(
            f"{len(replaced)} labeled images were replaced by other files, for example {replaced[0][0]}. Nothing was "
            "exported.",
            f"Run `alloop pool check`, which records it, and export again; or {_HINT}",
        )
    gone = [label for label in labels if label.file is None or find_source(label.file).stamp(label.file) is None]
    if gone:
        raise LabelError(
            f"{len(gone)} labeled images are missing, for example {gone[0].file or gone[0].sha256}.",
            f"`alloop pool check` lists them. To keep their labels without the files, {_HINT}",
        )


def file_names(labels: Mapping[int, LabelRow]) -> dict[int, str]:
    """Return image id → file name of at most 255 bytes.

    The names differ, also without their endings and where case does not count: each holds a part of the content hash,
    and more of it where two images of one name begin with the same digits.
    """
    names: dict[int, str] = {}
    taken: set[str] = set()
    for image_id, label in labels.items():
        for n_digits in (8, 16, 64):
            name = placed_name(str(label.file), label.sha256[:n_digits])
            stem = os.path.splitext(name)[0].casefold()  # noqa: PTH122 (as readers take endings away)
            if stem not in taken:
                break
        taken.add(stem)
        names[image_id] = name
    return names
