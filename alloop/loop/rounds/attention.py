"""Sentences about problems that a person should look at. `run` and `status` show the same ones."""

from collections.abc import Collection, Iterable, Sequence

from sqlalchemy.orm import Session

from alloop.config.schema import Config, ProjectConfig
from alloop.errors import nearest
from alloop.loop.asking.strangers import describe_strangers
from alloop.loop.intake.judge import judge_of
from alloop.names import count
from alloop.records import QueryStatus, Split
from alloop.store.annotations import list_class_counts, list_values
from alloop.store.images import count_unreadable, list_missing
from alloop.store.queries import QueryRecord, list_queries, list_suspects
from alloop.store.workspace import find_sync


def list_warnings(session: Session, config: Config) -> list[str]:
    """Collect sentences about missing files, unknown tasks, images without an answer and unlabeled classes.

    What may be lost comes first.
    """
    classes = config.project.classes
    sync = find_sync(session, config.labeling.backend)
    missing = list_missing(session)
    lines = [
        f"{count(len(missing), 'file')} {_are(len(missing))} missing, for example {missing[0].path}" if missing else "",
        *([] if sync is None else describe_strangers(sync.n_orphaned, sync.n_foreign)),
        _unreadable(count_unreadable(session)),
        *describe_unknown(list_values(session).items(), config.project),
        _images(
            list_queries(session, status=QueryStatus.EMPTY),
            "was submitted without a class",
            "were submitted without a class",
        ),
        _images(
            list_queries(session, status=QueryStatus.SKIPPED),
            "was skipped and is not asked again",
            "were skipped and are not asked again",
        ),
        _images(
            list_suspects(session),
            "being asked about looks unlike the rest of the pool",
            "being asked about look unlike the rest of the pool",
            " ([acquisition] skip_suspects = true leaves such images out)",
        ),
        _unlabeled(list_class_counts(session, Split.TRAIN), classes),
    ]
    return [line for line in lines if line]


def describe_unknown(values: Iterable[tuple[str, int]], settings: ProjectConfig) -> list[str]:
    """Return sentences about answers that are not a class, each with the nearest class."""
    judge, lines = judge_of(settings), []
    for value, n in values:
        if not judge.is_known(value):
            near = nearest(value, settings.classes)
            hint = "" if near is None else f" The nearest class is '{near}'."
            lines.append(
                f"{count(n, 'answer')} {'says' if n == 1 else 'say'} '{value}', which is not a class: correct "
                f"{'it' if n == 1 else 'them'}, or add it to [project] classes.{hint}"
            )
    return lines


def describe_lost(n: int) -> list[str]:
    """Return a sentence about open tasks that a pull no longer found."""
    if n == 1:
        return ["1 open task was deleted in the labeling project; its image is back in the pool."]
    return [f"{n} open tasks were deleted in the labeling project; their images are back in the pool."] if n else []


def _images(queries: Iterable[QueryRecord], one: str, several: str, hint: str = "") -> str:
    """Return a sentence that names the first three images by their hashes; empty without images."""
    hashes = [query.sha256[:12] for query in queries]
    some = ", ".join(hashes[:3]) + (" …" if len(hashes) > 3 else "")
    what = one if len(hashes) == 1 else several
    return f"{count(len(hashes), 'image')} {what}: {some}{hint}" if hashes else ""


def _unreadable(n: int) -> str:
    return f"{count(n, 'file')} could not be read: `alloop pool check` says why." if n else ""


def _are(n: int) -> str:
    return "is" if n == 1 else "are"


def _unlabeled(counts: Collection[str], classes: Sequence[str]) -> str:
    """Return a sentence about classes without a training label; empty while no class has one."""
    lacking = [name for name in classes if name not in counts]
    return f"No training label yet: {', '.join(lacking)}" if counts and lacking else ""
