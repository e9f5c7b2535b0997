"""A job of a sweep is a run directory that some process trains; what is known afterwards is its result and exit code."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from quartet.run import Run

Status = Literal["completed", "pruned", "failed", "killed", "timeout", "stopped"]


class Job(NamedTuple):
    """`label` says what varies, for people."""

    number: int
    run: Run
    label: str = ""


@dataclass(frozen=True)
class JobResult:
    """How a job ended, after its last attempt.

    completed and pruned are what `result.json` says; failed: an error, which starting again would not mend; killed: a
    signal, or an exit without a result; timeout: it was over its time limit; stopped: with the sweep, to be resumed.
    `seconds` counts all attempts.
    """

    job: Job
    status: Status
    message: str = ""
    seconds: float = 0.0
    attempts: int = 1
    log: Path | None = None


class Watcher(Protocol):
    """What a launcher reports while it works, besides results."""

    def started(self, job: Job, log: Path | None = None) -> None: ...

    def overdue(self, job: Job, seconds: float) -> None:
        """It is over its time limit of `seconds`, and was asked to stop."""

    def retried(self, result: JobResult) -> None:
        """It ended like this, and is started again."""

    def tick(self) -> None:
        """Called a few times a second."""


class Launcher(Protocol):
    """Runs jobs somewhere: on this machine, in SLURM, in Ray."""

    def run(self, jobs: Iterator[Job], ended: Callable[[JobResult], None], watcher: Watcher) -> None:
        """Start jobs until the iterator ends; it is advanced only when there is room for one more.

        `ended` is called once for each job. Raises Interrupted after a signal, when all jobs have stopped.
        """
        ...


def outcome(run: Run, exit_code: int) -> tuple[Status, str]:
    """The status and message of a job whose process has ended by itself, or by a signal that nobody here sent."""
    if exit_code < 0 or exit_code in (128 + signal.SIGTERM, 128 + signal.SIGINT):
        name = signal.Signals(-exit_code if exit_code < 0 else exit_code - 128).name
        return "killed", f"killed by {name}" + (", as Linux does when memory runs out" if name == "SIGKILL" else "")
    try:
        result = run.read("result.json")
    except (FileNotFoundError, ValueError):
        result = {}
    status = result.get("status")
    if exit_code == 0 and status in ("completed", "pruned"):
        return status, ""
    if exit_code == 1 and status == "failed":
        return "failed", str(result.get("error") or "failed without a message")
    return "killed", f"ended with exit code {exit_code} and without a result"
