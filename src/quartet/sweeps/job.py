"""A job of a sweep as Hydra runs it, in a process that has composed nothing yet."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from quartet import trust
from quartet.cli import quiet_libraries
from quartet.sweeps.child import Job


@dataclass(frozen=True)
class HydraJob:
    """work(job) for a pool: composes the job's config and runs the task function on it, as Hydra's launchers do."""

    context: HydraContext
    task_function: TaskFunction
    config: DictConfig
    state: Any  # of Hydra's singletons in the sweep's process
    trusted: frozenset[str] = field(default_factory=lambda: frozenset(trust.trusted()))  # by the user of that process

    def __call__(self, job: Job) -> Any:
        quiet_libraries()
        trust.inherit(self.trusted)  # schedulers need not hand the environment on
        Singleton.set_state(self.state)
        setup_globals()
        config = self.context.config_loader.load_sweep_config(self.config, list(job.overrides))
        with open_dict(config):
            config.hydra.sweep.dir = self.config.hydra.sweep.dir  # as the sweep's process understands it
            config.hydra.job.id = config.hydra.job.num = job.number
        _share_threads(config)
        ended = run_job(
            hydra_context=self.context,
            task_function=self.task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        if isinstance(ended._return_value, Exception):  # the property would print before it raises
            raise ended._return_value
        return ended.return_value


def _share_threads(config: DictConfig) -> None:
    """A job's threads are for all of its workers, which read the variable when they start."""
    from quartet.launch import n_workers

    threads = int(os.environ.get("OMP_NUM_THREADS", 0))
    if threads and "trainer" in config:
        os.environ["OMP_NUM_THREADS"] = str(max(1, threads // n_workers(config)))
