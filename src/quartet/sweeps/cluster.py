"""Jobs of a sweep in the hands of a scheduler: SLURM through submitit, this machine as submitit's stand-in for it, or Ray.

The sweep hands jobs in and looks for results. Jobs in SLURM go on when the sweep's process is killed; a sweep that goes on
finds them again by what `.submitit/jobs.jsonl` says. Imports submitit and Ray late.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from quartet.interruption import Interrupted, stoppable
from quartet.run import Run, cut_back
from quartet.say import printable, say
from quartet.sweeps.child import Job
from quartet.sweeps.pool import Ending, described
from quartet.workers import describe, environment_rank, inherited

POLL = 1.0  # s between looks at the results
LOOK = 15.0  # s between questions to SLURM, which serves others too
JOBS = "jobs.jsonl"
RECORD = "record.json"  # in the folder of a job of submitit, beside its pickles


class Queue(Protocol):
    """Where jobs are handed in; `stop` is what a person types to end those that are named after it."""

    name: str
    stop: str

    def submit(self, jobs: Sequence[Job]) -> list[str]:
        """Their names in the queue, in the same order; jobs that are there already are not handed in again."""
        ...

    def results(self, names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Those that have ended since: {"value": …}, {"error": …}, or {"lost": why} where nothing came back."""
        ...


def run_jobs(
    queue: Queue, width: int, next_job: Callable[[], Job | None], ended: Callable[[Ending], str], poll: float = POLL
) -> None:
    """At most `width` jobs in the queue at a time, until `next_job` gives None and the last one has ended."""
    waiting: dict[str, tuple[Job, float]] = {}
    try:
        with stoppable():
            while True:
                new = list(_take(width - len(waiting), next_job))
                names = queue.submit(new) if new else []
                waiting.update({name: (job, time.monotonic()) for name, job in zip(names, new, strict=True)})
                if not waiting:
                    return
                for name, record in list(queue.results(list(waiting))):
                    _tell(name, *waiting.pop(name), record, ended)
                time.sleep(poll)
    except (Interrupted, KeyboardInterrupt):
        if waiting and queue.stop:
            print(f"\nwhat {queue.name} has goes on; to end it: {queue.stop} {' '.join(waiting)}", file=sys.stderr)
        raise


def _take(n: int, next_job: Callable[[], Job | None]) -> Iterator[Job]:
    while n > 0 and (job := next_job()) is not None:
        yield job
        n -= 1


def _tell(name: str, job: Job, begun: float, record: dict[str, Any], ended: Callable[[Ending], str]) -> None:
    seconds, error = time.monotonic() - begun, record.get("error")
    if "lost" in record:
        ending = Ending(job, "killed", record["lost"], seconds=seconds)
    elif error:
        ending = Ending(job, "error", described(error), error=error, seconds=seconds)
    else:
        ending = Ending(job, "returned", "returned", value=record["value"], seconds=seconds)
    text = ended(ending)
    failed = text.startswith("failed")
    line = f"{'error: ' if failed else ''}job {job.number} ({name}) {text}"
    print(printable(line, keep="\n"), file=sys.stderr if failed else sys.stdout, flush=True)


@dataclass(frozen=True)
class Work:
    """What travels to the job's process. submitit calls `checkpoint` where the job is to start again: with the same job."""

    work: Callable[[Job], Any]

    def __call__(self, job: Job) -> dict[str, Any]:
        try:
            return {"value": self.work(job)}
        except Interrupted as stop:  # no result: the run goes on another time
            rank, _ = environment_rank() or (0, 1)
            sys.exit(0 if rank else stop.exit_code)  # the first one asks SLURM, and must not be ended by the others
        except Exception as error:
            return {"error": describe(error)}

    def checkpoint(self, job: Job) -> Any:
        from submitit.helpers import DelayedSubmission  # pyright: ignore[reportMissingImports] an extra

        return DelayedSubmission(self, job)


