"""hydra/launcher=local: jobs of a sweep as processes of this machine. Imported at every start, so it imports little."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from quartet.sweeps.child import Job
    from quartet.sweeps.pool import Ending


class LocalLauncher(Launcher):
    """`workers` jobs at a time, each with its device or its share of the cores; conf/hydra/launcher/local.yaml says more.

    A sweeper that decides on a job when a worker is free uses `stream`; others call `launch`, as of any launcher.
    """

    def __init__(self, workers: Any, threads: Any, timeout_minutes: Any, retries: Any):
        self.settings = {"workers": workers, "threads": threads, "timeout_minutes": timeout_minutes, "retries": retries}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """ValueError where the settings cannot be met."""
        from hydra.core.singleton import Singleton

        from quartet.sweeps.job import HydraJob
        from quartet.sweeps.local import make_pool

        work = HydraJob(hydra_context, task_function, config, Singleton.get_state())
        self.pool = make_pool(self.settings, config, work)

    def stream(
        self, next_job: Callable[[], Job | None], ended: Callable[[Ending], str], total: int | None = None
    ) -> None:
        """Run the jobs that `next_job` gives, asked when a worker is free, until it gives None.

        `ended` is called once for each job and returns what to say about it, the outcome first: completed, pruned, failed
        or stopped. `total` jobs are to come, if that is known. Interrupted: a signal came, and all jobs have stopped.
        """
        from quartet.sweeps.display import Display

        with Display(total) as display:
            self.pool.run(next_job, lambda ending: display.ended(ending, ended(ending)), display)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from quartet.sweeps.child import Job
        from quartet.sweeps.local import labels

        named = zip(job_overrides, labels(job_overrides), strict=True)
        jobs = iter([Job(n, tuple(words), label) for n, (words, label) in enumerate(named, initial_job_idx)])
        endings: dict[int, Ending] = {}

        def ended(ending: Ending) -> str:
            endings[ending.job.number] = ending
            return "completed" if ending.kind == "returned" else f"failed: {ending.message}"

        self.stream(lambda: next(jobs, None), ended, len(job_overrides))
        return [_job_return(endings[number]) for number in sorted(endings)]


def _job_return(ending: Ending) -> JobReturn:
    from quartet.workers import revive

    returned = JobReturn(overrides=list(ending.job.overrides), status=JobStatus.COMPLETED, _return_value=ending.value)
    if ending.kind != "returned":
        returned.status = JobStatus.FAILED
        returned.return_value = revive(ending.error) if ending.error else ChildProcessError(ending.message)
    return returned
