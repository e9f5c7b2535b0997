"""The in-memory loader: tensors batched by indexing, in an order that is a pure function of (seed, epoch).

No worker processes and no collation: a batch is one `index_select` on the device that holds the data. Because the order
depends on nothing but the seed and the epoch, a run resumed at any step sees exactly the samples it would have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

Batch = dict[str, Any]  # {"inputs": {name: tensor}, "target": tensor, "index": (B,) sample ids}
Order = Callable[[int], Tensor]  # epoch -> sample ids in the order in which they are visited


class Dataset(Protocol):
    """What the loader asks of a data set."""

    def __len__(self) -> int: ...
    def gather(self, ids: Tensor) -> Batch: ...
    def to(self, device: torch.device) -> Dataset: ...


class Samples:
    """Inputs and targets as tensors whose first dimension counts the samples."""

    def __init__(self, inputs: dict[str, Tensor], target: Tensor):
        assert all(len(x) == len(target) for x in inputs.values()), "inputs and targets differ in length"
        self.inputs, self.target = inputs, target

    def __len__(self) -> int:
        return len(self.target)

    def gather(self, ids: Tensor) -> Batch:
        ids = ids.to(self.target.device)  # orders are made on the CPU
        inputs = {name: x.index_select(0, ids) for name, x in self.inputs.items()}
        return {"inputs": inputs, "target": self.target.index_select(0, ids), "index": ids}

    def to(self, device: torch.device) -> Samples:
        self.inputs = {name: x.to(device) for name, x in self.inputs.items()}
        self.target = self.target.to(device)
        return self


def sequential(n: int) -> Order:
    """0 … n - 1, every epoch."""
    return lambda epoch: torch.arange(n)


def shuffled(n: int, seed: int) -> Order:
    """A permutation of 0 … n - 1 drawn anew each epoch from (seed, epoch)."""
    return lambda epoch: torch.randperm(n, generator=generator(seed, epoch))


def generator(seed: int, epoch: int) -> torch.Generator:
    """A CPU generator that depends on both numbers: the order is the same on every device."""
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)


class MemoryLoader:
    """Batches of a data set held in memory; rank r of `world` takes every world-th sample of each global batch.

    All ranks have equally many batches, because workers wait for each other. Where the last samples are fewer than the
    ranks, those left over get a sample of another rank in a batch marked as `filler`, which counts for nothing.

    `epoch` and `step`, the position of the next batch, are its whole state: `seek` sets them, iteration continues from there
    to the end of the epoch. `position`, where it is given, says where each iteration begins: a trainer may leave an epoch
    early or continue with an old one.

    `drop_last` leaves out the last samples of an epoch that do not fill a `window`, the batches of one optimizer step:
    a gradient is always the mean over as many samples.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int,
        order: Order,
        drop_last: bool,
        rank: int = 0,
        world: int = 1,
        window: int = 1,
    ):
        self.dataset, self.batch_size, self.order = dataset, batch_size, order
        self.drop_last, self.rank, self.world, self.window = drop_last, rank, world, window
        self.epoch, self.step = 0, 0
        self.position: Callable[[], tuple[int, int]] | None = None
        # a batch for each row of sample ids; data that are not in memory may have worker processes make them
        self.batches: Callable[[Iterator[Tensor]], Iterator[Batch]] = partial(map, dataset.gather)

    def seek(self, epoch: int, step: int) -> None:
        self.epoch, self.step = epoch, step

    @property
    def global_batch_size(self) -> int:
        return self.batch_size * self.world

    def __len__(self) -> int:
        n = len(self.dataset)
        if self.drop_last:
            return n // self.global_batch_size // self.window * self.window
        return -(-n // self.global_batch_size)

    def __iter__(self) -> Iterator[Batch]:
        if self.position is not None:
            self.seek(*self.position())
        for batch in self.batches(self._remaining()):
            if len(self.dataset) - self.step * self.global_batch_size <= self.rank:  # samples left in the epoch
                batch["filler"] = True
            last = self.step + 1 == len(self)
            # moved before the batch is handed out: a consumer that counts batches never asks for the end
            self.seek(self.epoch + last, 0 if last else self.step + 1)
            yield batch

    def _remaining(self) -> Iterator[Tensor]:
        """The sample ids of this rank's batches, from here to the end of the epoch."""
        ids = self.order(self.epoch)
        for step in range(self.step, len(self)):
            start = step * self.global_batch_size
            batch = ids[start : start + self.global_batch_size]
            yield batch[self.rank :: self.world] if self.rank < len(batch) else batch[:1]
