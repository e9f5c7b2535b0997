"""hydra/launcher=local: some jobs at a time, each in a process of its own. Imports no torch.

A job that crashes, runs out of memory or hangs ends alone. Processes are forked from a server that has imported torch and
everything else once, and the sweep's own process never does.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection, forkserver, resource_tracker
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from quartet.config import OptionalPositiveFloat, OptionalPositiveInt
from quartet.engine.workers import inherited
from quartet.say import elapsed
from quartet.signatures import NonNegativeInt, refuse, wrong_settings
from quartet.sweeps.jobs import Job, JobResult, Watcher, outcome
from quartet.system.cores import n_cores
from quartet.system.signals import SIGNALS, Interrupted, stoppable
from quartet.worker import run_job

SETTINGS: dict[str, Any] = {  # the keys of conf/hydra/launcher/local.yaml
    "workers": OptionalPositiveInt,
    "threads": OptionalPositiveInt,
    "timeout_minutes": OptionalPositiveFloat,
    "retries": NonNegativeInt,
}
MOST_ON_CPU = 4  # workers by default: beyond, memory and its bandwidth run out before cores do
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
    started: float = field(default_factory=time.monotonic)
    first_started: float = field(default_factory=time.monotonic)
    asked: float = -AGAIN  # when it was last asked to stop
    kill_at: float | None = None  # set once it is over its time limit

    def stop(self) -> None:
        """SIGTERM, on which a run saves and ends; to be called until it does."""
        if time.monotonic() - self.asked > AGAIN:
            self.asked = time.monotonic()
            self.signal(signal.SIGTERM)

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
        self.context = multiprocessing.get_context("forkserver")

    def run(self, jobs: Iterator[Job], ended: Callable[[JobResult], None], watcher: Watcher) -> None:
        """See `Launcher.run`. A second Ctrl-C kills the jobs."""
        running: dict[int, Attempt] = {}  # by slot
        self.logs.mkdir(parents=True, exist_ok=True)
        with inherited(self.environment), stoppable() as request:
            request.deferred, request.notice = True, NOTICE
            # the server inherits blocked signals, as it has to outlive jobs that save a checkpoint; jobs unblock them;
            # the tracker runs before, else the server starts it, which unblocks signals again
            forkserver.set_forkserver_preload([*self.preload])
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            try:
                forkserver.ensure_running()
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            exhausted = False
            try:
                while True:
                    # 1. fill the free slots
                    for slot in range(len(self.slots)):
                        if slot not in running and not exhausted and request.signum is None:
                            job = next(jobs, None)
                            exhausted = job is None
                            if job is not None:
                                running[slot] = self._start(job, slot, watcher)
                    if not running:
                        break
                    # 2. wait until something happens, and look at each job
                    connection.wait([attempt.process.sentinel for attempt in running.values()], POLL)
                    for slot, attempt in list(running.items()):
                        now, stopping = time.monotonic(), request.signum is not None
                        if attempt.process.exitcode is not None:
                            del running[slot]
                            result = self._result(attempt, stopping)
                            again = result.status in ("killed", "timeout") and attempt.number <= self.retries
                            if again and not stopping:
                                watcher.retried(result)
                                running[slot] = self._start(attempt.job, slot, watcher, before=attempt)
                            else:
                                ended(result)
                        elif attempt.kill_at is not None and now > attempt.kill_at and not stopping:
                            attempt.signal(signal.SIGKILL)
                        elif stopping or attempt.kill_at is not None:
                            attempt.stop()
                        elif self.timeout_seconds is not None and now - attempt.started > self.timeout_seconds:
                            attempt.kill_at = now + self.grace
                            watcher.overdue(attempt.job, self.timeout_seconds)
                            attempt.stop()
                    watcher.tick()
            except BaseException as error:
                # 3. Ctrl-C again kills; a mistake of whoever hands in the jobs lets them save
                killed = isinstance(error, Interrupted)
                until = time.monotonic() + (0 if killed else self.grace)
                while time.monotonic() < until and any(attempt.process.is_alive() for attempt in running.values()):
                    for attempt in running.values():
                        attempt.stop()
                    time.sleep(0.05)
                for attempt in running.values():
                    attempt.signal(signal.SIGKILL)
                    attempt.process.join()
                    if killed:
                        ended(self._result(attempt, stopping=True))
                raise
            if request.signum is not None:
                raise Interrupted(request.signum)

    def _start(self, job: Job, slot: int, watcher: Watcher, before: Attempt | None = None) -> Attempt:
        log = (self.logs / f"{job.number}.log").absolute()
        arguments = str(job.run.directory), str(log), {**self.slots[slot], **job.run.for_workers()}
        process = self.context.Process(target=self.target, args=arguments, name=f"job {job.number}")
        process.start()
        attempt = Attempt(job, slot, process, log)
        if before is not None:
            attempt.number, attempt.first_started = before.number + 1, before.first_started
        watcher.started(job, log)
        return attempt

    def _result(self, attempt: Attempt, stopping: bool) -> JobResult:
        """What a job's exit code and `result.json` say, unless it was asked to stop before it had ended."""
        status, message = outcome(attempt.job.run, attempt.process.exitcode)
        # what it has started and left behind
        with suppress(ProcessLookupError):
            os.killpg(attempt.process.pid, signal.SIGKILL)
        if status == "killed" and stopping:
            status, message = "stopped", "stopped with the sweep"
        elif status == "killed" and attempt.kill_at is not None:
            status, message = "timeout", f"stopped at its time limit of {elapsed(self.timeout_seconds or 0)}"
        seconds = time.monotonic() - attempt.first_started
        return JobResult(attempt.job, status, message, seconds, attempt.number, attempt.log)


