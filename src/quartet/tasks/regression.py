"""Regression: one number for each sample. The network predicts the standardised target; metrics are in its own units."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from quartet.system.loop import log_step
from quartet.tasks.base import Batch, ScoredTask, members
from quartet.tasks.metrics import RegressionErrors, r_squared

LOSSES = {"mean_squared_error": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}


class Regression(ScoredTask):
    """Batches: target (B,) standardised with the training part's mean and standard deviation (`spec`)."""

    METRICS = ("loss", "rmse", "mae", "r2")

    def __init__(self, *, loss: str, **common: Any):
        super().__init__(**common)
        if loss not in LOSSES:
            raise ValueError(f"task.loss must be one of {', '.join(LOSSES)}, not {loss!r}")
        self.loss = LOSSES[loss]

    def step(self, batch: Batch, part: str) -> tuple[Tensor, dict[str, Tensor]]:
        # loss and metrics are of standardised values, whatever the unit of the target
        outputs, target = members(self.network(**batch["inputs"]).float(), batch["target"])
        output = outputs.squeeze(-1)
        loss = self.loss(output, target)
        if part == "train":
            if self.logging_due:
                log_step(self.trainer, {"train/loss": loss.detach()})
            return loss, {}
        self.record(part, loss, output, target)
        return loss, {
            "prediction": self.to_units(output),
            "target": self.to_units(target),
            "index": batch["index"],
        }

    def predict(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.to_units(self.network(**inputs).float().squeeze(-1))

    def measure(self, prediction: Tensor, target: Tensor) -> dict[str, float]:
        """Of values in the target's own unit."""
        values = ((x - self.spec.target_mean) / self.spec.target_std for x in (prediction.double(), target.double()))
        return super().measure(*values)

    def to_units(self, standardised: Tensor) -> Tensor:
        """In float64, which holds a year or a price beside its spread; on the CPU, as not every device has it."""
        return standardised.detach().cpu().double() * self.spec.target_std + self.spec.target_mean

    def new_metrics(self) -> Metric:
        return RegressionErrors(self.spec.target_std)

    def undefined(self, targets: Tensor) -> set[str]:
        return {"r2"} if r_squared(targets.double(), targets.double()) is None else set()
