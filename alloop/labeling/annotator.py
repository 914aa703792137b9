"""The one protocol between the loop and the people who label. The loop knows nothing else about them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from alloop.records import ImageRef, ListedTask, OutgoingTask, PullPage


class Annotator(Protocol):
    """A place where people (or their answers) are.

    Every implementation passes `tests/contracts/test_annotator.py`. None of them stores anything in alloop's database;
    what must be remembered is returned.

    Errors: `ServerUnavailable` for what may pass by itself; `LabelingError` for what a person must mend.
    """

    @property
    def source(self) -> str:
        """Name of the back end in annotation rows and in `[labeling] backend`, for example `label-studio`."""
        ...

    def open_project(self, project_ref: str | None, identity: str | None = None) -> str:
        """Check that the project named by `project_ref` exists and can hold our classes; create one for None.

        Creating is safe to repeat: a project that an interrupted earlier call of this workspace made is found again.
        Must be called before anything below.

        Args:
            project_ref: What an earlier call returned.
            identity: What `identity` said then; a project that has only the same reference is refused unchanged.

        Returns:
            The reference to store and pass next time.

        Raises:
            LabelingError: The project is gone, is another one, or its label config cannot hold our classes.
        """
        ...

    @property
    def identity(self) -> str:
        """Tells the open project from all others of the same reference, on any server; empty where there are none."""
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

        The caller has reconciled the keys and records every yielded batch before asking for the next one. A batch whose
        fate is unclear (time-out, cut connection, 5xx) is reconciled by key in here before anything is sent again.
        """
        ...

    def pull(self, mark: str | None) -> Iterator[PullPage]:
        """Every task whose annotations changed at or after `mark` (None: all), oldest change first.

        The same change may come again: recording it twice must be harmless.
        """
        ...

    def list_tasks(self) -> Sequence[ListedTask]:
        """List all tasks with a key that exist now. Shows which tasks were deleted, and which are not ours."""
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
        """Take back those tasks that nobody has answered or begun.

        Returns:
            The ids that are gone now. The others have answers or drafts and stay.
        """
        ...
