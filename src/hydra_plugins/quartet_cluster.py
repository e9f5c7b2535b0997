"""hydra/launcher=slurm, slurm_local and ray_tasks: jobs of a sweep in a scheduler's hands. Imports little."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from quartet.sweeps.child import Job
    from quartet.sweeps.pool import Ending


class ClusterLauncher(Launcher):
    """`stream` as of the local launcher; `jobs` of them are handed in at a time, all of a grid where it is null."""

    package = extra = ""
    adopts = False  # whether it finds the jobs of a killed sweep again

    def __init__(self, jobs: int | None, **settings: Any):
        self.jobs, self.settings = jobs, {name: _plain(value) for name, value in settings.items()}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """ValueError where the settings cannot be met."""
        name = config.hydra.runtime.choices["hydra/launcher"]
        if not find_spec(self.package):
            command = f"{sys.executable} -m pip install -e '.[{self.extra}]'"
            raise ValueError(f"hydra/launcher={name} needs the package {self.package}: {command}")
        if not (self.jobs is None or (type(self.jobs) is int and self.jobs > 0)):
            raise ValueError(f"hydra.launcher.jobs={self.jobs}: a whole number from 1 on, or null")
        from hydra.core.singleton import Singleton

        from quartet.sweeps.cluster import Work
        from quartet.sweeps.job import HydraJob

        self.config, self.work = config, Work(HydraJob(hydra_context, task_function, config, Singleton.get_state()))

    def stream(
        self, next_job: Callable[[], Job | None], ended: Callable[[Ending], str], total: int | None = None
    ) -> None:
        from quartet.sweeps.cluster import run_jobs

        sweep = self.config.get("sweep") or {}
        width = self.jobs or (total if sweep.get("sampler") == "grid" else sweep.get("n_jobs")) or 1
        run_jobs(self.queue(), width, next_job, ended)

    def queue(self) -> Any:
        raise NotImplementedError

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        raise ValueError("this launcher works with hydra/sweeper=quartet only")


class SubmititLauncher(ClusterLauncher):
    """`cluster` is slurm or local; what is not ours is passed to submitit as it is. conf/hydra/launcher/slurm.yaml."""

    package, extra, adopts = "submitit", "slurm", True

    def queue(self) -> Any:
        from pathlib import Path

        from quartet.sweeps.cluster import Submitit

        settings = dict(self.settings)
        cluster, n = settings.pop("cluster"), settings.pop("max_num_timeout")
        folder = Path(self.config.hydra.sweep.dir).absolute() / ".submitit"
        folder.mkdir(parents=True, exist_ok=True)
        return Submitit(cluster, folder, settings, n, self.work)


class RayLauncher(ClusterLauncher):
    """`init` is for ray.init, `remote` for ray.remote. conf/hydra/launcher/ray_tasks.yaml."""

    package, extra = "ray", "ray"

    def queue(self) -> Any:
        from quartet.sweeps.cluster import Ray

        return Ray(self.settings["init"], self.settings["remote"], self.work)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
