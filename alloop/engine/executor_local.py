"""Runs jobs on this machine. Imports no torch: a job loads what it needs."""

from alloop.executor import Job, Result
from alloop.progress import Progress, silent


class LocalExecutor:
    """An executor for which submitting is calling."""

    def submit(self, job: Job[Result], progress: Progress = silent) -> Result:
        return job.run(progress)
