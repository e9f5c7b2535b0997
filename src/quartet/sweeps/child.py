"""One attempt at a job, in a process of its own: what the sweep holds of it, and what the process itself does.

The process leads a group, so that Ctrl-C on a terminal does not reach it and a signal reaches all that it started; those
in sessions of their own (torchelastic's workers) carry the mark. It ends when the sweep's process ends.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from multiprocessing import parent_process, set_start_method
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from quartet.interruption import Interrupted
from quartet.worker import GRACE
from quartet.workers import describe

MARK = "QUARTET_JOB"  # in the environment of all that a job starts; the path of its log, which no other job has
CLEAR = (ValueError, OSError)  # errors whose message is all that a person needs
SERVER_LOST = 255  # multiprocessing's exit code where the server ended before it could tell the child's


class Job(NamedTuple):
    """What is to be done; `label` says what varies, for people."""

    number: int
    overrides: tuple[str, ...]
    label: str = ""


class Order(NamedTuple):
    """All that a process needs to know; `work` is pickled."""

    work: bytes
    job: Job
    environment: dict[str, str]
    log: Path
    predecessor: int | None  # process of the attempt before, where it may still work: only its server was killed
    grace: float  # seconds between SIGTERM and SIGKILL


class Child:
    """The sweep's side of an attempt."""

    def __init__(self, context: Any, order: Order, *, slot: int, before: Child | None = None):
        self.order, self.job, self.slot = order, order.job, slot
        self.attempt = before.attempt + 1 if before else 1
        self.record: dict[str, Any] | None = None  # {"value": …} or {"error": …}
        self.ready = self.overdue = self.lost = False
        self.kill_at: float | None = None
        self.pipe, report = context.Pipe(duplex=False)
        self.process = context.Process(target=_main, args=(order, report), name=f"job {order.job.number}")
        _start(self.process)
        report.close()
        self.begun = time.monotonic()  # the server has imported everything by now
        self.first_begun: float = before.first_begun if before else self.begun

    @property
    def sources(self) -> list[Any]:
        """What to wait for: one of them is ready when something has happened."""
        return [self.process.sentinel] if self.pipe.closed else [self.process.sentinel, self.pipe]

    def read(self) -> None:
        with suppress(EOFError, OSError):
            while not self.pipe.closed and self.pipe.poll():
                message = self.pipe.recv_bytes()
                self.ready = True
                self.record = json.loads(message) or self.record
            return
        self.pipe.close()  # the process has ended, or is about to

    def stop(self, kill_after: float | None) -> None:
        """SIGTERM to the group, and SIGKILL when `kill_after` seconds have passed; nothing to save before it is ready."""
        self.read()
        self.signal(signal.SIGTERM if self.ready else signal.SIGKILL)
        if kill_after is not None:
            self.kill_at = time.monotonic() + kill_after

    def kill(self) -> None:
        self.kill_at = None
        _kill(marked(self.order.log))
        self.signal(signal.SIGKILL)

    def signal(self, signum: int) -> None:
        if self.ready and hasattr(os, "killpg"):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signum)
        elif self.process.exitcode is None:
            self.process.kill()

    def close(self) -> int:
        """The exit code of an ended process; helpers that it left in its group end too."""
        self.process.join()
        code = self.process.exitcode
        self.lost = code == SERVER_LOST
        self.signal(signal.SIGTERM if self.lost else signal.SIGKILL)
        self.read()
        self.pipe.close()
        return code


def _start(process: Any) -> None:
    """By the server, or by a new one where that has just been killed and its end is not known yet."""
    for _ in range(20):
        try:
            return process.start()
        except ConnectionError:
            time.sleep(0.1)
        except EOFError:
            break
    raise ChildProcessError("the process that starts the jobs has ended; what it printed says why")


def marked(log: Path) -> list[int]:
    """Processes that a job started and that outlive it, in whatever session; known on Linux only."""
    word, found = f"{MARK}={log}".encode(), []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if word in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
    return found


# in the process


def _main(order: Order, report: Connection) -> None:
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the server ignores both
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        report.send_bytes(b"null")  # from here on signals are understood
    except BrokenPipeError:  # the sweep has ended meanwhile
        os._exit(128 + signal.SIGTERM)
    code = _attempt(order, report)
    atexit._run_exitfuncs()  # multiprocessing leaves them out; loggers finish in them
    sys.exit(code)


def _attempt(order: Order, report: Connection) -> int:
    try:
        _redirect(order.log)
        _settle_in(order)
        value = pickle.loads(order.work)(order.job)
        report.send_bytes(json.dumps({"value": value}).encode())
        return 0
    except Interrupted as stop:
        return stop.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BaseException as error:
        print(f"error: {error}", file=sys.stderr) if isinstance(error, CLEAR) else traceback.print_exc()
        report.send_bytes(json.dumps({"error": describe(error)}).encode())
        return 1


def _settle_in(order: Order) -> None:
    set_start_method(None, force=True)  # a job's own processes, such as those of a DataLoader, start as they always do
    with suppress(OSError):  # where memory runs out, Linux shall kill a job and not the sweep
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    os.environ.update(order.environment, **{MARK: str(order.log)})
    threading.Thread(target=_follow, daemon=True).start()
    _clear(order)


def _follow() -> None:
    """End with the sweep's process, whatever ended it."""
    sweep = parent_process()
    assert sweep is not None
    wait([sweep.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(128 + signal.SIGTERM)


def _redirect(log: Path) -> None:
    """All that the job prints, in C too, goes behind what is in the log already."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
            stream.reconfigure(line_buffering=True, encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]


def _clear(order: Order) -> None:
    """Wait for what is left of attempts before this one (they save), and kill what has not ended after the grace."""
    until = time.monotonic() + order.grace
    while pids := [*marked(order.log), *_alive(order.predecessor)]:
        if time.monotonic() > until:
            return _kill(pids)
        time.sleep(0.1)


def _alive(pid: int | None) -> list[int]:
    if pid is None:
        return []
    try:
        os.kill(pid, 0)
    except OSError:
        return []
    return [pid]


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
