"""Checkpoints: the best weights, and the last state from which training resumes exactly.

A checkpoint to resume from is taken in one place only: before a step whose predecessors are complete, with their
validation, schedule, early stopping and averaging. The position of a run is then one number, the batches it has seen, and
Lightning's counters are written accordingly. The order of samples and the randomness of a step are functions of
(seed, epoch, step, rank), see `quartet.data.base`, so there is no random state to keep.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from quartet.callbacks.monitors import NotFinite
from quartet.objective import Objective
from quartet.system import lightning_compat as compat
from quartet.system.distributed import highest
from quartet.system.signals import Interrupted, request

BEST, LAST = "best.ckpt", "last.ckpt"
# the keys of best.ckpt with their types, and what last.ckpt has besides
WEIGHTS = {"state_dict": dict, "epoch": int, "global_step": int, "pytorch-lightning_version": str}
TRAINING = {"loops": dict, "callbacks": dict, "optimizer_states": list, "lr_schedulers": list, "finished": bool}
CONTINUE, SAVE, STOP = range(3)  # what the ranks agree on before a step; the highest wins


class Checkpoints(Checkpoint):
    """Writes `last.ckpt` after each validation, every `every_n_steps` and every `every_minutes`, and `best.ckpt`.

    `last.ckpt` is the whole state, `best.ckpt` the weights after the first validation with the best `monitor`. Each
    replaces its predecessor atomically. After a signal training stops with a checkpoint and raises Interrupted. Raises
    ValueError instead of saving weights that are not finite.
    """

    def __init__(
        self,
        *,
        run_directory: Path,
        monitor: str,
        mode: str,
        every_n_steps: int | None,
        every_minutes: float | None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.directory, self.objective = run_directory / "checkpoints", Objective(monitor, mode)
        self.every_n_steps, self.every_minutes, self.clock = every_n_steps, every_minutes, clock
        self.best: float | None = None
        self._validated = False  # since the last checkpoint
        self._step, self._time = 0, 0.0  # of the last checkpoint

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = state_dict["best"]
        if best is not None and type(best) not in (int, float):
            raise ValueError(f"the best {self.objective.metric} is not a number")
        self.best = best

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        trainer.should_stop = checkpoint["finished"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.directory.mkdir(exist_ok=True)
            # a killed process did not finish them
            for leftover in self.directory.glob(".*.ckpt.*"):
                leftover.unlink(missing_ok=True)
        # forget what a killed process logged after its last checkpoint
        for logger in trainer.loggers:
            if hasattr(logger, "truncate_from"):
                logger.truncate_from(compat.logged_step(trainer))  # type: ignore[attr-defined]
        compat.correct_logged_step(trainer)
        self._step, self._time = trainer.global_step, self.clock()
        request.listen()
        request.deferred = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # within a step gradients are accumulated in part
        if batch_idx % trainer.accumulate_grad_batches:
            return
        # the ranks agree: their clocks differ, and a signal may have come to one of them
        steps, minutes = trainer.global_step - self._step, (self.clock() - self._time) / 60
        due = (
            self._validated
            or request.save
            or (self.every_n_steps is not None and steps >= self.every_n_steps)
            or (self.every_minutes is not None and minutes >= self.every_minutes)
        )
        decision = highest(trainer, STOP if request.signum else SAVE if due else CONTINUE)
        if decision != CONTINUE:
            request.save = False
            if steps > 0:
                self._save_last(trainer)
        if decision == STOP:
            raise Interrupted(request.signum or 15)  # without a number the signal came to another rank

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = trainer.callback_metrics.get(self.objective.metric)
        if trainer.state.fn != "fit" or value is None:
            return
        self._validated = True
        if self.objective.better(float(value), self.best):
            self.best = float(value)
            self._save(trainer, BEST, lambda state: {key: state[key] for key in WEIGHTS})

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        request.listen()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save_last(trainer, finished=True)
        request.deferred = False
        # a signal after the last step: no test any more
        if highest(trainer, STOP if request.signum else CONTINUE) == STOP:
            raise Interrupted(request.signum or 15)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        request.deferred = False

    def _save_last(self, trainer: Trainer, *, finished: bool = False) -> None:
        for logger in trainer.loggers:  # what they hold belongs to the steps before this checkpoint
            logger.save()
        self._save(trainer, LAST, lambda state: {**compat.count_completed_batches(state), "finished": finished})
        self._validated, self._step, self._time = False, trainer.global_step, self.clock()

    def _save(self, trainer: Trainer, name: str, select: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Collective: every rank calls it, rank 0 writes what `select` makes of the state."""
        state = compat.dump_state(trainer)
        if trainer.is_global_zero:
            for key, value in state["state_dict"].items():
                if value.is_floating_point() and not bool(value.isfinite().all()):
                    raise NotFinite(f"{key} is not finite after step {trainer.global_step}")
            write(select(state), self.directory / name)
        trainer.strategy.barrier("checkpoint")


def write(checkpoint: dict[str, Any], path: Path) -> None:
    """Write atomically, and to the disk: the predecessor stays until the new file is complete."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # the new name has to reach the disk too; systems other than POSIX cannot open directories
    if os.name == "posix":
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
