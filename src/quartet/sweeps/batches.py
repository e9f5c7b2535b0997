"""Jobs by launchers that take several and return when all of them have ended: Hydra's own, those of other plugins."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from quartet.sweeps.jobs import Job, JobResult, Watcher, outcome


def run_in_batches(
    launcher: Any,
    n_jobs: int,
    jobs: Iterator[Job],
    ended: Callable[[JobResult], None],
    watcher: Watcher,
) -> None:
    """At most `n_jobs` at a time; the task function that these launchers call trains the run with the job's number."""
    waiting: list[Job] = []
    while True:
        while len(waiting) < n_jobs and (job := next(jobs, None)) is not None:
            waiting.append(job)
        if not waiting:
            return
        batch = [waiting.pop(0)]
        while waiting and waiting[0].number == batch[-1].number + 1:  # launchers count on from the first number
            batch.append(waiting.pop(0))
        for job in batch:
            watcher.started(job)
        begun, words = time.monotonic(), [job.run.read("trial.json")["overrides"] for job in batch]
        try:
            returns = launcher.launch(words, initial_job_idx=batch[0].number)
        except Exception:  # some launchers raise when one job is killed; the others may still be running
            for job in batch:
                ended(JobResult(job, "stopped", "the launcher gave up"))
            raise
        for job, returned in zip(batch, returns, strict=True):
            failed = isinstance(returned._return_value, Exception)  # the property would print it
            status, message = outcome(job.run, 1 if failed else 0)
            ended(JobResult(job, status, message, time.monotonic() - begun))
