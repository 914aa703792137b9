"""Existing labeled test set instead of a holdout: added to the pool, labeled, and set aside."""

from collections.abc import Sequence

from alloop.errors import ConfigError, PoolError
from alloop.files import from_folder
from alloop.loop.intake.ingest import add_images
from alloop.loop.intake.labels import import_labels
from alloop.loop.intake.named_images import listed_images
from alloop.loop.intake.near_copies import list_groups
from alloop.loop.workbench import Workbench
from alloop.pool.sources import expand, full_name
from alloop.records import Split
from alloop.store.images import find_locations, has_holdout, list_split, set_split
from alloop.store.session import reading, transaction
from alloop.store.workspace import add_event


def ensure_test_set(bench: Workbench) -> None:
    """Add the images and labels of `[evaluation] test` to the pool as its holdout, unless there is a holdout.

    Its images are only measured on, even if they were in the pool before. Near copies of them in the pool are set
    aside. The next call continues a killed one.

    Raises:
        ConfigError: The test set does not exist.
        LabelError: A class is unknown, or a file does not exist.
        PoolError: None of its images can be read.
    """
    project = bench.project
    with reading(project.database) as session:
        if project.config.evaluation.test is None or has_holdout(session):
            return
    place = from_folder(project.folder, project.config.evaluation.test)
    if place.is_dir():
        files = list(expand([str(place)]))
        add_images(bench, [str(place)], labels_from_folders=True)
    elif place.is_file():
        files = listed_images(place)
        add_images(bench, files)
        import_labels(bench, place)
    else:
        raise ConfigError(
            f"alloop.toml: [evaluation] test names {place}, which does not exist.",
            "Name a CSV with the columns file and label, or a folder with one subfolder per class.",
        )
    _set_aside(bench, files)


def _set_aside(bench: Workbench, files: Sequence[str]) -> None:
    with transaction(bench.project.database) as session:
        found = find_locations(session, [full_name(file, "/") for file in files])
        junk = set(list_split(session, Split.JUNK))
        tested = {place.image_id for place in found.values() if place.image_id is not None} - junk
        if not tested:
            raise PoolError(
                f"No image of the test set {bench.project.config.evaluation.test} can be read.",
                "`alloop pool check` says why.",
            )
        groups = list_groups(session)
        near = {groups[image_id] for image_id in tested}
        others = groups.keys() - tested - junk
        copies = [image_id for image_id in sorted(others) if groups[image_id] in near]
        set_split(session, copies, Split.EXCLUDED)
        set_split(session, tested, Split.HOLDOUT)
        counts = {"images": len(tested), "copies_set_aside": len(copies)}
        add_event(session, bench.user, "test set added", bench.now(), **counts)
