"""A trained run as a function: raw examples in, probabilities or numbers out, from the run directory alone."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy import ndarray as Array
from torch import Tensor

from quartet import build
from quartet.data.base import DataModule
from quartet.engine.weights import load_checkpoint
from quartet.inference.calibration import read_calibration
from quartet.run import Run

Inputs = dict[str, Tensor]


class Model:
    """The best weights of a run with its preprocessing, on the device and in the precision that its config names.

    `encode` and `predict` are apart so that one thread may read while another one computes; `batch_size` examples are
    computed at once, by all threads together; None: as many as suit the data. Raises ValueError or OSError for a run that
    is damaged or has no checkpoint.
    """

    def __init__(self, run: Run, batch_size: int | None = None):
        config = build.opened(run)
        self.calibration = read_calibration(run)
        self.data: DataModule = build.restore_data(run, config, read=False)
        self.batch_size = batch_size or self.data.inference_batch_size
        task: Any = build.build_task(config, self.data.spec)
        load_checkpoint(task, run.best_checkpoint)
        # the trainer knows what accelerator=auto is here, and how its precision casts
        trainer = build.build_trainer(config, run.directory)
        self.precision, self.device = trainer.precision_plugin, trainer.strategy.root_device
        self.task: Any = self.precision.convert_module(task).to(self.device).eval()

    @property
    def classes(self) -> tuple[str, ...]:
        return self.data.spec.classes

    def encode(self, examples: Any) -> Inputs:
        return self.data.encode(examples)

    def predict(self, inputs: Inputs) -> Array:
        """(N, C) calibrated probabilities, or (N,) numbers in the target's own unit."""
        # Examples are encoded many at a time and computed few at a time: each is fastest so. On a processor each thread
        # computes rows of its own: threads that share every layer wait for each other at each of them, and for long where
        # other work, such as reading the next examples, keeps one of them from running.
        n, n_threads = len(next(iter(inputs.values()))), torch.get_num_threads() if self.device.type == "cpu" else 1
        size = math.ceil(self.batch_size / n_threads)
        share = n if n <= size else math.ceil(n / n_threads)

        def compute(first: int) -> list[Tensor]:
            found, end = [], min(first + share, n)
            with torch.inference_mode(), self.precision.forward_context():
                for start in range(first, end, size):
                    batch = {name: x[start : min(start + size, end)].to(self.device) for name, x in inputs.items()}
                    found.append(self.task.predict(self.precision.convert_input(batch)).cpu())
            return found

        if share == n:
            found = compute(0)
        else:
            try:
                with (
                    self.precision.forward_context(),  # around all threads too: torch has one default dtype
                    ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
                ):
                    found = [part for parts in pool.map(compute, range(0, n, share)) for part in parts]
            finally:
                torch.set_num_threads(n_threads)  # also what threads that start later have
        if not found:
            return np.empty((0, len(self.classes)) if self.classes else 0, dtype=np.float32)
        return self.calibration.apply(torch.cat(found).numpy())