@dataclass(frozen=True)
class Recorded(Work):
    """For submitit, whose results are pickled: what comes of a job is in plain data too, and nothing else is read.

    A sweep that goes on may be somebody else's, and a pickle in it a program.
    """

    def __call__(self, job: Job) -> dict[str, Any]:
        from submitit import JobEnvironment  # pyright: ignore[reportMissingImports] an extra

        record, here = super().__call__(job), JobEnvironment()
        if here.global_rank == 0:
            Run(here.paths.folder).write(RECORD, record)
        return record


class Submitit:
    """SLURM ("slurm"), or processes of this machine that are treated like its jobs ("local")."""

    def __init__(self, cluster: str, folder: Path, parameters: Mapping[str, Any], max_num_timeout: int, work: Work):
        import submitit  # pyright: ignore[reportMissingImports] an extra

        self.name, self.stop = ("SLURM", "scancel") if cluster == "slurm" else ("submitit", "kill")
        self.cluster, self.work, self.folder = cluster, Recorded(work.work), folder
        known = {"slurm_max_num_timeout": max_num_timeout} if cluster == "slurm" else {}
        self.executor = submitit.AutoExecutor(folder / "%j", cluster=cluster, **known)
        if cluster == "local":
            self.executor._executor.max_num_timeout = max_num_timeout  # AutoExecutor passes it to SLURM's only
        self.executor.update_parameters(**{name: value for name, value in parameters.items() if value is not None})
        self._jobs: dict[str, Any] = {}
        self._missed: dict[str, int] = {}  # looks at SLURM's queue that did not find it
        self._looked = float("-inf")

    def submit(self, jobs: Sequence[Job]) -> list[str]:
        before = self._handed_in()
        names = {job.number: before[job.number] for job in jobs if self._is_there(before.get(job.number))}
        new = [job for job in jobs if job.number not in names]
        if names:
            say(f"jobs that {self.name} has already: {', '.join(map(str, names))}")
        if new:
            with inherited({}):  # the job's process imports this package, whatever lies in its working directory
                handed_in = self.executor.map_array(self.work, new)
            for job, handed in zip(new, handed_in, strict=True):
                names[job.number] = handed.job_id
                self._jobs[handed.job_id] = handed
            self._note({job.number: names[job.number] for job in new})
            for job in new:
                say(f"job {job.number} ({names[job.number]}): {job.label}")
        return [names[job.number] for job in jobs]

    def results(self, names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        gone = self._gone(names)
        for name in names:
            job = self._job(name)
            if _finished(job):
                yield name, _record(job)
            elif name in gone:
                yield name, {"lost": f"{self._state(name)} without a result; see {job.task(0).paths.stderr}"}

    # what is handed in, for a sweep that goes on
    def _handed_in(self) -> dict[int, str]:
        path = self.folder / JOBS
        lines = path.read_bytes().splitlines() if path.is_file() else []
        return dict(entry for entry in map(_entry, lines) if entry is not None)

    def _note(self, names: Mapping[int, str]) -> None:
        text = "".join(json.dumps({"number": number, "id": name}) + "\n" for number, name in names.items())
        with (self.folder / JOBS).open("ab") as file:
            cut_back(file)
            file.write(text.encode())

    def _is_there(self, name: str | None) -> bool:
        return name is not None and (_finished(self._job(name)) or name in self._alive([name]))

    def _job(self, name: str) -> Any:
        if name not in self._jobs:
            make, n = self.executor._executor.job_class, self.executor._executor._num_tasks()
            self._jobs[name] = make(folder=self.folder / "%j", job_id=name, tasks=list(range(n)))
        return self._jobs[name]

    # what has ended without a result
    def _gone(self, names: Sequence[str]) -> set[str]:
        """Missed twice: a job that starts again may be in no list for a moment, a result may be late on a shared disk."""
        if time.monotonic() - self._looked < (LOOK if self.cluster == "slurm" else 1):
            return set()
        self._looked = time.monotonic()
        alive = self._alive(names)
        self._missed = {name: 0 if name in alive else self._missed.get(name, 0) + 1 for name in names}
        return {name for name, n in self._missed.items() if n > 1}

    def _alive(self, names: Sequence[str]) -> set[str]:
        """Those that wait or run; all of them where SLURM does not answer."""
        if self.cluster == "local":
            return {name for name in names if not self._exited(name)}
        command = ["squeue", "--noheader", "--array", "--me", "--format=%i"]
        try:
            return set(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split())
        except (OSError, subprocess.SubprocessError):
            return set(names)

    def _exited(self, name: str) -> bool:
        job = self._jobs.get(name)
        if job is not None and job._process is not None:
            return job.done()
        try:
            os.kill(int(name), 0)
        except ProcessLookupError:
            return True
        return False

    def _state(self, name: str) -> str:
        """How SLURM says that it ended, for some minutes afterwards."""
        with suppress(OSError, subprocess.SubprocessError):
            command = ["scontrol", "--oneliner", "show", "job", name]
            shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
            words = [word.partition("=")[2] for word in shown.split() if word.startswith("JobState=")]
            return f"ended in SLURM as {words[0]}" if words and self.cluster == "slurm" else "ended"
        return "ended"


def _entry(line: bytes) -> tuple[int, str] | None:
    """(number, id) of a line; None of one that a killed process has cut, whose job is then handed in again."""
    with suppress(ValueError, TypeError, LookupError):
        entry = json.loads(line)
        if re.fullmatch(r"\w+", entry["id"]):
            return int(entry["number"]), entry["id"]
    return None


def _finished(job: Any) -> bool:
    paths = job.task(0).paths
    with suppress(OSError):
        os.listdir(paths.folder)  # a shared disk remembers what it has not found until somebody lists the folder
    return (paths.folder / RECORD).exists() or paths.result_pickle.exists()


def _record(job: Any) -> dict[str, Any]:
    paths = job.task(0).paths
    try:
        record = Run(paths.folder).read(RECORD)
    except FileNotFoundError:
        return {"lost": f"ended before it began; see {paths.stderr}"}
    except ValueError as error:
        return {"lost": str(error)}
    if "value" in record or _is_error(record.get("error")):
        return record
    return {"lost": f"{paths.folder / RECORD} is damaged"}


def _is_error(error: Any) -> bool:
    """Of the shape that `quartet.workers.describe` gives."""
    texts = [error.get("message"), error.get("traceback"), *error.get("types", [])] if isinstance(error, dict) else []
    return len(texts) > 2 and all(isinstance(text, str) for text in texts)


class Ray:
    """A Ray of its own on this machine, or the cluster at `address`; a job that crashes is started again by Ray."""

    name, stop = "Ray", ""  # jobs end with the sweep's process

    def __init__(self, start: Mapping[str, Any], resources: Mapping[str, Any], work: Work):
        import cloudpickle
        import ray  # pyright: ignore[reportMissingImports] an extra

        self.ray = ray
        ray.init(**start)
        self._run = ray.remote(**resources, max_calls=1)(_run_pickled)  # a process of its own for each job
        self._work = ray.put(cloudpickle.dumps(work))
        self._references: dict[str, Any] = {}

    def submit(self, jobs: Sequence[Job]) -> list[str]:
        names = []
        for job in jobs:
            reference = self._run.remote(self._work, tuple(job))
            names.append(reference.hex()[:8])
            self._references[names[-1]] = reference
            say(f"job {job.number}: {job.label}")
        return names

    def results(self, names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        for name in names:
            ready, _ = self.ray.wait([self._references[name]], timeout=0)
            if ready:
                del self._references[name]
                yield name, self._record(ready[0])

    def _record(self, reference: Any) -> dict[str, Any]:
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            return {"lost": f"{type(error).__name__}: {str(error).splitlines()[0]}"}


def _run_pickled(work: bytes, job: tuple[Any, ...]) -> dict[str, Any]:
    import cloudpickle

    return cloudpickle.loads(work)(Job(*job))
