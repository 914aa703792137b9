"""The images of the pool that teach without labels, when a model is trained and when its graph was lost."""

from collections.abc import Callable

from sqlalchemy.orm import Session

from alloop.config.schema import Config
from alloop.loop.intake.near_copies import list_groups
from alloop.project import Project
from alloop.records import ImageRef, Split
from alloop.store.annotations import list_labels
from alloop.store.images import find_splits, list_refs
from alloop.store.session import reading


def list_pool(session: Session, config: Config) -> list[ImageRef]:
    """List the images that may teach a new model without labels: all of the pool, near copies once, labeled ones first.

    Images marked as junk are left out. The images of a test set are no part of the pool. Those of a holdout are: their
    accuracy then says what to expect of the rest of the pool. No label of any image is looked at, but a group of near
    copies is represented by a labeled image if it has one.
    """
    if not (_has_graph(config) or config.train.learns_unlabeled(config.model)):
        return []
    splits = find_splits(session)
    left_out = {Split.JUNK} if config.evaluation.test is None else {Split.JUNK, Split.HOLDOUT}
    refs = [ref for ref in list_refs(session) if splits[ref.image_id] not in left_out]
    groups = list_groups(session)
    labeled = {label.image_id for label in list_labels(session)}
    order = sorted(refs, key=lambda ref: (ref.image_id not in labeled, ref.key))
    once = {groups.get(ref.image_id, ref.image_id): ref for ref in reversed(order)}
    return sorted(once.values(), key=lambda ref: ref.key)


def list_possible_nodes(session: Session, config: Config) -> list[ImageRef]:
    """List the images among which a model finds those of its graph again: all that have a file.

    Since the training, an image of the graph may have been marked as junk, or a near copy of it may have got a label.
    """
    return list_refs(session) if _has_graph(config) else []


def node_reader(project: Project, config: Config) -> Callable[[], list[ImageRef]]:
    """Return a function that lists these images when it is called: of a large pool, this takes a while."""

    def read() -> list[ImageRef]:
        with reading(project.database) as session:
            return list_possible_nodes(session, config)

    return read


def _has_graph(config: Config) -> bool:
    return config.model.pool_features != "off" and config.model.mode == "frozen"