def make_pool(settings: Mapping[str, Any], config: DictConfig) -> Pool:
    """ValueError with a line for each mistake in `settings` (those of conf/hydra/launcher/local.yaml)."""
    refuse(wrong_settings(SETTINGS, settings, "hydra.launcher."))
    trainer, minutes = config.get("trainer") or {}, settings["timeout_minutes"]
    slots = make_slots(settings["workers"], trainer)
    threads = int(settings["threads"] or os.environ.get("OMP_NUM_THREADS") or max(1, n_cores() // len(slots)))
    # those of a job are for all of its workers
    threads = max(1, threads // n_devices(trainer))
    return Pool(
        slots=slots,
        environment={"OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)},  # the latter: tokenizers
        preload=("quartet.sweeps.preload",),
        logs=Path(config.hydra.sweep.dir).absolute() / "logs",
        timeout_seconds=None if minutes is None else 60 * minutes,
        retries=settings["retries"],
    )


def make_slots(workers: int | None, trainer: Mapping[str, Any]) -> list[dict[str, str]]:
    """What each worker's jobs find in their environment: their GPUs, if there are any and `trainer` wants them.

    More workers than groups of GPUs share them in turn. ValueError if a job needs more devices than there are.
    """
    n = n_devices(trainer)
    gpus = visible_gpus() if trainer.get("accelerator", "auto") in ("auto", "gpu", "cuda") else []
    if not gpus:
        return [{} for _ in range(workers or min(MOST_ON_CPU, max(1, n_cores() // n)))]
    if n > len(gpus):
        raise ValueError(f"trainer.devices={n} for each job, and there are {len(gpus)} GPUs; ask for fewer")
    groups = [",".join(gpus[i : i + n]) for i in range(0, len(gpus) - n + 1, n)]
    return [{"CUDA_VISIBLE_DEVICES": groups[i % len(groups)]} for i in range(workers or len(groups))]


def n_devices(trainer: Mapping[str, Any]) -> int:
    """Devices of each job; one if it would use all that there are."""
    n = trainer.get("devices", 1)
    if isinstance(n, list | ListConfig):
        raise ValueError(f"trainer.devices={list(n)}: in a sweep with hydra/launcher=local say how many, not which")
    return 1 if n in (-1, "-1", "auto", None) else int(n)


def visible_gpus() -> list[str]:
    """Names that CUDA_VISIBLE_DEVICES knows, without importing torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        # installed without a driver
        return []
    return [str(i) for i, _ in enumerate(re.findall("^GPU ", listed.stdout, re.M))]


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
