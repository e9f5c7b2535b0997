"""A learning-rate range test: the rate rises exponentially while the network trains, and the loss says what it bears.

Smith 2017, "Cyclical learning rates for training neural networks" (arXiv:1506.01186), section 3.3.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from pytorch_lightning import Callback, LightningModule, Trainer

from quartet.engine.trial import trial_config, trial_data, trial_task, trial_trainer
from quartet.files import written
from quartet.lettering import lettered, new_figure

STEPS = 100  # optimizer steps: 14 for each factor of ten
LOWEST, HIGHEST = 1e-6, 10.0  # rates
SMOOTHING = 3.0  # steps: standard deviation of the Gaussian that the losses are averaged with
EXPLODED = 2.0  # times the loss at the start, where the test ends
FALL = 0.8  # share of the whole fall of the loss at which the suggestion lies; compared in docs/notes.md


class RangeTest(Callback):
    """Sets the rate of each optimizer step and keeps its loss; groups of parameters keep the ratios of their rates."""

    def __init__(self, lr: float):
        self.lr = lr  # of the config, to which the rates of the groups belong
        self.rates: list[float] = []
        self.losses: list[float] = []
        self._of_groups: list[float] = []
        self._loss = self._smoothed = self._start = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._of_groups = [group["lr"] for group in trainer.optimizers[0].param_groups]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        rate = LOWEST * (HIGHEST / LOWEST) ** (trainer.global_step / (STEPS - 1))
        for group, lr in zip(trainer.optimizers[0].param_groups, self._of_groups, strict=True):
            group["lr"] = lr * rate / self.lr
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.rates.append(rate)
            self._loss = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # of a batch it is the share in the step's loss
        self._loss += float(outputs["loss"])
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self.losses.append(self._loss)
        n = len(self.losses)
        self._smoothed += (self._loss - self._smoothed) / min(n, 2 * SMOOTHING)
        if n == 2 * SMOOTHING:
            self._start = self._smoothed
        exploded = n > 2 * SMOOTHING and self._smoothed > EXPLODED * abs(self._start)
        trainer.should_stop = trainer.should_stop or exploded or not math.isfinite(self._loss)


def range_test(config: DictConfig) -> tuple[np.ndarray, np.ndarray]:
    """Rates and losses (S,) of the steps that were made, S at most STEPS; the same for the same seed."""
    trial, test = trial_config(config, STEPS), RangeTest(config.optimizer.lr)
    data = trial_data(config)
    trial_trainer(trial, test).fit(trial_task(trial, data), datamodule=data)
    if not test.losses:
        window = trial.trainer.accumulate_grad_batches
        raise ValueError(
            f"a step takes {data.batch_size * window} samples (data.batch_size={data.batch_size} × {window} batches), and "
            f"there are {len(data.datasets['train']):,} to train on; lower one of them"
        )
    losses = np.array(test.losses)
    finite = np.isfinite(losses)
    return np.array(test.rates[: len(losses)])[finite], losses[finite]


def smoothed(losses: np.ndarray) -> np.ndarray:
    """Averaged with both neighbours, which does not lag behind as a moving average would."""
    steps = np.arange(len(losses))
    weights = np.exp(-0.5 * ((steps[:, None] - steps) / SMOOTHING) ** 2)
    return weights @ losses / weights.sum(1)


def suggest(rates: np.ndarray, losses: np.ndarray) -> float:
    """The first rate at which the smoothed loss has come down by most of what it comes down by.

    Below it training is slow, and where the loss is lowest the network is about to diverge. Raises ValueError for a loss
    that falls by less than it scatters.
    """
    if len(losses) < 4 * SMOOTHING:
        raise ValueError(
            f"the loss exploded within {len(losses) + 1} steps, at rates of {LOWEST:g}: it is not the rate; look at the data"
        )
    curve = smoothed(losses)
    # while rates are tiny nothing moves: what the loss is like without training
    start = curve[: len(curve) // 4].mean()
    fall = start - curve.min()
    if fall < np.std((losses - curve)[: len(curve) // 4]):
        raise ValueError(
            f"the loss did not fall at any rate from {LOWEST:g} to {rates[-1]:.2g}: it began at {start:.4g}, the lowest was "
            f"{curve.min():.4g}; are the targets right, and is data.batch_size large enough for the loss to be seen?"
        )
    return float(f"{rates[np.argmax(curve <= start - FALL * fall)]:.1e}")


def draw(path: Path, rates: np.ndarray, losses: np.ndarray, suggestion: float, present: float, title: str) -> None:
    """The loss over the rate, with the suggestion and the rate of the config."""
    curve = smoothed(losses)
    figure = new_figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, ".", color="0.7", markersize=4, label="a step")
    axes.plot(rates, curve, color="#0072B2", linewidth=2, label="smoothed")
    axes.axvline(present, color="0.45", linestyle=":", label=f"optimizer.lr now: {present:g}")
    at = float(np.interp(np.log(suggestion), np.log(rates), curve))
    axes.axvline(suggestion, color="#D55E00", linewidth=1)
    axes.plot([suggestion], [at], "D", color="#D55E00", markersize=8, label=f"suggestion: {suggestion:g}")
    # an explosion would press everything else flat
    low, start = min(curve.min(), losses.min()), curve[: len(curve) // 4].max()
    axes.set(
        xscale="log", xlim=(LOWEST / 1.3, rates[-1] * 1.3), xlabel="learning rate", ylabel="training loss", title=title
    )
    axes.set_ylim(low - 0.08 * (start - low), start + 0.35 * (start - low))
    axes.xaxis.set_major_formatter(lambda rate, _: f"{rate:g}")  # matplotlib would write formulas
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.legend(loc="lower left")
    with written(path) as file, lettered(figure):
        figure.savefig(file, format="png")
