"""Some jobs at a time as processes: one that crashes, runs out of memory or hangs ends alone, and is reported at once.

Each is forked from a server that has imported everything once; the sweep itself imports no torch. Where there is no fork
(Windows) each process imports for itself.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import connection
from pathlib import Path
from typing import Any

from quartet.interruption import SIGNALS, Interrupted, StopRequest, stoppable
from quartet.sweeps.child import SERVER_LOST, Child, Job, Order
from quartet.workers import inherited

POLL = 0.2  # seconds between looks at the clock; what processes report is read when it comes
GRACE = 10.0  # seconds for a checkpoint after the time limit
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # colours and movements of a terminal
NOTICE = "stopping the jobs after their step, with a checkpoint each; Ctrl-C again kills them"


@dataclass(frozen=True)
class Ending:
    """How a job ended, after its last attempt.

    `kind`: returned (`value`: plain data) · error (`error`: as quartet.workers.describe) · killed (a signal, or an exit
    code without an error) · timeout · stopped (with the sweep). `seconds`: from its first start, all attempts together.
    """

    job: Job
    kind: str
    message: str
    value: Any = None
    error: dict[str, Any] | None = None
    exit_code: int | None = None
    seconds: float = 0.0
    attempts: int = 1
    log: Path | None = None

    def log_tail(self, n: int) -> list[str]:
        return log_tail(self.log, n) if self.log else []


class Observer:
    """What a pool tells while it works; does nothing itself."""

    def started(self, job: Job, log: Path) -> None: ...

    def overdue(self, job: Job, seconds: float) -> None:
        """Past its time limit of `seconds`, and asked to stop."""

    def retried(self, ending: Ending) -> None:
        """Ended so, and started again."""

    def tick(self) -> None:
        """Called a few times a second."""


NextJob = Callable[[], Job | None]
Ended = Callable[[Ending], None]


class Pool:
    """Runs `work(job)`, which cloudpickle can carry, in one process for each of `slots` at a time.

    A slot is what its jobs find in their environment, such as a device; `environment` is what all of them share, in force
    before the modules of `preload` are imported. A job that is killed or past `timeout_seconds` starts again at once, at
    most `retries` times; errors of the program are final. `logs`/<number>.log has all that a job prints.
    """

    def __init__(
        self,
        work: Callable[[Job], Any],
        *,
        slots: Sequence[dict[str, str]],
        logs: Path,
        environment: dict[str, str] | None = None,
        preload: Sequence[str] = (),
        timeout_seconds: float | None = None,
        retries: int = 0,
        grace: float = GRACE,
    ):
        self.work, self.slots, self.logs = work, slots, logs
        self.environment, self.preload = environment or {}, preload
        self.timeout_seconds, self.retries, self.grace = timeout_seconds, retries, grace
        self._running: dict[int, Child] = {}  # by slot
        self._exhausted = False

    def run(self, next_job: NextJob, ended: Ended, tell: Observer | None = None) -> None:
        """Until `next_job` returns None, which is final, and the last job has ended; it is asked when a slot is free.

        `ended` is called here, once for each job. Interrupted: a signal came, and all processes have ended.
        """
        tell, self._exhausted = tell or Observer(), False
        with self._environment(), stoppable() as request:
            request.deferred, request.notice = True, NOTICE
            try:
                self._loop(request, next_job, ended, tell)
            except Interrupted:  # Ctrl-C again
                self._end_all(ended, grace=0)
                raise
            except BaseException:  # of the one who asks
                self._end_all(lambda ending: None, grace=self.grace)
                raise
            if request.signum is not None:
                raise Interrupted(request.signum)

    def _loop(self, request: StopRequest, next_job: NextJob, ended: Ended, tell: Observer) -> None:
        stopping = False
        while True:
            if request.signum is not None and not stopping:
                stopping = True
                for child in self._running.values():
                    child.stop(kill_after=None)
            if not stopping:
                self._fill(next_job, tell)
            if not self._running:
                return
            connection.wait([source for child in self._running.values() for source in child.sources], POLL)
            for child in list(self._running.values()):
                self._look_at(child, ended, tell, stopping)
            tell.tick()

    def _fill(self, next_job: NextJob, tell: Observer) -> None:
        for slot in range(len(self.slots)):
            if self._exhausted or slot in self._running:
                continue
            job = next_job()
            if job is None:
                self._exhausted = True
            else:
                self._start(job, slot, tell)

    def _start(self, job: Job, slot: int, tell: Observer, before: Child | None = None) -> None:
        order = Order(
            work=self._pickled_work,
            job=job,
            environment=self.slots[slot],
            log=(self.logs / f"{job.number}.log").absolute(),
            predecessor=before.process.pid if before and before.lost else None,
            grace=self.grace,
        )
        self._running[slot] = Child(self._context, order, slot=slot, before=before)
        tell.started(job, order.log)

    @cached_property
    def _pickled_work(self) -> bytes:
        import cloudpickle

        return cloudpickle.dumps(self.work)

    def _look_at(self, child: Child, ended: Ended, tell: Observer, stopping: bool) -> None:
        now = time.monotonic()
        child.read()
        if child.process.exitcode is not None:
            self._finish(child, ended, tell, stopping)
        elif child.kill_at is not None and now > child.kill_at:
            child.kill()
        elif child.record is not None:
            child.kill_at = child.kill_at or now + self.grace  # it has only to end
        elif self.timeout_seconds and now - child.begun > self.timeout_seconds and not (child.overdue or stopping):
            child.overdue = True
            tell.overdue(child.job, self.timeout_seconds)
            child.stop(kill_after=self.grace)

    def _finish(self, child: Child, ended: Ended, tell: Observer, stopping: bool) -> None:
        code = child.close()
        ending = self._ending(child, code, stopping)
        del self._running[child.slot]
        if ending.kind in ("killed", "timeout") and child.attempt <= self.retries and not stopping:
            tell.retried(ending)
            self._start(child.job, child.slot, tell, before=child)
        else:
            ended(ending)

    def _ending(self, child: Child, code: int, stopping: bool) -> Ending:
        record = child.record or {}
        error = record.get("error")
        kind, message = _verdict(record, code, stopping, self.timeout_seconds if child.overdue else None)
        return Ending(
            job=child.job,
            kind=kind,
            message=message,
            value=record.get("value"),
            error=error,
            exit_code=None if code == SERVER_LOST else code,
            seconds=time.monotonic() - child.first_begun,
            attempts=child.attempt,
            log=child.order.log,
        )

    def _end_all(self, ended: Ended, grace: float) -> None:
        children = list(self._running.values())
        for child in children:
            child.stop(kill_after=None)
        until = time.monotonic() + grace
        for child in children:
            child.process.join(max(0.0, until - time.monotonic()))
            child.kill()
        for child in children:
            self._finish(child, ended, Observer(), stopping=True)

    @property
    def _context(self) -> Any:
        kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        return multiprocessing.get_context(kind)

    @contextmanager
    def _environment(self) -> Iterator[None]:
        """What the server inherits, which starts now. A server that runs already is kept."""
        with inherited(self.environment):
            if self._context.get_start_method() == "forkserver":
                self._start_server()
            yield

    def _start_server(self) -> None:
        from multiprocessing import forkserver

        forkserver.set_forkserver_preload(["quartet.sweeps.server", *self.preload])
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # for the server, until it can ignore them
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _verdict(record: dict[str, Any], code: int, stopping: bool, limit: float | None) -> tuple[str, str]:
    """(kind, one line) for what a process reported, if anything, and its exit code."""
    if "value" in record:
        return "returned", "completed"
    if limit is not None and not stopping:
        return "timeout", f"stopped at its time limit of {in_words(limit)}"
    if "error" in record:
        return "error", described(record["error"])
    if stopping:
        return "stopped", "stopped with the sweep"
    if code == SERVER_LOST:
        return "killed", "lost: the process that starts jobs was killed"
    if code < 0 or code in (128 + signal.SIGTERM, 128 + signal.SIGINT):
        name = signal.Signals(-code if code < 0 else code - 128).name
        return "killed", f"killed by {name}" + (", as Linux does when memory runs out" if name == "SIGKILL" else "")
    return "killed", f"ended with exit code {code} and without an error"


def described(error: dict[str, Any]) -> str:
    """Its message, with its type where the message alone is not meant for a person."""
    message = error["message"]
    if message and {"ValueError", "OSError"} & set(error["types"]):
        return message
    return f"{error['types'][0]}: {message}" if message else error["types"][0]


def in_words(seconds: float) -> str:
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"


def log_tail(log: Path, n: int) -> list[str]:
    """Its last `n` lines; a progress bar that returned to the start of its line is the last state of it."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 400 * n))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    lines = CONTROL.sub("", text).rstrip().replace("\r\n", "\n").split("\n")
    return [line.rpartition("\r")[2] for line in lines[-n:] if line]
