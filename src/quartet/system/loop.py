"""The loop over the batches of an epoch: Lightning's, without what it costs to be ready for everything in each step.

Lightning's own step spends about a millisecond around the network: wrappers, a profiler, the results of `self.log`
gathered again after each batch, the loggers flushed at each logging step (docs/notes.md). For a small network that is more
than its training. `EpochLoop` makes the same step with the same hooks in the same order, as plain calls, and numbers of a
step are logged with `log_step`. Where a run needs more than that (several workers, accumulation, a profiler, a task with
an optimizer step of its own) each step is Lightning's.

Names of Lightning's private parts are those of pytorch-lightning 2.6.6, loops/training_epoch_loop.py and loops/optimization.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loops.fetchers import _DataLoaderIterDataFetcher
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor

# what is called in each step, on callbacks and on the task
HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
TRANSFER = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
# methods of a task that decide how Lightning makes a step
STEP = ("on_train_batch_start", "optimizer_step", "optimizer_zero_grad", "backward")
FLUSH_SECONDS = 2.0  # between two times that loggers write to the disk what they hold


def install(trainer: Trainer) -> None:
    """Let a trainer make its steps with `EpochLoop`."""
    loop = trainer.fit_loop.epoch_loop
    trainer.fit_loop.epoch_loop = EpochLoop(trainer, loop.min_steps, loop.max_steps)


def log_step(trainer: Any, values: Mapping[str, Tensor | float]) -> None:
    """Give callbacks and loggers numbers of the present step: tensors are means over workers, floats are as they are.

    Call it in logging steps only (`is_logging_step`): there a scalar costs little, and nothing in others.
    """
    loop = trainer.fit_loop.epoch_loop
    if isinstance(loop, EpochLoop):
        loop.scalars.update(values)
    else:  # a trainer that `build` has not made
        trainer.lightning_module.log_dict(values, sync_dist=True)


def is_logging_step(trainer: Trainer, step: int) -> bool:
    """Whether the loggers write what is logged in optimizer step number `step`, the first being 1."""
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and step % every == 0


class EpochLoop(_TrainingEpochLoop):
    """See above; `scalars` are the numbers of the step that are to be logged at its end."""

    def __init__(self, trainer: Trainer, min_steps: int | None, max_steps: int):
        super().__init__(trainer, min_steps, max_steps)
        self.scalars: dict[str, Tensor | float] = {}
        self._plain, self._flushed = False, time.monotonic()
        self._hooks, self._transfer = dict[str, list[Any]](), dict[str, Any]()
        self._parameters: list[Tensor] = []

    def on_run_start(self, data_fetcher: Any) -> None:
        super().on_run_start(data_fetcher)
        trainer: Any = self.trainer
        task = trainer.lightning_module
        self._plain = (
            type(trainer.strategy) is SingleDeviceStrategy
            and type(trainer.profiler) is PassThroughProfiler
            and trainer.accumulate_grad_batches == 1
            and getattr(trainer.precision_plugin, "scaler", None) is None
            and task.automatic_optimization
            and not isinstance(data_fetcher, _DataLoaderIterDataFetcher)
            and not any(_overrides(task, name, LightningModule) for name in STEP)
        )
        for name in HOOKS:
            hooks = [
                partial(getattr(c, name), trainer, task) for c in trainer.callbacks if _overrides(c, name, Callback)
            ]
            own = [getattr(task, name)] if _overrides(task, name, LightningModule) else []
            self._hooks[name] = [*hooks, *own]
        self._parameters = [p for optimizer in trainer.optimizers for g in optimizer.param_groups for p in g["params"]]
        # of the data module if it has its own, else of the task
        source = trainer._data_connector._datahook_selector.get_instance
        self._transfer = {name: getattr(source(name), name) for name in TRANSFER}

    def advance(self, data_fetcher: Any) -> None:
        if self._plain and not self.restarting:
            self._step(data_fetcher)
        else:
            super().advance(data_fetcher)
        if self.scalars and not self._should_accumulate():
            self._log_scalars()

    def _step(self, data_fetcher: Any) -> None:
        trainer: Any = self.trainer
        task, progress = trainer.lightning_module, self.batch_progress
        precision, optimizer, connector = trainer.precision_plugin, trainer.optimizers[0], trainer._logger_connector

        # 1. the batch; after training a validation begins anew
        if self.val_loop.restarting:
            self.val_loop.restarting = False
        batch, _, _ = next(data_fetcher)
        index = self.batch_idx + 1
        progress.is_last_batch = data_fetcher.done
        batch = self._transfer["on_before_batch_transfer"](precision.convert_input(batch), 0)
        batch = self._transfer["transfer_batch_to_device"](batch, trainer.strategy.root_device, 0)
        batch = self._transfer["on_after_batch_transfer"](batch, 0)
        progress.increment_ready()
        connector.on_batch_start(batch)
        self._call("on_train_batch_start", batch, index)
        progress.increment_started()

        # 2. the step; an optimizer may call for the gradient more than once
        outputs: dict[str, Any] = {}
        counts = self.automatic_optimization.optim_progress.optimizer
        steps, zeroed = counts.step, counts.zero_grad

        def gradient() -> Tensor | None:
            with torch.enable_grad():
                vars(task)["_current_fx_name"] = "training_step"
                with precision.train_step_context():
                    output = task.training_step(batch, index)
                outputs.update(output if isinstance(output, Mapping) else {} if output is None else {"loss": output})
                zeroed.increment_ready()
                self._call("on_before_zero_grad", optimizer)
                zeroed.increment_started()
                for parameter in self._parameters:
                    parameter.grad = None
                zeroed.increment_completed()
                if output is None:
                    return None
                loss = outputs["loss"]
                outputs["loss"] = loss.detach()
                self._call("on_before_backward", loss)
                loss.backward()
                self._call("on_after_backward")
                self._call("on_before_optimizer_step", optimizer)
                task.configure_gradient_clipping(optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
            return outputs["loss"]

        steps.increment_ready()
        optimizer.step(gradient)
        steps.increment_completed()
        progress.increment_processed()

        # 3. the schedule, and those who wait for the end of the step
        for config in trainer.lr_scheduler_configs:
            if config.interval == "step" and not config.reduce_on_plateau and (index + 1) % config.frequency == 0:
                self.scheduler_progress.increment_ready()
                task.lr_scheduler_step(config.scheduler, None)
                self.scheduler_progress.increment_completed()
        if self._num_ready_batches_reached():
            self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        self._call("on_train_batch_end", outputs, batch, index)
        if self._results:  # somebody used `self.log`
            connector.on_batch_end()
        progress.increment_completed()
        if self._results:
            connector.update_train_step_metrics()

    def _call(self, hook: str, *arguments: Any) -> None:
        if methods := self._hooks[hook]:
            # `self.log` asks for it; a module's own way of setting an attribute is slow
            vars(self.trainer.lightning_module)["_current_fx_name"] = hook
            for method in methods:
                method(*arguments)

    def _log_scalars(self) -> None:
        trainer, connector = self.trainer, self.trainer._logger_connector
        tensors = {name: value for name, value in self.scalars.items() if isinstance(value, Tensor)}
        if tensors:  # one reduction and one look at the device for all of them
            means = trainer.strategy.reduce(torch.stack([x.float() for x in tensors.values()]), reduce_op="mean")
            self.scalars.update(zip(tensors, means.tolist(), strict=True))  # type: ignore[union-attr]
        values, self.scalars = self.scalars, {}
        connector._callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        connector._logged_metrics.update(connector._callback_metrics)
        for logger in trainer.loggers:
            logger.log_metrics({"epoch": trainer.current_epoch, **values}, step=self._batches_that_stepped)  # type: ignore[arg-type]

    def on_advance_end(self, data_fetcher: Any) -> None:
        trainer: Any = self.trainer
        waits = any(config.reduce_on_plateau for config in trainer.lr_scheduler_configs) or trainer.received_sigterm
        if waits or not self._plain or self._skip_next_val or self._should_check_val_fx(data_fetcher):
            super().on_advance_end(data_fetcher)
        else:  # what is left of Lightning's after a step without validation
            self._batches_that_stepped += 1
            self._save_loggers_on_train_batch_end()

    def _save_loggers_on_train_batch_end(self) -> None:
        """Flush now and then: it takes milliseconds."""
        if self.trainer.is_global_zero and time.monotonic() - self._flushed >= FLUSH_SECONDS:
            for logger in self.trainer.loggers:
                logger.save()
            self._flushed = time.monotonic()


def _overrides(thing: Any, name: str, base: type) -> bool:
    """Whether a hook does anything; an instance may have one of its own, as in Lightning's LambdaCallback."""
    return getattr(getattr(thing, name), "__func__", None) is not getattr(base, name)
