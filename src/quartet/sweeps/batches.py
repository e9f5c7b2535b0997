"""Jobs by launchers that take several and return when all of them have ended: Hydra's own, those of other plugins."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from quartet.say import printable, say
from quartet.sweeps.child import Job
from quartet.sweeps.pool import Ending, described
from quartet.workers import describe


def launch_batches(
    launcher: Any, next_job: Callable[[], Job | None], ended: Callable[[Ending], str], n_jobs: int
) -> None:
    """At most `n_jobs` at a time, until `next_job` gives None and the last one has ended."""
    waiting: list[Job] = []
    while True:
        while len(waiting) < n_jobs and (job := next_job()) is not None:
            waiting.append(job)
        if not waiting:
            return
        batch = [waiting.pop(0)]
        while waiting and waiting[0].number == batch[-1].number + 1:  # launchers count on from the first number
            batch.append(waiting.pop(0))
        for job in batch:
            say(f"\njob {job.number}: {job.label}")
        begun = time.monotonic()
        try:
            returns = launcher.launch([list(job.overrides) for job in batch], initial_job_idx=batch[0].number)
        except Exception:  # some launchers do so where one job is killed; the others may still work
            for job in batch:
                ended(Ending(job, "stopped", "the launcher gave up"))
            raise
        for job, result in zip(batch, returns, strict=True):
            text = ended(_ending(job, result, time.monotonic() - begun))
            failed = text.startswith("failed")
            line = printable(f"{'error: ' if failed else ''}job {job.number} {text}", keep="\n")
            print(line, file=sys.stderr if failed else sys.stdout)
            sys.stdout.flush()


def _ending(job: Job, result: Any, seconds: float) -> Ending:
    value = result._return_value  # the property prints what we say better
    if isinstance(value, Exception):
        record = describe(value)
        return Ending(job, "error", described(record), error=record, seconds=seconds)
    return Ending(job, "returned", "returned", value=value, seconds=seconds)
