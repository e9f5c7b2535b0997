"""Trains a run directory in a process of its own: python -m quartet.worker <run>.

The one entry of every process that is started: a data-parallel worker (torchelastic), a job of a sweep on this machine, in
SLURM or in Ray. Exit code 0, 1 after an error, 130 or 143 after a signal; the rest is in the run's `result.json`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from quartet.engine.workers import PARENT, environment_rank, exception_to_dict
from quartet.run import Run
from quartet.system.signals import SIGNALS, Interrupted, stoppable

GRACE = 30  # s for a checkpoint once the parent is gone, as long as torchelastic gives


def main() -> None:
    parent = int(os.environ.get(PARENT, os.getppid()))
    follow(lambda: os.getppid() == parent)
    if int(os.environ.get("RANK", 0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # one of them shows the progress
    code = train_directory(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    if code == 1 and environment_rank():
        os._exit(1)  # at once: taking the process group apart would wait for the others, and they for this one
    sys.exit(code)


def run_job(directory: str, log: str, environment: dict[str, str], train: Callable[[Path], int] | None = None) -> None:
    """In a process that the local pool has just forked: lead a group, write to the log, train, end with the exit code."""
    os.setpgrp()  # Ctrl-C on a terminal does not reach it, and a signal to the group reaches all that it starts
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # blocked in the process that this one was forked from
    os.environ.update(environment)
    with suppress(OSError):  # when memory runs out, Linux shall kill a job rather than the sweep
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    with open(log, "ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
            stream.reconfigure(line_buffering=True, encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    from multiprocessing import parent_process

    sweep = parent_process()
    assert sweep is not None
    follow(sweep.is_alive)
    code = (train or train_directory)(Path(directory))
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def train_directory(directory: Path) -> int:
    """Train a run, or resume it from its last checkpoint; the exit code. An error is in `result.json` then."""
    run = Run(directory)
    try:
        with stoppable():
            from quartet.system.cores import share_cores
            from quartet.system.quiet import quiet_libraries

            quiet_libraries()
            share_cores()
            if environment_rank() is not None:
                from quartet.engine.fit import train

                train(run)
                return 0
            run.wait_until_free()
            if run.last_checkpoint is not None:
                print(f"{run}: resuming from its last checkpoint", flush=True)
            from quartet.engine.workers import execute

            execute(run)
    except Interrupted as stop:
        if environment_rank() is None:
            print(stop, file=sys.stderr)
        return stop.exit_code
    except Exception as error:
        _report(error, run)
        return 1
    return 0


def _report(error: Exception, run: Run) -> None:
    """Hand an error to torchelastic in the file that it names; else write it into the run and print it."""
    name = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if name:
        temporary = Path(f"{name}.part")
        temporary.write_text(json.dumps(exception_to_dict(error)), encoding="utf-8")
        os.replace(temporary, name)
        return
    if run.status not in ("failed", "completed", "pruned"):
        run.mark_failed(error)
    if isinstance(error, ValueError | OSError):
        print(f"error: {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)


def follow(is_alive: Callable[[], bool]) -> None:
    """End when the process that started this one has ended, however that happened."""

    def watch() -> None:
        while is_alive():
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
