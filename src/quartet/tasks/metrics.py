"""Metrics that hold for every unit and every set of classes: sums in float64, and no number where none is defined."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

BLOCK = 64  # columns; about the root of a vocabulary of some thousands, so that both searches below are short


def argmax(logits: Tensor) -> Tensor:
    """(N, V) -> (N,), what `logits.argmax(-1)` gives: the first of the largest.

    On a CPU that takes half as long as the cross-entropy, 24 ms for (2048, 4096); the largest values alone, by `amax`, take
    1 ms. So the block with the largest value is found first, and its column in the block (4 ms in all).
    """
    n = logits.shape[-1]
    whole = n // BLOCK * BLOCK
    largest = logits[:, :whole].unflatten(-1, (-1, BLOCK)).amax(-1)  # (N, V / BLOCK)
    if whole < n:
        largest = torch.cat((largest, logits[:, whole:].amax(-1, keepdim=True)), dim=-1)
    columns = largest.argmax(-1, keepdim=True) * BLOCK + torch.arange(BLOCK, device=logits.device)  # (N, BLOCK)
    columns = columns.clamp(max=n - 1)  # the last block may be shorter
    return columns.gather(-1, logits.gather(-1, columns).argmax(-1, keepdim=True)).squeeze(-1)


class RegressionErrors(Metric):
    """RMSE, MAE and R² of all samples; `scale` is the unit of the values it is given.

    The values are the standardised ones: their unit is that of the network, so an offset or a factor of the target
    changes nothing but the factor of RMSE and MAE. They are kept (4 bytes each, twice) and summed in float64 at the
    end, by two passes. R² is left out if it is undefined: of fewer than two samples, or of targets that are all equal.
    """

    full_state_update = False
    predictions: list[Tensor]
    targets: list[Tensor]

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale
        for name in ("predictions", "targets"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """(B,) each."""
        self.predictions.append(prediction.detach())
        self.targets.append(target.detach())

    def compute(self) -> dict[str, Tensor]:
        # a state that is gathered over workers is one tensor already
        states = [x if isinstance(x, Tensor) else torch.cat(x) for x in (self.predictions, self.targets)]
        prediction, target = (x.cpu().double() for x in states)
        errors = prediction - target
        values = {"rmse": errors.square().mean().sqrt() * self.scale, "mae": errors.abs().mean() * self.scale}
        r2 = r_squared(prediction, target)
        return values if r2 is None else {**values, "r2": r2}


def r_squared(prediction: Tensor, target: Tensor) -> Tensor | None:
    """Share of the targets' variance that is explained, of float64 values; None where they have no variance."""
    if len(target) < 2 or bool(target.min() == target.max()):
        return None
    return 1 - (prediction - target).square().sum() / (target - target.mean()).square().sum()


class ClassCounts(Metric):
    """How many samples each class has, (C,): metrics of one class against the rest are defined by that."""

    full_state_update = False
    counts: Tensor

    def __init__(self, n_classes: int):
        super().__init__()
        self.n_classes = n_classes
        self.add_state("counts", default=torch.zeros(n_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, _: Any, target: Tensor) -> None:
        self.counts = self.counts.scatter_add(0, target, torch.ones_like(target))  # a bincount waits for the device

    def compute(self) -> Tensor:
        return self.counts
