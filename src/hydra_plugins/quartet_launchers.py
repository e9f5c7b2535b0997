"""hydra/launcher=local, slurm, slurm_local and ray_tasks. Imported at every start of Hydra, so it imports nothing heavy.

Their `run` is that of `quartet.sweeps.jobs.Launcher`; `launch`, which Hydra's other sweepers call, is not offered.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from quartet.sweeps.jobs import Job, JobResult, Watcher


class QuartetLauncher(Launcher):
    """Keeps its settings; subclasses say how jobs are run."""

    def __init__(self, **settings: Any):
        self.settings: dict[str, Any] = {
            name: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for name, value in settings.items()
        }

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        raise ValueError("this launcher works with hydra/sweeper=quartet only")


class LocalLauncher(QuartetLauncher):
    """Processes of this machine, each with its device or its share of the cores; conf/hydra/launcher/local.yaml."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Raises ValueError if the settings cannot be met."""
        from quartet.sweeps.pool import make_pool

        self.pool = make_pool(self.settings, config)

    def run(self, jobs: Iterator[Job], ended: Callable[[JobResult], None], watcher: Watcher) -> None:
        self.pool.run(jobs, ended, watcher)


class ClusterLauncher(QuartetLauncher):
    """`jobs` of them are in the scheduler's hands at a time; null: all of a grid."""

    package = extra = ""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Raises ValueError if the scheduler's package is not installed, or the settings cannot be met."""
        self.directory, self.sweep = Path(config.hydra.sweep.dir).absolute(), config.get("sweep") or {}
        name, jobs = config.hydra.runtime.choices["hydra/launcher"], self.settings["jobs"]
        if not find_spec(self.package):
            command = f"{sys.executable} -m pip install -e '.[{self.extra}]'"
            raise ValueError(f"hydra/launcher={name} needs the package {self.package}: {command}")
        if not (jobs is None or (type(jobs) is int and jobs > 0)):
            raise ValueError(f"hydra.launcher.jobs={jobs}: an integer of at least 1, or null")

    def run(self, jobs: Iterator[Job], ended: Callable[[JobResult], None], watcher: Watcher) -> None:
        from quartet.sweeps.cluster import run_jobs

        n_jobs = sys.maxsize if self.sweep.get("sampler") == "grid" else self.sweep.get("n_jobs") or 1
        run_jobs(self.queue(), self.settings["jobs"] or n_jobs, jobs, ended, watcher)

    @abstractmethod
    def queue(self) -> Any:
        """A `quartet.sweeps.cluster.Queue`, made when the jobs are handed in."""


class SubmititLauncher(ClusterLauncher):
    """`cluster` is slurm or local; other settings are submitit's own. conf/hydra/launcher/slurm.yaml."""

    package, extra = "submitit", "slurm"

    def queue(self) -> Any:
        from quartet.sweeps.cluster import Submitit

        own = ("jobs", "cluster", "max_num_timeout")
        parameters = {name: value for name, value in self.settings.items() if name not in own}
        folder = self.directory / ".submitit"
        folder.mkdir(parents=True, exist_ok=True)
        return Submitit(self.settings["cluster"], folder, parameters, self.settings["max_num_timeout"])


class RayLauncher(ClusterLauncher):
    """`init` is for ray.init, `remote` for ray.remote. conf/hydra/launcher/ray_tasks.yaml."""

    package, extra = "ray", "ray"

    def queue(self) -> Any:
        from quartet.sweeps.cluster import Ray

        return Ray(self.settings["init"], self.settings["remote"])
