"""Training a few steps to measure something: one device, no validation, no logs, nothing left behind."""

from __future__ import annotations

import copy
from pathlib import Path

from omegaconf import DictConfig, open_dict
from pytorch_lightning import Callback, Trainer

from quartet import build
from quartet.data.base import DataModule
from quartet.engine import weights
from quartet.engine.fit import read_data
from quartet.engine.workers import n_workers
from quartet.tasks.base import Task


def trial_config(config: DictConfig, max_steps: int) -> DictConfig:
    """The config of so many optimizer steps at a constant rate, on one device.

    It accumulates the gradients of as many batches as several devices would have, so a step is one of the real run's.
    What is frozen there in the first epochs trains too.
    """
    trial = copy.deepcopy(config)
    n_devices = n_workers(config) * config.trainer.num_nodes
    with open_dict(trial):
        trial.scheduler = {"_target_": "quartet.optim.constant", "warmup": 0.0}
        # one batch again and again stays that
        if overfit := trial.trainer.pop("overfit_batches", 0):
            trial.trainer.limit_train_batches = overfit
        trial.trainer.pop("fast_dev_run", None)
        trial.trainer.update(
            max_steps=max_steps,
            max_epochs=-1,
            max_time=None,
            limit_val_batches=0,
            val_check_interval=1.0,
            check_val_every_n_epoch=None,
            accumulate_grad_batches=config.trainer.accumulate_grad_batches * n_devices,
            detect_anomaly=False,
            profiler=None,
        )
    return trial


def trial_data(config: DictConfig) -> DataModule:
    data = read_data(config)
    if config.trainer.get("overfit_batches"):
        data.overfit()
    return data


def trial_task(config: DictConfig, data: DataModule) -> Task:
    """A network as the run would begin with it."""
    build.seed_everything(config.seed)
    task = build.build_task(config, data.spec, train=True)
    weights.initialise(task.network, config, data.spec, weights.find_source(config))
    return task


def trial_trainer(config: DictConfig, *callbacks: Callback) -> Trainer:
    return build.build_trainer(config, Path.cwd(), callbacks=callbacks)
