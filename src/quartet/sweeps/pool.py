"""hydra/launcher=local: some jobs at a time, each in a process of its own.

A job that crashes, runs out of memory or hangs ends alone. Processes are forked from a server that has imported torch and
everything else once, and the sweep's own process never does; without fork (Windows) each imports for itself.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any

from quartet.engine.elastic import inherited
from quartet.sweeps.jobs import Job, JobResult, Watcher, outcome
from quartet.system.signals import SIGNALS, Interrupted, stoppable
from quartet.worker import run_job

POLL = 0.2  # seconds between two looks at the clock; the end of a process is noticed at once
GRACE = 10.0  # seconds for a checkpoint after the time limit
AGAIN = 1.0  # seconds after which a request to stop is repeated, in case it came before the job could hear it
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # colours and movements of a terminal
NOTICE = "stopping the jobs after their step, with a checkpoint each; Ctrl-C again kills them"


@dataclass
class Attempt:
    """A process that trains a job."""

    job: Job
    slot: int
    process: Any
    log: Path
    number: int = 1
    begun: float = field(default_factory=time.monotonic)
    first_begun: float = field(default_factory=time.monotonic)
    overdue: bool = False
    asked: float | None = None  # when it was last asked to stop
    kill_at: float | None = None

    def stop(self) -> None:
        """SIGTERM, on which a run saves and ends; to be repeated until it does."""
        now = time.monotonic()
        if self.asked is None or now - self.asked > AGAIN:
            self.asked = now
            self.signal(signal.SIGTERM)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def signal(self, signum: int) -> None:
        """To the process and all in its group; it may not lead one yet."""
        with suppress(ProcessLookupError):
            try:
                os.killpg(self.process.pid, signum)
            except ProcessLookupError:
                if self.process.exitcode is None:
                    os.kill(self.process.pid, signum)


class Pool:
    """At most one job at a time in each of `slots`, which are environment variables such as CUDA_VISIBLE_DEVICES.

    `environment` is shared by all, and in force before the modules of `preload` are imported. A job that is killed or
    over `timeout_seconds` starts again, at most `retries` times; errors are final. `logs`/<number>.log has all that a
    job prints.
    """

    def __init__(
        self,
        *,
        slots: Sequence[dict[str, str]],
        logs: Path,
        environment: dict[str, str] | None = None,
        preload: Sequence[str] = (),
        timeout_seconds: float | None = None,
        retries: int = 0,
        grace: float = GRACE,
        target: Callable[[str, str, dict[str, str]], None] = run_job,
    ):
        self.slots, self.logs, self.environment, self.preload = slots, logs, environment or {}, preload
        self.timeout_seconds, self.retries, self.grace, self.target = timeout_seconds, retries, grace, target
        kinds = multiprocessing.get_all_start_methods()
        self.context: Any = multiprocessing.get_context("forkserver" if "forkserver" in kinds else "spawn")

    def run(self, jobs: Iterator[Job], ended: Callable[[JobResult], None], watcher: Watcher) -> None:
        """See `Launcher.run`. A second Ctrl-C kills the jobs."""
        running: dict[int, Attempt] = {}  # by slot
        self.logs.mkdir(parents=True, exist_ok=True)
        with inherited(self.environment), stoppable() as request:
            request.deferred, request.notice = True, NOTICE
            self._start_server()
            try:
                exhausted = False
                while True:
                    # fill the free slots
                    for slot in range(len(self.slots)):
                        if slot not in running and not exhausted and request.signum is None:
                            job = next(jobs, None)
                            exhausted = job is None
                            if job is not None:
                                running[slot] = self._start(job, slot, watcher)
                    if not running:
                        break
                    # wait until something happens, and see to each job
                    connection.wait([attempt.process.sentinel for attempt in running.values()], POLL)
                    for slot, attempt in list(running.items()):
                        stopping = request.signum is not None
                        if attempt.process.exitcode is not None:
                            del running[slot]
                            result = self._result(attempt, stopping)
                            if (
                                result.status in ("killed", "timeout")
                                and attempt.number <= self.retries
                                and not stopping
                            ):
                                watcher.retried(result)
                                running[slot] = self._start(attempt.job, slot, watcher, before=attempt)
                            else:
                                ended(result)
                        elif stopping:
                            attempt.stop()
                        else:
                            self._mind_the_time(attempt, watcher)
                    watcher.tick()
            except BaseException as error:
                # Ctrl-C again, or a mistake of whoever hands in the jobs
                again = isinstance(error, Interrupted)
                self._end_all(running, grace=0 if again else self.grace)
                for attempt in running.values() if again else ():
                    ended(self._result(attempt, stopping=True))
                raise
            if request.signum is not None:
                raise Interrupted(request.signum)

    def _start(self, job: Job, slot: int, watcher: Watcher, before: Attempt | None = None) -> Attempt:
        log = (self.logs / f"{job.number}.log").absolute()
        environment = {**self.slots[slot], **job.run.for_workers()}
        process = self.context.Process(
            target=self.target, args=(str(job.run.directory), str(log), environment), name=f"job {job.number}"
        )
        process.start()
        attempt = Attempt(job, slot, process, log)
        if before is not None:
            attempt.number, attempt.first_begun = before.number + 1, before.first_begun
        watcher.started(job, log)
        return attempt

    def _mind_the_time(self, attempt: Attempt, watcher: Watcher) -> None:
        """Ask a job over its limit to stop, and kill it if it does not within the grace."""
        now = time.monotonic()
        if attempt.kill_at is not None:
            attempt.kill() if now > attempt.kill_at else attempt.stop()
        elif self.timeout_seconds is not None and now - attempt.begun > self.timeout_seconds:
            attempt.overdue, attempt.kill_at = True, now + self.grace
            watcher.overdue(attempt.job, self.timeout_seconds)
            attempt.stop()

    def _result(self, attempt: Attempt, stopping: bool) -> JobResult:
        """What a job's exit code and `result.json` say, unless it was asked to stop before it had ended."""
        status, message = outcome(attempt.job.run, attempt.process.exitcode)
        with suppress(ProcessLookupError):  # what it has started and left behind
            os.killpg(attempt.process.pid, signal.SIGKILL)
        if status == "killed" and attempt.overdue and not stopping:
            status, message = "timeout", f"stopped at its time limit of {in_words(self.timeout_seconds or 0)}"
        elif status == "killed" and stopping:
            status, message = "stopped", "stopped with the sweep"
        seconds = time.monotonic() - attempt.first_begun
        return JobResult(attempt.job, status, message, seconds, attempt.number, attempt.log)

    def _end_all(self, running: dict[int, Attempt], grace: float) -> None:
        """Ask all to stop, and kill those that have not within `grace` seconds."""
        until = time.monotonic() + grace
        while time.monotonic() < until and any(attempt.process.is_alive() for attempt in running.values()):
            for attempt in running.values():
                attempt.stop()
            time.sleep(0.05)
        for attempt in running.values():
            attempt.kill()
            attempt.process.join()

    def _start_server(self) -> None:
        """Start what processes are forked from. Signals are blocked until it ignores them; one that runs is kept."""
        if self.context.get_start_method() != "forkserver":
            return
        from multiprocessing import forkserver

        forkserver.set_forkserver_preload(["quartet.sweeps.server", *self.preload])
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def in_words(seconds: float) -> str:
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"


def log_tail(log: Path, n: int) -> list[str]:
    """The last `n` lines of a log; of a progress bar, which returns to the start of its line, its last state."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 400 * n))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    lines = CONTROL.sub("", text).rstrip().replace("\r\n", "\n").split("\n")
    return [line.rpartition("\r")[2] for line in lines[-n:] if line]
