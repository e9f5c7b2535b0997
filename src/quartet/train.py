"""Training: a run directory in, a result out."""

from __future__ import annotations

import copy
import resource
import sys
import time
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from torch import nn

from quartet import build, transfer, trust
from quartet.callbacks import tensorboard
from quartet.callbacks.pruning import Pruning
from quartet.cli import in_sweep
from quartet.data.base import DataModule, user_path
from quartet.failures import TOO_LARGE, explain, is_out_of_memory
from quartet.hardware import keep_freed_memory
from quartet.interruption import stoppable
from quartet.run import DEBUG, Run
from quartet.say import say
from quartet.tasks.base import Task

# what the HPARAMS tab shows of a single run, whatever was typed, and what of the command says nothing about it
ALWAYS = {"optimizer.lr": ("optimizer", "lr"), "data.batch_size": ("data", "batch_size")}
UNTOLD = ("run.", "resume", "logger", "callbacks", "hydra", "-", "data.path")


class History(Callback):
    """The metrics of each validation, so that those of the best need no second pass; and the seconds of fitting."""

    def __init__(self, metric: str, mode: str):
        self.metric, self.sign = metric, 1 if mode == "min" else -1
        self.rows: list[dict[str, float]] = []
        self.seconds, self._start = 0.0, 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.monotonic()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds += time.monotonic() - self._start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        align_validation(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """The last step ends in a validation, whatever the interval: Lightning validates where it is told to stop."""
        if trainer.estimated_stepping_batches <= trainer.global_step:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val")}
        if self.metric not in metrics:
            raise ValueError(_undefined(self.metric))
        self.rows.append({"step": trainer.global_step, **metrics})

    @property
    def best(self) -> dict[str, float]:
        """The first validation with the best monitored value, as ModelCheckpoint chooses it."""
        finite = [
            row for row in self.rows if row.get(self.metric) == row.get(self.metric)
        ]  # NaN is not equal to itself
        best = min(finite, key=lambda row: self.sign * row[self.metric], default={})
        return {name: value for name, value in best.items() if name != "step"}

    @property
    def best_step(self) -> int | None:
        """The optimizer steps that had been made at the best validation."""
        value = self.best.get(self.metric)
        return next(
            (int(row["step"]) for row in self.rows if value is not None and row.get(self.metric) == value), None
        )

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "seconds": self.seconds + time.monotonic() - self._start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        rows, seconds = state_dict["rows"], state_dict["seconds"]
        numbers = [seconds, *(value for row in rows for value in row.values())]
        if not all(isinstance(row, dict) and isinstance(row.get("step"), int) for row in rows) or not _are_numbers(
            numbers
        ):
            raise ValueError("the metrics of its validations are not numbers")
        self.rows, self.seconds = rows, seconds


def align_validation(trainer: Trainer) -> None:
    """Validate after whole optimizer steps; Lightning counts batches, of which accumulation takes several for a step."""
    window = trainer.accumulate_grad_batches
    if isinstance(trainer.val_check_interval, int):
        trainer.val_check_batch = trainer.val_check_interval * window
    elif isinstance(trainer.val_check_batch, int):
        trainer.val_check_batch = max(window, trainer.val_check_batch // window * window)


def _undefined(metric: str) -> str:
    return (
        f"monitor.metric={metric} has no value for the validation part (R² needs two targets that differ, AUROC two "
        "classes): monitor another metric, such as val/loss, or give validation more samples with data.split"
    )


def _are_numbers(values: list[Any]) -> bool:
    return all(type(value) in (int, float) for value in values)


def create_and_train(config: DictConfig) -> tuple[Run, dict[str, Any]]:
    run, data = create(config)
    return run, train(run, data)


def create(config: DictConfig) -> tuple[Run, DataModule]:
    """Check the config, make its run directory and read the data; a mistake found before training leaves no directory."""
    build.check(config)
    if config.data.get("path"):
        config.data.path = user_path(config.data.path)  # the run's config means the same from every directory
    transfer.make_absolute(config)
    run = Run.create(config)
    if not in_sweep():
        run.trusted = set(trust.packages(build.plain(config)))
    try:
        return run, fit_data(run, run.config)
    except BaseException:
        run.discard()
        raise


def fit_data(run: Run, config: DictConfig) -> DataModule:
    """The data read and their preprocessing fitted; what inference, workers and people need of it is in the run then."""
    build.seed_everything(config.seed)
    data = build.build_data(config)
    source = transfer.find_source(config)
    if source is not None:
        transfer.reuse_preprocessing(data, source)
    say("reading the data")
    data.setup()
    run.write("data.json", data.report())
    run.write("preprocessing.json", data.preprocessing())
    return data


def train(run: Run, data: DataModule | None = None) -> dict[str, Any]:
    """Fit, test the best checkpoint, write `result.json` last; goes on from `last.ckpt` where there is one.

    Errors are kept in `error.txt` and raised, those that a person can do something about as ValueError or OSError. With
    several workers each of them calls this, and the first one writes.
    """
    with stoppable(), run.exclusively():
        try:
            parts = prepare(run, data)
        except BaseException as error:
            if data is not None:  # a new run: nothing is lost
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
                _note_failure(run, parts, explained, failed=isinstance(error, Exception))
            raise explained from explained.__cause__


def _note_failure(run: Run, parts: Parts, error: BaseException, *, failed: bool) -> None:
    """First what happened; what else is known may fail to be told, and must not take its place."""
    run.ended_badly(error)
    with suppress(Exception):
        facts = _facts(run, parts, {})
        run.ended_badly(error, **facts)
        if failed:
            write_hparams(run, parts.trainer.loggers, facts["metrics"], "failed")


def restore_data(run: Run, config: DictConfig) -> DataModule:
    """The data read again, with the preprocessing of the run; fitted where the run was killed before it had any."""
    if not (run.directory / "preprocessing.json").is_file():
        return fit_data(run, config)
    return build.restore_data(run, config)


class Parts(NamedTuple):
    data: DataModule
    task: Task
    trainer: Trainer
    history: History


def prepare(run: Run, data: DataModule | None = None) -> Parts:
    """Everything that training needs, built from the run directory."""
    config = build.opened(run)
    build.seed_everything(config.seed)
    if data is None:
        data = restore_data(run, config)
    task = build.build_task(config, data.spec, train=True)
    if run.last_checkpoint is not None:
        transfer.check_resumable(task, run)
    else:
        transfer.initialise(task.network, config, data.spec, transfer.find_source(config), download=run.may_download)
    _check_monitor(config.monitor.metric, task, data)
    _check_batch_norm(task, data, config)
    history = History(config.monitor.metric, config.monitor.mode)
    trainer = build.build_trainer(config, run.directory, train=True, callbacks=(history,))
    _check_window(trainer, data)
    if config.trainer.get("overfit_batches"):
        data.overfit()
    _introduce(data, task, trainer)
    if config.run.name.startswith(f"{DEBUG}/") and trainer.is_global_zero:
        _show_layers(task, data)
    return Parts(data, task, trainer, history)


def _check_monitor(metric: str, task: Task, data: DataModule) -> None:
    """Raise ValueError where the monitored metric will have no value, whatever is predicted."""
    targets = getattr(data.datasets["val"], "target", None)
    if isinstance(targets, torch.Tensor) and metric.removeprefix("val/") in task.undefined(targets):
        raise ValueError(_undefined(metric))


def _check_batch_norm(task: Task, data: DataModule, config: DictConfig) -> None:
    """Raise ValueError where batch normalisation would see one value of each channel, which has no variance."""
    norms = [module for module in task.network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if data.batch_size > 1 or not norms:
        return
    inputs = _example(data, 1)
    try:
        copy.deepcopy(task.network).cpu().train()(**inputs)
    except ValueError as error:
        other = "model.normalization=layer, or " if "normalization" in config.model else ""
        raise ValueError(
            f"data.batch_size=1 leaves batch normalisation one value of each channel; take {other}data.batch_size=2 or more"
        ) from error


def _check_window(trainer: Trainer, data: DataModule) -> None:
    """Raise ValueError where an epoch has not enough batches for one optimizer step."""
    n, window = len(data.datasets["train"]), trainer.accumulate_grad_batches
    wanted = data.batch_size * trainer.world_size * window
    if window > 1 and n < wanted:
        raise ValueError(
            f"a step takes {wanted} samples (data.batch_size={data.batch_size} × "
            f"trainer.accumulate_grad_batches={window} × {trainer.world_size} workers), and there are {n:,} to train on; "
            "lower one of them"
        )


def _introduce(data: DataModule, task: Task, trainer: Trainer) -> None:
    sizes = "  ".join(f"{part} {len(dataset):,}" for part, dataset in data.datasets.items())
    parameters = sum(p.numel() for p in task.network.parameters())
    say(f"samples: {sizes}  parameters: {parameters:,}  on {trainer.strategy.root_device}")
    if trainer.world_size > 1:
        n, world = data.batch_size, trainer.world_size
        say(f"workers: {world}; a step takes {n * world} samples, {n} (data.batch_size) in each worker")


def _show_layers(task: Task, data: DataModule) -> None:
    """The network's layers in the order in which a batch of two passes them, with what comes out and their parameters."""
    inputs = _example(data, min(2, len(data.datasets["train"])))
    network, rows = copy.deepcopy(task.network).cpu(), []

    def note(name: str, module: nn.Module) -> None:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            shape = "×".join(map(str, output.shape)) if isinstance(output, torch.Tensor) else ""
            own = sum(p.numel() for p in module.parameters())
            rows.append((name, type(module).__name__, shape, f"{own:,}" if own else ""))

        module.register_forward_hook(hook)

    for name, module in network.named_modules():
        if not list(module.children()):
            note(name, module)
    with torch.no_grad():
        network(**inputs)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    sys.stdout.flush()


def _example(data: DataModule, n: int) -> Any:
    """The inputs of the first `n` training samples, on the CPU."""
    batch = data.datasets["train"].to(torch.device("cpu")).gather(torch.arange(n))
    return data.on_after_batch_transfer(data.on_before_batch_transfer(batch, 0), 0)["inputs"]


def _fit_and_test(run: Run, parts: Parts) -> dict[str, Any]:
    data, task, trainer, _ = parts
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    for name in ("result.json", "error.txt"):  # of the part before, where the run goes on
        (run.directory / name).unlink(missing_ok=True)
    for logger in trainer.loggers:  # TensorBoard's table has more, once the run has ended
        if not isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(tensorboard.flatten(build.plain(run.config)))  # type: ignore[arg-type]
    trainer.fit(task, datamodule=data, ckpt_path=run.last_checkpoint, weights_only=True)
    for stopper in trainer.early_stopping_callbacks:
        if stopper.wait_count >= stopper.patience:
            say(f"stopped: {stopper.monitor} has not improved for {stopper.patience} validations")
    pruned = any(isinstance(c, Pruning) and c.pruned for c in trainer.callbacks)  # type: ignore[attr-defined]
    test_metrics = _tested(run, parts) if run.config.get("test", True) and not pruned else {}
    result = {"status": "pruned" if pruned else "completed", **_facts(run, parts, test_metrics)}
    if trainer.is_global_zero:
        write_hparams(run, trainer.loggers, result["metrics"], result["status"])
        (run.directory / "error.txt").unlink(missing_ok=True)  # of another command that may have failed meanwhile
        run.write("result.json", result)
    return result


def _tested(run: Run, parts: Parts) -> dict[str, float]:
    if run.checkpoints.is_dir():  # callbacks.checkpoint=null keeps the last weights, in memory only
        load_best(run, parts.trainer)
    return measure(parts.trainer, parts.task, parts.data, "test")


def load_network(task: Task, run: Run) -> None:
    """The best checkpoint's weights into the task; ValueError where they are not those of its network."""
    transfer.load_checkpoint(task, run.best_checkpoint)


def load_best(run: Run, trainer: Trainer) -> None:
    """The same for a network that the trainer's workers may hold in shares."""
    trainer.strategy.load_model_state_dict(transfer.read_checkpoint(run.best_checkpoint))


def measure(trainer: Trainer, task: Task, data: DataModule, part: str) -> dict[str, float]:
    """The metrics of the whole `part` ("val" or "test") with the task's present weights."""
    run = trainer.validate if part == "val" else trainer.test
    (metrics,) = run(task, datamodule=data, verbose=False)
    return {name: float(value) for name, value in metrics.items()}


def _facts(run: Run, parts: Parts, test_metrics: dict[str, float]) -> dict[str, Any]:
    """What `result.json` says beside the status."""
    _, task, trainer, history = parts
    best = history.best
    throughput = next((c for c in trainer.callbacks if type(c).__name__ == "Throughput"), None)  # type: ignore[attr-defined]
    return {
        "metrics": {**best, **test_metrics},
        "objective": {"name": history.metric, "value": best.get(history.metric)},
        "best_step": history.best_step,
        "steps": trainer.global_step,
        "epochs": trainer.current_epoch,
        "seconds": round(history.seconds, 3),
        "throughput": throughput and {"per_second": throughput.per_second, "unit": throughput.unit},  # type: ignore[attr-defined]
        "peak_memory_bytes": _peak_memory(),
        "parameters": sum(p.numel() for p in task.network.parameters()),
        "best_checkpoint": _relative(run),
    }


def _relative(run: Run) -> str | None:
    try:
        return str(run.best_checkpoint.relative_to(run.directory))
    except FileNotFoundError:
        return None


def _peak_memory() -> int:
    """Of the device where there is one, else of this process (Linux counts in KiB, macOS in bytes)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def write_hparams(run: Run, loggers: list[Logger], metrics: dict[str, float], status: str) -> None:
    """The run in TensorBoard's HPARAMS tab, however it ended; a job of a sweep with what varies only."""
    hparams, known = {**(_varied(run) or _settings(run)), "status": status}, build.val_metrics(run.config)
    for logger in loggers:
        tensorboard.write_hparams(logger, hparams, metrics, known=known)


def _settings(run: Run) -> dict[str, Any]:
    """What one looks for first of a single run: what was chosen on its command line, and what matters always."""
    config = build.plain(run.config)
    kept = {key: config[group].get(name) for key, (group, name) in ALWAYS.items() if name in config[group]}
    said: dict[str, float | str] = {}
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):  # damaged: a table says less
        words = [word.lstrip("+").partition("=") for word in run.read("environment.json")["command"][1:]]
        said = {key: _number_or_text(value) for key, _, value in words if value and not key.startswith(UNTOLD)}
    return {"run": config["run"]["name"], **kept, "seed": config["seed"], **said}


def _varied(run: Run) -> dict[str, float | str]:
    """Parameter -> value of a sweep's job; empty for other runs. The tab shows few columns."""
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):  # damaged: a table says less
        space = Run(run.directory.parent).read("sweep.json")["space"]
        words = [word.partition("=") for word in run.read("trial.json")["overrides"]]
        return {key.lstrip("+"): _number_or_text(value) for key, _, value in words if key in space}
    return {}


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
