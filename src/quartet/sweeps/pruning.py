"""Ends an unpromising run of a sweep: after each validation the study receives the monitored value and decides."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from quartet.objective import Objective
from quartet.system.distributed import highest


class Pruning(Callback):
    """Rank 0 asks the study, all ranks stop as if training had come to its end.

    `run_directory` lies inside the sweep's; outside of a sweep nothing is pruned. Progress is counted in validations, so
    that runs with other batch sizes are compared at the same share of their training. The study receives the best value so
    far, by which a run is judged at its end. A run that is at its end is not pruned.
    """

    def __init__(self, *, run_directory: Path, monitor: str, mode: str):
        self.directory, self.objective = run_directory, Objective(monitor, mode)
        self.pruned, self.validations = False, 0
        self.best: float | None = None
        self.reporter: Any = None

    def state_dict(self) -> dict[str, Any]:
        return {"pruned": self.pruned, "validations": self.validations, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.pruned, self.validations, self.best = (state_dict[key] for key in ("pruned", "validations", "best"))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # only here, because they load Optuna and Hydra
        from quartet.sweeps.study import JOURNAL, Reporter

        note, sweep = self.directory / "trial.json", self.directory.parent
        if trainer.is_global_zero and note.is_file() and (sweep / JOURNAL).is_file():
            self.reporter = Reporter(sweep, json.loads(note.read_text(encoding="utf-8"))["number"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        self.validations += 1
        value = float(trainer.callback_metrics.get(self.objective.metric, math.nan))
        if self.objective.better(value, self.best):
            self.best = value
        at_end = trainer.global_step >= trainer.estimated_stepping_batches
        unpromising = False
        if self.reporter is not None and self.best is not None:
            unpromising = self.reporter.should_prune(self.best, self.validations)
        if highest(trainer, int(unpromising)) and not at_end:
            self.pruned = trainer.should_stop = True
