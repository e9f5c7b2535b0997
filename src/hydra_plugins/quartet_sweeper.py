"""`hydra/sweeper=quartet`: Hydra's interface to `quartet.sweeps`. Imported at every start, so it imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class QuartetSweeper(Sweeper):
    """Runs the sweep that `conf/sweep` and the command line describe, with whatever launcher is chosen."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig
        from hydra.core.plugins import Plugins

        config.hydra.sweep.dir = str(Path(config.hydra.sweep.dir).expanduser().absolute())
        HydraConfig.instance().set_config(config)  # from here on it is a sweep, see cli.in_sweep
        self.loader, self.settings = hydra_context.config_loader, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """`arguments` are the overrides of the command line; returns the number of the best run, if there is one."""
        from quartet.sweeps.sweep import sweep

        return sweep(self.loader, self.launcher, self.settings, arguments)
