"""How much of the device a training uses: FLOPs a second, and their share of what the device could do."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from quartet.callbacks.monitors import Throughput, is_logging_step
from quartet.system.flops import StepFlops, peak_flops


class ModelFlops(Callback):
    """Logs `throughput/teraflops_per_second` of all workers, and `throughput/model_flops_utilisation` of known devices.

    FLOPs are those of the network, forward and backward (see `quartet.system.flops`), counted once, before the first step.
    Time is that of `Throughput`, which has to stand before this callback. Nothing is logged without it, or for a network
    whose shapes depend on the values of its inputs.
    """

    def __init__(self) -> None:
        self._flops: StepFlops | None = None
        self._total, self._seconds, self._step = 0.0, 0.0, 0  # since the last logging step; at it

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # before the strategy shards the weights
        if stage == "fit" and _throughput(trainer):
            with suppress(Exception):  # a network of the user's that cannot be copied
                self._flops = StepFlops(pl_module.network)  # type: ignore[arg-type]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        speed = _throughput(trainer)
        self._total, self._seconds = 0.0, speed.seconds if speed else 0.0
        self._step = trainer.global_step
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._count(pl_module, data.first_inputs(data.batch_size))  # before the clock runs

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        speed = _throughput(trainer)
        if speed is None:
            return
        self._total += self._count(pl_module, batch["inputs"]) * trainer.world_size
        # while gradients accumulate, several batches end in the same step
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if not (stepped and is_logging_step(trainer, self._step)):
            return
        seconds, self._seconds = speed.seconds - self._seconds, speed.seconds
        if seconds > 0 and self._total > 0:
            pl_module.log("throughput/teraflops_per_second", self._total / seconds / 1e12)
            peak = peak_flops(pl_module.device, str(trainer.precision), pl_module.network)  # type: ignore[arg-type]
            if peak is not None:
                share = self._total / seconds / (peak * trainer.world_size)
                pl_module.log("throughput/model_flops_utilisation", share)
        self._total = 0.0

    def _count(self, pl_module: LightningModule, inputs: dict[str, Tensor]) -> float:
        try:
            return self._flops.of(inputs, pl_module.network) if self._flops else 0.0  # type: ignore[arg-type]
        except Exception:  # whatever a network of the user's may do without values
            self._flops = None
            return 0.0


def _throughput(trainer: Trainer) -> Throughput | None:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, Throughput)), None)
