"""One training run, in whatever process: a run directory in, a result out."""

from __future__ import annotations

import copy
import math
import time
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from torch import nn

from quartet import build
from quartet.callbacks import tensorboard
from quartet.callbacks.monitors import Throughput
from quartet.data.base import DataModule
from quartet.engine import weights
from quartet.engine.failures import TOO_LARGE, explain
from quartet.engine.summary import write_summary
from quartet.objective import Objective
from quartet.run import DEBUG, Run
from quartet.say import say
from quartet.system.hardware import is_out_of_memory, keep_freed_memory, peak_memory
from quartet.system.lightning_compat import align_validation, end_with_validation
from quartet.system.signals import stoppable
from quartet.tasks.base import Task

# columns of every single run in TensorBoard's HPARAMS tab, and words of a command that are not hyperparameters
ALWAYS_SHOWN = ("optimizer.lr", "data.batch_size")
NO_HYPERPARAMETERS = ("run.", "resume", "logger", "callbacks", "hydra", "-", "data.path")


class History(Callback):
    """The metrics of each validation, so that those of the best one need no second pass; and the seconds of fitting."""

    def __init__(self, metric: str, mode: str):
        self.objective = Objective(metric, mode)
        self.rows: list[dict[str, float]] = []
        self.seconds, self._start, self._last_step = 0.0, 0.0, math.inf

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.monotonic()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds += time.monotonic() - self._start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        align_validation(trainer)
        self._last_step = trainer.estimated_stepping_batches

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step >= self._last_step:
            end_with_validation(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val")}
        if self.objective.metric not in metrics:
            raise ValueError(_undefined(self.objective.metric))
        self.rows.append({"step": trainer.global_step, **metrics})

    @property
    def best(self) -> dict[str, float]:
        """The first validation with the best monitored value, as `Checkpoints` chooses it; empty without a number."""
        return self.objective.best(self.rows, lambda row: row.get(self.objective.metric)) or {}

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "seconds": self.seconds + time.monotonic() - self._start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        rows, seconds = state_dict["rows"], state_dict["seconds"]
        numbers = [seconds, *(value for row in rows for value in row.values())]
        steps = [row.get("step") for row in rows]
        if not all(type(n) in (int, float) for n in numbers) or not all(isinstance(step, int) for step in steps):
            raise ValueError("the metrics of its validations are not numbers")
        self.rows, self.seconds = rows, seconds


def _undefined(metric: str) -> str:
    return (
        f"monitor.metric={metric} has no value for the validation part (R² needs two targets that differ, AUROC two "
        "classes): monitor another metric, such as val/loss, or give validation more samples with data.split"
    )


class Parts(NamedTuple):
    data: DataModule
    task: Task
    trainer: Trainer
    history: History


def train(run: Run, data: DataModule | None = None) -> dict[str, Any]:
    """Fit, test the best checkpoint, write `result.json` last; resumes from `last.ckpt` if there is one.

    Errors are kept in `error.txt` and raised, those that a user can do something about as ValueError or OSError. With
    several workers each of them calls this, and the first one writes.
    """
    with stoppable(), run.exclusively():
        try:
            parts = prepare(run, data)
        except BaseException as error:
            # a new run: nothing is lost
            if data is not None:
                run.discard()
            if is_out_of_memory(error):
                raise ValueError(TOO_LARGE) from error
            raise
        try:
            return _fit_and_test(run, parts)
        except BaseException as error:
            explained = error
            with suppress(Exception):
                explained = explain(error, run)
            if explained is not error:
                explained.__cause__ = error  # for error.txt
            if parts.trainer.is_global_zero:
                # first what happened; collecting the other facts may fail, and must not take its place
                run.mark_failed(explained)
                with suppress(Exception):
                    facts = _facts(run, parts, {})
                    run.mark_failed(explained, **facts)
                    if isinstance(explained, Exception):
                        write_hparams(run, parts.trainer.loggers, {**facts, "status": "failed"})
            raise explained from explained.__cause__


def fit_data(run: Run, config: DictConfig) -> DataModule:
    """Read the data and fit their preprocessing; what inference, workers and people need of it is in the run then."""
    data = read_data(config)
    run.write("data.json", data.report())
    run.write("preprocessing.json", data.preprocessing())
    return data


def read_data(config: DictConfig) -> DataModule:
    """Read the data and fit their preprocessing, unless the network starts from a run that has one."""
    build.seed_everything(config.seed)
    data = build.build_data(config)
    source = weights.find_source(config)
    if source is not None:
        weights.reuse_preprocessing(data, source)
    say("reading the data")
    data.setup()
    return data


def restore_data(run: Run, config: DictConfig) -> DataModule:
    """The data read again with the preprocessing of the run, or fitted if the run was killed before it had any."""
    if not (run.directory / "preprocessing.json").is_file():
        return fit_data(run, config)
    return build.restore_data(run, config)


def prepare(run: Run, data: DataModule | None = None) -> Parts:
    """Everything that training needs, built from the run directory; ValueError for what can be known to fail."""
    # 1. the data, the network and its weights
    config = build.opened(run)
    build.seed_everything(config.seed)
    if data is None:
        data = restore_data(run, config)
    task = build.build_task(config, data.spec, train=True)
    if run.last_checkpoint is not None:
        weights.check_resumable(task, run)
    else:
        weights.initialise(task.network, config, data.spec, weights.find_source(config), download=run.may_download)
    history = History(config.monitor.metric, config.monitor.mode)
    trainer = build.build_trainer(config, run.directory, train=True, callbacks=(history,))

    # 2. the monitored metric has a value, whatever is predicted
    targets = getattr(data.datasets["val"], "target", None)
    if isinstance(targets, torch.Tensor) and config.monitor.metric.removeprefix("val/") in task.undefined(targets):
        raise ValueError(_undefined(config.monitor.metric))

    # 3. a batch suffices for batch normalisation: one value of each channel has no variance
    norms = [module for module in task.network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if data.batch_size == 1 and norms:
        try:
            copy.deepcopy(task.network).cpu().train()(**data.first_inputs(1))
        except ValueError as error:
            other = "model.normalization=layer, or " if "normalization" in config.model else ""
            raise ValueError(
                "data.batch_size=1 leaves batch normalisation one value of each channel; "
                f"use {other}data.batch_size=2 or more"
            ) from error

    # 4. an epoch has the batches of one optimizer step
    n, window, world = len(data.datasets["train"]), trainer.accumulate_grad_batches, trainer.world_size
    wanted = data.batch_size * world * window
    if window > 1 and n < wanted:
        raise ValueError(
            f"a step takes {wanted} samples (data.batch_size={data.batch_size} × "
            f"trainer.accumulate_grad_batches={window} × {world} workers), and there are {n:,} to train on; "
            "lower one of them"
        )

    if config.trainer.get("overfit_batches"):
        data.overfit()
    # 5. say what is trained
    sizes = "  ".join(f"{part} {len(dataset):,}" for part, dataset in data.datasets.items())
    parameters = sum(p.numel() for p in task.network.parameters())
    say(f"samples: {sizes}  parameters: {parameters:,}  on {trainer.strategy.root_device}")
    if world > 1:
        size = data.batch_size
        say(f"workers: {world}; a step takes {size * world} samples, {size} (data.batch_size) in each worker")
    if trainer.is_global_zero and (config.get("summary") or config.run.name.startswith(f"{DEBUG}/")):
        samples = data.batch_size * window * world
        write_summary(run.directory, task.network, data, samples)
    return Parts(data, task, trainer, history)


def _fit_and_test(run: Run, parts: Parts) -> dict[str, Any]:
    # 1. remove what the run had before it was resumed
    data, task, trainer, _ = parts
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    for name in ("result.json", "error.txt"):
        (run.directory / name).unlink(missing_ok=True)
    # TensorBoard's table says more once the run has ended
    for logger in trainer.loggers:
        if not isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(tensorboard.flatten(build.plain(run.config)))  # type: ignore[arg-type]

    # 2. fit
    trainer.fit(task, datamodule=data, ckpt_path=run.last_checkpoint, weights_only=True)
    for stopper in trainer.early_stopping_callbacks:
        if stopper.wait_count >= stopper.patience:
            say(f"stopped: {stopper.monitor} has not improved for {stopper.patience} validations")

    # 3. test; a callback of the sweep may have stopped it, and what is pruned is not worth a test
    pruned = any(getattr(callback, "pruned", False) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    test_metrics: dict[str, float] = {}
    if run.config.get("test", True) and not pruned:
        # callbacks.checkpoint=null keeps the last weights, in memory only
        if run.checkpoints.is_dir():
            trainer.strategy.load_model_state_dict(weights.read_checkpoint(run.best_checkpoint))
        test_metrics = measure(trainer, task, data, "test")

    # 4. the result, last; an error.txt is of another command that failed meanwhile
    result = {"status": "pruned" if pruned else "completed", **_facts(run, parts, test_metrics)}
    if trainer.is_global_zero:
        write_hparams(run, trainer.loggers, result)
        (run.directory / "error.txt").unlink(missing_ok=True)
        run.write("result.json", result)
    return result


def measure(trainer: Trainer, task: Task, data: DataModule, part: str) -> dict[str, float]:
    """The metrics of the whole `part` ("val" or "test") with the task's present weights."""
    run = trainer.validate if part == "val" else trainer.test
    (metrics,) = run(task, datamodule=data, verbose=False)
    return {name: float(value) for name, value in metrics.items()}


def _facts(run: Run, parts: Parts, test_metrics: dict[str, float]) -> dict[str, Any]:
    """What `result.json` says beside the status."""
    _, task, trainer, history = parts
    best = dict(history.best)
    best_step, metric = best.pop("step", None), history.objective.metric
    speed = next((c for c in trainer.callbacks if isinstance(c, Throughput)), None)  # type: ignore[attr-defined]
    try:
        checkpoint = str(run.best_checkpoint.relative_to(run.directory))
    except FileNotFoundError:
        checkpoint = None
    return {
        "metrics": {**best, **test_metrics},
        "objective": {"name": metric, "value": best.get(metric)},
        "best_step": best_step,
        "steps": trainer.global_step,
        "epochs": trainer.current_epoch,
        "seconds": round(history.seconds, 3),
        "throughput": speed and {"per_second": speed.per_second, "unit": speed.unit},
        "peak_memory_bytes": peak_memory(trainer.strategy.root_device),
        "parameters": sum(p.numel() for p in task.network.parameters()),
        "best_checkpoint": checkpoint,
    }


def write_hparams(run: Run, loggers: list[Logger], result: dict[str, Any]) -> None:
    """The run in TensorBoard's HPARAMS tab, however it ended; where a file of the run is damaged, the tab says less."""
    damaged = (OSError, ValueError, LookupError, TypeError, AttributeError)
    shown: dict[str, Any] = {}
    # few columns: of a sweep's job what varies
    with suppress(*damaged):
        space = Run(run.directory.parent).read("sweep.json")["space"]
        words = [word.lstrip("+").partition("=") for word in run.read("trial.json")["overrides"]]
        shown = {key: _number_or_text(value) for key, _, value in words if key in {name.lstrip("+") for name in space}}
    # of a single run what was chosen on its command line, and what always matters
    if not shown:
        config = build.plain(run.config)
        values = tensorboard.flatten(config)
        shown = {"run": config["run"]["name"], **{key: values[key] for key in ALWAYS_SHOWN if key in values}}
        shown["seed"] = config["seed"]
        with suppress(*damaged):
            words = [word.lstrip("+").partition("=") for word in run.read("environment.json")["command"][1:]]
            said = [(key, value) for key, _, value in words if value and not key.startswith(NO_HYPERPARAMETERS)]
            shown |= {key: _number_or_text(value) for key, value in said}
    for logger in loggers:
        hparams = {**shown, "status": result["status"]}
        tensorboard.write_hparams(logger, hparams, result["metrics"], known=build.val_metrics(run.config))


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
