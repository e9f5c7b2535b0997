"""Ends a hopeless run of a sweep: after each validation the study is told the monitored value and asked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from quartet.system.distributed import highest


class Pruning(Callback):
    """The first worker asks, all of them stop as if training had come to its end.

    `run_directory` lies inside the sweep's. The unit of progress is a validation, so that runs with other
    batch sizes are compared at the same share of their training. What is told is the best value so far, as that is what
    a run is judged by at its end. A run that is at its end is not pruned.
    """

    def __init__(self, *, run_directory: Path, monitor: str, mode: str):
        self.directory, self.monitor, self.better = run_directory, monitor, min if mode == "min" else max
        self.pruned, self._validations = False, 0
        self._best: float | None = None
        self._reporter: Any = None

    def state_dict(self) -> dict[str, Any]:
        return {"pruned": self.pruned, "validations": self._validations, "best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.pruned, self._validations = state_dict["pruned"], state_dict["validations"]
        self._best = state_dict["best"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        from quartet.sweeps.study import reporter

        if trainer.is_global_zero:
            self._reporter = reporter(self.directory)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._validations += 1
        value = float(trainer.callback_metrics.get(self.monitor, math.nan))
        if not math.isnan(value):
            self._best = value if self._best is None else self.better(self._best, value)
        ended = trainer.global_step >= trainer.estimated_stepping_batches
        hopeless = self._reporter is not None and self._best is not None and self._is_hopeless()
        if highest(trainer, int(hopeless)) and not ended:
            self.pruned = trainer.should_stop = True

    def _is_hopeless(self) -> bool:
        assert self._best is not None
        return self._reporter.should_prune(self._best, self._validations)
