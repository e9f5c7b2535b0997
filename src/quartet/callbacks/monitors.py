"""Numbers about the training itself: norm of the gradient, learning rate, throughput."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from quartet.optim import gradient_norm
from quartet.system.loop import is_logging_step, log_step


class NotFinite(ValueError):
    """Training has diverged; `what` is not finite."""

    def __init__(self, what: str):
        remedy = "try a smaller optimizer.lr, a smaller trainer.gradient_clip_val or trainer.precision=32-true"
        super().__init__(f"{what}: training broke down; {remedy}")


class FiniteLoss(Callback):
    """Raises NotFinite at the first training loss that is NaN or infinite, before it reaches the weights.

    On a GPU it does so at the next logging step: looking at each loss would make the processor wait for the device. The
    weights are spoilt by then, but `Checkpoints` writes none that are not finite, so the last checkpoint is from before.
    """

    def __init__(self) -> None:
        self._sum: Tensor | float = 0.0  # of the losses since the last look; what is not finite stays in it

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._sum = self._sum + loss.detach()
        if loss.device.type == "cpu" or is_logging_step(trainer, trainer.global_step + 1):
            value, self._sum = float(self._sum), 0.0
            if not math.isfinite(value):
                raise NotFinite(f"the loss of step {trainer.global_step + 1} is {value}")


class GradientNorm(Callback):
    """Logs `optim/gradient_norm`: the L2 norm over all parameters, unscaled, before clipping, at logging steps only."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if is_logging_step(trainer, trainer.global_step + 1):
            log_step(
                trainer,
                {"optim/gradient_norm": gradient_norm(p for group in optimizer.param_groups for p in group["params"])},
            )


class LearningRate(Callback):
    """Logs `optim/lr`, the rate of the first parameter group; other rates as `optim/lr_<name of the group>`."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if is_logging_step(trainer, trainer.global_step + 1):
            log_step(trainer, learning_rates(trainer.optimizers[0].param_groups))


class Throughput(Callback):
    """Logs `throughput/tokens_per_second`, or `samples_…` if a sample has one target; counts the whole global batch.

    Time runs from the start of a batch to the end of the last one before a validation, so validation, figures and
    checkpoints written there are left out, while loading batches is included. The logged value is that since the last
    logging step; `total`, `seconds` and `per_second` are of the whole training, across resumes.
    """

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self.total, self.seconds, self.unit = 0, 0.0, "samples"
        self._since: float | None = None  # None: not training
        self._step, self._logged = 0, (0, 0.0)

    @property
    def per_second(self) -> float:
        return self.total / self.seconds if self.seconds else 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._since is None:
            self._since = self.clock()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        target = batch["target"]
        self.unit = "tokens" if target.ndim == 2 else "samples"
        self.total += target.numel() * trainer.world_size
        self._count_time()
        # while gradients accumulate, several batches end in the same step
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if stepped and is_logging_step(trainer, self._step):
            (total, seconds), self._logged = self._logged, (self.total, self.seconds)
            if self.seconds > seconds:
                rate = (self.total - total) / (self.seconds - seconds)
                log_step(trainer, {f"throughput/{self.unit}_per_second": rate})

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # stop the clock; the GPU's queue still holds training steps
        if self._since is not None and pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
            self._count_time()
        self._since = None

    on_train_end = on_validation_start

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.total, self.seconds = state_dict["total"], state_dict["seconds"]
        self._logged = (self.total, self.seconds)

    def _count_time(self) -> None:
        now = self.clock()
        assert self._since is not None, "a batch ended that did not start"
        self.seconds, self._since = self.seconds + now - self._since, now


def learning_rates(groups: list[dict[str, Any]]) -> dict[str, float]:
    """Names and rates of parameter groups; one name if all rates are the same."""
    first = groups[0]["lr"]
    rates = {"optim/lr": float(first)}
    for number, group in enumerate(groups):
        if group["lr"] != first:
            # MuonAdamW's groups have the rates of two optimizers, several groups each
            optimizer = {True: "muon", False: "adamw"}.get(group.get("use_muon"), number)  # type: ignore[call-overload]
            rates[f"optim/lr_{group.get('name', optimizer)}"] = float(group["lr"])
    return rates
