"""Checkpoints: the best weights, and the last state from which training goes on exactly.

A checkpoint for going on is taken in one place only: before a step whose predecessors are complete, with their
validation, schedule, early stopping and averaging. Where a run stands is then one number, the batches it has seen, and
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

from quartet.system.distributed import highest
from quartet.system.signals import Interrupted, request

BEST, LAST = "best.ckpt", "last.ckpt"
WEIGHTS = {
    "state_dict": dict,
    "epoch": int,
    "global_step": int,
    "pytorch-lightning_version": str,
}  # what best.ckpt holds
TRAINING = {"loops": dict, "callbacks": dict, "optimizer_states": list, "lr_schedulers": list, "finished": bool}
CALM, SAVE, STOP = range(3)  # what the workers agree on before a step; the highest wins


class Checkpoints(Checkpoint):
    """Writes `last.ckpt` after each validation, every `every_n_steps` and every `every_minutes`, and `best.ckpt`.

    `last.ckpt` is the whole state, `best.ckpt` the weights after the validation with the best `monitor` (the first
    such, where there are several). Both replace their predecessor only when they are whole and on the disk. On a signal
    training stops with a checkpoint and raises Interrupted. Raises ValueError instead of saving weights that are not
    finite.
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
        self.directory, self.monitor, self.sign = run_directory / "checkpoints", monitor, 1 if mode == "min" else -1
        self.every_n_steps, self.every_minutes, self.clock = every_n_steps, every_minutes, clock
        self.best: float | None = None
        self._validated = False  # since the last checkpoint
        self._step, self._time = 0, 0.0  # of the last checkpoint

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = state_dict["best"]
        if best is not None and type(best) not in (int, float):
            raise ValueError(f"the best {self.monitor} is not a number")
        self.best = best

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        trainer.should_stop = checkpoint["finished"]

    # hooks
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.directory.mkdir(exist_ok=True)
            remove_leftovers(self.directory)
        _go_on(trainer)
        self._step, self._time = trainer.global_step, self.clock()
        request.listen()
        request.deferred = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches:
            return  # gradients are half gathered
        decision = highest(trainer, STOP if request.signum else SAVE if self._due(trainer) else CALM)
        if decision != CALM:
            request.save = False
            if trainer.global_step > self._step:
                self._save_last(trainer)
        if decision == STOP:
            raise Interrupted(request.signum or 15)  # another worker got the signal

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = trainer.callback_metrics.get(self.monitor)
        if trainer.state.fn != "fit" or trainer.sanity_checking or value is None:
            return
        self._validated = True
        if not value.isnan() and (self.best is None or self.sign * float(value) < self.sign * self.best):
            self.best = float(value)
            self._save(trainer, BEST, lambda state: {key: state[key] for key in WEIGHTS})

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        request.listen()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save_last(trainer, finished=True)
        request.deferred = False
        if highest(trainer, STOP if request.signum else CALM) == STOP:  # it came after the last step: no test any more
            raise Interrupted(request.signum or 15)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        request.deferred = False

    # work
    def _due(self, trainer: Trainer) -> bool:
        steps, minutes = trainer.global_step - self._step, (self.clock() - self._time) / 60
        return (
            self._validated
            or request.save
            or (self.every_n_steps is not None and steps >= self.every_n_steps)
            or (self.every_minutes is not None and minutes >= self.every_minutes)
        )

    def _save_last(self, trainer: Trainer, *, finished: bool = False) -> None:
        self._save(trainer, LAST, lambda state: {**_count_batches(state), "finished": finished})
        self._validated, self._step, self._time = False, trainer.global_step, self.clock()

    def _save(self, trainer: Trainer, name: str, shape: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        state = trainer._checkpoint_connector.dump_checkpoint(
            weights_only=False
        )  # of all workers, where they hold shards
        if trainer.is_global_zero:
            _check_finite(state["state_dict"], trainer.global_step)
            write(shape(state), self.directory / name)
        trainer.strategy.barrier("checkpoint")


# where a run stands, in Lightning's counters


def _count_batches(state: dict[str, Any]) -> dict[str, Any]:
    """Before a step Lightning has counted it as `ready` already; what it makes of that on a restart differs by case."""
    progress = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["current"], progress["total"]):
        counts.update(dict.fromkeys(("ready", "started", "processed"), counts["completed"]))
    progress["is_last_batch"] = False
    return state


def _go_on(trainer: Trainer) -> None:
    """Loggers take back what a killed process logged after its last checkpoint.

    From a checkpoint Lightning begins with a round without a step where a validation lies behind it, and counts one too
    many.
    """
    loop = trainer.fit_loop.epoch_loop
    for logger in trainer.loggers:
        if hasattr(logger, "go_on"):
            logger.go_on(loop._batches_that_stepped)  # type: ignore[attr-defined]
    if loop.restarting and loop._should_check_val_fx(trainer.fit_loop._data_fetcher):  # type: ignore[arg-type]
        loop._batches_that_stepped -= 1


# files


def write(checkpoint: dict[str, Any], path: Path) -> None:
    """Whole and on the disk, or not at all: the predecessor stays until then."""
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
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """The new name is on the disk too (POSIX; other systems cannot open directories)."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(directory: Path) -> None:
    """Files that a killed process did not finish."""
    for path in directory.glob(".*.ckpt.*"):
        path.unlink(missing_ok=True)


def _check_finite(state: dict[str, Any], step: int) -> None:
    for name, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise NotFinite(f"{name} is not finite after step {step}")


class NotFinite(ValueError):
    """Training has broken down; says how to go about it."""

    def __init__(self, what: str):
        super().__init__(
            f"{what}: training broke down; try a smaller optimizer.lr, a smaller trainer.gradient_clip_val "
            "or trainer.precision=32-true"
        )
