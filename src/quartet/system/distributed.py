"""What the workers of a run tell each other, beyond gradients. Call these on all of them; alone they cost nothing."""

from __future__ import annotations

from typing import Any

import torch


def gathered(trainer: Any, value: Any) -> list[Any]:
    """The values of all workers, by rank."""
    if trainer.world_size == 1:
        return [value]
    values: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def highest(trainer: Any, number: int) -> int:
    return _reduced(trainer, number, torch.distributed.ReduceOp.MAX)


def total(trainer: Any, number: int) -> int:
    return _reduced(trainer, number, torch.distributed.ReduceOp.SUM)


def _reduced(trainer: Any, number: int, operation: Any) -> int:
    if trainer.world_size == 1:
        return number
    result = torch.tensor(number, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(result, operation)
    return int(result)
