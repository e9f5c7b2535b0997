"""Who works in a sweep's directory: one sweep, and its jobs. Locks of the kernel, which end with their processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quartet.say import say

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

JOBS, SWEEP = ".jobs.lock", ".sweep.lock"
PATIENCE = 60  # s that jobs of a killed sweep have to save and stop: twice what they take at most


@contextmanager
def job_lock(directory: Path) -> Iterator[None]:
    """Held by each job while it works, so that a sweep that goes on waits for those of a killed one."""
    if fcntl is None:
        yield
        return
    with (directory / JOBS).open("a+") as file:  # on NFS a shared lock needs a file that can be read
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextmanager
def sweep_lock(directory: Path, patience: float = PATIENCE, *, alone: bool = True) -> Iterator[None]:
    """Held by the sweep's process; BlockingIOError where another one works here, or jobs of a former one do not end.

    Not `alone`: the sweep finds them again, and takes what comes of them.
    """
    if fcntl is None:
        yield
        return
    with (directory / SWEEP).open("a") as file:
        if not _taken(file):
            raise BlockingIOError(f"another process works on the sweep {directory}; stop that one first")
        if alone:
            _wait_for_jobs(directory, patience)
        yield


def _wait_for_jobs(directory: Path, patience: float) -> None:
    deadline = time.monotonic() + patience
    with (directory / JOBS).open("a") as file:
        if not _taken(file):
            say("waiting for runs that the killed sweep has left to stop")
        while not _taken(file):
            if time.monotonic() > deadline:
                raise BlockingIOError(f"runs of the sweep {directory} are still going; wait for them, or stop them")
            time.sleep(0.1)


def _taken(file: object) -> bool:
    assert fcntl is not None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[arg-type]
    except BlockingIOError:
        return False
    return True
