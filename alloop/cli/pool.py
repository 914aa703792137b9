"""`alloop pool`: add, list and check images."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from alloop.cli._images import image_arguments
from alloop.cli._options import Session, common_options
from alloop.names import count

if TYPE_CHECKING:
    from alloop.loop.intake.ingest import Added
    from alloop.project import Project


SHOWN = 8  # names of left-out files and folders in one message


@click.group()
def pool() -> None:
    """Add images, list them, check that they are still there, mark junk."""


@pool.command()
@click.argument("paths", nargs=-1)
@click.option("--labels-from-folders", is_flag=True, help="Label every image by the name of its folder.")
@click.option(
    "--attributes",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="CSV of attributes: a column file or sha256, and one column per attribute. The setting `only` can use them.",
)
@click.option(
    "--features",
    "with_features",
    is_flag=True,
    help="Also compute the features of the images, so that the next round finds them. Each new file is read once for "
    "everything.",
)
@common_options
def add(
    session: Session, paths: tuple[str, ...], labels_from_folders: bool, attributes: Path | None, with_features: bool
) -> None:
    """Add files, folders and globs to the pool.

    Without PATHS, adds the images that the setting [pool] images names. Adding a file again changes nothing. A moved
    file keeps its label. `alloop pool check` lists the files that cannot be read, with the reason. --attributes records
    facts about images of the pool: those of all lines of the CSV, or none. It also works without PATHS. --features also
    computes those of images that were in the pool before. It needs a frozen trunk ([model] mode).
    """
    import dataclasses

    from alloop.errors import PoolError
    from alloop.loop.intake.ingest import Added, add_images
    from alloop.loop.intake.reach import configured_images
    from alloop.loop.workbench import open_workbench

    tools = session.tools()
    wanted = paths or configured_images(tools.project)
    if not wanted and attributes is None:
        raise PoolError("No images were named.", "Give folders or globs, or set [pool] images in alloop.toml.")
    described, features = None, None
    with open_workbench(tools) as bench:
        added = Added()
        if wanted and with_features:
            from alloop.engine.first_reading import FirstReading
            from alloop.engine.settings import EngineSettings

            features = FirstReading(EngineSettings.of(bench.project.config), bench.project.paths.cache)
        if wanted:
            added = add_images(bench, wanted, labels_from_folders=labels_from_folders, features=features)
        if attributes is not None:
            from alloop.loop.choosing.attributes import add_attributes

            described = add_attributes(bench, attributes)
    lines = _say(added)
    data = dataclasses.asdict(added)
    if described is not None:
        n, names = described
        lines.append(f"{count(n, 'image')} described by {', '.join(names)}.")
        data |= {"described": n, "attributes": names}
    session.show(data, "\n".join(lines))


def _describe_depth(added: "Added") -> list[str]:
    """Describe how images with more than 8 bits a channel are read; empty without such images."""
    if added.depth is None:
        return []
    holder = 16 if added.depth <= 16 else 32
    hold = f"{count(added.deep, 'image')} {'holds' if added.deep == 1 else 'hold'}"
    return [
        f"{hold} {added.depth}-bit data in {holder}-bit files: the model and people see 0 as black "
        f"and {2**added.depth - 1} as white."
    ]


def _say(added: "Added") -> list[str]:
    lines = [f"{count(added.new, 'new image')}, {added.known + added.unchanged} known already."]
    said = {
        f"Near copies among the new images: {added.near_duplicates}. People are asked about one image of each group.": (
            added.near_duplicates
        ),
        added.regrouped: added.regrouped,
        f"{added.copies} of {added.images} images count as near copies of another. People are asked about one image of "
        "each group. If they show different objects, as under one camera, set [pool] near_duplicate_distance = 0 or "
        "near_duplicates = false; the next `alloop pool add` or `alloop run` groups the pool again.": (
            added.has_many_copies
        ),
        f"{count(added.labeled, 'label')} taken from folder names.": added.labeled,
        f"{added.skipped} files that are not images were left out.": added.skipped,
        f"{sum(added.left_out.values())} hidden, system or alloop's own files and folders were left out: "
        f"{_names(added.left_out)}. To use one of them, name it in [pool] images.": added.left_out,
        f"{added.dropped} files of such folders, which were in the pool, are no longer used; `alloop pool check` lists "
        "them.": added.dropped,
        f"{count(added.unreadable, 'file')} could not be read: `alloop pool check` says why. "
        f"The first one is {added.unreadable_one}.": added.unreadable,
        f"Features of {count(added.features or 0, 'image')} computed.": added.features is not None,
    }
    return [*lines, *(line for line, is_so in said.items() if is_so), *_describe_depth(added)]


def _names(counts: Mapping[str, int]) -> str:
    names = [f"{name} ({n})" if n > 1 else name for name, n in sorted(counts.items())]
    more = f" and {len(names) - SHOWN} other names" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


@pool.command("list")
@click.option("--split", type=click.Choice(["train", "holdout", "excluded", "junk"]), help="Only this split.")
@click.option("--labeled/--unlabeled", default=None, help="Only images with, or without, a label.")
@common_options
def list_(session: Session, split: str | None, labeled: bool | None) -> None:
    """List the images that can be used: id, content hash, path."""
    import dataclasses

    from alloop.records import Split
    from alloop.store.images import list_refs
    from alloop.store.session import reading

    with reading(session.project().database) as rows:
        refs = list_refs(rows, Split(split) if split else None, labeled)
    session.show(
        [dataclasses.asdict(ref) for ref in refs],
        "\n".join(f"{ref.image_id}\t{ref.sha256[:12]}\t{ref.path}" for ref in refs),
    )


@pool.command()
@click.option(
    "--accept-missing", is_flag=True, help="Record missing files even if a large part of a folder is missing."
)
@common_options
def check(session: Session, accept_missing: bool) -> None:
    """Look at every file again and list what is missing or unreadable.

    Reads changed files again, and files that could not be read before. If a large part of a folder is missing, its disk
    may not be mounted: nothing is recorded, and the exit code is 75. Without permission to write in the workspace, the
    result is shown but not recorded.
    """
    import dataclasses

    from alloop.loop.intake.ingest import check_images, look_at_images
    from alloop.loop.workbench import open_workbench
    from alloop.store.images import count_pool
    from alloop.store.session import may_write, reading

    tools = session.tools()
    project = tools.project
    is_recorded = may_write(project.database.url)
    if is_recorded:
        with open_workbench(tools) as bench:
            found = check_images(bench, accept_missing=accept_missing)
    else:
        found = look_at_images(project, tools.progress)
    with reading(project.database) as rows:
        counts = count_pool(rows)
    lines = ["\t".join(filter(None, ["missing", location.path, location.reason])) for location in found["missing"]]
    lines += [f"unreadable\t{location.path}\t{location.reason}" for location in found["unreadable"]]
    lines += [f"changed\t{location.path}" for location in found.get("changed", ())]
    lines += (
        []
        if is_recorded
        else ["Nothing was recorded, because you have no permission to write in this workspace. Recorded state:"]
    )
    lines.append(
        f"{count(counts.images, 'image')}, {counts.missing} of them missing; "
        f"{count(counts.unreadable, 'file')} could not be read."
    )
    listed = {kind: [dataclasses.asdict(place) for place in places] for kind, places in found.items()}
    session.show({**listed, "counts": dataclasses.asdict(counts)}, "\n".join(lines))


@pool.command()
@image_arguments
@click.option("--reason", default="", metavar="TEXT", help="Reason, in your words.")
@click.option("--undo", is_flag=True, help="Remove the mark: the image is back, with its label.")
@common_options
def junk(session: Session, find: "Callable[[Project], list[int]]", reason: str, undo: bool) -> None:
    """Mark images as junk: never asked about or trained on.

    FILES are paths or file names. Labels are kept, but do not count until --undo. Open questions about the images are
    withdrawn. Images of the holdout cannot be marked. `alloop pool list --split junk` lists the marked images.
    """
    import dataclasses

    from alloop.errors import PoolError
    from alloop.loop.asking import people
    from alloop.loop.asking.junk import mark_junk, unmark_junk
    from alloop.loop.workbench import open_workbench

    tools = session.tools()
    with open_workbench(tools) as bench:
        images = find(tools.project)
        if undo:
            back = unmark_junk(bench, images)
            session.show({"images": back}, f"{count(len(back), 'image')} no longer marked as junk; labels count again.")
            return
        found = mark_junk(bench, images, reason)
        if not found.marked:
            raise PoolError(f"No image was marked. {' '.join(found.describe())}")
        if found.withdrawn:
            people.try_withdraw_junk(bench)
    lines = [f"{count(len(found.marked), 'image')} marked as junk.", *found.describe()]
    if found.withdrawn:
        lines.append(f"{count(found.withdrawn, 'open question')} withdrawn.")
    session.show(dataclasses.asdict(found), "\n".join(lines))
