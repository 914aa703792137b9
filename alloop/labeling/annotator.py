"""Protocol between the loop and the people who label. The loop knows nothing else about them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from alloop.records import ImageRef, ListedTask, OutgoingTask, PullPage


class Annotator(Protocol):
    """Place where people label.

    Every implementation passes `tests/contracts/test_annotator.py`. Implementations store nothing in alloop's database;
    they return whatever alloop must store.

    Errors: `ServerUnavailable` for problems that may pass by themselves, `LabelingError` for problems that a person
    must solve.
    """

    @property
    def source(self) -> str:
        """Name of the back end in annotation rows and in `[labeling] backend`, for example `label-studio`."""
        ...

    def open_project(self, project_ref: str | None, identity: str | None = None) -> str:
        """Check that the project named by `project_ref` exists and can hold our classes; create one for None.

        Creating is safe to repeat: the project of an interrupted earlier call of this workspace is found again. Call
        this method before all methods below.

        Args:
            project_ref: Result of an earlier call.
            identity: Value of `identity` at that call. A project of the same reference with another identity is
                refused.

        Returns:
            Reference to store and to pass next time.

        Raises:
            LabelingError: The project was deleted, is another one, or cannot hold our classes.
        """
        ...

    @property
    def identity(self) -> str:
        """Identity of the open project, different for projects of the same reference on other servers; may be empty."""
        ...

    def last_push(self) -> str | None:
        """Return the id of the workspace's last push as stored in the project; None before the first push.

        Every push changes the id. This shows a database restored from a backup, or a second copy of the workspace.
        """
        ...

    def set_last_push(self, push_id: str) -> None:
        """Store the id of the push that follows in the project. Safe to repeat."""
        ...

    def reconcile(self, images: Mapping[str, str]) -> Mapping[str, str]:
        """Find the tasks that already exist for these keys, as key → task id. Of several tasks, take the lowest id.

        Args:
            images: Key → content hash of its image. A task of the same key about another image does not count.
        """
        ...

    def push(self, tasks: Sequence[OutgoingTask]) -> Iterator[Mapping[str, str]]:
        """Create one task for each, in the order given, and yield key → task id as batches are done.

        The caller has reconciled the keys, and records every yielded batch before it asks for the next one. If the
        outcome of a batch is unknown (time-out, lost connection, 5xx), this method reconciles the batch by key before
        it sends anything again.
        """
        ...

    def pull(self, mark: str | None) -> Iterator[PullPage]:
        """Yield the tasks whose annotations changed at or after `mark` (None: all tasks), oldest change first.

        The same change may be yielded again, so recording it twice must be harmless.
        """
        ...

    def list_tasks(self) -> Sequence[ListedTask]:
        """List all existing tasks with a key. The list shows deleted tasks and tasks of other workspaces."""
        ...

    def show(self, images: Mapping[str, Sequence[ImageRef]]) -> int:
        """Update the addresses of images in tasks whose files moved.

        An address is replaced only if it leads to none of the image's places. Answers and other data of a task stay.

        Args:
            images: Task id → the same image in each place where it lies, the preferred one first.

        Returns:
            Number of tasks that were changed.
        """
        ...

    def withdraw(self, task_ids: Sequence[str]) -> frozenset[str]:
        """Withdraw those tasks that nobody has answered or started.

        Returns:
            Ids of tasks that no longer exist. The other tasks have answers or drafts and stay.
        """
        ...
