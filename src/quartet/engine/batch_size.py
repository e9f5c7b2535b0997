"""Which batches fit into memory, and how fast they are: training steps of twice the size until one does not fit."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, open_dict
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.nn.modules.batchnorm import _BatchNorm

from quartet.data.base import DataModule
from quartet.engine.trial import trial_config, trial_data, trial_task, trial_trainer
from quartet.system.hardware import is_out_of_memory, keep_freed_memory, peak_memory

WARM_UP = 2  # steps: the first one allocates the optimizer's state and chooses kernels
LEAST_STEPS, SECONDS = 2, 1.0  # measured for each size
MAX_STEPS = 200  # measured for each size, however short they are
LONGEST_STEP_S = 3.0  # a size that takes longer is the last one
FULL = 0.8  # share of the free memory of a CPU that a size may be expected to take: Linux kills what takes more
CLOSE = 0.95  # of the best throughput: as good


class Size(NamedTuple):
    """A size of batch that fits: its speed, in `unit` a second, and the most memory that the process or GPU had taken."""

    batch_size: int
    per_second: float
    unit: str
    step_seconds: float
    steps_per_epoch: int
    memory_bytes: int


class Stopwatch(Callback):
    """Times steps after a warm-up, and stops once there are enough."""

    def __init__(self) -> None:
        self.n, self.steps, self.seconds, self.unit = 0, 0, 0.0, "samples"
        self._start = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        target = batch["target"]
        self.unit = "tokens" if target.ndim == 2 else "samples"
        self.n += target.numel()
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        # a GPU's queue still holds the step
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self.steps, self.seconds = trainer.global_step - WARM_UP, time.perf_counter() - self._start
        if self.steps <= 0:
            self.n, self._start = 0, time.perf_counter()
        elif self.steps >= LEAST_STEPS and self.seconds >= SECONDS:
            trainer.should_stop = True


def try_sizes(config: DictConfig, show: Callable[[Size], None]) -> tuple[list[Size], str]:
    """The sizes that fit, each of which `show` gets as soon as it is measured, and why there is no larger one."""
    with open_dict(config):
        config.data.batch_size = 1  # whatever it was, it is not what is asked for
    trial = trial_config(config, WARM_UP + MAX_STEPS)
    data = trial_data(config)
    device = trial_trainer(trial).strategy.root_device
    if device.type == "cpu":
        keep_freed_memory()
    window, n_train = trial.trainer.accumulate_grad_batches, len(data.datasets["train"])
    largest = n_train // window
    if largest < 1:
        raise ValueError(f"a step accumulates {window} batches, and there are {n_train} samples to train on")

    # twice as large each time; the whole training part at the end
    sizes = [2**i for i in range(largest.bit_length()) if 2**i < largest] + [largest]
    found: list[Size] = []
    for size in sizes:
        if size == 1 and any(isinstance(module, _BatchNorm) for module in trial_task(trial, data).modules()):
            continue  # one value of each channel has no variance
        # twice what this size took more than that before; a GPU raises an error instead of ending the process
        expected = 2 * (found[-1].memory_bytes - found[-2].memory_bytes) if len(found) > 1 else 0
        free = free_memory() if device.type == "cpu" else None
        if free is not None and expected > FULL * free:
            return (
                found,
                f"{size:,} would take about {expected / 2**30:.1f} GB more, and {free / 2**30:.1f} GB are free",
            )
        fits = True
        try:
            found.append(_measure(trial, data, size))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        # outside of the handler, whose error holds on to the tensors
        gc.collect()
        torch.cuda.empty_cache()
        if not fits:
            return found, f"{size:,} does not fit into memory"
        show(found[-1])
        if found[-1].step_seconds > LONGEST_STEP_S:
            return found, f"a step of {size:,} takes {found[-1].step_seconds:.0f} s"
    return found, f"{largest * window:,} is all there is to train on"


def suggest(sizes: list[Size]) -> Size:
    """The smallest size that is about as fast as the fastest: a larger one costs steps and gains nothing."""
    best = max(size.per_second for size in sizes)
    return next(size for size in sizes if size.per_second >= CLOSE * best)


def _measure(trial: DictConfig, data: DataModule, size: int) -> Size:
    data.batch_size = size
    watch, task = Stopwatch(), trial_task(trial, data)
    trainer = trial_trainer(trial, watch)
    device = trainer.strategy.root_device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    trainer.fit(task, datamodule=data)
    # of a CPU the most that the process ever had: sizes grow, so it is that of the present one
    steps_per_epoch = len(data.datasets["train"]) // (size * trial.trainer.accumulate_grad_batches)
    return Size(
        size, watch.n / watch.seconds, watch.unit, watch.seconds / watch.steps, steps_per_epoch, peak_memory(device)
    )


def free_memory() -> int | None:
    """Bytes that a process may still take, also within a container's limit; None where nobody says."""
    free = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    with suppress(OSError, ValueError):  # "max" is not a number
        folder = Path("/sys/fs/cgroup")
        limit = int((folder / "memory.max").read_text())
        free.append(limit - int((folder / "memory.current").read_text()))
    return min(free) if free else None
