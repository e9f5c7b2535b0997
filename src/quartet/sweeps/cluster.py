"""hydra/launcher=slurm, slurm_local and ray_tasks: jobs in the hands of a scheduler. Imports submitit and Ray late.

A scheduler gets a run directory to train; what comes of it is read from that directory and from the job's exit code, never
from what submitit pickles: a sweep may be a stranger's, and a pickle is a program. Jobs in SLURM outlive the sweep's
process; one that resumes finds them by the job id in the run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from quartet import trust
from quartet.engine.workers import inherited
from quartet.run import Run
from quartet.say import say
from quartet.sweeps.jobs import Job, JobResult, Watcher, outcome
from quartet.system.signals import Interrupted, stoppable

POLL = 1.0  # s between looks at the results
LOOK = 15.0  # s between questions to SLURM, which serves others too
QUEUED = "queued.json"  # in a run directory: the id of its job
ENDED = "ended.json"  # in a run directory: the exit code of its job


class Queue(Protocol):
    """Where jobs are handed in; `stop` is the command that ends those whose ids follow it."""

    name: str
    stop: str

    def submit(self, jobs: Sequence[Job]) -> list[str]:
        """Their ids, in the same order; a job that is in the queue already is not handed in again."""
        ...

    def exits(self, ids: Mapping[str, Job]) -> Iterator[tuple[str, int | str]]:
        """Those that have ended since: (id, exit code), or (id, why) if they were lost."""
        ...


def run_jobs(
    queue: Queue,
    width: int,
    jobs: Iterator[Job],
    ended: Callable[[JobResult], None],
    watcher: Watcher,
    poll: float = POLL,
) -> None:
    """See `Launcher.run`; at most `width` jobs are in the queue at a time."""
    waiting: dict[str, tuple[Job, float]] = {}  # with the time at which each was handed in
    try:
        with stoppable():
            exhausted = False
            while True:
                # 1. hand in as many as there is room for, together
                new: list[Job] = []
                while not exhausted and len(waiting) + len(new) < width:
                    job = next(jobs, None)
                    exhausted = job is None
                    new += [job] if job is not None else []
                for name, job in zip(queue.submit(new) if new else [], new, strict=True):
                    waiting[name] = job, time.monotonic()
                    watcher.started(job)
                if not waiting:
                    return
                # 2. those that have ended since
                for name, code in list(queue.exits({name: job for name, (job, _) in waiting.items()})):
                    job, submitted_at = waiting.pop(name)
                    status, message = outcome(job.run, code) if isinstance(code, int) else ("killed", code)
                    ended(JobResult(job, status, message, time.monotonic() - submitted_at))
                watcher.tick()
                time.sleep(poll)
    except (Interrupted, KeyboardInterrupt):
        if waiting and queue.stop:
            ids = " ".join(waiting)
            print(f"\nthe jobs that {queue.name} has keep running; to end them: {queue.stop} {ids}", file=sys.stderr)
        raise


def run_in_batches(
    launcher: Any, n_jobs: int, jobs: Iterator[Job], ended: Callable[[JobResult], None], watcher: Watcher
) -> None:
    """By launchers that return when all of a batch have ended: Hydra's own, those of other plugins.

    At most `n_jobs` at a time; the task function that these launchers call trains the run with the job's number.
    """
    waiting: list[Job] = []
    while True:
        while len(waiting) < n_jobs and (job := next(jobs, None)) is not None:
            waiting.append(job)
        if not waiting:
            return
        # launchers count on from the first number
        batch = [waiting.pop(0)]
        while waiting and waiting[0].number == batch[-1].number + 1:
            batch.append(waiting.pop(0))
        for job in batch:
            watcher.started(job)
        submitted_at, overrides = time.monotonic(), [job.run.read("trial.json")["overrides"] for job in batch]
        try:
            returns = launcher.launch(overrides, initial_job_idx=batch[0].number)
        except Exception:
            # some launchers raise when one job is killed; the others may still be running
            for job in batch:
                ended(JobResult(job, "stopped", "the launcher gave up"))
            raise
        for job, returned in zip(batch, returns, strict=True):
            failed = isinstance(returned._return_value, Exception)  # the property would print it
            ended(JobResult(job, *outcome(job.run, int(failed)), time.monotonic() - submitted_at))


class TrainRun:
    """What submitit sends to a job: it trains the run directory, and its exit code is written beside the result."""

    def __init__(self, directory: str, environment: dict[str, str]):
        self.directory, self.environment = directory, environment

    def __call__(self) -> None:
        from quartet.worker import train_directory

        os.environ.update(self.environment)
        run, rank = Run(Path(self.directory)), int(os.environ.get("SLURM_PROCID", 0))
        code = train_directory(run.directory)
        # no end: submitit queues the job again, which only its first task may ask for
        if code > 128:
            sys.exit(0 if rank else code)
        if rank == 0:
            run.write(ENDED, {"exit_code": code})

    def checkpoint(self) -> Any:
        """Called by submitit when the job is to be queued again: with the same run, which resumes."""
        from submitit.helpers import DelayedSubmission  # pyright: ignore[reportMissingImports] an extra

        return DelayedSubmission(self)


class Submitit:
    """SLURM ("slurm"), or processes of this machine that are treated like its jobs ("local")."""

    def __init__(self, cluster: str, folder: Path, parameters: Mapping[str, Any], max_num_timeout: int):
        import submitit  # pyright: ignore[reportMissingImports] an extra

        self.name, self.stop = ("SLURM", "scancel") if cluster == "slurm" else ("submitit", "kill")
        self.cluster, self.folder = cluster, folder
        known = {"slurm_max_num_timeout": max_num_timeout} if cluster == "slurm" else {}
        self.executor = submitit.AutoExecutor(folder / "%j", cluster=cluster, **known)
        if cluster == "local":
            self.executor._executor.max_num_timeout = max_num_timeout  # AutoExecutor passes it to SLURM's only
        self.executor.update_parameters(**{name: value for name, value in parameters.items() if value is not None})
        self._processes: dict[str, Any] = {}  # of the local executor
        self._missed: dict[str, int] = {}  # looks at SLURM's queue that did not find a job
        self._looked = float("-inf")

    def submit(self, jobs: Sequence[Job]) -> list[str]:
        # 1. those that the sweep had handed in before it was killed
        names: dict[int, str] = {}
        for job in jobs:
            # no job yet, or a file that was cut or is strange
            with suppress(OSError, ValueError, LookupError, TypeError):
                name = job.run.read(QUEUED)["id"]
                if re.fullmatch(r"\w+", name) and (_exit_code(job.run) is not None or name in self._alive([name])):
                    names[job.number] = name
        if names:
            say(f"jobs that {self.name} has already: {', '.join(names.values())}")
        # 2. the others, as one array; the jobs import this package, wherever they start
        new = [job for job in jobs if job.number not in names]
        for job in new:
            for file in (QUEUED, ENDED):
                (job.run.directory / file).unlink(missing_ok=True)
        if new:
            with inherited({}), self.executor.batch():
                submitted = [self.executor.submit(TrainRun(str(job.run.directory), environment(job))) for job in new]
            for job, handle in zip(new, submitted, strict=True):
                names[job.number] = handle.job_id
                self._processes[handle.job_id] = handle
                job.run.write(QUEUED, {"id": handle.job_id})
        return [names[job.number] for job in jobs]

    def exits(self, ids: Mapping[str, Job]) -> Iterator[tuple[str, int | str]]:
        # lost is what was missed twice: a job that starts again may be in no list for a moment, a file may be late
        lost: set[str] = set()
        if time.monotonic() - self._looked >= (LOOK if self.cluster == "slurm" else 1):
            self._looked, alive = time.monotonic(), self._alive(list(ids))
            self._missed = {name: 0 if name in alive else self._missed.get(name, 0) + 1 for name in ids}
            lost = {name for name, n in self._missed.items() if n > 1}
        for name, job in ids.items():
            code = _exit_code(job.run)
            if code is not None:
                yield name, code
            elif name in lost:
                state = "ended"
                if self.cluster == "slurm":  # which knows for some minutes how it ended
                    states = re.findall(r"\bJobState=(\S+)", _ask("scontrol", "--oneliner", "show", "job", name) or "")
                    state = f"ended in SLURM as {states[0]}" if states else state
                yield name, f"{state} without a result; see {self.folder / name}"

    def _alive(self, names: Sequence[str]) -> set[str]:
        """Those that wait or run; all of them if SLURM does not answer."""
        if self.cluster == "slurm":
            listed = _ask("squeue", "--noheader", "--array", "--me", "--format=%i")
            return set(names if listed is None else listed.split())
        # a process of this sweep, or of the one before it
        alive = set()
        for name in names:
            try:
                if name not in self._processes:
                    os.kill(int(name), 0)
                elif self._processes[name].done():
                    continue
            except ProcessLookupError:
                continue
            alive.add(name)
        return alive


def _ask(*command: str) -> str | None:
    """What a command of SLURM prints; None if it fails."""
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    return None


def environment(job: Job) -> dict[str, str]:
    """What a job has to know of the sweep's process: a scheduler need not hand its environment on."""
    return {**job.run.for_workers(), trust.VARIABLE: ",".join(sorted(trust.trusted()))}


