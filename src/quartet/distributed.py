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
    """The largest of the workers' numbers."""
    if trainer.world_size == 1:
        return number
    largest = torch.tensor(number, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return int(largest)