def _exit_code(run: Run) -> int | None:
    with suppress(OSError):
        os.listdir(run.directory)  # a shared disk remembers what it has not found until somebody lists the folder
    with suppress(OSError, ValueError, LookupError, TypeError):
        code = json.loads((run.directory / ENDED).read_text(encoding="utf-8"))["exit_code"]
        return code if type(code) is int else None
    return None


class Ray:
    """A Ray of its own on this machine, or the cluster at `address`; a job that crashes is started again by Ray."""

    name, stop = "Ray", ""  # jobs end with the sweep's process

    def __init__(self, start: Mapping[str, Any], resources: Mapping[str, Any]):
        import ray  # pyright: ignore[reportMissingImports] an extra

        self.ray = ray
        ray.init(**start)
        self._train = ray.remote(**resources, max_calls=1)(_train)  # a process of its own for each job
        self._references: dict[str, Any] = {}

    def submit(self, jobs: Sequence[Job]) -> list[str]:
        names = []
        for job in jobs:
            reference = self._train.remote(str(job.run.directory), environment(job))
            names.append(reference.hex()[:8])
            self._references[names[-1]] = reference
        return names

    def exits(self, ids: Mapping[str, Job]) -> Iterator[tuple[str, int | str]]:
        for name in ids:
            ready, _ = self.ray.wait([self._references[name]], timeout=0)
            if ready:
                del self._references[name]
                try:
                    yield name, self.ray.get(ready[0])
                except self.ray.exceptions.RayError as error:
                    yield name, f"{type(error).__name__}: {str(error).splitlines()[0]}"


def _train(directory: str, environment: dict[str, str]) -> int:
    from quartet.worker import train_directory

    os.environ.update(environment)
    return train_directory(Path(directory))
